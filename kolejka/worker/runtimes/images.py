"""The sandbox's image store: unpacked root file systems below ``DATA/images``.

An image comes from a root tarball, a docker archive (``docker save``) or an OCI layout (a folder, or its tar); each
tar may be compressed with gzip, bzip2, xz or zstd. Layers are applied in order with their whiteouts. Names inside an
archive are resolved *within* the new root, links included, the way the container would see them, so no archive can
write beside it. Device nodes and FIFOs are left out, set-id bits are dropped: no payload could use them. An image is
made beside its place and renamed into it: it is whole or absent.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from kolejka.common.errors import InputError, NodeError, NotFound
from kolejka.common.files import CHUNK, read_json, write_json
from kolejka.common.image_names import check_image_name
from kolejka.worker.runtimes.base import Tell, unheard
from kolejka.worker.runtimes.skeleton import prepare_root
from kolejka.worker.trees import remove_tree, weight

MAX_LINKS: Final = 40
_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
"""how a Zstandard frame begins (RFC 8878)"""


def canonical(image: str) -> str:
    """The one name of an image: ``ubuntu`` is ``ubuntu:latest``; a digest stays."""
    last = image.rpartition("/")[2]
    return image if ":" in last or "@" in last else f"{image}:latest"


class Store:
    """The images below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _place(self, image: str) -> Path:
        return self._folder / urllib.parse.quote(canonical(image), safe="").replace(".", "%2E")

    def _about(self, image: str) -> dict[str, Any]:
        place = self._place(image) / "image.json"
        if not place.is_file():
            raise NotFound(
                f"the sandbox has no image {image!r}; `kolejka-worker image import {image} ARCHIVE` brings it in",
                field="image",
            )
        about: dict[str, Any] = read_json(place)
        return about

    def has(self, image: str) -> bool:
        """Whether the image is here."""
        return (self._place(image) / "image.json").is_file()

    def root(self, image: str) -> Path:
        """Its unpacked root. NotFound with the cure where it is not here."""
        self._about(image)
        return self._place(image) / "root"

    def size(self, image: str) -> int:
        """Bytes on disk when it was imported. NotFound where it is not here."""
        return int(self._about(image)["size"])

    def environment(self, image: str) -> Mapping[str, str]:
        """The variables that the image sets. NotFound where it is not here."""
        return dict(self._about(image)["environment"])

    def list(self) -> Iterator[dict[str, Any]]:
        """Name, size and source of each image."""
        with suppress(FileNotFoundError):
            for place in sorted(self._folder.iterdir()):
                if (place / "image.json").is_file():
                    yield read_json(place / "image.json")

    def drop(self, image: str) -> None:
        """Remove an image. NotFound where it is not here."""
        self._about(image)
        place = self._place(image)
        doomed = Path(tempfile.mkdtemp(prefix=".dropped-", dir=self._folder))
        place.rename(doomed / "image")
        remove_tree(doomed)

    def fetch(self, image: str, tell: Tell = unheard) -> None:
        """Get an image from its registry with skopeo. NodeError where that is not installed or fails."""
        if shutil.which("skopeo") is None:
            raise NodeError(
                f"{image}: there is no skopeo here to fetch images with; install it, or `kolejka-worker image import`"
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetched-", dir=self._folder) as folder:
            layout = Path(folder) / "layout"
            command = ["skopeo", "copy", "--quiet", f"docker://{canonical(image)}", f"oci:{layout}:image"]
            with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as running:
                while True:
                    try:
                        _, said = running.communicate(timeout=1.0)
                    except subprocess.TimeoutExpired:
                        tell(weight(Path(folder)), 0)
                        continue
                    break
            if running.returncode != 0:
                reason = (said.strip().splitlines() or [f"skopeo ended with {running.returncode}"])[-1]
                words = re.search(r'msg="(.*)"$', reason)
                raise NodeError(f"{image}: cannot be fetched: {words[1] if words else reason}"[:1000])
            self.add(image, layout)

    def add(self, image: str, source: Path) -> dict[str, Any]:
        """Import an image from a root tarball, a docker archive or an OCI layout, replacing one of that name.

        Returns its name, size and environment. InputError when the source is none of these or is broken.
        """
        try:
            check_image_name(image)
        except InputError as error:
            raise error.within("image") from None
        if not source.exists():
            raise InputError("there is no such archive or folder", field=str(source))
        self._folder.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=self._folder))
        try:
            fresh.chmod(0o755)
            root = fresh / "root"
            root.mkdir(mode=0o755)
            with tempfile.TemporaryDirectory(prefix=".layout-", dir=self._folder) as parts:
                try:
                    layers, environment = _open(source, Path(parts))
                    for layer in layers:
                        unpack(layer, root)
                except (tarfile.TarError, EOFError, OSError) as error:
                    raise InputError(f"cannot be unpacked: {error}", field=str(source)) from error
            prepare_root(root)
            about = {"name": canonical(image), "size": weight(root), "environment": environment}
            write_json(fresh / "image.json", about)
            place = self._place(image)
            if place.exists():
                self.drop(image)
            fresh.rename(place)
        except BaseException:
            remove_tree(fresh)
            raise
        return about


def _open(source: Path, parts: Path) -> tuple[Iterable[Path], dict[str, str]]:
    """The layers of an image as tar files, lowest first, and its environment."""
    if source.is_dir():
        folder = source
    else:
        with _open_tar(source) as archive:
            names = {os.path.normpath(name) for name in archive.getnames()}
        if not names & {"manifest.json", "index.json"} or "etc" in names or "bin" in names:
            return [source], {}
        with _open_tar(source) as archive:
            archive.extractall(parts, filter="data")
        folder = parts
    if (folder / "index.json").is_file():
        return _oci(folder)
    if (folder / "manifest.json").is_file():
        manifest = read_json(folder / "manifest.json")[0]
        config = read_json(_inside(folder, manifest["Config"]))
        return [_inside(folder, layer) for layer in manifest["Layers"]], _environment(config)
    raise InputError("this is neither an OCI layout nor a docker archive nor a root tarball", field=str(source))


@contextmanager
def _open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar, whatever it is compressed with. TarError, EOFError or OSError when it is none."""
    with ExitStack() as stack:
        with open(path, "rb") as file:
            is_zstd = file.read(len(_ZSTD_MAGIC)) == _ZSTD_MAGIC
        if not is_zstd:
            yield stack.enter_context(tarfile.open(path, "r:*"))
            return
        try:
            yield stack.enter_context(tarfile.open(fileobj=stack.enter_context(zstd.open(path)), mode="r:"))
        except zstd.ZstdError as error:
            raise tarfile.ReadError(f"{path.name}: {error}") from error


def _oci(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """An OCI image layout (https://github.com/opencontainers/image-spec/blob/main/image-layout.md)."""
    entry = read_json(folder / "index.json")["manifests"][0]
    for _ in range(4):  # an index may lead to an index
        manifest = read_json(_blob(folder, entry["digest"]))
        if "layers" in manifest:
            config = read_json(_blob(folder, manifest["config"]["digest"]))
            return [_blob(folder, layer["digest"]) for layer in manifest["layers"]], _environment(config)
        entry = next(
            (e for e in manifest["manifests"] if e.get("platform", {}).get("architecture") == _architecture()),
            manifest["manifests"][0],
        )
    raise InputError("this OCI layout leads nowhere", field=str(folder))


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


def _blob(folder: Path, digest: str) -> Path:
    algorithm, _, value = digest.partition(":")
    return _inside(folder, f"blobs/{algorithm}/{value}")


def _inside(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        raise InputError(f"{name!r} is not in the archive", field=str(folder))
    return path


def _environment(config: Mapping[str, Any]) -> dict[str, str]:
    words = config.get("config", {}).get("Env") or []
    return {name: value for name, _, value in (word.partition("=") for word in words)}


class _Scope:
    """Paths inside a root, resolved as if it were ``/``."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, name: str) -> Path:
        """The real folder that ``name`` leads to inside the root, made where it is missing."""
        waiting = [part for part in name.split("/") if part not in {"", "."}][::-1]
        reached: list[str] = []
        links = 0
        while waiting:
            part = waiting.pop()
            if part == "..":
                del reached[-1:]
                continue
            path = self._root.joinpath(*reached, part)
            if path.is_symlink():
                links += 1
                if links > MAX_LINKS:
                    raise InputError("links lead in a circle", field=name)
                target = os.readlink(path)
                if target.startswith("/"):
                    reached.clear()
                waiting += [step for step in target.split("/") if step not in {"", "."}][::-1]
                continue
            if not path.is_dir():
                path.unlink(missing_ok=True)
                path.mkdir(mode=0o755)
            reached.append(part)
        return self._root.joinpath(*reached)

    def path(self, name: str) -> Path | None:
        """The place of an entry: its folder resolved, its last part as it is. None for the root itself."""
        parts = [part for part in name.split("/") if part not in {"", "."}]
        if not parts or parts[-1] == "..":
            return None
        return self.folder("/".join(parts[:-1])) / parts[-1]


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def unpack(layer: Path, root: Path) -> None:
    """Apply one layer (a tar, compressed or not) to a root that nobody else writes to."""
    scope = _Scope(root)
    made: set[Path] = set()
    folders: list[tuple[Path, int]] = []
    with _open_tar(layer) as archive:
        for member in archive:
            path = scope.path(member.name)
            if path is None:
                continue
            if path.name == _OPAQUE:
                for below in path.parent.iterdir():
                    if below not in made:
                        _clear(below)
                continue
            if path.name.startswith(_WHITEOUT):
                _clear(path.with_name(path.name.removeprefix(_WHITEOUT)))
                continue
            _unpack_member(archive, member, path, scope)
            made.add(path)
            made.update(path.parents)
            if member.isdir():
                folders.append((path, member.mode))
    for path, mode in reversed(folders):  # last, so that a folder without write permission could be filled
        if path.is_dir() and not path.is_symlink():
            path.chmod(mode & 0o1777)


def _unpack_member(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path, scope: _Scope) -> None:
    if member.isdir():
        if not path.is_dir() or path.is_symlink():
            _clear(path)
            path.mkdir(mode=0o755)
        return
    _clear(path)
    if member.issym():
        path.symlink_to(member.linkname)
    elif member.islnk():
        target = scope.path(member.linkname)
        if target is None or not stat.S_ISREG(target.lstat().st_mode):
            raise InputError(f"{member.name!r} is a hard link to what is no file", field=member.linkname)
        os.link(target, path, follow_symlinks=False)
    elif member.isfile():
        source = archive.extractfile(member)
        assert source is not None  # it is a file
        _write(source, path)
        path.chmod(member.mode & 0o777)
        os.utime(path, (member.mtime, member.mtime))


def _write(source: IO[bytes], path: Path) -> None:
    with open(path, "xb") as sink:
        shutil.copyfileobj(source, sink, CHUNK)

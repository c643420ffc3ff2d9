"""A result becomes a folder: all of it or nothing.

The folder grows under a temporary name beside its place and is renamed at the end. Names, sizes, modes and hashes come
from a server that may be hostile: names pass ``check_name``, files are made anew and never followed or overwritten,
modes are permission bits only, bytes are what their hashes say.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kolejka.common.errors import InputError, NodeError
from kolejka.common.result import RESULT_FILE, Result, ResultFile

Fetch = Callable[[str, Path, int], object]
"""Brings the blob of this hash and size to this path, verified."""


def check_result_folder(folder: str | os.PathLike[str]) -> Path:
    """The place for a result: a folder that can be made, or an empty one. InputError otherwise."""
    place = os.fspath(folder)
    try:
        return _checked(Path(os.path.abspath(folder)), place)
    except OSError as error:
        raise InputError(f"cannot be made: {error.strerror}", field=place) from None


def _checked(path: Path, place: str) -> Path:
    if path.is_symlink():  # a link to an empty folder stays a link
        path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {os.fspath(path.parent)!r} to make it in; make that first", field=place)
    if path.exists() or path.is_symlink():
        if not path.is_dir():
            raise InputError("there is something of that name that is no folder; name a new one", field=place)
        if any(path.iterdir()):
            raise InputError("this folder is not empty; name a new one for the result", field=place)
        if os.path.samefile(path, os.getcwd()) or os.path.ismount(path):
            raise InputError("this folder is in use as such; name a new one below it", field=place)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"you may not write into {os.fspath(path.parent)!r}; name another place", field=place)
    return path


@contextmanager
def fresh_folder(path: Path) -> Iterator[Path]:
    """A temporary neighbour of ``path`` that becomes it when the block ends well, and nothing when it does not."""
    outer = tempfile.mkdtemp(prefix=f".{path.name[:64]}.", dir=path.parent)
    try:
        inner = Path(outer) / "result"
        inner.mkdir()  # with the usual mode, unlike its parent
        yield inner
        os.rename(inner, path)  # onto nothing or an empty folder; fails on anything else
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def save_result(result: Result, folder: str | os.PathLike[str], fetch: Fetch) -> None:
    """Make ``folder`` the result's folder. InputError about its place; NodeError when it cannot be written."""
    path = check_result_folder(folder)
    try:
        with fresh_folder(path) as inner:
            have: dict[str, Path] = {}
            for name, entry in result.manifest.items():
                _place_file(inner, name, entry, have, fetch)
            result.save(inner)
            for name, entry in result.manifest.items():
                os.chmod(inner / name, int(entry.mode, 8) & 0o777)
    except OSError as error:
        raise NodeError(f"the result cannot be written: {error.strerror or error}", field=os.fspath(folder)) from None


def check_files(result: Result) -> None:
    """InputError when the files of a result cannot stand beside each other in one folder."""
    for name in result.manifest:
        if name == RESULT_FILE:
            raise InputError(f"a result's file cannot be named {RESULT_FILE}", field="manifest")
        parents = name.split("/")[:-1]
        for depth in range(1, len(parents) + 1):
            parent = "/".join(parents[:depth])
            if parent in result.manifest or parent == RESULT_FILE:
                raise InputError(f"{parent!r} is a file and a folder at once", field="manifest")


def _place_file(inner: Path, name: str, entry: ResultFile, have: dict[str, Path], fetch: Fetch) -> None:
    target = inner / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if entry.sha256 in have:
        shutil.copyfile(have[entry.sha256], target)
        return
    fetch(entry.sha256, target, entry.size)
    have[entry.sha256] = target

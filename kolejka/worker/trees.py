"""Folders that a stranger's program could write: walking, weighing and removing them without ever being led astray.

Everything goes by directory descriptors and opens without following links, so a symlink planted (or swapped in)
anywhere leads nowhere. Names are bytes decoded with ``os.fsdecode``: what is not UTF-8 stands as lone surrogates.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAX_DEPTH: Final = 256
"""Folders deeper than that are not walked, and not kept open while they are weighed: each costs a descriptor."""
TOO_MUCH: Final = 1 << 62
"""the weight of what cannot be weighed"""
_CLOSED: Final = -1
INODE: Final = 4096
"""what a file of one byte takes on the usual disk"""
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass(frozen=True)
class Entry:
    """One thing in a tree. ``folder`` is an open descriptor of the folder it lies in, valid until the next step."""

    name: str
    """relative to the tree's root"""
    base: str
    folder: int
    info: os.stat_result


def open_folder(name: str | Path, folder: int | None = None) -> int:
    """A descriptor of a folder, never through a link. One that denies its owner is opened to its owner first."""
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    except PermissionError:
        if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            os.chmod(name, 0o700, dir_fd=folder)
        return os.open(name, _FOLDER, dir_fd=folder)


def walk(root: Path, *, max_depth: int = MAX_DEPTH) -> Iterator[Entry]:
    """Everything below ``root``, folders before their contents, in the order of names.

    A folder at ``max_depth`` is yielded and not entered. Whatever vanishes during the walk is passed over.
    """
    stack: list[tuple[int, str, Iterator[str]]] = []

    def enter(descriptor: int, prefix: str) -> None:
        stack.append((descriptor, prefix, iter(sorted(os.listdir(descriptor)))))

    enter(open_folder(root), "")
    try:
        while stack:
            descriptor, prefix, names = stack[-1]
            base = next(names, None)
            if base is None:
                os.close(stack.pop()[0])
                continue
            try:
                info = os.stat(base, dir_fd=descriptor, follow_symlinks=False)
            except FileNotFoundError:
                continue
            yield Entry(prefix + base, base, descriptor, info)
            if stat.S_ISDIR(info.st_mode) and len(stack) < max_depth:
                with suppress(FileNotFoundError, NotADirectoryError):  # swapped while we looked
                    enter(open_folder(base, descriptor), f"{prefix}{base}/")
    finally:
        for descriptor, _, _ in stack:
            os.close(descriptor)


def weight(root: Path, least: int = 0) -> int:
    """Bytes in a tree: for each thing the larger of its length and its blocks, so that sparse files count in full.

    A file with several names counts once. Nothing counts for less than ``least``: with ``INODE``, what holds no byte
    counts as if it held one, since a disk has only so many inodes. A tree that cannot be weighed weighs ``TOO_MUCH``.
    """
    total = 0
    seen: set[int] = set()
    try:
        for info in _contents(root):
            if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
                if info.st_ino in seen:
                    continue
                seen.add(info.st_ino)
            size = info.st_size if stat.S_ISREG(info.st_mode) else 0
            total += max(size, info.st_blocks * 512, least)
    except _MovedAwayError:
        return TOO_MUCH
    return total


class _MovedAwayError(Exception):
    """A folder deep down was moved while we were in it, and there is no way back."""


def _contents(root: Path) -> Iterator[os.stat_result]:
    """Everything below ``root``, however deep it lies.

    The first ``MAX_DEPTH`` folders on the way down are kept open. Deeper ones are left by ``..``, which is the way back
    only if it leads to where we came from.
    """
    here = open_folder(root)
    above: list[tuple[int, tuple[int, int], list[str]]] = []
    names = os.listdir(here)
    try:
        while True:
            if names:
                base = names.pop()
                try:
                    info = os.stat(base, dir_fd=here, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                yield info
                if not stat.S_ISDIR(info.st_mode):
                    continue
                try:
                    inner = open_folder(base, here)
                except (FileNotFoundError, NotADirectoryError):  # swapped while we looked
                    continue
                if len(above) < MAX_DEPTH:
                    above.append((here, (0, 0), names))
                else:
                    above.append((_CLOSED, _identity(here), names))
                    os.close(here)
                here = inner
                names = os.listdir(here)
            elif above:
                outer, identity, names = above.pop()
                if outer == _CLOSED:
                    outer = os.open("..", _FOLDER, dir_fd=here)
                    if _identity(outer) != identity:
                        os.close(outer)
                        raise _MovedAwayError
                os.close(here)
                here = outer
            else:
                return
    finally:
        for descriptor in (here, *(entry[0] for entry in above)):
            if descriptor != _CLOSED:
                os.close(descriptor)


def _identity(descriptor: int) -> tuple[int, int]:
    info = os.fstat(descriptor)
    return info.st_dev, info.st_ino


def remove_tree(root: Path) -> None:
    """Remove a folder and all in it, however deep it is. A folder that is not there is fine.

    Deep trees are flattened: a folder's folders are moved up to the root before it is removed, so neither the stack nor
    the number of open descriptors grows with the depth.
    """
    try:
        top = open_folder(root)
    except FileNotFoundError:
        return
    try:
        counter = 0
        while names := os.listdir(top):
            for name in names:
                if _unlink(name, top):
                    continue
                folder = open_folder(name, top)
                try:
                    for inner in os.listdir(folder):
                        if not _unlink(inner, folder):
                            counter += 1
                            _move_up(inner, folder, f".removed-{counter}", top)
                finally:
                    os.close(folder)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(root)


def _unlink(name: str, folder: int) -> bool:
    """Remove a file or an empty folder. False for a folder that holds something."""
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        try:
            os.rmdir(name, dir_fd=folder)
        except OSError:  # not empty, or its contents may not be seen: the caller opens it
            return False
    except PermissionError:  # the folder it lies in denies its owner
        os.chmod(folder, 0o700)
        os.unlink(name, dir_fd=folder)
    return True


def _move_up(name: str, folder: int, fresh: str, top: int) -> None:
    while True:
        try:
            os.rename(name, fresh, src_dir_fd=folder, dst_dir_fd=top)
        except PermissionError:  # a folder that changes its parent must be writable for its owner
            os.chmod(name, 0o700, dir_fd=folder)
            os.rename(name, fresh, src_dir_fd=folder, dst_dir_fd=top)
        except (FileExistsError, NotADirectoryError, OSError) as error:
            if not isinstance(error, FileExistsError | NotADirectoryError) and error.errno != 39:  # ENOTEMPTY
                raise
            fresh += "-"  # the program itself had a file of that name
            continue
        return

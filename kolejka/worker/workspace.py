"""A run's private folder on disk: made before the payload, filled with its files, gone after it.

Each run has a folder of its name below ``work`` in the worker's data. It belongs to us; others may only pass through.
``task`` inside it is the payload's working folder and belongs to the payload's user. Whoever made the folder holds a
lock on it: a folder whose lock is free is the left-over of a dead worker, and ``leftovers`` finds it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from kolejka.common.errors import InputError, NodeError
from kolejka.common.files import CHUNK
from kolejka.common.task import Task
from kolejka.worker.trees import INODE, remove_tree, walk, weight

NAME_PREFIX: Final = "kolejka-"
_NOFOLLOW_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

Mark = tuple[int, int, int]


class Workspace:
    """One run's folder. ``path`` in it is the payload's working folder; what else is there is the runtime's."""

    def __init__(self, data: Path, uid: int) -> None:
        self.uid = uid
        work = data / "work"
        try:
            work.mkdir(parents=True, exist_ok=True)
            self.name = f"{NAME_PREFIX}{secrets.token_hex(8)}"
            self.folder = work / self.name
            self.folder.mkdir(mode=0o711)
        except OSError as error:
            raise NodeError(f"{work}: no workspace can be made: {error.strerror}; check --data and its disk") from error
        self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = self.folder / "task"
        self._inputs: dict[str, Mark] = {}
        self.path.mkdir(mode=0o700)
        self._give(self.path)

    def _give(self, path: Path | int) -> None:
        if os.geteuid() == 0:
            os.chown(path, self.uid, self.uid)

    def fill(self, task: Task, folder: Path | None, blobs: Path | None) -> None:
        """Copy the task's files in: local ones from ``folder``, others from ``blobs``. InputError names a file that is
        not there; NodeError when the disk is full.
        """
        made: set[str] = set()
        for name, file in task.files.items():
            parts = name.split("/")
            for depth in range(1, len(parts)):
                parent = "/".join(parts[:depth])
                if parent not in made:
                    (self.path / parent).mkdir(mode=0o755, exist_ok=True)
                    self._give(self.path / parent)
                    made.add(parent)
            executable = bool(file.executable)
            try:
                sink = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    if file.content is not None:
                        _write_all(sink, file.content.encode("utf-8", "surrogateescape"))
                    else:
                        source = os.open(self._source(name, task, folder, blobs), os.O_RDONLY | os.O_CLOEXEC)
                        try:
                            if file.executable is None and file.path is not None:
                                executable = bool(os.fstat(source).st_mode & 0o111)
                            _copy(source, sink)
                        finally:
                            os.close(source)
                    os.fchmod(sink, 0o755 if executable else 0o644)
                    self._give(sink)
                finally:
                    os.close(sink)
            except OSError as error:
                raise NodeError(f"files.{name}: cannot be copied into the workspace: {error.strerror}") from error
        if any(rule.changed for rule in task.collect):
            self._inputs = {entry.name: _mark(entry.info) for entry in walk(self.path)}

    def _source(self, name: str, task: Task, folder: Path | None, blobs: Path | None) -> Path:
        file = task.files[name]
        if file.path is not None and folder is not None:
            return folder / file.path
        if blobs is None or file.reference is None or not (blobs / file.reference).is_file():
            raise InputError(f"blob {file.reference} is not here", field=f"files.{name}")
        return blobs / file.reference

    def changed(self, name: str, info: os.stat_result) -> bool:
        """Whether the payload made or modified that file."""
        return self._inputs.get(name) != _mark(info)

    def open_input(self, name: str | None, field: str) -> int:
        """A descriptor to read a file of the workspace, or of nothing where there is no name."""
        if name is None:
            return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.open(self.path / name, _NOFOLLOW_READ)
        except FileNotFoundError:
            raise InputError(f"{name!r} is not in the working folder; add it to files", field=field) from None
        except OSError as error:
            raise InputError(f"{name!r} cannot be read: {error.strerror}", field=field) from None

    def weight(self) -> int:
        """Bytes in the working folder."""
        return weight(self.path, INODE)

    def remove(self) -> None:
        """Remove the folder and all in it. Safe twice."""
        if self._lock < 0:
            return
        try:
            remove_tree(self.folder)
        except OSError as error:
            raise NodeError(f"{self.folder}: cannot be removed: {error.strerror}") from error
        finally:
            os.close(self._lock)
            self._lock = -1


def _mark(info: os.stat_result) -> Mark:
    return info.st_ino, info.st_size, info.st_ctime_ns


def _write_all(sink: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(sink, view) :]


def _copy(source: int, sink: int) -> None:
    """Copy all bytes inside the kernel: by reference where the file system can, else page by page."""
    try:
        while os.copy_file_range(source, sink, CHUNK << 6):
            pass
    except OSError:  # across file systems on old kernels, or from one without pages
        while chunk := os.read(source, CHUNK):
            _write_all(sink, chunk)


def leftovers(data: Path) -> Iterator[Path]:
    """Folders of runs whose worker is dead."""
    with suppress(FileNotFoundError):
        for folder in sorted((data / "work").iterdir()):
            if not folder.name.startswith(NAME_PREFIX):
                continue
            try:
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            else:
                yield folder
            finally:
                os.close(descriptor)


def remove_leftover(folder: Path) -> None:
    """Remove the folder of a dead run."""
    try:
        remove_tree(folder)
    except OSError as error:
        raise NodeError(f"{folder}: cannot be removed: {error.strerror}") from error

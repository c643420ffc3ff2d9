"""A backup as one file: a tar archive of the folder that ``backup.py`` makes, written and read as a stream.

Writing: the folder is made first, beside the blobs, so that it holds second names of their bytes and takes no room but
for the tables; then it is read once, from ``kolejka-backup.json`` on, hashing what goes by. A blob that is not what its
name says ends the backup: better none than one that cannot be restored. A file is written under another name until it
is whole.

Reading: the archive is unpacked into a folder beside the data, each member held to what a backup has (so that no
archive writes elsewhere), each blob hashed as it comes. What is unpacked is restored as any folder is, by second names
again. Nothing else is touched before the archive is at its end, so a broken one changes nothing.

Memory is a few blocks, whatever a backup holds. What a killed command left is removed by the next one: a folder that
nobody has locked.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from kolejka.common.errors import InputError, NodeError
from kolejka.common.files import sync_folder
from kolejka.server.storage.backup import WORDS, Kept, back_up, blob_name, read_words, restore
from kolejka.server.storage.database import Database

STREAM: Final = "-"
_SCRATCH: Final = "backup-"
_BLOCK: Final = 1 << 20
_MOST_WORDS: Final = 16 << 20
_MEMBERS: Final = re.compile(
    rf"{re.escape(WORDS)}|tables/[a-z_]+\.jsonl|blobs/[0-9a-f]{{2}}/[0-9a-f]{{62}}(?:\.[0-9a-zA-Z_-]+)?"
)


def write_archive(database: Database, blobs: Path, target: Path, stream: IO[bytes] | None = None) -> Kept:
    """Keep everything that the server has accepted in the file ``target``, which is not there yet, or in ``stream``.

    InputError when it is there, NodeError when the database or the disk does not take part, or a blob is damaged.
    """
    if stream is None and target.exists():
        raise InputError("there is such a file already; name another", field=str(target))
    with _scratch(blobs) as folder:
        kept = back_up(database, blobs, folder / "kept")
        part = target.with_name(f".{target.name}.part")
        try:
            if stream is not None:
                _pack(folder / "kept", stream)
                stream.flush()
                return kept
            with open(part, "wb") as sink:
                _pack(folder / "kept", sink)
                sink.flush()
                os.fsync(sink.fileno())
            part.rename(target)
            sync_folder(target.parent)
        except OSError as error:
            raise NodeError(f"the backup cannot be written: {error.strerror}", field=str(target)) from error
        finally:
            if stream is None:
                part.unlink(missing_ok=True)
    return kept


def restore_archive(source: Path, database: Database, blobs: Path, stream: IO[bytes] | None = None) -> Kept:
    """Make of a backup in the file ``source``, or in ``stream``, what it was made of, as ``restore`` does.

    InputError when it is no backup, or damaged, or not whole.
    """
    with _scratch(blobs) as folder:
        try:
            if stream is not None:
                _unpack(stream, folder / "kept", source)
            else:
                with open(source, "rb") as file:
                    _unpack(file, folder / "kept", source)
        except OSError as error:
            raise NodeError(f"the backup cannot be read: {error.strerror}", field=str(source)) from error
        return restore(folder / "kept", database, blobs)


@contextmanager
def _scratch(blobs: Path) -> Iterator[Path]:
    """A folder on the file system of the blobs, gone afterwards; those that killed commands left go first."""
    parent = blobs.parent
    try:
        parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in parent.glob(f"{_SCRATCH}*"):
            _remove_unlocked(left)
        folder = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=parent))
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise NodeError(f"no folder can be made here for the backup: {error.strerror}", field=str(parent)) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_unlocked(folder: Path) -> None:
    with suppress(OSError):  # it is somebody's who works there, or has just gone
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        finally:
            os.close(lock)


class _Hashed:
    """A file that is read, and the hash of what was."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Some bytes."""
        data = self._source.read(size)
        self._digest.update(data)
        return data

    @property
    def hash(self) -> str:
        """SHA-256 of all that was read."""
        return self._digest.hexdigest()


def _pack(folder: Path, sink: IO[bytes]) -> None:
    with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for path in _contents(folder):
            name = path.relative_to(folder).as_posix()
            with open(path, "rb") as source:
                entry = tarfile.TarInfo(name)
                status = os.fstat(source.fileno())
                entry.size, entry.mtime, entry.mode = status.st_size, int(status.st_mtime), 0o600
                hashed = _Hashed(source)
                archive.addfile(entry, hashed)
            _forget(archive)
            if name.startswith("blobs/") and hashed.hash != blob_name(name.removeprefix("blobs/")):
                raise NodeError("this blob is damaged; the backup was broken off", field=name)


def _forget(archive: tarfile.TarFile) -> None:
    """Have it not keep a list of all members, which no stream can go back to."""
    archive.members = []  # type: ignore[attr-defined]


def _contents(folder: Path) -> Iterator[Path]:
    """The files of a backup, its own words first."""
    yield folder / WORDS
    for name in ("tables", "blobs"):
        for place, _, files in os.walk(folder / name):
            for file in sorted(files):
                yield Path(place) / file


def _unpack(stream: IO[bytes], folder: Path, source: Path) -> None:
    kept, blobs = None, 0
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=_BLOCK) as archive:
            while (entry := archive.next()) is not None:
                _forget(archive)
                if kept is None and entry.name != WORDS:
                    raise InputError(f"this is no backup: it does not begin with {WORDS}", field=str(source))
                if not entry.isreg() or not _MEMBERS.fullmatch(entry.name):
                    raise InputError(f"this is no backup: it holds {entry.name!r}", field=str(source))
                if entry.name == WORDS and entry.size > _MOST_WORDS:
                    raise InputError(f"this is no backup: its {WORDS} is too large", field=str(source))
                _unpack_one(archive, entry, folder, source)
                blobs += entry.name.startswith("blobs/")
                kept = kept or read_words(folder)  # says what is wrong before all the rest is read
    except (tarfile.TarError, EOFError):
        raise InputError("this archive is damaged, or not whole", field=str(source)) from None
    if kept is None:
        raise InputError("this is no backup: it is empty", field=str(source))
    # One that was cut just between two files ends like a whole one.
    for table in kept.rows:
        if not (folder / "tables" / f"{table}.jsonl").is_file():
            raise InputError(f"this archive is not whole: the table {table} is not in it", field=str(source))
    if blobs != kept.blobs:
        raise InputError(f"this archive is not whole: it has {blobs} blobs, not {kept.blobs}", field=str(source))


def _unpack_one(archive: tarfile.TarFile, entry: tarfile.TarInfo, folder: Path, source: Path) -> None:
    content = archive.extractfile(entry)
    assert content is not None  # it is a regular file
    path = folder / entry.name
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    hashed = _Hashed(content)
    try:
        with open(path, "xb") as sink:
            shutil.copyfileobj(hashed, sink, _BLOCK)
            sink.flush()
            os.fsync(sink.fileno())
    except FileExistsError:
        raise InputError(f"this is no backup: it holds {entry.name!r} twice", field=str(source)) from None
    if path.stat().st_size != entry.size:
        raise InputError("this archive is not whole", field=str(source))
    if entry.name.startswith("blobs/") and hashed.hash != blob_name(entry.name.removeprefix("blobs/")):
        raise InputError(f"{entry.name} in this archive is damaged", field=str(source))


def is_archive(target: Path) -> bool:
    """Whether a name of a backup that is to be made means one file: the standard output, or a name with ``.tar``."""
    return str(target) == STREAM or target.suffix == ".tar"

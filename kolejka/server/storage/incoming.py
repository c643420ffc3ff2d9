"""Bytes on their way in: files in ``incoming`` on the server's disk.

An upload is written to a file, hashed as it comes, and handed on only when length and hash are the announced ones;
anything else removes it. A file that may be resumed is named by whose it is and by the hash, and stays when its
connection breaks; what is in it was never promised to anybody, so it need not be synced, and it is hashed again when
the upload goes on. Every file that is being written is locked: whoever gets the lock of one knows that nobody brings
more. Constant memory.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from kolejka.common.errors import Conflict, InputError, Unavailable
from kolejka.common.files import CHUNK, check_reference

_ONCE: Final = "once-"
_AGAIN: Final = "again-"

Hand = Callable[[Path, str], str]
"""Takes a verified file over under the hash of its bytes; the place it got."""


class Incoming:
    """The folder of uploads that are not finished."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def receive(self, reference: str, size: int, hand: Hand, *, resume: str | None, offset: int) -> Upload:
        """Begin or go on with an upload; ``BlobStore.receive`` says how."""
        sink = None
        while sink is None:
            path = self._path(reference, resume)
            try:
                sink = _locked(path)
            except OSError as error:
                raise Unavailable(f"blobs cannot be stored: {error.strerror}") from error
            if sink is None and resume is not None:  # else a sweep looked at our fresh file: take another
                raise Conflict("this upload is under way over another connection", field="Content-Range")
        try:
            here = os.fstat(sink.fileno()).st_size
            if offset and offset != here:
                raise Conflict(f"this upload goes on at byte {here}, not {offset}", field="Content-Range")
            sink.truncate(offset)
        except BaseException:
            sink.close()
            raise
        return Upload(path, sink, reference, size, hand, offset=offset, keep=resume is not None)

    def received(self, reference: str, resume: str) -> int:
        """Bytes that are here of an upload; ``BlobStore.received`` says how."""
        path = self._path(reference, resume)
        if not path.exists():
            return 0
        sink = _locked(path, make=False)
        if sink is None:
            raise Unavailable("this upload is under way over another connection; try again")
        with sink:
            return os.fstat(sink.fileno()).st_size

    def sweep(self, before: float) -> int:
        """Remove what nobody writes and nobody touched since, and what nobody can take up again; how many."""
        removed = 0
        for path in self._folder.iterdir():
            try:
                sink = path.open("rb")
            except FileNotFoundError:  # finished meanwhile
                continue
            with sink:
                if not _lock(sink):
                    continue
                if path.name.startswith(_AGAIN) and os.fstat(sink.fileno()).st_mtime >= before:
                    continue
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def free_bytes(self) -> int:
        """How much more the disk takes."""
        disk = os.statvfs(self._folder)
        return disk.f_bavail * disk.f_frsize

    def _path(self, reference: str, resume: str | None) -> Path:
        check_reference(reference)
        return self._folder / (f"{_ONCE}{secrets.token_hex(8)}" if resume is None else f"{_AGAIN}{resume}-{reference}")


def _lock(sink: IO[bytes]) -> bool:
    try:
        fcntl.flock(sink, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _locked(path: Path, *, make: bool = True) -> IO[bytes] | None:
    """The file, open for appending and locked; ``None`` while another holds it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0), 0o600)
        sink = os.fdopen(descriptor, "r+b", buffering=0)
        if not _lock(sink):
            sink.close()
            return None
        with suppress(FileNotFoundError):  # swept between its opening and its locking
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return sink
        sink.close()


class Upload:
    """Bytes that are coming. ``write`` them all, then ``finish``; ``abort`` in any other case (twice is fine)."""

    def __init__(
        self, path: Path, sink: IO[bytes], reference: str, size: int, hand: Hand, *, offset: int, keep: bool
    ) -> None:
        self._path = path
        self._sink = sink
        self._reference = reference
        self._size = size
        self._hand = hand
        self._keep = keep
        self._begun = offset
        self._received = offset
        self._digest = hashlib.sha256()
        self._is_hashed = not offset

    def write(self, chunk: bytes | bytearray) -> None:
        """The next bytes. Unavailable when the disk does not take them."""
        self._catch_up()
        self._received += len(chunk)
        if self._received > self._size:
            self._keep = False
            raise InputError(f"more bytes came than the {self._size} that were announced", code="truncated")
        self._digest.update(chunk)
        rest = memoryview(chunk)
        try:
            while rest:
                rest = rest[self._sink.write(rest) or 0 :]
        except OSError as error:
            self._keep = False  # a full disk is not kept full by what nobody may come back for
            raise Unavailable(f"the blob cannot be stored: {error.strerror}") from error

    def _catch_up(self) -> None:
        """Hash what came before the connection broke."""
        if self._is_hashed:
            return
        self._sink.seek(0)
        while chunk := self._sink.read(CHUNK):
            self._digest.update(chunk)
        self._is_hashed = True

    def finish(self) -> str:
        """Hand the bytes on, durable; their place. InputError when bytes are missing or have another hash."""
        if self._received != self._size:
            raise InputError(
                f"the upload broke off after {self._received} of {self._size} bytes; send it again", code="truncated"
            )
        self._catch_up()
        self._keep = False
        if self._digest.hexdigest() != self._reference:
            raise InputError(
                f"these bytes have the SHA-256 {self._digest.hexdigest()}", field="sha256", code="hash_mismatch"
            )
        try:
            os.fsync(self._sink.fileno())
            return self._hand(self._path, self._reference)
        except OSError as error:
            raise Unavailable(f"the blob cannot be stored: {error.strerror}") from error

    def abort(self) -> None:
        """Leave nothing behind but what may be resumed. After ``finish`` this does nothing."""
        if self._sink.closed:
            return
        if not self._keep or not self._received:
            self._path.unlink(missing_ok=True)  # while we hold its lock: nobody else has begun to use it
        self._sink.close()

"""The bytes: ``blobs/ab/cdef…``, named by their SHA-256, each whole and on disk or absent.

An upload goes to a file in ``incoming``, is hashed as it comes, synced, and renamed only when length and hash are the
announced ones; anything else removes it. What a crash leaves in ``incoming`` is swept at the start. Constant memory.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from kolejka.common.errors import InputError, Unavailable
from kolejka.common.files import check_reference, sync_folder


class BlobFolder:
    """Blobs below one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True)

    def sweep(self) -> int:
        """Remove uploads that nobody finishes any more; how many. Called before the first upload."""
        left = list(self._incoming.iterdir())
        for path in left:
            path.unlink()
        return len(left)

    def path(self, reference: str) -> Path:
        """Where a blob's bytes are, or would be."""
        check_reference(reference)
        return self._root / reference[:2] / reference[2:]

    def open(self, reference: str) -> BinaryIO:
        """A blob's bytes, to be read. FileNotFoundError when they are not there."""
        return open(self.path(reference), "rb")

    def receive(self, reference: str, size: int) -> Upload:
        """Begin an upload of ``size`` bytes that are to have this hash."""
        return Upload(self._incoming, self.path(reference), reference, size)

    def free_bytes(self) -> int:
        """How much more the disk takes."""
        disk = os.statvfs(self._root)
        return disk.f_bavail * disk.f_frsize


class Upload:
    """Bytes that are coming. ``write`` them all, then ``finish``; ``abort`` in any other case (twice is fine)."""

    def __init__(self, incoming: Path, target: Path, reference: str, size: int) -> None:
        self._target = target
        self._reference = reference
        self._size = size
        self._received = 0
        self._digest = hashlib.sha256()
        try:
            descriptor, name = tempfile.mkstemp(dir=incoming)
        except OSError as error:
            raise Unavailable(f"blobs cannot be stored: {error.strerror}") from error
        self._temporary = Path(name)
        self._sink = os.fdopen(descriptor, "wb", buffering=0)

    def write(self, chunk: bytes | bytearray) -> None:
        """The next bytes. Unavailable when the disk does not take them."""
        self._received += len(chunk)
        if self._received > self._size:
            raise InputError(f"more bytes came than the {self._size} that were announced", code="truncated")
        self._digest.update(chunk)
        rest = memoryview(chunk)
        try:
            while rest:
                rest = rest[self._sink.write(rest) or 0 :]
        except OSError as error:
            raise Unavailable(f"the blob cannot be stored: {error.strerror}") from error

    def finish(self) -> None:
        """Make the blob durable under its name. InputError when bytes are missing or have another hash."""
        if self._received != self._size:
            raise InputError(
                f"the upload broke off after {self._received} of {self._size} bytes; send it again", code="truncated"
            )
        if self._digest.hexdigest() != self._reference:
            raise InputError(
                f"these bytes have the SHA-256 {self._digest.hexdigest()}", field="sha256", code="hash_mismatch"
            )
        try:
            os.fsync(self._sink.fileno())
            self._sink.close()
            if not self._target.parent.is_dir():
                self._target.parent.mkdir(exist_ok=True)
                sync_folder(self._target.parent.parent)
            os.replace(self._temporary, self._target)
            sync_folder(self._target.parent)
        except OSError as error:
            raise Unavailable(f"the blob cannot be stored: {error.strerror}") from error

    def abort(self) -> None:
        """Leave nothing behind. After ``finish`` this does nothing."""
        self._sink.close()
        with suppress(FileNotFoundError):  # renamed, or removed before
            self._temporary.unlink()

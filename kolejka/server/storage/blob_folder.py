"""Blobs on the server's disk: ``ab/cdef….0123456789abcdef``, each whole and synced or absent.

A verified upload becomes a blob by one rename within the folder. Files are never written again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from kolejka.common.errors import InputError, NodeError, Unavailable
from kolejka.common.files import sync_folder
from kolejka.server.storage.blob_store import INCOMING, Invitation, Kept, check_place, new_place
from kolejka.server.storage.incoming import Incoming, Upload

_ENTRY: Final = 2
"""letters of the folders below the root"""


class BlobFolder:
    """Blobs below one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._incoming = Incoming(root / INCOMING)
        except OSError as error:
            raise NodeError(f"cannot be used as the folder of blobs: {error.strerror}", field=str(root)) from None

    def path(self, place: str) -> Path:
        """Where the bytes of a place are, or would be."""
        return self._root / check_place(place)

    def receive(self, reference: str, size: int, *, resume: str | None = None, offset: int = 0) -> Upload:
        """Begin an upload."""
        return self._incoming.receive(reference, size, self._keep, resume=resume, offset=offset)

    def received(self, reference: str, resume: str) -> int:
        """Bytes of a broken upload that are here."""
        return self._incoming.received(reference, resume)

    def _keep(self, source: Path, reference: str) -> str:
        place = new_place(reference)
        target = self._root / place
        if not target.parent.is_dir():
            target.parent.mkdir(exist_ok=True)
            sync_folder(self._root)
        os.rename(source, target)
        sync_folder(target.parent)
        return place

    def open(self, place: str, start: int, stop: int) -> FileReader:
        """Bytes of a file. FileNotFoundError when it is not there."""
        return FileReader(open(self.path(place), "rb"), start, stop)

    def remove(self, places: Iterable[str]) -> None:
        """Remove files."""
        try:
            for place in places:
                self.path(place).unlink(missing_ok=True)
        except OSError as error:
            raise Unavailable(f"blobs cannot be removed: {error.strerror}") from error

    def places(self) -> Iterator[Kept]:
        """Every file."""
        for folder in self._root.iterdir():
            if len(folder.name) != _ENTRY:
                continue
            for entry in os.scandir(folder):
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # swept meanwhile
                    continue
                yield Kept(f"{folder.name}/{entry.name}", status.st_size, status.st_mtime)

    def sweep_incoming(self, before: float) -> int:
        """Remove uploads that nobody finishes any more."""
        return self._incoming.sweep(before)

    def link(self, place: str, valid_s: float) -> None:
        """None: the bytes come from the server."""

    def invite(self, reference: str, whose: str, valid_s: float) -> Invitation | None:
        """None: the bytes go to the server."""
        return None

    def collect(self, reference: str, whose: str, ticket: str, size: int) -> str:
        """Nobody was invited."""
        raise InputError("this server gives no tickets; send the bytes to it", field="ticket")

    def parts(self, reference: str, whose: str, size: int, valid_s: float) -> None:
        """None: the bytes go to the server."""

    def assemble(self, reference: str, whose: str, size: int) -> str:
        """Nobody was given an address."""
        raise InputError("this server takes no parts; send the bytes to it")

    def check(self) -> None:
        """Whether the folder is there and may be written."""
        if not os.access(self._root / INCOMING, os.W_OK | os.X_OK):
            raise Unavailable(f"the folder of blobs cannot be written: {self._root}")

    def free_bytes(self) -> int:
        """How much more the disk takes."""
        return self._incoming.free_bytes()


class FileReader:
    """A part of a file."""

    def __init__(self, source: BinaryIO, start: int, stop: int) -> None:
        self._source = source
        self._left = stop - start
        source.seek(start)

    def read(self, size: int) -> bytes:
        """The next bytes."""
        piece = self._source.read(min(size, self._left))
        if not piece and self._left:
            raise Unavailable("the blob's file is shorter than it was")
        self._left -= len(piece)
        return piece

    def close(self) -> None:
        """Close the file."""
        self._source.close()

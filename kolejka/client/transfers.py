"""Bytes on their way: files up to the server, blobs down from it, in constant memory.

*Up.* A file is hashed first, so that bytes the server has already never travel. While it is sent it is hashed again,
and the last chunk is held back until the hash is the announced one: a file that changed meanwhile breaks the upload
off, and the server keeps nothing. Small files are read once and sent without asking. An upload that breaks goes on
where it broke (``Content-Range``), as long as the transport is patient or the upload gets on.

*Down.* A blob is written to a temporary neighbour and renamed when its hash is right. A download that breaks is taken
up where it broke (``Range``) in the same way. The server may be hostile: it can send neither more bytes than it
announced nor other bytes than the name says.

*Directly.* A server whose blobs lie in a store of their own may name an address there for either way (unless the
transport says no), or addresses for parts of a large file: these are sent side by side, and the server is asked again
until nothing is missing; so an upload goes on where it broke, even in another life of this program. A store that fails
is not asked again for the same blob: its bytes go through the server.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, Final

from kolejka.client.transport import Response, Transport
from kolejka.common.errors import Conflict, InputError, NodeError, NotFound, Unavailable
from kolejka.common.files import CHUNK, check_reference, hash_stream, replacing

logger = logging.getLogger(__name__)

SMALL: Final = 256 << 10
"""Bytes up to which a file is sent without asking first whether the server has it."""

_SLOWEST: Final = 16 << 20
"""bytes a second that a server at least reads from its own blob store"""
_RESUME_S: Final = 0.25
_SIDE_BY_SIDE: Final = 4
"""parts of a file that are sent at one time"""
_ENOUGH: Final = 3
"""times its size that a file is sent in parts, before it is sent to the server"""

Moved = Callable[[int], object]
"""Told how many bytes have just moved."""


def has_blob(transport: Transport, reference: str) -> bool:
    """Whether the server has this blob, for this caller."""
    try:
        transport.request("HEAD", f"/blobs/{check_reference(reference)}")
    except NotFound:
        return False
    return True


def upload_bytes(transport: Transport, data: bytes, moved: Moved | None = None) -> str:
    """Store bytes at hand; their SHA-256."""
    reference = hashlib.sha256(data).hexdigest()
    transport.request("PUT", f"/blobs/{reference}", data=data)
    if moved is not None:
        moved(len(data))
    return reference


def upload_file(
    transport: Transport, path: str | os.PathLike[str], *, reference: str | None = None, moved: Moved | None = None
) -> str:
    """Store a file; its SHA-256. ``reference`` is the hash it is expected to have.

    InputError when it cannot be read, is not a regular file, or changes while it is read.
    """
    try:
        # O_NONBLOCK: opening a FIFO by mistake must not wait for its writer
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb", buffering=0) as source:
            return _upload_open(transport, source, str(path), reference, moved)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", field=str(path)) from None


def _upload_open(
    transport: Transport, source: IO[bytes], place: str, reference: str | None, moved: Moved | None
) -> str:
    status = os.fstat(source.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise InputError("this is not a regular file", field=place)
    if status.st_size <= SMALL:
        data = source.read(SMALL + 1) or b""
        if len(data) <= SMALL:
            found = hashlib.sha256(data).hexdigest()
            if reference is not None and found != reference:
                raise _changed(place)
            return upload_bytes(transport, data, moved)
        source.seek(0)
    found, size = hash_stream(source)  # type: ignore[arg-type]  # an unbuffered file reads bytes all the same
    if reference is not None and found != reference:
        raise _changed(place)
    _send(transport, source, found, size, place)
    if moved is not None:
        moved(size)
    return found


def _send(transport: Transport, source: IO[bytes], reference: str, size: int, place: str) -> None:
    """Send a file that was hashed, from wherever the server wants it, until the server has all of it."""
    direct, parts, again, furthest, sent = transport.direct, True, False, -1, 0
    deadline = time.monotonic() + transport.patience_s
    where = f"/blobs/{reference}"
    verified_s = max(transport.timeout_s, size / _SLOWEST)
    while True:
        words: dict[str, Any] = {"size": size, "direct": direct, **({"parts": True} if direct and parts else {})}
        try:
            plan = transport.request("POST", f"{where}/upload", json=words, timeout=verified_s).object()
        except (InputError, Unavailable) as error:
            if parts and error.field == "parts":  # a server from before there were any
                parts = False
            elif error.code == "hash_mismatch":
                source.seek(0)
                if again or hash_stream(source)[0] != reference:  # type: ignore[arg-type]  # as above
                    raise _changed(place) from None
                again = True  # some parts were of an earlier upload of other bytes; the server has forgotten them
            elif error.code not in {"broken", "truncated"} or time.monotonic() > deadline:
                raise
            else:  # it may have been verifying, which takes a while; asked again it says what came of that
                transport.pause(_RESUME_S)
            continue
        with transport.understanding():
            if plan["state"] == "stored":
                return
            offset, url = int(plan["offset"]), plan.get("url")
            if not 0 <= offset <= size:
                raise ValueError(offset)
            pieces = _pieces(plan, size)
        if pieces:
            before, sent = sent, sent + _send_pieces(transport, source, pieces, place)
            deadline = time.monotonic() + transport.patience_s
            if sent == before or sent > _ENOUGH * size:
                direct = False
            continue
        if offset > furthest:  # it moves, so it may go on
            furthest, deadline = offset, time.monotonic() + transport.patience_s
        try:
            if url is not None:
                direct = False  # should it fail
                transport.elsewhere("PUT", str(url), data=partial(_Announced, source, reference, size, place)).close()
                arrived = {"size": size, "ticket": plan.get("ticket")}
                transport.request("POST", f"{where}/upload", json=arrived, timeout=verified_s)
            else:
                headers = {"Content-Range": f"bytes {offset}-{size - 1}/{size}"}
                body = partial(_Announced, source, reference, size, place, offset)
                transport.request("PUT", where, data=body, headers=headers, patience=0.0)
            return
        except (InputError, Unavailable) as error:
            moved_on = isinstance(error, Conflict | Unavailable)  # Conflict: another connection brought more meanwhile
            if time.monotonic() > deadline or not (moved_on or (offset and error.code == "hash_mismatch")):
                raise  # with an offset: what the server had was another file's beginning, and is gone now
            if url is None:
                transport.pause(_RESUME_S)


@dataclass(frozen=True)
class _Piece:
    """A part of a file, and the address that takes it."""

    start: int
    length: int
    url: str


def _pieces(plan: Mapping[str, Any], size: int) -> list[_Piece]:
    """The parts that a server asks for. ValueError where it asks for what the file has not."""
    if "parts" not in plan:
        return []
    length, found = int(plan["part_size"]), []
    for part in plan["parts"]:
        start = (int(part["number"]) - 1) * length
        if length <= 0 or not 0 <= start < size:
            raise ValueError(part)
        found.append(_Piece(start, min(length, size - start), str(part["url"])))
    return found


def _send_pieces(transport: Transport, source: IO[bytes], pieces: Sequence[_Piece], place: str) -> int:
    """Send parts side by side; how many bytes got through. After the first that fails no further one is begun."""
    failed = threading.Event()

    def send(piece: _Piece) -> int:
        if failed.is_set():
            return 0
        try:
            transport.elsewhere("PUT", piece.url, data=partial(_Slice, source.fileno(), piece, place)).close()
        except Unavailable as error:
            logger.debug("a part did not get through", extra={"start": piece.start, "reason": str(error)})
            failed.set()
            return 0
        return piece.length

    with ThreadPoolExecutor(_SIDE_BY_SIDE, thread_name_prefix="upload") as pool:
        try:
            return sum(pool.map(send, pieces))
        except BaseException:
            failed.set()
            raise


class _Slice:
    """The bytes of a part. Its length becomes Content-Length."""

    def __init__(self, file: int, piece: _Piece, place: str) -> None:
        self._file, self._piece, self._place = file, piece, place

    def __len__(self) -> int:
        return self._piece.length

    def __iter__(self) -> Iterator[bytes]:
        start, end = self._piece.start, self._piece.start + self._piece.length
        while start < end:
            chunk = os.pread(self._file, min(CHUNK, end - start), start)
            if not chunk:
                raise _changed(self._place)
            start += len(chunk)
            yield chunk


class _Announced:
    """Just the bytes that were announced, from ``offset`` on, or InputError before the last of them.

    Its length becomes Content-Length.
    """

    def __init__(self, source: IO[bytes], reference: str, size: int, place: str, offset: int = 0) -> None:
        self._source, self._reference, self._size, self._place = source, reference, size, place
        self._offset = offset

    def __len__(self) -> int:
        return self._size - self._offset

    def __iter__(self) -> Iterator[bytes]:
        self._source.seek(0)
        digest, left = hashlib.sha256(), self._size
        held = b""
        skip = self._offset
        while skip:
            chunk = self._source.read(min(CHUNK, skip))
            if not chunk:
                raise _changed(self._place)
            digest.update(chunk)
            skip -= len(chunk)
            left -= len(chunk)
        while left:
            chunk = self._source.read(min(CHUNK, left))
            if not chunk:
                raise _changed(self._place)
            digest.update(chunk)
            left -= len(chunk)
            if held:
                yield held
            held = chunk
        if digest.hexdigest() != self._reference or self._source.read(1):
            raise _changed(self._place)
        yield held


def _changed(place: str) -> InputError:
    return InputError("the file changed while it was read; put it again when nothing writes to it", field=place)


def upload_stream(transport: Transport, source: BinaryIO, moved: Moved | None = None) -> str:
    """Store all that ``source`` holds; its SHA-256.

    What cannot be read twice goes through a temporary file: the hash must be known before the first byte travels.
    """
    import tempfile

    with tempfile.TemporaryFile() as copy:
        hash_stream(source, copy.write)
        copy.seek(0)
        return _upload_open(transport, copy, "standard input", None, moved)


def download_file(
    transport: Transport,
    reference: str,
    path: str | os.PathLike[str],
    *,
    size: int | None = None,
    mode: int = 0o644,
    moved: Moved | None = None,
) -> int:
    """Write a blob to ``path``, whole or not at all; its size.

    NotFound when the server has no such blob for this caller; Unavailable (``code`` hash_mismatch) when it sends other
    bytes; NodeError when they cannot be written here.
    """
    target = Path(path)
    try:
        with replacing(target, mode=mode) as sink:
            return download(transport, reference, sink, size=size, moved=moved)
    except OSError as error:
        raise NodeError(f"cannot be written: {error.strerror or error}", field=str(target)) from None


def download(
    transport: Transport,
    reference: str,
    sink: IO[bytes],
    *,
    size: int | None = None,
    moved: Moved | None = None,
) -> int:
    """Write a blob into an open, seekable file from its start; its size. Errors as ``download_file``, and OSError."""
    check_reference(reference)
    digest, position = hashlib.sha256(), 0
    deadline = time.monotonic() + transport.patience_s
    direct = transport.direct
    while True:
        headers = {"Range": f"bytes={position}-"} if position else {}
        response = transport.request(
            "GET", f"/blobs/{reference}", params={"direct": "true"} if direct else {}, headers=headers, stream=True
        )
        if response.status == 307:
            direct = False  # should it fail
            response.close()
            try:
                response = transport.elsewhere("GET", response.headers.get("Location", ""), headers=headers)
            except Unavailable:
                continue
        if position and not _continues(response, position):
            sink.seek(0)
            sink.truncate()
            digest, position = hashlib.sha256(), 0
        before = position
        most = size if size is not None else _announced_end(response, position)
        try:
            for chunk in response.chunks():
                position += len(chunk)
                if most is not None and position > most:
                    response.close()
                    raise _other_bytes(transport, reference)
                digest.update(chunk)
                sink.write(chunk)
                if moved is not None:
                    moved(len(chunk))
        except Unavailable as error:
            if error.code != "broken" or time.monotonic() > deadline:
                raise
            if position > before:  # it moves, so it may go on
                deadline = time.monotonic() + transport.patience_s
            else:
                transport.pause(1.0)
            continue
        if digest.hexdigest() != reference:
            raise _other_bytes(transport, reference)
        return position


def _continues(response: Response, position: int) -> bool:
    match = re.match(r"bytes ([0-9]+)-", response.headers.get("Content-Range", ""))
    return match is not None and int(match[1]) == position


def _announced_end(response: Response, position: int) -> int | None:
    length = response.headers.get("Content-Length", "")
    return position + int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None


def _other_bytes(transport: Transport, reference: str) -> Unavailable:
    return Unavailable(
        f"{transport.server} sent other bytes than {reference[:16]}… names; nothing was kept", code="hash_mismatch"
    )

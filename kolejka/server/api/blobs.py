"""Blobs: bytes named by their SHA-256, streamed both ways."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import BinaryIO, Final

from kolejka.common.errors import InputError, NotFound, Unavailable
from kolejka.common.files import CHUNK, check_reference
from kolejka.server.api.errors import TooLarge
from kolejka.server.api.routes import Answer, Call
from kolejka.server.auth.roles import Role
from kolejka.server.deps import Deps
from kolejka.server.storage import blobs
from kolejka.server.storage.base import Connection, ask

READ: Final = 256 * 1024
"""Bytes read and sent at a time."""
OCTETS: Final = "application/octet-stream"


def _reference(call: Call) -> str:
    try:
        return check_reference(call.path["sha256"])
    except InputError as error:
        raise error.within("sha256") from None


async def put_blob(deps: Deps, call: Call) -> Answer:
    """Upload a blob: `Content-Length` bytes whose SHA-256 is the name. 200 when the caller had uploaded it before."""
    reference, size = _reference(call), call.request.content_length
    if size is None:
        raise InputError("say the blob's size in Content-Length", field="Content-Length", code="length_required")
    if size > deps.settings.max_blob:
        raise TooLarge(f"a blob of {size} bytes is more than the {deps.settings.max_blob} that this server takes")
    upload = await asyncio.to_thread(deps.blobs.receive, reference, size)
    try:
        chunk = bytearray()
        async for some in call.request.stream:
            chunk += some
            if len(chunk) >= CHUNK:
                await asyncio.to_thread(upload.write, chunk)
                chunk = bytearray()
        await asyncio.to_thread(upload.write, chunk)
        await asyncio.to_thread(upload.finish)
        now = deps.clock()
        new = await ask(deps.store.write(lambda db: blobs.add(db, reference, size, call.caller.user_id, now)))
    finally:
        upload.abort()
    return Answer(201 if new else 200, {"sha256": reference, "size": size})


async def _size(deps: Deps, call: Call, reference: str) -> int:
    """The blob's size. NotFound when there is none, or none that this caller may have."""
    caller = call.caller

    def work(db: Connection) -> int | None:
        if not (caller.sees_all or blobs.readable(db, reference, caller.user_id, node=caller.role is Role.NODE)):
            return None
        return blobs.size(db, reference)

    size = await ask(deps.store.read(work))
    if size is None:
        raise NotFound(f"there is no blob {reference} for you; who knows only the hash uploads the bytes")
    return size


def _headers(reference: str) -> dict[str, str]:
    return {"Accept-Ranges": "bytes", "ETag": f'"{reference}"', "Cache-Control": "private, immutable"}


async def head_blob(deps: Deps, call: Call) -> Answer:
    """Ask whether the caller may have a blob, and how large it is."""
    reference = _reference(call)
    size = await _size(deps, call, reference)
    return Answer(200, type=OCTETS, headers={**_headers(reference), "Content-Length": str(size)})


async def get_blob(deps: Deps, call: Call) -> Answer:
    """Download a blob, or one `Range` of it."""
    reference = _reference(call)
    size = await _size(deps, call, reference)
    try:
        source = await asyncio.to_thread(deps.blobs.open, reference)
    except FileNotFoundError:
        raise Unavailable(
            f"the bytes of the blob {reference} are missing on the server's disk; tell its admin"
        ) from None
    try:
        piece = parse_range(call.request.get_header("Range"), size)
    except InputError:
        source.close()
        raise
    start, stop = piece or (0, size)
    headers = _headers(reference)
    if piece is not None:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return Answer(
        206 if piece is not None else 200, stream=_Bytes(source, start, stop), length=stop - start, type=OCTETS,
        headers=headers,
    )  # fmt: skip


def parse_range(text: str | None, size: int) -> tuple[int, int] | None:
    """The one range of a ``Range`` header as start and stop; ``None`` = everything (RFC 9110, section 14).

    Several ranges, or another unit, may be ignored, and are. InputError when the range holds no byte of the blob.
    """
    match = re.fullmatch(r"bytes=\s*([0-9]{0,18})-([0-9]{0,18})\s*", text or "")
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        start, stop = max(0, size - int(match[2])), size
    else:
        start, stop = int(match[1]), min(size, int(match[2]) + 1) if match[2] else size
        if match[2] and int(match[2]) < int(match[1]):
            return None  # not a valid range, so as if there was none
    if start >= stop:
        raise InputError(f"the blob has {size} bytes; {text} is beyond", field="Range", code="range_not_satisfiable")
    return start, stop


class _Bytes:
    """A part of a file, piece by piece; falcon calls ``close`` however the download ends."""

    def __init__(self, source: BinaryIO, start: int, stop: int) -> None:
        self._source = source
        self._left = stop - start
        self._start: int | None = start

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._left <= 0:
            raise StopAsyncIteration
        return await asyncio.to_thread(self._read)

    def _read(self) -> bytes:
        if self._start is not None:
            self._source.seek(self._start)
            self._start = None
        piece = self._source.read(min(READ, self._left))
        if not piece:
            raise Unavailable("the blob's file is shorter than it was")
        self._left -= len(piece)
        return piece

    async def close(self) -> None:
        """Let go of the file."""
        self._source.close()

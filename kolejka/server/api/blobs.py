"""Blobs: bytes named by their SHA-256, streamed both ways, through the server or directly to and from its blob store.

An upload that matters is begun with ``POST …/upload``: the answer says that the caller has the blob already, from which
byte on the server wants it, or (where the store takes bytes itself and the caller can send them there) an address and a
ticket. With the ticket, the same call says that the bytes are there: the server verifies them and the blob exists. A
large upload goes in parts: each call answers with addresses of some that are missing, and the one that finds none
missing verifies. So an upload that broke off, or a call whose answer was lost, is taken up by asking again.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Final

from kolejka.common.errors import InputError, NotFound, Unavailable
from kolejka.common.files import CHUNK, check_reference
from kolejka.common.schema import object_schema
from kolejka.server.api.errors import TooLarge
from kolejka.server.api.routes import Answer, Call
from kolejka.server.api.tasks import stamp
from kolejka.server.auth.tokens import NotKnown
from kolejka.server.deps import Deps
from kolejka.server.storage import blobs
from kolejka.server.storage.base import Connection, ask
from kolejka.server.storage.blob_store import TICKET, Reader
from kolejka.server.storage.blobs import Added, Blob

READ: Final = 256 * 1024
"""Bytes read and sent at a time."""
DIRECT_MOST: Final = 5 << 30
"""Bytes that S3 takes in one request, and copies in one."""
OCTETS: Final = "application/octet-stream"
UPLOAD: Final = object_schema(
    {
        "size": {"type": "integer", "minimum": 0, "maximum": 2**62, "description": "bytes of the blob"},
        "direct": {"type": "boolean", "description": "the caller can send the bytes to another address"},
        "parts": {"type": "boolean", "description": "with `direct`: and in parts"},
        "ticket": {
            "type": "string", "pattern": f"^{TICKET.pattern}$", "description": "the bytes are where this ticket said",
        },
    },
    required=["size"],
)  # fmt: skip


def _reference(call: Call) -> str:
    try:
        return check_reference(call.path["sha256"])
    except InputError as error:
        raise error.within("sha256") from None


def _check_size(deps: Deps, size: int) -> None:
    if size > deps.settings.max_blob:
        raise TooLarge(f"a blob of {size} bytes is more than the {deps.settings.max_blob} that this server takes")


async def put_blob(deps: Deps, call: Call) -> Answer:
    """Upload a blob: `Content-Length` bytes whose SHA-256 is the name. 200 when the caller had uploaded it before.

    With `Content-Range: bytes FIRST-LAST/SIZE` an upload that breaks off can be resumed: what came is kept for a while,
    and `POST …/upload` says where to go on.
    """
    reference, length = _reference(call), call.request.content_length
    if length is None:
        raise InputError("say the blob's size in Content-Length", field="Content-Length", code="length_required")
    piece = parse_content_range(call.request.get_header("Content-Range"), length)
    offset, size = piece or (0, length)
    _check_size(deps, size)
    resume = str(call.caller.user_id) if piece else None
    upload = await asyncio.to_thread(deps.blobs.receive, reference, size, resume=resume, offset=offset)
    try:
        chunk = bytearray()
        async for some in call.request.stream:
            chunk += some
            if len(chunk) >= CHUNK:
                await asyncio.to_thread(upload.write, chunk)
                chunk = bytearray()
        await asyncio.to_thread(upload.write, chunk)
        await call.still()  # bytes may have been coming for hours
        place = await asyncio.to_thread(upload.finish)
    finally:
        await asyncio.to_thread(upload.abort)
    added = await _add(deps, call, reference, size, place)
    return Answer(201 if added.new else 200, {"sha256": reference, "size": size})


async def _add(deps: Deps, call: Call, reference: str, size: int, place: str) -> Added:
    """Record bytes at a place. Where the blob existed before, its old place stays and ours is of no use."""
    now = deps.clock()
    added = await ask(
        deps.store.write(
            lambda db: blobs.add(
                db,
                reference,
                size,
                place,
                user_id=call.caller.user_id,
                now=now,
                token=call.caller.blobs.narrow_token,
            )
        )
    )
    if added.place != place:
        await asyncio.to_thread(deps.blobs.remove, [place])
    return added


def parse_content_range(text: str | None, length: int) -> tuple[int, int] | None:
    """First byte and whole size of a ``Content-Range`` header of ``length`` bytes; ``None`` where there is no header.

    InputError when it is anything but the rest of a blob from some byte on (RFC 9110, section 14.4).
    """
    if text is None:
        return None
    match = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", text.strip())
    if match is None:
        raise InputError("write it as `bytes FIRST-LAST/SIZE`", field="Content-Range")
    first, last, size = map(int, match.groups())
    if last != size - 1 or last - first + 1 != length:
        raise InputError("the bytes should be all from FIRST to the end, and as many as come", field="Content-Range")
    return first, size


async def begin_upload(deps: Deps, call: Call) -> Answer:
    """Ask how to upload a blob, or say with a `ticket` that it was put where the answer before said.

    `state` is `stored` (the caller has it now) or `wanted`: then `offset` is the byte from which on to send the rest
    with a `PUT` and `Content-Range`; or, with `url` and `ticket`, where to `PUT` all of it without a token; or, with
    `parts` (each a `number` from 1 on, and a `url`) and `part_size`, where to `PUT` some of its parts without a token,
    before asking again.
    """
    reference, size, body = _reference(call), int(call.body["size"]), call.body  # 12.0 is a whole number too
    _check_size(deps, size)
    caller, now = call.caller, deps.clock()

    def work(db: Connection) -> Blob | None:
        # A node's leases let it read, but a result names what the node itself has brought.
        if not blobs.readable(db, reference, caller.uploads):
            return None
        blobs.use(db, [reference], now)
        return blobs.find(db, reference)

    found = await ask(deps.store.write(work))
    whose = str(caller.user_id)
    if found is not None:
        if found.size != size:
            raise InputError(f"the blob has {found.size} bytes, not {size}", field="size")
        return Answer(json={"state": "stored", "sha256": reference, "size": size})
    if "ticket" in body:
        place = await asyncio.to_thread(deps.blobs.collect, reference, whose, body["ticket"], size)
        await _add(deps, call, reference, size, place)
        return Answer(json={"state": "stored", "sha256": reference, "size": size})
    direct = body.get("direct") and deps.settings.direct
    if direct and body.get("parts"):
        parts = await asyncio.to_thread(deps.blobs.parts, reference, whose, size, deps.settings.link_time)
        if parts is not None and parts.missing:
            listed = [{"number": part.number, "url": part.url} for part in parts.missing]
            words = {"state": "wanted", "offset": 0, "part_size": parts.size, "parts": listed}
            return Answer(json=words, headers={"Cache-Control": "no-store"})
        if parts is not None:
            place = await asyncio.to_thread(deps.blobs.assemble, reference, whose, size)
            await _add(deps, call, reference, size, place)
            return Answer(json={"state": "stored", "sha256": reference, "size": size})
    if direct and size <= DIRECT_MOST:
        invited = await asyncio.to_thread(deps.blobs.invite, reference, whose, deps.settings.link_time)
        if invited is not None:
            headers = {"Cache-Control": "no-store"}
            words = {"state": "wanted", "offset": 0, "url": invited.url, "ticket": invited.ticket}
            return Answer(json=words, headers=headers)
    offset = await asyncio.to_thread(deps.blobs.received, reference, whose)
    return Answer(json={"state": "wanted", "offset": offset if offset <= size else 0})


async def list_blobs(deps: Deps, call: Call) -> Answer:
    """List what the caller uploaded, by hash. `next` is the `after` of the following page."""
    query, reach = call.query, call.caller.uploads
    after = query["after"] or ""
    rows = await ask(deps.store.read(lambda db: blobs.granted(db, reach, after=after, limit=query["limit"] + 1)))
    page = rows[: query["limit"]]
    more = len(rows) > len(page) and page
    listed = [{**row, "created_at": stamp(row["created_at"])} for row in page]
    return Answer(json={"blobs": listed, "next": page[-1]["sha256"] if more else None})


async def delete_blob(deps: Deps, call: Call) -> Answer:
    """Forget that the caller uploaded a blob. Tasks that refer to it keep it; when there are none, it goes in time."""
    reference, reach = _reference(call), call.caller.uploads
    if not await ask(deps.store.write(lambda db: blobs.disown(db, reference, reach))):
        raise NotFound(f"you have uploaded no blob {reference}")
    return Answer(204)


async def _find(deps: Deps, call: Call, reference: str) -> Blob:
    """The blob. NotFound when there is none, or none that this caller may have."""
    caller = call.caller

    def work(db: Connection) -> Blob | None:
        if not blobs.readable(db, reference, caller.blobs):
            return None
        return blobs.find(db, reference)

    found = await ask(deps.store.read(work))
    if found is None:
        raise NotFound(f"there is no blob {reference} for you; who knows only the hash uploads the bytes")
    return found


def _headers(reference: str) -> dict[str, str]:
    return {"Accept-Ranges": "bytes", "ETag": f'"{reference}"', "Cache-Control": "private, immutable"}


async def head_blob(deps: Deps, call: Call) -> Answer:
    """Ask whether the caller may have a blob, and how large it is."""
    reference = _reference(call)
    found = await _find(deps, call, reference)
    return Answer(200, type=OCTETS, headers={**_headers(reference), "Content-Length": str(found.size)})


async def get_blob(deps: Deps, call: Call) -> Answer:
    """Download a blob, or one `Range` of it.

    With `direct=true` the answer may be 307 and an address from which to get it, without a token.
    """
    reference = _reference(call)
    found = await _find(deps, call, reference)
    if call.query["direct"] == "true" and deps.settings.direct:
        link = await asyncio.to_thread(deps.blobs.link, found.place, deps.settings.link_time)
        if link is not None:
            return Answer(307, headers={"Location": link, "Cache-Control": "no-store"})
    piece = parse_range(call.request.get_header("Range"), found.size)
    start, stop = piece or (0, found.size)
    try:
        source = await asyncio.to_thread(deps.blobs.open, found.place, start, stop)
    except FileNotFoundError:
        raise Unavailable(
            f"the bytes of the blob {reference} are missing in the server's blob store; tell its admin"
        ) from None
    headers = _headers(reference)
    if piece is not None:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{found.size}"
    return Answer(
        206 if piece is not None else 200,
        stream=_Bytes(source, call),
        length=stop - start,
        type=OCTETS,
        headers=headers,
    )


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
    """A part of a blob, piece by piece, while the token is good; falcon calls ``close`` however the download ends."""

    def __init__(self, source: Reader, call: Call) -> None:
        self._source = source
        self._call = call

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            with contextlib.suppress(Unavailable):  # the database is away, which is no reason to break off
                await self._call.still()
        except NotKnown:  # too few bytes came: the caller asks for the rest, and is told
            raise StopAsyncIteration from None
        piece = await asyncio.to_thread(self._source.read, READ)
        if not piece:
            raise StopAsyncIteration
        return piece

    async def close(self) -> None:
        """Let go of the bytes."""
        await asyncio.to_thread(self._source.close)

"""Blobs in an S3-compatible store, reached through obstore: the same places as in a folder, as keys below a prefix.

*Through the server* bytes are verified on its disk first and then put under their place. *Directly*: an invitation is a
presigned address for one key below ``incoming``, which holds the caller, the hash and a word nobody can guess.
``collect`` first copies what came (inside the store: no bytes travel) to a place that the address cannot write to, then
reads that copy once and hashes it; only then the place is told. The store itself is not trusted to have checked
anything, as not all that speak S3 check checksums; and the address, which stays valid for a while, leads to nothing any
more.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kolejka.common.errors import InputError, NodeError, Unavailable
from kolejka.common.files import CHUNK, check_reference
from kolejka.common.settings import ServerSettings
from kolejka.server.storage.blob_store import INCOMING, Invitation, Kept, check_place, check_ticket, new_place
from kolejka.server.storage.incoming import Incoming, Upload

if TYPE_CHECKING:
    from obstore.store import S3Store

logger = logging.getLogger(__name__)

PART: Final = 8 << 20
"""bytes of one part of a large upload; a store takes 10 000 parts"""
READ: Final = 4 << 20
_PARTS: Final = 9_000
_TIMEOUT: Final = timedelta(seconds=30)
_RETRY_FOR: Final = timedelta(seconds=15)


class BlobBucket:
    """Blobs below one prefix of a bucket. ``incoming`` is a folder on the server's disk."""

    def __init__(self, store: S3Store, incoming: Path) -> None:
        self._store = store
        self._incoming = Incoming(incoming)

    @classmethod
    def of(cls, settings: ServerSettings) -> BlobBucket:
        """The bucket that the settings name. InputError, NodeError when they name none."""
        try:
            from obstore import exceptions
            from obstore.store import S3Store
        except ImportError:
            raise NodeError("blobs on S3 need obstore; pip install 'kolejka[s3]'", field="server.blobs") from None
        match = re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*?))?/?", settings.blobs)
        if match is None:
            raise InputError(f"{settings.blobs!r} is no bucket; write s3://BUCKET/PREFIX", field="server.blobs")
        if bool(settings.s3_key) != bool(settings.s3_secret):
            raise InputError("S3 needs both a key and its secret; set server.s3_key and server.s3_secret")
        words: dict[str, Any] = {"region": settings.s3_region}
        if settings.s3_endpoint:
            words["endpoint"] = settings.s3_endpoint
        if settings.s3_key:
            words |= {"access_key_id": settings.s3_key, "secret_access_key": settings.s3_secret}
        options: Any = {"timeout": _TIMEOUT, "allow_http": settings.s3_endpoint.startswith("http://")}
        retry: Any = {"max_retries": 5, "retry_timeout": _RETRY_FOR}
        try:
            store = S3Store(match[1], prefix=match[2] or None, client_options=options, retry_config=retry, **words)
        except exceptions.BaseError as error:
            raise InputError(f"{settings.blobs!r} cannot be used: {_reason(error)}", field="server.blobs") from None
        return cls(store, Path(settings.data) / INCOMING)

    def receive(self, reference: str, size: int, *, resume: str | None = None, offset: int = 0) -> Upload:
        """Begin an upload through the server."""
        return self._incoming.receive(reference, size, self._keep, resume=resume, offset=offset)

    def received(self, reference: str, resume: str) -> int:
        """Bytes of a broken upload that are on this server's disk."""
        return self._incoming.received(reference, resume)

    def _keep(self, source: Path, reference: str) -> str:
        import obstore

        place = new_place(reference)
        part = max(PART, source.stat().st_size // _PARTS)
        with _spoken():
            obstore.put(self._store, place, source, chunk_size=part)
        source.unlink()
        return place

    def open(self, place: str, start: int, stop: int) -> ObjectReader:
        """Bytes of an object. FileNotFoundError when it is not there."""
        return self._read(check_place(place), start, stop)

    def _read(self, key: str, start: int, stop: int) -> ObjectReader:
        import obstore

        if start == stop:
            with _spoken():
                obstore.head(self._store, key)
            return ObjectReader(iter(()), 0)
        with _spoken():
            answer = obstore.get(self._store, key, options={"range": (start, stop)})
        return ObjectReader(iter(answer.stream(READ)), stop - start)

    def remove(self, places: Iterable[str]) -> None:
        """Remove objects."""
        self._delete([check_place(place) for place in places])

    def _delete(self, keys: list[str]) -> None:
        import obstore

        for key in keys:  # one by one: not every store that speaks S3 knows the bulk call
            with suppress(FileNotFoundError), _spoken():
                obstore.delete(self._store, key)

    def places(self) -> Iterator[Kept]:
        """Every object but those below ``incoming``."""
        for kept in self._list(None):
            if not kept.place.startswith(f"{INCOMING}/"):
                yield kept

    def _list(self, prefix: str | None) -> Iterator[Kept]:
        import obstore

        with _spoken():
            for page in obstore.list(self._store, prefix):
                for entry in page:
                    yield Kept(entry["path"], entry["size"], entry["last_modified"].timestamp())

    def sweep_incoming(self, before: float) -> int:
        """Remove what was uploaded directly and never collected, and what is left on the server's disk."""
        left = [kept.place for kept in self._list(INCOMING) if kept.written_at < before]
        self._delete(left)
        return len(left) + self._incoming.sweep(before)

    def link(self, place: str, valid_s: float) -> str:
        """A presigned address for reading."""
        import obstore

        with _spoken():
            return obstore.sign(self._store, "GET", check_place(place), timedelta(seconds=valid_s))

    def invite(self, reference: str, whose: str, valid_s: float) -> Invitation:
        """A presigned address for writing."""
        import obstore

        ticket = secrets.token_hex(16)
        with _spoken():
            url = obstore.sign(self._store, "PUT", _arrival(reference, whose, ticket), timedelta(seconds=valid_s))
        return Invitation(ticket, url)

    def collect(self, reference: str, whose: str, ticket: str, size: int) -> str:
        """Copy, verify, tell the place."""
        import obstore

        arrival, place = _arrival(reference, whose, check_ticket(ticket)), new_place(reference)
        try:
            with _spoken():
                arrived = obstore.head(self._store, arrival)["size"]
        except FileNotFoundError:
            raise InputError(
                "nothing was uploaded under this ticket; begin again", field="ticket", code="truncated"
            ) from None
        try:
            if arrived != size:
                raise InputError(f"{arrived} of {size} bytes were uploaded; begin again", code="truncated")
            with _spoken():
                obstore.copy(self._store, arrival, place)
            found = self._hash(place, size)
        except BaseException:
            self._forget(arrival, place)
            raise
        if found != reference:
            self._forget(arrival, place)
            raise InputError(f"these bytes have the SHA-256 {found}", field="sha256", code="hash_mismatch")
        self._forget(arrival)
        return place

    def _hash(self, place: str, size: int) -> str:
        reader, digest = self._read(place, 0, size), hashlib.sha256()
        try:
            while chunk := reader.read(CHUNK):
                digest.update(chunk)
        finally:
            reader.close()
        return digest.hexdigest()

    def _forget(self, *keys: str) -> None:
        """Remove what is of no use. What cannot be removed now is swept later."""
        try:
            self._delete(list(keys))
        except Unavailable as error:
            logger.warning("objects of no use stay for the sweep", extra={"error": str(error)})

    def check(self) -> None:
        """Whether the bucket is there and lets us list and write."""
        import obstore

        with _spoken():
            next(iter(obstore.list(self._store, INCOMING, chunk_size=1)), None)

    def free_bytes(self) -> int:
        """How many more bytes of uploads the server's disk takes; the bucket has no end."""
        return self._incoming.free_bytes()


class ObjectReader:
    """A part of an object, as it comes."""

    def __init__(self, chunks: Iterator[Any], length: int) -> None:
        self._chunks = chunks
        self._left = length
        self._held = memoryview(b"")

    def read(self, size: int) -> bytes:
        """The next bytes."""
        if not self._held and self._left:
            with _spoken():
                self._held = memoryview(next(self._chunks, b""))
            if not self._held:
                raise Unavailable("the blob's object is shorter than it was")
        piece = bytes(self._held[: min(size, self._left)])
        self._held = self._held[len(piece) :]
        self._left -= len(piece)
        return piece

    def close(self) -> None:
        """Ask for no more."""
        self._chunks = iter(())
        self._held = memoryview(b"")


def _arrival(reference: str, whose: str, ticket: str) -> str:
    return f"{INCOMING}/{whose}-{check_reference(reference)}-{ticket}"


@contextmanager
def _spoken() -> Iterator[None]:
    """Turn what the store answers into our errors."""
    from obstore import exceptions

    try:
        yield
    except (FileNotFoundError, exceptions.NotFoundError):
        raise FileNotFoundError from None
    except (exceptions.BaseError, OSError) as error:
        raise Unavailable(f"the store of blobs fails: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """One line, without the query of an address: that may be a presigned one."""
    line = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"\?\S*", "", line)[:300]

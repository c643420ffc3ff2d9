"""Blobs in an S3-compatible store, reached through boto3: the same places as in a folder, as keys below a prefix.

*Through the server* bytes are verified on its disk first and then put under their place. *Directly, in one piece*: an
invitation is a presigned address for one key below ``incoming``, which holds the caller, the hash and a word nobody can
guess. ``collect`` first copies what came (inside the store: no bytes travel) to a place that the address cannot write
to, then reads that copy once and hashes it; only then the place is told.

*Directly, in parts*: a multipart upload of S3 whose key is the place itself. What is presigned are its parts, with
their lengths; ``assemble`` ends the upload, and from then on no address leads there any more. So nothing is copied; the
object is read once and hashed, and the place is told. What goes on is written down in the store, in an object below
``incoming`` that is named by the caller and the hash: by it an upload is taken up again, by any server, and by its age
it is swept. It is gone before the place is told, so that no place is told twice.

The store itself is not trusted to have checked anything, as not all that speak S3 check checksums.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from kolejka.common.errors import InputError, NodeError, Unavailable
from kolejka.common.files import CHUNK, check_reference
from kolejka.common.settings import ServerSettings
from kolejka.server.storage.blob_store import (
    INCOMING,
    Invitation,
    Kept,
    Part,
    Parts,
    check_place,
    check_ticket,
    new_place,
)
from kolejka.server.storage.incoming import Incoming, Upload

logger = logging.getLogger(__name__)

PARTS_FROM: Final = 64 << 20
"""bytes from which on a blob can come in parts; a smaller one is as soon sent again"""
PART: Final = 16 << 20
"""bytes of one part of a large upload; a store takes 10 000 parts"""
BATCH: Final = 64
"""parts whose addresses are given at a time"""
_PARTS: Final = 9_000
_CONNECT_S: Final = 10
_READ_S: Final = 30
_TRIES: Final = 4
_ABSENT: Final = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchUpload"})
_GOING: Final = "-parts"


@dataclass(frozen=True)
class Going:
    """What is written down of an upload in parts: S3's name of it, the place it goes to, what it is to be."""

    upload: str
    place: str
    size: int
    part: int

    @cached_property
    def lengths(self) -> dict[int, int]:
        """Number of each part → its bytes."""
        starts = range(0, self.size, self.part)
        return {number: min(self.part, self.size - start) for number, start in enumerate(starts, 1)}


class BlobBucket:
    """Blobs below one prefix of a bucket. ``incoming`` is a folder on the server's disk."""

    def __init__(self, client: Any, bucket: str, prefix: str, incoming: Path) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._incoming = Incoming(incoming)

    @classmethod
    def of(cls, settings: ServerSettings) -> BlobBucket:
        """The bucket that the settings name. InputError, NodeError when they name none."""
        try:
            import boto3.session
            from botocore.config import Config
        except ImportError:
            raise NodeError("blobs on S3 need boto3; pip install 'kolejka[s3]'", field="server.blobs") from None
        match = re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*?))?/?", settings.blobs)
        if match is None:
            raise InputError(f"{settings.blobs!r} is no bucket; write s3://BUCKET/PREFIX", field="server.blobs")
        if bool(settings.s3_key) != bool(settings.s3_secret):
            raise InputError("S3 needs both a key and its secret; set server.s3_key and server.s3_secret")
        words: dict[str, Any] = {"region_name": settings.s3_region}
        if settings.s3_endpoint:
            words["endpoint_url"] = settings.s3_endpoint
        if settings.s3_key:
            words |= {"aws_access_key_id": settings.s3_key, "aws_secret_access_key": settings.s3_secret}
        config = Config(
            signature_version="s3v4", connect_timeout=_CONNECT_S, read_timeout=_READ_S, max_pool_connections=64,
            retries={"total_max_attempts": _TRIES, "mode": "standard"},
            # Not every store that speaks S3 has names for buckets, or knows checksums that are newer than S3 itself.
            s3={"addressing_style": "path" if settings.s3_endpoint else "auto"},
            request_checksum_calculation="when_required", response_checksum_validation="when_required",
        )  # fmt: skip
        try:
            with _spoken():
                client = boto3.session.Session().client("s3", config=config, **words)
        except (Unavailable, ValueError) as error:
            raise InputError(f"{settings.blobs!r} cannot be used: {_reason(error)}", field="server.blobs") from None
        return cls(client, match[1], match[2] or "", Path(settings.data) / INCOMING)

    def _key(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    def receive(self, reference: str, size: int, *, resume: str | None = None, offset: int = 0) -> Upload:
        """Begin an upload through the server."""
        return self._incoming.receive(reference, size, self._keep, resume=resume, offset=offset)

    def received(self, reference: str, resume: str) -> int:
        """Bytes of a broken upload that are on this server's disk."""
        return self._incoming.received(reference, resume)

    def _keep(self, source: Path, reference: str) -> str:
        from boto3.s3.transfer import TransferConfig

        place = new_place(reference)
        config = TransferConfig(multipart_chunksize=_part(source.stat().st_size))
        with _spoken():
            self._client.upload_file(str(source), **self._key(place), Config=config)
        source.unlink()
        return place

    def open(self, place: str, start: int, stop: int) -> ObjectReader:
        """Bytes of an object. FileNotFoundError when it is not there."""
        return self._read(check_place(place), start, stop)

    def _read(self, key: str, start: int, stop: int) -> ObjectReader:
        if start == stop:
            self._size(key)
            return ObjectReader(None, 0)
        with _spoken():
            answer = self._client.get_object(**self._key(key), Range=f"bytes={start}-{stop - 1}")
        return ObjectReader(answer["Body"], stop - start)

    def _size(self, key: str) -> int:
        """Bytes of an object. FileNotFoundError when it is not there."""
        with _spoken():
            return int(self._client.head_object(**self._key(key))["ContentLength"])

    def remove(self, places: Iterable[str]) -> None:
        """Remove objects."""
        self._delete([check_place(place) for place in places])

    def _delete(self, keys: list[str]) -> None:
        for key in keys:  # one by one: not every store that speaks S3 knows the bulk call
            with suppress(FileNotFoundError), _spoken():
                self._client.delete_object(**self._key(key))

    def places(self) -> Iterator[Kept]:
        """Every object but those below ``incoming``."""
        for kept in self._list(""):
            if not kept.place.startswith(f"{INCOMING}/"):
                yield kept

    def _list(self, prefix: str) -> Iterator[Kept]:
        with _spoken():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            for page in pages:
                for entry in page.get("Contents", ()):
                    place = entry["Key"].removeprefix(self._prefix)
                    yield Kept(place, entry["Size"], entry["LastModified"].timestamp())

    def sweep_incoming(self, before: float) -> int:
        """Remove what was uploaded directly and never collected, and what is left on the server's disk."""
        left = [kept.place for kept in self._list(f"{INCOMING}/") if kept.written_at < before]
        for key in left:
            if key.endswith(_GOING):
                self._abort(self._going(key))
        self._delete(left)
        return len(left) + self._incoming.sweep(before)

    def link(self, place: str, valid_s: float) -> str:
        """A presigned address for reading."""
        return self._sign("get_object", check_place(place), valid_s)

    def _sign(self, call: str, key: str, valid_s: float, **words: object) -> str:
        with _spoken():
            return str(self._client.generate_presigned_url(
                call, Params={**self._key(key), **words}, ExpiresIn=max(1, int(valid_s))
            ))  # fmt: skip

    def invite(self, reference: str, whose: str, valid_s: float) -> Invitation:
        """A presigned address for writing."""
        ticket = secrets.token_hex(16)
        return Invitation(ticket, self._sign("put_object", _arrival(reference, whose, ticket), valid_s))

    def collect(self, reference: str, whose: str, ticket: str, size: int) -> str:
        """Copy, verify, tell the place."""
        arrival, place = _arrival(reference, whose, check_ticket(ticket)), new_place(reference)
        try:
            arrived = self._size(arrival)
        except FileNotFoundError:
            raise InputError(
                "nothing was uploaded under this ticket; begin again", field="ticket", code="truncated"
            ) from None
        try:
            if arrived != size:
                raise InputError(f"{arrived} of {size} bytes were uploaded; begin again", code="truncated")
            with _spoken():
                self._client.copy_object(CopySource=self._key(arrival), **self._key(place))
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

    def parts(self, reference: str, whose: str, size: int, valid_s: float) -> Parts | None:
        """Presigned addresses of parts that are not there yet."""
        if size < PARTS_FROM:
            return None
        key = _going(reference, whose)
        going = self._going(key)
        if going is not None and going.size != size:  # then one of the two is no size of these bytes
            self._abort(going)
            going = None
        there = None if going is None else self._arrived(going)
        if going is None or (there is None and not self._is_there(going.place)):
            going, there = self._begin(reference, size), {}
        missing = sorted(going.lengths.keys() - there.keys()) if there is not None else []
        if missing:  # the note is as old as the last of these words
            with _spoken():
                self._client.put_object(**self._key(key), Body=json.dumps(asdict(going)).encode("ascii"))
        return Parts(going.part, tuple(
            Part(number, self._sign(
                "upload_part", going.place, valid_s, UploadId=going.upload, PartNumber=number,
                ContentLength=going.lengths[number],
            ))
            for number in missing[:BATCH]
        ))  # fmt: skip

    def assemble(self, reference: str, whose: str, size: int) -> str:
        """End the upload, verify, tell the place."""
        key = _going(reference, whose)
        going = self._going(key)
        if going is None or going.size != size:
            raise InputError("no parts were uploaded; begin again", code="truncated")
        there = self._arrived(going)
        if there is not None:
            if there.keys() != going.lengths.keys():
                raise InputError(f"{len(there)} of {len(going.lengths)} parts were uploaded", code="truncated")
            listed = [{"PartNumber": number, "ETag": tag} for number, tag in sorted(there.items())]
            with suppress(FileNotFoundError), _spoken():  # another request has ended it
                self._client.complete_multipart_upload(
                    **self._key(going.place), UploadId=going.upload, MultipartUpload={"Parts": listed}
                )
        try:
            arrived = self._size(going.place)
            if arrived != size:  # a store that heeds no tags let a part be changed at the last moment
                self._forget(key, going.place)
                raise InputError(f"{arrived} of {size} bytes were uploaded; begin again", code="truncated")
            found = self._hash(going.place, size)
        except FileNotFoundError:
            raise InputError("the upload was swept; begin again", code="truncated") from None
        if found != reference:
            self._forget(key, going.place)
            raise InputError(f"these bytes have the SHA-256 {found}", field="sha256", code="hash_mismatch")
        # Whoever finds the note gone finds the place told: a sweep may have had it since.
        if self._going(key) != going:
            raise InputError("this upload was ended over another connection; ask again", code="truncated")
        self._delete([key])
        return going.place

    def _begin(self, reference: str, size: int) -> Going:
        place = new_place(reference)
        with _spoken():
            upload = self._client.create_multipart_upload(**self._key(place))["UploadId"]
        return Going(upload, place, size, _part(size))

    def _going(self, key: str) -> Going | None:
        """What is written down under a key, if anything is."""
        try:
            with _spoken():
                words = json.loads(self._client.get_object(**self._key(key))["Body"].read())
            going = Going(**words)
            check_place(going.place)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            logger.warning("a note of an upload in parts cannot be read", extra={"key": key})
            return None
        return going

    def _arrived(self, going: Going) -> dict[int, str] | None:
        """Number → tag of the parts that are there as a whole; ``None`` when the upload does not go on any more."""
        found: dict[int, str] = {}
        try:
            with _spoken():
                for page in self._client.get_paginator("list_parts").paginate(
                    **self._key(going.place), UploadId=going.upload
                ):
                    for part in page.get("Parts", ()):
                        if going.lengths.get(part["PartNumber"]) == part["Size"]:
                            found[part["PartNumber"]] = part["ETag"]
        except FileNotFoundError:
            return None
        return found

    def _is_there(self, place: str) -> bool:
        try:
            self._size(place)
        except FileNotFoundError:
            return False
        return True

    def _abort(self, going: Going | None) -> None:
        """Forget the parts of an upload that did not end. What did end and has no name is an orphan."""
        if going is not None:
            with suppress(FileNotFoundError), _spoken():
                self._client.abort_multipart_upload(**self._key(going.place), UploadId=going.upload)

    def check(self) -> None:
        """Whether the bucket is there and lets us list and write."""
        with _spoken():
            self._client.list_objects_v2(Bucket=self._bucket, Prefix=f"{self._prefix}{INCOMING}/", MaxKeys=1)

    def free_bytes(self) -> int:
        """How many more bytes of uploads the server's disk takes; the bucket has no end."""
        return self._incoming.free_bytes()


class ObjectReader:
    """A part of an object, as it comes."""

    def __init__(self, body: Any, length: int) -> None:
        self._body = body
        self._left = length

    def read(self, size: int) -> bytes:
        """The next bytes."""
        if not self._left:
            return b""
        with _spoken():
            piece = bytes(self._body.read(min(size, self._left)))
        if not piece:
            raise Unavailable("the blob's object is shorter than it was")
        self._left -= len(piece)
        return piece

    def close(self) -> None:
        """Ask for no more."""
        if self._body is not None:
            self._body.close()
        self._left = 0


def _arrival(reference: str, whose: str, ticket: str) -> str:
    return f"{INCOMING}/{whose}-{check_reference(reference)}-{ticket}"


def _going(reference: str, whose: str) -> str:
    return f"{INCOMING}/{whose}-{check_reference(reference)}{_GOING}"


def _part(size: int) -> int:
    """Bytes of each part of an upload, in whole MiB."""
    return max(PART, -(-size // _PARTS // (1 << 20)) * (1 << 20))


@contextmanager
def _spoken() -> Iterator[None]:
    """Turn what the store answers into our errors."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ClientError as error:
        if _code(error.response) in _ABSENT:
            raise FileNotFoundError from None
        raise Unavailable(f"the store of blobs fails: {_reason(error)}") from error
    except (Boto3Error, BotoCoreError, HTTPError, OSError) as error:
        raise Unavailable(f"the store of blobs fails: {_reason(error)}") from error


def _code(response: Mapping[str, Any]) -> str:
    return str(response.get("Error", {}).get("Code", ""))


def _reason(error: Exception) -> str:
    """One line, without the query of an address: that may be a presigned one."""
    line = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"\?\S*", "", line)[:300]

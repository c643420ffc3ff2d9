"""The contract of a blob store, and how one is chosen.

The database says which blobs there are; a store keeps their bytes, each under a *place*. A place is made up anew for
every upload (the hash, and a word nobody can guess) and its bytes never change. So what is written beside a blob that
exists, and what a sweep removes while the same bytes are uploaded again, are different places: no order of events can
take bytes away from under a row that names them.

Bytes come in two ways. *Through the server*: ``receive`` takes them into ``incoming`` on the server's disk, hashes them
as they come, and ``finish`` gives them a place. *Directly*: ``invite`` gives an address that takes the bytes of one
upload for a limited time, and ``collect`` then looks at what came there; or ``parts`` gives addresses for parts of it,
again and again until none is missing, and ``assemble`` looks. Either way no place is given to bytes whose hash the
server has not computed itself, after the last moment at which anybody else could write them.

Nothing here knows the database. A crash leaves at most bytes that no row names; ``incoming`` is swept by age, and
``places`` lists the rest.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from kolejka.common.errors import InputError
from kolejka.common.files import check_reference
from kolejka.common.settings import ServerSettings

if TYPE_CHECKING:
    from kolejka.server.storage.incoming import Upload

FOLDER: Final = "blobs"
INCOMING: Final = "incoming"
TICKET: Final = re.compile(r"[0-9a-f]{32}")
_PLACE: Final = re.compile(r"[0-9a-f]{2}/[0-9a-f]{62}(\.[0-9a-f]{16})?")


class Reader(Protocol):
    """Bytes of a blob, from where they were asked for. ``close`` it in the end; twice is fine."""

    def read(self, size: int) -> bytes:
        """The next bytes, at most ``size``; nothing at the end. Unavailable when the store fails."""

    def close(self) -> None:
        """Let go."""


@dataclass(frozen=True)
class Invitation:
    """Where one upload can be put directly: ``ticket`` names it when it is done, ``url`` takes it."""

    ticket: str
    url: str


@dataclass(frozen=True)
class Part:
    """Where one part of an upload can be put: the ``number``-th, from 1 on."""

    number: int
    url: str


@dataclass(frozen=True)
class Parts:
    """Of an upload in parts: the ``size`` of each but the last, and some that are missing; none when all are there."""

    size: int
    missing: tuple[Part, ...]


@dataclass(frozen=True)
class Kept:
    """Bytes in a store: their place, size, and when they were written."""

    place: str
    size: int
    written_at: float


class BlobStore(Protocol):
    """Bytes under places. Safe to use from every thread and from several processes; every call may block.

    What the store cannot do for want of disk, network or rights is Unavailable, and leaves nothing half-made.
    """

    def receive(self, reference: str, size: int, *, resume: str | None = None, offset: int = 0) -> Upload:
        """Begin an upload of ``size`` bytes that are to have this hash.

        With ``resume`` (a word for whose it is) what came is kept when the upload breaks off, and goes on at
        ``offset``: Conflict when that is not what ``received`` says, or another connection is at it.
        """

    def received(self, reference: str, resume: str) -> int:
        """Bytes of a broken upload that are here. Unavailable while another connection brings more."""

    def open(self, place: str, start: int, stop: int) -> Reader:
        """Bytes ``start`` up to ``stop`` of what is at a place. FileNotFoundError when nothing is."""

    def remove(self, places: Iterable[str]) -> None:
        """Forget bytes. Those that are not there are fine."""

    def places(self) -> Iterator[Kept]:
        """Everything that is kept, in no order."""

    def sweep_incoming(self, before: float) -> int:
        """Remove uploads that were begun and not touched since; how many. Those that go on stay."""

    def link(self, place: str, valid_s: float) -> str | None:
        """An address that gives these bytes to everybody who knows it, for a while; ``None`` where there is none."""

    def invite(self, reference: str, whose: str, valid_s: float) -> Invitation | None:
        """An address that takes an upload; ``None`` where there is none."""

    def collect(self, reference: str, whose: str, ticket: str, size: int) -> str:
        """Give a place to what was uploaded directly. InputError when it is not there or not these bytes: then
        nothing of it stays.
        """

    def parts(self, reference: str, whose: str, size: int, valid_s: float) -> Parts | None:
        """Begin an upload in parts, or go on with the caller's of this hash: what is missing of it.

        ``None`` where bytes do not come in parts, or not so few. An upload that is not asked about any more is swept.
        """

    def assemble(self, reference: str, whose: str, size: int) -> str:
        """Give a place to what came in parts. InputError when parts are missing, or when they are not these bytes: then
        nothing of them stays. Where it fails otherwise, it can be asked again.
        """

    def check(self) -> None:
        """Whether the store answers and takes bytes. Unavailable when it does not."""

    def free_bytes(self) -> int:
        """How many more bytes of uploads the server's disk takes."""


def new_place(reference: str) -> str:
    """A place for bytes with this hash that nothing was ever stored at."""
    check_reference(reference)
    return f"{reference[:2]}/{reference[2:]}.{secrets.token_hex(8)}"


def check_place(place: str) -> str:
    """A place, as the database gives it. ValueError otherwise: no name from outside ever gets here."""
    if not _PLACE.fullmatch(place):
        raise ValueError(f"{place!r} is no place of a blob")
    return place


def reference_at(place: str) -> str:
    """The hash of the bytes at a place."""
    return place[:2] + place[3:65]


def check_ticket(ticket: object) -> str:
    """A ticket, as a caller gives it back. InputError otherwise."""
    if isinstance(ticket, str) and TICKET.fullmatch(ticket):
        return ticket
    raise InputError("this is no ticket of an upload", field="ticket")


def folder_of(settings: ServerSettings) -> Path:
    """The folder of blobs; where they lie in a bucket, one that is not there."""
    is_folder = settings.blobs and "://" not in settings.blobs
    return Path(settings.blobs).expanduser() if is_folder else Path(settings.data) / FOLDER


def open_blob_store(settings: ServerSettings) -> BlobStore:
    """The store that the settings name. InputError, NodeError when there can be none."""
    if settings.blobs.startswith("s3://"):
        from kolejka.server.storage.blob_bucket import BlobBucket

        return BlobBucket.of(settings)
    if "://" in settings.blobs:
        raise InputError(f"{settings.blobs!r} is neither a folder nor s3://BUCKET/PREFIX", field="server.blobs")
    from kolejka.server.storage.blob_folder import BlobFolder

    return BlobFolder(folder_of(settings))

"""What goes with time: tasks past their queue's retention, blobs that nobody needs, uploads that nobody finishes.

One round, in this order, as each step frees what the next one looks for:

1. done tasks older than their queue's retention are deleted, with result and references; accounting stays;
2. blobs that no task refers to, and that nobody used for the grace, are taken out of the database, and their places
   written down in the same transaction;
3. the bytes at the places written down are removed, then forgotten;
4. what is left in ``incoming`` and too old to be resumed is removed.

Every step is made of short transactions and can be cut off anywhere: bytes lose their row first, so a round that dies
leaves work to the next and never a row without bytes. Several servers take turns by a row of ``chores``; even two
rounds at once would do no harm. ``orphans`` looks further, through all that the store keeps: only an administrator
asks for it, as a store that is shared with another database would look like one full of orphans.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Final

from kolejka.common.errors import KolejkaError
from kolejka.common.settings import ServerSettings
from kolejka.server.storage import blobs, tasks
from kolejka.server.storage.base import Connection, Store, pieces
from kolejka.server.storage.blob_store import BlobStore

logger = logging.getLogger("kolejka.server")

PIECE: Final = 500
LOOK: Final = 5_000
ORPHAN_AGE_S: Final = 86400.0
"""bytes younger than this may belong to an upload whose row is about to be written"""
_LOOK_S: Final = 60.0
_CHORE: Final = "sweep"


@dataclass(frozen=True)
class Swept:
    """How many of each went."""

    tasks: int = 0
    blobs: int = 0
    uploads: int = 0
    orphans: int = 0

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))


def is_due(db: Connection, now: float, interval_s: float) -> bool:
    """Whether a round is due, and it is the caller's. A turn that lies too far ahead was set by a wrong clock."""
    return bool(db.run(
        "UPDATE chores SET due_at = ? WHERE name = ? AND (due_at <= ? OR due_at > ?)",
        now + interval_s, _CHORE, now, now + interval_s,
    ))  # fmt: skip


def sweep(store: Store, bytes_: BlobStore, settings: ServerSettings, now: float, *, orphans: bool = False) -> Swept:
    """One round. Unavailable when database or store fail; the next round goes on."""
    return Swept(
        tasks=_old_tasks(store, now),
        blobs=_unneeded_blobs(store, bytes_, now - settings.blob_grace),
        uploads=bytes_.sweep_incoming(now - settings.upload_grace),
        orphans=_orphans(store, bytes_, now - ORPHAN_AGE_S) if orphans else 0,
    )


def _old_tasks(store: Store, now: float) -> int:
    deleted = 0
    for queue, retention_s in store.read(tasks.retentions).result():
        after: int | None = 0
        while after is not None:
            found, after = store.read(
                lambda db, q=queue, b=now - retention_s, a=after: tasks.expired(db, q, before=b, after=a, limit=LOOK)  # type: ignore[misc]
            ).result()
            for some in pieces(found, PIECE):
                deleted += store.write(lambda db, numbers=some: len(tasks.delete(db, numbers, now))).result()  # type: ignore[misc]
    return deleted


def _unneeded_blobs(store: Store, bytes_: BlobStore, before: float) -> int:
    after: str | None = ""
    taken = 0
    while after is not None:
        found, after = store.read(lambda db, a=after: blobs.unneeded(db, before=before, after=a, limit=LOOK)).result()  # type: ignore[misc]
        for some in pieces(found, PIECE):
            taken += store.write(lambda db, shas=some: blobs.take_out(db, shas, before=before)).result()  # type: ignore[misc]
    while places := store.read(lambda db: blobs.removals(db, PIECE)).result():
        bytes_.remove(places)
        store.write(lambda db, gone=places: blobs.removed(db, gone)).result()  # type: ignore[misc]
    return taken


def _orphans(store: Store, bytes_: BlobStore, before: float) -> int:
    removed = 0

    def old() -> Iterator[str]:
        return (kept.place for kept in bytes_.places() if kept.written_at < before)

    for some in pieces(old(), LOOK):
        strangers = store.read(lambda db, places=some: blobs.strangers(db, places)).result()  # type: ignore[misc]
        bytes_.remove(strangers)
        removed += len(strangers)
    return removed


class Sweeper:
    """Sweeps when it is time, in a running server. ``start`` and ``stop`` run in the event loop; twice is fine."""

    def __init__(
        self, store: Store, bytes_: BlobStore, settings: ServerSettings, clock: Callable[[], float]
    ) -> None:  # fmt: skip
        self._store = store
        self._clock = clock
        self._bytes = bytes_
        self._settings = settings
        self._sweeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, unless the settings say never."""
        if self._sweeping is None and self._settings.sweep_interval > 0:
            self._sweeping = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Begin no more rounds. One that runs ends by itself when the store is closed, at any point."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):  # as asked
                await self._sweeping
            self._sweeping = None

    async def _watch(self) -> None:
        interval_s = self._settings.sweep_interval
        while True:
            try:
                await asyncio.to_thread(self.round, self._clock())
            except KolejkaError as error:
                logger.warning("sweep failed; the next one goes on", extra={"error": str(error)})
            await asyncio.sleep(min(interval_s, _LOOK_S))

    def round(self, now: float) -> Swept | None:
        """A round, if it is due and no other server does it."""
        interval_s = self._settings.sweep_interval
        if not self._store.write(lambda db: is_due(db, now, interval_s)).result():
            return None
        swept = sweep(self._store, self._bytes, self._settings, now)
        if swept:
            logger.info("swept", extra=dict(vars(swept)))
        return swept

"""What the server's parts share, made once and handed to each: no part asks a global for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from kolejka.common.settings import ServerSettings
from kolejka.server.auth.tokens import Doorkeeper
from kolejka.server.calling import Hosts
from kolejka.server.counts import Counts
from kolejka.server.following import Following
from kolejka.server.metrics import Metrics
from kolejka.server.rates import Rates
from kolejka.server.scheduling.classes import Classes
from kolejka.server.scheduling.clock import SharedClock
from kolejka.server.scheduling.rules import Moment, Rules
from kolejka.server.storage.base import Announcement, Store
from kolejka.server.storage.blob_store import BlobStore, open_blob_store
from kolejka.server.storage.database import Database
from kolejka.server.wakes import Wakes

Clock = Callable[[], float]
STRANGERS_PER_S: Final = 10.0
"""calls a second of machines without a token, from one address"""


class Bridge:
    """Carries announcements from the store's thread to what waits: the board at once, the event loop's waiters there.

    Before ``connect`` nobody waits in the loop.
    """

    def __init__(self, wakes: Wakes, classes: Classes) -> None:
        self._wakes = wakes
        self._classes = classes
        self._loop: asyncio.AbstractEventLoop | None = None

    def connect(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """From now on deliver in this loop; ``None`` = to nobody."""
        self._loop = loop

    def __call__(self, announcements: Sequence[Announcement]) -> None:
        """The store's listener."""
        self._classes.heard(announcements)
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._wakes.deliver, announcements)


@dataclass(frozen=True)
class Deps:
    """The server's parts.

    ``clock`` gives seconds since the epoch, ``steady`` seconds that never jump, ``shared`` those of all servers.
    """

    settings: ServerSettings
    store: Store
    blobs: BlobStore
    wakes: Wakes
    bridge: Bridge
    doorkeeper: Doorkeeper
    metrics: Metrics
    following: Following
    rates: Rates
    hosts: Hosts
    strangers: Rates
    """counts those who have no token, by their address"""
    classes: Classes = field(default_factory=Classes)
    clock: Clock = time.time
    steady: Clock = time.monotonic
    shared: SharedClock = field(default_factory=lambda: SharedClock(time.monotonic, 0.0))

    def now(self) -> Moment:
        """Now, on both clocks."""
        return Moment(self.clock(), self.shared.now())

    @property
    def rules(self) -> Rules:
        """The numbers that claims go by."""
        settings = self.settings
        return Rules(
            settings.heartbeat, settings.deadline_margin, settings.attempts, settings.usage_half_life,
            settings.reserve_after, settings.running_per_owner or None, settings.minimum_image,
        )  # fmt: skip


def round_s(settings: ServerSettings) -> float:
    """How long from one look at the attempts to the next."""
    return min(5.0, settings.heartbeat / 8)


def open_deps(
    settings: ServerSettings, *, counts: Counts | None = None, clock: Clock = time.time, steady: Clock = time.monotonic
) -> Deps:
    """Open the data folder of a server that was prepared (``prepare.prepare``), in one of the processes that keep
    ``counts`` together, if there are several.
    """
    wakes = Wakes()
    classes = Classes()
    bridge = Bridge(wakes, classes)
    store = Database.of(settings).open(bridge)
    blobs = open_blob_store(settings)
    doorkeeper = Doorkeeper(store, clock)
    wakes.access_changed = doorkeeper.forget
    return Deps(
        settings, store, blobs, wakes, bridge, doorkeeper, Metrics(counts), Following(store, wakes, steady),
        Rates(settings.rate, steady), Hosts.parse(settings.callback_hosts), Rates(STRANGERS_PER_S, steady), classes,
        clock=clock, steady=steady,
        shared=SharedClock(steady, 3 * round_s(settings)),
    )  # fmt: skip

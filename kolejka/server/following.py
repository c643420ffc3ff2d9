"""Following what happens: how far the events are settled, and who is told.

Events are numbered in the database. Where several transactions write at once, number 8 may be visible before number 7;
one that told 8 and resumed behind it would never tell 7. So a process follows up to a *horizon*: all that it has seen
without a gap. A gap that does not close within ``PATIENCE_S`` is a number that nobody uses (its transaction failed).
The horizon is looked for only while somebody follows.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from kolejka.common.errors import KolejkaError
from kolejka.server.storage import events
from kolejka.server.storage.base import Store, ask
from kolejka.server.wakes import Waiter, Wakes, wait

PATIENCE_S: Final = 5.0
LOOK_S: Final = 0.5
"""how often to look for what nobody told this process of"""
BACK: Final = 1000
"""how far behind the newest number a gap may still close when one begins to follow"""
MOST: Final = 10_000


def settle(horizon: int, ids: Sequence[int], noticed: Mapping[int, float], now: float) -> tuple[int, dict[int, float]]:
    """How far all is settled, and since when which gaps above that are known.

    ``ids`` are the numbers above ``horizon``, in order; ``noticed`` is what the call before gave.
    """
    gaps: dict[int, float] = {}
    settled, last, whole = horizon, horizon, True
    for number in ids:
        if number != last + 1:
            since = gaps[last + 1] = noticed.get(last + 1, now)
            whole = whole and now - since >= PATIENCE_S
        last = number
        if whole:
            settled = number
    return settled, {gap: since for gap, since in gaps.items() if gap > settled}


class Following:
    """Everybody who follows in this process. Used by the event loop's thread only."""

    def __init__(self, store: Store, wakes: Wakes, steady: Callable[[], float]) -> None:
        self._store = store
        self._wakes = wakes
        self._steady = steady
        self._horizon: int | None = None
        self._noticed: dict[int, float] = {}
        self._streams: set[Waiter] = set()
        self._users: Counter[int] = Counter()
        self._loop: asyncio.Task[None] | None = None
        self._looking = asyncio.Lock()

    def of(self, user_id: int) -> int:
        """How many streams this user follows."""
        return self._users[user_id]

    @contextlib.contextmanager
    def stream(self, user_id: int) -> Iterator[Waiter]:
        """One who follows; woken whenever the horizon moves, and for all that wakes everybody."""
        with self._wakes.for_news() as waiter:
            self._streams.add(waiter)
            self._users[user_id] += 1
            if self._loop is None or self._loop.done():
                self._loop = asyncio.create_task(self._follow())
            try:
                yield waiter
            finally:
                self._streams.discard(waiter)
                self._users[user_id] -= 1
                self._users += Counter()  # without those that are at zero

    async def horizon(self) -> int:
        """How far all is settled now."""
        await self._look()
        assert self._horizon is not None  # a look finds one
        return self._horizon

    def settled(self, at_least: int) -> int:
        """How far all was settled at the last look."""
        return at_least if self._horizon is None else max(at_least, self._horizon)

    async def _look(self) -> None:
        async with self._looking:
            if self._horizon is None:
                oldest, newest = await ask(self._store.read(events.bounds))
                self._horizon = max(oldest - 1, newest - BACK, 0)
            horizon = self._horizon
            ids = await ask(self._store.read(lambda db: events.after(db, horizon, MOST)))
            self._horizon, self._noticed = settle(horizon, ids, self._noticed, self._steady())
        if self._horizon != horizon:
            for waiter in self._streams:
                waiter.woken.set()

    async def _follow(self) -> None:
        """Look whenever something was announced, and now and then, until nobody follows."""
        with self._wakes.for_anything() as waiter:
            while self._streams and not self._wakes.closing:
                waiter.looked()
                with contextlib.suppress(KolejkaError):  # the database is away: the next look tries again
                    await self._look()
                await wait(waiter, LOOK_S, asyncio.Event().wait)
        self._horizon, self._noticed = None, {}

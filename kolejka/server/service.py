"""What the server does without being asked: it watches the two clocks of every attempt, calls back, and forgets events.

Time in which the server itself could hear nobody does not count against nodes: when it starts, and when its own loop
stood still (a stopped process), every attempt's clocks are moved by that much. Leases go by a clock that never jumps.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from kolejka.common.errors import KolejkaError
from kolejka.server.calling import Calls
from kolejka.server.deps import Deps
from kolejka.server.scheduling import claims
from kolejka.server.storage import events, leases
from kolejka.server.storage.base import Connection, ask

logger = logging.getLogger("kolejka.server")


def lost_time(passed_s: float, interval_s: float) -> float:
    """By how much the attempts' clocks move after a round that was to take ``interval_s`` and took ``passed_s``."""
    return passed_s - interval_s if passed_s > 2 * interval_s + 1 else 0.0


class Service:
    """The watch over attempts. ``start`` and ``stop`` run in the event loop; both may be called twice."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._watching: asyncio.Task[None] | None = None
        self._calls = Calls(deps)
        self.interval_s = min(5.0, deps.settings.heartbeat / 8)

    async def start(self) -> None:
        """Begin to watch. Attempts that run get a full heartbeat's time from now: their nodes could not reach us."""
        if self._watching is not None:
            return
        self._deps.bridge.connect(asyncio.get_running_loop())
        now = self._deps.now().steady

        def work(db: Connection) -> int:
            last = leases.last_heard(db)
            return claims.excuse(db, now - last) if last is not None else 0

        running = await ask(self._deps.store.write(work))
        logger.info("server started", extra={"running": running})
        self._watching = asyncio.create_task(self._watch())
        self._calls.start()

    def close_doors(self) -> None:
        """Answer everybody who waits: the server is about to stop."""
        self._deps.wakes.close()

    async def stop(self) -> None:
        """Stop watching and close the store; what was accepted is on disk."""
        self.close_doors()
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):  # as asked
                await self._watching
            self._watching = None
        await self._calls.stop()
        self._deps.bridge.connect(None)
        await asyncio.to_thread(self._deps.store.close)
        logger.info("server stopped")

    async def _watch(self) -> None:
        last = self._deps.steady()
        while True:
            await asyncio.sleep(self.interval_s)
            now = self._deps.steady()
            excuse_s, last = lost_time(now - last, self.interval_s), now
            try:
                if excuse_s:
                    running = await ask(self._deps.store.write(lambda db, by=excuse_s: claims.excuse(db, by)))  # type: ignore[misc] # by is a float
                    logger.warning("time was lost", extra={"seconds": round(excuse_s, 1), "running": running})
                await self.rescue()
                before = self._deps.clock() - self._deps.settings.keep_events
                if await ask(self._deps.store.read(lambda db, at=before: events.is_old(db, at))):  # type: ignore[misc] # at is a float
                    await ask(self._deps.store.write(lambda db, at=before: events.sweep(db, at)))  # type: ignore[misc] # the same
            except KolejkaError as error:  # the database is away: the next round tries again
                logger.warning("attempts cannot be watched", extra={"error": str(error)})

    async def rescue(self) -> int:
        """Take back the attempts on which a clock has run out; how many."""
        deps, now = self._deps, self._deps.now()
        silent_before = now.steady - deps.rules.heartbeat_s
        if not await ask(deps.store.read(lambda db: leases.watched(db, silent_before=silent_before, now=now.steady))):
            return 0
        rescued = await ask(deps.store.write(lambda db: claims.rescue(db, deps.rules, now)))
        for entry in rescued:
            deps.metrics.lost.labels(entry.why).inc()
            logger.warning(
                "attempt lost",
                extra={"task": entry.task_id, "lease": entry.lease, "node": entry.node, "reason": entry.why,
                       "then": entry.then.value},
            )  # fmt: skip
        return len(rescued)

"""What the server does without being asked: it watches the two clocks of every attempt, charges owners for what ended,
calls back, forgets events, has old things swept.

Every process of every server does all of it; whoever comes first has it in hand. Leases go by a clock that the servers
share (``scheduling.clock``), which each round winds: time in which nobody could be heard does not count against nodes.

Each round also looks for what announcements should have told: classes of tasks that wait although a claim here would
take them, and results that somebody here waits for. A word of another process that got lost costs one round.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from kolejka.common.errors import KolejkaError
from kolejka.server.calling import Calls
from kolejka.server.deps import Deps, round_s
from kolejka.server.scheduling import claims
from kolejka.server.storage import events, leases, moments, tasks, usage
from kolejka.server.storage.base import Announcement, Connection, TaskDone, TaskWaiting, ask
from kolejka.server.sweep import Sweeper

logger = logging.getLogger("kolejka.server")

THREADS: Final = 64
"""threads that move bytes; each waits for a disk or a blob store most of its time"""


class Service:
    """The watch over attempts. ``start`` and ``stop`` run in the event loop; both may be called twice."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._watching: asyncio.Task[None] | None = None
        self._calls = Calls(deps)
        self._sweeper = Sweeper(deps.store, deps.blobs, deps.settings, deps.clock)
        self.interval_s = round_s(deps.settings)

    async def start(self) -> None:
        """Begin to watch."""
        if self._watching is not None:
            return
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(THREADS, "bytes"))
        self._deps.bridge.connect(loop)
        await self._wind()
        running = await ask(self._deps.store.read(leases.count))
        logger.info("server started", extra={"running": running})
        self._watching = asyncio.create_task(self._watch())
        self._calls.start()
        self._sweeper.start()

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
        await self._sweeper.stop()
        self._deps.bridge.connect(None)
        await asyncio.to_thread(self._deps.store.close)
        logger.info("server stopped")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.interval_s)
            try:
                await self._wind()
                await self.pull_back()
                await self.rescue()
                await self.catch_up()
                before = self._deps.clock() - self._deps.settings.keep_events
                if await ask(self._deps.store.read(lambda db, at=before: events.is_old(db, at))):  # type: ignore[misc] # at is a float
                    await ask(self._deps.store.write(lambda db, at=before: events.sweep(db, at)))  # type: ignore[misc] # the same
            except KolejkaError as error:  # the database is away: the next round tries again
                logger.warning("attempts cannot be watched", extra={"error": str(error)})

    async def _wind(self) -> None:
        """Bring the shared clock to where the servers are."""
        clock, at = self._deps.shared, self._deps.steady()
        now, lost_s = clock.now(), clock.lost()
        clock.looked(await ask(self._deps.store.write(lambda db: leases.wind(db, now))), at)
        if lost_s:
            logger.warning("time was lost", extra={"seconds": round(lost_s, 1)})

    async def pull_back(self) -> int:
        """Have moments that a wrong clock put far ahead be now; how many there were."""
        settings, now = self._deps.settings, self._deps.clock()
        latest = now + max(moments.FAR_S, 2 * (settings.callback_timeout + settings.callback_pause))
        if not await ask(self._deps.store.read(lambda db: moments.is_any(db, latest))):
            return 0
        count = await ask(self._deps.store.write(lambda db: moments.pull_back(db, latest, now)))
        logger.warning("the clock went back", extra={"moments": count})
        return count

    async def catch_up(self) -> None:
        """Charge owners for what ended; put on the board, and deliver to those who wait here, what an announcement
        should have told.
        """
        deps = self._deps
        awaited = deps.wakes.awaited_results()

        def look(db: Connection) -> tuple[list[Announcement], bool]:
            waiting = {TaskWaiting(name.queue, name.signature) for name, _ in deps.classes.refresh(db)}
            done = [TaskDone(task_id) for task_id in tasks.done_among(db, awaited)]
            return [*done, *waiting], usage.uncharged(db)

        found, uncharged = await ask(deps.store.read(look))
        if awaited or deps.wakes.waiting_claims:
            deps.wakes.deliver(found)
        if uncharged:
            await ask(deps.store.write(lambda db: usage.fold(db, half_life_s=deps.rules.half_life_s)))

    async def rescue(self) -> int:
        """Take back the attempts on which a clock has run out; how many."""
        deps, now = self._deps, self._deps.now()
        silent_before = now.steady - deps.rules.heartbeat_s
        if not await ask(
            deps.store.read(lambda db: leases.is_watched(db, silent_before=silent_before, now=now.steady))
        ):
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

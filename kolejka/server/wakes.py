"""Those who wait: claims for tasks, callers for results. Nobody polls.

The store announces after each commit what happened; ``deliver`` runs in the event loop and wakes just those concerned.
A waiter registers *before* it looks at the database, so nothing falls between looking and waiting. A task that begins
to wait wakes one claim whose node would take it; a claim that leaves without having used its wake-up hands it on.

A node waits with one claim, its newest: what an older one says of the node is stale, so a newer one *overtakes* it, and
it is answered with nothing. What an older one was given while the newer was on its way, the newer does not know:
``unknown`` tells it.

``close`` wakes everybody for good: the server stops.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from kolejka.server.storage.base import (
    AccessChanged,
    Announcement,
    CancelAsked,
    LogTold,
    Missed,
    NodeChanged,
    QueuesChanged,
    TaskDone,
    TaskWaiting,
)


@dataclass(eq=False)
class Waiter:
    """One who waits. ``woken`` is set when there is something to look at.

    Of claims besides: ``heard`` is the moment in which the node was last heard (the server's steady clock),
    ``overtaken`` says that a newer one came, ``given`` are the leases that the answer brings.

    Of callers for results: ``done`` are the tasks that ended since they looked, ``enough`` how many of them they wait
    for.
    """

    woken: asyncio.Event = field(default_factory=asyncio.Event)
    pending: list[TaskWaiting] = field(default_factory=list)
    node: str = ""
    wants: Callable[[TaskWaiting], bool | None] = lambda _: False
    user_id: int = 0
    heard: float = 0.0
    overtaken: bool = False
    given: tuple[int, ...] = ()
    older: tuple[Waiter, ...] = ()
    left: asyncio.Event = field(default_factory=asyncio.Event)
    done: set[str] = field(default_factory=set)
    enough: int = 1

    def looked(self) -> list[TaskWaiting]:
        """What woke this waiter is being looked at; the tasks among it."""
        tasks, self.pending = self.pending, []
        self.done.clear()
        self.woken.clear()
        return tasks

    def ended(self, task_id: str) -> None:
        """One of the tasks whose results are waited for is done."""
        self.done.add(task_id)
        if len(self.done) >= self.enough:
            self.woken.set()

    def lacks(self, count: int, seen: Collection[str]) -> None:
        """Be woken when ``count`` more tasks are done, beside those that were ``seen`` done."""
        self.done.difference_update(seen)
        self.enough = count
        if len(self.done) >= count:
            self.woken.set()

    async def unknown(self) -> frozenset[int]:
        """Wait until the claims that this one overtook have left; the leases that they were given after it was sent."""
        given: set[int] = set()
        for claim in self.older:
            await claim.left.wait()
            given.update(claim.given)
        self.older = ()
        return frozenset(given)


async def wait(waiter: Waiter, timeout_s: float, gone: Callable[[], Awaitable[object]]) -> bool:
    """Wait to be woken, at most ``timeout_s`` seconds, or until the caller is ``gone``: whether to look again."""
    if waiter.woken.is_set():
        return True
    if timeout_s <= 0:
        return False
    waking = asyncio.ensure_future(waiter.woken.wait())
    leaving = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({waking, leaving}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return waiter.woken.is_set() and not leaving.done()
    finally:
        waking.cancel()
        leaving.cancel()


class Wakes:
    """Everybody who waits in this server. Used by the event loop's thread only."""

    def __init__(self) -> None:
        self._claims: dict[Waiter, None] = {}  # in the order in which they came
        self._results: defaultdict[str, set[Waiter]] = defaultdict(set)
        self._logs: dict[int, Waiter] = {}
        self._news: set[Waiter] = set()
        self._anything: set[Waiter] = set()
        self.access_changed: Callable[[], object] = lambda: None
        """told before those who wait, so that they are looked at with fresh eyes"""
        self.closing = False

    @contextlib.contextmanager
    def for_tasks(
        self, node: str, wants: Callable[[TaskWaiting], bool | None], *, user_id: int = 0, heard: float = 0.0
    ) -> Iterator[Waiter]:
        """A claim that waits for tasks its node ``wants`` (``None``: cannot tell), and for word that something of
        ``node`` is cancelled. It overtakes those of the same node and user.
        """
        older = tuple(claim for claim in self._claims if (claim.node, claim.user_id) == (node, user_id))
        waiter = Waiter(node=node, wants=wants, user_id=user_id, heard=heard, older=older)
        for claim in older:
            claim.overtaken = True
            claim.woken.set()
        self._claims[waiter] = None
        try:
            yield waiter
        finally:
            del self._claims[waiter]
            waiter.left.set()
            self.deliver(waiter.pending)

    def heard(self, node: str, at: float) -> None:
        """A heartbeat of this node came."""
        for claim in self._claims:
            if claim.node == node:
                claim.heard = at

    def node_changed(self, node: str) -> None:
        """The claims of this node look again: it takes no more tasks, or became idle."""
        for claim in self._claims:
            if claim.node == node:
                claim.woken.set()

    def queues_changed(self) -> None:
        """Every claim looks again: a queue gives what it did not give before."""
        for claim in self._claims:
            claim.woken.set()

    @contextlib.contextmanager
    def for_results(self, task_ids: Collection[str]) -> Iterator[Waiter]:
        """A caller that waits for tasks' results."""
        waiter = Waiter()
        for task_id in task_ids:
            self._results[task_id].add(waiter)
        try:
            yield waiter
        finally:
            for task_id in set(task_ids):
                self._results[task_id].discard(waiter)
                if not self._results[task_id]:
                    del self._results[task_id]

    @contextlib.contextmanager
    def for_log(self, number: int) -> Iterator[Waiter]:
        """A caller that waits for the log of a node."""
        with self.for_news() as waiter:
            self._logs[number] = waiter
            try:
                yield waiter
            finally:
                del self._logs[number]

    @contextlib.contextmanager
    def for_news(self) -> Iterator[Waiter]:
        """One who is woken by somebody else, and when all are."""
        waiter = Waiter()
        self._news.add(waiter)
        try:
            yield waiter
        finally:
            self._news.discard(waiter)

    @contextlib.contextmanager
    def for_anything(self) -> Iterator[Waiter]:
        """One who looks whenever anything was announced."""
        with self.for_news() as waiter:
            self._anything.add(waiter)
            try:
                yield waiter
            finally:
                self._anything.discard(waiter)

    def deliver(self, announcements: Sequence[Announcement]) -> None:
        """Wake those whom these concern."""
        for waiter in self._anything if announcements else ():
            waiter.woken.set()
        for announcement in announcements:
            match announcement:
                case TaskDone(task_id):
                    for waiter in self._results.get(task_id, ()):
                        waiter.ended(task_id)
                case CancelAsked(node) | NodeChanged(node):
                    self.node_changed(node)
                case QueuesChanged():
                    self.queues_changed()
                case LogTold(number):
                    if number in self._logs:
                        self._logs[number].woken.set()
                case AccessChanged() | Missed():
                    self.access_changed()
                    self._wake_all()
                case TaskWaiting():
                    self._wake_some(announcement)

    def _wake_some(self, announcement: TaskWaiting) -> None:
        """One claim for each of as many tasks of a class: those that wait longest among those that want them. When all
        are awake, they come to look anyway.

        Those that cannot tell are all woken: what they do not know of a class none of them knows.
        """
        left, first = announcement.count, None
        for waiter in self._claims:
            awake = waiter.woken.is_set()
            if waiter.overtaken or (awake and first is not None):
                continue
            wants = waiter.wants(announcement)
            if wants is None:
                waiter.woken.set()
            elif wants:
                first = first or waiter
                if not awake:
                    waiter.pending.append(replace(announcement, count=1))
                    waiter.woken.set()
                    left -= 1
            if not left:
                return
        if first is not None:
            first.pending.append(replace(announcement, count=left))

    def close(self) -> None:
        """Wake everybody; nobody waits here again."""
        self.closing = True
        self._wake_all()

    def _wake_all(self) -> None:
        for waiter in (*self._claims, *(w for waiters in self._results.values() for w in waiters), *self._news):
            waiter.woken.set()

    def awaited_results(self) -> list[str]:
        """The tasks for whose results somebody waits."""
        return list(self._results)

    @property
    def waiting_claims(self) -> int:
        """How many claims wait."""
        return len(self._claims)

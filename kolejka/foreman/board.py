"""What this node has in hand: the one state that all threads of a foreman share, behind one lock.

An attempt is *running* from the moment it is admitted (so its inputs may still be on their way) until its payload is
gone, and *spooled* from then until the server has its result. Both kinds of lease are named in heartbeats; only running
ones hold a part of the offer.

Three conditions share the lock, so that a task's changes wake only those whom they may interest: ``room`` those who ask
for tasks, ``pulse`` the heartbeat, ``changed`` whoever waits for anything else, which on a healthy node is nobody.

::

    node:   ACTIVE ──drain──▶ DRAINING ──stop──▶ STOPPED      no way back: a drained foreman ends
             │ ▲└──a task that cannot be killed──▶ QUARANTINED ──drain, stop──▶  (an administrator looks, then restarts)
             ▼ │
            HELD     an admin asked the server to let the node take no more tasks, and may ask otherwise

Whoever wants an attempt ended before its time says why by a ``Verdict``; the thread that runs it reads the verdict when
the payload is gone. A lost lease outweighs the others: nothing of it may reach the server.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from kolejka.common.task import Task
from kolejka.foreman import pack
from kolejka.foreman.pack import Free, Misfit, Offer, Placement, Wish
from kolejka.worker.job import Job


def seconds() -> float:
    """A clock that only grows and goes on while the machine is suspended, as the server's does."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class NodeState(enum.StrEnum):
    """What the node says of itself in heartbeats; for ``HELD`` and ``STOPPED`` it says that it drains."""

    ACTIVE = "active"
    HELD = "held"
    DRAINING = "draining"
    QUARANTINED = "quarantined"
    STOPPED = "stopped"


class Verdict(enum.StrEnum):
    """Why an attempt is ended before its time, and what becomes of it."""

    CANCELLED = "cancelled"
    """by its owner: the result says so and goes to the server"""
    STOPPED = "stopped"
    """this foreman stops: the lease is given back, the task waits for another node"""
    LOST = "lost"
    """the lease was overtaken: nothing goes to the server"""


@dataclass(eq=False)
class Running:
    """One admitted attempt. ``verdict`` changes under the board's lock only; ``ended`` wakes its thread's waits."""

    lease: int
    task: Task
    deadline: float | None
    """by the clock ``seconds``, when the server takes the attempt for hung"""
    placement: Placement
    slot: int
    since: float = field(default_factory=time.time)
    verdict: Verdict | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    job: Job | None = None
    """what the worker pool was asked to do, once it was"""


_NEXT: Final = {
    NodeState.ACTIVE: {NodeState.HELD, NodeState.DRAINING, NodeState.QUARANTINED, NodeState.STOPPED},
    NodeState.HELD: {NodeState.ACTIVE, NodeState.DRAINING, NodeState.QUARANTINED, NodeState.STOPPED},
    NodeState.QUARANTINED: {NodeState.DRAINING, NodeState.STOPPED},
    NodeState.DRAINING: {NodeState.STOPPED},
    NodeState.STOPPED: set[NodeState](),
}
_WEIGHT: Final = {None: 0, Verdict.CANCELLED: 1, Verdict.STOPPED: 2, Verdict.LOST: 3}


class Board:
    """See the module. Every method takes the lock itself; each of the conditions holds it for those who wait."""

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        lock = threading.RLock()
        self.changed = threading.Condition(lock)
        self.room = threading.Condition(lock)
        self.pulse = threading.Condition(lock)
        self.ending = threading.Event()
        """set once the node drains or stops"""
        self.stirred = threading.Event()
        """set with each change, for one who looks at all of it now and then"""
        self._running: dict[int, Running] = {}
        self._spooled: set[int] = set()
        self._state = NodeState.ACTIVE

    @property
    def state(self) -> NodeState:
        """Where the node is."""
        return self._state

    def move(self, to: NodeState) -> bool:
        """Go to another state. False where there is no way (twice the same, or back)."""
        with self.changed:
            if to not in _NEXT[self._state]:
                return False
            self._state = to
            if to in {NodeState.DRAINING, NodeState.STOPPED}:
                self.ending.set()
            self.room.notify_all()
            self.changed.notify_all()
            self.stir()
            return True

    def admit(self, lease: int, task: Task, wish: Wish, deadline: float | None) -> Running | Misfit:
        """Take an attempt on, if the node is active and has room for it now."""
        with self.changed:
            if self._state is not NodeState.ACTIVE:
                return Misfit(f"the node is {self._state}")
            placement = pack.place(self.offer, self.placements(), wish)
            if isinstance(placement, Misfit):
                return placement
            taken = {running.slot for running in self._running.values()}
            slot = next(number for number in range(self.offer.slots) if number not in taken)
            running = Running(lease, task, deadline, placement, slot)
            self._running[lease] = running
            self.room.notify()
            self.stir()
            return running

    def free(self) -> Free:
        """What is left of the offer."""
        with self.changed:
            return pack.free(self.offer, self.placements())

    def placements(self) -> list[Placement]:
        """The parts of the offer that are held. Call with the lock held, or for a look."""
        return [running.placement for running in self._running.values()]

    def vacate(self, running: Running, *, spooled: bool) -> None:
        """The payload is gone and its part of the offer free; ``spooled`` = its result waits for the server."""
        with self.changed:
            del self._running[running.lease]
            if spooled:
                self._spooled.add(running.lease)
            self.tell()

    def spool(self, leases: Iterable[int]) -> None:
        """These results wait for the server."""
        with self.changed:
            self._spooled.update(leases)
            self.tell()

    def forget(self, lease: int) -> None:
        """The server has the result, or wants none."""
        with self.changed:
            self._spooled.discard(lease)
            self.tell()

    def is_spooled(self, lease: int) -> bool:
        """Whether the result still waits for the server."""
        return lease in self._spooled

    def judge(self, leases: Collection[int], verdict: Verdict) -> list[Running]:
        """Pass a verdict on running attempts; those to which it applies now. A spooled lease that is lost is forgotten.

        The same verdict may be passed again: whoever ends attempts does so as often as it is told.
        """
        if not leases:
            return []
        with self.changed:
            judged = [
                running
                for lease in leases
                if (running := self._running.get(lease)) and _WEIGHT[verdict] >= _WEIGHT[running.verdict]
            ]
            for running in judged:
                running.verdict = verdict
                running.ended.set()
            if verdict is Verdict.LOST:
                self._spooled.difference_update(leases)
            self.tell()
            return judged

    def running(self) -> list[Running]:
        """The running attempts, in order of admission."""
        with self.changed:
            return list(self._running.values())

    def leases(self) -> list[int]:
        """All leases in hand, running and spooled."""
        with self.changed:
            return sorted({*self._running, *self._spooled})

    def backlog(self) -> int:
        """How many results wait for the server."""
        return len(self._spooled)

    def tell(self) -> None:
        """What is in hand or free has changed. Those who ask for tasks are all alike, so one of them is enough."""
        with self.changed:
            self.room.notify()
            self.changed.notify_all()
            self.stir()

    def stir(self) -> None:
        """Something of interest to people changed."""
        if not self.stirred.is_set():  # a glance is cheaper than setting it again
            self.stirred.set()

    def wait(self, condition: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait until ``condition`` (called with the lock held) is true; whether it is."""
        with self.changed:
            return self.changed.wait_for(condition, timeout_s)

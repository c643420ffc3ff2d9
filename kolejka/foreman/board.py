"""What this node has in hand: the one state that all threads of a foreman share, behind one lock.

An attempt is *running* from the moment it is admitted (so its inputs may still be on their way) until its payload is
gone, and *spooled* from then until the server has its result. All leases in hand are named in heartbeats; only those of
running attempts hold a part of the offer.

Where short tasks follow one another, some more are taken on *ahead* of room for them and stand in a *line*: the next
begins in the moment in which another ends, not a request to the server later. As much stands in it as short tasks held
that ended within the last tenth of a second; nobody overtakes; who does not get room within a moment all the same goes
back to the server, unstarted. Where tasks are long there is no line.

Some conditions share the lock, so that a task's changes wake only those whom they may interest: ``room`` those who ask
for tasks, ``pulse`` the heartbeat, ``late`` whoever gives back what stood in line for too long, ``changed`` whoever
waits for anything else, which on a healthy node is nobody.

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
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from kolejka.common.task import Task
from kolejka.foreman import pack
from kolejka.foreman.pack import Ahead, Free, Misfit, Offer, Placement, Wish
from kolejka.worker.job import Job

AHEAD_S: Final = 0.1
"""What short tasks held that ended within so long is what others may be taken on for, ahead of room for them."""
PATIENCE_S: Final = 0.3
"""Who stood in line for so long goes back."""
MOST_AHEAD: Final = 500


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
    began: float = field(default_factory=seconds)
    verdict: Verdict | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    job: Job | None = None
    """what the worker pool was asked to do, once it was"""


@dataclass(frozen=True, eq=False)
class InLine:
    """An attempt that was taken on ahead of room for it, ``since`` a moment of the clock ``seconds``."""

    lease: int
    task: Task
    wish: Wish
    deadline: float | None
    since: float


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
        self.late = threading.Condition(lock)
        self.ending = threading.Event()
        """set once the node drains or stops"""
        self.stirred = threading.Event()
        """set with each change, for one who looks at all of it now and then"""
        self._running: dict[int, Running] = {}
        self._line: deque[InLine] = deque()
        self._ended: deque[tuple[float, Placement]] = deque(maxlen=MOST_AHEAD)
        """what short tasks held, and when they ended"""
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
            self.late.notify_all()
            self.changed.notify_all()
            self.stir()
            return True

    def admit(
        self, lease: int, task: Task, wish: Wish, deadline: float | None, *, ahead: bool = False
    ) -> Running | InLine | Misfit:
        """Take an attempt on, if the node is active and has room for it now; or, ``ahead`` of that, into the line."""
        with self.changed:
            if self._state is not NodeState.ACTIVE:
                return Misfit(f"the node is {self._state}")
            if self._line:
                placement: Placement | Misfit = Misfit("others stand in line before it")
            else:
                placement = pack.place(self.offer, self.placements(), wish)
            if isinstance(placement, Placement):
                running = self._begin(lease, task, deadline, placement)
                self.room.notify()
                return running
            if not ahead or isinstance(pack.place(self.offer, (), wish), Misfit):
                return placement
            self._line.append(InLine(lease, task, wish, deadline, seconds()))
            if len(self._line) == 1:
                self.late.notify_all()
            self.stir()
            return self._line[-1]

    def _begin(self, lease: int, task: Task, deadline: float | None, placement: Placement) -> Running:
        taken = {running.slot for running in self._running.values()}
        slot = next(number for number in range(self.offer.slots) if number not in taken)
        running = self._running[lease] = Running(lease, task, deadline, placement, slot)
        self.stir()
        return running

    def _advance(self) -> list[Running]:
        """Take on from the line whom there is room for."""
        begun = []
        while self._line and self._state is NodeState.ACTIVE:
            first = self._line[0]
            placement = pack.place(self.offer, self.placements(), first.wish)
            if isinstance(placement, Misfit):
                break
            self._line.popleft()
            begun.append(self._begin(first.lease, first.task, first.deadline, placement))
        return begun

    def free(self) -> Free:
        """What is left of the offer."""
        with self.changed:
            return pack.free(self.offer, self.placements())

    def ended(self) -> int:
        """How many short tasks ended lately."""
        with self.changed:
            since = seconds() - AHEAD_S
            while self._ended and self._ended[0][0] < since:
                self._ended.popleft()
            return len(self._ended)

    def ahead(self) -> Ahead:
        """What may be taken on ahead of room for it."""
        with self.changed:
            self.ended()  # forgets the others
            return pack.ahead(self.offer, [placement for _, placement in self._ended], [one.wish for one in self._line])

    def in_line(self) -> int:
        """How many attempts wait for room."""
        return len(self._line)

    def placements(self) -> list[Placement]:
        """The parts of the offer that are held. Call with the lock held, or for a look."""
        return [running.placement for running in self._running.values()]

    def vacate(self, running: Running, *, spooled: bool, ran: bool = False) -> list[Running]:
        """The payload is gone and its part of the offer free; ``spooled`` = its result waits for the server, ``ran`` =
        it ran and ended by itself. Gives the attempts that have room now, and are to be started.
        """
        with self.changed:
            del self._running[running.lease]
            if spooled:
                self._spooled.add(running.lease)
            now = seconds()
            short = ran and now - running.began < AHEAD_S  # a node where all tasks fail at once need not hurry
            if short and not running.placement.exclusive:
                self._ended.append((now, running.placement))
            begun = self._advance()
            self.tell()
            return begun

    def step_out(self, leases: Collection[int]) -> list[InLine]:
        """Take these attempts out of the line, those that stand in it. Call with the lock held."""
        out = [one for one in self._line if one.lease in leases]
        for one in out:
            self._line.remove(one)
        if out:
            self.tell()
        return out

    def too_late(self) -> tuple[list[InLine], float | None]:
        """Take those out of the line who stood in it for too long, all when the node is not active; and seconds until
        there may be more of them. Call with the lock held.
        """
        now = seconds()
        latest = now - PATIENCE_S if self._state is NodeState.ACTIVE else now
        out = self.step_out([one.lease for one in self._line if one.since <= latest])
        return out, self._line[0].since - latest if self._line else None

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
        """All leases in hand: running, in line, spooled."""
        with self.changed:
            return sorted({*self._running, *self._spooled, *(one.lease for one in self._line)})

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

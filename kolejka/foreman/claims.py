"""Asking the server for tasks: always as soon as there is something free that is not on offer yet.

A node *asks*: a request that the server answers at once. While its answer is on the way nothing else is asked, so
requests follow one another, each with exact figures. When the server has nothing for those figures, a request with the
same ones *waits* there (a long poll). As soon as what is free is anything else than what waits, the node asks again,
and the server answers the older request with nothing: for it, a node's newest request is the only one.

While short tasks follow one another, a request that does not wait asks for some ahead of room for them (board.py), and
the next one goes out when half of those in line have begun: one request brings many. A server that had less than it was
asked for has no more; nothing is asked ahead until something is free again.

An answer that had left before a newer request came may bring attempts that the newer one did not know of. Whatever
fits is run, whatever does not is given back at once, unstarted.

A node that has nothing free for longer than a moment waits with a request for nothing: the server answers it when a
task of the node is cancelled, or when an admin asks something. The heartbeat would tell that much later.

Nothing is asked before the server has heard a heartbeat of this life: to it the node may still be one that drains. Nor
while the node's disk is full: every task would end as an error here, one after the other, though others could run it.

Each request occupies a thread: one asks, one waits, and the answer of one more may have got lost on its way. They all
run the same loop. An answer that does not even fit the figures it was asked with, or one that should have waited and
did not, means that server and node reckon differently: asking pauses, longer each time, so the two do not play ball.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from kolejka.client.node import Attempt, Claimed
from kolejka.common.errors import InputError, KolejkaError, NotAllowed
from kolejka.foreman import pack
from kolejka.foreman.board import Board, InLine, NodeState, Running, Verdict, seconds
from kolejka.foreman.pack import Ahead, Free, Misfit, Placement, Wish

logger = logging.getLogger(__name__)

THREADS: Final = 3
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 10.0
FULL_S: Final = 0.3
"""how long a node is full before it waits with a request for nothing; short tasks never get there"""
NO_ROOM_PAUSE_S: Final = 1.0
"""how often to look whether a full disk has room again"""
REFUSED_PAUSE_S: Final = 30.0
"""pause after the server refused to talk to this node: an administrator mends that"""


@dataclass(frozen=True, eq=False)
class Request:
    """One request: what it offers, beside which tasks, since when, and how long it may wait at the server.

    ``leases`` are those that the offer knows of; ``ahead`` is what may be given beyond what is free.
    """

    free: Free
    beside: tuple[Placement, ...]
    since: float
    wait_s: float
    leases: tuple[int, ...] = ()
    ahead: Ahead | None = None

    @property
    def slots(self) -> int:
        """How many attempts the answer may bring."""
        return self.free.slots + (0 if self.ahead is None else self.ahead.slots)


class Asks(Protocol):
    """What the loop needs from the daemon."""

    def ask(self, request: Request) -> Claimed:
        """Send one request."""

    def wish(self, attempt: Attempt) -> Wish:
        """What an attempt wants here. InputError when this node does not understand its task."""

    def expect(self, attempt: Attempt) -> None:
        """Make sure that a foreman that starts anew gives this attempt back."""

    def start_attempt(self, running: Running) -> None:
        """Run an admitted attempt."""

    def give_back(self, attempt: Attempt, message: str) -> None:
        """Return an attempt that does not fit."""

    def refuse(self, attempt: Attempt, error: InputError) -> None:
        """End an attempt whose task this node does not understand."""

    def end(self, leases: frozenset[int], verdict: Verdict) -> None:
        """End attempts before their time."""

    def heard(self, heartbeat_s: float) -> None:
        """The server answered."""


class Claims:
    """The requests of one node. ``known`` = the server has heard this foreman's heartbeat.

    ``backlog`` results that wait for the server stop the asking, and so does a disk on which ``is_full``.
    """

    def __init__(self, board: Board, daemon: Asks, *, wait_s: float, spawn: Callable[[Callable[[], None], str], object],
                 known: Callable[[], bool] = lambda: True, is_full: Callable[[], bool] = lambda: False,
                 backlog: int = 256) -> None:  # fmt: skip
        self._board = board
        self._daemon = daemon
        self._wait_s = wait_s
        self._spawn = spawn
        self._known = known
        self._is_full = is_full
        self._backlog = backlog
        self._open: list[Request] = []
        self._newest: Request | None = None
        self._nothing_for: Free | None = None
        """the figures for which the latest answer had nothing"""
        self._dry = False
        """whether the server had less than the latest request asked for"""
        self._full_since: float | None = None
        self._not_before = 0.0
        self._pause_s = 0.0
        self._dying: frozenset[int] = frozenset()
        """cancelled leases that the latest answer named; until they are gone every request is answered at once"""
        self._silent = threading.Event()
        """set while the server does not answer, so that the log says it once"""

    def start(self) -> None:
        """Start asking."""
        for _ in range(THREADS):
            self._spawn(self._loop, "claim")

    def open_requests(self) -> int:
        """How many requests have no answer yet."""
        return len(self._open)

    def _loop(self) -> None:
        while (request := self._next()) is not None:
            try:
                answer = self._daemon.ask(request)
            except KolejkaError as error:
                self._failed(request, error)
            else:
                self._answered(request, answer)

    def _next(self) -> Request | None:
        """Wait until a request is due; ``None`` when the node takes no more tasks."""
        with self._board.room:
            while self._board.state in {NodeState.ACTIVE, NodeState.HELD}:
                if self._board.state is NodeState.HELD:
                    self._board.room.wait()
                    continue
                now = seconds()
                pause = self._due(now)
                if pause == 0:
                    free, ahead = self._offered(), self._ahead()
                    waits = not ahead and (not free.slots or free == self._nothing_for)
                    if free.slots and not waits:
                        ahead = self._turnover()
                    self._newest = Request(
                        free, tuple(self._board.placements()), now, self._wait_s if waits else 0.0,
                        tuple(self._board.leases()), ahead,
                    )  # fmt: skip
                    self._open.append(self._newest)
                    return self._newest
                self._board.room.wait(pause)
            return None

    def _due(self, now: float) -> float | None:
        """Seconds until the next request; 0 = now, ``None`` = not before something changes."""
        if not self._known():
            return None
        left, ahead = self._offered(), self._ahead()
        if left.slots or ahead:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = now
        newest = self._newest
        if newest is not None and newest in self._open and (
            newest.wait_s == 0 or (newest.free == left and not ahead)
        ):  # fmt: skip
            return None
        if self._is_full():
            return NO_ROOM_PAUSE_S
        if self._dying and self._dying.isdisjoint(self._board.leases()):
            self._dying, self._not_before = frozenset(), 0.0
        full_since = -FULL_S if self._full_since is None else self._full_since
        return max(0.0, self._not_before - now, 0.0 if left.slots or ahead else full_since + FULL_S - now)

    def _offered(self) -> Free:
        """What is free, with no slots where nothing can be taken; what somebody in line waits for is not free."""
        left = self._board.free()
        full = not left.slots or not left.cpus or self._board.in_line() or self._board.backlog() >= self._backlog
        return dataclasses.replace(left, slots=0, idle=left.idle and not self._board.in_line()) if full else left

    def _ahead(self) -> Ahead | None:
        """What to ask for ahead although nothing is free: something once the line is half gone, and not in vain."""
        standing = self._board.in_line()
        if not standing or self._dry or self._board.ended() < 2 * standing:
            return None
        ahead = self._turnover()
        return ahead if ahead.slots else None

    def _turnover(self) -> Ahead:
        """What short tasks make room for in a moment, no more than results get away."""
        ahead = self._board.ahead()
        most = self._backlog - self._board.backlog() - len(self._board.placements()) - self._board.in_line()
        return dataclasses.replace(ahead, slots=max(0, min(ahead.slots, most)))

    def _close(self, request: Request) -> None:
        self._open.remove(request)  # whoever closes one asks next itself
        self._board.changed.notify_all()

    def _failed(self, request: Request, error: KolejkaError) -> None:
        refused = isinstance(error, InputError)
        with self._board.changed:
            longest = REFUSED_PAUSE_S if refused else LONGEST_PAUSE_S
            first = REFUSED_PAUSE_S if isinstance(error, NotAllowed) else FIRST_PAUSE_S
            self._pause_s = min(longest, max(first, self._pause_s * 2))
            self._not_before = seconds() + self._pause_s
            self._close(request)
            if refused or not self._silent.is_set():
                logger.warning(
                    "the server gives no tasks", extra={"reason": str(error), "next_try_s": round(self._pause_s, 1)}
                )
            self._silent.set()

    def _answered(self, request: Request, answer: Claimed) -> None:
        self._daemon.heard(answer.heartbeat_s)
        if self._silent.is_set():
            self._silent.clear()
            logger.info("the server answers again")
        self._daemon.end(answer.cancel, Verdict.CANCELLED)
        astray = self._is_hasty(request, answer)
        within = list(request.beside)
        full = bool(answer.attempts) and self._is_full()  # since the request was sent
        try:
            for attempt in () if full else answer.attempts:
                self._daemon.expect(attempt)
            with self._board.changed:  # who looks at what is free sees all of them placed, or none
                for attempt in answer.attempts:
                    if full:
                        self._daemon.give_back(attempt, "the node's disk is full")
                    else:
                        astray |= not self._place(attempt, within, ahead=request.ahead is not None)
        finally:
            with self._board.changed:
                self._pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, self._pause_s * 2)) if astray else 0.0
                self._dying = answer.cancel
                if request is self._newest:
                    self._nothing_for = None if answer.attempts else request.free
                    self._dry = len(answer.attempts) < request.slots
                self._not_before = seconds() + max(self._pause_s, FIRST_PAUSE_S if answer.cancel else 0.0)
                self._close(request)

    def _is_hasty(self, request: Request, answer: Claimed) -> bool:
        """Whether the server was to wait for tasks, had no reason not to, and did not."""
        return (
            request is self._newest and not answer.attempts and not answer.cancel
            and seconds() - request.since < request.wait_s / 2
        )  # fmt: skip

    def _place(self, attempt: Attempt, within: list[Placement], *, ahead: bool) -> bool:
        """Start one attempt, let it stand in line or give it back; False when it does not even fit what it was asked
        for with.
        """
        if attempt.lease in self._board.leases():
            logger.error("the server gave a lease twice", extra={"task": attempt.task_id, "lease": attempt.lease})
            return True
        try:
            wish, task = self._daemon.wish(attempt), attempt.task
        except InputError as error:
            self._daemon.refuse(attempt, error)
            return True
        deadline = None if attempt.deadline_s is None else seconds() + attempt.deadline_s
        running = self._board.admit(attempt.lease, task, wish, deadline, ahead=ahead)
        asked = pack.place(self._board.offer, within, wish)
        if isinstance(asked, Placement):
            within.append(asked)
        if isinstance(running, Running):
            self._daemon.start_attempt(running)
            return True
        if isinstance(running, InLine):
            return True
        logger.info(
            "attempt given back", extra={"task": attempt.task_id, "lease": attempt.lease, "reason": running.message}
        )
        self._daemon.give_back(attempt, running.message)
        return not isinstance(asked, Misfit)

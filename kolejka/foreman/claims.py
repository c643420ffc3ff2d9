"""Asking the server for tasks: always as soon as there is something free that is not on offer yet.

A request names what is free at that moment and may wait at the server until something fits (a long poll). Meanwhile
more may become free. The older request cannot be taken back: an answer on its way would be attempts that nobody knows
of. So it stays, and a second one names the new figures. Three rules keep that cheap and right:

- No request is sent while one that is open offers at least what is free now.
- A request without an answer for ``PARKED_S`` (or a few of the server's usual round trips, where that is longer) is
  *parked*: the server has nothing that fits it. Only when all open ones are parked is another sent. So while tasks are
  plentiful requests follow one another, each with exact figures; they overlap only where waiting for an answer would
  leave something unused.
- Two overlapping requests may together bring more than fits. What does not fit is given back at once, unstarted.

Each request occupies a thread. They all run the same loop; one more starts when all are busy, at most one for each slot
and one besides. An answer that does not even fit the figures it was asked with means that server and node reckon
differently: the attempt is given back and asking pauses, longer each time, so the two do not play ball.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from kolejka.client.node import Attempt, Claimed
from kolejka.common.errors import InputError, KolejkaError, NotAllowed
from kolejka.foreman import pack
from kolejka.foreman.board import Board, NodeState, Running, Verdict, seconds
from kolejka.foreman.pack import Free, Misfit, Placement, Wish

logger = logging.getLogger(__name__)

PARKED_S: Final = 0.05
PARKED_ROUND_TRIPS: Final = 4
PARKED_AT_MOST_S: Final = 1.0
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 10.0
REFUSED_PAUSE_S: Final = 30.0
"""pause after the server refused to talk to this node: an administrator mends that"""


@dataclass(frozen=True, eq=False)
class Request:
    """One open request: what it offers, beside which tasks, and since when."""

    free: Free
    beside: tuple[Placement, ...]
    since: float


class Asks(Protocol):
    """What the loop needs from the daemon."""

    def ask(self, free: Free, wait_s: float) -> Claimed:
        """Send one request."""

    def wish(self, attempt: Attempt) -> Wish:
        """What an attempt wants here. InputError when this node does not understand its task."""

    def start_attempt(self, running: Running) -> None:
        """Run an admitted attempt."""

    def give_back(self, lease: int, message: str) -> None:
        """Return an attempt that does not fit."""

    def refuse(self, attempt: Attempt, error: InputError) -> None:
        """End an attempt whose task this node does not understand."""

    def end(self, leases: frozenset[int], verdict: Verdict) -> None:
        """End attempts before their time."""

    def heard(self, heartbeat_s: float) -> None:
        """The server answered."""


class Claims:
    """The requests of one node. ``backlog`` results that wait for the server stop the asking."""

    def __init__(self, board: Board, daemon: Asks, *, wait_s: float, spawn: Callable[[Callable[[], None], str], object],
                 round_trip_s: Callable[[], float] = lambda: 0.0, backlog: int = 256) -> None:  # fmt: skip
        self._board = board
        self._daemon = daemon
        self._wait_s = wait_s
        self._spawn = spawn
        self._round_trip_s = round_trip_s
        self._backlog = backlog
        self._open: list[Request] = []
        self._threads = 0
        self._idle = 0
        self._not_before = 0.0
        self._pause_s = 0.0
        self._dying: frozenset[int] = frozenset()
        """cancelled leases that the latest answer named; until they are gone every request is answered at once"""
        self._silent = threading.Event()
        """set while the server does not answer, so that the log says it once"""

    def start(self) -> None:
        """Start asking."""
        with self._board.changed:
            self._threads += 1
        self._spawn(self._loop, "claim")

    def open_requests(self) -> int:
        """How many requests wait at the server."""
        return len(self._open)

    def _loop(self) -> None:
        while (request := self._next()) is not None:
            try:
                answer = self._daemon.ask(request.free, self._wait_s)
            except KolejkaError as error:
                self._failed(request, error)
            else:
                self._answered(request, answer)

    def _next(self) -> Request | None:
        """Wait until a request is due; ``None`` when the node takes no more tasks."""
        changed = self._board.changed
        with changed:
            self._idle += 1
            try:
                while self._board.state is NodeState.ACTIVE:
                    now = seconds()
                    pause = self._due(now)
                    if pause == 0:
                        request = Request(self._board.free(), tuple(self._board.placements()), now)
                        self._open.append(request)
                        break
                    changed.wait(pause)
                else:
                    return None
            finally:
                self._idle -= 1
            if not self._idle and self._threads <= self._board.offer.slots:
                self._threads += 1
                self._spawn(self._loop, "claim")
            return request

    def _due(self, now: float) -> float | None:
        """Seconds until the next request; 0 = now, ``None`` = not before something changes."""
        left = self._board.free()
        if not left.slots or not left.cpus or self._board.backlog() >= self._backlog:
            return None
        if any(request.free.covers(left) for request in self._open):
            return None
        patience_s = min(max(PARKED_S, PARKED_ROUND_TRIPS * self._round_trip_s()), PARKED_AT_MOST_S)
        parked_at = max((request.since + patience_s for request in self._open), default=now)
        if self._dying and self._dying.isdisjoint(self._board.leases()):
            self._dying, self._not_before = frozenset(), 0.0
        return max(0.0, parked_at - now, self._not_before - now)

    def _close(self, request: Request) -> None:
        self._open.remove(request)
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
        astray = False
        within = list(request.beside)
        try:
            for attempt in answer.attempts:
                astray |= not self._place(attempt, within)
        finally:
            with self._board.changed:
                self._pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, self._pause_s * 2)) if astray else 0.0
                self._dying = answer.cancel
                self._not_before = seconds() + max(self._pause_s, FIRST_PAUSE_S if answer.cancel else 0.0)
                self._close(request)

    def _place(self, attempt: Attempt, within: list[Placement]) -> bool:
        """Start one attempt or give it back; False when it does not even fit what it was asked for with."""
        if attempt.lease in self._board.leases():
            logger.error("the server gave a lease twice", extra={"task": attempt.task_id, "lease": attempt.lease})
            return True
        try:
            wish, task = self._daemon.wish(attempt), attempt.task
        except InputError as error:
            self._daemon.refuse(attempt, error)
            return True
        deadline = None if attempt.deadline_s is None else seconds() + attempt.deadline_s
        running = self._board.admit(attempt.lease, task, wish, deadline)
        asked = pack.place(self._board.offer, within, wish)
        if isinstance(asked, Placement):
            within.append(asked)
        if isinstance(running, Running):
            self._daemon.start_attempt(running)
            return True
        logger.info(
            "attempt given back", extra={"task": attempt.task_id, "lease": attempt.lease, "reason": running.message}
        )
        self._daemon.give_back(attempt.lease, running.message)
        return not isinstance(asked, Misfit)

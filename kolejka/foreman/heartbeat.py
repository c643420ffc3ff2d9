"""Saying that this node lives, and learning what became of its leases.

Three beats fit into the time after which a silent node has lost its attempts, and none waits for its answer longer
than for its turn: what a network lost for a while is sent again ever more rarely, a new beat at once. A beat names
every lease in hand; the answer names those that were overtaken and those whose owner cancelled. Between beats that
failed the pause is short, so a server that comes back is noticed soon. The pulse is *fresh* while the last good beat is
younger than that time: a foreman that was frozen, or alone for long, is not, and sends no result before it has beaten
again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from kolejka.client.node import Beat
from kolejka.common.errors import KolejkaError
from kolejka.foreman.board import Board, Verdict, seconds

logger = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 5.0
SHORTEST_TIMEOUT_S: Final = 5.0
"""a busy server is not taken for a dead one before"""


class Pulse:
    """The heartbeat of one node. ``beat`` sends one; ``end`` ends attempts before their time."""

    def __init__(self, board: Board, beat: Callable[[], Beat], end: Callable[[frozenset[int], Verdict], None],
                 heartbeat_s: float = 60.0) -> None:  # fmt: skip
        self._board = board
        self._beat = beat
        self._end = end
        self._heartbeat_s = heartbeat_s
        self._last: float | None = None
        self._beats = 0
        self._failures = 0
        self._wanted = False
        self._closed = False

    @property
    def beats(self) -> int:
        """How many beats the server answered."""
        return self._beats

    @property
    def timeout_s(self) -> float:
        """How long a beat waits for its answer."""
        return max(SHORTEST_TIMEOUT_S, self._heartbeat_s / 3)

    @property
    def reachable(self) -> bool:
        """Whether the latest beat was answered."""
        return self._last is not None and not self._failures

    def fresh(self) -> bool:
        """Whether every lease that was overtaken long enough ago is known to be."""
        return self._last is not None and seconds() - self._last < self._heartbeat_s

    def expect(self, heartbeat_s: float) -> None:
        """The server told how long a node may be silent."""
        with self._board.changed:
            if heartbeat_s != self._heartbeat_s and heartbeat_s > 0:
                self._heartbeat_s = heartbeat_s
                self._board.pulse.notify()

    def now(self) -> None:
        """Beat without waiting for the next turn: the node's state changed, or a result asks whether it is fresh."""
        with self._board.changed:
            self._wanted = True
            self._board.pulse.notify()

    def close(self) -> None:
        """End the loop."""
        with self._board.changed:
            self._closed = True
            self._board.pulse.notify()

    def once(self) -> None:
        """One beat, and what follows from its answer. Errors are those of the client."""
        began = seconds()
        answer = self._beat()
        self.expect(answer.heartbeat_s)
        self._end(answer.lost, Verdict.LOST)
        self._end(answer.cancel, Verdict.CANCELLED)
        with self._board.changed:
            self._last = began
            self._beats += 1
            if self._failures:
                logger.info("the server hears the heartbeat again", extra={"missed": self._failures})
            self._failures = 0
            self._board.tell()

    def loop(self) -> None:
        """Beat until closed."""
        while not self._closed:
            try:
                self.once()
            except KolejkaError as error:
                with self._board.changed:
                    self._failures += 1
                if self._failures == 1:
                    logger.warning("the server does not hear the heartbeat", extra={"reason": str(error)})
            self._rest()

    def _rest(self) -> None:
        began = seconds()
        with self._board.pulse:
            while not self._closed:
                pause = self._heartbeat_s / 3
                if self._failures:
                    pause = min(pause, LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self._failures, 10))
                elif self._wanted:
                    break
                left = began + pause - seconds()
                if left <= 0:
                    break
                self._board.pulse.wait(left)
            self._wanted = False

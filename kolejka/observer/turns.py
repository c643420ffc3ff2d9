"""A lock for which an events thread never waits: what it cannot do now, the lock's holder does before letting go.

Work that was left is done exactly once, by whoever has the turn, in the order in which it was left: at the end of the
turn that was in its way, never in the middle of one. What it raises is logged.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

logger: Final = logging.getLogger("kolejka.observer")


class Turns:
    """Held in a ``with`` block, by one thread at a time, which may enter again."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self._left: deque[Callable[[], object]] = deque()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1

    def __exit__(self, *_details: object) -> None:
        outermost = self._depth == 1
        if outermost:
            self._do_left()
        self._depth -= 1
        self._lock.release()
        if outermost:
            self._take_turns()  # for what was left in the last moment

    def do_or_leave(self, work: Callable[[], object]) -> None:
        """Do this now, or have the holder do it. Called by a thread that is not the holder; returns at once."""
        self._left.append(work)
        self._take_turns()

    def _take_turns(self) -> None:
        while self._left and self._lock.acquire(blocking=False):
            self._depth += 1
            try:
                self._do_left()
            finally:
                self._depth -= 1
                self._lock.release()

    def _do_left(self) -> None:
        while self._left:  # only the holder takes from it
            work = self._left.popleft()
            try:
                work()
            except Exception:
                logger.exception("event handler failed")

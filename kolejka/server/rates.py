"""How often one may call: a bucket for each, that fills steadily and holds what ten quiet seconds give.

Users are counted by their id; nodes and admins do the system's own work and are not counted. Who has no token is
counted by the address that calls. Each server process counts by itself. Used by the event loop's thread only.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final

BURST_S: Final = 10.0
_MOST: Final = 100_000


class Rates:
    """Calls a second for each caller, ``0`` = as many as they like. ``clock`` gives seconds that never jump."""

    def __init__(self, per_s: float, clock: Callable[[], float]) -> None:
        self._per_s = per_s
        self._clock = clock
        self._left: dict[Hashable, tuple[float, float]] = {}

    def wait_s(self, who: Hashable) -> float:
        """Take one call: 0 when it is allowed, else after how many seconds it will be."""
        if self._per_s <= 0:
            return 0.0
        now, full = self._clock(), self._per_s * BURST_S
        if len(self._left) >= _MOST:  # those whose buckets are full again need no memory
            self._left = {other: kept for other, kept in self._left.items() if now - kept[0] < BURST_S}
        at, left = self._left.get(who, (now, full))
        left = min(full, left + (now - at) * self._per_s)
        allowed = left >= 1
        self._left[who] = now, left - 1 if allowed else left
        return 0.0 if allowed else (1 - left) / self._per_s

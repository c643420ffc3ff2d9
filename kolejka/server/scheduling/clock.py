"""The clock by which leases go: one for all servers of a database, and no wall clock takes part in it.

How far it has come stands in the database. Between two looks each server carries it on by its own monotonic clock; at
each look it writes down how far it is where that is further, and goes on from what then stands there. So the shared
clock goes at the pace of the fastest and never backwards, a server that fell behind (a machine that slept, a virtual
one that was moved) catches up, and servers differ by no more than the time between two looks.

It stands still while nobody looks: servers that are down, that were stopped, or that the database does not answer,
hear no nodes either. Carried on by a server alone it goes at most ``most_s`` beyond the last look. Time in which nobody
could be heard so counts against no node, and nobody has to reckon with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class SharedClock:
    """One server's part in it. ``tick`` gives seconds that never jump. Used by one thread, the event loop's."""

    tick: Callable[[], float]
    most_s: float
    _shown: float = 0.0
    _at: float | None = None

    def now(self) -> float:
        """How far the clock is."""
        return self._shown + max(0.0, min(self._passed(), self.most_s))

    def lost(self) -> float:
        """How much time since the last look does not count."""
        return max(0.0, self._passed() - self.most_s)

    def _passed(self) -> float:
        return 0.0 if self._at is None else self.tick() - self._at

    def looked(self, stored: float, at: float) -> None:
        """At the tick ``at`` the database said so."""
        self._shown, self._at = stored, at

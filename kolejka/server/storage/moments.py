"""Moments too far ahead to be true: written down while this machine's clock was wrong, and now in everybody's way.

A node that was heard "next week" never falls silent, and its foreman's successor is refused; a call that is due then
waits. Leases go by another clock (``scheduling/clock.py``), and turns of chores look after themselves (``sweep``).
"""

from __future__ import annotations

from typing import Final

from kolejka.server.storage.base import Connection

FAR_S: Final = 7200.0
"""Nothing here is meant to lie so far ahead, and no two servers' clocks are so far apart."""
_MOMENTS: Final = (("nodes", "last_seen"), ("callbacks", "due_at"))


def is_any(db: Connection, latest: float) -> bool:
    """Whether there is one behind ``latest``."""
    return any(db.row(f"SELECT 1 FROM {table} WHERE {column} > ? LIMIT 1", latest) for table, column in _MOMENTS)  # noqa: S608 constants


def pull_back(db: Connection, latest: float, now: float) -> int:
    """Have them be now; how many there were."""
    return sum(
        db.run(f"UPDATE {table} SET {column} = ? WHERE {column} > ?", now, latest)  # noqa: S608 constants
        for table, column in _MOMENTS
    )

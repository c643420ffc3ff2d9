"""The numbers by which tasks are given and taken back, and the moment in which that happens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rules:
    """The server's numbers. Times in seconds."""

    heartbeat_s: float = 60.0
    deadline_margin_s: float = 120.0
    attempts: int = 5
    half_life_s: float = 3600.0
    reserve_after_s: float = 60.0
    running_per_owner: int | None = None
    minimum_image: str = ""
    """nodes booted from an older node image get no tasks; empty = any image will do"""


@dataclass(frozen=True)
class Moment:
    """Now, on two clocks, both in seconds.

    ``wall`` is for records, since the epoch. ``steady`` is the clock that the servers of one database share and that
    stands still while none of them runs (``kolejka.server.scheduling.clock``): leases go by it, so that a clock that is
    set, a machine that sleeps, or a server that was away, loses nobody's attempts.
    """

    wall: float
    steady: float

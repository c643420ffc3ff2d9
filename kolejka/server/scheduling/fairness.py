"""Whose turn it is, and who has enough.

An owner's *share* is what they took of the cluster: the CPU seconds that their attempts kept from others, halved with
every half-life that has passed since, and besides what runs now: since its start, and for a moment ahead
(``FORECAST_S``), so that tasks which were only just given count at once. The owner with the smallest share goes first.
Priority decides inside an owner only.

A *quota* is a ceiling on how many tasks run at one time: of a queue, of one owner in a queue, of one owner altogether.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from kolejka.server.scheduling.match import Signature

FORECAST_S: Final = 60.0


def cpus_of(signature: Signature, total: float | None) -> float:
    """How many CPUs such a task keeps from others on a node that has ``total``: all when it is alone there."""
    if signature.exclusive and total is not None:
        return float(total)
    return float(signature.needs.get("cpus", 1))


def decayed(amount: float, passed_s: float, half_life_s: float) -> float:
    """What is left of an amount after some time. Time that ran backwards takes nothing away and adds nothing."""
    return float(amount * 0.5 ** (max(0.0, passed_s) / half_life_s))


@dataclass(frozen=True)
class Gate:
    """What a queue lets through: whether it gives tasks, and its ceilings on running ones."""

    gives: bool = True
    running: int | None = None
    running_per_owner: int | None = None


@dataclass(frozen=True)
class Quotas:
    """All ceilings.

    A queue that is not among ``gates`` gives what it has: a queue is deleted when nothing waits in it, so what does was
    accepted at the very moment, and has to reach its result like everything else.
    """

    gates: Mapping[str, Gate] = field(default_factory=dict)
    owner: int | None = None

    @property
    def any(self) -> bool:
        """Whether there is a ceiling at all."""
        return self.owner is not None or any(
            gate.running is not None or gate.running_per_owner is not None for gate in self.gates.values()
        )

    def gives(self, queue: str) -> bool:
        """Whether a queue gives tasks at all."""
        return self.gates.get(queue, Gate()).gives

    def full(self, owner: int, queue: str, load: Load) -> str | None:
        """The ceiling that one more task of this owner in this queue would exceed, in words."""
        gate = self.gates.get(queue, Gate())
        if gate.running is not None and load.of_queue(queue) >= gate.running:
            return f"the queue {queue!r} runs as many tasks as it may ({gate.running})"
        if gate.running_per_owner is not None and load.of_both(owner, queue) >= gate.running_per_owner:
            return f"its owner runs as many tasks in the queue {queue!r} as one may there ({gate.running_per_owner})"
        if self.owner is not None and load.of_owner(owner) >= self.owner:
            return f"its owner runs as many tasks as one may on this server ({self.owner})"
        return None


class Load:
    """How many tasks run: by owner, by queue, by both. The one value here that counts on: a claim has its own."""

    def __init__(self, running: Iterable[tuple[int, str, int]] = ()) -> None:
        self._counts: dict[object, int] = {}
        for owner, queue, count in running:
            self.add(owner, queue, count)

    def add(self, owner: int, queue: str, count: int = 1) -> None:
        """So many more."""
        for key in (owner, queue, (owner, queue)):
            self._counts[key] = self._counts.get(key, 0) + count

    def copy(self) -> Load:
        """One to count on with."""
        other = Load()
        other._counts = dict(self._counts)
        return other

    def of_owner(self, owner: int) -> int:
        """One owner's."""
        return self._counts.get(owner, 0)

    def of_queue(self, queue: str) -> int:
        """One queue's."""
        return self._counts.get(queue, 0)

    def of_both(self, owner: int, queue: str) -> int:
        """One owner's in one queue."""
        return self._counts.get((owner, queue), 0)


@dataclass(frozen=True)
class Busy:
    """What runs (or has a node reserved) for one owner: CPUs, and CPU seconds since the start."""

    owner: int
    cpus: float
    spent: float = 0.0


def shares(past: Mapping[int, float], busy: Iterable[Busy]) -> dict[int, float]:
    """Each owner's share: what is left of the past (CPU seconds, decayed), and what is taken now."""
    found = dict(past)
    for one in busy:
        found[one.owner] = found.get(one.owner, 0.0) + max(0.0, one.spent) + one.cpus * FORECAST_S
    return found

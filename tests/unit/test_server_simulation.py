"""Whole clusters over generated loads, decided by the pure parts alone: nobody waits for ever, shares come out even,
ceilings hold. The clock is a number.
"""

from __future__ import annotations

import heapq
import random
from bisect import insort
from dataclasses import dataclass, field

import pytest

from kolejka.common.limits import Limits
from kolejka.server.scheduling.board import Board, Class
from kolejka.server.scheduling.choose import Choice, Hold, Waiting, choose
from kolejka.server.scheduling.fairness import Busy, Gate, Load, Quotas, cpus_of, decayed, shares
from kolejka.server.scheduling.match import Signature, can_ever_run, take
from kolejka.server.scheduling.reserve import expected_start

HALF_LIFE_S = 3600.0
RESERVE_AFTER_S = 60.0


@dataclass(frozen=True)
class Job:
    """A task. It runs ``takes_s``, at most its limit ``time_s``."""

    number: int
    owner: int
    signature: Signature
    put_at: float
    takes_s: float
    time_s: float
    rank: int = 0
    queue: str = "default"

    @property
    def name(self) -> Class:
        return Class(self.queue, self.signature.id, self.rank, self.owner)


def job(number: int, owner: int = 1, *, cpus: int = 1, at: float = 0.0, takes: float = 10.0, limit: float = 20.0,
        exclusive: bool = False, rank: int = 0, queue: str = "default") -> Job:  # fmt: skip
    return Job(number, owner, Signature((), exclusive, {"cpus": cpus}), at, takes, limit, rank, queue)


@dataclass
class World:
    """Nodes of ``cpus`` CPUs, and the books a server keeps. ``reserving`` is what the last test switches off."""

    jobs: list[Job]
    nodes: int = 2
    cpus: int = 8
    quotas: Quotas = field(default_factory=lambda: Quotas({"default": Gate()}))
    reserving: bool = True
    now: float = 0.0
    started: dict[int, float] = field(default_factory=dict)
    bounds: dict[int, float] = field(default_factory=dict)
    spent: dict[int, float] = field(default_factory=dict)
    runs: dict[int, dict[int, Job]] = field(default_factory=dict)
    most: dict[object, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._board = Board()
        self._waiting: dict[Class, list[int]] = {}
        self._by_number = {job.number: job for job in self.jobs}
        self._signatures = {job.signature.id: job.signature for job in self.jobs}
        self._usage: dict[int, tuple[float, float]] = {}
        self._kept: dict[int, int] = {}
        self.runs = {node: {} for node in range(self.nodes)}

    def run(self, until_s: float = float("inf")) -> None:
        """Let events happen in their order: tasks come, tasks end, nodes claim whenever something has changed."""
        events = [(job.put_at, 0, job.number, -1) for job in self.jobs]
        heapq.heapify(events)
        while events and events[0][0] <= until_s:
            self.now, kind, number, node = heapq.heappop(events)
            one = self._by_number[number]
            if kind == 0:
                insort(self._waiting.setdefault(one.name, []), number)
                self._board.add([(one.name, number)])
            else:
                self._end(one, node)
            if events and events[0][0] == self.now:
                continue
            for claiming in self.runs:
                for choice in self._claim(claiming):
                    given = self._by_number[choice.number]
                    heapq.heappush(events, (self.now + min(given.takes_s, given.time_s), 1, given.number, claiming))

    def _end(self, one: Job, node: int) -> None:
        del self.runs[node][one.number]
        took = (self.now - self.started[one.number]) * cpus_of(one.signature, float(self.cpus))
        self.spent[one.owner] = self.spent.get(one.owner, 0.0) + took
        amount, at = self._usage.get(one.owner, (0.0, self.now))
        self._usage[one.owner] = decayed(amount, self.now - at, HALF_LIFE_S) + took, self.now

    def _claim(self, node: int) -> tuple[Choice, ...]:
        here, total = self.runs[node], Limits.of(cpus=self.cpus)
        if any(one.signature.exclusive for one in here.values()):
            return ()
        free = total
        for one in here.values():
            free = take(free, one.signature)
        running = [one for some in self.runs.values() for one in some.values()]
        load = Load((one.owner, one.queue, 1) for one in running)
        past = {owner: decayed(amount, self.now - at, HALF_LIFE_S) for owner, (amount, at) in self._usage.items()}
        busy = [
            Busy(one.owner, cpus_of(one.signature, float(self.cpus)), cpus_of(one.signature, float(self.cpus))
                 * (self.now - self.started[one.number])) for one in running
        ]  # fmt: skip
        busy += [Busy(self._by_number[n].owner, cpus_of(self._by_number[n].signature, float(self.cpus)))
                 for n in self._kept.values()]  # fmt: skip
        lines = self._board.lines(
            "all", lambda name: can_ever_run(self._signatures[name.signature], frozenset(), total)
        )
        since, waiting = self._board.serial, Waiting(
            [line for (_, queue), line in lines.items() if self.quotas.gives(queue)], self._signatures.__getitem__,
            lambda name, first, count: [n for n in self._waiting[name] if n >= first][:count],
            lambda number: self._by_number[number].time_s,
        )  # fmt: skip

        def decide(hold: Hold | None):  # type: ignore[no-untyped-def]
            return choose(
                waiting, free=free, slots=64, idle=not here, cpus=float(self.cpus), shares=shares(past, busy),
                quotas=self.quotas, load=load, hold=hold,
            )  # fmt: skip

        hold = self._hold(node, self._kept.get(node), free)
        chosen = decide(hold)
        if hold is None and chosen.passed and self.reserving:
            heads = [n for name in chosen.passed for n in self._waiting[name] if n not in self._kept.values()]
            oldest = min(heads, default=None)
            if oldest is not None and self._by_number[oldest].put_at <= self.now - RESERVE_AFTER_S:
                hold = self._hold(node, oldest, free)
                if hold is not None:
                    self._kept[node] = oldest
                    self.bounds[oldest] = self.now + hold.until_s
                    chosen = decide(hold)
        for name, first in chosen.firsts.items():
            self._board.looked(name, first, since)
        for choice in chosen.choices:
            self._waiting[choice.name].remove(choice.number)
            self._kept = {at: number for at, number in self._kept.items() if number != choice.number}
            self.started[choice.number] = self.now
            one = here[choice.number] = self._by_number[choice.number]
            load.add(one.owner, one.queue)
        assert sum(one.signature.needs["cpus"] for one in here.values()) <= self.cpus
        for one in here.values():
            for key, count in ((one.queue, load.of_queue(one.queue)), (one.owner, load.of_owner(one.owner)),
                               ((one.owner, one.queue), load.of_both(one.owner, one.queue))):  # fmt: skip
                self.most[key] = max(self.most.get(key, 0), count)
        return chosen.choices

    def _hold(self, node: int, number: int | None, free: Limits) -> Hold | None:
        if number is None:
            return None
        one = self._by_number[number]
        ends = [(self.started[n] + other.time_s, other.signature) for n, other in self.runs[node].items()]
        start = expected_start(one.signature, free, ends)
        if start is None and number not in self._kept.values():
            return None
        return Hold(number, one.name, 0.0 if start is None else start - self.now)


def stream(owner: int, first: int, *, count: int, every_s: float, dice: random.Random, **words: float) -> list[Job]:
    """Small tasks of one owner, one after another."""
    return [
        job(first + n, owner, at=n * every_s, takes=dice.uniform(1, 20), limit=20.0, **words)  # type: ignore[arg-type]
        for n in range(count)
    ]


@pytest.mark.parametrize("seed", range(2))
def test_whoever_has_a_node_reserved_starts_by_the_time_that_was_expected(seed: int) -> None:
    dice = random.Random(seed)
    jobs = [one for owner in (1, 2) for one in stream(owner, owner * 10_000, count=300, every_s=1.0, dice=dice, cpus=1)]
    jobs += [job(50_000 + n, 3, cpus=dice.choice([6, 8]), at=dice.uniform(0, 200), takes=15.0) for n in range(8)]
    jobs += [job(60_000 + n, 4, at=dice.uniform(0, 200), exclusive=True, takes=15.0) for n in range(8)]
    world = World(jobs)
    world.run()
    assert set(world.started) == {one.number for one in jobs}, "everything ran"
    assert world.bounds, "reservations were needed"
    for number, bound in world.bounds.items():
        assert world.started[number] <= bound + 1e-6


@pytest.mark.parametrize("seed", range(2))
def test_every_task_starts_in_bounded_time_while_small_ones_keep_all_nodes_busy(seed: int) -> None:
    """16 big tasks on two nodes, each turn at most two time limits long, after the time to reserve."""
    dice = random.Random(seed)
    small = [
        one for owner in (1, 2) for one in stream(owner, owner * 10_000, count=700, every_s=0.6, dice=dice, cpus=1)
    ]
    big = [job(50_000 + n, 3, at=20.0, exclusive=bool(n % 2), cpus=8, takes=15.0) for n in range(16)]
    world = World(small + big)
    world.run()
    assert max(world.started[one.number] - one.put_at for one in big) <= RESERVE_AFTER_S + 16 / 2 * 2 * 20.0 + 300.0
    starving = World(small + big, reserving=False)
    starving.run(until_s=400.0)
    assert not [one for one in big if one.number in starving.started], "without reservations none of them ever starts"


@pytest.mark.parametrize("seed", range(2))
def test_owners_who_always_have_tasks_waiting_get_equal_shares_of_cpu_time(seed: int) -> None:
    dice = random.Random(seed)
    jobs = []
    for owner, cpus in ((1, 1), (2, 2), (3, 4)):
        jobs += [job(owner * 10_000 + n, owner, cpus=cpus, takes=dice.uniform(2, 20)) for n in range(2000 // cpus)]
    world = World(jobs)
    world.run(until_s=800.0)
    mean = sum(world.spent.values()) / 3
    assert all(abs(spent - mean) <= 0.15 * mean for spent in world.spent.values()), world.spent


def test_an_owner_who_comes_late_catches_up_by_what_is_remembered_only() -> None:
    jobs = [job(n, 1, takes=10.0) for n in range(2000)]
    jobs += [job(10_000 + n, 2, at=500.0, takes=10.0) for n in range(2000)]
    world = World(jobs)
    world.run(until_s=520.0)
    assert sum(number >= 10_000 for number in world.started) >= 16, "the one who used nothing goes first"


@pytest.mark.parametrize("seed", range(2))
def test_ceilings_are_never_exceeded(seed: int) -> None:
    dice = random.Random(seed)
    queues = {"default": Gate(), "exam": Gate(running=5), "fair": Gate(running_per_owner=2), "shut": Gate(gives=False)}
    jobs = [
        job(n, dice.randint(1, 4), cpus=dice.randint(1, 3), at=dice.uniform(0, 100), takes=dice.uniform(1, 20),
            queue=dice.choice(list(queues)), rank=dice.randint(-2, 2)) for n in range(250)
    ]  # fmt: skip
    world = World(jobs, quotas=Quotas(queues, owner=3))
    world.run()
    assert {one.number for one in jobs if one.number not in world.started} == {
        one.number for one in jobs if one.queue == "shut"
    }
    assert world.most["exam"] == 5
    assert max(world.most[owner] for owner in range(1, 5)) == 3
    assert max(count for key, count in world.most.items() if isinstance(key, tuple) and key[1] == "fair") == 2

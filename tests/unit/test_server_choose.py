"""Which waiting tasks a node gets, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kolejka.common.limits import Limits
from kolejka.common.task import Task
from kolejka.server.scheduling.board import Class, Entry
from kolejka.server.scheduling.choose import Chosen, Hold, Waiting, choose
from kolejka.server.scheduling.fairness import FORECAST_S, Gate, Load, Quotas
from kolejka.server.scheduling.match import Signature

OPEN = Quotas({"default": Gate()})


@dataclass
class Group:
    """``count`` tasks of one class, numbered from ``first``."""

    first: int
    owner: int = 1
    priority: int = 0
    queue: str = "default"
    exclusive: bool = False
    count: int = 1
    limits: dict[str, object] = field(default_factory=dict)

    @property
    def signature(self) -> Signature:
        limits = Limits.of(**self.limits)
        return Signature.of(
            Task(("x",), exclusive=self.exclusive, limits=limits.only(n for n in limits if n != "time"))
        )

    @property
    def name(self) -> Class:
        return Class(self.queue, self.signature.id, -self.priority, self.owner)


def group(first: int, owner: int = 1, priority: int = 0, *, count: int = 1, exclusive: bool = False,
          queue: str = "default", **limits: object) -> Group:  # fmt: skip
    return Group(first, owner, priority, queue, exclusive, count, limits)


def choosing(
    *groups: Group, slots: int = 16, idle: bool = True, shares: dict[int, float] = {}, hold: Hold | None = None,
    quotas: Quotas = OPEN, running: Sequence[tuple[int, str, int]] = (), hints: int = 0,
    **free: object,
) -> Chosen:  # fmt: skip
    """``hints`` = by how much the board knows too little of each class's oldest number."""
    numbers: dict[Class, list[int]] = {}
    lines: dict[tuple[int, str], list[Entry]] = {}
    signatures = {one.signature.id: one.signature for one in groups}
    time_s = {}
    for one in groups:
        numbers[one.name] = sorted(numbers.get(one.name, []) + list(range(one.first, one.first + one.count)))
        for number in numbers[one.name]:
            time_s[number] = float(one.limits["time"]) if "time" in one.limits else None  # type: ignore[arg-type]
    for name, waiting in numbers.items():
        lines.setdefault((name.owner, name.queue), []).append(Entry(name.rank, (waiting or [1])[0] - hints, name))
    return choose(
        Waiting([sorted(line) for line in lines.values()], signatures.__getitem__,
                lambda name, first, count: [n for n in numbers[name] if n >= first][:count], time_s.__getitem__),
        free=Limits.of(**free), slots=slots, idle=idle, cpus=8.0, shares=shares, quotas=quotas, load=Load(running),
        hold=hold,
    )  # fmt: skip


def chosen(*groups: Group, **words: object) -> list[int]:
    return [choice.number for choice in choosing(*groups, **words).choices]  # type: ignore[arg-type]


def test_nothing_waits_nothing_is_given() -> None:
    assert chosen() == []


def test_no_more_is_given_than_there_are_slots() -> None:
    assert chosen(group(1, count=50), slots=3) == [1, 2, 3]
    assert chosen(group(1, count=50), slots=0) == []


def test_an_owners_priority_goes_before_arrival_and_arrival_decides_among_equals() -> None:
    assert chosen(group(1), group(2, priority=5), group(3, priority=5, memory="1M"), slots=3) == [2, 3, 1]


def test_the_owner_with_the_smallest_share_goes_first_and_then_in_turns() -> None:
    assert chosen(group(1, owner=1, count=3), group(10, owner=2, count=3), slots=4) == [1, 10, 2, 11]
    ahead = {1: 2 * FORECAST_S}
    assert chosen(group(1, owner=1, count=3), group(10, owner=2, count=3), slots=4, shares=ahead) == [10, 11, 1, 12]


def test_turns_are_weighed_by_cpus() -> None:
    assert chosen(group(1, owner=1, cpus=2, count=3), group(10, owner=2, count=4), slots=5) == [1, 10, 11, 2, 12]


def test_turns_hold_over_all_classes_of_an_owner() -> None:
    given = chosen(group(1, owner=1), group(5, owner=1, count=2, memory="1M"), group(10, owner=2, count=4), slots=4)
    assert given == [1, 10, 5, 11]


def test_arrival_decides_between_classes_of_an_owner_task_by_task() -> None:
    assert chosen(group(1), group(100), group(50, memory="1M")) == [1, 50, 100]


def test_priority_decides_inside_an_owner_only() -> None:
    given = chosen(group(1, owner=1, priority=9, count=2), group(10, owner=2, count=2), shares={1: 9 * FORECAST_S})
    assert given == [10, 11, 1, 2]


def test_tasks_fit_the_free_amounts_together() -> None:
    assert chosen(group(1, cpus=3, count=2), group(10, cpus=1, count=5), cpus=4) == [1, 10]


def test_no_more_is_looked_at_than_could_be_taken_and_who_is_used_up_is_struck_out() -> None:
    asked: list[tuple[int, int]] = []
    big = group(1, cpus=64).signature

    def choosing_of(waits: int, *, slots: int = 16, hold: Hold | None = None, **limits: object) -> Chosen:
        one = group(7, count=waits, **limits)

        def oldest(_name: Class, first: int, count: int) -> list[int]:
            asked.append((first, count))
            return list(range(7, 7 + waits))[:count]

        line = [Entry(0, 5, one.name)]
        waiting = Waiting([line], {one.name.signature: one.signature, 9: big}.__getitem__, oldest, lambda _: 1.0)
        return choose(waiting, free=Limits.of(cpus=4, memory="10M"), slots=slots, idle=True, cpus=8.0, shares={},
                      quotas=OPEN, load=Load(), hold=hold)  # fmt: skip

    for limits, slots, count in (({}, 16, 16), ({"cpus": 2}, 16, 2), ({"cpus": 2}, 1, 1), ({"memory": "3M"}, 16, 3)):
        assert list(choosing_of(40, slots=slots, **limits).firsts.values()) == [7 + count]
        assert list(choosing_of(count, slots=slots, **limits).firsts.values()) == [7 + count], (
            "who knows what is behind"
        )
        assert list(choosing_of(1, slots=slots + 1, **{**limits, "cpus": 1}).firsts.values()) == [None]
        assert asked[-3:-1] == [(5, count)] * 2
    choosing_of(40, exclusive=True)
    assert asked[-1] == (5, 1)
    choosing_of(40, hold=Hold(1, Class("default", 9, 0, 9), 60.0), cpus=2)
    assert asked[-1] == (5, 16), "of those some may take too long"


def test_what_does_not_fit_delays_nobody_behind_it_and_is_told_of() -> None:
    big, small = group(1, priority=9, cpus=64, count=9), group(100, cpus=1)
    assert chosen(big, small, cpus=4) == [100]
    assert choosing(big, small, cpus=4).passed == (big.name,)
    assert choosing(small, group(101, cpus=64), cpus=4).passed == (), "its turn came after somebody was given"


def test_an_exclusive_task_is_given_alone_and_to_an_idle_node() -> None:
    assert chosen(group(1, exclusive=True, count=2), group(5, count=2)) == [1]
    assert chosen(group(1, exclusive=True), group(5, count=2), idle=False) == [5, 6]
    assert chosen(group(1), group(2, exclusive=True, cpus=1), group(3, cpus=2)) == [1, 3]


def test_a_class_whose_number_was_guessed_too_low_takes_its_real_place() -> None:
    assert chosen(group(1), group(100, memory="1M"), group(50, memory="2M"), hints=60) == [1, 50, 100]
    assert choosing(group(100), hints=60, slots=0).firsts == {}
    assert choosing(group(100, count=3), hints=60, slots=2).firsts == {group(100).name: 102}


def test_a_class_without_tasks_is_told_of() -> None:
    assert choosing(group(1, count=0)).firsts == {group(1).name: None}


def test_quotas_of_queue_and_owner_hold() -> None:
    many, other = group(1, count=9), group(20, owner=2, count=9)
    gates = {"default": Gate(running=5, running_per_owner=2)}
    assert chosen(many, other, quotas=Quotas(gates)) == [1, 20, 2, 21]
    assert chosen(many, other, quotas=Quotas(gates), running=[(1, "default", 2), (3, "default", 2)]) == [20]
    assert chosen(many, other, quotas=Quotas({"default": Gate()}, owner=1), running=[(1, "elsewhere", 1)]) == [20]
    assert choosing(many, quotas=Quotas(gates)).full
    assert not choosing(group(1), quotas=Quotas(gates)).full


def test_a_held_node_is_for_its_task_first() -> None:
    big, small = group(50, cpus=4, time=100), group(1, owner=2, cpus=1, count=9, time=10)
    hold = Hold(50, big.name, 30.0)
    assert chosen(small, big, hold=hold, cpus=4) == [50]
    assert chosen(small, big, hold=hold, cpus=6) == [50, 1, 2]


def test_a_held_node_takes_only_what_ends_before() -> None:
    big = group(50, cpus=4, time=100)
    hold = Hold(50, big.name, 30.0)
    short, long, endless = group(1, owner=2, time=30), group(2, owner=3, time=31), group(3, owner=4)
    assert chosen(big, short, long, endless, hold=hold, cpus=3) == [1]
    assert chosen(big, short, long, endless, cpus=3) == [1, 2, 3]


def test_an_exclusive_task_for_which_a_node_is_held_goes_before_all_others() -> None:
    alone = group(50, exclusive=True, time=100)
    hold = Hold(50, alone.name, 0.0)
    assert chosen(group(1, owner=2, time=1), alone, hold=hold) == [50]
    assert chosen(group(1, owner=2, time=1), alone, hold=hold, idle=False) == []

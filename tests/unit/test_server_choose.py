"""Which waiting tasks a node gets, as tables and as a small simulation."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kolejka.common.limits import Limits
from kolejka.common.task import Task
from kolejka.server.scheduling.choose import Group, choose
from kolejka.server.scheduling.match import Signature


def group(
    first: int, owner: int = 1, priority: int = 0, *, exclusive: bool = False, count: int = 1, **limits: object
) -> tuple[Group, list[int]]:
    """A group of ``count`` tasks numbered from ``first``, and their numbers."""
    signature = Signature.of(Task(("x",), exclusive=exclusive, limits=Limits.of(**limits)))
    return Group("default", signature, -priority, owner, first), list(range(first, first + count))


def chosen(
    *groups: tuple[Group, list[int]],
    slots: int = 16,
    idle: bool = True,
    running: dict[int, int] = {},
    **free: object,
) -> list[int]:
    numbers = dict(groups)

    def oldest(one: Group, count: int) -> Sequence[int]:
        return numbers[one][:count]

    choices = choose(
        [one for one, _ in groups], oldest, free=Limits.of(**free), slots=slots, idle=idle, running=running
    )
    return [choice.number for choice in choices]


@pytest.fixture(autouse=True)
def hashable_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Group, "__hash__", lambda self: hash((self.first, self.owner)))


def test_nothing_waits_nothing_is_given() -> None:
    assert chosen() == []


def test_no_more_is_given_than_there_are_slots() -> None:
    assert chosen(group(1, count=50), slots=3) == [1, 2, 3]
    assert chosen(group(1, count=50), slots=0) == []


def test_priority_goes_before_arrival_and_arrival_decides_among_equals() -> None:
    assert chosen(group(1), group(2, priority=5), group(3, priority=5, cpus=1), slots=3) == [2, 3, 1]


def test_the_owner_with_fewest_running_tasks_goes_first_and_then_in_turns() -> None:
    assert chosen(group(1, owner=1, count=3), group(10, owner=2, count=3), slots=4) == [1, 10, 2, 11]
    assert chosen(group(1, owner=1, count=3), group(10, owner=2, count=3), slots=4, running={1: 2}) == [10, 11, 1, 12]


def test_turns_hold_over_all_classes_of_an_owner() -> None:
    given = chosen(group(1, owner=1), group(5, owner=1, count=2, cpus=1), group(10, owner=2, count=4), slots=4)
    assert given == [1, 10, 5, 11]


def test_arrival_decides_between_classes_of_an_owner_task_by_task() -> None:
    early, late = group(1, count=2), group(50, cpus=1)
    early[1][1] = 100
    assert chosen(early, late) == [1, 50, 100]


def test_fairness_does_not_reach_over_priorities() -> None:
    assert chosen(group(1, owner=1, priority=1, count=2), group(10, owner=2, count=2), running={1: 9}) == [1, 2, 10, 11]


def test_tasks_fit_the_free_amounts_together() -> None:
    assert chosen(group(1, cpus=3, count=2), group(10, cpus=1, count=5), cpus=4) == [1, 10]


def test_what_does_not_fit_delays_nobody_behind_it() -> None:
    assert chosen(group(1, priority=9, cpus=64, count=9), group(100, cpus=1), cpus=4) == [100]


def test_an_exclusive_task_is_given_alone_and_to_an_idle_node() -> None:
    assert chosen(group(1, exclusive=True, count=2), group(5, count=2)) == [1]
    assert chosen(group(1, exclusive=True), group(5, count=2), idle=False) == [5, 6]
    assert chosen(group(1), group(2, exclusive=True, cpus=1), group(3, cpus=2)) == [1, 3]


def test_every_owner_gets_through_however_much_the_others_put() -> None:
    waiting = {1: list(range(1000)), 2: [2000, 2001], 3: [3000]}
    running: dict[int, int] = {}
    finished: list[int] = []
    rounds = 0
    while waiting[2] or waiting[3]:
        rounds += 1
        groups = [group(numbers[0], owner, count=len(numbers)) for owner, numbers in waiting.items() if numbers]
        for number in chosen(*groups, slots=1, running=running):
            owner = {2000: 2, 2001: 2, 3000: 3}.get(number, 1)
            waiting[owner].remove(number)
            running[owner] = running.get(owner, 0) + 1
            finished.append(number)
    assert rounds <= 6, finished

"""Which node fits which task, as tables."""

from __future__ import annotations

import pytest

from kolejka.common.limits import LIMITS, Limits
from kolejka.common.task import Task
from kolejka.server.scheduling.match import (
    MATCHED,
    Offer,
    Signature,
    can_ever_run,
    fits_now,
    lacking,
    missing_tags,
    take,
    wants,
)  # fmt: skip


def signature(requires: list[str] = [], exclusive: bool = False, **limits: object) -> Signature:
    return Signature.of(Task(("x",), requires=tuple(requires), exclusive=exclusive, limits=Limits.of(**limits)))


@pytest.mark.parametrize(
    ("asked", "total", "fits"),
    [
        ({}, {}, True),
        ({"cpus": 4}, {"cpus": 4}, True),
        ({"cpus": 5}, {"cpus": 4}, False),
        ({"memory": "1G"}, {"cpus": 4}, True),
        ({"memory": "1G"}, {"memory": 2**30 - 1}, False),
        ({"gpus": 1}, {"cpus": 4}, False),
        ({"gpus": 1}, {"gpus": 1}, True),
        ({"gpus": 0}, {}, True),
        ({"gpus": 1, "gpu_memory": "8G"}, {"gpus": 1}, False),
        ({"gpus": 1, "gpu_memory": "8G"}, {"gpus": 1, "gpu_memory": 2**33}, True),
        ({"network": True}, {"network": False}, False),
        ({"network": True}, {"network": True}, True),
        ({"network": True}, {}, True),
        ({"network": False}, {"network": False}, True),
        ({"image": "2G"}, {"image": 2**30}, False),
        ({"time": "10h"}, {"time": 1.0}, True),
        ({"output": "1G"}, {"output": 1}, True),
    ],
)
def test_a_node_can_ever_run_a_task_when_it_has_what_the_task_needs(
    asked: dict[str, object], total: dict[str, int], fits: bool
) -> None:
    assert can_ever_run(signature(**asked), frozenset(), Limits(total)) is fits


@pytest.mark.parametrize(
    ("requires", "tags", "fits"),
    [
        ([], [], True),
        (["gpu"], [], False),
        (["gpu"], ["gpu", "fast"], True),
        (["gpu", "fast"], ["gpu"], False),
        (["a", "a"], ["a"], True),
    ],
)
def test_a_node_has_all_tags_that_a_task_requires(requires: list[str], tags: list[str], fits: bool) -> None:
    asked = signature(requires)
    assert can_ever_run(asked, frozenset(tags), Limits()) is fits
    assert (not missing_tags(asked, tags)) is fits


def test_what_is_free_shrinks_by_what_is_split_and_by_nothing_else() -> None:
    free = Limits.of(cpus=4, memory="4G", time="1h", network=True)
    left = take(free, signature(cpus=3, memory="1G", time="1h", network=True, pids=5))
    assert left == Limits.of(cpus=1, memory="3G", time="1h", network=True)
    assert fits_now(signature(cpus=1), left)
    assert not fits_now(signature(cpus=2), left)
    assert lacking(signature(cpus=2, memory="8G"), left) == ("cpus", "memory")


def test_an_exclusive_task_is_wanted_by_an_idle_node_only() -> None:
    alone = signature(exclusive=True)
    assert wants(alone, Offer(idle=True))
    assert not wants(alone, Offer(idle=False))
    assert wants(signature(), Offer(idle=False))


def test_equal_wishes_have_equal_signatures_and_others_do_not() -> None:
    assert signature(["b", "a"], cpus=1, memory="1024M") == signature(["a", "b", "a"], memory="1G", cpus=1)
    assert signature(["b", "a"]).id == signature(["a", "b"]).id
    different = [
        signature(), signature(["a"]), signature(exclusive=True), signature(cpus=1), signature(cpus=2),
        signature(network=True),
    ]  # fmt: skip
    assert len({one.id for one in different}) == len(different)
    assert all(0 < one.id < 2**63 for one in different)
    assert signature(time="1s").id == signature(time="2s").id, "no node is chosen by time"
    assert signature(cpus=0 + 1, swap=0).id == signature(cpus=1).id, "whoever needs nothing asks nothing"


def test_a_signature_survives_its_words() -> None:
    for one in (signature(["ż", 'q"'], exclusive=True, cpus=2, network=True), signature()):
        again = Signature.parse(one.words)
        assert again == one
        assert again.id == one.id


def test_every_limit_that_a_node_divides_takes_part() -> None:
    assert {name for name, limit in LIMITS.items() if limit.share.value == "split"} <= set(MATCHED)

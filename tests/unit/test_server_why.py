"""Why a task waits: every reason in words."""

from __future__ import annotations

from kolejka.common.limits import Limits
from kolejka.common.task import Task
from kolejka.server.scheduling.match import Offer, Signature
from kolejka.server.scheduling.why import Machine, Stand, reasons


def machine(
    name: str = "anvil", *, state: str = "active", tags: list[str] = [], idle: bool = True, free: dict[str, int] = {},
    kept_for: str | None = None, queues: list[str] = [], full: bool = False, remark: str = "", **total: object,
) -> Machine:  # fmt: skip
    amounts = Limits.of(**{"cpus": 4, "memory": "8G", **total})
    offer = Offer(frozenset(tags), amounts, amounts.replace(**free), idle)
    return Machine(name, state, offer, kept_for, remark, queues, full)


def why(
    *machines: Machine, requires: list[str] = [], exclusive: bool = False, stand: dict[str, object] = {},
    **limits: object,
) -> str:  # fmt: skip
    task = Task(("x",), requires=tuple(requires), exclusive=exclusive, limits=Limits.of(**limits))
    return "; ".join(reasons(Signature.of(task), machines, Stand(**{"task_id": "me", **stand})))  # type: ignore[arg-type]


def test_no_node_at_all() -> None:
    assert why() == "no node has ever connected; start a foreman"


def test_no_node_takes_tasks_now() -> None:
    said = why(machine("a", state="silent"), machine("b", state="draining"))
    assert said == "no node takes tasks now: a is silent, b is draining"


def test_no_node_has_the_tag() -> None:
    assert why(machine(tags=["x"]), requires=["gpu"]) == "no active node has the tag 'gpu'"


def test_those_that_could_run_it_take_no_tasks() -> None:
    said = why(machine(tags=["gpu"], state="silent"), machine("b"), requires=["gpu"])
    assert said == "the nodes that could run it take no tasks now: anvil is silent"


def test_no_node_has_all_the_tags_at_once() -> None:
    said = why(machine("a", tags=["x"]), machine("b", tags=["y"]), requires=["x", "y"])
    assert said == "no single node has all the tags x, y"


def test_too_big_for_any_node_names_limit_and_most() -> None:
    said = why(machine(), machine("b", memory="16G"), memory="64G", cpus=2)
    assert said == "memory of 64G is more than any node with its tags has (the most is 16G)"
    assert why(machine(), gpus=1) == "gpus of 1 is more than any node with its tags has (the most is 0)"


def test_a_network_that_no_node_allows() -> None:
    assert why(machine(network=False), network=True) == "network is asked for, and no node with its tags allows it"


def test_each_amount_is_somewhere_but_not_on_one_node() -> None:
    said = why(machine("a", cpus=64), machine("b", memory="64G"), cpus=64, memory="64G")
    assert said == "no single node has everything it asks for at once"


def test_fitting_nodes_are_busy_and_others_go_first() -> None:
    said = why(machine("a", free={"cpus": 0}), cpus=1, stand={"ahead": 3})
    assert said == "3 tasks go before it in the queue 'default'; the nodes that fit it are busy: a"
    assert why(machine("a"), stand={"ahead": 1}) == "1 task goes before it in the queue 'default'"


def test_an_exclusive_task_waits_for_an_idle_node() -> None:
    assert why(machine("a", idle=False), exclusive=True) == "it must be alone on its node, and a is not idle"


def test_about_to_be_taken() -> None:
    assert why(machine()) == "a node that fits it is about to take it"


def test_a_quarantined_node_says_why() -> None:
    said = why(machine("a", state="quarantined", remark="the limit memory does not hold"))
    assert said == "no node takes tasks now: a is quarantined (the limit memory does not hold)"


def test_no_node_takes_tasks_from_the_queue() -> None:
    elsewhere = machine("a", queues=["exam", "night"])
    assert why(elsewhere) == "no active node takes tasks from the queue 'default'"
    silent = machine("b", state="silent")
    assert why(elsewhere, silent) == "no active node takes tasks from the queue 'default': b is silent"
    assert why(elsewhere, stand={"queue": "night"}) == "a node that fits it is about to take it"
    tagged = machine("c", queues=["exam"], tags=["gpu"])
    said = why(machine(), tagged, requires=["gpu"])
    assert said == "the nodes that could run it take no tasks from the queue 'default': c"


def test_a_node_that_runs_as_many_tasks_as_it_may_is_busy_whatever_else_is_free() -> None:
    assert why(machine("a", full=True)) == "the nodes that fit it are busy: a"


def test_the_queue_is_paused() -> None:
    assert why(machine(), stand={"gives": False}) == "the queue 'default' is paused; an admin resumes it"


def test_the_quota_that_is_reached() -> None:
    assert why(machine(), stand={"quota": "enough"}) == "enough"


def test_owners_that_used_less_go_first() -> None:
    said = why(machine(), stand={"owners": 2, "ahead": 1})
    assert said == "1 task goes before it in the queue 'default'; 2 owners have used less and go first"


def test_a_node_is_reserved_for_it_or_for_another() -> None:
    mine = machine(kept_for="me", idle=False)
    assert why(mine, exclusive=True) == "the node anvil is reserved for it and waits until there is room"
    others = why(machine(kept_for="big"), machine("b", free={"cpus": 0}), cpus=1)
    assert others == (
        "nodes are reserved for tasks that waited longer: anvil for the task big; the nodes that fit it are busy: b"
    )

"""What a queue allows, as tables."""

from __future__ import annotations

import pytest

from kolejka.common.errors import Conflict, InputError, NotAllowed
from kolejka.common.limits import Limits
from kolejka.common.task import Task
from kolejka.server.scheduling.queues import COLUMNS, Queue, admit, shape


def queue(**policy: object) -> Queue:
    return Queue.parse("exam", policy)


def task(**words: object) -> Task:
    return Task.parse({"args": ["x"], **words})


@pytest.mark.parametrize(
    ("policy", "words", "error", "field"),
    [
        ({"members": ["ola"]}, {}, NotAllowed, "queue"),
        ({"state": "draining"}, {}, Conflict, "queue"),
        ({"images": ["ubuntu:*"]}, {}, NotAllowed, "image"),
        ({"images": ["ubuntu:*"]}, {"image": "debian:12"}, NotAllowed, "image"),
        ({"images": ["none"]}, {"image": "none"}, NotAllowed, "image"),
        ({"runtimes": ["docker"]}, {}, NotAllowed, "image"),
        ({"runtimes": ["docker"]}, {"image": "x", "requires": ["runtime:sandbox"]}, NotAllowed, "requires"),
    ],
)  # fmt: skip
def test_what_a_queue_does_not_take_is_refused_with_the_field(
    policy: dict[str, object], words: dict[str, object], error: type[InputError], field: str
) -> None:
    with pytest.raises(error) as caught:
        admit(queue(**policy), task(**words), user="ala", admin=False)
    assert type(caught.value) is error
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({}, {"image": "anything"}), ({"members": ["ala"]}, {}), ({"state": "paused"}, {}),
        ({"images": ["ubuntu:*", "none"]}, {}), ({"images": ["ubuntu:*"]}, {"image": "ubuntu:xenial"}),
        ({"runtimes": ["sandbox"]}, {}), ({"runtimes": ["docker"]}, {"image": "x", "requires": ["runtime:docker"]}),
    ],
)  # fmt: skip
def test_what_a_queue_takes(policy: dict[str, object], words: dict[str, object]) -> None:
    admit(queue(**policy), task(**words), user="ala", admin=False)


def test_an_admin_is_a_member_of_every_queue() -> None:
    admit(queue(members=["ola"]), task(), user="root", admin=True)


def test_limits_are_the_tasks_then_the_queues_then_the_servers_below_all_ceilings() -> None:
    shaped = shape(
        task(limits={"cpus": 8}), queue(defaults={"memory": "2G"}, ceilings={"cpus": 4, "time": "1min"}),
        defaults=Limits.of(memory="1G", time="1h", pids=10), ceilings=Limits.of(memory="1536M"),
    )  # fmt: skip
    assert shaped.limits == Limits.of(cpus=4, memory="1536M", time="1min", pids=10)


def test_the_only_runtime_becomes_a_tag_that_a_node_must_have() -> None:
    assert shape(task(), queue(runtimes=["sandbox"]), defaults=Limits(), ceilings=Limits()).requires == (
        "runtime:sandbox",
    )
    assert shape(task(), queue(runtimes=["sandbox", "docker"]), defaults=Limits(), ceilings=Limits()).requires == ()


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ({"state": "shut"}, "state"), ({"running": -1}, "running"), ({"running": "8"}, "running"),
        ({"defaults": {"memory": "1MM"}}, "defaults.memory"), ({"ceilings": {"speed": 1}}, "ceilings.speed"),
        ({"runtimes": ["podman"]}, "runtimes[0]"), ({"members": ["a", "a"]}, "members"), ({"colour": 1}, "colour"),
        ({"retention_s": -1}, "retention_s"), ({"images": [""]}, "images[0]"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_with_its_field(policy: dict[str, object], field: str) -> None:
    with pytest.raises(InputError) as caught:
        queue(**policy)
    assert caught.value.field == field


@pytest.mark.parametrize("name", ["", "a/b", "-x", "x" * 65])
def test_a_name_that_no_task_could_say_is_refused(name: str) -> None:
    with pytest.raises(InputError) as caught:
        Queue.parse(name, {})
    assert caught.value.field == "name"


def test_a_queue_survives_its_row_and_its_json() -> None:
    full = queue(
        state="paused", members=["ala"], images=["a*"], runtimes=["docker"], defaults={"memory": "1M"},
        ceilings={"time": 3}, running=2, running_per_owner=1, retention_s=60.5,
    )  # fmt: skip
    assert Queue.from_row(["exam", *full.to_row()]) == full
    assert Queue.parse("exam", {key: value for key, value in full.to_json().items() if key != "name"}) == full
    assert set(full.to_json()) == {"name", *COLUMNS}
    assert full.changed({"running": None}).running is None

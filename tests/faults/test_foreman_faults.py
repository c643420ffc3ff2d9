"""A foreman that is killed, frozen, or alone: every task still ends with exactly one result, and nothing is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kolejka.common.result import Outcome, Result
from tests.neighbours.cluster import Cluster
from tests.neighbours.processes import Program
from tests.support import wait_until

pytestmark = pytest.mark.needs("root", "cgroups", "bwrap")


HEARTBEAT_S = 6
"""long enough for a restart on a busy machine, short enough to wait for a lease to run out"""


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="kolejka-test-"))
    folder.chmod(0o711)
    cluster = Cluster(folder, {"KOLEJKA_SERVER_HEARTBEAT": f"{HEARTBEAT_S}s", "KOLEJKA_LOG_FORMAT": "json"})
    cluster.start()
    yield cluster
    for program in cluster.programs.values():
        if program.alive:
            program.process.send_signal(signal.SIGCONT)
    cluster.stop()
    shutil.rmtree(folder)


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    """The cluster, whole before and after; whatever the test did, nothing is left on the node."""
    yield shared
    shared.check_alive()
    shared.wait_empty()
    wait_until(lambda: not entries(shared, "running") and not entries(shared, "spool"))
    shared.check_quiet()


@pytest.fixture
def other_node(cluster: Cluster) -> Iterator[Program]:
    """Another foreman on this machine, with folders of its own, for one test."""
    more = {
        "KOLEJKA_FOREMAN_NAME": "other",
        "KOLEJKA_FOREMAN_DATA": str(cluster.folder / "foreman-2"),
        "KOLEJKA_WORKER_DATA": str(cluster.folder / "worker-2"),
        "KOLEJKA_CLIENT_TOKEN_FILE": str(cluster.folder / "node.token"),
        "KOLEJKA_WORKER_FIRST_UID": "2100000",
    }
    program = cluster._start("foreman-2", ["kolejka-foreman"], more)
    wait_until(lambda: any(node["name"] == "other" for node in cluster.admin.nodes()))
    yield program
    for one in (program, cluster.programs["foreman"]):
        one.process.send_signal(signal.SIGCONT)
    cluster.wait_empty()
    program.stop()
    del cluster.programs["foreman-2"]


def put(cluster: Cluster, *args: str, **limits: Any) -> str:
    few = {"cpus": 1, "memory": "64M", "pids": 32, "time": "10min", "workspace": "16M", "storage": "16M"}
    spec = {"args": list(args), "stdout": "out", "limits": {**few, **limits}}
    return str(cluster.admin.put_spec(spec)["id"])


def attempts(cluster: Cluster, task: str) -> list[dict[str, Any]]:
    return list(cluster.admin.task(task)["attempts"])


def result(cluster: Cluster, task: str) -> Result:
    found = cluster.admin.wait(task, timeout_s=90)
    assert found is not None
    return found


def entries(cluster: Cluster, name: str) -> list[str]:
    return sorted(entry.name for entry in (cluster.folder / "foreman" / name).iterdir())


def kill(program: Program) -> None:
    program.process.kill()
    program.process.wait()


def test_a_foreman_killed_in_the_middle_of_tasks_loses_none(cluster: Cluster) -> None:
    tasks = [put(cluster, "sh", "-c", "sleep 0.3; echo done") for _ in range(12)]
    wait_until(cluster.sessions)
    kill(cluster.programs["foreman"])
    assert entries(cluster, "running")
    cluster.start_foreman()
    for task in tasks:
        assert result(cluster, task).outcome is Outcome.OK
        assert [one["state"] for one in attempts(cluster, task)].count("done") == 1


def test_a_foreman_killed_again_and_again_with_dozens_in_flight_loses_none(cluster: Cluster) -> None:
    tasks = [put(cluster, "sh", "-c", "echo done") for _ in range(60)]
    for round_ in range(3):
        wait_until(lambda done=10 * round_: sum(cluster.admin.task(one)["state"] == "done" for one in tasks) > done)  # type: ignore[misc]
        kill(cluster.programs["foreman"])
        cluster.start_foreman()
    for task in tasks:
        assert result(cluster, task).outcome is Outcome.OK
        assert [one["state"] for one in attempts(cluster, task)].count("done") == 1


def test_a_result_that_finished_while_the_server_was_down_is_delivered_afterwards(cluster: Cluster) -> None:
    task = put(cluster, "sh", "-c", "sleep 1; echo done")
    wait_until(cluster.sessions)
    lease = cluster.admin.task(task)["lease"]
    kill(cluster.programs["server"])
    wait_until(lambda: entries(cluster, "spool") == [str(lease)])
    assert not cluster.sessions()
    cluster.start_server()
    assert result(cluster, task).outcome is Outcome.OK
    assert [one["lease"] for one in attempts(cluster, task)] == [lease]


def test_a_spooled_result_survives_the_foreman_as_well(cluster: Cluster) -> None:
    task = put(cluster, "sh", "-c", "sleep 1; echo done")
    wait_until(cluster.sessions)
    lease = cluster.admin.task(task)["lease"]
    kill(cluster.programs["server"])
    wait_until(lambda: entries(cluster, "spool") == [str(lease)])
    kill(cluster.programs["foreman"])
    cluster.start_server()
    cluster.start_foreman()
    assert result(cluster, task).outcome is Outcome.OK
    assert [(one["lease"], one["state"]) for one in attempts(cluster, task)] == [(lease, "done")]


def is_lost(cluster: Cluster, task: str, lease: int) -> bool:
    return {one["lease"]: one["state"] for one in attempts(cluster, task)}[lease] == "lost"


def test_a_foreman_frozen_past_its_lease_throws_its_result_away(cluster: Cluster, other_node: Program) -> None:
    task = put(cluster, "sh", "-c", "sleep 1; echo done")
    wait_until(cluster.sessions)
    shown = cluster.admin.task(task)
    first, name = shown["lease"], shown["node"]
    frozen = other_node if name == "other" else cluster.programs["foreman"]
    frozen.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: is_lost(cluster, task, first), about="the lease runs out")
    # Requests of the frozen node that still wait at the server may take it once more; in the end the other one has it.
    wait_until(lambda: cluster.admin.task(task)["node"] not in {None, name})
    frozen.process.send_signal(signal.SIGCONT)
    node = result(cluster, task).node
    assert node is not None
    assert node["name"] != name
    done = [one for one in attempts(cluster, task) if one["state"] == "done"]
    assert [one["node"] for one in done] == [node["name"]]

    def log() -> str:
        return frozen.log.read_text(encoding="utf-8")

    wait_until(lambda: f'"lease": {first}' in log() and "thrown away" in log())
    delivered = [json.loads(line) for line in log().splitlines() if "result delivered" in line]
    assert first not in {line["lease"] for line in delivered}


def test_a_frozen_foremans_payload_is_killed_when_it_learns_that_the_lease_is_lost(cluster: Cluster) -> None:
    task = put(cluster, "sleep", "600", time="1h")
    wait_until(cluster.sessions)
    first = cluster.admin.task(task)["lease"]
    frozen = cluster.programs["foreman"]
    frozen.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: is_lost(cluster, task, first))
    cluster.admin.cancel(task)
    assert cluster.sessions()
    frozen.process.send_signal(signal.SIGCONT)
    wait_until(lambda: not cluster.sessions())
    wait_until(lambda: cluster.admin.task(task)["state"] == "done")
    assert result(cluster, task).outcome is Outcome.CANCELLED


def test_a_killed_worker_process_gives_an_error_and_is_replaced(cluster: Cluster) -> None:
    task = put(cluster, "sleep", "600")
    wait_until(cluster.sessions)
    foreman = cluster.programs["foreman"].process.pid
    workers = [
        int(child)
        for thread in Path(f"/proc/{foreman}/task").iterdir()
        for child in (thread / "children").read_text(encoding="ascii").split()
        if b"kolejka.worker.process" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    assert workers
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    assert result(cluster, task).outcome is Outcome.ERROR
    again = put(cluster, "true")
    assert result(cluster, again).outcome is Outcome.OK


def test_the_log_of_a_tasks_life_names_task_and_lease_in_every_line(cluster: Cluster) -> None:
    task = put(cluster, "true")
    result(cluster, task)

    def told() -> list[dict[str, Any]]:
        text = (cluster.folder / "foreman.log").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("task") == task and line["logger"].startswith("kolejka.foreman")]

    wait_until(lambda: any(line["message"] == "result delivered" for line in told()))
    assert [line["message"] for line in told()] == ["attempt started", "payload ended", "result delivered"]
    assert all(line["lease"] == cluster.admin.task(task)["lease"] for line in told())

"""A foreman as a process, with the real server, observer, worker pool and sandbox."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kolejka.common.result import Outcome, Result
from tests.neighbours.cluster import Cluster
from tests.support import wait_until

pytestmark = pytest.mark.needs("root", "cgroups", "bwrap")


@pytest.fixture(scope="module")
def make() -> Iterator[Callable[..., Cluster]]:
    made: list[Cluster] = []

    def build(**settings: str) -> Cluster:
        folder = Path(tempfile.mkdtemp(prefix="kolejka-test-"))
        folder.chmod(0o711)
        made.append(Cluster(folder, settings))
        return made[-1]

    yield build
    for cluster in made:
        cluster.stop()
        shutil.rmtree(cluster.folder)


@pytest.fixture(scope="module")
def shared(make: Callable[..., Cluster]) -> Cluster:
    cluster = make(KOLEJKA_SERVER_HEARTBEAT="6s", KOLEJKA_FOREMAN_TAGS="lab")
    cluster.start()
    return cluster


@pytest.fixture
def node(shared: Cluster) -> Iterator[Cluster]:
    yield shared
    shared.check_alive()
    shared.check_quiet()
    shared.wait_empty()
    assert nothing_left(shared)


def nothing_left(cluster: Cluster) -> bool:
    folders = [cluster.folder / "foreman" / name for name in ("running", "spool")]
    return wait_until(lambda: not [entry for folder in folders for entry in folder.iterdir()])


def put(cluster: Cluster, *args: str, **words: Any) -> str:
    limits = {"cpus": 1, "memory": "64M", "pids": 32, "time": "60s", "workspace": "16M", "storage": "16M"}
    spec = {"args": list(args), "stdout": "out", **words, "limits": {**limits, **words.get("limits", {})}}
    return str(cluster.admin.put_spec(spec)["id"])


def state(cluster: Cluster, task: str) -> str:
    return str(cluster.admin.task(task)["state"])


def result(cluster: Cluster, task: str) -> Result:
    found = cluster.admin.wait(task, timeout_s=60)
    assert found is not None
    return found


def test_tasks_of_mixed_fate_all_end_as_they_should(node: Cluster) -> None:
    wanted = {
        put(node, "true"): (Outcome.OK, None, 0),
        put(node, "sh", "-c", "exit 3"): (Outcome.FAILED, None, 3),
        put(node, "sh", "-c", "kill -SEGV $$"): (Outcome.SIGNALED, None, 139),
        put(node, "sleep", "60", limits={"time": "0.3s"}): (Outcome.LIMIT, "time", 137),
        put(node, "no-such-program"): (Outcome.ERROR, None, None),
        put(node, "sh", "-c", "cat /dev/zero | head -c 200000000 | tail"): (Outcome.LIMIT, "memory", 137),
    }
    for task, (outcome, limit, _) in wanted.items():
        found = result(node, task)
        if outcome is Outcome.ERROR:
            assert found.outcome in {Outcome.ERROR, Outcome.FAILED}
            continue
        assert (found.outcome, found.limit) == (outcome, limit), found.message
        assert found.node is not None
        assert found.node["name"] == "tests"
        assert "lab" in found.node["tags"]
        assert found.stats.time is not None


def test_more_tasks_than_slots_each_end_once_on_cpus_of_their_own(node: Cluster) -> None:
    tasks = [put(node, "sh", "-c", "grep Cpus_allowed_list /proc/self/status") for _ in range(25)]
    for task in tasks:
        assert result(node, task).outcome is Outcome.OK
        attempts = node.admin.task(task)["attempts"]
        assert [attempt["state"] for attempt in attempts if attempt["state"] == "done"] == ["done"]


def test_a_node_says_what_it_is(node: Cluster) -> None:
    found = next(one for one in node.admin.nodes() if one["name"] == "tests")
    assert {"lab", f"cpus:{len(os.sched_getaffinity(0))}", "runtime:sandbox"} <= set(found["tags"])
    assert found["state"] == "active"
    assert found["total"]["memory"] > 1 << 28


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_an_exclusive_task_never_runs_beside_another(node: Cluster) -> None:
    long = put(node, "sleep", "1")
    wait_until(lambda: state(node, long) == "running")
    alone = put(node, "sleep", "0.2", exclusive=True)
    others = [put(node, "true") for _ in range(4)]
    for task in (long, alone, *others):
        assert result(node, task).outcome is Outcome.OK
    shown = node.admin.task(alone)
    for other in (long, *others):
        seen = node.admin.task(other)
        assert seen["finished_at"] <= shown["started_at"] or seen["started_at"] >= shown["finished_at"]


def test_a_cancel_kills_a_running_task(node: Cluster) -> None:
    task = put(node, "sleep", "600", limits={"time": "1h"})
    wait_until(lambda: node.sessions())
    node.admin.cancel(task)
    # The session has an hour and the heartbeat two seconds; the cancel travels by the long poll.
    assert result(node, task).outcome is Outcome.CANCELLED
    assert wait_until(lambda: not node.sessions())


def test_inputs_travel_through_the_nodes_cache_which_no_payload_can_write(node: Cluster, tmp_path: Path) -> None:
    source = tmp_path / "data.bin"
    source.write_bytes(os.urandom(300_000))
    reference = node.admin.put_blob(source)
    attack = "(echo evil >> in.bin) 2> /dev/null; (rm -f in.bin; echo evil > in.bin) 2> /dev/null"
    command = f"cp in.bin copy.bin; {attack}; exit 0"
    for _ in range(2):
        task = put(
            node, "sh", "-c", command, files={"in.bin": {"reference": reference}}, collect=[{"glob": "copy.bin"}]
        )
        found = result(node, task)
        assert found.manifest["copy.bin"].sha256 == reference, found
    cached = node.folder / "foreman/blobs" / reference
    assert cached.read_bytes() == source.read_bytes()


def test_a_second_foreman_with_the_same_folder_is_refused_in_one_line(node: Cluster) -> None:
    token = node.folder / "node.token"
    answer = node.run("kolejka-foreman", env={"KOLEJKA_CLIENT_TOKEN_FILE": str(token)})
    assert answer.returncode == 125
    assert answer.stderr.startswith("kolejka-foreman: foreman.data: another foreman (process ")
    assert answer.stderr.count("\n") == 1


def test_a_refused_token_ends_the_foreman_in_one_line(node: Cluster, tmp_path: Path) -> None:
    environment = {"KOLEJKA_FOREMAN_DATA": str(tmp_path / "data"), "KOLEJKA_WORKER_DATA": str(tmp_path / "worker")}
    answer = node.run("kolejka-foreman", env={**environment, "KOLEJKA_CLIENT_TOKEN": "klj_" + "x" * 43})
    assert answer.returncode == 2
    assert "kolejka-foreman: " in answer.stderr.splitlines()[-1]
    assert "Traceback" not in answer.stderr


def test_doctor_finds_the_running_node_in_order(node: Cluster) -> None:
    token = node.folder / "node.token"
    answer = node.run("kolejka-foreman", "doctor", "--json", env={"KOLEJKA_CLIENT_TOKEN_FILE": str(token)})
    assert answer.returncode == 0, answer.stdout
    assert "in use by a foreman" in answer.stdout


def foreman_process(cluster: Cluster) -> subprocess.Popen[bytes]:
    return cluster.programs["foreman"].process


def test_sigterm_drains_and_a_restart_goes_on(make: Callable[..., Cluster]) -> None:
    cluster = make(KOLEJKA_FOREMAN_SLOTS="1")
    cluster.start()
    running = put(cluster, "sh", "-c", "sleep 1; echo done")
    wait_until(lambda: cluster.sessions())
    waiting = put(cluster, "true")
    foreman_process(cluster).send_signal(signal.SIGTERM)
    assert wait_until(lambda: foreman_process(cluster).poll() is not None) is True
    assert foreman_process(cluster).returncode == 0
    assert state(cluster, running) == "done"
    assert result(cluster, running).outcome is Outcome.OK
    assert state(cluster, waiting) == "waiting"
    assert nothing_left(cluster)
    cluster.start_foreman()
    assert result(cluster, waiting).outcome is Outcome.OK
    cluster.check_quiet()


def test_an_interrupt_that_the_terminal_sends_to_all_drains_and_harms_no_payload(make: Callable[..., Cluster]) -> None:
    cluster = make(KOLEJKA_FOREMAN_SLOTS="1")
    cluster.start()
    running = put(cluster, "sh", "-c", "sleep 1; echo done")
    wait_until(lambda: cluster.sessions())
    os.killpg(foreman_process(cluster).pid, signal.SIGINT)
    wait_until(lambda: foreman_process(cluster).poll() is not None)
    assert foreman_process(cluster).returncode == 0
    assert result(cluster, running).outcome is Outcome.OK
    assert nothing_left(cluster)


def test_a_second_sigterm_stops_and_gives_the_task_back(make: Callable[..., Cluster]) -> None:
    cluster = make()
    cluster.start()
    task = put(cluster, "sleep", "600", limits={"time": "1h"})
    wait_until(lambda: cluster.sessions())
    process = foreman_process(cluster)
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: next(one for one in cluster.admin.nodes())["state"] == "draining")
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: process.poll() is not None)
    assert process.returncode == 0, cluster.programs["foreman"].tail(60)
    assert state(cluster, task) == "waiting"
    assert cluster.sessions() == []
    assert nothing_left(cluster)
    cluster.admin.cancel(task)
    cluster.check_quiet()


def test_systemd_is_told_that_the_node_is_ready_and_how_it_goes(make: Callable[..., Cluster]) -> None:
    import socket

    cluster = make()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        address = cluster.folder / "notify"
        door.bind(str(address))
        door.settimeout(60)
        cluster.environment |= {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "200000"}
        del cluster.environment["KOLEJKA_WORKER_OBSERVER"]
        cluster.environment["KOLEJKA_WORKER_OBSERVER"] = ""
        cluster.start_server()
        cluster.start_foreman()
        said = ""
        while not all(word in said for word in ("READY=1", "WATCHDOG=1", "STATUS=active: 0 running")):
            said += door.recv(4096).decode() + "\n"
        foreman_process(cluster).send_signal(signal.SIGTERM)
        while "STOPPING=1" not in said:
            said += door.recv(4096).decode() + "\n"
    wait_until(lambda: foreman_process(cluster).poll() is not None)

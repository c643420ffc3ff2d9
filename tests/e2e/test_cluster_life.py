"""What a cluster does for its users, beside running the examples: big files, requirements, cancels, restarts."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kolejka.common.errors import Conflict
from kolejka.common.result import Outcome, Result
from tests.neighbours.cluster import PROGRAMS, Cluster
from tests.support import wait_until

pytestmark = pytest.mark.needs("root", "cgroups", "bwrap")


MEASURED = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


def put(cluster: Cluster, **words: Any) -> str:
    """Put a small task; its id."""
    return str(cluster.admin.put_spec({"args": ["true"], **words})["id"])


def state(cluster: Cluster, task: str) -> str:
    """The task's state now."""
    return str(cluster.admin.task(task)["state"])


def memory_peak(pid: int) -> int:
    """The most memory a living process ever had, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no memory")


def descendants(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(word) for word in task.read_text(encoding="ascii").split()]
    return found


def test_a_gibibyte_passes_in_constant_memory(cluster: Cluster, tmp_path: Path) -> None:
    size = 1 << 30
    folder = tmp_path / "task"
    folder.mkdir()
    with open(folder / "big", "wb") as sink:
        sink.write(os.urandom(1 << 20))
        sink.truncate(size)
    spec = {"args": ["wc", "-c", "big"], "files": ["big"], "stdout": "out", "limits": {"time": "120s", "memory": "64M"}}
    (folder / "kolejka_task.json").write_text(json.dumps(spec), encoding="utf-8")
    programs = [cluster.programs["server"].pid, cluster.programs["foreman"].pid]
    before = {pid: memory_peak(pid) for program in programs for pid in descendants(program)}
    # A process starts with the peak of the one that made it, so a small one stands between the tests and the client.
    client = subprocess.run(
        [sys.executable, "-c", MEASURED, PROGRAMS / "kolejka-client", "execute", folder, tmp_path / "result"],
        env=cluster.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert client.returncode == 0, client.stderr
    assert (tmp_path / "result/out").read_text(encoding="utf-8").split() == [str(size), "big"]
    assert int(client.stdout.splitlines()[-1]) * 1024 < 128 << 20
    grown = {pid: memory_peak(pid) - before[pid] for pid in before if Path(f"/proc/{pid}").exists()}
    assert max(grown.values()) < 128 << 20, grown


def test_the_same_bytes_are_kept_once(cluster: Cluster, tmp_path: Path) -> None:
    content = os.urandom(100_000)
    digest = hashlib.sha256(content).hexdigest()
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(content)
    run = cluster.run("kolejka-client", "blob", "put", tmp_path / "one", tmp_path / "two")
    assert run.stdout.count(digest) == 2
    assert len([path for path in (cluster.folder / "server").rglob(f"*{digest[4:]}*") if path.is_file()]) == 1
    assert cluster.run("kolejka-client", "blob", "get", digest, tmp_path / "three").returncode == 0
    assert (tmp_path / "three").read_bytes() == content


def test_a_task_waits_for_a_node_with_its_tags_and_why_says_so(cluster: Cluster) -> None:
    task = put(cluster, requires=["no-such-tag"])
    why = cluster.run("kolejka-client", "task", "why", task)
    assert "no-such-tag" in why.stdout
    assert state(cluster, task) == "waiting"
    assert cluster.run("kolejka-client", "task", "cancel", task).returncode == 0
    assert cluster.admin.wait(task, 30).outcome is Outcome.CANCELLED


def test_a_task_finds_the_node_by_an_automatic_tag(cluster: Cluster) -> None:
    tags = cluster.admin.nodes()[0]["tags"]
    hostname = next(tag for tag in tags if tag.startswith("hostname:"))
    assert cluster.admin.wait(put(cluster, requires=[hostname]), 60).outcome is Outcome.OK


def test_a_running_task_is_cancelled_at_once(cluster: Cluster) -> None:
    task = put(cluster, args=["sleep", "300"], limits={"time": "10min"})
    wait_until(lambda: state(cluster, task) == "running")
    assert cluster.run("kolejka-client", "task", "cancel", task).returncode == 0
    assert cluster.admin.wait(task, 30).outcome is Outcome.CANCELLED
    cluster.wait_empty()


def test_a_done_task_can_be_deleted_and_a_running_one_cannot(cluster: Cluster) -> None:
    task = put(cluster, args=["sleep", "300"], limits={"time": "10min"})
    wait_until(lambda: state(cluster, task) == "running")
    with pytest.raises(Conflict, match="cancel"):
        cluster.admin.delete(task)
    cluster.admin.cancel(task)
    cluster.admin.wait(task, 30)
    cluster.admin.delete(task)
    assert cluster.run("kolejka-client", "task", "show", task).returncode == 2


def test_an_exclusive_task_runs_alone(cluster: Cluster, tmp_path: Path) -> None:
    others = [put(cluster, args=["sleep", "1"], limits={"pids": 8, "memory": "32M"}) for _ in range(3)]
    alone = put(cluster, args=["sleep", "1"], exclusive=True, priority=5)
    spans = {}
    for task in (*others, alone):
        assert cluster.admin.wait(task, 60).outcome is Outcome.OK
        entry = cluster.admin.task(task)
        spans[task] = (entry["started_at"], entry["finished_at"])
    start, end = spans.pop(alone)
    assert not [task for task, (first, last) in spans.items() if first < end and start < last]


def test_tasks_share_the_node_without_waiting_for_each_other(cluster: Cluster) -> None:
    slow = put(cluster, args=["sleep", "300"], limits={"time": "10min", "memory": "32M"})
    wait_until(lambda: state(cluster, slow) == "running")
    quick = put(cluster, limits={"memory": "32M"})
    assert cluster.admin.wait(quick, 60).outcome is Outcome.OK
    assert state(cluster, slow) == "running"
    cluster.admin.cancel(slow)


def test_a_result_is_brought_once_it_is_there(cluster: Cluster, tmp_path: Path) -> None:
    task = put(cluster, args=["sh", "-c", "echo out; exit 7"], stdout="out")
    run = cluster.run("kolejka-client", "result", "get", "--wait", task, tmp_path / "result")
    assert run.returncode == 7
    assert Result.load(tmp_path / "result").outcome is Outcome.FAILED
    assert (tmp_path / "result/out").read_text(encoding="utf-8") == "out\n"


def test_the_listing_is_json_for_programs(cluster: Cluster) -> None:
    task = put(cluster, name="listed", labels={"suite": "e2e"})
    cluster.admin.wait(task, 60)
    listed = json.loads(cluster.run("kolejka-client", "task", "list", "--json", "--label", "suite=e2e").stdout)
    tasks = listed["tasks"] if isinstance(listed, dict) else listed
    assert [entry["id"] for entry in tasks] == [task]
    assert tasks[0]["state"] == "done"


def test_a_login_is_kept_and_used(cluster: Cluster, tmp_path: Path) -> None:
    token = cluster.admin.create_token("admin", role="admin")["token"]
    home = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / ".config"), "KOLEJKA_SERVER_DATA": str(tmp_path)}
    assert cluster.run("kolejka-client", "whoami", env=home).returncode == 2
    login = subprocess.run(
        [PROGRAMS / "kolejka-client", "login"], env={**cluster.environment, **home}, input=token + "\n", text=True,
        capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert login.returncode == 0, login.stderr
    kept = next(tmp_path.rglob("credentials.json"))
    assert kept.stat().st_mode & 0o777 == 0o600
    assert token not in login.stdout + login.stderr
    assert "admin" in cluster.run("kolejka-client", "whoami", env=home).stdout


def test_doctor_is_content_with_this_machine(cluster: Cluster, tmp_path: Path) -> None:
    apart = {"KOLEJKA_FOREMAN_DATA": str(tmp_path)}  # a second foreman on the same data is a fault indeed
    for program in ("kolejka-observer", "kolejka-worker", "kolejka-client", "kolejka-server", "kolejka-foreman"):
        run = cluster.run(program, "doctor", "--json", env=apart)
        checks = json.loads(run.stdout)
        missing = [check for check in checks if not check["ok"] and check.get("required", True)]
        assert run.returncode == (1 if missing else 0), f"{program}: {run.stdout}"
        assert not missing, program
        assert checks


def test_waiting_outlives_a_restart_of_the_server(make_cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    cluster = make_cluster()
    cluster.start()
    (tmp_path / "task").mkdir()
    (tmp_path / "task/kolejka_task.json").write_text('{"args": ["sleep", "3"]}', encoding="utf-8")
    done: list[subprocess.CompletedProcess[str]] = []
    waiter = threading.Thread(
        target=lambda: done.append(cluster.run("kolejka-client", "execute", tmp_path / "task", tmp_path / "result"))
    )
    waiter.start()
    wait_until(lambda: list(cluster.admin.tasks(state="running")))
    cluster.programs["server"].kill()
    cluster.start_server()
    waiter.join(90)
    assert not waiter.is_alive()
    assert done[0].returncode == 0, done[0].stderr
    assert Result.load(tmp_path / "result").outcome is Outcome.OK
    cluster.check_alive()
    assert set(cluster.stop().values()) == {0}


def test_a_foreman_that_is_asked_to_stop_finishes_what_runs(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster()
    cluster.start()
    task = put(cluster, args=["sleep", "2"])
    wait_until(cluster.sessions)
    assert cluster.programs["foreman"].stop(60) == 0
    assert cluster.admin.task(task)["outcome"] == "ok"
    later = put(cluster)
    assert state(cluster, later) == "waiting"
    cluster.start_foreman()
    assert cluster.admin.wait(later, 60).outcome is Outcome.OK
    assert set(cluster.stop().values()) == {0}


def test_a_task_that_is_claimed_while_the_foreman_stops_is_not_held(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster()
    cluster.start()
    task = put(cluster, args=["sleep", "2"])
    wait_until(lambda: state(cluster, task) == "running")  # the server's word: the foreman may not have heard it yet
    assert cluster.programs["foreman"].stop(60) == 0
    assert state(cluster, task) in {"waiting", "done"}

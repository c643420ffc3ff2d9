"""The client against the real server: everything that leaves the user's machine comes back as it was.

The node is played by the tests: it claims and answers through ``NodeClient``, as a foreman does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from kolejka.client import KolejkaClient, NodeClient
from kolejka.client.node import Attempt
from kolejka.common.errors import Conflict, InputError, KolejkaError, NotAllowed, NotFound
from kolejka.common.files import hash_file
from kolejka.common.limits import Limits
from kolejka.common.result import Outcome, Result, ResultFile
from kolejka.common.settings import ClientSettings
from tests.neighbours.cluster import PROGRAMS, Cluster
from tests.support import wait_until

TOTAL = Limits.of(cpus=2, memory="4G", swap="1G", pids=10000, storage="100G", workspace="100G")
BIG = 256 << 20


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="kolejka-test-") as folder:
        made = Cluster(Path(folder))
        made.start_server()
        try:
            yield made
            made.check_alive()
            made.check_quiet()
        finally:
            made.stop()


@pytest.fixture
def client(cluster: Cluster) -> KolejkaClient:
    return cluster.admin


class Node:
    """A node without a foreman: it claims and lets ``answer`` make each result's folder."""

    def __init__(self, cluster: Cluster, answer: Callable[[Attempt, Path], Result]) -> None:
        token = cluster.admin.create_token("admin", role="node", name="played by a test")["token"]
        self.client = NodeClient(ClientSettings(server=cluster.url, token=token, patience=30.0))
        self.answer = answer
        self.ended = threading.Event()
        self.errors: list[KolejkaError] = []
        self.thread = threading.Thread(target=self.work, daemon=True)

    def work(self) -> None:
        while not self.ended.is_set():
            try:
                claimed = self.client.claim("played", capacity=TOTAL, total=TOTAL, slots=2, wait_s=1.0, idle=True)
                for attempt in claimed.attempts:
                    with tempfile.TemporaryDirectory() as folder:
                        result = self.answer(attempt, Path(folder))
                        result.replace(id=attempt.task_id).save(folder)
                        self.client.upload_result(attempt.lease, folder)
            except KolejkaError as error:
                self.errors.append(error)
                self.ended.wait(0.05)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *about: object) -> None:
        self.ended.set()
        self.thread.join(60)
        self.client.close()


def says(files: dict[str, bytes] = {}, **words: Any) -> Callable[[Attempt, Path], Result]:
    """A node whose every task ends with these files."""

    def answer(attempt: Attempt, folder: Path) -> Result:
        return with_files(Result(**{"outcome": Outcome.OK, "result": 0, **words}), folder, files)

    return answer


def with_files(result: Result, folder: Path, files: dict[str, bytes]) -> Result:
    manifest = {}
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        sha, size = hash_file(folder / name)
        manifest[name] = ResultFile(size, "0755" if data.startswith(b"#!") else "0644", sha)
    return result.replace(manifest=manifest)


def make_task(folder: Path, local: dict[str, bytes] = {}, **words: Any) -> Path:
    folder.mkdir(parents=True)
    for name, data in local.items():
        (folder / name).write_bytes(data)
    spec = {"args": ["x"], "files": dict.fromkeys(local), **words}
    (folder / "kolejka_task.json").write_text(json.dumps(spec))
    return folder


def start(cluster: Cluster, *words: str | Path, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [PROGRAMS / "kolejka-client", *words], env={**cluster.environment, **more}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_task_goes_up_and_its_result_comes_back(cluster: Cluster, client: KolejkaClient, tmp_path: Path) -> None:
    def concatenate(attempt: Attempt, folder: Path) -> Result:
        with tempfile.TemporaryDirectory() as inputs:
            node.client.fetch_inputs(attempt.task, inputs)
            data = b"".join((Path(inputs) / str(f.reference)).read_bytes() for f in attempt.task.files.values())
        return with_files(Result(Outcome.OK, result=0), folder, {"out/all": data, "tool": b"#!/bin/sh"})

    folder = make_task(tmp_path / "task", {"a": b"first ", "b": b"second"}, name="joined", labels={"k": "v"})
    with Node(cluster, concatenate) as node:
        result = client.execute(folder, tmp_path / "R", limits=Limits.of(time="5s"))
    assert node.errors == []
    assert result.outcome is Outcome.OK
    assert (tmp_path / "R" / "out" / "all").read_bytes() == b"first second"
    assert os.access(tmp_path / "R" / "tool", os.X_OK)
    assert Result.load(tmp_path / "R") == result
    (task,) = client.tasks(name="joined", labels={"k": "v"})
    assert (task["state"], task["outcome"], task["node"]) == ("done", "ok", "played")
    assert client.task(task["id"])["spec"]["limits"]["time"] == 5.0


def test_the_command_line_puts_lists_explains_cancels_and_deletes(cluster: Cluster, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", requires=["no:such:node"], name="waits")
    put = cluster.run("kolejka-client", "task", "put", folder)
    assert (put.returncode, put.stderr) == (0, "")
    task_id = put.stdout.strip()
    assert cluster.run("kolejka-client", "task", "list", "-q", "--name", "waits").stdout.split() == [task_id]
    assert json.loads(cluster.run("kolejka-client", "task", "show", "last", "--json").stdout)["id"] == task_id
    assert "no:such:node" in cluster.run("kolejka", "task", "why", task_id[:-1]).stdout
    early = cluster.run("kolejka-client", "task", "delete", task_id)
    assert (early.returncode, early.stderr.count("\n")) == (2, 1)
    assert "cancel" in early.stderr
    cancelled = cluster.run("kolejka-client", "task", "cancel", task_id)
    assert (cancelled.returncode, cancelled.stderr) == (0, "")
    got = cluster.run("kolejka-client", "result", "get", "--wait", task_id, tmp_path / "R")
    assert got.returncode == 130
    assert Result.load(tmp_path / "R").outcome is Outcome.CANCELLED
    assert cluster.run("kolejka-client", "task", "delete", task_id).returncode == 0
    assert cluster.run("kolejka-client", "task", "show", task_id).returncode == 2


def test_results_of_many_tasks_come_in_one_call_and_again_only_what_is_new(
    cluster: Cluster, client: KolejkaClient, tmp_path: Path
) -> None:
    def many(*words: str | Path) -> tuple[int, Any, str]:
        ended = cluster.run("kolejka-client", "result", "get-many", "--json", tmp_path / "R", *words)
        return ended.returncode, json.loads(ended.stdout or "[]"), ended.stderr

    labels = {"course": "algorithms"}
    make = [make_task(tmp_path / name, name=name, labels=labels, requires=["after:a:while"]) for name in "abc"]
    ids = [client.put_task(folder)["id"] for folder in make]
    status, shown, said = many(*ids)
    assert (status, [one["result"] for one in shown], said.count("not done yet")) == (125, [None] * 3, 3)
    status, _, said = many("--timeout", "1ms", ids[0])
    assert (status, said.count("\n")) == (125, 1)
    assert list((tmp_path / "R").iterdir()) == []

    token = client.create_token("admin", role="node")["token"]
    with NodeClient(ClientSettings(server=cluster.url, token=token)) as node:
        words: dict[str, Any] = {"capacity": TOTAL, "total": TOTAL, "tags": ["after:a:while"], "idle": True}
        first, second = node.claim("marker", slots=2, wait_s=5.0, **words).attempts
        for attempt, outcome in ((first, Outcome.OK), (second, Outcome.FAILED)):
            (tmp_path / attempt.task_id).mkdir()
            answer = Result(outcome, result=int(outcome is Outcome.FAILED), id=attempt.task_id)
            with_files(answer, tmp_path / attempt.task_id, {"out": attempt.task_id.encode()}).save(
                tmp_path / attempt.task_id
            )
            node.upload_result(attempt.lease, tmp_path / attempt.task_id)
    (tmp_path / "R" / ids[2]).mkdir()
    (tmp_path / "R" / ids[2] / "mine").touch()
    status, shown, said = many("--label", "course=algorithms", "--owner", "admin")
    brought = {one["id"]: (one["new"], one["result"] and one["result"]["outcome"]) for one in shown}
    assert (status, brought) == (125, {ids[0]: (True, "ok"), ids[1]: (True, "failed"), ids[2]: (True, None)})
    assert "not empty" in said
    assert (tmp_path / "R" / ids[1] / "out").read_text() == ids[1]
    (tmp_path / "R" / ids[2] / "mine").unlink()

    waiting = start(cluster, "result", "get-many", "--wait", tmp_path / "R", *ids)
    wait_until(lambda: b"\0get-many\0" in Path(f"/proc/{waiting.pid}/cmdline").read_bytes())
    client.cancel(ids[2])
    table, said = waiting.communicate(timeout=60)
    assert (waiting.returncode, said) == (0, "")
    assert [line.split()[:2] for line in table.splitlines()[1:]] == [
        [ids[0], "ok"], [ids[1], "failed"], [ids[2], "cancelled"]
    ]  # fmt: skip
    status, shown, _ = many(*ids)
    assert (status, [one["new"] for one in shown]) == (0, [False] * 3)

    by_name = cluster.run("kolejka-client", "result", "get-many", "-q", "--by-name", tmp_path / "N", *ids)
    assert (by_name.returncode, by_name.stdout.split()) == (0, ids)
    assert sorted(folder.name for folder in (tmp_path / "N").iterdir()) == ["a", "b", "c"]


def test_results_of_many_tasks_need_places_of_their_own(
    cluster: Cluster, client: KolejkaClient, tmp_path: Path
) -> None:
    def refused(*words: str | Path) -> str:
        ended = cluster.run("kolejka-client", "result", "get-many", tmp_path / "R", *words)
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
        assert not (tmp_path / "R").exists()
        return ended.stderr

    names = ["twice", "twice", "../up", ".."]
    make = [make_task(tmp_path / str(n), name=name, requires=["never"]) for n, name in enumerate(names)]
    ids = [client.put_task(folder)["id"] for folder in make]
    assert "have it both" in refused("--by-name", *ids[:2])
    assert "no name for a folder" in refused("--by-name", ids[2])
    assert ids[3] in refused("--by-name", ids[3])
    assert "say which tasks" in refused()
    assert "say which tasks" in refused("--name", "twice", ids[0])
    assert "KEY=VALUE" in refused("--label", "course")
    assert "nobody-put-this" in refused("nobody-put-this")
    for task_id in ids:
        client.cancel(task_id)


def test_execute_survives_a_restart_of_the_server(cluster: Cluster, tmp_path: Path) -> None:
    process = start(cluster, "execute", make_task(tmp_path / "task", requires=["after:restart"]), tmp_path / "R")
    wait_until(lambda: list(cluster.admin.tasks(state="waiting")), about="the task is put")
    cluster.programs["server"].kill()
    cluster.start_server()
    token = cluster.admin.create_token("admin", role="node")["token"]
    with NodeClient(ClientSettings(server=cluster.url, token=token)) as node:
        claimed = node.claim(
            "late", capacity=TOTAL, total=TOTAL, slots=1, tags=["after:restart"], wait_s=10.0, idle=True
        )  # fmt: skip
        (attempt,) = claimed.attempts
        node.put_result(attempt.lease, Result(Outcome.FAILED, result=7, id=attempt.task_id))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 7
    assert "failed with exit code 7" in err
    assert Result.load(tmp_path / "R").result == 7


def test_an_interrupted_execute_cancels_its_task(cluster: Cluster, client: KolejkaClient, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", requires=["never"], name="interrupted")
    process = start(cluster, "execute", folder, tmp_path / "R")
    wait_until(lambda: list(client.tasks(name="interrupted")))
    wait_until(lambda: b"\0execute\0" in Path(f"/proc/{process.pid}/cmdline").read_bytes())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    (task,) = client.tasks(name="interrupted")
    # an interrupt between the server's answer and the client's reading of it finds no id to cancel
    assert task["outcome"] in {"cancelled", None}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["task"]


def test_an_attempt_given_back_runs_again_and_its_old_lease_is_refused(
    cluster: Cluster, client: KolejkaClient, tmp_path: Path
) -> None:
    task = client.put_task(make_task(tmp_path / "task", requires=["given:back"]))
    token = client.create_token("admin", role="node")["token"]
    with NodeClient(ClientSettings(server=cluster.url, token=token)) as node:
        words: dict[str, Any] = {"capacity": TOTAL, "total": TOTAL, "slots": 1, "tags": ["given:back"], "idle": True}
        (first,) = node.claim("giver", wait_s=5.0, **words).attempts
        assert node.heartbeat("giver", leases=[first.lease], capacity=TOTAL, total=TOTAL).lost == frozenset()
        node.release(first.lease, "draining")
        (second,) = node.claim("giver", wait_s=5.0, **words).attempts
        assert second.lease > first.lease
        result = Result(Outcome.OK, result=0, id=task["id"])
        with pytest.raises(Conflict):
            node.put_result(first.lease, result)
        assert first.lease in node.heartbeat("giver", leases=[first.lease], capacity=TOTAL, total=TOTAL).lost
        answers = node.put_results({first.lease: result, second.lease: result, 10**9: result})
        assert answers[second.lease] is None
        assert {type(answers[first.lease]), type(answers[10**9])} == {Conflict}
        assert node.put_result(second.lease, result) == node.put_result(second.lease, result)
    assert client.wait(task["id"], 10.0).outcome is Outcome.OK


def test_a_running_task_that_is_cancelled_is_told_to_its_node(
    cluster: Cluster, client: KolejkaClient, tmp_path: Path
) -> None:
    task = client.put_task(make_task(tmp_path / "task", requires=["told"]))
    token = client.create_token("admin", role="node")["token"]
    with NodeClient(ClientSettings(server=cluster.url, token=token)) as node:
        words: dict[str, Any] = {"capacity": TOTAL, "total": TOTAL, "slots": 1, "tags": ["told"]}
        (attempt,) = node.claim("hears", wait_s=5.0, idle=True, **words).attempts
        client.cancel(task["id"])
        assert attempt.lease in node.heartbeat("hears", leases=[attempt.lease], capacity=TOTAL, total=TOTAL).cancel
        node.put_result(attempt.lease, Result(Outcome.CANCELLED, id=task["id"]))
    assert client.wait(task["id"], 10.0).outcome is Outcome.CANCELLED


def test_a_hash_gives_nobody_the_bytes(cluster: Cluster, client: KolejkaClient, tmp_path: Path) -> None:
    client.create_user("eve", "client")
    client.create_user("bob", "client")
    bob, eve = (
        KolejkaClient(ClientSettings(server=cluster.url, token=client.create_token(name)["token"]))
        for name in ("bob", "eve")
    )
    with bob, eve:
        sha = bob.put_blob(b"a secret of bob's")
        task = bob.put_spec({"args": ["x"], "files": {"s": {"reference": sha}}, "requires": ["no:node"]})
        assert not eve.has_blob(sha)
        with pytest.raises(NotFound):
            eve.get_blob(sha, tmp_path / "stolen")
        with pytest.raises(InputError) as caught:
            eve.put_spec({"args": ["x"], "files": {"s": {"reference": sha}}})
        assert (caught.value.code, caught.value.field) == ("blob_missing", "files.s")
        for steal in (eve.task, eve.cancel, eve.why, eve.result):
            with pytest.raises(NotFound):
                steal(task["id"])
        assert list(eve.tasks()) == []
        with pytest.raises(NotAllowed):
            eve.users()
    assert list(tmp_path.iterdir()) == []


BAD = [
    ({"comand": ["x"]}, "comand"),
    ({"args": []}, "args"),
    ({"limits": {"time": "-3s"}}, "limits.time"),
    ({"limits": {"memory": "1MM"}}, "limits.memory"),
    ({"queue": "unknown"}, "queue"),
    ({"id": "my-own"}, "id"),
    ({"files": {"a/../../b": {"content": ""}}}, "files"),
    ({"files": {"x": {"reference": "0" * 64}}}, "files.x"),
    ({"stdout": "/etc/passwd"}, "stdout"),
]


@pytest.mark.parametrize(("words", "field"), BAD, ids=[field for _, field in BAD])
def test_a_wrong_spec_is_one_line_with_its_field_and_nothing_is_put(
    cluster: Cluster, client: KolejkaClient, tmp_path: Path, words: dict[str, Any], field: str
) -> None:
    before = [task["id"] for task in client.tasks()]
    done = cluster.run("kolejka-client", "execute", make_task(tmp_path / "task", **words), tmp_path / "R")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert field in done.stderr
    assert [task["id"] for task in client.tasks()] == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["task"]


def test_a_wrong_token_and_a_missing_server_are_one_line(cluster: Cluster) -> None:
    for more, code, word in (
        ({"KOLEJKA_CLIENT_TOKEN": "klj_" + "x" * 43}, 2, "kolejka login"),
        ({"KOLEJKA_CLIENT_SERVER": "http://127.0.0.1:1"}, 125, "kolejka up"),
    ):
        done = cluster.run("kolejka-client", "task", "list", env=more)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1)
        assert word in done.stderr


def peak_memory(cluster: Cluster, *words: str | Path) -> tuple[str, int]:
    """What the command printed, and the most memory its process ever had, in bytes."""
    code = (
        "import sys; from kolejka.client.cli.main import command\n"
        "command.main(sys.argv[1:], standalone_mode=False); sys.stdout.flush()\n"
        "sys.stderr.write(open('/proc/self/status').read())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], env=cluster.environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("VmHWM:"))
    return done.stdout.strip(), int(line.split()[1]) * 1024


@pytest.fixture
def big_file() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kolejka-test-") as folder:
        path = Path(folder) / "big"
        with path.open("wb") as sink:
            for number in range(BIG >> 20):
                sink.write(number.to_bytes(4, "big") * (1 << 18))
        yield path


def test_a_large_file_goes_up_and_comes_down_in_constant_memory(cluster: Cluster, big_file: Path) -> None:
    small = big_file.with_name("small")
    small.write_bytes(b"small")
    _, base = peak_memory(cluster, "blob", "put", small)
    reference, up = peak_memory(cluster, "blob", "put", big_file)
    copy = big_file.with_name("copy")
    _, down = peak_memory(cluster, "blob", "get", reference, copy)
    assert hash_file(copy) == (reference, BIG)
    assert up - base < 32 << 20
    assert down - base < 32 << 20


def test_an_upload_that_breaks_leaves_no_blob_and_is_taken_up(
    cluster: Cluster, client: KolejkaClient, big_file: Path
) -> None:
    reference, _ = hash_file(big_file)
    process = start(cluster, "blob", "put", big_file)
    incoming = cluster.folder / "server"

    def half_way() -> bool:
        sizes = []
        for path in incoming.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # renamed in between
                sizes.append(path.stat().st_size)
        return process.poll() is not None or any(8 << 20 < size < BIG for size in sizes)

    wait_until(half_way)
    process.kill()
    process.communicate()
    if process.returncode == -signal.SIGKILL:
        assert not client.has_blob(reference)
    client.put_blob(big_file, reference=reference)
    assert client.has_blob(reference)

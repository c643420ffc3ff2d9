"""Several server processes and several servers on one PostgreSQL; and the commands that keep a database."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from kolejka.common.limits import Limits
from kolejka.common.result import Outcome, Result
from kolejka.common.task import Task
from kolejka.server import intake
from kolejka.server.api.routes import PREFIX
from kolejka.server.app import ROUTES
from kolejka.server.auth.roles import Role
from kolejka.server.auth.tokens import Caller
from kolejka.server.scheduling import claims
from kolejka.server.scheduling.claims import Handed
from kolejka.server.scheduling.rules import Moment
from kolejka.server.storage import users
from kolejka.server.storage.postgres import PostgresStore
from tests.integration.server_process import Server
from tests.neighbours.postgres import Postgres
from tests.support import wait_until

PASSWORD = "not-to-be-seen"


@pytest.fixture
def url(postgres: Postgres) -> Iterator[str]:
    """An empty database."""
    url = postgres.url(postgres.create())
    yield url
    postgres.drop(url)


def run(*words: object, database: str = "", status: int = 0) -> str:
    """``kolejka-server …``; both of its outputs."""
    done = subprocess.run(
        [sys.executable, "-m", "kolejka.server", *map(str, words)],
        capture_output=True, text=True, check=False, env={**os.environ, "KOLEJKA_SERVER_DATABASE": database},
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.mark.needs("postgres")
def test_two_servers_of_two_processes_share_what_each_accepts(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KOLEJKA_SERVER_DATABASE", url)
    servers = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        servers.append(Server(tmp_path / name, "--processes", "2"))
    starts = [threading.Thread(target=server.start) for server in servers]
    try:
        for start in starts:
            start.start()
        for start in starts:
            start.join()
        tokens = [server.data / "admin.token" for server in servers if (server.data / "admin.token").exists()]
        assert len(tokens) == 1, "two that start at the same moment make one admin"
        callers = [server.admin if (server.data / "admin.token").exists() else None for server in servers]
        admin = next(caller for caller in callers if caller is not None)
        others = [type(admin)(server, admin.token) for server in servers]
        answers: list[list[str]] = [[], []]

        def wait_for_tasks(place: int) -> None:
            given = others[place].claim(f"node{place}", wait=30)["attempts"]
            answers[place] = [attempt["task_id"] for attempt in given]
            for attempt in given:
                others[1 - place].finish(attempt["lease"])

        waiting = [threading.Thread(target=wait_for_tasks, args=(place,)) for place in range(2)]
        for one in waiting:
            one.start()
        put = []
        while any(one.is_alive() for one in waiting):
            put.append(others[len(put) % 2].put())
            state = others[len(put) % 2].ask("GET", f"/tasks/{put[-1]}/result?wait=2s").status
            assert state in {200, 202}
        assert answers[0]
        assert answers[1]
        assert not set(answers[0]) & set(answers[1])
        for task_id in (*answers[0], *answers[1]):
            assert others[0].state(task_id) == "done"
        assert servers[0].stop() == servers[1].stop() == 0
    finally:
        for server in servers:
            server.stop()


@pytest.mark.needs("postgres")
def test_strange_words_in_a_path_are_nowhere(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL keeps no NUL and has numbers of four bytes, which SQLite does not mind."""
    monkeypatch.setenv("KOLEJKA_SERVER_DATABASE", url)
    server = Server(tmp_path).start()
    try:
        for route in (route for route in ROUTES if "{" in route.path):
            for word in ("%00", "a%00b", "%ED%A0%80", "9" * 18, "2147483648", "-1", "%F0%9F%A6%86", "%25s", "x" * 3000):
                path = re.sub(r"{\w+}", word, route.path).removeprefix(PREFIX)
                body = None if route.body is None else {"log": "x", "message": "x", "size": 1}
                answer = server.admin.ask(route.method, path, body)
                assert answer.status < 500, (route.method, path, answer.data)
    finally:
        assert server.stop() == 0
    assert "Traceback" not in server.log()


def test_the_embedded_database_refuses_more_than_one_process(tmp_path: Path) -> None:
    text = run("runserver", "--data", tmp_path / "data", "--processes", "2", status=2)
    assert "--processes: the embedded database has one process" in text
    assert not (tmp_path / "data").exists()


@pytest.mark.needs("postgres")
@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("mysql://kolejka@localhost/x", "no address of a PostgreSQL"),
        (f"postgresql://kolejka:{PASSWORD}@127.0.0.1:1/x", "cannot be used as a database"),
        (f"postgresql://kolejka:{PASSWORD}@127.0.0.1:1/x?no_such_word=1", "no address of a PostgreSQL"),
    ],
)
def test_a_database_that_cannot_be_is_told_in_one_line_without_its_password(
    tmp_path: Path, address: str, words: str
) -> None:
    text = run("migrate", "--data", tmp_path, database=address, status=2 if "no address" in words else 125)
    assert words in text
    assert len(text.splitlines()) == 1
    assert PASSWORD not in text


@pytest.mark.parametrize("engine", ["sqlite", pytest.param("postgres", marks=pytest.mark.needs("postgres"))])
def test_migrate_says_what_it_does_and_check_only_says_it(
    request: pytest.FixtureRequest, tmp_path: Path, engine: str
) -> None:
    database = request.getfixturevalue("url") if engine == "postgres" else ""
    data = tmp_path / "data"
    assert "would take 0001_first" in run("migrate", "--check", "--data", data, database=database, status=1)
    assert not data.exists()
    assert "took 0001_first" in run("migrate", "--data", data, database=database)
    assert run("migrate", "--data", data, database=database) == "nothing to do\n"
    assert run("migrate", "--check", "--data", data, database=database) == "nothing to do\n"


def test_backup_and_restore_beside_a_server_that_runs(tmp_path: Path) -> None:
    server = Server(tmp_path).start()
    try:
        sha = server.admin.upload(b"some bytes")
        task_id = server.admin.put(files={"in": {"reference": sha}})
        token = server.admin.token
        assert "1 tasks, 0 results, 1 blobs" in run("backup", tmp_path / "kept", "--data", server.data)
        assert json.loads((tmp_path / "kept/kolejka-backup.json").read_text())["rows"]["tasks"] == 1
        assert "not empty" in run("backup", tmp_path / "kept", "--data", server.data, status=2)
        assert "1 tasks, 0 results, 1 blobs" in run("backup", tmp_path / "kept.tar", "--data", server.data)
        assert "such a file already" in run("backup", tmp_path / "kept.tar", "--data", server.data, status=2)
        command = [sys.executable, "-m", "kolejka.server", "backup", "-", "--data", server.data]
        stream = subprocess.run(command, capture_output=True, check=True)
        assert stream.stderr == b"1 tasks, 0 results, 1 blobs\n"
        assert "another server uses this folder" in run("restore", tmp_path / "kept", "--data", server.data, status=125)
        assert server.admin.state(task_id) == "waiting"
    finally:
        server.stop()
    (tmp_path / "again").mkdir()
    again = Server(tmp_path / "again")
    (tmp_path / "half.tar").write_bytes(stream.stdout[: len(stream.stdout) // 2])
    said = run("restore", tmp_path / "half.tar", "--data", again.data, status=2)
    assert (len(said.splitlines()), "half.tar" in said) == (1, True)
    assert not (again.data / "kolejka.sqlite").exists()
    command = [sys.executable, "-m", "kolejka.server", "restore", "-", "--data", tmp_path / "piped"]
    assert subprocess.run(command, input=stream.stdout, capture_output=True, check=True).stdout.startswith(b"1 tasks")
    assert "1 tasks, 0 results, 1 blobs" in run("restore", tmp_path / "kept.tar", "--data", again.data)
    again.start()
    try:
        admin = type(server.admin)(again, token)
        assert admin.state(task_id) == "waiting"
        assert admin.ask("GET", f"/blobs/{sha}", status=200).data == b"some bytes"
    finally:
        again.stop()


def test_many_results_in_one_call_are_taken_or_refused_each_by_itself(tmp_path: Path) -> None:
    server = Server(tmp_path).start()
    try:
        admin = server.admin
        for _ in range(3):
            admin.put()
        first, second, third = [one["lease"] for one in admin.claim()["attempts"]]
        ok = {"result": 0, "outcome": "ok", "files": [], "manifest": {}}
        admin.finish(second, result=0, outcome="ok")
        stranger = {**ok, "manifest": {"out": {"size": 1, "mode": "0644", "sha256": "ab" * 32}}, "files": ["out"]}
        body = {"results": [
            {"lease": first, "result": ok},
            {"lease": second, "result": {**ok, "result": 1, "outcome": "failed"}},
            {"lease": third, "result": stranger},
            {"lease": 2**61, "result": ok},
        ]}  # fmt: skip
        for _ in range(2):  # repeated, the answer is the same
            told = admin.ask("POST", "/attempts/results", body, status=200).json["results"]
            assert [one["lease"] for one in told] == [first, second, third, 2**61]
            assert told[0]["state"] == "done"
            assert [one.get("error", {}).get("code") for one in told] == [None, "conflict", "blob_missing", "conflict"]
        assert admin.state(told[0]["task_id"]) == "done"
        twice = {"results": [{"lease": third, "result": ok}] * 2}
        assert admin.ask("POST", "/attempts/results", twice, status=422).error == ("invalid", "results[1].lease")
        wrong = {"results": [{"lease": third, "result": {**ok, "outcome": "good"}}]}
        assert admin.ask("POST", "/attempts/results", wrong, status=422).error[1] == "results[0].result.outcome"
        assert len(admin.beat(third)["lost"]) == 0
    finally:
        server.stop()


@pytest.mark.needs("postgres")
def test_connections_are_spread_over_the_processes_and_taken_by_the_next_when_one_dies(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KOLEJKA_SERVER_DATABASE", url)
    server = Server(tmp_path, "--processes", "2").start()

    def workers() -> list[psutil.Process]:
        assert server.program is not None
        return psutil.Process(server.program.pid).children()

    def held() -> list[int]:
        port = int(server.url.rpartition(":")[2])
        return sorted(
            sum(one.status == psutil.CONN_ESTABLISHED and one.laddr.port == port for one in worker.net_connections())
            for worker in workers()
        )

    def told(name: str) -> list[float]:
        texts = [server.admin.ask("GET", "/metrics", status=200).data.decode() for _ in range(20)]
        return [float(line.split()[-1]) for text in texts for line in text.splitlines() if line.startswith(name + " ")]

    try:
        wait_until(lambda: len(workers()) == 2)
        with contextlib.ExitStack() as stack:
            for _ in range(60):  # that one of two gets none of them, or but a few, is next to impossible
                connection = server.admin.connect()
                stack.callback(connection.close)
                connection.connect()
            wait_until(lambda: sum(held()) >= 60 and held()[0] >= 8, about="both have some")
            before = workers()
            for _ in range(20):
                server.admin.put()
            assert told("kolejka_tasks_put_total") == [20.0] * 20
            before[0].kill()
            for _ in range(20):  # whatever socket they come to
                assert server.admin.ask("GET", "/whoami", status=200)
            wait_until(lambda: len(workers()) == 2 and before[0] not in workers())
            server.admin.put()
            assert told("kolejka_tasks_put_total") == [21.0] * 20, "whoever is asked tells of all, of those before too"
            assert told("kolejka_claims_waiting") == [0.0] * 20
        words = ("--processes", "2", "--port", server.url.rpartition(":")[2], "--data", tmp_path / "other")
        said = run("runserver", *words, database=url, status=125)
        assert "--port" in said, "nobody shares"
        assert said.count("\n") == 1
    finally:
        server.stop()


@pytest.mark.needs("postgres")
def test_a_word_that_a_server_died_before_saying_costs_a_round(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KOLEJKA_SERVER_DATABASE", url)
    server = Server(tmp_path, "--heartbeat", "16s").start()
    mute = PostgresStore(url)  # as a server's that commits, and is gone before it tells
    monkeypatch.setattr(mute, "_tell_soon", lambda _: None)
    limits = Limits.of(cpus=1, memory="64M", time="10s")
    considered = intake.consider(Task.parse({"args": ["true"]}), defaults=limits, ceilings=Limits())
    try:
        admin, now = server.admin, time.time()
        user_id, _ = mute.read(lambda db: users.find_user(db, "admin")).result()
        caller = Caller(user_id, "admin", Role.ADMIN, 0)
        with ThreadPoolExecutor(1) as aside:
            claiming = aside.submit(admin.claim, "node", wait=30)
            wait_until(lambda: b"kolejka_claims_waiting 1.0" in admin.ask("GET", "/metrics").data)
            task_id, _ = mute.write(lambda db: intake.put(db, considered, caller, None, now)).result()
            (given,) = claiming.result(25)["attempts"]
            assert given["task_id"] == task_id
            waiting = aside.submit(admin.ask, "GET", f"/tasks/{task_id}/result?wait=30s")
            handed = Handed.of(Result(Outcome.OK, result=0))
            moment = Moment(now, 0.0)
            mute.write(lambda db: claims.accept(db, given["lease"], user_id, handed, moment)).result()
            assert waiting.result(25).json["outcome"] == "ok"
    finally:
        mute.close()
        server.stop()

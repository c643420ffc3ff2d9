"""The server as a process: what it promises when it is killed, stopped, frozen, started twice, or short of memory."""

from __future__ import annotations

import concurrent.futures
import hashlib
import http.client
import json
import os
import re
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography.hazmat.primitives import serialization

from kolejka.common.errors import NodeError
from kolejka.common.settings import ServerSettings
from kolejka.server.prepare import prepare
from tests.integration.server_process import AMOUNTS, Caller, Server
from tests.neighbours.certificates import make_certificate
from tests.neighbours.clock import Clock
from tests.support import wait_until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, "--heartbeat", "1s", "--attempts", "2").start()
    yield server
    server.stop()
    assert "Traceback" not in server.log()


def test_a_server_may_open_as_many_files_as_its_machine_lets_it(tmp_path: Path) -> None:
    few, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, most))
    try:
        server = Server(tmp_path).start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, most))
    try:
        assert server.worker.rlimit(psutil.RLIMIT_NOFILE) == (most, most)
    finally:
        server.stop()


def test_more_connections_than_files_leave_those_that_are_there_alone(server: Server) -> None:
    admin, host, port = server.admin, *server.url.removeprefix("http://").split(":")
    there = admin.connect()

    def put(data: bytes) -> int:
        said = {"Authorization": f"Bearer {admin.token}"}
        there.request("PUT", f"/api/v1/blobs/{hashlib.sha256(data).hexdigest()}", data, said)
        answer = there.getresponse()
        answer.read()
        return answer.status

    assert put(b"before") == 201
    server.worker.rlimit(psutil.RLIMIT_NOFILE, (2048, 2048))
    few, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # the test's own ends
    many = [socket.create_connection((host, int(port))) for _ in range(2100)]
    try:
        wait_until(lambda: "too many connections" in server.log())
        assert put(b"while") == 201
    finally:
        for one in many:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, most))
    wait_until(lambda: server.worker.num_fds() < 128, about="they have left")
    assert admin.ask("GET", "/whoami").status == 200


def test_a_burst_of_callers_finds_room_to_wait_in(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    server.worker.suspend()
    many: list[socket.socket] = []
    try:  # where there is no room, the kernel lets one try again and again
        many.extend(socket.create_connection((host, int(port)), timeout=20) for _ in range(400))
    finally:
        server.worker.resume()
        for one in many:
            one.close()


@pytest.mark.needs("gcc")
def test_what_was_written_while_the_clock_was_ahead_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(tmp_path)
    for name, value in clock.environment.items():
        monkeypatch.setenv(name, value)
    server = Server(tmp_path, "--heartbeat", "1s").start()
    try:
        admin = server.admin
        monkeypatch.undo()  # the test's own programs go right
        clock.set(7 * 86400)
        smith = server.user("smith", "node")
        smith.beat(instance="1" * 32)
        clock.set(0)
        wait_until(lambda: "the clock went back" in server.log())
        wait_until(lambda: admin.ask("GET", "/nodes/anvil").json["state"] == "silent")
        smith.beat(instance="2" * 32)
    finally:
        server.stop()
    assert "Traceback" not in server.log()


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kolejka.server", *map(str, words)], capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip


def test_what_was_acknowledged_survives_sigkill(server: Server) -> None:
    admin = server.admin
    smith = server.user("smith", "node")
    sha = admin.upload(b"kept" * 1000)
    done = admin.put(name="done")
    (given,) = smith.claim()["attempts"]
    smith.finish(given["lease"], result=0)
    acknowledged: list[str] = []
    stop = threading.Event()

    def put_for_ever() -> None:
        while not stop.is_set():
            try:
                acknowledged.append(admin.put(files={"in": {"reference": sha}}))
            except (OSError, http.client.HTTPException):
                return

    threads = [threading.Thread(target=put_for_ever) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(acknowledged) > 100)
    server.crash()
    stop.set()
    for thread in threads:
        thread.join()
    server.start()
    admin = server.admin
    listed: set[str] = set()
    query = "limit=1000"
    while query:
        page = admin.ask("GET", f"/tasks?{query}", status=200).json
        listed |= {task["id"] for task in page["tasks"]}
        query = f"limit=1000&after={page['next']}" if page["next"] else ""
    assert set(acknowledged) <= listed
    assert admin.ask("GET", f"/tasks/{done}/result", status=200).json["outcome"] == "ok"
    assert admin.ask("GET", f"/blobs/{sha}", status=200).data == b"kept" * 1000
    assert smith.claim()["attempts"], "tokens survive too"


def test_a_worker_that_dies_is_replaced_behind_the_same_address(server: Server) -> None:
    task_id, url, worker = server.admin.put(), server.url, server.worker
    worker.kill()
    wait_until(lambda: server.program is not None and _state(server, task_id) == "waiting", 60)
    assert server.url == url


def _state(server: Server, task_id: str) -> str:
    try:
        return server.admin.state(task_id)
    except (OSError, http.client.HTTPException):
        return "away"


def test_a_silent_nodes_task_waits_again_and_after_enough_losses_ends_as_error(server: Server) -> None:
    smith, task_id = server.user("smith", "node"), server.admin.put()
    (first,) = smith.claim()["attempts"]
    wait_until(lambda: server.admin.state(task_id) == "waiting")
    assert smith.finish(first["lease"], status=409).error[0] == "conflict"
    (second,) = smith.claim("other")["attempts"]
    assert second["lease"] > first["lease"]
    result = server.admin.ask("GET", f"/tasks/{task_id}/result?wait=60", status=200).json
    assert result["outcome"] == "error"
    assert "anvil: the node fell silent; other: the node fell silent" in result["message"]
    assert [one["state"] for one in server.admin.ask("GET", f"/tasks/{task_id}").json["attempts"]] == ["lost", "lost"]
    assert re.search(r"attempt lost task=\S+ lease=\d+ node=anvil", server.log())


def test_two_nodes_one_lease_the_overtaken_one_changes_nothing(server: Server) -> None:
    frozen, fresh = server.user("frozen", "node"), server.user("fresh", "node")
    task_id = server.admin.put()
    (old,) = frozen.claim("frozen")["attempts"]
    wait_until(lambda: server.admin.state(task_id) == "waiting")
    (new,) = fresh.claim("fresh")["attempts"]
    assert frozen.beat(old["lease"], node="frozen")["lost"] == [old["lease"]]
    frozen.finish(old["lease"], outcome="failed", result=1, status=409)
    frozen.finish(new["lease"], outcome="failed", result=1, status=404)
    fresh.finish(new["lease"], result=0)
    frozen.finish(old["lease"], outcome="failed", result=1, status=409)
    assert server.admin.ask("GET", f"/tasks/{task_id}/result").json["outcome"] == "ok"


def test_an_attempt_outlives_a_server_that_was_away_longer_than_a_heartbeat(server: Server) -> None:
    smith, task_id = server.user("smith", "node"), server.admin.put()
    (given,) = smith.claim()["attempts"]
    server.crash()
    away = threading.Event()
    away.wait(1.5)  # longer than a heartbeat: the thing that is tested
    server.start()
    later = server.admin.put(requires=["witness"])
    smith.claim("witness", tags=["witness"])

    def the_clocks_were_looked_at() -> bool:
        smith.beat(given["lease"])
        return server.admin.state(later) == "waiting"

    wait_until(the_clocks_were_looked_at)
    assert server.admin.state(task_id) == "running"
    smith.finish(given["lease"], result=0)
    assert server.admin.state(task_id) == "done"


def test_a_killed_server_takes_its_worker_along(server: Server) -> None:
    worker = server.worker
    worker.suspend()  # it cannot notice anything by itself
    server.crash(worker)
    server.start()


def test_a_stop_answers_those_who_wait_at_once_and_loses_nothing(server: Server) -> None:
    admin, smith = server.admin, server.user("smith", "node")
    task_id = admin.put(requires=["nowhere"])
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        claim = pool.submit(smith.claim, wait=30)
        result = pool.submit(admin.ask, "GET", f"/tasks/{task_id}/result?wait=60")
        wait_until(lambda: b"kolejka_claims_waiting 1.0" in admin.ask("GET", "/metrics").data)
        idle = admin.connect()
        idle.request("GET", "/healthz")
        idle.getresponse().read()  # and stays open
        assert server.program is not None
        os.kill(server.program.pid, signal.SIGTERM)
        assert claim.result(15)["attempts"] == []
        assert result.result(15).status == 202
        assert server.program.process.wait(15) == 0, "an idle connection holds nobody up"
        idle.close()
    assert not (server.data / "server.json").exists()
    server.start()
    assert server.admin.state(task_id) == "waiting"


def test_a_folder_has_one_server(server: Server) -> None:
    with pytest.raises(NodeError, match="another server uses this folder"):
        prepare(ServerSettings(data=server.data), patience_s=0)
    second = command("token", "create", "admin", "--data", server.data)
    assert second.returncode == 125
    assert "another server uses this folder" in second.stderr
    assert second.stderr.count("\n") == 1


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = command("runserver", "--data", tmp_path / "data", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 125
    assert re.fullmatch(r"kolejka-server: 127\.0\.0\.1:\d+: cannot listen: .*\n", done.stderr)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "x"], "--port"), (["--certificate", "/nowhere"], "--key"),
        (["--certificate", "/nowhere", "--key", "/nowhere"], "/nowhere cannot be read"),
        (["--data", "/proc/nothing"], "/proc/nothing"), (["--port", "70000"], "70000 is no port"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    done = command("runserver", "--data", tmp_path / "data", "--port", "0", *options)
    assert done.returncode in {2, 125}
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("wrong", ["no text of a certificate", "another's key", "a key with a password"])
def test_a_certificate_that_cannot_serve_ends_the_server_before_it_listens(tmp_path: Path, wrong: str) -> None:
    made = make_certificate(tmp_path)
    if wrong == "no text of a certificate":
        made.chain.write_text("klj_token")
    elif wrong == "another's key":
        (tmp_path / "another").mkdir()
        made.key.write_bytes(make_certificate(tmp_path / "another").key.read_bytes())
    else:
        key = serialization.load_pem_private_key(made.key.read_bytes(), password=None)
        made.key.write_bytes(key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        ))  # fmt: skip
    done = command(
        "runserver", "--data", tmp_path / "data", "--port", "0", "--certificate", made.chain, "--key", made.key
    )
    assert done.returncode == 2
    assert "are no certificate and the key that belongs to it" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_database_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/kolejka.sqlite").write_bytes(b"this is no database" * 1000)
    done = command("runserver", "--data", tmp_path / "data", "--port", "0")
    assert done.returncode == 125
    assert "kolejka.sqlite: cannot be used as a database" in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_is_secret_is_for_the_owners_eyes_only(server: Server) -> None:
    for name in ("admin.token", "kolejka.sqlite", "lock"):
        assert (server.data / name).stat().st_mode & 0o077 == 0, name
    assert server.data.stat().st_mode & 0o077 == 0
    assert server.admin.token.encode() not in (server.data / "kolejka.sqlite").read_bytes()


def test_the_admins_token_is_made_once(server: Server) -> None:
    token = server.admin.token
    server.stop()
    server.start()
    assert server.admin.token == token
    assert server.admin.ask("GET", "/whoami").json["user"] == "admin"


def test_a_token_is_made_offline(server: Server) -> None:
    server.user("ala", "client")
    server.stop()
    made = command("token", "create", "ala", "--data", server.data)
    assert made.returncode == 0, made.stderr
    assert command("token", "create", "nobody", "--data", server.data).returncode == 2
    server.start()
    assert Caller(server, made.stdout.strip()).ask("GET", "/whoami").json["user"] == "ala"


def test_a_large_blob_passes_in_constant_memory(server: Server) -> None:
    size, piece = 256 << 20, os.urandom(1 << 20)
    digest = hashlib.sha256()
    for _ in range(size // len(piece)):
        digest.update(piece)
    sha = digest.hexdigest()
    before = peak(server)
    sent = server.admin.ask(
        "PUT", f"/blobs/{sha}", data=iter([piece] * (size // len(piece))), headers={"Content-Length": str(size)}
    )
    assert sent.status == 201
    connection = server.admin.connect()
    connection.request("GET", f"/api/v1/blobs/{sha}", headers={"Authorization": f"Bearer {server.admin.token}"})
    response, back = connection.getresponse(), hashlib.sha256()
    while chunk := response.read(1 << 20):
        back.update(chunk)
    connection.close()
    assert back.hexdigest() == sha
    assert peak(server) - before < 48 << 20


def peak(server: Server) -> int:
    """The most memory the serving process ever had, in bytes."""
    status = Path(f"/proc/{server.worker.pid}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) * 1024


def test_what_a_crash_left_of_an_upload_is_swept(server: Server) -> None:
    server.stop()
    half = server.data / "blobs/incoming/tmphalf"
    half.write_bytes(b"half")
    server.start()
    assert not half.exists()


def test_a_certificate_makes_it_tls(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    server = Server(tmp_path, "--certificate", str(certificate.chain), "--key", str(certificate.key)).start()
    try:
        assert server.url.startswith("https://")
        host, port = server.url.removeprefix("https://").split(":")
        context = ssl.create_default_context(cafile=str(certificate.authority))
        connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=30)
        connection.request("GET", "/api/v1/whoami", headers={"Authorization": f"Bearer {server.admin.token}"})
        assert json.loads(connection.getresponse().read())["role"] == "admin"
        connection.close()
    finally:
        assert server.stop() == 0


def test_doctor_says_what_is_and_what_lacks(server: Server, tmp_path: Path) -> None:
    done = command("doctor", "--json", "--data", server.data)
    assert done.returncode == 0, done.stdout
    checks: list[dict[str, Any]] = json.loads(done.stdout)
    assert all(check["ok"] for check in checks)
    assert any("runs already" in check["message"] for check in checks)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = command("doctor", "--json", "--data", tmp_path / "other", "--port", port)
    assert done.returncode == 1
    assert [check["cure"] for check in json.loads(done.stdout) if not check["ok"]] == ["choose another: --port PORT"]


def test_a_frozen_server_blames_no_node(server: Server) -> None:
    smith, task_id = server.user("smith", "node"), server.admin.put()
    (given,) = smith.claim()["attempts"]
    worker = server.worker
    worker.suspend()
    threading.Event().wait(3)  # longer than heartbeat and tolerance together: the thing that is tested
    worker.resume()
    assert smith.beat(given["lease"])["lost"] == []
    smith.finish(given["lease"])
    assert server.admin.state(task_id) == "done"
    wait_until(lambda: "time was lost" in server.log())


def test_claims_of_many_nodes_give_each_task_once(server: Server) -> None:
    smith = server.user("smith", "node")
    put = [server.admin.put() for _ in range(60)]
    given: list[str] = []

    def work(node: str) -> None:
        while True:
            body = {"node": node, "tags": [], "total": AMOUNTS, "capacity": AMOUNTS, "slots": 3}
            attempts = smith.ask("POST", "/claims", body, status=200).json["attempts"]
            if not attempts:
                return
            for attempt in attempts:
                given.append(attempt["task_id"])
                smith.finish(attempt["lease"])

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(work, ["a", "b", "c", "d"]))
    assert sorted(given) == sorted(put)
    assert all(server.admin.state(task_id) == "done" for task_id in put)

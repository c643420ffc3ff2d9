"""Requests as programs of earlier years send them, byte for byte, and the answers that these programs understand.

The forms are those of the published client: ``json.dumps`` with its spaces, ``Content-Type`` and ``Content-Length``
given by hand, the whole answer to ``open`` sent back with ``attach``, limits in their dumped form.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kolejka.observer.client import ObserverClient
from tests.support import wait_until

pytestmark = pytest.mark.needs("cgroups", "root")

ROOT = f"kolejka-test-compat-{os.getpid()}"


@pytest.fixture(scope="module")
def observer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("observer")
    door = folder / "socket"
    words = ["--socket", str(door), "--state", str(folder / "state"), "--cgroup", ROOT]
    with subprocess.Popen([sys.executable, "-m", "kolejka.observer", *words]) as process:
        wait_until(lambda: process.poll() is None and answers(door))
        yield door
        process.terminate()
        assert process.wait(30) == 0
    assert not [place for place in Path("/sys/fs/cgroup").iterdir() if (place / ROOT).is_dir()]


def answers(door: Path) -> bool:
    try:
        return ObserverClient(str(door)).ping()["status"] == "ok"
    except OSError:
        return False


def recorded(verb: str, fields: dict[str, object]) -> bytes:
    """One request of the published client over http.client."""
    body = json.dumps(fields).encode()
    return (
        f"POST /{verb} HTTP/1.1\r\nHost: <kolejka.common.http_socket.HTTPUnixConnection object at 0x7f1c2a>\r\n"
        "Accept-Encoding: identity\r\n"
        f"Content-Type: application/json; charset=utf-8\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def raw_attach(fields: dict[str, object]) -> bytes:
    """The request that launchers of earlier years hold as a constant."""
    body = json.dumps(fields).encode()
    return b"\r\n".join([
        b"POST /attach HTTP/1.1", b"Host: kolejka-observer", b"Content-Type: application/json; charset=utf-8",
        b"Content-Length: " + str(len(body)).encode(), b"", body,
    ])  # fmt: skip


class Talk:
    """One connection that stays open."""

    def __init__(self, door: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(door))

    def say(self, request: bytes) -> tuple[bytes, dict[str, object]]:
        self.socket.sendall(request)
        data = self.socket.recv(65536)  # once: answers come in one piece
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
        assert len(body) == length
        return head, json.loads(body)


@pytest.fixture
def talk(observer):
    talk = Talk(observer)
    yield talk
    talk.socket.close()


def test_a_session_is_opened_limited_measured_and_closed_on_one_connection(talk):
    head, opened = talk.say(recorded("open", {}))
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"content-type: application/json; charset=utf-8" in head.lower()
    assert opened["status"] == "ok"
    shown = {"session_id": opened["session_id"], "secret": opened["secret"]}
    dumped = {"cpus": 1, "cpus_offset": 0, "memory": "67108864b", "swap": "0b", "pids": 16, "time": "1.0s", "gpus": 0}
    assert talk.say(recorded("limits", {"limits": dumped, **shown}))[1] == {"status": "ok"}
    _, stats = talk.say(recorded("stats", shown))
    assert isinstance(stats["time"], float)
    assert {"cpu", "memory", "pids"} <= stats.keys()
    assert set(stats["cpu"]) == {"usage", "user", "system"}
    assert talk.say(recorded("freeze", shown))[1]["status"] == "ok"
    assert talk.say(recorded("thaw", shown))[1]["status"] == "ok"
    assert talk.say(recorded("kill", shown))[1]["status"] == "ok"
    assert talk.say(recorded("close", shown))[1]["status"] == "ok"
    _, after = talk.say(recorded("stats", shown))
    assert after["status"] == "ok", "stats are told after close"


def test_attach_without_a_session_creates_one_and_moves_the_caller(observer):
    code = f"""
import json, socket
talk = socket.socket(socket.AF_UNIX)
talk.connect({str(observer)!r})
talk.sendall({recorded("attach", {})!r})
answer = json.loads(talk.recv(65536).partition(b"\\r\\n\\r\\n")[2])
print(answer["session_id"], open("/proc/self/cgroup").read())
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    session = said.split()[0]
    assert said.count(f"/{ROOT}/{session}") >= 1


def test_a_launcher_that_reads_once_is_inside_before_it_goes_on(observer, talk):
    _, opened = talk.say(recorded("open", {}))
    request = raw_attach(opened)  # the answer as it is, with all its fields
    code = f"""
import os, socket
with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
    sock.connect({str(observer)!r})
    sock.sendall({request!r})
    sock.recv(1024)
os.execvp("cat", ["cat", "/proc/self/cgroup"])
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"/{ROOT}/{opened['session_id']}" in said
    shown = {"session_id": opened["session_id"], "secret": opened["secret"]}
    _, stats = talk.say(recorded("stats", shown))
    assert stats["cpu"]["usage"] > 0
    assert stats["memory"]["max_usage"] > 0
    talk.say(recorded("close", shown))


def test_a_detached_caller_is_back_outside(observer):
    code = f"""
import json, socket
talk = socket.socket(socket.AF_UNIX)
talk.connect({str(observer)!r})
def say(verb, fields):
    body = json.dumps(fields).encode()
    head = "POST /%s HTTP/1.1\\r\\nHost: x\\r\\nContent-Type: application/json; charset=utf-8\\r\\n"
    head += "Content-Length: %d\\r\\n\\r\\n"
    talk.sendall((head % (verb, len(body))).encode() + body)
    return json.loads(talk.recv(65536).partition(b"\\r\\n\\r\\n")[2])
before = open("/proc/self/cgroup").read()
session = say("attach", {{}})
assert open("/proc/self/cgroup").read() != before
assert say("detach", session)["status"] == "ok"
assert open("/proc/self/cgroup").read() == before
assert say("close", session)["status"] == "ok"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("request_line", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_health_is_asked_as_ever(talk, request_line):
    talk.socket.sendall(request_line)
    assert talk.socket.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_wrong_secret_is_forbidden(talk):
    _, opened = talk.say(recorded("open", {}))
    head, _ = talk.say(recorded("stats", {"session_id": opened["session_id"], "secret": "wrong"}))
    assert head.startswith(b"HTTP/1.1 403 ")
    talk.say(recorded("close", {"session_id": opened["session_id"], "secret": opened["secret"]}))


@pytest.mark.parametrize("limits", [{"perf_cycles": 5}, {"memory": "many"}, {"storage": "5b"}, {"gpus": 1}])
def test_limits_that_cannot_be_held_are_errors(talk, limits):
    _, opened = talk.say(recorded("open", {}))
    shown = {"session_id": opened["session_id"], "secret": opened["secret"]}
    head, answer = talk.say(recorded("limits", {"limits": limits, **shown}))
    assert head.startswith(b"HTTP/1.1 422 ")
    assert answer["error"]["field"].startswith("limits: ")
    talk.say(recorded("close", shown))

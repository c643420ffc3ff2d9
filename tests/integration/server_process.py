"""A server process of a test's own, and a caller that says exactly what the test wants to be said."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.neighbours.processes import Program
from tests.support import wait_until

AMOUNTS = {"cpus": 64, "memory": 64 << 30, "swap": 0, "pids": 100_000, "storage": 1 << 40, "workspace": 1 << 40}


@dataclass(frozen=True)
class Reply:
    """An answer: status, headers, bytes."""

    status: int
    headers: Mapping[str, str]
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def error(self) -> tuple[str, str | None]:
        """Code and field."""
        return self.json["error"]["code"], self.json["error"]["field"]


class Server:
    """``kolejka-server runserver`` on a free port and a folder of its own. ``start`` again after its death."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.options = options
        self.program: Program | None = None

    def start(self) -> Server:
        (self.data / "server.json").unlink(missing_ok=True)
        command = [
            sys.executable, "-m", "kolejka.server", "runserver", "--data", self.data, "--port", "0", *self.options,
        ]  # fmt: skip
        environment = {**os.environ, "XDG_CONFIG_HOME": str(self.folder / "none")}
        self.program = Program("server", command, self.folder / "server.log", environment)
        self.program.wait_ready((self.data / "server.json").exists, 60)
        return self

    @property
    def url(self) -> str:
        return str(json.loads((self.data / "server.json").read_text())["url"])

    @property
    def admin(self) -> Caller:
        return Caller(self, (self.data / "admin.token").read_text().strip())

    @property
    def worker(self) -> psutil.Process:
        """The process that serves."""
        assert self.program is not None
        (worker,) = psutil.Process(self.program.pid).children()
        return worker

    def user(self, name: str, role: str) -> Caller:
        """A new user with a token."""
        self.admin.ask("POST", "/users", {"name": name, "role": role}, status=201)
        return Caller(self, self.admin.ask("POST", "/tokens", {"user": name}, status=201).json["token"])

    def crash(self, worker: psutil.Process | None = None) -> None:
        """SIGKILL, and wait until nothing of it is left."""
        assert self.program is not None
        worker = worker or self.worker
        os.kill(self.program.pid, 9)
        self.program.process.wait()
        wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, about="worker gone")

    def stop(self) -> int:
        return self.program.stop() if self.program is not None else 0

    def log(self) -> str:
        return (self.folder / "server.log").read_text()


@dataclass
class Caller:
    """One who calls a server with a token."""

    server: Server
    token: str

    def connect(self) -> http.client.HTTPConnection:
        host, port = self.server.url.split("//")[1].split(":")
        return http.client.HTTPConnection(host, int(port), timeout=60)

    def ask(
        self, method: str, path: str, body: Any = None, *, data: Any = None, headers: Mapping[str, str] = {},
        status: int | None = None,
    ) -> Reply:  # fmt: skip
        """One request; AssertionError when the status is another than ``status``."""
        connection = self.connect()
        try:
            if body is not None:
                data = json.dumps(body)
            where = path if path.startswith(("/api", "/healthz", "/readyz", "/metrics")) else "/api/v1" + path
            said = {"Authorization": f"Bearer {self.token}"} if self.token else {}
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it answers before it has heard all
                connection.request(method, where, data, {**said, **headers})
            response = connection.getresponse()
            reply = Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()
        if status is not None:
            assert reply.status == status, (
                f"{method} {path}: {reply.status} {reply.data!r}\n{self.server.log()[-3000:]}"
            )
        return reply

    def raw(self, data: bytes, *, half_close: bool = False) -> bytes:
        """Whatever comes back when these bytes are sent."""
        host, port = self.server.url.split("//")[1].split(":")
        with socket.create_connection((host, int(port)), timeout=30) as door:
            door.sendall(data)
            if half_close:
                door.shutdown(socket.SHUT_WR)
            answer = b""
            while chunk := door.recv(65536):
                answer += chunk
            return answer

    # What users and nodes do

    def put(self, **words: Any) -> str:
        return str(self.ask("POST", "/tasks", {"args": ["true"], **words}, status=201).json["id"])

    def upload(self, data: bytes) -> str:
        sha = hashlib.sha256(data).hexdigest()
        assert self.ask("PUT", f"/blobs/{sha}", data=data).status in {200, 201}
        return sha

    def claim(self, node: str = "anvil", **words: Any) -> Any:
        body = {"node": node, "tags": [], "total": AMOUNTS, "capacity": AMOUNTS, "slots": 16, **words}
        return self.ask("POST", "/claims", body, status=200).json

    def beat(self, *leases: int, node: str = "anvil", **words: Any) -> Any:
        body = {"node": node, "tags": [], "total": AMOUNTS, "capacity": AMOUNTS, "leases": list(leases), **words}
        return self.ask("POST", "/heartbeats", body, status=200).json

    def finish(self, lease: int, *, status: int = 200, **words: Any) -> Reply:
        body = {"result": 0, "outcome": "ok", "files": [], "manifest": {}, **words}
        return self.ask("PUT", f"/attempts/{lease}/result", body, status=status)

    def state(self, task_id: str) -> str:
        return str(self.ask("GET", f"/tasks/{task_id}", status=200).json["state"])


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    what: str
    number: int | None
    data: Any


class Stream:
    """A caller who follows events. ``next`` is the next one, ``None`` when the stream has ended."""

    def __init__(self, caller: Caller, path: str = "/events", headers: Mapping[str, str] = {}) -> None:
        self._connection = caller.connect()
        said = {"Authorization": f"Bearer {caller.token}", **headers}
        self._connection.request("GET", "/api/v1" + path, headers=said)
        self.response = self._connection.getresponse()
        assert self.response.status == 200, self.response.read()
        self.hello = self.next()

    def next(self) -> Event | None:
        words: dict[str, str] = {}
        while line := self.response.readline().decode().rstrip("\n"):
            pass_over = line.startswith((":", "retry"))
            if not pass_over:
                name, _, words[name] = line.partition(": ")
        if not words:
            return self.next() if not self.response.isclosed() and self.response.peek(1) else None
        number = int(words["id"]) if "id" in words else None
        return Event(words["event"], number, json.loads(words["data"]))

    def close(self) -> None:
        self._connection.close()

"""A server for the client's tests: it keeps the contract, and breaks it on request.

``stub.fault("GET", "/tasks", act)`` makes ``act`` answer the next matching request instead of the stub. Everything that
was asked stands in ``stub.asked``.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "klj_" + "s" * 43
API = "/api/v1"


@dataclass
class Asked:
    """One request as it came."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes


@dataclass
class Fault:
    """One planned misbehaviour."""

    method: str
    path: str
    act: Callable[[Handler], None]
    times: int


@dataclass
class Stub:
    """The server's memory."""

    url: str = ""
    token: str = TOKEN
    blobs: dict[str, bytes] = field(default_factory=dict)
    incoming: dict[str, bytes] = field(default_factory=dict)
    """what broke off"""
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    runs: Callable[[Stub, str], None] | None = None
    """what happens to a task right after it was put"""

    def fault(self, method: str, path: str, act: Callable[[Handler], None], times: int = 1) -> None:
        """Let ``act`` answer the next ``times`` requests of this method whose path below the API matches ``path``."""
        self.faults.append(Fault(method, path, act, times))

    def count(self, method: str, path: str) -> int:
        """How many requests of this method came for paths that match."""
        return sum(1 for a in self.asked if a.method == method and re.fullmatch(path, a.path))

    def finish(self, task_id: str, result: dict[str, Any], files: dict[str, bytes] = {}) -> None:
        """Let a task be done with this result and these files."""
        manifest = {}
        for name, data in files.items():
            sha = hashlib.sha256(data).hexdigest()
            self.blobs[sha] = data
            manifest[name] = {"size": len(data), "mode": "0644", "sha256": sha}
        spec = {
            "id": task_id, "result": 0, "outcome": "ok", "files": list(manifest), "manifest": manifest,
            "limits": {}, "stats": {}, "node": {"name": "n", "tags": []}, "message": None, **result,
        }  # fmt: skip
        with self.changed:
            self.results[task_id] = spec
            self.tasks[task_id] |= {"state": "done", "outcome": spec["outcome"], "result": spec["result"]}
            self.changed.notify_all()


def status(code: int, body: Any = None, headers: dict[str, str] = {}) -> Callable[[Handler], None]:
    """Answer with this status and this JSON (or these bytes)."""

    def act(handler: Handler) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send(code, raw, headers)

    return act


def hang_up(handler: Handler) -> None:
    """End the connection without a word."""
    handler.close_connection = True
    handler.connection.close()


def cut_body(data: bytes, keep: int) -> Callable[[Handler], None]:
    """Announce all of ``data`` and send the first ``keep`` bytes."""

    def act(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:keep])
        handler.close_connection = True

    return act


class Handler(BaseHTTPRequestHandler):
    """The stub's door."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    stub: Stub

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def send(self, code: int, body: bytes = b"", headers: dict[str, str] = {}) -> None:
        """One whole answer."""
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, code: int, value: Any) -> None:
        """One whole answer in JSON."""
        self.send(code, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def error(self, code: int, word: str, message: str, field: str | None = None) -> None:
        """An error as the contract has it."""
        self.json(code, {"error": {"code": word, "message": message, "field": field}})

    def handle_any(self) -> None:
        """Every request comes through here."""
        parts = urlsplit(self.path)
        path = parts.path.removeprefix(API)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = Asked(self.command, path, parse_qs(parts.query), dict(self.headers.items()), body)
        self.stub.asked.append(asked)
        for fault in self.stub.faults:
            if fault.times and fault.method == self.command and re.fullmatch(fault.path, path):
                fault.times -= 1
                fault.act(self)
                return
        if path == "":
            self.json(200, {"version": "stub"})
        elif self.headers.get("Authorization") != f"Bearer {self.stub.token}":
            self.error(401, "unauthorized", "this token is not known")
        else:
            self.route(asked)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self.handle_any
        raise AttributeError(name)

    def route(self, asked: Asked) -> None:
        """The contract, as far as the client speaks of it."""
        steps = asked.path.strip("/").split("/")
        if steps[0] == "blobs":
            self.blob(asked, steps[1])
        elif asked.path == "/tasks/bulk" and asked.method == "POST":
            self.put_tasks(asked)
        elif asked.path == "/tasks" and asked.method == "POST":
            self.put_task(asked)
        elif asked.path == "/tasks":
            tasks = list(reversed(self.stub.tasks.values()))
            start = int(asked.query.get("after", ["0"])[0])
            size = int(asked.query.get("limit", ["100"])[0])
            following = str(start + size) if start + size < len(tasks) else None
            self.json(200, {"tasks": tasks[start : start + size], "next": following})
        elif steps[0] == "tasks":
            self.one_task(asked, steps)
        elif asked.path == "/whoami":
            self.json(200, {"user": "ann", "role": "client", "token": "t1"})
        elif asked.path == "/nodes":
            self.json(200, self.stub.nodes)
        elif asked.path == "/queues":
            self.json(200, [{"name": "default", "state": "open"}])
        else:
            self.error(404, "not_found", "there is no such thing")

    def blob(self, asked: Asked, sha: str) -> None:
        if asked.method == "POST":
            offset = len(self.stub.incoming.get(sha, b""))
            self.json(200, {"state": "stored"} if sha in self.stub.blobs else {"state": "wanted", "offset": offset})
        elif asked.method == "PUT":
            match = re.fullmatch(r"bytes ([0-9]+)-.*", asked.headers.get("Content-Range", ""))
            data = (self.stub.incoming.pop(sha, b"")[: int(match[1])] if match else b"") + asked.body
            if hashlib.sha256(data).hexdigest() != sha:
                self.error(422, "hash_mismatch", "the bytes have another hash", "sha256")
                return
            self.stub.blobs[sha] = data
            self.json(201, {"sha256": sha, "size": len(data)})
        elif sha not in self.stub.blobs:
            self.error(404, "not_found", "there is no such blob, or not for you")
        else:
            data = self.stub.blobs[sha]
            match = re.fullmatch(r"bytes=([0-9]+)-", asked.headers.get("Range", ""))
            if match:
                start = int(match[1])
                where = f"bytes {start}-{len(data) - 1}/{len(data)}"
                self.send(206, data[start:], {"Content-Range": where})
            else:
                self.send(200, data, {"Content-Length": str(len(data))})

    def put_tasks(self, asked: Asked) -> None:
        key = asked.headers.get("Idempotency-Key", "")
        specs = json.loads(asked.body)["tasks"]
        self.json(201, {"tasks": [self.accept(spec, f"{key}-{place}") for place, spec in enumerate(specs)]})

    def put_task(self, asked: Asked) -> None:
        spec = json.loads(asked.body)
        key = asked.headers.get("Idempotency-Key", "")
        for name, file in spec.get("files", {}).items():
            if "reference" in file and file["reference"] not in self.stub.blobs:
                self.error(422, "blob_missing", "the server does not have it", f"files.{name}")
                return
        self.json(201, self.accept(spec, key))

    def accept(self, spec: dict[str, Any], key: str) -> dict[str, Any]:
        if key in self.stub.keys:
            return self.stub.tasks[self.stub.keys[key]]
        task_id = f"01k9{len(self.stub.keys):04d}{18 * 'z'}"
        task = {
            "id": task_id, "state": "waiting", "owner": "ann", "queue": spec.get("queue", "default"), "priority": 0,
            "name": spec.get("name"), "labels": {}, "created_at": "2026-01-01T12:00:00.123Z", "outcome": None,
            "result": None, "node": None, "spec": spec, "attempts": [],
        }  # fmt: skip
        self.stub.tasks[task_id] = task
        self.stub.keys[key] = task_id
        if self.stub.runs is not None:
            self.stub.runs(self.stub, task_id)
        return task

    def one_task(self, asked: Asked, steps: list[str]) -> None:
        task = self.stub.tasks.get(steps[1])
        if task is None:
            self.error(404, "not_found", "there is no such task, or not for you")
        elif steps[2:] == ["result"]:
            deadline = time.monotonic() + float(asked.query.get("wait", ["0"])[0])
            with self.stub.changed:
                while steps[1] not in self.stub.results and time.monotonic() < deadline:
                    self.stub.changed.wait(deadline - time.monotonic())
            if steps[1] in self.stub.results:
                self.json(200, self.stub.results[steps[1]])
            else:
                self.json(202, {"state": task["state"]})
        elif steps[2:] == ["why"]:
            self.json(200, {"why": "no node is connected", "reasons": ["no node is connected"]})
        elif steps[2:] == ["cancel"] and task["state"] == "done":
            self.error(409, "conflict", "this task is done; there is nothing to cancel")
        elif steps[2:] == ["cancel"]:
            self.stub.finish(steps[1], {"outcome": "cancelled", "result": None})
            self.json(200, self.stub.tasks[steps[1]])
        elif asked.method == "DELETE":
            if task["state"] != "done":
                self.error(409, "conflict", "cancel it first")
            else:
                del self.stub.tasks[steps[1]]
                self.send(204)
        else:
            self.json(200, task)


class Server(ThreadingHTTPServer):
    """A server whose end also ends the connections it keeps, as the end of a process does."""

    daemon_threads = True
    request_queue_size = 64

    def get_request(self) -> tuple[socket.socket, Any]:
        """Remember every connection."""
        connection, address = super().get_request()
        self.__dict__.setdefault("connections", []).append(connection)
        return connection, address

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news here."""

    def hang_up(self) -> None:
        """End every connection."""
        for connection in self.__dict__.get("connections", []):
            with suppress(OSError):  # ended already
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def serving(stub: Stub, port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[Stub]:
    """The stub at its address, until the block ends."""
    handler = type("BoundHandler", (Handler,), {"stub": stub})
    server = Server(("127.0.0.1", port), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    stub.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.hang_up()
        server.server_close()
        thread.join()

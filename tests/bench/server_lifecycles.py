"""How many whole lifecycles (put, claim, result) a server does in a second.

``python -m tests.bench.server_lifecycles`` prints JSON: lifecycles per second, processor time of the server for each,
and the latencies of each kind of request. Sixteen connections put tasks, claim them sixteen at a time and hand in
results, all at once, against a server process of this measurement's own on loopback, with its defaults (every answer
durable). The requests are written by hand: a client library would measure itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil

from tests.neighbours import needs
from tests.neighbours.postgres import Postgres
from tests.neighbours.processes import Program

CONNECTIONS = 16
BATCH = 16
AMOUNTS = {"cpus": 1024, "memory": 1 << 50, "swap": 0, "pids": 1 << 30, "storage": 1 << 60, "workspace": 1 << 60}


class Connection:
    """One connection that stays open."""

    def __init__(self, host: str, port: int, token: str, seen: dict[str, list[float]]) -> None:
        self._address = host, port
        self._head = f"HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nContent-Length: ".encode()
        self._seen = seen

    async def open(self) -> None:
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection(*self._address)

    async def ask(self, kind: str, method: str, path: str, body: Any) -> Any:
        """The JSON answer; RuntimeError when it is an error."""
        data = json.dumps(body).encode()
        begun = time.perf_counter()
        self._writer.write(f"{method} /api/v1{path} ".encode() + self._head + b"%d\r\n\r\n" % len(data) + data)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        answer = await self._reader.readexactly(length)
        self._seen[kind].append(time.perf_counter() - begun)
        if not head.startswith(b"HTTP/1.1 2"):
            raise RuntimeError(answer.decode())
        return json.loads(answer)


async def live(connection: Connection, number: int, until: float, *, together: bool) -> int:
    """Lifecycles of one connection, in batches, until the time is over; how many were finished."""
    finished = 0
    spec = {"args": ["true"], "limits": {"time": "10s", "memory": "64M"}, "stdout": "stdout.txt"}
    claim = {
        "node": f"node-{number}", "tags": ["cpu:x"], "total": AMOUNTS, "capacity": AMOUNTS, "slots": BATCH, "wait": 1,
    }  # fmt: skip
    while time.monotonic() < until:
        if together:
            await connection.ask("put", "POST", "/tasks/bulk", {"tasks": [spec] * BATCH})
        else:
            for _ in range(BATCH):
                await connection.ask("put", "POST", "/tasks", spec)
        left = BATCH
        while left > 0:
            given = (await connection.ask("claim", "POST", "/claims", claim))["attempts"]
            if not given:
                break
            results = []
            for attempt in given:
                result = {
                    "id": attempt["task_id"], "result": 0, "outcome": "ok", "files": [], "manifest": {},
                    "limits": attempt["spec"]["limits"], "node": {"name": claim["node"], "tags": claim["tags"]},
                    "stats": {"time": 0.004, "cpu": {"usage": 0.002}, "memory": {"max_usage": 1234567}},
                }  # fmt: skip
                results.append({"lease": attempt["lease"], "result": result})
                if not together:
                    await connection.ask("result", "PUT", f"/attempts/{attempt['lease']}/result", result)
            if together:
                told = await connection.ask("result", "POST", "/attempts/results", {"results": results})
                assert all(one.get("state") == "done" for one in told["results"]), told
            finished += len(given)
            left -= len(given)
    return finished


async def measure(host: str, port: int, token: str, seconds: float, *, together: bool) -> dict[str, Any]:
    """The figures."""
    seen: dict[str, list[float]] = defaultdict(list)
    connections = [Connection(host, port, token, seen) for _ in range(CONNECTIONS)]
    for connection in connections:
        await connection.open()
    begun = time.monotonic()
    counts = await asyncio.gather(
        *(live(connection, number, begun + seconds, together=together) for number, connection in enumerate(connections))
    )
    passed = time.monotonic() - begun
    latencies = {
        kind: {
            "count": len(times),
            "median_ms": round(statistics.median(times) * 1000, 2),
            "p99_ms": round(sorted(times)[int(len(times) * 0.99)] * 1000, 2),
        }
        for kind, times in seen.items()
    }
    return {"lifecycles_per_s": round(sum(counts) / passed, 1), "lifecycles": sum(counts), "latency": latencies}


def run(seconds: float = 10.0) -> dict[str, Any]:
    """Both engines, with requests for one task and for a batch."""
    figures: dict[str, Any] = {"connections": CONNECTIONS, "batch": BATCH}
    for together in (False, True):
        kind = "batched" if together else "single"
        figures[f"sqlite_{kind}"] = serve(seconds, together=together)
        if not needs.lacking("postgres"):
            figures[f"postgres_{kind}"] = with_postgres(seconds, together=together)
    return {"server": figures}


def with_postgres(seconds: float, *, together: bool) -> dict[str, Any]:
    """On a PostgreSQL that waits for the disk, with two server processes."""
    database = Postgres(durable=True)
    try:
        database.start()
        url = database.url(database.create())
        return serve(seconds, processes=2, together=together, database=url)
    finally:
        database.stop()


def serve(seconds: float, *, processes: int = 1, together: bool, database: str = "") -> dict[str, Any]:
    """Start a server, measure, stop it."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        environment = {**os.environ, "KOLEJKA_LOG_LEVEL": "warning", "KOLEJKA_SERVER_DATABASE": database}
        options = ("--port", "0", "--processes", str(processes))
        command = [sys.executable, "-m", "kolejka.server", "runserver", "--data", data, *options]
        server = Program("server", command, Path(folder) / "log", environment)
        try:
            program = psutil.Process(server.pid)
            server.wait_ready(lambda: (data / "server.json").exists() and len(program.children()) == processes)
            url = json.loads((data / "server.json").read_text())["url"]
            token = (data / "admin.token").read_text().strip()
            host, port = url.removeprefix("http://").split(":")
            family = program.children()
            before = sum(sum(worker.cpu_times()[:2]) for worker in family)
            figures = asyncio.run(measure(host, int(port), token, seconds, together=together))
            spent_s = sum(sum(worker.cpu_times()[:2]) for worker in family) - before
            figures["server_cpu_ms_per_lifecycle"] = round(spent_s * 1000 / figures["lifecycles"], 3)
        finally:
            server.stop()
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    print(json.dumps(run(parser.parse_args().seconds), indent=2))

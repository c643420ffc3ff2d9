"""What the heartbeats of many nodes cost a server.

``python -m tests.bench.heartbeats [--nodes N]`` prints JSON: processor time of the server for one heartbeat, and which
part of one processor N nodes take that say three times in each heartbeat time that they live. Every node is heard once
before anything counts, so that what is measured is the steady state.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.bench.server_lifecycles import AMOUNTS, CONNECTIONS, Connection
from tests.neighbours.processes import Program

BEATS_IN_A_HEARTBEAT_TIME = 3


async def beat(connection: Connection, names: Sequence[str]) -> float:
    """A heartbeat of each of these nodes; the heartbeat time that the server told, in seconds."""
    told = 0.0
    for name in names:
        words = {
            "node": name,
            "tags": ["cpu:x", f"hostname:{name}"],
            "total": AMOUNTS,
            "capacity": AMOUNTS,
            "leases": [],
        }
        told = (await connection.ask("heartbeat", "POST", "/heartbeats", words))["heartbeat_s"]
    return told


async def measure(host: str, port: int, token: str, server: psutil.Process, nodes: int) -> dict[str, Any]:
    """The figures."""
    connections = [Connection(host, port, token, defaultdict(list)) for _ in range(CONNECTIONS)]
    for connection in connections:
        await connection.open()
    names = [f"node-{number}" for number in range(nodes)]

    async def sweep() -> float:
        shares = [names[number::CONNECTIONS] for number in range(CONNECTIONS)]
        return max(await asyncio.gather(*map(beat, connections, shares)))

    def spent_s() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in server.children())

    await sweep()
    before = spent_s()
    heartbeat_s = await sweep()
    cost_s = (spent_s() - before) / nodes
    return {
        "nodes": nodes,
        "heartbeat_ms_of_cpu": round(cost_s * 1000, 3),
        "part_of_one_cpu": round(cost_s * nodes * BEATS_IN_A_HEARTBEAT_TIME / heartbeat_s, 3),
    }


def run(nodes: int = 10_000) -> dict[str, Any]:
    """Start a server, measure, stop it."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        command = [sys.executable, "-m", "kolejka.server", "runserver", "--data", data, "--port", "0"]
        server = Program("server", command, Path(folder) / "log", {**os.environ, "KOLEJKA_LOG_LEVEL": "warning"})
        try:
            server.wait_ready((data / "server.json").exists)
            url = json.loads((data / "server.json").read_text())["url"]
            token = (data / "admin.token").read_text().strip()
            host, port = url.removeprefix("http://").split(":")
            return asyncio.run(measure(host, int(port), token, psutil.Process(server.pid), nodes))
        finally:
            server.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=10_000)
    print(json.dumps(run(parser.parse_args().nodes), indent=2))

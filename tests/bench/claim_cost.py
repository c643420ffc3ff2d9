"""What a claim costs with few and with very many tasks waiting.

``python -m tests.bench.claim_cost [--tasks N]`` prints JSON: processor time of a claim of one task, on the embedded
engine, with a thousand and with N tasks waiting (half of them impossible on the node, of two owners), and the ratio.
The medians are of rounds that take turns between the two databases.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from kolejka.common.limits import Limits
from kolejka.common.task import Task
from kolejka.server import intake
from kolejka.server.auth.roles import Role
from kolejka.server.auth.tokens import Caller
from kolejka.server.scheduling.classes import Classes
from kolejka.server.storage.base import Connection
from kolejka.server.storage.sqlite import SqliteStore, migrate
from tests.conformance.storage.conftest import Cluster

ROUNDS = 40
CLAIMS = 5
PIECE = 10_000


def put(cluster: Cluster, owner: Caller, count: int, **words: object) -> None:
    """So many tasks in one transaction, as a bulk put does."""
    considered = intake.consider(
        Task.parse({"args": ["true"], **words}), defaults=Limits.of(cpus=1, memory="64M", time="10s"), ceilings=Limits()
    )

    def work(db: Connection) -> None:
        door = intake.Door(db, [considered], owner, cluster.wall)
        for _ in range(count):
            door.admit(considered, None)
        door.close()

    cluster.store.write(work).result()


def filled(folder: Path, tasks: int, stack: ExitStack) -> tuple[Cluster, Caller]:
    """A database with so many waiting tasks, and the user of a node."""
    migrate(folder / "kolejka.sqlite")
    classes = Classes()
    store = SqliteStore(folder / "kolejka.sqlite", classes.heard)
    stack.callback(store.close)
    cluster = Cluster(store, classes, hears=True)
    owners = [cluster.user("ala"), cluster.user("ola")]
    left = tasks
    while left > 0:
        count = min(PIECE, max(left // 4, 1))
        for owner in owners:
            put(cluster, owner, count)
            put(cluster, owner, count, requires=["gpu"], priority=3)
        left -= 4 * count
    return cluster, cluster.user("smith", Role.NODE)


def run(tasks: int = 1_000_000) -> dict[str, float]:
    """The figures."""
    with ExitStack() as stack:
        sizes = {"few": 1000, "many": tasks}
        databases = {
            name: filled(Path(stack.enter_context(tempfile.TemporaryDirectory())), size, stack)
            for name, size in sizes.items()
        }
        taken: dict[str, list[float]] = {name: [] for name in sizes}
        for turn in range(ROUNDS + 3):
            for name, (cluster, smith) in databases.items():
                begun = time.process_time()
                given = [one for _ in range(CLAIMS) for one in cluster.claim(smith, slots=1).given]
                spent = time.process_time() - begun
                if len(given) != CLAIMS:
                    raise RuntimeError("a claim was given nothing")
                for one in given:
                    cluster.finish(smith, one.lease)
                if turn >= 3:  # the first rounds warm caches
                    taken[name].append(spent / CLAIMS)
        few, many = (statistics.median(taken[name]) * 1000 for name in ("few", "many"))
    return {
        "waiting": tasks,
        "claim_ms_with_1000": round(few, 3),
        "claim_ms": round(many, 3),
        "ratio": round(many / few, 3),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=1_000_000)
    print(json.dumps(run(parser.parse_args().tasks), indent=2))

"""What owners took of the cluster, and the nodes that are kept for waiting tasks: what fairness goes by.

A result writes its row of the accounting as not yet charged, and changes nothing that others write; ``fold`` adds such
rows to their owners' usage, each once. So results of one owner never wait for each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from kolejka.server.scheduling.fairness import decayed
from kolejka.server.storage.base import Connection, Row, marks, pieces


@dataclass(frozen=True)
class Reservation:
    """A node that is kept for a waiting task."""

    node: str
    number: int
    owner: int
    cpus: float
    signature: int
    queue: str
    rank: int


def of_owners(
    db: Connection, owners: Collection[int], *, half_life_s: float, now: float
) -> Callable[[], dict[int, float]]:
    """Ask for owner → CPU seconds, decayed until now."""
    asked = [
        db.soon(f"SELECT owner_id, amount, at FROM owner_usage WHERE owner_id IN ({marks(some)})", *some)  # noqa: S608 marks
        for some in pieces(owners)
    ]
    return lambda: {
        owner: decayed(amount, now - at, half_life_s) for rows in asked for owner, amount, at in rows()
    }  # fmt: skip


def uncharged(db: Connection) -> bool:
    """Whether there is something to fold."""
    return db.row("SELECT 1 FROM accounting WHERE charged = 0 LIMIT 1") is not None


def fold(db: Connection, *, half_life_s: float, most: int = 10_000) -> int:
    """Charge the oldest results that are not charged yet to their owners; how many."""
    rows = db.rows(
        "UPDATE accounting SET charged = 1 WHERE charged = 0 AND lease IN"
        " (SELECT lease FROM accounting WHERE charged = 0 ORDER BY lease LIMIT ?)"
        " RETURNING owner_id, started_at, finished_at, wall, cpus",
        most,
    )
    charges: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for owner, started_at, finished_at, wall, cpus in rows:
        took_s = max(0.0, finished_at - started_at) if wall is None else wall
        charges[owner].append((finished_at, took_s * (cpus or 0.0)))
    for owner, some in sorted(charges.items()):
        while not _charge(db, owner, some, half_life_s):  # another process was faster
            pass
    return len(rows)


def _charge(db: Connection, owner: int, charges: Collection[tuple[float, float]], half_life_s: float) -> bool:
    row = db.row("SELECT amount, at FROM owner_usage WHERE owner_id = ?", owner)
    latest = max(at for at, _ in charges)
    added = [decayed(amount, latest - at, half_life_s) for at, amount in charges]
    if row is None:
        return bool(db.run(
            "INSERT INTO owner_usage (owner_id, amount, at) VALUES (?, ?, ?) ON CONFLICT (owner_id) DO NOTHING",
            owner, sum(added), latest,
        ))  # fmt: skip
    amount, at = row
    now = max(at, latest)
    total = decayed(amount, now - at, half_life_s) + decayed(sum(added), now - latest, half_life_s)
    return bool(db.run(
        "UPDATE owner_usage SET amount = ?, at = ? WHERE owner_id = ? AND amount = ? AND at = ?",
        total, now, owner, amount, at,
    ))  # fmt: skip


def reservations(db: Connection, *, heard_after: float) -> Callable[[], list[Reservation]]:
    """Ask for the reservations that hold: the task still waits, the node takes tasks and was heard."""
    rows = db.soon("SELECT node, number, owner_id, cpus FROM reservations")  # few, mostly none: no join of big tables
    return lambda: _holding(db, rows(), heard_after)


def _holding(db: Connection, rows: list[Row], heard_after: float) -> list[Reservation]:
    waiting: dict[int, list[Any]] = {}
    active: set[str] = set()
    for some in pieces(rows):
        nodes, numbers = [row[0] for row in some], [row[1] for row in some]
        for number, *words, state in db.rows(
            f"SELECT number, signature_id, queue, rank, state FROM tasks WHERE number IN ({marks(numbers)})",  # noqa: S608 marks
            *numbers,
        ):
            if state == "waiting":
                waiting[number] = words
        active.update(row[0] for row in db.rows(
            f"SELECT name FROM nodes WHERE name IN ({marks(nodes)}) AND state = 'active' AND last_seen >= ?",  # noqa: S608 marks
            *nodes, heard_after,
        ))  # fmt: skip
    return [Reservation(*row, *waiting[row[1]]) for row in rows if row[0] in active and row[1] in waiting]


def reserve(db: Connection, node: str, number: int, owner: int, cpus: float) -> bool:
    """Keep a node for a task; False when another process just kept another node for it."""
    db.run("DELETE FROM reservations WHERE node = ? OR number = ?", node, number)
    return bool(db.run(
        "INSERT INTO reservations (node, number, owner_id, cpus) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        node, number, owner, cpus,
    ))  # fmt: skip


def unreserve(db: Connection, number: int) -> None:
    """No node is kept for this task any more."""
    db.run("DELETE FROM reservations WHERE number = ?", number)

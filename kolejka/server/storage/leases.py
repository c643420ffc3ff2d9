"""The attempts that run now, and the history of those that ended."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from kolejka.server.storage.base import Connection, marks, pieces


@dataclass(frozen=True)
class Held:
    """An attempt, its task and its node's user, as one who shows a lease sees them."""

    lease: int
    number: int
    node: str
    state: str
    started_at: float
    outcome: str | None
    result_hash: str | None
    task_state: str | None
    user_id: int
    task_id: str
    owner_id: int
    queue: str
    signature: int
    cancelled: bool
    losses: int
    retries: int
    retry: str | None


_HELD = (
    "SELECT a.lease, a.number, a.node, a.state, a.started_at, a.outcome, a.result_hash, a.task_state, n.user_id, t.id,"
    " t.owner_id, t.queue, t.signature_id, t.cancel_at IS NOT NULL, t.losses, t.retries, t.retry"
    " FROM attempts a JOIN tasks t ON t.number = a.number JOIN nodes n ON n.name = a.node"
)


def held(db: Connection, lease: int) -> Held | None:
    """The attempt of a lease, whatever its state."""
    row = db.row(_HELD + " WHERE a.lease = ?", lease)
    return Held(*row) if row else None


def begin(
    db: Connection, number: int, owner_id: int, node: str, *, exclusive: bool, wall: float, steady: float,
    deadline_s: float | None,
) -> int:  # fmt: skip
    """A new attempt at a task; its lease. ``wall`` is for the record, the clocks start at ``steady``."""
    row = db.row(
        "INSERT INTO attempts (number, node, state, started_at) VALUES (?, ?, 'running', ?) RETURNING lease",
        number, node, wall,
    )  # fmt: skip
    assert row is not None  # RETURNING gives the row that was made
    db.run(
        "INSERT INTO leases (lease, number, owner_id, node, exclusive, heartbeat_at, deadline_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        row[0], number, owner_id, node, int(exclusive), steady,
        None if deadline_s is None else steady + deadline_s,
    )  # fmt: skip
    return int(row[0])


def end(
    db: Connection, lease: int, *, state: str, now: float, outcome: str | None, message: str | None = None,
    result_hash: str | None = None, task_state: str,
) -> None:  # fmt: skip
    """An attempt has ended: its lease opens nothing any more."""
    db.run("DELETE FROM leases WHERE lease = ?", lease)
    db.run(
        "UPDATE attempts SET state = ?, finished_at = ?, outcome = ?, message = ?, result_hash = ?, task_state = ?"
        " WHERE lease = ?",
        state, now, outcome, message, result_hash, task_state, lease,
    )  # fmt: skip


def renew(db: Connection, node: str, leases: Collection[int], now: float) -> set[int]:
    """Heartbeats for those of these leases that the node still holds; which they are."""
    kept: set[int] = set()
    for some in pieces(leases):
        kept.update(row[0] for row in db.rows(
            f"UPDATE leases SET heartbeat_at = ? WHERE node = ? AND lease IN ({marks(some)}) RETURNING lease",  # noqa: S608 marks
            now, node, *some,
        ))  # fmt: skip
    return kept


def cancelled(db: Connection, node: str) -> list[int]:
    """The leases of a node whose tasks are to be stopped."""
    return [row[0] for row in db.rows(
        "SELECT l.lease FROM leases l JOIN tasks t ON t.number = l.number WHERE l.node = ? AND t.cancel_at IS NOT NULL"
        " ORDER BY l.lease",
        node,
    )]  # fmt: skip


def exclusive_on(db: Connection, node: str) -> bool:
    """Whether an exclusive task runs on the node."""
    return db.row("SELECT 1 FROM leases WHERE node = ? AND exclusive = 1 LIMIT 1", node) is not None


def any_on(db: Connection, node: str) -> bool:
    """Whether anything runs on the node."""
    return db.row("SELECT 1 FROM leases WHERE node = ? LIMIT 1", node) is not None


def signatures(db: Connection, leases: Collection[int]) -> list[int]:
    """The signatures of the tasks behind those of these leases that are still held."""
    return [row[0] for some in pieces(leases) for row in db.rows(
        f"SELECT t.signature_id FROM leases l JOIN tasks t ON t.number = l.number WHERE l.lease IN ({marks(some)})",  # noqa: S608 marks
        *some,
    )]  # fmt: skip


def running_by_owner(db: Connection) -> dict[int, int]:
    """Owner → running attempts."""
    return dict(db.rows("SELECT owner_id, COUNT(*) FROM leases GROUP BY owner_id"))


def watched(db: Connection, *, silent_before: float, now: float) -> list[tuple[int, float, float | None]]:
    """Lease, last heartbeat and deadline of the attempts on which a clock may have run out."""
    return [tuple(row) for row in db.rows(
        "SELECT lease, heartbeat_at, deadline_at FROM leases WHERE heartbeat_at < ? OR deadline_at < ? ORDER BY lease",
        silent_before, now,
    )]  # fmt: skip


def shift(db: Connection, seconds: float) -> int:
    """Move both clocks of every attempt: time in which the server could hear nobody does not count."""
    return db.run("UPDATE leases SET heartbeat_at = heartbeat_at + ?, deadline_at = deadline_at + ?", seconds, seconds)


def last_heard(db: Connection) -> float | None:
    """The latest heartbeat of all."""
    row = db.row("SELECT MAX(heartbeat_at) FROM leases")
    return row[0] if row else None


def history(db: Connection, number: int) -> list[dict[str, Any]]:
    """A task's attempts, oldest first."""
    names = ("lease", "node", "state", "started_at", "finished_at", "outcome", "message")
    rows = db.rows(
        "SELECT lease, node, state, started_at, finished_at, outcome, message FROM attempts WHERE number = ?"
        " ORDER BY lease",
        number,
    )
    return [dict(zip(names, row, strict=True)) for row in rows]

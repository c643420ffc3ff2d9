"""The attempts that run now, and the history of those that ended."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kolejka.server.storage.base import Asked, Connection, marks, pieces


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
    rank: int
    cancelled: bool
    losses: int
    retries: int
    retry: str | None
    cpus: float
    """what it keeps from others while it runs"""


_HELD = (
    "SELECT a.lease, a.number, a.node, a.state, a.started_at, a.outcome, a.result_hash, a.task_state, n.user_id, t.id,"
    " t.owner_id, t.queue, t.signature_id, t.rank, t.cancel_at IS NOT NULL, t.losses, t.retries, t.retry,"
    " COALESCE(l.cpus, 0)"
    " FROM attempts a JOIN tasks t ON t.number = a.number JOIN nodes n ON n.name = a.node"
    " LEFT JOIN leases l ON l.lease = a.lease"
)


def take_in_hand(db: Connection, leases: Collection[int]) -> dict[int, Held]:
    """Lease → its attempt, whatever its state; they and their tasks change only here until this transaction ends."""
    return {row[0]: Held(*row) for some in pieces(sorted(leases)) for row in db.rows(
        f"{_HELD} WHERE a.lease IN ({marks(some)}) ORDER BY a.lease FOR UPDATE OF a, t", *some
    )}  # fmt: skip


@dataclass(frozen=True)
class Begun:
    """An attempt that begins. ``cpus`` is what it keeps from others."""

    lease: int
    number: int
    owner_id: int
    queue: str
    cpus: float
    exclusive: bool
    deadline_s: float | None


def attempts(db: Connection, numbers: Sequence[int], node: str, *, wall: float) -> Callable[[], dict[int, int]]:
    """New attempts at tasks, for the record; what that gives has task number → lease."""
    asked = []
    for some in pieces(numbers):
        text, values = db.table(
            [(number, node, "running", wall) for number in some], ("BIGINT", "TEXT", "TEXT", "DOUBLE PRECISION")
        )
        asked.append(db.soon(
            f"INSERT INTO attempts (number, node, state, started_at) SELECT * FROM {text} AS v RETURNING number, lease",  # noqa: S608 marks
            *values,
        ))  # fmt: skip
    return lambda: {number: lease for rows in asked for number, lease in rows()}


def begin(db: Connection, begun: Sequence[Begun], node: str, *, steady: float) -> None:
    """Their leases; the clocks start at ``steady``."""
    for some in pieces(begun):
        text, values = db.table(
            [
                (one.lease, one.number, one.owner_id, node, int(one.exclusive), steady,
                 None if one.deadline_s is None else steady + one.deadline_s, one.queue, one.cpus, steady)
                for one in some
            ],
            ("BIGINT", "BIGINT", "INTEGER", "TEXT", "INTEGER", "DOUBLE PRECISION", "DOUBLE PRECISION", "TEXT",
             "DOUBLE PRECISION", "DOUBLE PRECISION"),
        )  # fmt: skip
        db.later(
            "INSERT INTO leases (lease, number, owner_id, node, exclusive, heartbeat_at, deadline_at, queue, cpus,"  # noqa: S608 marks
            f" started_at) SELECT * FROM {text} AS v",
            *values,
        )


@dataclass(frozen=True)
class Ended:
    """How an attempt ended, and what its task's state is by it."""

    lease: int
    state: str
    outcome: str | None
    task_state: str
    message: str | None = None
    result_hash: str | None = None


def end(db: Connection, ended: Sequence[Ended], now: float) -> None:
    """Attempts in hand have ended: their leases open nothing any more."""
    for some in pieces(ended):
        db.later(
            f"DELETE FROM leases WHERE lease IN ({_in_order(some)})", *(one.lease for one in some)  # noqa: S608 marks
        )  # fmt: skip
        rows = [(o.lease, o.state, o.outcome, o.message, o.result_hash, o.task_state) for o in some]
        text, values = db.table(rows, ("BIGINT", *["TEXT"] * 5))
        db.later(
            "UPDATE attempts SET finished_at = ?, state = v.column2, outcome = v.column3, message = v.column4,"  # noqa: S608 marks
            f" result_hash = v.column5, task_state = v.column6 FROM {text} AS v WHERE lease = v.column1",
            now, *values,
        )  # fmt: skip


def _in_order(some: Sequence[object]) -> str:
    """SQL that names leases, locked in their order, so that two who change the same ones never wait for each other."""
    return f"SELECT lease FROM leases WHERE lease IN ({marks(some)}) ORDER BY lease FOR UPDATE"  # noqa: S608 marks


def renew(db: Connection, node: str, leases: Collection[int], now: float) -> set[int]:
    """Heartbeats for those of these leases that the node still holds; which they are."""
    kept: set[int] = set()
    for some in pieces(leases):
        kept.update(row[0] for row in db.rows(
            f"UPDATE leases SET heartbeat_at = ? WHERE node = ? AND lease IN ({_in_order(some)}) RETURNING lease",  # noqa: S608 marks
            now, node, *some,
        ))  # fmt: skip
    return kept


class OnNode(NamedTuple):
    """An attempt that runs on a node."""

    lease: int
    exclusive: int
    cancelled: bool
    signature: int
    started_at: float
    """on the shared clock"""


def on(db: Connection, node: str) -> Callable[[], list[OnNode]]:
    """Ask what runs on a node, as of now: by lease."""
    rows = db.soon(
        "SELECT l.lease, l.exclusive, t.cancel_at IS NOT NULL, t.signature_id, l.started_at"
        " FROM leases l JOIN tasks t ON t.number = l.number WHERE l.node = ? ORDER BY l.lease",
        node,
    )  # fmt: skip
    return lambda: [OnNode(*row) for row in rows()]


def any_on(db: Connection, node: str) -> Callable[[], bool]:
    """Ask whether anything runs on the node."""
    rows = db.soon("SELECT 1 FROM leases WHERE node = ? LIMIT 1", node)
    return lambda: bool(rows())


def running(db: Connection) -> Asked:
    """Ask for owner, queue, how many attempts run, how many CPUs they keep, and the sum of CPUs times start."""
    return db.soon(
        "SELECT owner_id, queue, COUNT(*), SUM(cpus), SUM(cpus * started_at) FROM leases GROUP BY owner_id, queue"
    )


def ends_on(db: Connection, node: str) -> list[tuple[int, float | None]]:
    """Signature and deadline of each attempt on a node."""
    return [tuple(row) for row in db.rows(
        "SELECT t.signature_id, l.deadline_at FROM leases l JOIN tasks t ON t.number = l.number WHERE l.node = ?", node
    )]  # fmt: skip


def is_watched(db: Connection, *, silent_before: float, now: float) -> bool:
    """Whether a clock may have run out on an attempt."""
    return db.row(
        "SELECT 1 FROM leases WHERE heartbeat_at < ? OR deadline_at < ? LIMIT 1", silent_before, now
    ) is not None  # fmt: skip


def watched(db: Connection, *, silent_before: float, now: float) -> list[tuple[int, float, float | None]]:
    """Lease, last heartbeat and deadline of the attempts on which a clock may have run out, in hand.

    Those that somebody else has in hand are left out: they are being renewed, ended or taken back just now.
    """
    return [tuple(row) for row in db.rows(
        "SELECT l.lease, l.heartbeat_at, l.deadline_at FROM leases l JOIN attempts a ON a.lease = l.lease"
        " WHERE l.heartbeat_at < ? OR l.deadline_at < ? ORDER BY l.lease FOR UPDATE OF l, a SKIP LOCKED",
        silent_before, now,
    )]  # fmt: skip


def wind(db: Connection, steady: float) -> float:
    """Bring the clock that the servers share to here, unless it is further; how far it is."""
    row = db.row(
        "UPDATE clock SET steady = CASE WHEN steady < ? THEN ? ELSE steady END WHERE id = 1 RETURNING steady",
        steady, steady,
    )  # fmt: skip
    assert row is not None  # the schema was made with it
    return float(row[0])


def count(db: Connection) -> int:
    """How many attempts run."""
    row = db.row("SELECT COUNT(*) FROM leases")
    return int(row[0]) if row else 0


def history(db: Connection, number: int) -> list[dict[str, Any]]:
    """A task's attempts, oldest first."""
    names = ("lease", "node", "state", "started_at", "finished_at", "outcome", "message")
    rows = db.rows(
        "SELECT lease, node, state, started_at, finished_at, outcome, message FROM attempts WHERE number = ?"
        " ORDER BY lease",
        number,
    )
    return [dict(zip(names, row, strict=True)) for row in rows]

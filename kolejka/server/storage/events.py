"""What happened to tasks, for those who follow it. One row for each step, written with the step itself.

Numbers only grow, but where several transactions write at once a smaller one may become visible after a larger one:
readers go by ``kolejka.server.following``, which knows how far all is settled.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Final

from kolejka.common.states import TaskState
from kolejka.server.storage.base import Connection, marks, pieces

CANCELLING: Final = "cancelling"
DELETED: Final = "deleted"
_COLUMNS: Final = ("id", "at", "what", "task_id", "queue", "lease", "node", "outcome")


_RECORD: Final = (
    "INSERT INTO events (at, what, task_id, owner_id, queue, lease, node, outcome)"
    " SELECT ?, ?, id, owner_id, queue, lease, node, outcome FROM tasks"
)


def record_new(db: Connection, ids: Iterable[str], now: float) -> None:
    """Write down that tasks wait which this transaction has made."""
    for some in pieces(ids):
        db.later(f"{_RECORD} WHERE id IN ({marks(some)}) ORDER BY number", now, TaskState.WAITING, *some)


def record(db: Connection, numbers: Iterable[int], what: str, now: float) -> None:
    """Write down the same step of tasks: their new state, CANCELLING or DELETED."""
    for some in pieces(numbers):
        db.later(f"{_RECORD} WHERE number IN ({marks(some)}) ORDER BY number", now, what, *some)


def after(db: Connection, horizon: int, most: int) -> list[int]:
    """Numbers of the events above ``horizon``, in order."""
    return [row[0] for row in db.rows("SELECT id FROM events WHERE id > ? ORDER BY id LIMIT ?", horizon, most)]


def bounds(db: Connection) -> tuple[int, int]:
    """Number of the oldest event that is kept and of the newest; twice 0 before the first."""
    row = db.row("SELECT COALESCE(MIN(id), 0), COALESCE(MAX(id), 0) FROM events")
    return (int(row[0]), int(row[1])) if row else (0, 0)


def page(
    db: Connection, *, above: int, up_to: int, most: int, owner_id: int | None = None,
    queues: Collection[str] | None = None, task_id: str | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Events above one number and up to another; of one owner, of these queues, of one task, as far as given."""
    where, values = "", list[object]()
    if owner_id is not None:
        where, values = where + " AND owner_id = ?", [*values, owner_id]
    if queues is not None:
        where, values = where + f" AND queue IN ({marks(list(queues))})", [*values, *queues]
    if task_id is not None:
        where, values = where + " AND task_id = ?", [*values, task_id]
    rows = db.rows(
        f"SELECT {', '.join(_COLUMNS)} FROM events WHERE id > ? AND id <= ?{where} ORDER BY id LIMIT ?",  # noqa: S608 constants and marks
        above, up_to, *values, most,
    )  # fmt: skip
    return [dict(zip(_COLUMNS, row, strict=True)) for row in rows]


def is_old(db: Connection, before: float) -> bool:
    """Whether the oldest event is of before this moment, and not the only one."""
    row = db.row("SELECT at FROM events ORDER BY id LIMIT 1")
    oldest, newest = bounds(db)
    return row is not None and row[0] < before and oldest < newest


def sweep(db: Connection, before: float, most: int = 10_000) -> int:
    """Forget events of before this moment, but never the newest of all; how many."""
    return db.run(
        "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE at < ? AND id < (SELECT MAX(id) FROM events)"
        " ORDER BY id LIMIT ?)",
        before, most,
    )  # fmt: skip

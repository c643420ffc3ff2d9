"""Queues: named policies, a row each. What they allow is decided in ``scheduling/queues.py``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from kolejka.common.errors import Conflict, InputError, NotFound
from kolejka.server.scheduling.fairness import Gate
from kolejka.server.scheduling.queues import COLUMNS, Queue, QueueState
from kolejka.server.storage.base import Connection, marks, pieces

_SELECT = f"SELECT name, {', '.join(COLUMNS)} FROM queues"  # noqa: S608 constants
_SAVE = (
    f"INSERT INTO queues (name, {', '.join(COLUMNS)}) VALUES (?, {marks(COLUMNS)})"  # noqa: S608 constants
    f" ON CONFLICT (name) DO UPDATE SET {', '.join(f'{column} = excluded.{column}' for column in COLUMNS)}"
)


def listing(db: Connection) -> list[Queue]:
    """All queues, by name."""
    return [Queue.from_row(row) for row in db.rows(_SELECT + " ORDER BY name")]


def find(db: Connection, name: str, *, in_hand: bool = False) -> Queue | None:
    """A queue by its name. ``in_hand``: it changes only here until this transaction ends."""
    row = db.row(_SELECT + " WHERE name = ?" + (" FOR UPDATE" if in_hand else ""), name)
    return Queue.from_row(row) if row else None


def by_names(db: Connection, names: Collection[str]) -> Callable[[], dict[str, Queue]]:
    """Ask for those of these queues that exist, by name."""
    asked = [db.soon(f"{_SELECT} WHERE name IN ({marks(some)})", *some) for some in pieces(names)]
    return lambda: {queue.name: queue for rows in asked for queue in map(Queue.from_row, rows())}


def get(db: Connection, name: str, *, in_hand: bool = False) -> Queue:
    """The same; NotFound when there is none."""
    queue = find(db, name, in_hand=in_hand)
    if queue is None:
        raise NotFound(f"there is no queue {name[:64]!r}; the queues are {_names(db)}")
    return queue


def for_task(db: Connection, name: str) -> Queue:
    """The queue that a task names. InputError when there is none."""
    queue = find(db, name)
    if queue is None:
        raise InputError(f"there is no queue {name!r}; the queues are {_names(db)}", field="queue")
    return queue


def _names(db: Connection) -> str:
    return ", ".join(row[0] for row in db.rows("SELECT name FROM queues ORDER BY name LIMIT 50")) or "none yet"


def save(db: Connection, queue: Queue) -> None:
    """Make a queue, or put another policy in the place of its own. InputError when a member is no user."""
    for member in queue.members:
        if db.row("SELECT 1 FROM users WHERE name = ?", member) is None:
            raise InputError(f"there is no user {member!r}; make one with `kolejka user create`", field="members")
    db.run(_SAVE, queue.name, *queue.to_row())


def change(db: Connection, name: str, changes: Mapping[str, Any]) -> Queue:
    """Change some fields of a queue's policy; the new one. NotFound when there is none, InputError as ``save``."""
    queue = get(db, name, in_hand=True).changed(changes)
    save(db, queue)
    return queue


def delete(db: Connection, name: str) -> None:
    """Forget a queue. NotFound when there is none, Conflict while tasks wait or run in it."""
    get(db, name, in_hand=True)
    waits = db.row("SELECT 1 FROM tasks WHERE state = 'waiting' AND queue = ? LIMIT 1", name)
    runs = db.row("SELECT 1 FROM leases WHERE queue = ? LIMIT 1", name)
    if waits or runs:
        raise Conflict(
            f"tasks wait or run in the queue {name!r}; drain it first with `kolejka queue drain {name}`", field="queue"
        )
    db.run("DELETE FROM queues WHERE name = ?", name)


def gates(db: Connection) -> Callable[[], dict[str, Gate]]:
    """Ask what each queue lets through to nodes."""
    rows = db.soon("SELECT name, state, running, running_per_owner FROM queues")
    return lambda: {
        name: Gate(state != QueueState.PAUSED, running, running_per_owner)
        for name, state, running, running_per_owner in rows()
    }


def lock_ceilings(db: Connection) -> None:
    """From here to its end this transaction counts running tasks alone; others that would wait.

    One row for all ceilings, so that nobody waits for somebody who waits for them.
    """
    db.run("UPDATE queues SET state = state WHERE name = (SELECT MIN(name) FROM queues)")

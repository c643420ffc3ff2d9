"""Who is to be called back, and how far that is: an outbox.

A task that asks for a callback gets its row when it is put. The transaction that ends the task makes the row *due*; so
whoever dies after it, the call is owed. A server *takes* due rows by putting their time off: past the end of its own
try if it lives, to the next try if it dies. So several servers share the outbox, and none calls for ever.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final

from kolejka.server.storage.base import Connection, marks, pieces

_SHOWN: Final = ("url", "tries", "due_at", "ended_at", "answer")


@dataclass(frozen=True)
class Due:
    """A call to make, for the ``tries``-th time."""

    number: int
    task_id: str
    url: str
    lease: int | None
    outcome: str
    finished_at: float
    tries: int
    owner_id: int
    secret: str


def order(db: Connection, number: int, task_id: str, owner_id: int, url: str) -> None:
    """The owner of a task wants to be called when it is done."""
    db.later(
        "INSERT INTO callbacks (number, task_id, owner_id, url, tries) VALUES (?, ?, ?, ?, 0)",
        number, task_id, owner_id, url,
    )  # fmt: skip


def owe(db: Connection, numbers: Iterable[int], now: float) -> None:
    """These tasks are done: where a call was ordered, it is due."""
    for some in pieces(numbers):
        db.later(
            "UPDATE callbacks SET outcome = t.outcome, lease = t.lease, finished_at = ?, due_at = ? FROM tasks t"  # noqa: S608 marks
            f" WHERE t.number = callbacks.number AND callbacks.number IN ({marks(some)})",
            now, now, *some,
        )  # fmt: skip


def take(db: Connection, now: float, until: float, most: int, *, without: Collection[int] = ()) -> list[Due]:
    """Due calls, which nobody else takes before ``until``; none of the owners ``without``."""
    others = f" AND NOT (owner_id IN ({marks(without)}))" if without else ""
    rows = db.rows(
        "UPDATE callbacks SET due_at = ?, tries = tries + 1 WHERE due_at <= ? AND number IN"  # noqa: S608 marks
        f" (SELECT number FROM callbacks WHERE due_at <= ?{others} ORDER BY due_at LIMIT ? FOR UPDATE SKIP LOCKED)"
        " RETURNING number, task_id, url, lease, outcome, finished_at, tries, owner_id,"
        " (SELECT secret FROM callback_secrets s WHERE s.user_id = callbacks.owner_id)",
        until, now, now, *without, most,
    )  # fmt: skip
    return [Due(*row) for row in rows]


def next_due(db: Connection) -> float | None:
    """When the next call is due."""
    row = db.row("SELECT MIN(due_at) FROM callbacks WHERE due_at IS NOT NULL")
    return row[0] if row else None


def put_off(db: Connection, due: Due, until: float, answer: str) -> None:
    """This try failed; the next is due then."""
    db.run(
        "UPDATE callbacks SET due_at = ?, answer = ? WHERE number = ? AND tries = ? AND ended_at IS NULL",
        until, answer, due.number, due.tries,
    )  # fmt: skip


def end(db: Connection, due: Due, now: float, answer: str) -> None:
    """It was heard, or is given up."""
    db.run("UPDATE callbacks SET due_at = NULL, ended_at = ?, answer = ? WHERE number = ?", now, answer, due.number)


def show(db: Connection, number: int) -> dict[str, Any] | None:
    """How far the call of a task is; ``None`` when none was ordered."""
    row = db.row("SELECT url, tries, due_at, ended_at, answer FROM callbacks WHERE number = ?", number)
    return dict(zip(_SHOWN, row, strict=True)) if row else None


def set_secret(db: Connection, user_id: int, secret: str, now: float) -> None:
    """The key that signs this user's callbacks from now on."""
    db.run(
        "INSERT INTO callback_secrets (user_id, secret, created_at) VALUES (?, ?, ?) ON CONFLICT (user_id)"
        " DO UPDATE SET secret = excluded.secret, created_at = excluded.created_at",
        user_id, secret, now,
    )  # fmt: skip


def has_secret(db: Connection, user_id: int) -> bool:
    """Whether this user has such a key."""
    return db.row("SELECT 1 FROM callback_secrets WHERE user_id = ?", user_id) is not None

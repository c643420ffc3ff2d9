"""The contract of a storage engine.

A *work* is a function of one ``Connection``; everything it does is one transaction. The future of ``Store.write`` has a
value only when that transaction is durable. ``Store.read`` runs works beside it, on a snapshot. A work never waits for
anything but the database and is free of side effects other than SQL and ``announce``: it can be rolled back and said to
have failed, and it can be done again from the start.

Works are written for many that write at the same time, in this process and in others: a work that decides by what a row
says, and then changes it, reads that row with ``FOR UPDATE`` (or ``FOR UPDATE SKIP LOCKED`` where it can do without
those that others have in hand). What it has not locked may be older than what others have just committed. Locks are
taken in this order: node, attempt, lease, task. An engine whose works never overlap leaves the words out.

``announce`` says what others may wait for (a task waits, a task is done). The announcements of a transaction reach
the store's listener after its commit and before its caller's answer, never when it was rolled back; those of other
processes on the same database reach it soon, and ``Missed`` does when some of them may have got lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Row = tuple[Any, ...]
Asked = Callable[[], list[Row]]
"""The rows of a query that was asked; to be had once, within its transaction."""


@dataclass(frozen=True)
class TaskWaiting:
    """So many tasks of a class may be claimed; the lowest of their numbers. Those of one class are equal."""

    queue: str
    signature: int
    rank: int = 0
    owner: int = 0
    number: int = field(default=0, compare=False)
    count: int = field(default=1, compare=False)


@dataclass(frozen=True)
class TaskDone:
    """A task has its result."""

    task_id: str


@dataclass(frozen=True)
class CancelAsked:
    """A running task of this node is to be stopped."""

    node: str


@dataclass(frozen=True)
class AccessChanged:
    """A token was revoked: whoever remembers tokens forgets them, and whoever waits is looked at again."""


@dataclass(frozen=True)
class NodeChanged:
    """This node takes no more tasks, or became idle."""

    node: str


@dataclass(frozen=True)
class QueuesChanged:
    """A queue has another policy: every claim looks again, for it may give what it did not give before."""


@dataclass(frozen=True)
class LogTold:
    """The log that an admin wanted under this number is there."""

    number: int


@dataclass(frozen=True)
class Missed:
    """Announcements of other processes may have got lost: whoever waits looks again."""


Announcement = TaskWaiting | TaskDone | CancelAsked | AccessChanged | NodeChanged | QueuesChanged | LogTold | Missed
Listener = Callable[[Sequence[Announcement]], None]


class Connection(Protocol):
    """One transaction, as a work sees it. ``?`` stands for each of ``values``."""

    def rows(self, sql: str, *values: object) -> list[Row]:
        """All rows of a query."""

    def row(self, sql: str, *values: object) -> Row | None:
        """The first row of a query, or of a change with ``RETURNING``; ``None`` when there is none."""

    def soon(self, sql: str, *values: object) -> Asked:
        """Ask for the rows of a query; what it gives has them. Queries asked before one is had go in one round trip."""

    def each(self, sql: str) -> Iterator[Row]:
        """The rows of a query that are too many to be held at once."""

    def run(self, sql: str, *values: object) -> int:
        """Change rows; how many."""

    def later(self, sql: str, *values: object, rows: int | None = None) -> None:
        """Change rows, at the latest before this transaction looks at anything or ends: many changes go together.

        ``rows`` is how many it must change, where that is known; the work fails when it is another number.
        """

    def table(self, rows: Sequence[Sequence[object]], kinds: Sequence[str]) -> tuple[str, list[object]]:
        """SQL for a table of these values, at least one row, and the values; its columns are named ``column1`` and so
        on and have these ``kinds``. For one statement that makes or changes many rows.
        """

    def run_many(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        """The same change for each row of values."""

    def last_number(self, table: str, column: str) -> int:
        """The last number that the table's growing column was given; 0 when it never was."""

    def set_last_number(self, table: str, column: str, number: int) -> None:
        """Have the growing column go on behind this number."""

    def select(self, query: Any) -> list[dict[str, Any]]:
        """The rows of a peewee query, for those that are put together from filters."""

    def announce(self, announcement: Announcement) -> None:
        """Tell the store's listener after the commit."""

    def announce_then(self, made: Callable[[], Iterable[Announcement]]) -> None:
        """The same for what is known only when everything is answered that was asked by ``soon``.

        Only for announcements whose loss is made up for, as that of TaskWaiting, TaskDone and NodeChanged is.
        """


Work = Callable[[Connection], T]


class Store(Protocol):
    """A database. Safe to use from every thread. ``alone``: no other store may write to it at the same time."""

    alone: bool

    def write(self, work: Work[T]) -> Future[T]:
        """Do a work in a transaction of its own.

        The future fails with what the work raised, or with Unavailable when the database could not make it durable.
        Works that wait at the same time may be done in any order, and together.
        """

    def read(self, work: Work[T]) -> Future[T]:
        """Do a work that changes nothing, on a snapshot that has every write acknowledged before."""

    def close(self) -> None:
        """Finish what was begun and let go. Twice is fine."""


async def ask(future: Future[T]) -> T:
    """The value of a future, for a coroutine. A work that has not begun is dropped when the coroutine is cancelled."""
    return await asyncio.wrap_future(future)


def marks(values: Collection[object]) -> str:
    """``?, ?, ?`` for as many values: the inside of an ``IN (…)``."""
    return ", ".join("?" * len(values))


def table(rows: Sequence[Sequence[object]], kinds: Sequence[str]) -> tuple[str, list[object]]:
    """``Connection.table`` as every engine understands it; the first row says the types for all."""
    first = ", ".join(f"CAST(? AS {kind})" for kind in kinds)
    other = f", ({marks(kinds)})" * (len(rows) - 1)
    return f"(VALUES ({first}){other})", [value for row in rows for value in row]


def pieces(values: Iterable[T], size: int = 1000) -> Iterator[list[T]]:
    """The values, no more at a time than a statement takes."""
    everything = list(values)
    for start in range(0, len(everything), size):
        yield everything[start : start + size]

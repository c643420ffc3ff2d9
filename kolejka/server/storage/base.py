"""The contract of a storage engine.

A *work* is a function of one ``Connection``; everything it does is one transaction. ``Store.write`` runs works one
after another, possibly many in one commit, and its future has a value only when that commit is durable. ``Store.read``
runs works beside it, on a snapshot. A work never waits for anything but the database and is free of side effects
other than SQL and ``announce``: it can be rolled back and said to have failed.

``announce`` says what others may wait for (a task waits, a task is done). The announcements of a transaction reach
the store's listener after its commit and before its caller's answer, never when it was rolled back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Row = tuple[Any, ...]


@dataclass(frozen=True)
class TaskWaiting:
    """A task may be claimed."""

    queue: str
    signature: int


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


Announcement = TaskWaiting | TaskDone | CancelAsked | AccessChanged
Listener = Callable[[Sequence[Announcement]], None]


class Connection(Protocol):
    """One transaction, as a work sees it. ``?`` stands for each of ``values``."""

    def rows(self, sql: str, *values: object) -> list[Row]:
        """All rows of a query."""

    def row(self, sql: str, *values: object) -> Row | None:
        """The first row of a query, or of a change with ``RETURNING``; ``None`` when there is none."""

    def run(self, sql: str, *values: object) -> int:
        """Change rows; how many."""

    def select(self, query: Any) -> list[dict[str, Any]]:
        """The rows of a peewee query, for those that are put together from filters."""

    def announce(self, announcement: Announcement) -> None:
        """Tell the store's listener after the commit."""


Work = Callable[[Connection], T]


class Store(Protocol):
    """A database. Safe to use from every thread."""

    def write(self, work: Work[T]) -> Future[T]:
        """Do a work in a transaction of its own.

        The future fails with what the work raised, or with Unavailable when the database could not make it durable.
        """

    def read(self, work: Work[T]) -> Future[T]:
        """Do a work that changes nothing, on a snapshot that has every write acknowledged before."""

    def close(self) -> None:
        """Finish what was begun and let go. Twice is fine."""


async def ask(future: Future[T]) -> T:
    """The value of a future, for a coroutine. A work that has not begun is dropped when the coroutine is cancelled."""
    return await asyncio.wrap_future(future)


def marks(values: Sequence[object]) -> str:
    """``?, ?, ?`` for as many values: the inside of an ``IN (…)``."""
    return ", ".join("?" * len(values))


def pieces(values: Iterable[T], size: int = 1000) -> Iterator[list[T]]:
    """The values, no more at a time than a statement takes."""
    everything = list(values)
    for start in range(0, len(everything), size):
        yield everything[start : start + size]

"""The embedded engine: SQLite through cysqlite, one writing connection, group commit.

One thread owns the only connection that writes and checkpoints. It takes all works that wait, runs each in a savepoint
of one ``BEGIN IMMEDIATE`` transaction, commits once (``synchronous=FULL``: the log is on disk), then tells the
announcements, then answers. While the disk works, the next batch gathers: the slower the disk, the larger the batch.
A work that raises is rolled back alone. A commit that fails, fails all of its batch.

Readers are a few threads with connections that cannot write; each work sees one snapshot of the write-ahead log.
cysqlite bundles its own SQLite: those before 3.51.3 can corrupt a log that two connections checkpoint.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import peewee
from cysqlite import exceptions
from playhouse.cysqlite_ext import CySqliteDatabase

from kolejka.common.errors import NodeError, Unavailable
from kolejka.server.storage import schema
from kolejka.server.storage.base import Announcement, Asked, Listener, Row, Work, table

T = TypeVar("T")
logger = logging.getLogger(__name__)

SAFE_SQLITE: Final = (3, 51, 3)
BATCH: Final = 256
"""works in one commit at most, so that the first of them does not wait for too many others"""
READERS: Final = 2
_PRAGMAS: Final = {"journal_mode": "wal", "synchronous": "full", "busy_timeout": 10_000, "temp_store": "memory"}


@functools.lru_cache(maxsize=1024)
def _spoken(sql: str) -> str:
    """Without the words for locks on rows: the one that writes has them all."""
    return re.sub(r" FOR UPDATE( OF [a-z, ]+?)?( SKIP LOCKED)?(?=$|\))", "", sql)


class SqliteConnection:
    """One transaction on a raw connection."""

    def __init__(self, raw: Any, database: CySqliteDatabase) -> None:
        self._raw = raw
        self._database = database
        self.announced: list[Announcement] = []

    def rows(self, sql: str, *values: object) -> list[Row]:
        """All rows of a query."""
        return list(self._raw.execute(_spoken(sql), values))

    def row(self, sql: str, *values: object) -> Row | None:
        """The first row, the statement run to its end."""
        found = self._raw.execute(_spoken(sql), values).fetchall()
        return found[0] if found else None

    def soon(self, sql: str, *values: object) -> Asked:
        """The rows at once: nothing is far away here."""
        found = self.rows(sql, *values)
        return lambda: found

    def each(self, sql: str) -> Iterator[Row]:
        """Row by row."""
        yield from self._raw.execute(sql)

    def run(self, sql: str, *values: object) -> int:
        """Change rows; how many."""
        self._raw.execute(_spoken(sql), values)
        return int(self._raw.changes())

    def later(self, sql: str, *values: object, rows: int | None = None) -> None:
        """Change rows, at once as well."""
        changed = self.run(sql, *values)
        assert rows in {None, changed}

    def table(self, rows: Sequence[Sequence[object]], kinds: Sequence[str]) -> tuple[str, list[object]]:
        """A list of values."""
        return table(rows, kinds)

    def run_many(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        """The same change for each row of values."""
        self._raw.executemany(sql, rows)

    def last_number(self, table: str, column: str) -> int:
        """The number is kept where the column only grows, else it is the largest there is."""
        row = self.row("SELECT seq FROM sqlite_sequence WHERE name = ?", table)
        row = row or self.row(f"SELECT COALESCE(MAX({column}), 0) FROM {table}")  # noqa: S608 names of ours
        return int(row[0]) if row else 0

    def set_last_number(self, table: str, _column: str, number: int) -> None:
        """Where the column goes on behind the largest there is, there is nothing to set."""
        if self.row("SELECT 1 FROM sqlite_master WHERE name = ? AND sql LIKE '%AUTOINCREMENT%'", table):
            self.run("DELETE FROM sqlite_sequence WHERE name = ?", table)
            self.run("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", table, number)

    def select(self, query: Any) -> list[dict[str, Any]]:
        """The rows of a peewee query."""
        sql, values = self._database.get_sql_context().sql(query).query()
        cursor = self._raw.execute(sql, values)
        found = cursor.fetchall()
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found]

    def announce(self, announcement: Announcement) -> None:
        """Tell the listener after the commit."""
        self.announced.append(announcement)

    def announce_then(self, made: Callable[[], Iterable[Announcement]]) -> None:
        """Nothing is far away here, so it is known."""
        self.announced += made()


def version() -> str:
    """The version of the SQLite that is bundled."""
    return ".".join(map(str, CySqliteDatabase.server_version))


def is_safe() -> bool:
    """Whether that SQLite is free of the fault that corrupts a write-ahead log."""
    return bool(CySqliteDatabase.server_version >= SAFE_SQLITE)


def _database(path: Path, **pragmas: object) -> CySqliteDatabase:
    return CySqliteDatabase(str(path), rank_functions=False, pragmas={**_PRAGMAS, **pragmas})


@contextlib.contextmanager
def _administration(path: Path) -> Iterator[CySqliteDatabase]:
    """The database for peewee. NodeError in one line."""
    if not is_safe():
        raise NodeError(f"SQLite {version()} can corrupt a write-ahead log; run `pip install -U cysqlite`")
    database = _database(path)
    try:
        database.connect()
        yield database
    except (exceptions.DatabaseError, peewee.DatabaseError) as error:
        raise NodeError(f"cannot be used as a database: {error}", field=str(path)) from error
    finally:
        database.close()


def migrate(path: Path, last: str | None = None) -> list[str]:
    """Bring the database at ``path`` to this version's schema (until the step ``last``, where that is given), making it
    if need be; the steps that were taken.

    NodeError when it was written by a newer Kolejka, or is no database.
    """
    with _administration(path) as database:
        return schema.take(database, str(path), last)


def taken_and_left(path: Path) -> tuple[list[str], list[str]]:
    """The steps that a database has taken, and those that are left."""
    if not path.exists():
        return [], schema.known()
    with _administration(path) as database:
        return schema.taken_and_left(database, str(path))


class SqliteStore:
    """A database file. ``listener`` hears announcements in the writing thread."""

    alone = True

    def __init__(self, path: Path, listener: Listener = lambda _: None) -> None:
        self._listener = listener
        self._path = path
        self._writer = _database(path)
        self._reader = _database(path, query_only=1)
        self._works: queue.SimpleQueue[tuple[Work[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._closed = False
        self._lock = threading.Lock()  # no work enters the queue behind the word that ends it
        self._readers = ThreadPoolExecutor(READERS, "store-reader")
        self._thread = threading.Thread(target=self._serve, name="store-writer", daemon=True)
        self._thread.start()

    def write(self, work: Work[T]) -> Future[T]:
        """Queue a work for the writing thread."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                future.set_exception(Unavailable("the database is closed; the server stops"))
            else:
                self._works.put((work, future))
        return future

    def read(self, work: Work[T]) -> Future[T]:
        """Run a work on a reading thread."""
        with self._lock:
            if self._closed:
                future: Future[T] = Future()
                future.set_exception(Unavailable("the database is closed; the server stops"))
                return future
            return self._readers.submit(self._read, work)

    def close(self) -> None:
        """Do what is queued, then let go: readers first, so that the writing connection is the one that checkpoints."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._works.put(None)
        together = threading.Barrier(READERS)  # one for each thread, as each has a connection of its own

        def leave() -> None:
            together.wait()
            self._reader.close()

        for future in [self._readers.submit(leave) for _ in range(READERS)]:
            future.result()
        self._readers.shutdown()
        self._thread.join()

    def _read(self, work: Work[T]) -> T:
        if self._reader.is_closed():  # peewee keeps one connection for each thread
            self._reader.connect()
        raw = self._reader.connection()
        raw.execute("BEGIN")
        try:
            return work(SqliteConnection(raw, self._reader))
        except exceptions.OperationalError as error:
            raise Unavailable(f"the database cannot be read: {error}") from error
        finally:
            raw.execute("COMMIT")

    def _serve(self) -> None:
        self._writer.connect()
        raw = self._writer.connection()
        try:
            going = True
            while going:
                batch = [self._works.get()]
                with contextlib.suppress(queue.Empty):  # all that wait are taken
                    while len(batch) < BATCH:
                        batch.append(self._works.get_nowait())
                going = None not in batch
                self._commit(raw, [entry for entry in batch if entry is not None])
        finally:
            self._writer.close()

    def _commit(self, raw: Any, batch: Sequence[tuple[Work[Any], Future[Any]]]) -> None:
        """One transaction for a batch; every future is answered when this returns."""
        batch = [entry for entry in batch if entry[1].set_running_or_notify_cancel()]
        if not batch:
            return
        answers: list[tuple[Future[Any], Any, Exception | None]] = []
        announced: list[Announcement] = []
        try:
            raw.execute("BEGIN IMMEDIATE")
            for work, future in batch:
                connection = SqliteConnection(raw, self._writer)
                raw.execute("SAVEPOINT work")
                try:
                    value = work(connection)
                except Exception as error:
                    if not raw.in_transaction:  # full disk, broken disk: SQLite has rolled back the whole batch
                        raise
                    raw.execute("ROLLBACK TO work")
                    answers.append((future, None, error))
                else:
                    answers.append((future, value, None))
                    announced += connection.announced
                raw.execute("RELEASE work")
            raw.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 the batch is lost, the thread goes on and tells every caller
            self._give_up(raw, batch, error)
            return
        if announced:
            self._listener(announced)
        for future, value, failure in answers:
            if failure is None:
                future.set_result(value)
            else:
                future.set_exception(failure)

    def _give_up(self, raw: Any, batch: Sequence[tuple[Work[Any], Future[Any]]], error: Exception) -> None:
        logger.error("database write failed", extra={"works": len(batch), "error": str(error)})
        if raw.in_transaction:
            raw.execute("ROLLBACK")
        for _, future in batch:
            refusal = Unavailable(f"the database cannot be written: {error}")
            refusal.__cause__ = error
            future.set_exception(refusal)

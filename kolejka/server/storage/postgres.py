"""The scaled engine: PostgreSQL through psycopg, many server processes and hosts on one database.

A few threads write and a few read, each with a connection of its own. A work is one transaction: READ COMMITTED for
those that write, one read-only snapshot for those that read. Round trips are what costs, so those that write go
through psycopg's pipeline: nothing waits for its answer but a query whose rows are used, and ``BEGIN`` and ``COMMIT``
travel with what is done between them.

*What is tried again.* A deadlock, a serialization failure, a row that another transaction made under the same key: the
work is done again, and sees what the other did. A connection that breaks before ``COMMIT`` was sent: nothing has
happened, so the work is done again on a new connection, until the patience counted from its arrival has run out.

*Whose fate is unknown.* A connection that breaks while ``COMMIT`` is under way may or may not have committed. So each
writing thread has a row in ``writers``, in which each of its transactions writes its number. On a new connection the
old backend is ended, if it is still there, and the row is touched, which waits for it: if the number stands there, the
work is acknowledged, else it is done again. (PostgreSQL's own numbers of transactions do not tell: after a crash they
are given once more.) Only when the database stays away until the end of the patience is the caller told so; callers
repeat, and keys, lease numbers and digests of results make the repetition the same as the first.

*Who hears.* Announcements go to this process's listener at once, and to the others by one NOTIFY for each
transaction, which carries this process's mark so that it passes over its own. When the listening connection was lost,
``Missed`` is announced, since nobody knows what was.

Sessions are bounded by the database itself: a statement that takes too long, and a transaction whose process stands
still, are ended there, so that no stopped process keeps rows from the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import queue
import secrets
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, TypeVar, get_args

import peewee
import psycopg
from psycopg import errors, sql

from kolejka.common.errors import InputError, NodeError, Unavailable
from kolejka.server.storage import schema
from kolejka.server.storage.base import Announcement, Asked, Listener, Missed, Row, Work

T = TypeVar("T")
logger = logging.getLogger(__name__)

PLACE: Final = "server.database"
"""what messages call the database: its address holds a password"""
WRITERS: Final = 4
READERS: Final = 2
PATIENCE_S: Final = 10.0
CHANNEL: Final = "kolejka"
OLDEST: Final = 14
"""the oldest PostgreSQL that is still maintained when this is written"""
_PAUSE_S: Final = 0.1
_TRIES: Final = 20
_COLLISIONS: Final = 3
"""tries of a work that makes a row under a key that is taken, before the key is what is wrong"""
_MOST_BYTES: Final = 7900
"""of the 7999 that a notification takes"""
_MIGRATING: Final = 5_507_201_342
"""the advisory lock of those that make the schema or the first admin"""
_SESSION: Final = {
    "statement_timeout": "30s", "lock_timeout": "20s", "idle_in_transaction_session_timeout": "60s",
    "timezone": "UTC", "client_encoding": "UTF8",
}  # fmt: skip
_AGAIN: Final = (errors.DeadlockDetected, errors.SerializationFailure, errors.LockNotAvailable)
_GONE: Final = (
    errors.AdminShutdown, errors.CrashShutdown, errors.CannotConnectNow, errors.IdleInTransactionSessionTimeout,
    errors.ReadOnlySqlTransaction,  # what was the primary is none any more
)  # fmt: skip
_NUMBERED: Final = (
    "INSERT INTO writers (writer, number, at) VALUES (%s, %s, now()) ON CONFLICT (writer)"
    " DO UPDATE SET number = excluded.number, at = excluded.at"
)
_KINDS: Final = {kind.__name__: kind for kind in get_args(Announcement)}


@functools.cache
def _spoken(text: str) -> str:
    """With psycopg's signs for values."""
    return text.replace("%", "%%").replace("?", "%s")


def _line(error: BaseException) -> str:
    """An error's first line: PostgreSQL's go on with hints and positions."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class PostgresConnection:
    """One transaction on a raw connection, through a pipeline where there is one."""

    def __init__(self, raw: psycopg.Connection[Row], pipeline: psycopg.Pipeline | None = None) -> None:
        self._raw = raw
        self._pipeline = pipeline
        self._expected: list[tuple[psycopg.Cursor[Row], int]] = []
        self.announced: list[Announcement] = []

    def rows(self, sql: str, *values: object) -> list[Row]:
        """All rows of a query."""
        return self._do(sql, values).fetchall()

    def row(self, sql: str, *values: object) -> Row | None:
        """The first row."""
        return self._do(sql, values).fetchone()

    def soon(self, sql: str, *values: object) -> Asked:
        """Ask now; wait for the answer when it is wanted."""
        return self._do(sql, values).fetchall

    def each(self, sql: str) -> Iterator[Row]:
        """Row by row, from a cursor in the database."""
        with self._raw.cursor(f"each_{secrets.token_hex(4)}") as cursor:
            cursor.itersize = 1000
            yield from cursor.execute(_spoken(sql), ())

    def run(self, sql: str, *values: object) -> int:
        """Change rows; how many."""
        cursor = self._do(sql, values)
        self._sync()
        return cursor.rowcount

    def later(self, sql: str, *values: object, rows: int | None = None) -> None:
        """Send a change; how it went is seen with the next answer."""
        cursor = self._do(sql, values)
        if rows is not None:
            self._expected.append((cursor, rows))

    def settle(self) -> None:
        """See that every change did what was expected of it."""
        if self._expected:
            self._sync()
        for cursor, rows in self._expected:
            assert cursor.rowcount == rows

    def _do(self, sql: str, values: Sequence[object]) -> psycopg.Cursor[Row]:
        return self._raw.execute(_spoken(sql), values)

    def _sync(self) -> None:
        if self._pipeline is not None:
            self._pipeline.sync()

    def run_many(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        """The same change for each row of values."""
        self._raw.cursor().executemany(_spoken(sql), rows)

    def last_number(self, table: str, column: str) -> int:
        """What the column's sequence says."""
        row = self.row("SELECT pg_get_serial_sequence(?, ?)", table, column)
        assert row is not None  # a SELECT without FROM has one row
        told = self.row(f"SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM {row[0]}")  # noqa: S608 a name of the catalogue's
        return int(told[0]) if told else 0

    def set_last_number(self, table: str, column: str, number: int) -> None:
        """Set the column's sequence."""
        self.row("SELECT setval(pg_get_serial_sequence(?, ?), ?, ?)", table, column, max(number, 1), number > 0)

    def select(self, query: Any) -> list[dict[str, Any]]:
        """The rows of a peewee query."""
        text, values = _DIALECT.get_sql_context().sql(query).query()
        cursor = self._raw.execute(text, values)
        found = cursor.fetchall()
        names = [column.name for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found]

    def announce(self, announcement: Announcement) -> None:
        """Tell the listeners after the commit."""
        self.announced.append(announcement)


_DIALECT: Final = peewee.PostgresqlDatabase(None, prefer_psycopg3=True)


def pack(sender: str, announcements: Sequence[Announcement]) -> str:
    """Announcements as a notification carries them. Equal ones are told once with their count."""
    words = [
        [type(one).__name__, dataclasses.astuple(one), count] for one, count in Counter(announcements).items()
    ]  # fmt: skip
    text = json.dumps([sender, words], separators=(",", ":"))
    if len(text.encode()) > _MOST_BYTES:
        text = json.dumps([sender, [[Missed.__name__, [], 1]]])
    return text


def unpack(text: str) -> tuple[str, list[Announcement]]:
    """Back from ``pack``. A kind that this version does not know may concern anybody."""
    sender, words = json.loads(text)
    found: list[Announcement] = []
    for name, values, count in words:
        kind = _KINDS.get(name)
        found += [Missed()] if kind is None else [kind(*values)] * count
    return sender, found


def _connect(url: str, name: str) -> psycopg.Connection[Row]:
    """A new session."""
    raw = psycopg.connect(
        url, autocommit=True, connect_timeout=5, application_name=f"kolejka-server {name}", keepalives=1,
        keepalives_idle=10, keepalives_interval=5, keepalives_count=3, tcp_user_timeout=20_000,
    )  # fmt: skip
    try:
        raw.execute("; ".join(f"SET {name} = '{value}'" for name, value in _SESSION.items()))
    except BaseException:
        raw.close()
        raise
    return raw


@dataclass
class _Job:
    """A work that was asked for. ``deadline`` is when its caller's patience ends."""

    work: Work[Any]
    future: Future[Any]
    deadline: float


class _Lost(Exception):
    """The connection is of no use any more."""


class _Session:
    """One connection that comes back. ``number`` counts its transactions that write."""

    def __init__(self, url: str, closing: threading.Event) -> None:
        self.name = secrets.token_hex(8)
        self.number = 0
        self._url = url
        self._closing = closing
        self._raw: psycopg.Connection[Row] | None = None

    def open(self, deadline: float) -> psycopg.Connection[Row]:
        """The connection, made anew where it was lost. Unavailable when that takes until the deadline."""
        while self._raw is None:
            try:
                self._raw = _connect(self._url, self.name)
            except psycopg.Error as error:
                if time.monotonic() + _PAUSE_S > deadline or self._closing.wait(_PAUSE_S):
                    raise Unavailable(f"the database cannot be reached: {_line(error)}") from error
        return self._raw

    def leave(self) -> None:
        """Forget the session's row, and those of threads that died long ago; let go."""
        if self._raw is not None and self.number:
            with contextlib.suppress(psycopg.Error):  # whoever leaves next does it
                self._raw.execute(
                    "DELETE FROM writers WHERE writer = %s OR at < now() - interval '1 day'", (self.name,)
                )
        self.drop()

    def drop(self) -> None:
        """Let go of the connection."""
        raw, self._raw = self._raw, None
        if raw is not None:
            with contextlib.suppress(psycopg.Error):  # it is broken
                raw.close()


class PostgresStore:
    """A database. ``listener`` hears announcements in the writing threads and in the listening one."""

    alone = False

    def __init__(
        self, url: str, listener: Listener = lambda _: None, *, writers: int = WRITERS, readers: int = READERS,
        patience_s: float = PATIENCE_S,
    ) -> None:  # fmt: skip
        self._url = url
        self._listener = listener
        self._patience_s = patience_s
        self._mark = secrets.token_hex(8)
        self._closing = threading.Event()
        self._closed = False
        self._lock = threading.Lock()  # no work enters a queue behind the words that end it
        self._writes: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._reads: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._heard, self._stop = socket.socketpair()
        self._crews = [
            *(self._thread("store-writer", self._serve, self._writes, self._write) for _ in range(writers)),
            *(self._thread("store-reader", self._serve, self._reads, self._read) for _ in range(readers)),
        ]
        self._hears = threading.Event()
        self._ear = self._thread("store-listener", self._listen)
        self._hears.wait(patience_s)

    def _thread(self, name: str, target: Any, *words: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=words, name=name, daemon=True)
        thread.start()
        return thread

    def write(self, work: Work[T]) -> Future[T]:
        """Queue a work for the writing threads."""
        return self._submit(self._writes, work)

    def read(self, work: Work[T]) -> Future[T]:
        """Queue a work for the reading threads."""
        return self._submit(self._reads, work)

    def _submit(self, works: queue.SimpleQueue[_Job | None], work: Work[T]) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                future.set_exception(Unavailable("the database is closed; the server stops"))
            else:
                works.put(_Job(work, future, time.monotonic() + self._patience_s))
        return future

    def close(self) -> None:
        """Do what is queued, then let go."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for thread in self._crews:
                (self._writes if thread.name == "store-writer" else self._reads).put(None)
        for thread in self._crews:
            thread.join()
        self._closing.set()
        self._stop.send(b".")
        self._ear.join()
        self._heard.close()
        self._stop.close()

    def _serve(self, works: queue.SimpleQueue[_Job | None], do: Any) -> None:
        session = _Session(self._url, self._closing)
        try:
            while (job := works.get()) is not None:
                if job.future.set_running_or_notify_cancel():
                    try:
                        value = do(session, job)
                    except Exception as error:  # noqa: BLE001 the thread goes on and tells the caller
                        job.future.set_exception(error)
                    else:
                        job.future.set_result(value)
        finally:
            session.leave()

    def _write(self, session: _Session, job: _Job) -> Any:
        """One work, done once, however often it is tried."""
        tries = collisions = 0
        while True:
            raw = session.open(job.deadline)
            try:
                return self._transaction(session, raw, job)
            except _Lost as lost:
                session.drop()
                if time.monotonic() > job.deadline:
                    raise Unavailable(f"the database went away: {_line(lost)}") from lost
                self._closing.wait(_PAUSE_S)
            except _AGAIN as error:
                tries += 1
                if tries >= _TRIES or time.monotonic() > job.deadline:
                    raise Unavailable(f"the database is too busy with the same rows: {_line(error)}") from error
                self._closing.wait(0.005 * tries * (1 + secrets.randbelow(100) / 100))
            except errors.UniqueViolation:
                collisions += 1
                if collisions >= _COLLISIONS:
                    raise

    def _transaction(self, session: _Session, raw: psycopg.Connection[Row], job: _Job) -> Any:
        session.number += 1
        ending = False
        try:
            with raw.pipeline() as pipeline:
                raw.execute("BEGIN")
                raw.execute(_NUMBERED, (session.name, session.number))
                connection = PostgresConnection(raw, pipeline)
                value = job.work(connection)
                connection.settle()
                if connection.announced:
                    raw.execute("SELECT pg_notify(%s, %s)", (CHANNEL, pack(self._mark, connection.announced)))
                ending = True
                ended = raw.execute("COMMIT")
        except Exception as error:
            if not ending or not isinstance(error, psycopg.Error) or not (raw.broken or raw.closed):
                self._roll_back(raw, error)  # it failed, or its end was refused
                raise
            session.drop()
            logger.warning("connection lost in a commit", extra={"error": _line(error)})
            if not self._committed(session, job.deadline):
                raise _Lost(_line(error)) from error
        else:
            assert ended.statusmessage == "COMMIT"  # a work that went on after a failed statement would read ROLLBACK
        if connection.announced:
            self._listener(connection.announced)
        return value

    def _roll_back(self, raw: psycopg.Connection[Row], error: Exception) -> None:
        """Undo a transaction that failed. _Lost when the connection is gone, Unavailable when there is no room."""
        if raw.closed or raw.broken or isinstance(error, (*_GONE, psycopg.InterfaceError)):
            raise _Lost(_line(error)) from error
        try:
            raw.execute("ROLLBACK")
        except psycopg.Error as worse:
            raise _Lost(_line(worse)) from error
        if isinstance(error, errors.QueryCanceled):
            raise Unavailable(f"the database took too long: {_line(error)}") from error
        if isinstance(error, psycopg.OperationalError) and not isinstance(error, _AGAIN):  # disk full, out of memory
            logger.error("database write failed", extra={"error": _line(error)})
            raise Unavailable(f"the database cannot be written: {_line(error)}") from error

    def _committed(self, session: _Session, deadline: float) -> bool:
        """Whether the last transaction did. Unavailable when nobody can tell until the deadline."""
        reason = "the database stays away"
        while True:
            try:
                raw = session.open(deadline)
                raw.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"
                    " AND pid <> pg_backend_pid()",
                    (f"kolejka-server {session.name}",),
                )
                row = raw.execute(
                    "INSERT INTO writers (writer, number, at) VALUES (%s, 0, now()) ON CONFLICT (writer)"
                    " DO UPDATE SET at = now() RETURNING number",
                    (session.name,),
                ).fetchone()
                return row is not None and row[0] == session.number
            except Unavailable as error:
                reason = error.message
            except psycopg.Error as error:
                session.drop()
                reason = _line(error)
            if time.monotonic() > deadline or self._closing.wait(_PAUSE_S):
                raise Unavailable(f"whether this was stored is not known, ask again: {reason}")

    def _read(self, session: _Session, job: _Job) -> Any:
        while True:
            raw = session.open(job.deadline)
            try:
                try:
                    raw.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                    value = job.work(PostgresConnection(raw))
                    raw.execute("COMMIT")
                    return value
                except errors.ReadOnlySqlTransaction:
                    raw.execute("ROLLBACK")
                    raise
                except Exception as error:
                    self._roll_back(raw, error)
                    raise
            except _Lost as lost:
                session.drop()
                if time.monotonic() > job.deadline:
                    raise Unavailable(f"the database cannot be read: {_line(lost)}") from lost
                self._closing.wait(_PAUSE_S)

    def _listen(self) -> None:
        """Hear the other processes."""
        heard_before = False
        while not self._closing.is_set():
            try:
                with _connect(self._url, self._mark) as raw:
                    raw.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))
                    if heard_before:
                        self._listener([Missed()])
                    self._hears.set()
                    heard_before = True
                    while True:
                        select.select([raw.fileno(), self._heard.fileno()], [], [])
                        if self._closing.is_set():
                            return
                        self._hear(raw)
            except (psycopg.Error, OSError) as error:
                heard_before = True
                logger.warning("announcements of other servers cannot be heard", extra={"error": _line(error)})
                self._closing.wait(1.0)

    def _hear(self, raw: psycopg.Connection[Row]) -> None:
        heard: list[Announcement] = []
        for notification in raw.notifies(timeout=0):
            sender, announcements = unpack(notification.payload)
            if sender != self._mark:
                heard += announcements
        if heard:
            self._listener(heard)


@contextlib.contextmanager
def _administration(url: str) -> Iterator[peewee.PostgresqlDatabase]:
    """The database for peewee, and nobody else's to change the schema of. InputError, NodeError in one line."""
    try:
        psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        raise InputError(f"this is no address of a PostgreSQL database: {_line(error)}", field=PLACE) from None
    database = peewee.PostgresqlDatabase(url, prefer_psycopg3=True, connect_timeout=5)
    try:
        database.connect()
        version = database.connection().info.server_version // 10_000
        if version < OLDEST:
            raise NodeError(f"PostgreSQL {version} is too old; {OLDEST} or newer is needed", field=PLACE)
        database.execute_sql("SELECT pg_advisory_lock(%s)", (_MIGRATING,))
        yield database
    except (peewee.PeeweeException, psycopg.Error) as error:
        raise NodeError(f"cannot be used as a database: {_line(error)}", field=PLACE) from error
    finally:
        if not database.is_closed():
            database.close()


def migrate(url: str, last: str | None = None) -> list[str]:
    """Bring a database to this version's schema (until the step ``last``, where that is given); the steps taken.

    NodeError when it was written by a newer Kolejka, or cannot be reached.
    """
    with _administration(url) as database:
        return schema.take(database, PLACE, last)


def taken_and_left(url: str) -> tuple[list[str], list[str]]:
    """The steps that a database has taken, and those that are left."""
    with _administration(url) as database:
        return schema.taken_and_left(database, PLACE)

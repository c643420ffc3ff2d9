"""The scaled engine: PostgreSQL through psycopg, many server processes and hosts on one database.

A few threads write and a few read, each with a connection of its own. A work is one transaction: READ COMMITTED for
those that write, one read-only snapshot for those that read. Round trips are what costs (``pipeline`` says why), so
nothing waits for its answer but a query whose rows are used, and ``BEGIN`` and ``COMMIT`` travel with what is done
between them.

*What is tried again.* A deadlock, a serialization failure, a row that another transaction made under the same key: the
work is done again, and sees what the other did. A connection that breaks before ``COMMIT`` was sent: nothing has
happened, so the work is done again on a new connection, until the patience counted from its arrival has run out.

*Whose fate is unknown.* A connection that breaks while ``COMMIT`` is under way may or may not have committed. So each
writing thread has a row in ``writers``, in which each of its transactions writes its number. On a new connection the
old backend is ended, if it is still there, and the row is touched, which waits for it: if the number stands there, the
work is acknowledged, else it is done again. (PostgreSQL's own numbers of transactions do not tell: after a crash they
are given once more.) Only when the database stays away until the end of the patience is the caller told so; callers
repeat, and keys, lease numbers and digests of results make the repetition the same as the first.

*Who hears.* Announcements go to this process's listener at once, and to the others by NOTIFY, which carries this
process's mark so that it passes over its own. PostgreSQL holds one lock for all that notify from there to the end of
their commit, so a transaction that notifies waits for the disk alone. What the service of each process looks for anyway
in its rounds (``_LOOKED_FOR``) is therefore told after the commit, on the connection that hears the others: at once,
or together with what gathers in the few milliseconds after that; should the process die in between, a round tells it.
All else is told by the transaction itself. When that connection was lost, ``Missed`` is announced to all, since nobody
knows what was.

Sessions are bounded by the database itself: a statement that takes too long, and a transaction whose process stands
still, are ended there, so that no stopped process keeps rows from the others.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import queue
import re
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar, get_args

import peewee
import psycopg
from psycopg import errors

from kolejka.common.errors import InputError, NodeError, Unavailable
from kolejka.server.storage import schema
from kolejka.server.storage.base import (
    Announcement,
    Asked,
    Listener,
    Missed,
    NodeChanged,
    Row,
    TaskDone,
    TaskWaiting,
    Work,
    table,
)
from kolejka.server.storage.pipeline import Pipeline, Sent

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
    "timezone": "UTC", "client_encoding": "UTF8", "jit": "off",
}  # fmt: skip
_WRITING: Final = {
    **_SESSION, "plan_cache_mode": "force_generic_plan", "enable_seqscan": "off", "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}  # fmt: skip
"""Works that write find rows by their keys: so their statements are planned once, and as for large tables, which they
may have become since PostgreSQL looked at them last. Before 18 it reckons what is turned off at enormous costs where
there is no other way, and would compile such statements."""
_AGAIN: Final = (errors.DeadlockDetected, errors.SerializationFailure, errors.LockNotAvailable)
_GONE: Final = (
    errors.AdminShutdown, errors.CrashShutdown, errors.CannotConnectNow, errors.IdleInTransactionSessionTimeout,
    errors.ReadOnlySqlTransaction,  # what was the primary is none any more
)  # fmt: skip
_NUMBERED: Final = (
    "INSERT INTO writers (writer, number, at) VALUES ($1, $2, now()) ON CONFLICT (writer)"
    " DO UPDATE SET number = excluded.number, at = excluded.at"
)
_NOTIFY: Final = "SELECT pg_notify($1, $2)"
_GATHERS_S: Final = 0.005
"""how long what is to be told gathers after something was"""
_LOOKED_FOR: Final = (TaskWaiting, TaskDone, NodeChanged)
"""announcements whose loss costs a round of the service, or, of a node, the wait of its claim"""
_KINDS: Final = {kind.__name__: kind for kind in get_args(Announcement)}


_PLACE: Final = re.compile(r"IN \((\?(?:, \?)*)\)|\?")


@functools.lru_cache(maxsize=1024)
def _spoken(text: str) -> tuple[str, tuple[int, ...]]:
    """With PostgreSQL's signs for values, and how many values each sign takes: a list in parentheses is one array, so
    that the text is the same however long it is.
    """
    counts: list[int] = []

    def sign(match: re.Match[str]) -> str:
        counts.append(match[1].count("?") if match[1] else 0)
        return f"= ANY(${len(counts)})" if match[1] else f"${len(counts)}"

    said = _PLACE.sub(sign, text)
    return said, tuple(counts) if any(counts) else ()


def _line(error: BaseException) -> str:
    """An error's first line: PostgreSQL's go on with hints and positions."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class PostgresConnection:
    """One transaction, through a pipeline."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.announced: list[Announcement] = []
        self.to_announce: list[Callable[[], Iterable[Announcement]]] = []

    def rows(self, sql: str, *values: object) -> list[Row]:
        """All rows of a query."""
        sent = self._send(sql, values)
        self._pipeline.settle()
        return self._pipeline.rows(sent)

    def row(self, sql: str, *values: object) -> Row | None:
        """The first row."""
        rows = self.rows(sql, *values)
        return rows[0] if rows else None

    def soon(self, sql: str, *values: object) -> Asked:
        """Ask now; wait for the answer when it is wanted."""
        sent = self._send(sql, values)

        def asked() -> list[Row]:
            if sent.result is None:
                self._pipeline.settle()
            return self._pipeline.rows(sent)

        return asked

    def each(self, sql: str) -> Iterator[Row]:
        """Row by row, from a cursor in the database."""
        name = f"each_{secrets.token_hex(4)}"
        self._pipeline.send(f"DECLARE {name} NO SCROLL CURSOR FOR {sql}")
        while found := self.rows(f"FETCH 1000 FROM {name}"):
            yield from found
        self._pipeline.send(f"CLOSE {name}")

    def run(self, sql: str, *values: object) -> int:
        """Change rows; how many."""
        sent = self._send(sql, values)
        self._pipeline.settle()
        return sent.count

    def later(self, sql: str, *values: object, rows: int | None = None) -> None:
        """Have a change sent with what follows; how it went is seen with the next answer.

        PostgreSQL itself sees to the number of rows: the work fails by a division by zero.
        """
        if rows is None:
            self._send(sql, values)
        else:
            self._send(f"WITH c AS ({sql} RETURNING 1) SELECT 1 / (COUNT(*) = ?)::int FROM c", (*values, rows))  # noqa: S608 the caller's

    def table(self, rows: Sequence[Sequence[object]], kinds: Sequence[str]) -> tuple[str, list[object]]:
        """Of many rows an array for each column, so that the text is the same for any number of them."""
        if len(rows) == 1:
            return table(rows, kinds)
        names = ", ".join(f"column{place}" for place in range(1, len(kinds) + 1))
        arrays = ", ".join(f"CAST(? AS {kind}[])" for kind in kinds)
        return f"(SELECT * FROM unnest({arrays}) AS u ({names}))", [list(column) for column in zip(*rows, strict=True)]  # noqa: S608 names of ours

    def _send(self, text: str, values: Sequence[object]) -> Sent:
        said, counts = _spoken(text)
        if counts:
            left = iter(values)
            values = [list(itertools.islice(left, count)) if count else next(left) for count in counts]
        return self._pipeline.send(said, values)

    def run_many(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        """The same change for each row of values."""
        for row in rows:
            self._send(sql, row)
        self._pipeline.settle()

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
        sent = self._send(text.replace("%s", "?"), values)
        self._pipeline.settle()
        names = self._pipeline.names(sent)
        return [dict(zip(names, row, strict=True)) for row in self._pipeline.rows(sent)]

    def announce(self, announcement: Announcement) -> None:
        """Tell the listeners after the commit."""
        self.announced.append(announcement)

    def announce_then(self, made: Callable[[], Iterable[Announcement]]) -> None:
        """Tell what is made after the commit. Only what is looked for anyway: the transaction cannot tell it."""
        self.to_announce.append(made)


_DIALECT: Final = peewee.PostgresqlDatabase(None, prefer_psycopg3=True)


def pack(sender: str, announcements: Sequence[Announcement]) -> str:
    """Announcements as a notification carries them. Equal ones are told once; of tasks that wait how many they are."""
    told: dict[Announcement, Announcement] = {}
    for one in announcements:
        other = told.setdefault(one, one)
        if other is not one and isinstance(one, TaskWaiting) and isinstance(other, TaskWaiting):
            told[one] = replace(one, number=min(one.number, other.number), count=one.count + other.count)
    words = [
        [type(one).__name__, [*vars(one).values()][:-1], one.count] if isinstance(one, TaskWaiting)
        else [type(one).__name__, [*vars(one).values()], 1]
        for one in told.values()
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
        if kind is None:
            found.append(Missed())
        else:
            found.append(kind(*values, *([count] if kind is TaskWaiting else [])))
    return sender, found


def _connect(url: str, name: str, settings: Mapping[str, str]) -> psycopg.Connection[Row]:
    """A new session."""
    raw = psycopg.connect(
        url, autocommit=True, connect_timeout=5, application_name=f"kolejka-server {name}", keepalives=1,
        keepalives_idle=10, keepalives_interval=5, keepalives_count=3, tcp_user_timeout=20_000,
    )  # fmt: skip
    try:
        raw.execute("; ".join(f"SET {name} = '{value}'" for name, value in settings.items()))
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

    def __init__(self, url: str, closing: threading.Event, settings: Mapping[str, str] = _SESSION) -> None:
        self.name = secrets.token_hex(8)
        self._settings = settings
        self.number = 0
        self._url = url
        self._closing = closing
        self._raw: psycopg.Connection[Row] | None = None
        self._pipeline: Pipeline | None = None

    def open(self, deadline: float) -> Pipeline:
        """The connection, made anew where it was lost. Unavailable when that takes until the deadline."""
        while self._pipeline is None:
            try:
                self._raw = _connect(self._url, self.name, self._settings)
                self._pipeline = Pipeline(self._raw)
            except psycopg.Error as error:
                if time.monotonic() + _PAUSE_S > deadline or self._closing.wait(_PAUSE_S):
                    raise Unavailable(f"the database cannot be reached: {_line(error)}") from error
        return self._pipeline

    @property
    def lost(self) -> bool:
        """Whether the connection is of no use any more."""
        return self._raw is None or self._raw.closed or self._raw.broken

    def leave(self) -> None:
        """Forget the session's row, and those of threads that died long ago; let go."""
        if self._pipeline is not None and self.number:
            with contextlib.suppress(psycopg.Error):  # whoever leaves next does it
                self._pipeline.send(
                    "DELETE FROM writers WHERE writer = $1 OR at < now() - interval '1 day'", (self.name,)
                )
                self._pipeline.settle()
        self.drop()

    def drop(self) -> None:
        """Let go of the connection."""
        raw, self._raw, self._pipeline = self._raw, None, None
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
        self._poked, self._poke = socket.socketpair()
        self._untold: list[Announcement] = []
        self._crews = [
            *(self._thread("store-writer", self._serve, self._writes, self._write, _WRITING) for _ in range(writers)),
            *(self._thread("store-reader", self._serve, self._reads, self._read, _SESSION) for _ in range(readers)),
        ]
        self._hears = threading.Event()
        self._herald = self._thread("store-herald", self._hear_and_tell)
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
        self._poke.send(b".")
        self._herald.join()
        self._poked.close()
        self._poke.close()

    def _serve(self, works: queue.SimpleQueue[_Job | None], do: Any, settings: Mapping[str, str]) -> None:
        session = _Session(self._url, self._closing, settings)
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
            pipeline = session.open(job.deadline)
            try:
                return self._transaction(session, pipeline, job)
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

    def _transaction(self, session: _Session, pipeline: Pipeline, job: _Job) -> Any:
        session.number += 1
        ending = False
        try:
            pipeline.send("BEGIN")
            pipeline.send(_NUMBERED, (session.name, session.number))
            connection = PostgresConnection(pipeline)
            value = job.work(connection)
            exact = [one for one in connection.announced if not isinstance(one, _LOOKED_FOR)]
            if exact:
                pipeline.send(_NOTIFY, (CHANNEL, pack(self._mark, exact)))
            ending = True
            ended = pipeline.send("COMMIT")
            pipeline.settle()
        except Exception as error:
            if not ending or not isinstance(error, psycopg.Error) or not session.lost:
                self._roll_back(session, pipeline, error)  # it failed, or its end was refused
                raise
            session.drop()
            logger.warning("connection lost in a commit", extra={"error": _line(error)})
            if not self._committed(session, job.deadline):
                raise _Lost(_line(error)) from error
        else:
            assert ended.word == b"COMMIT"  # a work that went on after a failed statement would read ROLLBACK
        for made in connection.to_announce:
            connection.announced += made()
        if connection.announced:
            self._listener(connection.announced)
            self._tell_soon([one for one in connection.announced if isinstance(one, _LOOKED_FOR)])
        return value

    def _roll_back(self, session: _Session, pipeline: Pipeline, error: Exception) -> None:
        """Undo a transaction that failed. _Lost when the connection is gone, Unavailable when there is no room."""
        if session.lost or isinstance(error, (*_GONE, psycopg.InterfaceError)):
            raise _Lost(_line(error)) from error
        try:
            with contextlib.suppress(psycopg.Error):  # of what was sent before
                pipeline.settle()
            pipeline.send("ROLLBACK")
            pipeline.settle()
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
                pipeline = session.open(deadline)
                pipeline.send(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1"
                    " AND pid <> pg_backend_pid()",
                    (f"kolejka-server {session.name}",),
                )
                pipeline.settle()
                touched = pipeline.send(
                    "INSERT INTO writers (writer, number, at) VALUES ($1, 0, now()) ON CONFLICT (writer)"
                    " DO UPDATE SET at = now() RETURNING number",
                    (session.name,),
                )
                pipeline.settle()
                return pipeline.rows(touched) == [(session.number,)]
            except Unavailable as error:
                reason = error.message
            except psycopg.Error as error:
                session.drop()
                reason = _line(error)
            if time.monotonic() > deadline or self._closing.wait(_PAUSE_S):
                raise Unavailable(f"whether this was stored is not known, ask again: {reason}")

    def _read(self, session: _Session, job: _Job) -> Any:
        while True:
            pipeline = session.open(job.deadline)
            try:
                try:
                    pipeline.send("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                    value = job.work(PostgresConnection(pipeline))
                    pipeline.send("COMMIT")
                    pipeline.settle()
                    return value
                except errors.ReadOnlySqlTransaction:
                    pipeline.send("ROLLBACK")
                    pipeline.settle()
                    raise
                except Exception as error:
                    self._roll_back(session, pipeline, error)
                    raise
            except _Lost as lost:
                session.drop()
                if time.monotonic() > job.deadline:
                    raise Unavailable(f"the database cannot be read: {_line(lost)}") from lost
                self._closing.wait(_PAUSE_S)

    def _tell_soon(self, announcements: Sequence[Announcement]) -> None:
        if not announcements:
            return
        with self._lock:
            asleep = not self._untold
            self._untold += announcements
        if asleep:
            self._poke.send(b".")

    def _hear_and_tell(self) -> None:
        """Hear the other processes, and tell them what was committed here."""
        session = _Session(self._url, self._closing)
        again = False
        while not self._closing.is_set():
            try:
                pipeline = session.open(time.monotonic())
                pipeline.send("SET synchronous_commit = off")  # what is told here is on disk already
                pipeline.send(f"LISTEN {CHANNEL}")
                pipeline.settle()
                if again:
                    self._listener([Missed()])
                    self._tell_soon([Missed()])
                self._hears.set()
                again = True
                self._serve_others(pipeline)
            except (psycopg.Error, OSError, Unavailable) as error:
                again = True
                session.drop()
                logger.warning("other servers cannot be heard", extra={"error": _line(error)})
                self._closing.wait(1.0)
        session.drop()

    def _serve_others(self, pipeline: Pipeline) -> None:
        """Until the store closes and everything is told."""
        door, tells_at = select.poll(), 0.0
        door.register(pipeline.fileno(), select.POLLIN)
        door.register(self._poked, select.POLLIN)
        while not (self._closing.is_set() and not self._untold):
            left_s = tells_at - time.monotonic()
            ready = door.poll(max(0.0, left_s) * 1000 if self._untold else None)
            if any(number == self._poked.fileno() for number, _ in ready):
                self._poked.recv(4096)
            if self._untold and (time.monotonic() >= tells_at or self._closing.is_set()):
                with self._lock:
                    told, self._untold = self._untold, []
                pipeline.send(_NOTIFY, (CHANNEL, pack(self._mark, told)))
                pipeline.settle()
                tells_at = time.monotonic() + _GATHERS_S
            self._hear(pipeline)

    def _hear(self, pipeline: Pipeline) -> None:
        heard: list[Announcement] = []
        for text in pipeline.overheard():
            if not text.startswith(f'["{self._mark}"'):
                heard += unpack(text)[1]
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

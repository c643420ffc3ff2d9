"""Statements to PostgreSQL, many in one trip: libpq's pipeline, as psycopg's own layer for it shows it.

What costs is not what PostgreSQL does with a statement but its way there and back: a system call, a switch to another
process, the wait for Python's lock afterwards. psycopg's cursors take that way for each statement even in a pipeline,
and read each text anew to find where its values stand. Here statements gather until somebody wants an answer; then all
of them leave at once, and all answers are read.

Values travel as text without a type, so PostgreSQL takes each for what stands in its place, and a statement is told
apart by its text alone. One that is said a second time is prepared: from then on it is neither sent nor planned again.
So texts should be the same for any number of values (``PostgresConnection`` sees to it); only so many are remembered.

After an error PostgreSQL passes over what was sent behind it, up to the end of the trip: ``settle`` raises the first.
"""

from __future__ import annotations

import select
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any, Final

import psycopg
from psycopg import errors, pq
from psycopg.adapt import Transformer

from kolejka.server.storage.base import Row

REMEMBERED: Final = 256
"""statements of one connection that are told apart; the one that was not said the longest is forgotten"""
_FAILED: Final = (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.PIPELINE_ABORTED)


class Sent:
    """A statement on its way. ``result`` is there once the pipeline has settled."""

    __slots__ = ("prepares", "result")

    def __init__(self, prepares: str | None = None) -> None:
        self.result: Any = None
        self.prepares = prepares

    @property
    def count(self) -> int:
        """How many rows it changed or found."""
        return int(self.result.command_tuples or 0)

    @property
    def word(self) -> bytes:
        """What PostgreSQL says that it did."""
        return bytes(self.result.command_status or b"")


class Pipeline:
    """The only way to a connection from here on. Used by one thread."""

    def __init__(self, raw: psycopg.Connection[Row]) -> None:
        self._raw = raw
        self._libpq = raw.pgconn
        self._libpq.enter_pipeline_mode()
        self._reads = Transformer(raw)
        self._sent: deque[Sent] = deque()
        self._known: OrderedDict[str, bytes] = OrderedDict()
        """text → the name under which it is prepared; none yet for what was said once"""
        self._names = 0
        self._door = select.poll()

    def send(self, text: str, values: Sequence[object] = ()) -> Sent:
        """Have a statement go with the next trip. ``$1`` and so on stand for values."""
        words = [encoded(value) for value in values]
        name = self._known.get(text)
        if name is None:
            self._remember(text, b"")
            self._libpq.send_query_params(text.encode(), words)
        else:
            if not name:
                self._names += 1
                name = b"s%d" % self._names
                self._libpq.send_prepare(name, text.encode())
                self._sent.append(Sent(text))
            self._remember(text, name)
            self._libpq.send_query_prepared(name, words)
        sent = Sent()
        self._sent.append(sent)
        return sent

    def _remember(self, text: str, name: bytes) -> None:
        self._known[text] = name
        self._known.move_to_end(text)
        if len(self._known) > REMEMBERED:
            _, forgotten = self._known.popitem(last=False)
            if forgotten:
                self._libpq.send_query_params(b"DEALLOCATE " + forgotten, None)
                self._sent.append(Sent())

    def settle(self) -> None:
        """Have everything answered that was sent. The first statement that failed raises its error."""
        failure: psycopg.Error | None = None
        self._libpq.pipeline_sync()
        self._flush()
        while self._sent:
            sent = self._sent.popleft()
            sent.result = self._take()
            if sent.result.status in _FAILED:
                if sent.prepares is not None:
                    self._known.pop(sent.prepares, None)
                if failure is None:
                    failure = errors.error_from_result(sent.result)
            self._take()  # nothing: the end of the statement
        self._take()  # the end of the trip
        if failure is not None:
            raise failure

    def rows(self, sent: Sent) -> list[Row]:
        """The rows that a statement found, after ``settle``."""
        self._reads.set_pgresult(sent.result)
        return self._reads.load_rows(0, sent.result.ntuples, tuple)

    def names(self, sent: Sent) -> list[str]:
        """The names of their columns."""
        result = sent.result
        return [(result.fname(place) or b"").decode() for place in range(result.nfields)]

    def fileno(self) -> int:
        """The connection's socket, to wait for what is overheard."""
        return int(self._libpq.socket)

    def overheard(self) -> list[str]:
        """The notifications that came."""
        self._libpq.consume_input()
        found = []
        while (one := self._libpq.notifies()) is not None:
            found.append(one.extra.decode())
        return found

    def _flush(self) -> None:
        while self._libpq.flush():
            if self._wait(select.POLLIN | select.POLLOUT) & select.POLLIN:
                self._libpq.consume_input()

    def _take(self) -> Any:
        while self._libpq.is_busy():
            self._wait(select.POLLIN)
            self._libpq.consume_input()
        return self._libpq.get_result()

    def _wait(self, events: int) -> int:
        self._door.register(self._libpq.socket, events)
        return self._door.poll()[0][1]


def encoded(value: object) -> bytes | None:
    """A value as PostgreSQL reads it; a list is an array. DataError when no text can hold it."""
    if value is None:
        return None
    data = (_array(value) if type(value) is list else _word(value)).encode()
    if b"\0" in data:
        raise errors.DataError("PostgreSQL keeps no NUL characters in a text")
    return data


def _word(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    raise TypeError(f"no column holds a {type(value).__name__}")


def _array(values: list[object]) -> str:
    return "{" + ",".join([
        '"' + value.replace("\\", r"\\").replace('"', r"\"") + '"' if isinstance(value, str)
        else "NULL" if value is None else _word(value)
        for value in values
    ]) + "}"  # fmt: skip

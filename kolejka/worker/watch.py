"""Watching one payload: moving its output, keeping the limits that no control group keeps, ending it in time.

One loop on one thread sleeps in ``poll`` until something happens: output arrives, the payload ends, somebody cancels,
a check of the disk is due, time is over. Limits on memory and CPU are the session's: it kills by itself and says so
when it is closed. Wall time counts from the payload's ``exec``, which only this loop knows, so it is kept here to the
millisecond, and by the session a little later, should this process stand still or die. What the loop decides is the
*cause*, and the first cause wins.

The checks of the disk are due when the payload could have filled what is left at full speed, so a limit far away costs
nothing and a near one is looked at often.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from kolejka.common.errors import NodeError
from kolejka.common.result import Outcome
from kolejka.worker.runtimes.base import End, RunningTask

CHUNK: Final = 1 << 16
DISK_SPEED: Final = 2 << 30
"""Bytes per second that a payload can hardly exceed; paces the checks of the disk."""
FIRST_CHECK_S: Final = 0.01
LAST_CHECK_S: Final = 1.0
KILL_TIMEOUT_S: Final = 30.0
"""A payload that lives for so long after it was killed is given up: the node is at fault."""
TIME_GRACE_S: Final = 0.25
"""How long after the time limit the session kills by itself, should the worker not have done it."""
DRAIN_TIMEOUT_S: Final = 5.0


class Orders(Protocol):
    """Where a cancel comes from."""

    def fileno(self) -> int:
        """Readable when an order is there."""

    def read(self) -> Outcome | None:
        """The outcome that somebody ordered, or None. Never blocks."""


class NoOrders:
    """Nobody cancels."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Never readable."""
        return self._descriptor

    def read(self) -> Outcome | None:
        """Nothing."""
        return None


@dataclass(eq=False)
class Stream:
    """One output of the payload on its way to a file (or, without a file, to nowhere)."""

    name: str
    source: int
    sink: int | None
    size: int = 0
    truncated: bool = False
    open: bool = True

    def close(self) -> None:
        """Close the worker's ends. Safe twice."""
        if self.open:
            self.open = False
            os.close(self.source)
            if self.sink is not None:
                os.close(self.sink)


class Output:
    """All outputs together, and the limit they share."""

    def __init__(self, streams: Sequence[Stream], limit: int | None) -> None:
        self.streams = streams
        self._limit = limit

    def pump(self, stream: Stream) -> bool:
        """Move what is there. False when that went over the limit. NodeError when the file cannot be written."""
        left = CHUNK if self._limit is None else self._limit - sum(s.size for s in self.streams)
        try:
            chunk = os.read(stream.source, min(CHUNK, left + 1))
        except BlockingIOError:
            return True
        if not chunk:
            stream.close()
            return True
        fits = chunk if self._limit is None else chunk[:left]
        stream.size += len(fits)
        if stream.sink is not None:
            try:
                view = memoryview(fits)
                while view:
                    view = view[os.write(stream.sink, view) :]
            except OSError as error:
                raise NodeError(f"{stream.name} cannot be written: {error.strerror}") from error
        if len(fits) < len(chunk):
            stream.truncated = True
            stream.close()
            return False
        return True

    def drain(self) -> bool:
        """Read what is left after everybody who could write is dead. False when that went over the limit."""
        deadline = time.monotonic() + DRAIN_TIMEOUT_S
        within = True
        for stream in self.streams:
            poll = select.poll()
            if stream.open:
                poll.register(stream.source, select.POLLIN)
            while stream.open and poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                within = self.pump(stream) and within
            stream.close()
        return within

    def close(self) -> None:
        """Close everything."""
        for stream in self.streams:
            stream.close()


@dataclass(eq=False)
class Gauge:
    """A limit on disk space or GPU memory that must be looked at: ``used`` tells the bytes, ``limit`` bounds them."""

    name: str
    limit: float
    used: Callable[[], int]
    due: float = 0.0
    longest_s: float = LAST_CHECK_S
    """the longest time between two looks"""

    def exceeded(self) -> bool:
        """Look now, and decide when to look again."""
        started = time.thread_time()  # time in which we did not run is no cost of looking
        used = self.used()
        cost = time.thread_time() - started
        now = time.monotonic()
        pause = min(max((self.limit - used) / DISK_SPEED, FIRST_CHECK_S), self.longest_s)
        self.due = now + max(pause, 10 * cost)  # looking takes at most a tenth of a CPU
        return used > self.limit


@dataclass
class Watched:
    """How the watch went. ``end`` is None when the payload could not be killed."""

    end: End | None
    cause: str | None = None
    """name of the limit for which the worker ended the payload"""
    ordered: Outcome | None = None
    flags: list[str] = field(default_factory=list)


def watch(
    task: RunningTask,
    kill: Callable[[], None],
    *,
    output: Output,
    gauges: Sequence[Gauge],
    orders: Orders,
    time_limit_s: float | None = None,
) -> Watched:
    """Watch until the payload ends. ``kill`` ends everything in its session; it is called at most twice."""
    seen = Watched(None)
    poll = select.poll()
    poll.register(task.fileno(), select.POLLIN)
    poll.register(orders.fileno(), select.POLLIN)
    by_descriptor = {stream.source: stream for stream in output.streams if stream.open}
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLIN)
    killed_at: float | None = None

    def end_it() -> None:
        nonlocal killed_at
        if killed_at is None:
            killed_at = time.monotonic()
            kill()

    seen.ordered = orders.read()  # an order that came along with the job makes nothing readable
    if seen.ordered is not None:
        end_it()
    for gauge in gauges:
        gauge.due = time.monotonic() + FIRST_CHECK_S
    while True:
        deadline = None if time_limit_s is None else task.released_at + time_limit_s  # moves once, when exec is known
        for descriptor, _ in poll.poll(_pause(gauges, deadline, killed_at)):
            stream = by_descriptor.get(descriptor)
            if stream is not None:
                if not output.pump(stream) and killed_at is None:
                    seen.cause = "output"
                    end_it()
                if not stream.open:
                    poll.unregister(descriptor)
                    del by_descriptor[descriptor]
            elif descriptor == orders.fileno() and killed_at is None:
                seen.ordered = orders.read()
                if seen.ordered is not None:
                    end_it()
            elif descriptor == task.fileno():
                seen.end = task.read()
        if seen.end is not None:
            return seen
        now = time.monotonic()
        if killed_at is None:
            for gauge in gauges:
                if now >= gauge.due and gauge.exceeded():
                    seen.cause = gauge.name
                    end_it()
                    break
            if deadline is not None and now >= deadline and killed_at is None:
                seen.cause = "time"
                end_it()
        elif now - killed_at > KILL_TIMEOUT_S:
            return seen


def _pause(gauges: Sequence[Gauge], deadline: float | None, killed_at: float | None) -> float | None:
    """Milliseconds until something is due, or None for as long as it takes."""
    moments = [killed_at + KILL_TIMEOUT_S] if killed_at is not None else [gauge.due for gauge in gauges]
    if deadline is not None and killed_at is None:
        moments.append(deadline)
    if not moments:
        return None
    return max(0.0, min(moments) - time.monotonic()) * 1000 + 0.5

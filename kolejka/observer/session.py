"""One session: its verbs, its clock, its verdict. The theory of operation stands in ``sessions.py``."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from kolejka.common.errors import Conflict, InputError, KolejkaError, NodeError, NotFound
from kolejka.common.limits import Limits
from kolejka.common.stats import Stats
from kolejka.observer.cgroups.files import GroupGone, read_whole
from kolejka.observer.cgroups.interface import Alarm, Group
from kolejka.observer.events import Timer
from kolejka.observer.reports import ENFORCED, Report
from kolejka.observer.turns import Turns

if TYPE_CHECKING:
    from kolejka.observer.sessions import Registry

logger = logging.getLogger("kolejka.observer")

_CPU_FLOOR_S: Final = 0.002
"""Least pause between two looks at a session's CPU time."""
_ALARM_PATIENCE: Final = 8
"""Looks, at growing pauses, for the kill that an out-of-memory alarm announces."""


def start_time(pid: int) -> int | None:
    """When a process started, in ticks since boot: with the pid it names a process once for all; None = gone."""
    try:
        return int(read_whole(b"/proc/%d/stat" % pid).rpartition(b")")[2].split(None, 20)[19])
    except (FileNotFoundError, ProcessLookupError):
        return None


class Session:
    """One open session. Made by ``Registry.open``; all verbs are safe from any thread."""

    def __init__(self, registry: Registry, id: str, secret: str, parent: Session | None, group: Group) -> None:
        self.id = id
        self.secret = secret
        self.parent = parent
        self.group = group
        self.children: dict[str, Session] = {}
        self.limits_set = Limits()
        self.cpuset: frozenset[int] | None = None
        self.creator: tuple[int, int] | None = None
        self.bound = False
        self.opened = time.monotonic()
        self.started: float | None = None
        self.ended: float | None = None
        self.limit: str | None = None
        self.report: Report | None = None
        self._registry = registry
        self._lock = Turns()
        self._close_lock = threading.Lock()
        self.closing = False
        self._attached: dict[int, tuple[int, Mapping[str, str]]] = {}
        self._events: int | None = None
        self._alarm: Alarm | None = None
        self._deadline: Timer | None = None
        self._cpu_timer: Timer | None = None
        self.cpu_use: Counter[int] = Counter()
        self._settled_stats: Stats | None = None

    def __repr__(self) -> str:
        return f"<Session {self.id}>"

    @property
    def cgroup_parent(self) -> str:
        """The path to give a container engine, such as ``/kolejka/<id>``."""
        return self.group.path

    # verbs

    def attach(self, pid: int) -> None:
        """Move a process, with all its threads, into the session. The first one starts the clock.

        NotFound when there is no such process; Conflict when a limit has ended the session, or it is being closed.
        """
        with self._lock:
            self._check_open()
            if self.limit is not None:
                raise Conflict(f"the session has ended by its limit {self.limit}; open another one")
            places = self._registry.tree.places(pid)
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                raise NotFound(f"there is no process {pid}", field="pid") from None
            try:
                self.group.attach(pid)
            except KolejkaError:
                os.close(descriptor)
                raise
            old = self._attached.pop(pid, None)
            if old is not None:
                self._forget_process(old[0])
                places = old[1]
            self._attached[pid] = (descriptor, places)
            self._enter()
            self._registry.loop.watch(descriptor, select.EPOLLIN, lambda: self._in_loop(lambda: self._exited(pid)))

    def begin(self) -> None:
        """Start the clock for a process that is about to be moved in: on disk before it is inside."""
        self.started = time.monotonic()
        self._save()

    def detach(self, pid: int) -> None:
        """Move a process out, to where it was before. Conflict when it is not in the session."""
        with self._lock:
            self._check_open()
            if self.id not in self._registry.tree.of_process(pid):
                raise Conflict(f"process {pid} is not in the session", field="pid")
            descriptor, places = self._attached.pop(pid, (None, {}))
            if descriptor is not None:
                self._forget_process(descriptor)
            self._registry.tree.put_back(pid, places, self.parent.group if self.parent else None)
            self._settled_stats = None
            self._look()

    def limits(self, limits: Limits, *, cpuset: Sequence[int] | None = None) -> None:
        """Set or change limits; those not named stay. InputError names a limit that no session enforces."""
        with self._lock:
            self._check_open()
            self._apply(limits, cpuset)
            self._save()

    def stats(self) -> Report:
        """What the session used so far, and the verdict. Also answers when it is closed."""
        with self._lock:
            if self.report is not None:
                return self.report
            return Report(self._measure(), self.limit)

    def freeze(self) -> None:
        """Stop every process. Returns when they stand still."""
        self._check_open()
        self.group.freeze()

    def thaw(self) -> None:
        """Let every process go on."""
        self._check_open()
        self.group.thaw()

    def kill(self) -> None:
        """Kill every process, nested sessions included, and return when none is left. The session stays open."""
        self._check_open()
        self.group.kill_until_empty()
        with self._lock:
            self._look()

    def close(self) -> Report:
        """Kill what is left, wait until it is gone, read the final stats, remove the group. Again: the same answer.

        NodeError when processes cannot be killed; the session then stays, so that it can be tried again.
        """
        with self._close_lock:
            if self.report is not None:
                return self.report
            left = self._end_processes()
            for child in list(self.children.values()):
                child.close()
            with self._lock:
                report = Report(self._measure(), self.limit, left)
                self.release()
                self.report = report
            self._registry.finish(self)
            return report

    # the clock and the verdict; all below hold the lock

    def _check_open(self) -> None:
        if self.closing or self.report is not None:
            raise Conflict("the session is closed")

    def _end_processes(self) -> int:
        with self._lock:
            self.closing = True
            inside, left = self._look(), 0
            if inside:
                self._check_time()
                left = self.group.living()
                self.ended = time.monotonic()
        if inside:
            try:
                self.group.kill_until_empty()
            except NodeError:
                self.closing = False
                raise
        return left

    def inside(self) -> bool:
        """Whether a process lives in the session, nested ones included."""
        try:
            if self._events is not None:  # the file is open already, and reading it is what clears its event
                return b"populated 1" in os.pread(self._events, 256, 0)
            return self.group.populated()
        except (GroupGone, OSError):  # ENODEV: the group is gone
            return False

    @property
    def elapsed(self) -> float:
        """Seconds on the session's clock."""
        if self.started is None:
            return time.monotonic() - self.opened
        return (time.monotonic() if self.ended is None else self.ended) - self.started

    @property
    def deadline(self) -> float | None:
        """When the time limit strikes, on the monotonic clock; nobody inside yet = not known yet."""
        allowed = self.limits_set.get("time")
        return None if allowed is None or self.started is None else self.started + allowed

    def _enter(self) -> None:
        """Somebody came in."""
        self._settled_stats = None
        self.ended = None
        if self.started is None:
            self.started = time.monotonic()
            self._save()
        self._set_timers()

    def _look(self) -> bool:
        """See whether anybody is inside, and let the clock run or stand accordingly."""
        inside = self.inside()
        if inside and (self.started is None or self.ended is not None) and not self.closing:
            self._enter()
        elif not inside and self.started is not None and self.ended is None:
            now = time.monotonic()
            deadline = self.deadline
            # the kernel tells up to 10 ms late; what was still alive at the deadline, the deadline has killed
            self.ended = now if deadline is None or self.limit is not None else max(self.started, min(now, deadline))
            if not self.closing:  # the final report is about to be saved
                self._save()
                self._registry.reap(self)
        return inside

    def _set_timers(self) -> None:
        loop = self._registry.loop
        for timer in (self._deadline, self._cpu_timer):
            if timer is not None:
                timer.cancel()
        self._deadline = self._cpu_timer = None
        if self.limit is not None:
            return
        if (deadline := self.deadline) is not None:
            self._deadline = loop.at(deadline, lambda: self._in_loop(self._check_time))
        if "cpu_time" in self.limits_set.values and self.started is not None and self.ended is None:
            self._check_cpu_time()

    def _check_time(self) -> None:
        deadline = self.deadline
        if deadline is None or self.limit is not None or time.monotonic() < deadline:
            return
        self._look()
        if self.ended is None:
            self._end("time")

    def _check_cpu_time(self) -> None:
        with suppress(GroupGone):
            self._judge_cpu_time(self.group.cpu_usage())

    def _judge_cpu_time(self, usage: float) -> None:
        allowed = self.limits_set.get("cpu_time")
        if allowed is None or self.limit is not None:
            return
        if usage >= allowed:
            self._end("cpu_time")
        elif self.ended is None and self.started is not None:
            if self._cpu_timer is not None:
                self._cpu_timer.cancel()
            width = len(self.cpuset) if self.cpuset else os.cpu_count() or 1
            when = time.monotonic() + max(_CPU_FLOOR_S, (allowed - usage) / width)
            self._cpu_timer = self._registry.loop.at(when, lambda: self._in_loop(self._check_cpu_time))

    def _check_memory(self, looks: int = 0) -> None:
        """``looks`` counts down: an alarm rings before the kill that it announces."""
        if self._alarm is None or self.limit is not None:
            return
        alarmed = self._alarm.fired() and not any(outer.alarmed for outer in self.outer())
        with suppress(GroupGone):
            if self.group.killed_by_own_limit(alarmed=alarmed):
                self._end("memory")
            elif alarmed and looks > 0:
                pause = 0.001 * 2 ** (_ALARM_PATIENCE - looks)
                self._registry.loop.at(
                    time.monotonic() + pause, lambda: self._in_loop(lambda: self._check_memory(looks - 1))
                )

    @property
    def alarmed(self) -> bool:
        """Whether this session's own memory alarm rang (meaningful on version 1 only)."""
        return self._alarm is not None and self._alarm.counts and self._alarm.fired()

    def outer(self) -> Iterator[Session]:
        """The sessions this one is nested in, nearest first."""
        session = self.parent
        while session is not None:
            yield session
            session = session.parent

    def _end(self, limit: str) -> None:
        """The one place where a verdict is given."""
        self.limit = limit
        self._save()
        logger.info("session ended by limit", extra={"session": self.id, "limit": limit})
        self._registry.loop.aside(self._kill_all)

    def _kill_all(self) -> None:
        with suppress(GroupGone):  # closed meanwhile
            self.group.kill_until_empty()

    def _measure(self) -> Stats:
        """Look at everything, so that the answer holds whatever events are still on their way."""
        inside = self._look()
        self._check_memory()
        usage = self.group.cpu_usage()
        self._judge_cpu_time(usage)
        self._check_time()
        known = self._settled_stats
        if known is None or known.cpu.usage != usage:
            known = self.group.stats()
            # nobody is inside: while the CPU clock stands still, nobody has been
            self._settled_stats = None if inside else known
        return known.replace(time=self.elapsed)

    # events

    def _in_loop(self, work: Callable[[], object]) -> None:
        """Do ``work`` in the events thread, or where the session is busy at the end of that; never when closed."""
        self._lock.do_or_leave(lambda: work() if self.report is None else None)

    def _exited(self, pid: int) -> None:
        entry = self._attached.pop(pid, None)
        if entry is not None:
            self._forget_process(entry[0])
        self._watch_end()

    def _watch_end(self, pause_s: float = 0.001) -> None:
        """An attached process ended: see whether it was the last. The kernel's own word comes up to 10 ms late."""
        self._look()
        if self.ended is not None:
            return
        if not self._attached and pause_s < (0.01 if self._events is not None else 1.0):
            self._registry.loop.at(
                time.monotonic() + pause_s, lambda: self._in_loop(lambda: self._watch_end(pause_s * 2))
            )
        elif self._events is None:  # pure version 1 has no event for the last one: look now and then
            self._registry.loop.at(time.monotonic() + 0.25, lambda: self._in_loop(lambda: self._watch_end(0.25)))

    def watch(self) -> None:
        """Begin to wait for what happens to the group."""
        loop = self._registry.loop
        path = self.group.events_file()
        if path is not None and self._events is None:
            self._events = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            os.pread(self._events, 4096, 0)
            loop.watch(self._events, select.EPOLLPRI, lambda: self._in_loop(self._look))
        self._set_alarm()
        self._set_timers()

    def _set_alarm(self) -> None:
        if self._alarm is None and "memory" in self.limits_set.values:
            self._alarm = self.group.memory_alarm()
            if self._alarm is not None:
                self._registry.loop.watch(
                    self._alarm.descriptor,
                    self._alarm.mask,
                    lambda: self._in_loop(lambda: self._check_memory(_ALARM_PATIENCE)),
                )

    def _forget_process(self, descriptor: int) -> None:
        self._registry.loop.unwatch(descriptor)
        os.close(descriptor)

    def release(self) -> None:
        """Let go of descriptors and timers."""
        for descriptor, _ in self._attached.values():
            self._forget_process(descriptor)
        self._attached.clear()
        for timer in (self._deadline, self._cpu_timer):
            if timer is not None:
                timer.cancel()
        if self._events is not None:
            self._forget_process(self._events)
            self._events = None
        if self._alarm is not None:
            self._registry.loop.unwatch(self._alarm.descriptor)
            self._alarm.close()
            self._alarm = None

    # limits

    def apply_first(self, limits: Limits, cpuset: Sequence[int] | None) -> None:
        """Set the limits a session is opened with."""
        self._apply(limits, cpuset)

    def _apply(self, limits: Limits, cpuset: Sequence[int] | None) -> None:
        check_enforced(limits)
        pin = self._registry.pin_for(self, limits, cpuset)
        self.group.apply(limits, pin)
        self._registry.note_pin(self, None if pin is None else pin.cpus)
        self.limits_set = self.limits_set.replace(**limits.values)
        if self._events is not None or self._deadline is not None or self.started is not None:
            self._set_alarm()
            self._set_timers()

    # surviving

    def _save(self) -> None:
        self._registry.save(self)

    def to_json(self) -> dict[str, Any]:
        """What a registry that starts anew must know."""
        return {
            "secret": self.secret,
            "parts": self.group.parts,
            "limits": self.limits_set.to_json(),
            "cpuset": None if self.cpuset is None else sorted(self.cpuset),
            "creator": self.creator,
            "bound": self.bound,
            "opened": self.opened,
            "started": self.started,
            "ended": self.ended,
            "limit": self.limit,
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        """Take over what ``to_json`` gave, and judge what happened while nobody looked."""
        with self._lock:
            self.limits_set = Limits.parse(data["limits"])
            self.cpuset = None if data["cpuset"] is None else frozenset(data["cpuset"])
            self.creator = None if data["creator"] is None else (data["creator"][0], data["creator"][1])
            self.bound = data["bound"]
            self.opened, self.started, self.ended = data["opened"], data["started"], data["ended"]
            self.limit = data["limit"]
            self.watch()
            if self._alarm is not None and self._alarm.counts:
                self._alarm.seen = True  # it may have rung unheard: kills in the group's own counter tell
            if self.limit is not None and self.inside():
                self._registry.loop.aside(self._kill_all)
            self._measure()


def check_enforced(limits: Limits) -> None:
    """InputError naming the first limit that no session enforces."""
    for name in limits:
        if name not in ENFORCED:
            raise InputError(
                f"a session cannot enforce this limit; it enforces {', '.join(sorted(ENFORCED))}", field=name
            ).within("limits")


class Closed:
    """A session that is gone but still answers."""

    def __init__(self, id: str, secret: str, report: Report, until: float) -> None:
        self.id = id
        self.secret = secret
        self.report = report
        self.until = until

    def stats(self) -> Report:
        """The final stats."""
        return self.report

    def close(self) -> Report:
        """The final stats: it is closed."""
        return self.report

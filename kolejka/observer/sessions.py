"""The registry of sessions: who is open, since when, under which limits, and what ended it.

Theory of operation. A session is one control group with a clock and a verdict. Verbs run in the caller's thread under
the session's own lock; waiting for processes to die happens outside of it. One thread (``events.py``) waits for
everything else: points in time, groups becoming empty, out-of-memory alarms, creators dying. It never waits for a lock:
where a session is busy it comes back a millisecond later. Killing goes to helper threads, because a fork bomb makes it
take a while and other sessions' deadlines must not.

The clock. ``time`` counts from the first process that enters (from ``open`` until then), and stands still while no
process is inside. The verdict ``limit`` is written once, *before* the kill it causes: the first cause wins, and what
merely happened beside it shows in the stats. ``memory`` needs an out-of-memory kill by the session's own limit;
``cpu_time`` is also given to a session that ended by itself beyond it; ``time`` only when our timer decided.

Names. A session's id is 32 hexadecimal digits, the first eight its owner's number (see ``cgroups.interface.Owner``): the
control group of a session is named by the id, so a registry recognises its own, leaves those of live neighbours alone
and sweeps what dead ones left.

Surviving. With a state folder every change of a session is on disk before the verb returns; monotonic times hold within
one boot, so a registry that starts anew continues clocks, deadlines and verdicts where the old one died, and answers for
sessions that were closed. Without it (a worker's own registry) sessions end with their owner: the next registry on the
machine kills and removes them.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
import secrets
import select
import signal
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from kolejka.common.errors import Conflict, InputError, KolejkaError, NodeError, NotAllowed, NotFound
from kolejka.common.limits import Limits
from kolejka.common.stats import Stats
from kolejka.observer import cores
from kolejka.observer.cgroups.choose import choose
from kolejka.observer.cgroups.files import GroupGone
from kolejka.observer.cgroups.interface import KILL_S, Alarm, Group, Owner, Pin, Tree
from kolejka.observer.events import Loop, Timer
from kolejka.observer.reports import ENFORCED, Report
from kolejka.observer.state import StateFolder

logger = logging.getLogger("kolejka.observer")

_ID: Final = re.compile(r"[0-9a-f]{32}")
_CPU_FLOOR_S: Final = 0.002
"""Least pause between two looks at a session's CPU time."""
_ALARM_PATIENCE: Final = 8
"""Looks, at growing pauses, for the kill that an out-of-memory alarm announces."""
_REMEMBERED_BELOW: Final = 1024
"""Closed nested sessions remembered per outermost session: what runs inside cannot fill our memory."""


def start_time(pid: int) -> int | None:
    """When a process started, in ticks since boot: with the pid it names a process once for all; None = gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as source:
            return int(source.read().rpartition(b")")[2].split()[19])
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
        self._lock = threading.RLock()
        self._close_lock = threading.Lock()
        self._closing = False
        self._attached: dict[int, tuple[int, Mapping[str, str]]] = {}
        self._events: int | None = None
        self._alarm: Alarm | None = None
        self._deadline: Timer | None = None
        self._cpu_timer: Timer | None = None
        self._cpu_use: Counter[int] = Counter()
        self._fresh_stats: Stats | None = None

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
            self._fresh_stats = None
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
        self.group.kill()
        self.group.wait_until_empty()
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
                self._release()
                self.report = report
            self._registry.finish(self)
            return report

    # the clock and the verdict; all below hold the lock

    def _check_open(self) -> None:
        if self._closing or self.report is not None:
            raise Conflict("the session is closed")

    def _end_processes(self) -> int:
        with self._lock:
            self._closing = True
            self._look()
            left = 0
            if self._inside():
                left = self.group.living()
                self.ended = time.monotonic()
        if left or self._inside():
            try:
                self.group.kill()
                self.group.wait_until_empty()
            except NodeError:
                self._closing = False
                raise
        return left

    def _inside(self) -> bool:
        try:
            return self.group.populated()
        except GroupGone:
            return False

    @property
    def elapsed(self) -> float:
        """Seconds on the session's clock."""
        if self.started is None:
            return time.monotonic() - self.opened
        return (time.monotonic() if self.ended is None else self.ended) - self.started

    @property
    def deadline(self) -> float | None:
        """When the time limit strikes, on the monotonic clock."""
        allowed = self.limits_set.get("time")
        if allowed is None:
            return None
        return (self.opened if self.started is None else self.started) + allowed

    def _enter(self) -> None:
        """Somebody came in."""
        self._fresh_stats = None
        self.ended = None
        if self.started is None:
            self.started = time.monotonic()
            self._save()
        self._set_timers()

    def _look(self) -> None:
        """See whether anybody is inside, and let the clock run or stand accordingly."""
        inside = self._inside()
        if inside and (self.started is None or self.ended is not None) and not self._closing:
            self._enter()
        elif not inside and self.started is not None and self.ended is None:
            now = time.monotonic()
            deadline = self.deadline
            # the kernel tells up to 10 ms late; what was still alive at the deadline, the deadline has killed
            self.ended = now if deadline is None or self.limit is not None else max(self.started, min(now, deadline))
            self._save()

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
        if self.started is None or self.ended is None:
            self._end("time")

    def _check_cpu_time(self) -> None:
        allowed = self.limits_set.get("cpu_time")
        if allowed is None or self.limit is not None:
            return
        with suppress(GroupGone):
            remaining = allowed - self.group.cpu_usage()
            if remaining <= 0:
                self._end("cpu_time")
            elif self.ended is None and self.started is not None:
                if self._cpu_timer is not None:
                    self._cpu_timer.cancel()
                width = len(self.cpuset) if self.cpuset else os.cpu_count() or 1
                when = time.monotonic() + max(_CPU_FLOOR_S, remaining / width)
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
        with suppress(GroupGone):
            self.group.kill()

    def _measure(self) -> Stats:
        """Look at everything, so that the answer holds whatever events are still on their way."""
        self._look()
        self._check_memory()
        self._check_cpu_time()
        self._check_time()
        if self._fresh_stats is None:
            stats = self.group.stats()
            if self.ended is not None and self.ended < time.monotonic():
                self._fresh_stats = stats  # nobody is inside: nothing changes until somebody enters
        else:
            stats = self._fresh_stats
        return stats.replace(time=self.elapsed)

    # events

    def _in_loop(self, work: Callable[[], object]) -> None:
        """Run ``work`` in the events thread, later if the session is busy, never when it is closed."""
        if not self._lock.acquire(blocking=False):
            self._registry.loop.at(time.monotonic() + 0.001, lambda: self._in_loop(work))
            return
        try:
            if self.report is None:
                work()
        finally:
            self._lock.release()

    def _exited(self, pid: int) -> None:
        entry = self._attached.pop(pid, None)
        if entry is not None:
            self._forget_process(entry[0])
        self._watch_end()

    def _watch_end(self, pause_s: float = 0.001) -> None:
        """An attached process ended: see whether it was the last. The kernel's own word comes up to 10 ms late."""
        self._look()
        if self.ended is not None:
            self._registry.reap(self)
        elif not self._attached and pause_s < (0.01 if self._events is not None else 1.0):
            self._registry.loop.at(
                time.monotonic() + pause_s, lambda: self._in_loop(lambda: self._watch_end(pause_s * 2))
            )
        elif self._events is None:  # pure version 1 has no event for the last one: look now and then
            self._registry.loop.at(time.monotonic() + 0.25, lambda: self._in_loop(lambda: self._watch_end(0.25)))

    def _group_changed(self) -> None:
        if self._events is not None:
            os.pread(self._events, 4096, 0)  # reading is what clears the event
        self._look()
        if self.ended is not None or self.started is None:
            self._registry.reap(self)

    def watch(self) -> None:
        """Begin to wait for what happens to the group."""
        loop = self._registry.loop
        path = self.group.events_file()
        if path is not None and self._events is None:
            self._events = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            os.pread(self._events, 4096, 0)
            loop.watch(self._events, select.EPOLLPRI, lambda: self._in_loop(self._group_changed))
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

    def _release(self) -> None:
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
            if self.limit is not None and self._inside():
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


class Registry:
    """All sessions below one folder of control groups, kept by this process.

    ``tree``: where they live; found by default, with ``cgroup`` as the folder's name. ``state``: folder in which they
    survive this process; without one they end with it. ``nested``: sessions that one session may hold open below it.
    ``remember``: seconds for which a closed session answers by id. NodeError when this machine lacks something.
    """

    def __init__(
        self,
        tree: Tree | None = None,
        *,
        cgroup: str = "kolejka",
        state: Path | None = None,
        nested: int = 64,
        remember: float = 300.0,
    ) -> None:
        self.tree = tree if tree is not None else choose(cgroup)
        self.loop = Loop()
        self._nested = nested
        self._remember = remember
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}
        self._closed: OrderedDict[str, Closed] = OrderedDict()
        self._closed_below: dict[str, deque[str]] = {}
        self._cpu_use: Counter[int] = Counter()
        self._creators: dict[int, tuple[int, set[Session]]] = {}
        self._folder = StateFolder(state) if state is not None else None
        self._forgetting = False
        durable = self._folder is not None
        self._owner = Owner(self.tree, durable=durable, number=self._folder.owner if self._folder else None)
        if self._folder is not None:
            self._folder.owner = self._owner.number
            self._recover(self._folder)
        self._sweep()

    # opening and finding

    def open(
        self,
        limits: Limits = Limits(),
        *,
        cpuset: Sequence[int] | None = None,
        parent: Session | None = None,
        creator: int | None = None,
        bound: bool = False,
    ) -> Session:
        """Open a session, below ``parent`` if that is given.

        ``cpuset``: the CPUs to pin it to; otherwise the limit ``cpus`` takes those that sibling sessions use least.
        ``creator``: the process for whom it is opened; once that is dead, the session is closed as soon as nobody is
        inside, or, if it is ``bound`` to it, at once. InputError names a limit that no session enforces; Conflict when
        there are too many below one session.
        """
        check_enforced(limits)
        id = f"{self._owner.number:08x}{secrets.token_hex(12)}"
        group = self.tree.group(parent.group if parent else None, id)
        session = Session(self, id, secrets.token_hex(20), parent, group)
        session.bound = bound
        if creator is not None:
            born = start_time(creator)
            if born is None:
                raise NotFound(f"there is no process {creator}", field="creator")
            session.creator = (creator, born)
        self._enlist(session)
        try:
            group.create()
            session.apply_first(limits, cpuset)
            session.watch()
            self.save(session)
            self._watch_creator(session)
        except BaseException:
            self._delist(session)
            session._release()  # noqa: SLF001 - registry and session are one machine in two classes
            group.remove()
            raise
        return session

    def find(self, id: object, secret: object) -> Session | Closed:
        """The session with this id, open or closed lately. NotFound, or NotAllowed where the secret is wrong."""
        if not isinstance(id, str) or not isinstance(secret, str):
            raise NotAllowed("a session is named by session_id and secret, both texts", field="session_id")
        with self._lock:
            found: Session | Closed | None = self._sessions.get(id) or self._closed.get(id)
        if found is None:
            raise NotFound("there is no such session; it may have been closed", field="session_id")
        if not hmac.compare_digest(found.secret.encode(), secret.encode("utf-8", "surrogatepass")):
            raise NotAllowed("the secret is not that of the session", field="secret")
        return found

    def session_of(self, pid: int) -> tuple[bool, Session | None]:
        """Whether a process is in one of our groups, and the innermost session it is in, as far as it is known."""
        names = self.tree.of_process(pid)
        with self._lock:
            for name in reversed(names):
                if name in self._sessions:
                    return True, self._sessions[name]
        return bool(names), None

    def __len__(self) -> int:
        return len(self._sessions)

    def stop(self, *, close: bool | None = None) -> None:
        """End this registry. ``close``: also every session (by default where no state folder keeps them). Safe twice."""
        if close if close is not None else self._folder is None:
            for session in list(self._sessions.values()):
                if session.parent is None:
                    session.close()
        self.loop.stop()
        for session in list(self._sessions.values()):
            session._release()  # noqa: SLF001 - registry and session are one machine in two classes
        self._sessions.clear()
        for descriptor, _ in self._creators.values():
            os.close(descriptor)
        self._creators.clear()
        if self._owner is not None:
            self._owner.close()
        self.tree.remove_if_empty()

    # what sessions ask

    def finish(self, session: Session) -> None:
        """A session has its final report: remember it, remove its group, forget the rest."""
        report = session.report
        assert report is not None
        until = time.monotonic() + self._remember
        if self._folder is not None:  # the stats are safe before the group that holds them goes
            self._folder.save(session.id, {"secret": session.secret, "parts": session.group.parts,
                                           "closed": report.to_json(), "until": until})  # fmt: skip
        session.group.remove()
        self._delist(session)
        if self._remember > 0:
            self._remember_closed(Closed(session.id, session.secret, report, until), session)

    def save(self, session: Session) -> None:
        """Write a session to the state folder."""
        if self._folder is not None and session.report is None:
            self._folder.save(session.id, session.to_json())

    def reap(self, session: Session) -> None:
        """Close an empty session whose creator is dead."""
        creator = session.creator
        if creator is not None and start_time(creator[0]) != creator[1]:
            self.loop.aside(lambda: self._reap(session))

    def _reap(self, session: Session) -> None:
        if not session._inside() or session.bound:  # noqa: SLF001 - registry and session are one machine
            logger.info("closing the session of a dead creator", extra={"session": session.id})
            session.close()

    def pin_for(self, session: Session, limits: Limits, cpuset: Sequence[int] | None) -> Pin | None:
        """Which CPUs and memory nodes a session is to get, if it is to be pinned at all."""
        count = limits.get("cpus")
        if count is None and cpuset is None:
            return None
        outer = next((s.cpuset for s in session.outer() if s.cpuset), None)
        available = outer or self.tree.cpus()
        if cpuset is not None:
            chosen = frozenset(cpuset)
            if not chosen or not chosen <= available:
                shown = ", ".join(map(str, sorted(available)))
                raise InputError(f"the CPUs to choose from here are {shown}", field="cpuset")
        else:
            with self._lock:
                used = dict((session.parent._cpu_use if session.parent else self._cpu_use))  # noqa: SLF001 - as above
                for cpu in session.cpuset or ():
                    used[cpu] -= 1
            chosen = cores.choose_cpus(int(count or 1), available, used, cores.cores())
        return Pin(chosen, cores.mems_of(chosen, self.tree.mems(), cores.nodes()))

    def note_pin(self, session: Session, cpus: frozenset[int] | None) -> None:
        """Remember which CPUs a session has, for its siblings to come."""
        if cpus is None:
            return
        with self._lock:
            use = session.parent._cpu_use if session.parent else self._cpu_use  # noqa: SLF001 - as above
            use.subtract(session.cpuset or ())
            session.cpuset = cpus
            use.update(cpus)

    # bookkeeping

    def _enlist(self, session: Session) -> None:
        with self._lock:
            for outer in session.outer():
                if outer.report is not None or outer.id not in self._sessions:
                    raise Conflict("the session to open it in is closed")
                if sum(1 for _ in _descendants(outer)) >= self._nested:
                    raise Conflict(f"one session holds at most {self._nested} others; close some first")
            self._sessions[session.id] = session
            if session.parent is not None:
                session.parent.children[session.id] = session

    def _delist(self, session: Session) -> None:
        with self._lock:
            self._sessions.pop(session.id, None)
            use = session.parent._cpu_use if session.parent else self._cpu_use  # noqa: SLF001 - as above
            use.subtract(session.cpuset or ())
            if session.parent is not None:
                session.parent.children.pop(session.id, None)
            entry = self._creators.get(session.creator[0]) if session.creator else None
            if entry is not None and session.creator is not None:
                entry[1].discard(session)
                if not entry[1]:
                    del self._creators[session.creator[0]]
                    self.loop.unwatch(entry[0])
                    os.close(entry[0])

    def _watch_creator(self, session: Session) -> None:
        if session.creator is None:
            return
        pid, born = session.creator
        with self._lock:
            entry = self._creators.get(pid)
            if entry is not None:
                entry[1].add(session)
                return
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                descriptor = -1
            if descriptor < 0 or start_time(pid) != born:
                if descriptor >= 0:
                    os.close(descriptor)
                self.loop.aside(lambda: self._reap(session))
                return
            self._creators[pid] = (descriptor, {session})
        self.loop.watch(descriptor, select.EPOLLIN, lambda: self._creator_died(pid))

    def _creator_died(self, pid: int) -> None:
        with self._lock:
            entry = self._creators.pop(pid, None)
        if entry is None:
            return
        self.loop.unwatch(entry[0])
        os.close(entry[0])
        for session in entry[1]:
            self.loop.aside(lambda session=session: self._reap(session))  # type: ignore[misc]

    def _remember_closed(self, closed: Closed, session: Session | None = None) -> None:
        outermost = next(iter(list(session.outer())[::-1]), None) if session else None
        evicted = None
        with self._lock:
            self._closed[closed.id] = closed
            if outermost is not None:
                below = self._closed_below.setdefault(outermost.id, deque())
                below.append(closed.id)
                if len(below) > _REMEMBERED_BELOW:
                    evicted = below.popleft()
                    self._closed.pop(evicted, None)
            else:
                self._closed_below.pop(closed.id, None)
            arm = not self._forgetting
            self._forgetting = True
        if evicted is not None and self._folder is not None:
            self._folder.drop(evicted)
        if arm:
            self.loop.at(closed.until, self._forget)

    def _forget(self) -> None:
        now, gone, next_time = time.monotonic(), [], None
        with self._lock:
            for closed in self._closed.values():
                if closed.until > now:
                    next_time = closed.until
                    break
                gone.append(closed.id)
            for id in gone:
                del self._closed[id]
            self._forgetting = next_time is not None
        for id in gone:
            if self._folder is not None:
                self._folder.drop(id)
        if next_time is not None:
            self.loop.at(next_time, self._forget)

    # starting anew

    def _recover(self, folder: StateFolder) -> None:
        entries = sorted(folder.load(), key=lambda entry: len(entry[1]["parts"]))
        closed: list[Closed] = []
        for id, data in entries:
            group = self._group_of(data["parts"])
            if "closed" in data:
                if group is not None and group.exists():  # it died between the final stats and the removal
                    group.remove()
                closed.append(Closed(id, data["secret"], Report.parse(data["closed"]), data["until"]))
                continue
            if group is None or not group.exists():
                logger.warning("a session's control group is gone; forgetting it", extra={"session": id})
                folder.drop(id)
                continue
            parts = data["parts"]
            parent = self._sessions.get(parts[-2]) if len(parts) > 1 else None
            session = Session(self, id, data["secret"], parent, group)
            self._sessions[id] = session
            if parent is not None:
                parent.children[id] = session
            session.restore(data)
            self.note_pin(session, session.cpuset)
            self._watch_creator(session)
            logger.info("session recovered", extra={"session": id})
        for one in sorted(closed, key=lambda one: one.until):
            self._remember_closed(one)

    def _group_of(self, parts: Sequence[str]) -> Group | None:
        group: Group | None = None
        for name in parts:
            group = self.tree.group(group, name)
        return group

    def _sweep(self) -> None:
        """Remove groups that nobody keeps any more: of dead registries, and of our own past where nobody is inside."""
        for name in self.tree.names():
            if not _ID.fullmatch(name) or name in self._sessions:
                continue
            number = int(name[:8], 16)
            group = self.tree.group(None, name)
            try:
                self._sweep_one(group, number)
            except KolejkaError as error:
                logger.warning("a left-over control group stays", extra={"group": group.path, "reason": str(error)})

    def _sweep_one(self, group: Group, number: int) -> None:
        if number != self._owner.number and not self._owner.is_dead(number):
            return
        try:
            inside = group.exists() and group.populated()
        except GroupGone:
            inside = False
        if inside and Owner.is_durable(number):
            if number == self._owner.number:
                logger.warning("processes live in a group of no known session", extra={"group": group.path})
            return  # its observer may start again and find them
        if inside:
            logger.info("ending what a dead process left behind", extra={"group": group.path})
            group.kill()
            group.wait_until_empty()
        group.remove()


def _descendants(session: Session) -> Iterable[Session]:
    for child in session.children.values():
        yield child
        yield from _descendants(child)

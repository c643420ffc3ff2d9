"""The registry of sessions: who is open, since when, under which limits, and what ended it.

Theory of operation. A session is one control group with a clock and a verdict. Verbs run in the caller's thread under
the session's own lock; waiting for processes to die happens outside of it. One thread (``events.py``) waits for
everything else: points in time, groups becoming empty, out-of-memory alarms, creators dying. It never waits for a lock:
where a session is busy, whoever keeps it busy does the rest (``turns.py``). Killing goes to helper threads, because a
fork bomb makes it take a while and other sessions' deadlines must not.

The clock. The limit ``time`` counts from the first process that enters (the figure shows the time since ``open`` until
then), and stands still while no process is inside. The verdict ``limit`` is written once, *before* the kill it causes:
the first cause wins, and what merely happened beside it shows in the stats. ``memory`` needs an out-of-memory kill by
the session's own limit;
``cpu_time`` is also given to a session that ended by itself beyond it; ``time`` only when our timer decided.

Names. A session's id is 32 hexadecimal digits, the first eight its owner's number (see ``cgroups.interface.Owner``).
Its control group is named by the id, so a registry recognises its own, leaves those of live neighbours alone and sweeps
what dead ones left.

Surviving. With a state folder every change of a session is on disk before the verb returns; monotonic times hold
within one boot, so a registry that starts anew continues clocks, deadlines and verdicts where the old one died, and
answers for sessions that were closed. Without it (a worker's own registry) sessions end with their owner: the next
registry on the machine kills and removes them.
"""

from __future__ import annotations

import functools
import hmac
import logging
import os
import re
import secrets
import select
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from kolejka.common.errors import Conflict, InputError, KolejkaError, NotAllowed, NotFound
from kolejka.common.limits import Limits
from kolejka.observer import cores
from kolejka.observer.cgroups.choose import choose
from kolejka.observer.cgroups.files import GroupGone
from kolejka.observer.cgroups.interface import Group, Owner, Pin, Tree
from kolejka.observer.events import Loop
from kolejka.observer.reports import Report
from kolejka.observer.session import Closed, Session, check_enforced, start_time
from kolejka.observer.state import StateFolder

logger = logging.getLogger("kolejka.observer")

_ID: Final = re.compile(r"[0-9a-f]{32}")
_NO_LIMITS: Final = Limits()
_REMEMBERED_BELOW: Final = 1024
"""Closed nested sessions remembered per outermost session: what runs inside cannot fill our memory."""


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
        self._recovered: list[Session] = []
        """those of an earlier life whose creators may ask for them again, see ``_close_unanswered``"""
        self._cpu_use: Counter[int] = Counter()
        self._saving = threading.Lock()
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
        limits: Limits = _NO_LIMITS,
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
        return self._open(limits, cpuset, parent, creator, bound=bound)

    def _open(
        self,
        limits: Limits,
        cpuset: Sequence[int] | None,
        parent: Session | None,
        creator: int | None,
        *,
        bound: bool,
        entering: bool = False,
    ) -> Session:
        check_enforced(limits)
        name = f"{self._owner.number:08x}{secrets.token_hex(12)}"
        group = self.tree.group(parent.group if parent else None, name)
        session = Session(self, name, secrets.token_hex(20), parent, group)
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
            if entering:
                session.begin()
            else:
                self.save(session)
            self._watch_creator(session)
        except BaseException:
            self._delist(session)
            session.release()
            group.remove()
            raise
        return session

    def enclose(
        self,
        pid: int,
        limits: Limits = _NO_LIMITS,
        *,
        cpuset: Sequence[int] | None = None,
        parent: Session | None = None,
        creator: int | None = None,
        bound: bool = False,
    ) -> Session:
        """Open a session around a process; see ``open`` and ``Session.attach``. Where that fails none is open."""
        session = self._open(limits, cpuset, parent, creator, bound=bound, entering=True)
        try:
            session.attach(pid)
        except BaseException:
            session.close()
            raise
        if self._recovered:
            self._close_unanswered(session)
        return session

    def _close_unanswered(self, session: Session) -> None:
        """Close what an earlier life began to enclose for the same creator, who heard no answer and asked again.

        Should it have heard the answer after all: that session has nobody inside, and its report is remembered.
        """
        with self._lock:
            self._recovered = [one for one in self._recovered if one.id in self._sessions]
        for one in self._recovered:
            if (one.creator, one.parent) == (session.creator, session.parent) and not one.inside():
                logger.info("closing a session that was asked for again", extra={"session": one.id})
                self.loop.aside(one.close)

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
        """End this registry. ``close``: also all sessions (by default where no state folder keeps them). Safe twice."""
        if close if close is not None else self._folder is None:
            for session in list(self._sessions.values()):
                if session.parent is None:
                    session.close()
        self.loop.stop()
        for session in list(self._sessions.values()):
            session.release()
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
            with self._saving:
                self._folder.save(session.id, {"secret": session.secret, "parts": session.group.parts,
                                               "closed": report.to_json(), "until": until})  # fmt: skip
        session.group.remove()
        self._delist(session)
        if self._remember > 0:
            self._remember_closed(Closed(session.id, session.secret, report, until), session)

    def save(self, session: Session) -> None:
        """Write a session to the state folder: as it is now, so that the last word there is the newest."""
        if self._folder is not None:
            with self._saving:
                if session.report is None:
                    self._folder.save(session.id, session.to_json())

    def reap(self, session: Session) -> None:
        """Close an empty session whose creator is dead."""
        creator = session.creator
        if creator is not None and not session.closing and start_time(creator[0]) != creator[1]:
            self.loop.aside(lambda: self._reap(session))

    def _reap(self, session: Session) -> None:
        if not session.inside() or session.bound:
            logger.info("closing the session of a dead creator", extra={"session": session.id})
            session.close()

    def pin_for(self, session: Session, limits: Limits, cpuset: Sequence[int] | None) -> Pin | None:
        """Which CPUs and memory nodes a session is to get, if it is to be pinned at all."""
        count = limits.get("cpus")
        if count is None and cpuset is None:
            return None
        outer = next((s.cpuset for s in session.outer() if s.cpuset), None)
        available = outer or self._cpus
        if cpuset is not None:
            chosen = frozenset(cpuset)
            if not chosen or not chosen <= available:
                shown = ", ".join(map(str, sorted(available)))
                raise InputError(f"the CPUs to choose from here are {shown}", field="cpuset")
        else:
            with self._lock:
                used = dict(session.parent.cpu_use if session.parent else self._cpu_use)
                for cpu in session.cpuset or ():
                    used[cpu] -= 1
            chosen = cores.choose_cpus(int(count or 1), available, used, cores.cores())
        return Pin(chosen, cores.mems_of(chosen, self._mems, cores.nodes()))

    @functools.cached_property
    def _cpus(self) -> frozenset[int]:
        return self.tree.cpus()  # CPUs that come or go while we run are not noticed

    @functools.cached_property
    def _mems(self) -> frozenset[int]:
        return self.tree.mems()

    def note_pin(self, session: Session, cpus: frozenset[int] | None) -> None:
        """Remember which CPUs a session has, for its siblings to come."""
        if cpus is None:
            return
        with self._lock:
            use = session.parent.cpu_use if session.parent else self._cpu_use
            use.subtract(session.cpuset or ())
            session.cpuset = cpus
            use.update(cpus)

    # bookkeeping

    def _enlist(self, session: Session) -> None:
        with self._lock:
            for outer in session.outer():
                if outer.closing or outer.id not in self._sessions:
                    raise Conflict("the session to open it in is closed")
                if sum(1 for _ in _descendants(outer)) >= self._nested:
                    raise Conflict(f"one session holds at most {self._nested} others; close some first")
            self._sessions[session.id] = session
            if session.parent is not None:
                session.parent.children[session.id] = session

    def _delist(self, session: Session) -> None:
        with self._lock:
            self._sessions.pop(session.id, None)
            use = session.parent.cpu_use if session.parent else self._cpu_use
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
            entry = self._creators.get(pid)
            if entry is None or not select.select([entry[0]], [], [], 0)[0]:
                return  # gone, or the event was of an earlier descriptor of this number
            del self._creators[pid]
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
            for name in gone:
                del self._closed[name]
            self._forgetting = next_time is not None
        for name in gone:
            if self._folder is not None:
                self._folder.drop(name)
        if next_time is not None:
            self.loop.at(next_time, self._forget)

    # starting anew

    def _recover(self, folder: StateFolder) -> None:
        entries = sorted(folder.load(), key=lambda entry: len(entry[1]["parts"]))
        closed: list[Closed] = []
        for name, data in entries:
            group = self._group_of(data["parts"])
            if "closed" in data:
                if group is not None and group.exists():  # it died between the final stats and the removal
                    group.remove()
                closed.append(Closed(name, data["secret"], Report.parse(data["closed"]), data["until"]))
                continue
            if group is None or not group.exists():
                logger.warning("a session's control group is gone; forgetting it", extra={"session": name})
                folder.drop(name)
                continue
            parts = data["parts"]
            parent = self._sessions.get(parts[-2]) if len(parts) > 1 else None
            session = Session(self, name, data["secret"], parent, group)
            self._sessions[name] = session
            if parent is not None:
                parent.children[name] = session
            session.restore(data)
            self.note_pin(session, session.cpuset)
            self._watch_creator(session)
            if session.bound and session.started is not None:
                self._recovered.append(session)
            logger.info("session recovered", extra={"session": name})
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
            group.kill_until_empty()
        group.remove()


def _descendants(session: Session) -> Iterable[Session]:
    for child in session.children.values():
        yield child
        yield from _descendants(child)

"""What the observer needs of control groups, whatever their version.

A ``Tree`` is the place on this machine where all our groups live; a ``Group`` is one of them, with about eight verbs:
create, apply limits, attach a process, list processes, stats, freeze, thaw, kill, remove. Both versions pass one
conformance suite (``tests/conformance/cgroups``).

Nothing here keeps time, knows sessions or holds locks: callers use one group from one thread at a time, except for
``kill``, ``populated`` and the waiting verbs, which are safe beside anything.
"""

from __future__ import annotations

import abc
import fcntl
import os
import random
import select
import signal
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from kolejka.common.checks import Check
from kolejka.common.errors import NodeError, NotFound
from kolejka.common.limits import Limits
from kolejka.common.stats import Stats
from kolejka.observer.cgroups.files import Door, GroupGone, explain, read_whole

KILL_S: Final = 10.0
"""How long the processes of a killed or frozen group may take; beyond it something is stuck in the kernel."""
_SPARED_S: Final = 0.005
"""After so long whoever still lives is killed by a signal of its own."""
_AGAIN_S: Final = 0.5
"""After so long the kill is repeated: somebody may have been moved in meanwhile."""
_PF_EXITING: Final = 0x4
_SIGKILL_BIT: Final = 1 << (signal.SIGKILL - 1)
_VOLATILE: Final = 0x7FFFFFFF
_DURABLE: Final = 0x80000000


@dataclass
class Alarm:
    """Tells of out-of-memory kills in one group. Register ``descriptor`` for ``mask`` at a poll; then ask ``fired``."""

    descriptor: int
    mask: int
    counts: bool
    """True = an eventfd: what is read is how often it fired. False = a file to read again, which tells nothing alone"""
    seen: bool = False

    def fired(self) -> bool:
        """Whether it fired since it was set; clears the poll's event."""
        if self.counts:
            with suppress(BlockingIOError):  # it did not fire
                self.seen = bool(os.eventfd_read(self.descriptor)) or self.seen
            return self.seen
        os.pread(self.descriptor, 4096, 0)
        return True

    def close(self) -> None:
        """Let go of it."""
        os.close(self.descriptor)


@dataclass(frozen=True)
class Pin:
    """The CPUs a group may use, and the memory nodes beside them."""

    cpus: frozenset[int]
    mems: frozenset[int]


class Group(abc.ABC):
    """One control group. ``create`` makes it; until then nothing of it exists."""

    def __init__(self, tree: Tree, parent: Group | None, name: str) -> None:
        self.tree = tree
        self.parent = parent
        self.name = name
        self.parts: tuple[str, ...] = (*parent.parts, name) if parent else (name,)

    # the verbs

    @abc.abstractmethod
    def create(self) -> None:
        """Make the group. NodeError with the cure where we lack the right or the kernel the controller."""

    @abc.abstractmethod
    def apply(self, limits: Limits, pin: Pin | None) -> None:
        """Set those of memory, swap, pids that ``limits`` names, and pin to CPUs where ``pin`` is given."""

    @abc.abstractmethod
    def attach(self, pid: int) -> None:
        """Move a process, all its threads, into the group. NotFound when there is no such process."""

    @abc.abstractmethod
    def stats(self) -> Stats:
        """What the group used so far, ``time`` excepted, groups below it included."""

    @abc.abstractmethod
    def freeze(self) -> None:
        """Stop every process, and return when they stand still. NodeError when they do not within ``KILL_S``."""

    @abc.abstractmethod
    def thaw(self) -> None:
        """Let every process go on."""

    @abc.abstractmethod
    def kill(self) -> None:
        """Send SIGKILL to every process in the group and below it, forking, stopped and frozen ones included.

        Returns at once where the kernel does it as one step; ``wait_until_empty`` waits for the end.
        """

    @abc.abstractmethod
    def remove(self) -> None:
        """Remove the group and empty groups below it, in every hierarchy, also those others made under our name."""

    @abc.abstractmethod
    def pids(self) -> list[int]:
        """Processes in the group and below it."""

    # what events need

    @abc.abstractmethod
    def exists(self) -> bool:
        """Whether the kernel has the group."""

    @abc.abstractmethod
    def populated(self) -> bool:
        """Whether a process lives in the group or below it."""

    @abc.abstractmethod
    def events_file(self) -> bytes | None:
        """A file that polls with POLLPRI when the group becomes empty or not empty; None where the kernel has none."""

    @abc.abstractmethod
    def cpu_usage(self) -> float:
        """CPU time so far, in seconds."""

    @abc.abstractmethod
    def memory_alarm(self) -> Alarm | None:
        """An alarm for out-of-memory kills, or None where the kernel has none."""

    @abc.abstractmethod
    def killed_by_own_limit(self, *, alarmed: bool) -> bool:
        """Whether the kernel killed a process because *this group's* memory limit was met.

        ``alarmed``: the group's alarm fired and no outer group's did.
        """

    # shared

    @property
    def path(self) -> str:
        """The path that container engines take as parent, such as ``/kolejka/<session>``."""
        return "/".join((self.tree.path, *self.parts))

    def wait_until_empty(self, timeout_s: float = KILL_S) -> None:
        """Return when no process is left. NodeError naming some when they are still there after ``timeout_s``."""
        pause_ms, deadline = 1, time.monotonic() + timeout_s
        watch: int | None = None
        try:
            while self.populated():
                if time.monotonic() > deadline:
                    stuck = ", ".join(map(str, self.pids()[:8]))
                    raise NodeError(f"killed processes do not end: {stuck}; they hang in the kernel, restart the node")
                if watch is None and (path := self.events_file()) is not None:
                    watch = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                if watch is None:
                    time.sleep(pause_ms / 1000)  # pure version 1 has no event for the last one
                else:
                    poll = select.poll()
                    poll.register(watch, select.POLLPRI)
                    poll.poll(pause_ms)
                pause_ms = min(pause_ms * 2, 16)  # the kernel tells at most every 10 ms
        except GroupGone:
            return
        finally:
            if watch is not None:
                os.close(watch)

    def kill_until_empty(self, timeout_s: float = KILL_S) -> None:
        """Kill, again if need be, and return when no process is left. NodeError when they stay."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.kill()
            with suppress(NodeError):  # some are left
                self.wait_until_empty(min(_SPARED_S, timeout_s))
                return
            self._kill_spared()
            try:
                self.wait_until_empty(min(_AGAIN_S, timeout_s))
                return
            except NodeError:
                if time.monotonic() > deadline:
                    raise

    def _kill_spared(self) -> None:
        """Kill by one signal each those whom ``cgroup.kill`` spares: processes whose first thread has left alone."""
        for pid in self.pids():
            if _lives(pid):
                with suppress(ProcessLookupError):  # gone meanwhile
                    os.kill(pid, signal.SIGKILL)

    def living(self) -> int:
        """Processes in the group that nobody is ending yet: not dead, not dying, no SIGKILL on its way."""
        return sum(map(_lives, self.pids()))

    def kill_one_by_one(self) -> None:
        """Freeze, SIGKILL every process, thaw, until empty: for kernels without ``cgroup.kill``."""
        deadline = time.monotonic() + KILL_S
        while self.populated():
            self.freeze()
            for pid in self.pids():
                with suppress(ProcessLookupError):  # gone already
                    os.kill(pid, signal.SIGKILL)
            self.thaw()
            if time.monotonic() > deadline:
                raise NodeError(f"processes of {self.path} do not die; they hang in the kernel, restart the node")
            if self.populated():
                time.sleep(0.001)  # those that were thawed need a moment to die


class Tree(abc.ABC):
    """Where our groups live: one folder, in one or several hierarchies."""

    version: str
    """``v2``, ``v1+v2`` (limits in v1, the rest in an empty v2 tree) or ``v1``"""
    path: str
    """the folder as container engines name it, such as ``/kolejka``"""

    def __init__(self, door: Door, name: str) -> None:
        self.door = door
        self.name = name

    @abc.abstractmethod
    def prepare(self) -> None:
        """Make our folder and whatever must be above the first group."""

    @abc.abstractmethod
    def group(self, parent: Group | None, name: str) -> Group:
        """The handle of one group, whether it exists or not."""

    @abc.abstractmethod
    def cpus(self) -> frozenset[int]:
        """CPUs that our groups may use."""

    @abc.abstractmethod
    def mems(self) -> frozenset[int]:
        """Memory nodes that our groups may use."""

    @abc.abstractmethod
    def of_process(self, pid: int) -> tuple[str, ...]:
        """Names of our nested groups that a process is in, outermost first; none when it is in none of ours.

        NotFound when there is no such process.
        """

    @abc.abstractmethod
    def places(self, pid: int) -> Mapping[str, str]:
        """Where a process is, to be given to ``put_back``: hierarchy → path."""

    @abc.abstractmethod
    def put_back(self, pid: int, places: Mapping[str, str], above: Group | None) -> None:
        """Move a process to where it was, or where that is gone into ``above`` (None: out of all our groups)."""

    @abc.abstractmethod
    def folders(self) -> Iterator[bytes]:
        """Our folder in every hierarchy of this machine, the first being the one that tells which groups exist."""

    @abc.abstractmethod
    def lock_file(self) -> bytes:
        """A file above our folder that outlives it; see ``Owner``."""

    @abc.abstractmethod
    def checks(self) -> Iterable[Check]:
        """What this tree can and cannot do."""

    def remove_if_empty(self) -> None:
        """Remove our folder everywhere, unless somebody's groups are in it."""
        for folder in self.folders():
            with suppress(OSError):  # in use by another registry, or not there: both are fine
                os.rmdir(folder)

    def names(self) -> set[str]:
        """Names of all groups directly below our folder, in any hierarchy."""
        return {os.fsdecode(name) for folder in self.folders() for name in self.door.below(folder)}


class Owner:
    """A number that marks groups as ours while we live, so that nobody sweeps a live registry's empty groups.

    The first eight digits of a session's id are its owner's number. A live owner holds a lock on that byte of
    ``Tree.lock_file``; the kernel drops it when the owner dies, whatever way and in whatever namespace. Numbers of
    *durable* owners, whose sessions outlive them in a state folder, have the highest bit set.
    """

    def __init__(self, tree: Tree, *, durable: bool, number: int | None = None) -> None:
        path = tree.lock_file()
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise explain(path, error, "lock") from None
        self.durable = durable
        if number is not None:
            if not self.is_dead(number, keep=True):
                os.close(self._descriptor)
                raise NodeError("another observer that runs keeps the same state folder; stop it first")
            self.number = number
            return
        while True:
            self.number = random.SystemRandom().getrandbits(31) | (_DURABLE if durable else 0)
            if self.is_dead(self.number, keep=True):
                return

    def is_dead(self, number: int, *, keep: bool = False) -> bool:
        """Whether no live registry has this number. ``keep``: if so, take it."""
        if not keep and number == self.number:
            return False
        record = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0)
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, record)
        except (BlockingIOError, PermissionError):  # held by another: EAGAIN or EACCES
            return False
        if not keep:
            record = struct.pack("hhqqi4x", fcntl.F_UNLCK, os.SEEK_SET, number, 1, 0)
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, record)
        return True

    @staticmethod
    def is_durable(number: int) -> bool:
        """Whether sessions of this owner outlive it."""
        return number > _VOLATILE

    def close(self) -> None:
        """Give the number up."""
        os.close(self._descriptor)


def _lives(pid: int) -> bool:
    """Whether any thread of a process is neither dead, nor dying, nor about to."""
    try:
        threads, lives = _look_at(b"/proc/%d" % pid)
        if lives or threads == 1:
            return lives
        return any(_look_at(b"/proc/%d/task/%s" % (pid, thread))[1] for thread in os.listdir(b"/proc/%d/task" % pid))
    except (FileNotFoundError, ProcessLookupError):
        return False


def _look_at(place: bytes) -> tuple[int, bool]:
    """How many threads a process has, and whether the one that is looked at lives (of a process: its first one)."""
    words = read_whole(place + b"/stat").rpartition(b")")[2].split()
    threads = int(words[17])
    if words[0] in (b"Z", b"X") or int(words[6]) & _PF_EXITING:
        return threads, False
    for line in read_whole(place + b"/status").splitlines():
        if line.startswith((b"SigPnd:", b"ShdPnd:")) and int(line.split()[1], 16) & _SIGKILL_BIT:
            return threads, False
    return threads, True


def no_such_process(pid: int) -> NotFound:
    """The error for a process that is gone."""
    return NotFound(f"there is no process {pid}", field="pid")

"""Control groups of version 2.

``<base>/<name>/<session>/`` carries the limits; its processes live in the leaf ``payload``, because a group that gives
controllers to its children may hold no process itself. Nested sessions and the groups of container engines are siblings
of ``payload``, so a session's limits hold over all of them.

``base`` is the group that was named, or else the top of the mount, or, where we live in a group that was *delegated*
to us (a unit with ``Delegate=yes``, a container of its own control-group namespace, a user's scope), that group. In a
delegated one we first move whoever is in it into the leaf ``observer``, for the same rule.

For the same rule systemd cannot start a service anew in a group that gives controllers to its children: as long as
sessions lived below the service of an observer, that observer would be gone. So a service that is to find its sessions
again names the group of another unit, which does nothing but hold them (``kolejka-sessions.service``).

A fresh group per session: peaks and event counters never reset.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Final

from kolejka.common.checks import Check
from kolejka.common.errors import NodeError, NotFound
from kolejka.common.limits import Limits
from kolejka.common.stats import CpuStats, IoStats, MemoryStats, PidsStats, PressureStats, Stats
from kolejka.observer.cgroups import devices
from kolejka.observer.cgroups.files import Door, GroupGone, KernelFileError, explain
from kolejka.observer.cgroups.interface import Alarm, Group, Pin, Tree
from kolejka.observer.cgroups.mounts import Mount, process_paths
from kolejka.observer.cgroups.typed import CoreV2, CpuSetV2, GroupNode, IoV2, MemoryV2, PidsFiles
from kolejka.observer.cgroups.v1 import freeze_and_wait, swap_devices, write_pid

PAYLOAD: Final = "payload"
OWN_LEAF: Final = "observer"
_CONTROLLERS: Final = ("cpu", "cpuset", "io", "memory", "pids")
"""what we give to groups, as far as the machine has it; cpu is for container engines below us"""
_CURES: Final = {
    "memory": "boot with cgroup_enable=memory",
    "pids": "use a kernel with CONFIG_CGROUP_PIDS",
    "cpuset": "use a kernel with CONFIG_CPUSETS, and a unit with Delegate=yes",
}


class V2Tree(Tree):
    """Our folder in the one hierarchy of version 2.

    ``base`` is the group to work in, as a path below the mount point; by default it is found, see above.
    """

    version = "v2"

    def __init__(self, mount: Mount, name: str, door: Door | None = None, *, base: str | None = None) -> None:
        super().__init__(door or Door(), name)
        self.mount = mount
        if base is None:
            self.base, self.delegated = find_base(mount, self.door)
        else:
            self.base, self.delegated = base, _marked_delegated(mount.point + base)
        self.path = f"{self.base}/{name}"
        self.base_folder = os.fsencode(mount.point + self.base)
        self.top = os.fsencode(mount.point + self.path)

    @cached_property
    def controllers(self) -> frozenset[str]:
        """Controllers that our groups can have."""
        have: frozenset[str] = CoreV2(GroupNode(self.door, self.base_folder)).controllers
        return have.intersection(_CONTROLLERS)

    def prepare(self) -> None:
        """See ``Tree``."""
        if self.delegated:
            self._leave_base()
        self.give_controllers(self.base_folder)
        self.door.make(self.top)
        self.give_controllers(self.top)

    def _leave_base(self) -> None:
        base = GroupNode(self.door, self.base_folder)
        leaf = self.base_folder + b"/" + OWN_LEAF.encode()
        for _ in range(16):  # whoever forks while we move is met in the next round
            pids = CoreV2(base).pids
            if not pids:
                return
            self.door.make(leaf)
            for pid in pids:
                with suppress(NotFound):  # it ended meanwhile
                    write_pid(self.door, leaf, pid)

    def give_controllers(self, folder: bytes) -> None:
        """Let the groups below ``folder`` have our controllers."""
        core = CoreV2(GroupNode(self.door, folder))
        lacking = self.controllers - core.subtree_control
        if not lacking:
            return
        try:
            core.subtree_control = [f"+{controller}" for controller in sorted(lacking)]
        except KernelFileError as error:
            if error.errno == errno.EBUSY:
                raise NodeError(
                    f"{os.fsdecode(folder)} holds processes, so groups below it get no controllers; "
                    "start in a group of your own: systemd-run --scope -p Delegate=yes …"
                ) from None
            raise

    def group(self, parent: Group | None, name: str) -> V2Group:
        """The handle of one group."""
        assert parent is None or isinstance(parent, V2Group)
        return V2Group(self, parent, name)

    def require(self, controller: str) -> None:
        """NodeError with the cure where our groups cannot have a controller that a limit needs."""
        if controller not in self.controllers:
            cure = _CURES.get(controller, "use a unit with Delegate=yes")
            raise NodeError(f"control groups here have no {controller} controller; {cure}")

    def cpus(self) -> frozenset[int]:
        """CPUs of the group we work in."""
        self.require("cpuset")
        return self._effective("effective_cpus", "cpuset.cpus.effective", "/sys/devices/system/cpu/online")

    def mems(self) -> frozenset[int]:
        """Memory nodes of the group we work in."""
        self.require("cpuset")
        return self._effective("effective_mems", "cpuset.mems.effective", "/sys/devices/system/node/online")

    def _effective(self, attribute: str, filename: str, fallback: str) -> frozenset[int]:
        cpuset = CpuSetV2(GroupNode(self.door, self.base_folder))
        if self.door.exists(self.base_folder + b"/" + filename.encode()):
            return frozenset(getattr(cpuset, attribute))
        text = self.door.read_optional(fallback.encode())  # the top group has no such files before 5.8
        return _numbers(text or "0")

    def of_process(self, pid: int) -> tuple[str, ...]:
        """See ``Tree``."""
        names = self.mount.below(process_paths(pid).get("", "/.."), self.path)
        return names[: names.index(PAYLOAD)] if PAYLOAD in names else names

    def places(self, pid: int) -> Mapping[str, str]:
        """See ``Tree``."""
        path = process_paths(pid).get("")
        return {} if path is None else {"": path}

    def put_back(self, pid: int, places: Mapping[str, str], above: Group | None) -> None:
        """See ``Tree``."""
        if above is not None and not isinstance(above, V2Group):
            raise TypeError("a group of another tree")
        target = self.mount.folder(places[""]) if "" in places else None
        with suppress(GroupGone, KernelFileError):  # gone, or an inner group by now: the next best place
            if target is not None and self.door.exists(target):
                write_pid(self.door, target, pid)
                return
        if above is not None:
            above.attach(pid)
            return
        leaf = self.base_folder
        if self.delegated:
            leaf += b"/" + OWN_LEAF.encode()
            self.door.make(leaf)
        write_pid(self.door, leaf, pid)

    def folders(self) -> Iterator[bytes]:
        """See ``Tree``."""
        yield self.top

    def lock_file(self) -> bytes:
        """See ``Tree``."""
        return self.base_folder + b"/cgroup.procs"

    def checks(self) -> Iterable[Check]:
        """See ``Tree``."""
        yield Check("control groups", True, f"version 2, in {self.base or '/'}")
        for controller in ("memory", "pids", "cpuset", "io"):
            have = controller in self.controllers
            yield Check(
                f"controller {controller}", have, "there" if have else "absent",
                _CURES.get(controller, "use a unit with Delegate=yes"), required=controller != "io",
            )  # fmt: skip
        kill = self.door.exists(self.base_folder + b"/cgroup.kill") or _kernel() >= (5, 14)
        yield Check(
            "cgroup.kill", kill, "kills a whole group in one step" if kill else "absent: kill freezes and signals",
            "use Linux 5.14 or newer", required=False,
        )  # fmt: skip
        peak = _kernel() >= (5, 19)
        yield Check(
            "memory.peak", peak, "peaks are measured" if peak else "absent: results carry no memory.max_usage",
            "use Linux 5.19 or newer", required=False,
        )  # fmt: skip


def _kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


def _numbers(text: str) -> frozenset[int]:
    return frozenset(CpuSetV2.__dict__["cpus"].sanitize_get(text))


def find_base(mount: Mount, door: Door) -> tuple[str, bool]:
    """The group to work in, as a path below the mount point, and whether it is one delegated to us.

    Below the real top of the hierarchy there are processes everywhere and nobody minds. Any other group must be ours:
    one that we may write to, and marked by systemd (``trusted.delegate``, ``user.delegate``) where we are root; or
    the top of a control-group namespace.
    """
    own = mount.inside(process_paths("self").get("", "/..")) or ""
    top_is_real = not door.exists(os.fsencode(mount.point) + b"/cgroup.type")
    path = own
    if path.endswith("/" + OWN_LEAF):
        path = path[: -len(OWN_LEAF) - 1]  # an earlier start moved us there
    while path:
        folder = mount.point + path
        if _writable(folder) and (os.geteuid() != 0 or _marked_delegated(folder)):
            return path, True
        path = os.path.dirname(path).rstrip("/")
    if not _writable(mount.point):
        raise NodeError(
            f"no right to make control groups in {mount.point}; run as root, or as "
            "systemd-run --user --scope -p Delegate=yes …"
        )
    return "", not top_is_real


def _writable(folder: str) -> bool:
    return all(
        os.access(os.path.join(folder, name), os.W_OK) for name in ("", "cgroup.procs", "cgroup.subtree_control")
    )


def _marked_delegated(folder: str) -> bool:
    for name in ("trusted.delegate", "user.delegate"):
        with suppress(OSError):  # no such mark, or no right to see it
            if os.getxattr(folder, name) == b"1":
                return True
    return False


class V2Group(Group):
    """One group, with its leaf for processes."""

    def __init__(self, tree: V2Tree, parent: V2Group | None, name: str) -> None:
        super().__init__(tree, parent, name)
        self._tree = tree
        self._parent = parent
        self._door = tree.door
        self.folder: bytes = (parent.folder if parent else tree.top) + b"/" + os.fsencode(name)
        self._node = GroupNode(self._door, self.folder)
        self._core = CoreV2(self._node)

    @cached_property
    def _memory(self) -> MemoryV2:
        return MemoryV2(self._node)

    @cached_property
    def _pids(self) -> PidsFiles:
        return PidsFiles(self._node)

    # the verbs

    def create(self) -> None:
        """See ``Group``."""
        try:
            self._door.make(self.folder)
        except GroupGone:
            if self._parent is not None:
                raise
            self._tree.prepare()  # first group, or another registry just removed our folder as empty
            self._door.make(self.folder)
        try:
            self._take_controllers()
            self._door.make(self.folder + b"/" + PAYLOAD.encode())
            if "memory" in self._tree.controllers:
                self._memory.oom_group = True
        except NodeError:
            self._door.remove(self.folder)
            raise

    def _take_controllers(self) -> None:
        try:
            self._tree.give_controllers(self.folder)
        except KernelFileError as error:
            if error.errno != errno.ENOENT or self._parent is not None:
                raise
            self._tree.give_controllers(self._tree.top)  # somebody had just made it, and not yet given it any
            self._tree.give_controllers(self.folder)

    def apply(self, limits: Limits, pin: Pin | None) -> None:
        """See ``Group``."""
        values = limits.values
        if "pids" in values:
            self._tree.require("pids")
            self._pids.max = int(values["pids"])
        if "memory" in values or "swap" in values:
            self._tree.require("memory")
        counts_swap = self._door.exists(self.folder + b"/memory.swap.max")  # 4.5, with swapaccount=1
        if "swap" in values and (counts_swap or swap_devices()):
            self._memory.swap_max = int(values["swap"])
        if "memory" in values:
            self._memory.max = int(values["memory"])
        if pin is not None:
            self._tree.require("cpuset")
            cpuset = CpuSetV2(self._node)
            cpuset.mems = pin.mems
            cpuset.cpus = pin.cpus

    def attach(self, pid: int) -> None:
        """See ``Group``. The device rules it is under go with it."""
        leaf = self.folder + b"/" + PAYLOAD.encode()
        where = self._tree.mount.folder(process_paths(pid).get("", "/.."))
        if where is not None:
            try:
                devices.carry(where, leaf)
            except OSError as error:
                raise explain(leaf, error, "keep the device rules of a process in") from None
        write_pid(self._door, leaf, pid)

    def pids(self) -> list[int]:
        """See ``Group``."""
        found: list[int] = []
        for folder in self._all(self.folder):
            with suppress(GroupGone):  # removed just now, so nobody was in it
                found += CoreV2(GroupNode(self._door, folder)).pids
        return found

    def _all(self, folder: bytes) -> Iterator[bytes]:
        yield folder
        for name in self._door.below(folder):
            yield from self._all(folder + b"/" + name)

    def stats(self) -> Stats:
        """See ``Group``."""
        core = self._core
        return Stats(
            cpu=self._cpu(),
            memory=self._memory_stats() if "memory" in self._tree.controllers else MemoryStats(),
            pids=self._pids_stats() if "pids" in self._tree.controllers else PidsStats(),
            io=self._io_stats() if "io" in self._tree.controllers else IoStats(),
            pressure=PressureStats(cpu=core.cpu_pressure, memory=core.memory_pressure, io=core.io_pressure),
        )

    def _cpu(self) -> CpuStats:
        fields = self._core.cpu or {}
        if "usage_usec" not in fields:
            return CpuStats()
        return CpuStats(fields["usage_usec"] / 1e6, fields["user_usec"] / 1e6, fields["system_usec"] / 1e6)

    def _memory_stats(self) -> MemoryStats:
        memory = self._memory
        figures, events = memory.stat, memory.events
        return MemoryStats(
            usage=memory.current,
            max_usage=memory.peak,
            swap=memory.swap_current,
            max_swap=memory.swap_peak,
            anonymous=figures.get("anon"),
            file=figures.get("file"),
            failures=events.get("max"),
            oom_kills=events.get("oom_kill"),
        )

    def _pids_stats(self) -> PidsStats:
        pids = self._pids
        if pids.events_local is not None:  # from 6.11 `pids.events` counts this group's limit, wherever it was met
            failures = (pids.events or {}).get("max")
        else:  # before, it counts where the fork failed
            failures = 0
            for folder in self._all(self.folder):
                with suppress(GroupGone):  # removed just now
                    failures += (PidsFiles(GroupNode(self._door, folder)).events or {}).get("max", 0)
        return PidsStats(usage=pids.current, max_usage=pids.peak, failures=failures)

    def _io_stats(self) -> IoStats:
        sums = IoV2(self._node).stat
        return IoStats(read_bytes=sums["rbytes"], write_bytes=sums["wbytes"], reads=sums["rios"], writes=sums["wios"])

    def freeze(self) -> None:
        """See ``Group``."""
        freeze_and_wait(self._core)

    def thaw(self) -> None:
        """See ``Group``."""
        self._core.freeze = False

    def kill(self) -> None:
        """See ``Group``."""
        if self._door.exists(self.folder + b"/cgroup.kill"):
            self._core.kill = True
        else:
            self.kill_one_by_one()

    def remove(self) -> None:
        """See ``Group``."""
        self._door.remove(self.folder)

    # what events need

    def exists(self) -> bool:
        """See ``Group``."""
        return self._door.exists(self.folder)

    def populated(self) -> bool:
        """See ``Group``."""
        return bool(self._core.events["populated"])

    def events_file(self) -> bytes | None:
        """See ``Group``."""
        return self.folder + b"/cgroup.events"

    def cpu_usage(self) -> float:
        """See ``Group``."""
        return self._cpu().usage or 0.0

    def memory_alarm(self) -> Alarm | None:
        """See ``Group``."""
        if "memory" not in self._tree.controllers:
            return None
        path = self.folder + b"/memory.events"
        try:
            return Alarm(os.open(path, os.O_RDONLY | os.O_CLOEXEC), select.POLLPRI, counts=False)
        except OSError as error:
            raise explain(path, error, "read") from None

    def killed_by_own_limit(self, *, alarmed: bool) -> bool:  # noqa: ARG002 - the counters tell enough here
        """See ``Group``: ``oom`` counts in the group whose limit was met, ``oom_kill`` wherever a victim was."""
        memory = self._memory
        if not memory.events.get("oom_kill"):
            return False
        local = memory.events_local
        return local is None or bool(local.get("oom"))

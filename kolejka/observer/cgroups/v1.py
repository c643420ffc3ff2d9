"""Control groups of version 1, alone or beside an empty version-2 mount.

One group is a folder in several hierarchies: ``memory``, ``pids`` and ``blkio`` carry limits and peaks; ``cpuset`` is
joined when the first CPU limit is set, because changing it is the dearest of all. Where the machine also mounts version
2, a *shadow* folder there, without any controller, does what version 1 does badly: ``cgroup.kill``, ``cgroup.freeze``,
``cgroup.events``, CPU time in microseconds, pressure. Elsewhere the ``freezer`` and ``cpuacct`` hierarchies stand in.

Facts used here: processes may live in inner groups; ``oom_kill`` in ``memory.oom_control`` counts the victim's own
group only, while the eventfd fires for the group whose limit was met and for all below it; ``memsw`` bounds memory and
swap together and can never be below the memory limit, so the order of the two writes matters both ways. What waits in
sockets of the network is counted apart from all other memory: it gets a bound of its own, of the same size.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Final

from kolejka.common.checks import Check
from kolejka.common.errors import InputError, NodeError, NotFound
from kolejka.common.limits import Limits
from kolejka.common.stats import CpuStats, IoStats, MemoryStats, PidsStats, PressureStats, Stats
from kolejka.observer.cgroups.files import Door, GroupGone, KernelFileError, explain
from kolejka.observer.cgroups.interface import KILL_S, Alarm, Group, Pin, Tree, no_such_process
from kolejka.observer.cgroups.mounts import Mount, process_paths
from kolejka.observer.cgroups.typed import (
    BlkIOV1,
    CoreV2,
    CpuAcctV1,
    CpuSetV1,
    FreezerV1,
    GroupNode,
    MemoryV1,
    PidsFiles,
)

SHADOW: Final = "unified"
"""our name for the version-2 hierarchy among the others"""
_UNLIMITED: Final = 1 << 62


class V1Tree(Tree):
    """Our folder ``/<name>`` at the top of every hierarchy of version 1."""

    def __init__(self, mounts: Mapping[str, Mount], shadow: Mount | None, name: str, door: Door | None = None) -> None:
        super().__init__(door or Door(), name)
        self.path = "/" + name
        self.version = "v1+v2" if shadow else "v1"
        missing = [c for c in ("memory", "pids", *(() if shadow else ("freezer", "cpuacct"))) if c not in mounts]
        if missing:
            raise NodeError(
                f"control-group controllers are not mounted: {', '.join(missing)}; "
                "mount them below /sys/fs/cgroup, or boot with unified control groups (version 2)"
            )
        self.mounts = {**mounts, **({SHADOW: shadow} if shadow else {})}
        wanted = ("memory", "pids", "blkio", SHADOW) if shadow else ("memory", "pids", "blkio", "freezer", "cpuacct")
        tops: dict[str, bytes] = {}
        for controller in wanted:
            if controller in self.mounts:
                tops[controller] = self._top(controller)
        self.tops = tops
        # co-mounted controllers (cpu,cpuacct) share a folder
        self.places_to_join = tuple(dict.fromkeys(tops.values()))
        self.primary = SHADOW if shadow else "pids"
        self.all_tops = tuple(self.folders())

    def _top(self, controller: str) -> bytes:
        return os.fsencode(self.mounts[controller].point + self.path)

    def prepare(self) -> None:
        """Make our folder in each hierarchy that every group joins."""
        for top in self.places_to_join:
            self.door.make(top)
        if "memory" in self.tops:
            memory = GroupNode(self.door, self.tops["memory"])
            hierarchy = MemoryV1(memory)
            # always 1, and fixed, from 5.11
            if self.door.read_optional(self.tops["memory"] + b"/memory.use_hierarchy") == "0":
                hierarchy.use_hierarchy = True
        if "blkio" in self.tops:
            self._count_io(self.tops["blkio"])

    def _count_io(self, top: bytes) -> None:
        """Have block devices count bytes: from 6.10 one does so after the first rule for it, be it "no limit"."""
        for path in Path("/sys/block").glob("*/dev"):
            with suppress(GroupGone, KernelFileError, OSError):  # this device counts nothing, or has just left
                device = path.read_text(encoding="ascii").strip()
                self.door.write(top + b"/blkio.throttle.read_bps_device", f"{device} 0")

    @cached_property
    def counts_swap(self) -> bool:
        """Whether this kernel counts swap (swapaccount=1)."""
        return self.door.exists(os.fsencode(self.mounts["memory"].point) + b"/memory.memsw.limit_in_bytes")

    @cached_property
    def counts_sockets(self) -> bool:
        """Whether this kernel counts the memory of sockets."""
        return self.door.exists(os.fsencode(self.mounts["memory"].point) + b"/memory.kmem.tcp.limit_in_bytes")

    @cached_property
    def cpuset_top(self) -> bytes:
        """Our folder among the CPU sets. NodeError where there are none."""
        if "cpuset" not in self.mounts:
            raise NodeError("the cpuset controller is not mounted; mount it below /sys/fs/cgroup to limit cpus")
        return self._top("cpuset")

    def fill_cpuset(self, folder: bytes) -> CpuSetV1:
        """Make a folder among the CPU sets and give it all that its parent has, as it must have something."""
        self.door.make(folder)
        cpuset = CpuSetV1(GroupNode(self.door, folder))
        if not cpuset.cpus or not cpuset.mems:
            above = CpuSetV1(GroupNode(self.door, os.path.dirname(folder)))
            cpuset.mems = above.mems
            cpuset.cpus = above.cpus
        return cpuset

    def group(self, parent: Group | None, name: str) -> V1Group:
        """The handle of one group."""
        assert parent is None or isinstance(parent, V1Group)
        return V1Group(self, parent, name)

    def cpus(self) -> frozenset[int]:
        """CPUs of the top of the CPU sets."""
        return frozenset(CpuSetV1(GroupNode(self.door, os.path.dirname(self.cpuset_top))).cpus)

    def mems(self) -> frozenset[int]:
        """Memory nodes of the top of the CPU sets."""
        return frozenset(CpuSetV1(GroupNode(self.door, os.path.dirname(self.cpuset_top))).mems)

    def of_process(self, pid: int) -> tuple[str, ...]:
        """See ``Tree``."""
        path = process_paths(pid)["" if self.primary == SHADOW else self.primary]
        return self.mounts[self.primary].below(path, self.path)

    def places(self, pid: int) -> Mapping[str, str]:
        """See ``Tree``."""
        paths = process_paths(pid)
        wanted = [*self.tops, *(["cpuset"] if "cpuset" in self.mounts else [])]
        return {c: paths["" if c == SHADOW else c] for c in wanted if ("" if c == SHADOW else c) in paths}

    def put_back(self, pid: int, places: Mapping[str, str], above: Group | None) -> None:
        """See ``Tree``."""
        assert above is None or isinstance(above, V1Group)
        for controller in (*self.tops, "cpuset"):
            mount = self.mounts.get(controller)
            if mount is None:
                continue
            target = mount.folder(places[controller]) if controller in places else None
            if target is None or not self.door.exists(target):
                if controller == "cpuset":
                    holder = above.cpuset_holder() if above else None
                    target = holder.cpuset_folder if holder else os.fsencode(mount.point)
                else:
                    target = above.folders[controller] if above else os.fsencode(mount.point)
            write_pid(self.door, target, pid)

    def folders(self) -> Iterator[bytes]:
        """See ``Tree``: container engines make folders below ours in every hierarchy."""
        yield self._top(self.primary)
        seen = {self._top(self.primary)}
        for controller in self.mounts:
            top = self._top(controller)
            if top not in seen:
                seen.add(top)
                yield top

    def lock_file(self) -> bytes:
        """See ``Tree``."""
        return os.fsencode(self.mounts[self.primary].point) + b"/cgroup.procs"

    def checks(self) -> Iterable[Check]:
        """See ``Tree``."""
        yield Check("control groups", True, f"version 1, {', '.join(c for c in self.mounts if c != SHADOW)}")
        yield Check(
            "version-2 tree beside version 1", SHADOW in self.mounts,
            "gives complete kill, exact CPU time and pressure" if SHADOW in self.mounts
            else "absent: kill goes by the freezer, results carry no pressure",
            "mount -t cgroup2 none /sys/fs/cgroup/unified, or boot with unified control groups", required=False,
        )  # fmt: skip
        yield Check(
            "cpuset", "cpuset" in self.mounts,
            "CPUs can be pinned" if "cpuset" in self.mounts else "the limit cpus cannot be held",
            "mount the cpuset controller below /sys/fs/cgroup",
        )  # fmt: skip
        swap = self.counts_swap
        yield Check(
            "swap accounting", swap or not swap_devices(),
            "swap can be limited" if swap else "off", "boot with swapaccount=1, or switch swap off",
        )  # fmt: skip


def write_pid(door: Door, folder: bytes, pid: int) -> None:
    """Move a process into the group ``folder``. NotFound when there is no such process."""
    try:
        door.write(folder + b"/cgroup.procs", str(pid))
    except KernelFileError as error:
        if error.errno == errno.ESRCH:
            raise no_such_process(pid) from None
        raise


def swap_devices() -> bool:
    """Whether this machine swaps at all."""
    with open("/proc/swaps", encoding="ascii") as source:
        return len(source.readlines()) > 1


class V1Group(Group):
    """One group: a folder per hierarchy."""

    def __init__(self, tree: V1Tree, parent: V1Group | None, name: str) -> None:
        super().__init__(tree, parent, name)
        self._tree = tree
        self.above = parent
        self._door = tree.door
        above = parent.folders if parent else tree.tops
        suffix = b"/" + os.fsencode(name)
        self.folders: dict[str, bytes] = {controller: folder + suffix for controller, folder in above.items()}
        self._main = self.folders[tree.primary]
        self._fresh = False

    # one controller object per hierarchy, made when used

    @cached_property
    def _memory(self) -> MemoryV1:
        return MemoryV1(GroupNode(self._door, self.folders["memory"]))

    @cached_property
    def _pids(self) -> PidsFiles:
        return PidsFiles(GroupNode(self._door, self.folders["pids"]))

    @cached_property
    def _shadow(self) -> CoreV2 | None:
        return CoreV2(GroupNode(self._door, self.folders[SHADOW])) if SHADOW in self.folders else None

    @cached_property
    def _cpuacct(self) -> CpuAcctV1:
        return CpuAcctV1(GroupNode(self._door, self.folders["cpuacct"]))

    @cached_property
    def _freezer(self) -> FreezerV1:
        return FreezerV1(GroupNode(self._door, self.folders["freezer"]))

    @cached_property
    def cpuset_folder(self) -> bytes:
        """The folder among the CPU sets, which may not exist."""
        return self._tree.cpuset_top + b"/" + os.fsencode("/".join(self.parts))

    def cpuset_holder(self) -> V1Group | None:
        """The nearest group, itself included, that pins CPUs."""
        group: V1Group | None = self
        if "cpuset" not in self._tree.mounts:
            return None
        while group is not None and not self._door.exists(group.cpuset_folder):
            group = group.above
        return group

    # the verbs

    def create(self) -> None:
        """See ``Group``."""
        made: list[bytes] = []
        try:
            for folder in dict.fromkeys(self.folders.values()):
                try:
                    new = self._door.make(folder)
                except GroupGone:
                    if self.above is not None:
                        raise
                    self._tree.prepare()  # first group, or another registry just removed our folder as empty
                    new = self._door.make(folder)
                if new:
                    made.append(folder)
            self._fresh = True
        except NodeError:
            for folder in made:
                self._door.remove(folder)
            raise

    def apply(self, limits: Limits, pin: Pin | None) -> None:
        """See ``Group``."""
        values = limits.values
        fresh, self._fresh = self._fresh, False
        if "pids" in values:
            self._pids.max = int(values["pids"])
        if "memory" in values or "swap" in values:
            self._apply_memory(values.get("memory"), values.get("swap"))
        if fresh and self.above is not None and "memory" not in values:
            self._count_sockets(_UNLIMITED)
        if pin is not None:
            self._apply_pin(pin, fresh=fresh)

    def _apply_memory(self, memory: float | None, swap: float | None) -> None:
        limit = int(memory) if memory is not None else None
        if swap is not None and limit is None:
            now = self._memory.limit_in_bytes
            limit = now if now < _UNLIMITED else None
        if swap is None:
            self._set_memory(limit)
            return
        if not self._tree.counts_swap:
            if swap_devices():
                self._memory.memsw_limit = 0  # raises the error that names the file and the cure
            self._set_memory(limit)  # without any swap device there is nothing to limit
            return
        if limit is None:  # memory is not limited: what the machine has is the bound that changes nothing
            limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            if swap == 0:
                self._memory.swappiness = 0
        together = limit + int(swap)
        try:
            self._set_memory(limit)
            self._memory.memsw_limit = together
        except KernelFileError as error:
            if error.errno != errno.EINVAL:  # EINVAL: the new memory limit is above the old limit of both
                raise
            self._memory.memsw_limit = together
            self._set_memory(limit)

    def _set_memory(self, limit: int | None) -> None:
        if limit is None:
            return
        try:
            self._memory.limit_in_bytes = limit
        except KernelFileError as error:
            if error.errno == errno.EBUSY:
                raise InputError(
                    "the session holds more memory than that already; set the limit before it starts", field="memory"
                ) from None
            raise
        self._count_sockets(limit)

    def _count_sockets(self, limit: int) -> None:
        """Bound what the network's sockets hold: version 1 counts it apart from memory, and only where it has a limit.

        That goes for each group by itself: a nested one must have a limit too, or its sockets count nowhere.
        """
        if self._tree.counts_sockets:
            self._memory.sockets_limit = limit

    def _apply_pin(self, pin: Pin, *, fresh: bool) -> None:
        joining = fresh or self.cpuset_holder() is not self
        if joining:
            self._join_cpusets()
        try:
            self._set_pin(pin)
        except KernelFileError as error:
            if error.errno != errno.EACCES or self.above is not None:
                raise
            self._tree.fill_cpuset(self._tree.cpuset_top)  # somebody had just made it, and not yet filled it
            self._set_pin(pin)
        if joining and not fresh:  # whoever is in the session already joins
            for pid in self._pids.pids:
                with suppress(NotFound):  # it ended meanwhile
                    write_pid(self._door, self.cpuset_folder, pid)

    def _set_pin(self, pin: Pin) -> None:
        cpuset = CpuSetV1(GroupNode(self._door, self.cpuset_folder))
        cpuset.mems = pin.mems
        cpuset.cpus = pin.cpus

    def _join_cpusets(self) -> None:
        try:
            if self.above is None:
                self._door.make(self.cpuset_folder)
                return
        except GroupGone:  # first group there, or another registry just removed our folder as empty
            self._tree.fill_cpuset(self._tree.cpuset_top)
        lineage: list[V1Group] = []
        group = self.above
        while group is not None:
            lineage.insert(0, group)
            group = group.above
        if lineage:
            self._tree.fill_cpuset(self._tree.cpuset_top)
        for outer in lineage:
            self._tree.fill_cpuset(outer.cpuset_folder)
        self._door.make(self.cpuset_folder)

    def attach(self, pid: int) -> None:
        """See ``Group``."""
        self._fresh = False
        for folder in dict.fromkeys(self.folders.values()):
            write_pid(self._door, folder, pid)
        holder = self.cpuset_holder()
        if holder is not None:
            write_pid(self._door, holder.cpuset_folder, pid)

    def pids(self) -> list[int]:
        """See ``Group``."""
        return [int(pid) for folder in self._all(self._main) for pid in self._list(folder)]

    def _list(self, folder: bytes) -> list[str]:
        with suppress(GroupGone):
            return [pid for pid in self._door.read(folder + b"/cgroup.procs").split() if pid != "0"]
        return []

    def _all(self, folder: bytes) -> Iterator[bytes]:
        yield folder
        for name in self._door.below(folder):
            yield from self._all(folder + b"/" + name)

    def stats(self) -> Stats:
        """See ``Group``."""
        memory, shadow = self._memory, self._shadow
        figures = memory.figures
        return Stats(
            cpu=self._cpu(),
            memory=MemoryStats(
                usage=memory.usage_in_bytes,
                max_usage=memory.max_usage_in_bytes,
                swap=figures.get("total_swap"),
                anonymous=figures.get("total_rss"),
                file=figures.get("total_cache"),
                failures=memory.failcnt,
                oom_kills=self._oom_kills(),
            ),
            pids=PidsStats(usage=self._pids.current, max_usage=self._pids.peak, failures=self._fork_failures()),
            io=self._io(),
            pressure=PressureStats(cpu=shadow.cpu_pressure, memory=shadow.memory_pressure, io=shadow.io_pressure)
            if shadow
            else PressureStats(),
        )

    def _cpu(self) -> CpuStats:
        if self._shadow is not None:
            fields = self._shadow.cpu or {}
            if "usage_usec" in fields:
                return CpuStats(fields["usage_usec"] / 1e6, fields["user_usec"] / 1e6, fields["system_usec"] / 1e6)
            return CpuStats()
        cpu = self._cpuacct
        user, system = cpu.usage_user, cpu.usage_sys
        return CpuStats(cpu.usage / 1e9, None if user is None else user / 1e9, None if system is None else system / 1e9)

    def _oom_kills(self) -> int | None:
        total = None
        own = self.folders["memory"]
        for folder in self._all(own):
            with suppress(GroupGone):  # a container engine removed its group just now
                memory = self._memory if folder is own else MemoryV1(GroupNode(self._door, folder))
                kills = memory.oom_control.get("oom_kill")
                total = total if kills is None else (total or 0) + kills
        return total

    def _fork_failures(self) -> int | None:
        total = None
        own = self.folders["pids"]
        for folder in self._all(own):
            with suppress(GroupGone):  # a container engine removed its group just now
                events = (self._pids if folder is own else PidsFiles(GroupNode(self._door, folder))).events
                total = total if events is None else (total or 0) + events.get("max", 0)
        return total

    def _io(self) -> IoStats:
        if "blkio" not in self.folders:
            return IoStats()
        blkio = BlkIOV1(GroupNode(self._door, self.folders["blkio"]))
        sizes, operations = blkio.bytes_recursive, blkio.operations_recursive
        return IoStats(
            read_bytes=sizes["Read"] if sizes else None,
            write_bytes=sizes["Write"] if sizes else None,
            reads=operations["Read"] if operations else None,
            writes=operations["Write"] if operations else None,
        )

    def freeze(self) -> None:
        """See ``Group``."""
        if self._shadow is not None:
            freeze_and_wait(self._shadow)
            return
        deadline = time.monotonic() + KILL_S
        self._freezer.state = "FROZEN"
        while self._freezer.state != "FROZEN":
            if time.monotonic() > deadline:
                self._freezer.state = "THAWED"
                raise NodeError(f"processes of {self.path} do not freeze; they hang in the kernel, restart the node")
            time.sleep(0.001)  # the freezer of version 1 has no event
            self._freezer.state = "FROZEN"  # FREEZING can last for ever unless it is asked again

    def thaw(self) -> None:
        """See ``Group``."""
        if self._shadow is not None:
            self._shadow.freeze = False
        else:
            self._freezer.state = "THAWED"

    def kill(self) -> None:
        """See ``Group``."""
        if self._shadow is not None and self._door.exists(self._main + b"/cgroup.kill"):
            self._shadow.kill = True
        else:
            self.kill_one_by_one()

    def remove(self) -> None:
        """See ``Group``."""
        suffix = b"/" + os.fsencode("/".join(self.parts))
        for top in self._tree.all_tops:
            self._door.remove(top + suffix)

    # what events need

    def exists(self) -> bool:
        """See ``Group``."""
        return self._door.exists(self._main)

    def populated(self) -> bool:
        """See ``Group``."""
        if self._shadow is not None:
            return bool(self._shadow.events["populated"])
        return any(self._list(folder) for folder in self._all(self._main))

    def events_file(self) -> bytes | None:
        """See ``Group``."""
        return self._main + b"/cgroup.events" if self._shadow is not None else None

    def cpu_usage(self) -> float:
        """See ``Group``."""
        return self._cpu().usage or 0.0

    def memory_alarm(self) -> Alarm | None:
        """See ``Group``."""
        path = self.folders["memory"] + b"/memory.oom_control"
        try:
            control = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise explain(path, error, "read") from None
        bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._memory.event_control = f"{bell} {control}"
        except NodeError:
            os.close(bell)
            raise
        finally:
            os.close(control)
        return Alarm(bell, select.POLLIN, counts=True)

    def killed_by_own_limit(self, *, alarmed: bool) -> bool:
        """See ``Group``."""
        return alarmed and bool(self._oom_kills())


def freeze_and_wait(core: CoreV2) -> None:
    """Freeze by the version-2 file, and return when every process stands still."""
    core.freeze = True
    deadline = time.monotonic() + KILL_S
    pause_s = 0.0005
    while True:
        events = core.events
        if events.get("frozen") or not events["populated"]:
            return
        if time.monotonic() > deadline:
            core.freeze = False
            raise NodeError("processes do not freeze; they hang in the kernel, restart the node")
        time.sleep(pause_s)  # mostly it takes less than the first pause, and a poll costs as much
        pause_s = min(2 * pause_s, 0.01)

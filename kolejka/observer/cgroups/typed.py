"""Controllers as classes with typed interface files, on the descriptors of ``cgroupspy``.

``cgroupspy`` gives nodes, controllers and the descriptor types, for version 1 without ``pids`` and ``freezer``. Here
they read and write through our door, and we add what it lacks: those two, version 2, keyed files read in part, and
``since``, which marks a file that older kernels do not have (its value is then ``None``).

Nothing here walks a tree: a node is made for one folder when that folder is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from cgroupspy.controllers import (
    BlkIOController,
    Controller,
    CpuAcctController,
    CpuSetController,
    MemoryController,
)
from cgroupspy.interfaces import BaseFileInterface, CommaDashSetFile, FlagFile, IntegerFile
from cgroupspy.nodes import Node

from kolejka.observer.cgroups.files import Door

_TOTAL: Final = re.compile(r"some .*total=(\d+)")


class GroupNode(Node):
    """The folder of one control group in one hierarchy."""

    def __init__(self, door: Door, path: bytes) -> None:
        super().__init__(path)
        self.door = door
        self.folder = path


class Files(Controller):
    """Base of all controllers here: the files every group has, read and written through the door."""

    procs_text = BaseFileInterface("cgroup.procs")

    def __init__(self, node: GroupNode) -> None:
        super().__init__(node)
        self._door = node.door
        self._prefix = node.folder + b"/"

    def get_property(self, filename: bytes) -> str:
        """The file's text."""
        return self._door.read(self._prefix + filename)

    def get_optional(self, filename: bytes) -> str | None:
        """The file's text, or ``None`` where this kernel has no such file."""
        return self._door.read_optional(self._prefix + filename)

    def set_property(self, filename: bytes, value: object) -> None:
        """Write the file."""
        self._door.write(self._prefix + filename, str(value))

    @property
    def pids(self) -> list[int]:
        """Processes directly in this group; 0 stands for those of other PID namespaces and is left out."""
        return [int(pid) for pid in self.procs_text.split() if pid != "0"]

    def attach(self, pid: int) -> None:
        """Move a process with all its threads here."""
        self.set_property(b"cgroup.procs", pid)


class _Optional(BaseFileInterface):
    def __init__(self, inner: BaseFileInterface) -> None:
        super().__init__(inner.filename, readonly=inner.readonly, writeonly=inner.writeonly)
        self._inner = inner

    def __get__(self, instance: Any, owner: Any) -> Any:
        text = instance.get_optional(self.filename)
        return None if text is None else self._inner.sanitize_get(text)

    def sanitize_set(self, value: object) -> Any:
        return self._inner.sanitize_set(value)


def since(_version: str, inner: BaseFileInterface) -> BaseFileInterface:
    """A file that kernels before ``_version`` do not have; ``None`` is read there."""
    return _Optional(inner)


class MaxFile(IntegerFile):
    """A number, or ``max`` for no limit, which is ``None`` here."""

    def sanitize_get(self, value: str) -> int | None:
        """From the kernel."""
        return None if value == "max" else int(value)

    def sanitize_set(self, value: int | None) -> str:
        """To the kernel."""
        return "max" if value is None else str(int(value))


class FieldsFile(BaseFileInterface):
    """Some of the fields of a ``name value`` file: a mapping of those that this kernel reports."""

    readonly = True

    def __init__(self, filename: str, *names: str) -> None:
        super().__init__(filename)
        self._marks = tuple((name, f"\n{name} ", len(name) + 2) for name in names)

    def sanitize_get(self, value: str) -> dict[str, int]:
        """From the kernel."""
        fields, text = {}, f"\n{value}\n"
        for name, mark, length in self._marks:  # a search each is much faster than taking every line apart
            start = text.find(mark)
            if start >= 0:
                fields[name] = int(text[start + length : text.index("\n", start + length)])
        return fields


class PressureFile(BaseFileInterface):
    """Seconds in which at least one process waited (``some``, total), since the group was made."""

    readonly = True

    def sanitize_get(self, value: str) -> float | None:
        """From the kernel, which counts microseconds."""
        match = _TOTAL.search(value)
        return int(match[1]) / 1e6 if match else None


class DeviceSumFile(BaseFileInterface):
    """v1's ``major:minor Read 4096`` lines, summed over devices: ``{"Read": 4096, "Write": 0}``."""

    readonly = True

    def sanitize_get(self, value: str) -> dict[str, int]:
        """From the kernel."""
        sums = {"Read": 0, "Write": 0}
        for line in value.splitlines():
            words = line.split()
            if len(words) == 3 and words[1] in sums:
                sums[words[1]] += int(words[2])
        return sums


class DeviceFieldsFile(BaseFileInterface):
    """v2's ``major:minor rbytes=1 wbytes=2 …`` lines, summed over devices."""

    readonly = True

    def sanitize_get(self, value: str) -> dict[str, int]:
        """From the kernel."""
        sums = dict.fromkeys(("rbytes", "wbytes", "rios", "wios"), 0)
        for line in value.splitlines():
            for word in line.split()[1:]:
                name, _, number = word.partition("=")
                if name in sums:
                    sums[name] += int(number)
        return sums


class WordsFile(BaseFileInterface):
    """Words set apart by spaces."""

    def sanitize_get(self, value: str) -> frozenset[str]:
        """From the kernel."""
        return frozenset(value.split())

    def sanitize_set(self, value: Iterable[str]) -> str:
        """To the kernel."""
        return " ".join(value)


# Version 1


class MemoryV1(Files, MemoryController):
    """Memory of version 1."""

    oom_control = FieldsFile("memory.oom_control", "under_oom", "oom_kill")  # oom_kill from 4.13
    figures = FieldsFile("memory.stat", "total_rss", "total_cache", "total_swap")
    memsw_limit = IntegerFile("memory.memsw.limit_in_bytes")  # with swapaccount=1
    sockets_limit = IntegerFile(
        "memory.kmem.tcp.limit_in_bytes"
    )  # of UDP and others too; from 3.3, without CONFIG_INET never
    event_control = BaseFileInterface("cgroup.event_control", writeonly=True)


class CpuSetV1(Files, CpuSetController):
    """CPUs and memory nodes of version 1: both must be filled before the first task."""

    effective_cpus = since("3.17", CommaDashSetFile("cpuset.effective_cpus"))
    effective_mems = since("3.17", CommaDashSetFile("cpuset.effective_mems"))


class CpuAcctV1(Files, CpuAcctController):
    """CPU time of version 1, in nanoseconds (``cpuacct.stat`` counts ticks and is useless for short runs)."""

    usage_user = since("4.7", IntegerFile("cpuacct.usage_user"))
    usage_sys = since("4.7", IntegerFile("cpuacct.usage_sys"))


class BlkIOV1(Files, BlkIOController):
    """Block devices of version 1."""

    bytes_recursive = since("5.2", DeviceSumFile("blkio.throttle.io_service_bytes_recursive"))
    operations_recursive = since("5.2", DeviceSumFile("blkio.throttle.io_serviced_recursive"))


class PidsFiles(Files):
    """Processes and threads; the files are the same in both versions."""

    max = MaxFile("pids.max")
    current = IntegerFile("pids.current", readonly=True)
    peak = since("6.1", IntegerFile("pids.peak", readonly=True))
    events = since("4.8", FieldsFile("pids.events", "max"))
    events_local = since("6.11", FieldsFile("pids.events.local", "max"))


class FreezerV1(Files):
    """The freezer of version 1."""

    state = BaseFileInterface("freezer.state")
    self_freezing = since("3.5", FlagFile("freezer.self_freezing", readonly=True))


# Version 2, and the empty version-2 tree beside version 1


class CoreV2(Files):
    """What every group of version 2 has, even without any controller."""

    controllers = WordsFile("cgroup.controllers", readonly=True)
    subtree_control = WordsFile("cgroup.subtree_control")
    events = FieldsFile("cgroup.events", "populated", "frozen")
    freeze = since("5.2", FlagFile("cgroup.freeze"))
    kill = FlagFile("cgroup.kill", writeonly=True)  # 5.14; the group asks first whether it is there
    cpu = since("4.15", FieldsFile("cpu.stat", "usage_usec", "user_usec", "system_usec"))
    cpu_pressure = since("4.20", PressureFile("cpu.pressure"))
    memory_pressure = since("4.20", PressureFile("memory.pressure"))
    io_pressure = since("4.20", PressureFile("io.pressure"))


class MemoryV2(Files):
    """Memory of version 2."""

    max = MaxFile("memory.max")
    swap_max = MaxFile("memory.swap.max")
    oom_group = since("4.19", FlagFile("memory.oom.group"))
    current = IntegerFile("memory.current", readonly=True)
    peak = since("5.19", IntegerFile("memory.peak"))
    swap_current = since("4.5 with swap", IntegerFile("memory.swap.current", readonly=True))
    swap_peak = since("6.5", IntegerFile("memory.swap.peak"))
    stat = FieldsFile("memory.stat", "anon", "file")
    events = FieldsFile("memory.events", "max", "oom", "oom_kill")
    events_local = since("5.2", FieldsFile("memory.events.local", "max", "oom", "oom_kill"))


class CpuSetV2(Files):
    """CPUs and memory nodes of version 2; empty means *as the parent*."""

    cpus = CommaDashSetFile("cpuset.cpus")
    mems = CommaDashSetFile("cpuset.mems")
    effective_cpus = CommaDashSetFile("cpuset.cpus.effective")
    effective_mems = CommaDashSetFile("cpuset.mems.effective")


class IoV2(Files):
    """Block devices of version 2."""

    stat = DeviceFieldsFile("io.stat")

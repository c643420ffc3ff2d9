"""What this machine can offer, read from the kernel's files, and what of it the settings let it offer.

CPUs are those this process may run on (affinity, which a cpuset narrows). Memory is the machine's or the container's,
whichever is less, minus a reserve for the system. Processes are half of what the kernel allows. Disk is what is free
where tasks run, minus a reserve, divided between working folders and other writes. GPUs are those that the driver's
library names (``kolejka/worker/gpus.py``).

All paths lie below a root, so that recorded machines can stand in for this one.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kolejka.common.errors import InputError, NodeError
from kolejka.common.limits import LIMITS, Limits, Share, Value
from kolejka.foreman.pack import Cpu, Offer, choose_cpus
from kolejka.worker.gpus import Gpu

logger = logging.getLogger(__name__)

MEMORY_RESERVE: Final = 256 << 20
"""bytes of memory always left to the system; of big machines a 32nd"""
DISK_RESERVE: Final = 1 << 30
"""bytes of disk always left free; of big disks a 16th"""
WORKSPACE_PART: Final = 0.8
"""of the free disk: for working folders; the rest is for writes elsewhere (`storage`)"""

_MIB_BITS: Final = (1 << 20) - 1


@dataclass(frozen=True)
class Machine:
    """What was found. ``limits`` are the amounts it has for tasks."""

    limits: Limits
    cpus: tuple[Cpu, ...]
    gpus: tuple[Gpu, ...] = ()


def detect(
    disk: Path, gpus: Iterable[Gpu] = (), *, root: Path = Path("/"), affinity: Iterable[int] | None = None
) -> Machine:
    """Look at the machine. ``disk`` is the folder whose file system holds the tasks; ``gpus`` are those it has.

    NodeError when it has too little memory to run anything, or a kernel file is missing.
    """
    numbers = sorted(os.sched_getaffinity(0) if affinity is None else affinity)
    cpus = tuple(_cpu(root, number) for number in numbers)
    memory, swap = _memory(root)
    disk_bytes = _disk(disk)
    gpus = tuple(gpus)
    amounts: dict[str, Value] = {
        "cpus": len(cpus),
        "memory": memory,
        "swap": swap,
        "pids": _pids(root),
        "storage": int(disk_bytes * (1 - WORKSPACE_PART)) & ~_MIB_BITS,
        "workspace": int(disk_bytes * WORKSPACE_PART) & ~_MIB_BITS,
        "gpus": len(gpus),
    }
    return Machine(Limits(amounts).replace(), cpus, gpus)


def offer(machine: Machine, capacity: Limits, slots: int) -> Offer:
    """What the node offers: the machine, or less where the settings say so.

    ``capacity`` is merged by minimum: a node cannot offer what it does not have. ``slots`` 0 = one for each CPU.
    InputError when the settings leave nothing to run tasks with.
    """
    for name, wanted in capacity.values.items():
        have = machine.limits.get(name)
        if have is not None and wanted > have and LIMITS[name].share is Share.SPLIT:
            logger.warning(
                "the machine has less than the settings offer",
                extra={"limit": name, "settings": wanted, "machine": have},
            )
    gpus = _largest(machine.gpus, capacity.get("gpus"))
    least = Limits({"gpu_memory": min(gpu.memory for gpu in gpus)} if gpus else {})
    total = machine.limits.merge(capacity, least)
    for name in ("cpus", "memory", "pids"):
        if not total.get(name):
            raise InputError("a node that offers none of this can run nothing", field=f"foreman.capacity: {name}")
    count = int(total.values["cpus"])
    numbers = set(choose_cpus(machine.cpus, count))
    cpus = tuple(cpu for cpu in machine.cpus if cpu.number in numbers)
    if slots > 65536:
        raise InputError(f"{slots} slots are too many; every running task needs a CPU of its own", field="slots")
    return Offer(total, cpus, min(slots or count, count), tuple(gpu.uuid for gpu in gpus))


def _largest(gpus: Sequence[Gpu], count: Value | None) -> tuple[Gpu, ...]:
    """The ``count`` GPUs with the most memory (None = all), in the driver's order.

    A node says of its GPUs what the least of them has, so whoever offers fewer can leave a small one out.
    """
    chosen = sorted(gpus, key=lambda gpu: -gpu.memory)[: len(gpus) if count is None else int(count)]
    return tuple(gpu for gpu in gpus if gpu in chosen)


def _read(path: Path, cure: str) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise NodeError(f"{path} cannot be read: {error.strerror}; {cure}") from None


def _number(path: Path) -> int | None:
    """The number in an optional kernel file; ``None`` where the file is absent or says that there is no bound."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:  # another kernel version, or not in a container
        return None
    except OSError as error:
        raise NodeError(f"{path} cannot be read: {error.strerror}") from None
    return int(text) if re.fullmatch(r"[0-9]+", text) else None


def _cpu(root: Path, number: int) -> Cpu:
    """Where a CPU sits. Kernels without topology files give every CPU a core of its own, on one node."""
    folder = root / f"sys/devices/system/cpu/cpu{number}"
    core = number
    siblings = folder / "topology/thread_siblings_list"
    if siblings.exists():
        core = min(parse_cpu_list(siblings.read_text(encoding="ascii")), default=number)
    nodes = sorted(int(entry.name[4:]) for entry in folder.glob("node[0-9]*"))
    return Cpu(number, core, nodes[0] if nodes else 0)


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """The numbers in a kernel list such as ``0-2,8``."""
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(numbers))


def _memory(root: Path) -> tuple[int, int]:
    """Bytes of memory and of swap for tasks."""
    path = root / "proc/meminfo"
    fields = dict(re.findall(r"^(\w+):\s+([0-9]+) kB", _read(path, "mount /proc"), re.MULTILINE))
    if "MemTotal" not in fields:
        raise NodeError(f"{path} does not say MemTotal")
    found = int(fields["MemTotal"]) << 10
    bounds = (
        _number(root / "sys/fs/cgroup/memory.max"),  # v2, seen from inside a container
        _number(root / "sys/fs/cgroup/memory/memory.limit_in_bytes"),  # v1, the same
    )
    found = min(found, *(bound for bound in bounds if bound is not None), found)
    memory = (found - max(MEMORY_RESERVE, found // 32)) & ~_MIB_BITS
    if memory < LIMITS["memory"].minimum:
        raise NodeError(
            f"the machine has {LIMITS['memory'].show(found)} of memory, and "
            f"{LIMITS['memory'].show(MEMORY_RESERVE)} are left to the system: nothing remains for tasks"
        )
    return memory, int(fields.get("SwapTotal", 0)) << 10


def _pids(root: Path) -> int:
    """Half of the processes that the kernel allows."""
    bounds = (
        _number(root / "proc/sys/kernel/pid_max"),
        _number(root / "proc/sys/kernel/threads-max"),
        _number(root / "sys/fs/cgroup/pids.max"),
        _number(root / "sys/fs/cgroup/pids/pids.max"),
    )
    found = [bound for bound in bounds if bound is not None]
    if not found:
        raise NodeError(f"{root / 'proc/sys/kernel/pid_max'} cannot be read; mount /proc")
    return max(1, min(found) // 2)


def disk_of(folder: Path) -> os.statvfs_result:
    """How full the file system of ``folder`` is, or of its nearest parent that exists."""
    folder = folder.absolute()
    return os.statvfs(next(path for path in (folder, *folder.parents) if path.exists()))


def _disk(folder: Path) -> int:
    """Free bytes for tasks."""
    found = disk_of(folder)
    return max(0, found.f_bavail * found.f_frsize - max(DISK_RESERVE, found.f_blocks * found.f_frsize // 16))

"""GPUs for tasks: which there are, which a task has for itself, what it did with them.

Only what NVIDIA's management library names is a GPU: without it a node has none, whatever files lie in ``/dev``. GPUs
that are divided (MIG) are not handed out.

A task *takes* GPUs: those its foreman chose for it, or with no foreman the first that nobody has. Whoever takes one
holds a lock on its device file until the task is gone, so workers that know nothing of each other do not give one GPU
to two tasks; the kernel opens the lock of a worker that dies.

A *meter* looks at them while the task runs. Memory is what the driver says of the processes in the payload's PID
namespace, so neither the node's own programs nor other tasks count. GPUs have no control groups: the figures are the
largest and the mean of what was seen at the looks, and ``gpu_memory`` is held by these looks and a kill. What begins
and ends between two looks is not seen.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kolejka.common.checks import Check
from kolejka.common.errors import InputError, NodeError
from kolejka.common.limits import LIMITS
from kolejka.common.stats import GpuStats
from kolejka.worker.nvml import LIBRARY, Device, NoNvml, Nvml

CONTROL_DEVICES: Final = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")
"""What every program that computes on a GPU opens beside the GPU's own device file."""
VISIBLE: Final = ("NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
"""By these a program, and before it a container engine's hook, chooses GPUs."""
LOOK_S: Final = 0.05
"""Longest time between two looks at the memory of GPUs."""


@dataclass(frozen=True)
class Gpu:
    """One whole GPU."""

    uuid: str
    model: str
    memory: int
    """bytes"""
    minor: int
    """number of its device file"""


@dataclass(frozen=True)
class Census:
    """The GPUs that tasks can have, and a word on those they cannot. ``broken`` = somebody should see to it."""

    gpus: tuple[Gpu, ...] = ()
    remark: str | None = None
    broken: bool = False


class Gpus:
    """The GPUs of this machine. ``library`` and ``devices`` are where the driver's parts are."""

    def __init__(self, library: str = LIBRARY, devices: Path = Path("/dev")) -> None:
        self._library = library
        self._devices = devices

    def census(self) -> Census:
        """Ask the library. Never raises: a driver that does not work is a node without GPUs, and a remark."""
        try:
            with Nvml(self._library) as nvml:
                devices = nvml.devices()
        except NoNvml as error:
            present = sorted(path.name for path in self._devices.glob("nvidia[0-9]*"))
            if present:
                return Census((), f"there is {present[0]}, but {error.message}", broken=True)
            return Census((), f"none ({error.message})")
        except NodeError as error:
            return Census((), f"none usable: {error.message}", broken=True)
        whole = tuple(_gpu(device) for device in devices if not device.divided)
        divided = [device.uuid for device in devices if device.divided]
        return Census(whole, f"not handed out, since MIG divides them: {', '.join(divided)}" if divided else None)

    def check(self) -> Check:
        """The doctor's line. No GPU is no fault; a driver that does not work or lacks its files is a warning."""
        census = self.census()
        names = ", ".join(f"{gpu.model} with {LIMITS['gpu_memory'].show(gpu.memory)}" for gpu in census.gpus)
        words = "; ".join(filter(None, (names, census.remark)))
        if census.broken:
            return Check("GPUs", False, words, "install the driver's library: apt-get install libnvidia-ml1", False)
        wanted = [f"nvidia{gpu.minor}" for gpu in census.gpus] + (list(CONTROL_DEVICES[:2]) if census.gpus else [])
        missing = [name for name in wanted if not (self._devices / name).exists()]
        if missing:
            return Check("GPUs", False, f"{words}; there is no {self._devices / missing[0]}",
                         "nvidia-modprobe -c 0 -u", False)  # fmt: skip
        return Check("GPUs", True, words, required=False)

    def take(self, count: int, chosen: Sequence[str] | None = None, memory: int | None = None) -> Taken:
        """Take ``count`` GPUs: those ``chosen`` by UUID, or else any that nobody has, each with ``memory`` bytes.

        InputError when this machine has no such GPUs, NodeError when they are taken or do not work.
        """
        if not count:
            return Taken((), {})
        census = self.census()
        if chosen is not None:
            by_uuid = {gpu.uuid: gpu for gpu in census.gpus}
            gone = [uuid for uuid in chosen if uuid not in by_uuid]
            if gone or len(chosen) != count:
                raise NodeError(f"{gone[0] if gone else chosen} cannot be used: {census.remark or 'it is gone'}",
                                field="limits.gpus")  # fmt: skip
            offered = [by_uuid[uuid] for uuid in chosen]
        else:
            offered = list(census.gpus)
            if len(offered) < count:
                have = f"{len(offered)} GPUs" if offered else f"no GPU: {census.remark}"
                raise InputError(f"the task wants {count} GPUs, and this node has {have}", field="limits.gpus")
        large = [gpu for gpu in offered if memory is None or gpu.memory >= memory]
        if len(large) < count:
            limit = LIMITS["gpu_memory"]
            most = limit.show(sorted((gpu.memory for gpu in offered), reverse=True)[count - 1])
            raise InputError(
                f"the task wants GPUs with {limit.show(memory or 0)}, and this node has {count} with only {most}",
                field="limits.gpu_memory",
            )
        with ExitStack() as locks:
            taken: list[Gpu] = []
            for gpu in large:
                if len(taken) < count and self._lock(gpu, locks):
                    taken.append(gpu)
            if len(taken) < count:
                raise NodeError(f"the task wants {count} GPUs, and other tasks leave {len(taken)}", field="limits.gpus")
            names = [f"nvidia{gpu.minor}" for gpu in taken]
            names += [name for name in CONTROL_DEVICES if (self._devices / name).exists()]
            devices = {name: self._devices / name for name in names}
            return Taken(tuple(taken), devices, memory, self._library, locks.pop_all())

    def _lock(self, gpu: Gpu, locks: ExitStack) -> bool:
        path = self._devices / f"nvidia{gpu.minor}"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise NodeError(f"{path} cannot be opened: {error.strerror}; `nvidia-modprobe -c {gpu.minor} -u`") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        locks.callback(os.close, descriptor)
        return True


@dataclass(eq=False)
class Taken:
    """The GPUs that one task has, until closed."""

    gpus: tuple[Gpu, ...]
    devices: Mapping[str, Path]
    """name below the payload's /dev → device file on the host"""
    memory: int | None = None
    """the limit on each of them"""
    library: str = LIBRARY
    locks: ExitStack = field(default_factory=ExitStack)

    @property
    def uuids(self) -> tuple[str, ...]:
        """The names by which drivers and container engines know them."""
        return tuple(gpu.uuid for gpu in self.gpus)

    def variables(self, environment: Mapping[str, str]) -> dict[str, str]:
        """``environment`` with the variables that choose GPUs naming these, whatever task or image said.

        A container engine's hook obeys them too: without GPUs they say so where somebody asked for some.
        """
        if self.gpus:
            return {**environment, **dict.fromkeys(VISIBLE, ",".join(self.uuids))}
        nothing = dict(zip(VISIBLE, ("void", ""), strict=True))
        return {name: nothing.get(name, value) for name, value in environment.items()}

    def meter(self, pid: int) -> Meter | None:
        """Whoever looks at them, for the payload that ``pid`` is the first process of; ``None`` without GPUs.

        InputError when there is a limit on their memory that nobody here could see exceeded.
        """
        return Meter(self, pid) if self.gpus else None

    def close(self) -> None:
        """Give them back. Safe twice."""
        self.locks.close()


class Meter:
    """Looks at the GPUs of one payload."""

    def __init__(self, taken: Taken, pid: int, world: Callable[[int], int | None] | None = None) -> None:
        self._nvml = Nvml(taken.library)
        wanted = set(taken.uuids)
        self._devices = tuple(device for device in self._nvml.devices() if device.uuid in wanted)
        self._world_of = world or pid_namespace
        self._world = self._world_of(pid)
        self._peak: dict[str, int] = {}
        self._busy: dict[str, list[float]] = {device.uuid: [] for device in self._devices}
        self.limit = taken.memory
        blind = [device.uuid for device in self._devices if self._nvml.processes(device) is None]
        if blind and taken.memory is not None and any(device.memory > taken.memory for device in self._devices):
            self.close()
            raise InputError(f"{blind[0]} does not tell who uses its memory, so nobody can hold this limit",
                             field="limits.gpu_memory")  # fmt: skip

    def look(self) -> int:
        """Look now: bytes that the payload has on that of its GPUs where it has most. NodeError when a GPU fails."""
        most = 0
        for device in self._devices:
            used = self._used(device)
            if used is not None:
                self._peak[device.uuid] = max(used, self._peak.get(device.uuid, 0))
                most = max(most, used)
            busy = self._nvml.utilization(device)
            if busy is not None:
                self._busy[device.uuid].append(busy)
        return most

    def _used(self, device: Device) -> int | None:
        processes = self._nvml.processes(device)
        if processes is None:
            return None
        own = [used for pid, used in processes.items() if self._world_of(pid) == self._world is not None]
        if None in own:
            if self.limit is not None and self.limit < device.memory:
                raise NodeError(
                    f"{device.uuid} does not tell how much memory the task uses, so its limit cannot be held"
                )
            return None
        return sum(used for used in own if used is not None)

    def stats(self) -> dict[str, GpuStats]:
        """What was seen, by the GPU's UUID."""
        return {
            device.uuid: GpuStats(
                max_usage=self._peak.get(device.uuid),
                utilization=sum(busy) / len(busy) if (busy := self._busy[device.uuid]) else None,
            )
            for device in self._devices
        }

    def close(self) -> None:
        """Let the library go."""
        self._nvml.close()


def pid_namespace(pid: int) -> int | None:
    """The PID namespace of a process; ``None`` when it is gone or none of our business."""
    with suppress(OSError):  # gone, or somebody else's
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    return None


def _gpu(device: Device) -> Gpu:
    return Gpu(device.uuid, device.name, device.memory, device.minor)

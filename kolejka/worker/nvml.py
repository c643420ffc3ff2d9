"""The one door to NVIDIA's management library (NVML): its binary interface, by ctypes, no policy.

Facts from NVIDIA's ``nvml.h`` (https://docs.nvidia.com/deploy/nvml-api/). Functions carry the version of their
structures in their names; those used here exist since driver 450 (processes ``_v2``; ``_v3`` has the same structure).
Process ids are those of the caller's PID namespace, so the caller must be in the host's.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Final, Self

from kolejka.common.errors import NodeError

LIBRARY: Final = "libnvidia-ml.so.1"

_NOT_SUPPORTED: Final = 3
_INSUFFICIENT_SIZE: Final = 7
_NOT_AVAILABLE: Final = 2**64 - 1
_TEXT: Final = 96
"""bytes of the longest name or UUID"""


class _Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Utilization(ctypes.Structure):
    """nvmlUtilization_t, in percent."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Process(ctypes.Structure):
    """nvmlProcessInfo_v2_t."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class NoNvml(NodeError):
    """The library cannot be loaded: there is no driver here, and so no GPU."""


class NvmlError(NodeError):
    """A call of the library failed."""

    def __init__(self, call: str, number: int, words: str) -> None:
        super().__init__(f"{call}: {words}")
        self.number = number


@dataclass(frozen=True)
class Device:
    """A GPU as the library knows it while it is open."""

    handle: ctypes.c_void_p
    uuid: str
    name: str
    minor: int
    """number of its device file, ``/dev/nvidia<minor>``"""
    memory: int
    """bytes"""
    divided: bool
    """MIG is on: it is used in parts, which are not handed out here"""


class Nvml:
    """The library, initialised until closed. NoNvml where it is not there, NvmlError where the driver does not work."""

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise NoNvml(f"{library} cannot be loaded: {error}") from None
        self._call("nvmlInit_v2")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the library go. What it still knows is of no use afterwards."""
        self._library.nvmlShutdown()

    def devices(self) -> tuple[Device, ...]:
        """All GPUs of the machine, in the library's order."""
        count = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        return tuple(self._device(index) for index in range(count.value))

    def _device(self, index: int) -> Device:
        handle, minor, memory = ctypes.c_void_p(), ctypes.c_uint(), _Memory()
        self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
        self._call("nvmlDeviceGetMinorNumber", handle, ctypes.byref(minor))
        self._call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
        uuid, name = self._text("nvmlDeviceGetUUID", handle), self._text("nvmlDeviceGetName", handle)
        current, pending = ctypes.c_uint(), ctypes.c_uint()
        try:
            self._call("nvmlDeviceGetMigMode", handle, ctypes.byref(current), ctypes.byref(pending))
        except NvmlError as error:
            if error.number != _NOT_SUPPORTED:  # a GPU that cannot be divided
                raise
        return Device(handle, uuid, name, minor.value, memory.total, divided=bool(current.value or pending.value))

    def processes(self, device: Device) -> dict[int, int | None] | None:
        """Process id → bytes on the GPU (``None`` = the driver does not tell) of all that use it.

        ``None`` where this GPU cannot tell who uses it.
        """
        used: dict[int, int | None] = {}
        for kind in ("Compute", "Graphics"):
            try:
                found = self._processes(f"nvmlDeviceGet{kind}RunningProcesses", device)
            except NvmlError as error:
                if error.number == _NOT_SUPPORTED:
                    return None
                raise
            for process in found:
                # One that computes and draws stands in both lists with the same figure.
                used[process.pid] = None if process.used == _NOT_AVAILABLE else int(process.used)
        return used

    def _processes(self, call: str, device: Device) -> list[_Process]:
        call += "_v3" if hasattr(self._library, f"{call}_v3") else "_v2"
        room = 32
        while True:
            found = (_Process * room)()
            count = ctypes.c_uint(room)
            try:
                self._call(call, device.handle, ctypes.byref(count), found)
            except NvmlError as error:
                if error.number != _INSUFFICIENT_SIZE:
                    raise
                room = max(count.value, room) * 2  # more may come before we ask again
                continue
            return list(found[: count.value])

    def utilization(self, device: Device) -> float | None:
        """The part of the driver's last sample period (1/6 s to 1 s) in which the GPU was busy; ``None`` = not told."""
        rates = _Utilization()
        try:
            self._call("nvmlDeviceGetUtilizationRates", device.handle, ctypes.byref(rates))
        except NvmlError as error:
            if error.number == _NOT_SUPPORTED:
                return None
            raise
        return float(rates.gpu) / 100

    def _text(self, call: str, handle: ctypes.c_void_p) -> str:
        text = ctypes.create_string_buffer(_TEXT)
        self._call(call, handle, text, ctypes.c_uint(_TEXT))
        return text.value.decode(errors="replace")

    def _call(self, name: str, *words: object) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise NvmlError(name, 13, "the driver is too old to know this call; install 450 or newer") from None
        number = function(*words)
        if number != 0:
            words_of = self._library.nvmlErrorString
            words_of.restype = ctypes.c_char_p
            raise NvmlError(name, number, (words_of(number) or b"").decode(errors="replace") or f"error {number}")

"""What a task did use, read from the kernel: plain numbers, seconds and bytes.

A figure that this kernel cannot give is absent (``None`` here, no key in JSON); nothing is guessed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from kolejka.common.errors import InputError

_PLAIN: Final = (int, float)


@dataclass(frozen=True)
class _Figures:
    """A group of figures that reads and writes JSON by its declaration."""

    @classmethod
    def parse(cls, data: object) -> Self:
        """From JSON. Unknown figures are dropped: a newer node may know more than this reader.

        InputError where a figure is no number or a group is no object.
        """
        if not isinstance(data, Mapping):
            raise InputError("this should be an object of figures")
        known = _declared(cls)  # type: ignore[arg-type] # mypy asks the instances whether classes can be hashed
        values: dict[str, Any] = {}
        for name, value in data.items():
            if name in known and value is not None:
                nested, each = known[name]
                try:
                    if each:
                        values[name] = _parse_each(each, value)
                    else:
                        values[name] = nested.parse(value) if nested else _number(value)
                except InputError as error:
                    raise error.within(name, ".") from None
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """To JSON, absent figures left out; a group without any figure is left out as well."""
        data: dict[str, Any] = {}
        for name, value in vars(self).items():  # in the order of their declaration
            if value is None:
                continue
            if isinstance(value, _Figures):
                group = value.to_json()
            elif type(value) in _PLAIN:
                data[name] = value
                continue
            else:
                group = {key: figures.to_json() for key, figures in value.items()}
            if group:
                data[name] = group
        return data

    def replace(self, **values: Any) -> Self:
        """A copy with some figures set."""
        return dataclasses.replace(self, **values)


@functools.cache
def _declared(cls: type[_Figures]) -> dict[str, tuple[type[_Figures] | None, type[_Figures] | None]]:
    """A group's figures by name: the group that one is, and the group that is there for each of several things."""
    return {f.name: (f.metadata.get("figures"), f.metadata.get("each")) for f in dataclasses.fields(cls)}


def _number(value: object) -> int | float:
    """A figure. NaN, infinities and what is beyond 64 bits are none."""
    if isinstance(value, int | float) and not isinstance(value, bool) and -(2.0**63) < value < 2.0**63:
        return value
    raise InputError(f"{str(value)[:60]!r} is not a figure")


def _parse_each(figures: type[_Figures], data: object) -> dict[str, Any]:
    if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
        raise InputError("this should be an object of groups of figures")
    found = {}
    for key, value in data.items():
        try:
            found[key] = figures.parse(value)
        except InputError as error:
            raise error.within(str(key)[:60], ".") from None
    return found


def _group(figures: type[_Figures]) -> Any:
    return field(default=figures(), metadata={"figures": figures})  # values never change: one will do for all


def _each(figures: type[_Figures]) -> Any:
    """A group of figures for each of several things, by their names."""
    return field(default_factory=dict, metadata={"each": figures})


@dataclass(frozen=True)
class CpuStats(_Figures):
    """CPU time of the whole process tree, in seconds."""

    usage: float | None = None
    user: float | None = None
    system: float | None = None


@dataclass(frozen=True)
class MemoryStats(_Figures):
    """Memory of the whole process tree with its page cache, in bytes."""

    usage: int | None = None
    """at the time of asking"""
    max_usage: int | None = None
    """the peak"""
    swap: int | None = None
    """swapped out at the time of asking"""
    max_swap: int | None = None
    """the peak of swap, where the kernel keeps one"""
    anonymous: int | None = None
    """of ``usage``: the program's own (heap, stacks)"""
    file: int | None = None
    """of ``usage``: page cache, tmpfs included"""
    failures: int | None = None
    """how often the limit was hit; page cache hits it too, so this is no verdict"""
    oom_kills: int | None = None
    """processes the kernel killed for memory: the only evidence of an out-of-memory verdict"""


@dataclass(frozen=True)
class PidsStats(_Figures):
    """Processes and threads."""

    usage: int | None = None
    max_usage: int | None = None
    failures: int | None = None
    """forks refused by the limit"""


@dataclass(frozen=True)
class IoStats(_Figures):
    """Bytes and operations at block devices (not what the page cache served)."""

    read_bytes: int | None = None
    write_bytes: int | None = None
    reads: int | None = None
    writes: int | None = None


@dataclass(frozen=True)
class PressureStats(_Figures):
    """Seconds in which some process of the task waited for the resource (PSI ``some``, total)."""

    cpu: float | None = None
    memory: float | None = None
    io: float | None = None


@dataclass(frozen=True)
class GpuStats(_Figures):
    """One GPU, seen at looks while the task ran, every 50 ms; what came and went between two looks is not in it.

    ``max_usage`` is the most memory of the task's processes, in bytes; ``utilization`` the mean of the GPU's busy part.
    """

    max_usage: int | None = None
    utilization: float | None = None
    """from 0 to 1, of the whole GPU, which the task has for itself, as its driver samples it (1/6 s to 1 s)"""


@dataclass(frozen=True)
class Stats(_Figures):
    """Everything measured about one session. ``time`` is wall-clock seconds."""

    time: float | None = None
    cpu: CpuStats = _group(CpuStats)
    memory: MemoryStats = _group(MemoryStats)
    pids: PidsStats = _group(PidsStats)
    io: IoStats = _group(IoStats)
    pressure: PressureStats = _group(PressureStats)
    gpus: Mapping[str, GpuStats] = _each(GpuStats)
    """by the GPU's UUID"""

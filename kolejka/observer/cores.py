"""Which CPUs a session gets: those its siblings use least, threads of one physical core together."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

_CPUS: Final = Path("/sys/devices/system/cpu")
_NODES: Final = Path("/sys/devices/system/node")


def parse_list(text: str) -> frozenset[int]:
    """The kernel's list form, ``0-3,8``."""
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers)


@functools.cache
def cores() -> tuple[frozenset[int], ...]:
    """The hardware threads of each physical core. A CPU whose core the kernel does not tell is one of its own."""
    found: set[frozenset[int]] = set()
    for folder in _CPUS.glob("cpu[0-9]*"):
        siblings = folder / "topology" / "thread_siblings_list"
        number = int(folder.name[3:])
        found.add(parse_list(siblings.read_text()) if siblings.exists() else frozenset({number}))
    return tuple(sorted(found, key=min)) or (frozenset(os.sched_getaffinity(0)),)


@functools.cache
def nodes() -> Mapping[int, frozenset[int]]:
    """The CPUs of each memory node; none where the kernel knows no nodes."""
    return {
        int(match[1]): parse_list((folder / "cpulist").read_text())
        for folder in _NODES.glob("node*")
        if (match := re.fullmatch(r"node(\d+)", folder.name)) and (folder / "cpulist").exists()
    }


def mems_of(cpus: Iterable[int], available: frozenset[int], by_node: Mapping[int, frozenset[int]]) -> frozenset[int]:
    """The memory nodes beside ``cpus``, of those available; all of these where none fits."""
    wanted = frozenset(cpus)
    return frozenset(node for node, beside in by_node.items() if beside & wanted) & available or available


def choose_cpus(
    count: int, available: frozenset[int], used: Mapping[int, int], by_core: Sequence[frozenset[int]]
) -> frozenset[int]:
    """``count`` CPUs of ``available`` (all of them if there are no more), least used first, whole cores first.

    ``used``: CPU → sessions that have it. Whole cores are taken while one is still wanted whole; the rest comes from
    the core that fits best, so that no two sessions meet on one core while another core is free.
    """
    if count >= len(available):
        return available
    usable = [core & available for core in by_core]
    grouped = frozenset().union(*usable) if usable else frozenset()
    usable += [frozenset({cpu}) for cpu in available - grouped]
    usable = [core for core in usable if core]

    def load(core: frozenset[int]) -> tuple[int, int]:
        return max(used.get(cpu, 0) for cpu in core), sum(used.get(cpu, 0) for cpu in core)

    chosen: set[int] = set()
    while len(chosen) < count:
        lacking = count - len(chosen)
        core = min(usable, key=lambda core: (load(core), len(core) < lacking, abs(len(core) - lacking), min(core)))
        usable.remove(core)
        chosen.update(sorted(core, key=lambda cpu: (used.get(cpu, 0), cpu))[:lacking])
    return frozenset(chosen)

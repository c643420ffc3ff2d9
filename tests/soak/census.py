"""What a node's programs hold at one moment: control groups, mounts, processes, descriptors, memory, folders.

Counts of things that must not be left are absolute: after the last task they are 0. Counts of things that a program
rightly holds (descriptors, mounts, memory) are compared with those of the same process earlier.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Held:
    """What one process holds."""

    descriptors: int
    mounts: int
    resident: int
    """bytes"""


@dataclass(frozen=True)
class Census:
    """Everything that is there at one moment."""

    left: tuple[str, ...] = ()
    """names of what no finished task may leave: control groups, processes, folders"""
    held: dict[int, Held] = field(default_factory=dict)


def groups_below(name: str) -> list[str]:
    """Control groups below the group ``name``, in all hierarchies."""
    tops = [CGROUPS / name, *CGROUPS.glob(f"*/{name}")]
    return [str(Path(folder, child)) for top in tops for folder, children, _ in os.walk(top) for child in children]


def processes_of(users: range) -> list[str]:
    """Processes of the payloads' users, the dead that nobody reaped included."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended while we looked
            if folder.stat().st_uid in users or _real_user(folder) in users:
                found.append(f"process {folder.name} {(folder / 'comm').read_text().strip()}")
    return found


def _real_user(folder: Path) -> int:
    """The user of a process whose files belong to root because it is not dumpable."""
    lines = (folder / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Uid:"))


def held_by(pid: int, below: Path) -> Held:
    """What a process holds; of mounts, those of folders below ``below``, because others mount things too.

    ProcessLookupError or FileNotFoundError when it is gone.
    """
    folder = Path("/proc", str(pid))
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
    return Held(
        descriptors=len(list((folder / "fd").iterdir())),
        mounts=(folder / "mountinfo").read_text().count(f"{below}/"),
        resident=int(status.get("VmRSS", "0 kB").split()[0]) * 1024,
    )


def entries(*folders: Path) -> list[str]:
    """What is in folders that should be empty."""
    return [str(entry) for folder in folders if folder.is_dir() for entry in folder.iterdir()]


def take(programs: Iterable[int], group: str, users: range, below: Path, *folders: Path) -> Census:
    """Look now; ``folders`` should be empty."""
    left = [*groups_below(group), *processes_of(users), *entries(*folders)]
    held: dict[int, Held] = {}
    for pid in programs:
        with suppress(FileNotFoundError, ProcessLookupError):  # replaced meanwhile
            held[pid] = held_by(pid, below)
    return Census(tuple(left), held)

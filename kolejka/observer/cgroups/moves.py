"""How fast the kernel moves a process into a control group.

A move waits until no processor is in the middle of a fork, which the kernel by default proves by an RCU grace period:
ten milliseconds, for every task. The mount option ``favordynmods`` of the version-2 tree (kernel 6.0, admin-guide
cgroup-v2) keeps the proof at hand: moves of both versions take microseconds, forks a few nanoseconds more. It is one
switch for the whole machine; the remount must repeat the other options, which it would reset.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

_MS_REMOUNT: Final = 32
_WORD: Final = "favordynmods"


def _options(mountinfo: str) -> tuple[str, list[str]] | None:
    """Point and file-system options of the first version-2 mount, or None without one."""
    for line in mountinfo.splitlines():
        place, _, source = line.partition(" - ")
        words = source.split()
        if words and words[0] == "cgroup2":
            return place.split()[4], [word for word in words[-1].split(",") if word not in {"rw", "ro"}]
    return None


def are_favored(mountinfo: str | None = None) -> bool | None:
    """Whether moves are fast here; None where there is no version-2 mount to tell."""
    found = _options(Path("/proc/self/mountinfo").read_text(encoding="utf-8") if mountinfo is None else mountinfo)
    return None if found is None else _WORD in found[1]


def favor() -> str | None:
    """Make moves fast; None when they are, else why they cannot be (older kernel, no right, no version-2 mount)."""
    found = _options(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    if found is None:
        return "there is no version-2 mount"
    point, options = found
    if _WORD in options:
        return None
    data = ",".join([*options, _WORD]).encode()
    library = ctypes.CDLL(None, use_errno=True)
    if library.mount(None, os.fsencode(point), None, ctypes.c_ulong(_MS_REMOUNT), data):
        return os.strerror(ctypes.get_errno())
    return None

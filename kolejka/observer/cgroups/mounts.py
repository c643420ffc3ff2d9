"""Where this machine mounts control groups, read from ``/proc/self/mountinfo``, never assumed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kolejka.observer.cgroups.files import explain, read_whole
from kolejka.observer.cgroups.interface import no_such_process

_FLAGS: Final = frozenset({
    "rw", "ro", "relatime", "noatime", "xattr", "release_agent", "clone_children", "cpuset_v2_mode", "noprefix", "all",
    "none", "nsdelegate", "favordynmods", "memory_localevents", "memory_recursiveprot", "memory_hugetlb_accounting",
})  # fmt: skip


@dataclass(frozen=True)
class Mount:
    """One mounted hierarchy: ``point`` shows what lies below ``root`` in it, both without a trailing slash."""

    point: str
    root: str = ""

    def below(self, path: str, top: str) -> tuple[str, ...]:
        """Names in ``path`` (of ``/proc/PID/cgroup``) below our folder ``top``; none when it is elsewhere."""
        inside = self.inside(path)
        if inside is None or not inside.startswith(top + "/"):
            return ()
        return tuple(inside[len(top) + 1 :].split("/"))

    def inside(self, path: str) -> str | None:
        """A path of ``/proc/PID/cgroup`` as seen from the mount point; None when it is outside."""
        path = path.rstrip("/")
        if path.startswith("/.."):
            return None
        if path == self.root or path.startswith(self.root + "/"):
            return path[len(self.root) :]
        return None

    def folder(self, path: str) -> bytes | None:
        """The folder of a path of ``/proc/PID/cgroup``; None when this mount does not show it."""
        inside = self.inside(path)
        return None if inside is None else os.fsencode(self.point + inside)


@dataclass(frozen=True)
class Mounts:
    """All of them: version 1 by controller (``name=…`` ones by that), and version 2."""

    v1: Mapping[str, Mount]
    v2: Mount | None


def parse_mountinfo(text: str) -> Mounts:
    """Read ``/proc/self/mountinfo`` (proc_pid_mountinfo(5))."""
    v1: dict[str, Mount] = {}
    v2: Mount | None = None
    for line in text.splitlines():
        place, _, source = line.partition(" - ")
        kind, _, options = source.partition(" ")
        if kind not in {"cgroup", "cgroup2"}:
            continue
        words = place.split()
        mount = Mount(point=_plain(words[4]).rstrip("/"), root=_plain(words[3]).rstrip("/"))
        if kind == "cgroup2":
            if v2 is None or len(mount.root) < len(v2.root):
                v2 = mount
            continue
        for word in options.split()[-1].split(","):
            if word.startswith("release_agent=") or word in _FLAGS:
                continue
            if word not in v1 or len(mount.root) < len(v1[word].root):
                v1[word] = mount
    return Mounts(v1, v2)


def read_mounts() -> Mounts:
    """The mounts of this process."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape"))


def process_paths(pid: int | str) -> dict[str, str]:
    """Where a process is: controller → path, version 2 under the empty name. NotFound when it is gone."""
    path = f"/proc/{pid}/cgroup"
    try:
        lines = os.fsdecode(read_whole(os.fsencode(path))).splitlines()
    except (FileNotFoundError, ProcessLookupError):
        raise no_such_process(int(pid)) from None
    except OSError as error:
        raise explain(os.fsencode(path), error, "read") from None
    paths: dict[str, str] = {}
    for line in lines:
        _, controllers, where = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = where
    return paths


def _plain(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)

"""The only place that knows version 1 from version 2: looks at the machine and gives the tree that fits.

Version 2 is taken where its mount has the memory and pids controllers; otherwise version 1, with the empty version-2
mount as shadow where there is one. Control groups that are mounted nowhere, or that we may not write to, are a
``NodeError`` with the cure.
"""

from __future__ import annotations

import os

from kolejka.common.errors import NodeError
from kolejka.observer.cgroups.files import Door
from kolejka.observer.cgroups.interface import Tree
from kolejka.observer.cgroups.mounts import Mounts, read_mounts
from kolejka.observer.cgroups.v1 import V1Tree
from kolejka.observer.cgroups.v2 import V2Tree

_NEEDED = frozenset({"memory", "pids"})


def choose(name: str = "kolejka", *, base: str = "", mounts: Mounts | None = None, door: Door | None = None) -> Tree:
    """The tree for groups below our folder ``name``. NodeError where this machine can hold none, with the cure.

    ``base``: the version-2 group to make that folder in, from the mount point on; empty = found (``v2.py``).
    """
    mounts = mounts or read_mounts()
    door = door or Door()
    if mounts.v2 is not None:
        controllers = door.read_optional(os.fsencode(mounts.v2.point) + b"/cgroup.controllers") or ""
        if set(controllers.split()) >= _NEEDED:
            if not base:
                return V2Tree(mounts.v2, name, door)
            base = f"/{base.strip('/')}".rstrip("/")
            if not door.exists(os.fsencode(mounts.v2.point + base)):
                raise NodeError(f"there is no control group {base}; start the unit it belongs to", field="base")
            return V2Tree(mounts.v2, name, door, base=base)
    if mounts.v1:
        shadow = mounts.v2 if mounts.v2 is not None and os.access(mounts.v2.point, os.W_OK) else None
        tree = V1Tree(mounts.v1, shadow, name, door)
        point = os.path.dirname(os.fsdecode(tree.places_to_join[0]))
        if not os.access(point, os.W_OK):
            raise NodeError(f"no right to make control groups in {point}; run as root")
        return tree
    raise NodeError("this machine mounts no control groups; mount -t cgroup2 none /sys/fs/cgroup")

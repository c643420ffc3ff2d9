"""The trees the suite runs on: this machine's own, and recorded ones of version 2 behind a door that plays the kernel.

The played kernel knows what the suite needs: a new group has the recorded files; only files that the group's parent
gave controllers for are there; processes move by ``cgroup.procs``; a group that gives controllers to its children takes
no process; ``cgroup.kill``, ``cgroup.freeze`` and ``cgroup.events`` act on the whole subtree; a populated group cannot
be removed. Limits are remembered, not held.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path

from kolejka.observer.cgroups.choose import choose
from kolejka.observer.cgroups.files import Door, GroupGone, explain
from kolejka.observer.cgroups.mounts import Mount, read_mounts
from kolejka.observer.cgroups.v1 import V1Tree
from kolejka.observer.cgroups.v2 import V2Tree

RECORDED = Path(__file__).parent / "recorded"


class PlayedKernel(Door):
    """A door to a recorded tree in a folder."""

    def __init__(self, folder: Path, version: str) -> None:
        self.root = os.fsencode(folder)
        self.template = RECORDED / version / "group"
        for file in (RECORDED / version / "top").iterdir():
            shutil.copy(file, folder)
        self.written: list[tuple[str, str]] = []

    def read(self, path: bytes) -> str:
        self._play(path)
        return super().read(path)

    def read_optional(self, path: bytes) -> str | None:
        self._play(path)
        return super().read_optional(path)

    def write(self, path: bytes, text: str) -> None:
        folder, name = os.path.split(path)
        if not os.path.exists(path):
            raise explain(path, FileNotFoundError(errno.ENOENT, "No such file or directory"), "write")
        self.written.append((os.fsdecode(path[len(self.root) + 1 :]), text))
        play = getattr(self, "_write_" + name.decode().replace(".", "_"), None)
        if play is not None:
            play(folder, text)
        else:
            Path(os.fsdecode(path)).write_text(text + "\n")

    def make(self, path: bytes) -> bool:
        if not os.path.isdir(os.path.dirname(path)):
            raise GroupGone("gone", number=errno.ENOENT)
        if os.path.isdir(path):
            return False
        os.mkdir(path)
        self._give(path, {"cgroup.", "cpu.stat", "cpu.pressure", "io.pressure"})
        return True

    def _give(self, path: bytes, others: set[str]) -> None:
        """Make the files of the controllers that the group above gives, and of ``others``."""
        given = Path(os.fsdecode(os.path.dirname(path)), "cgroup.subtree_control").read_text().split()
        wanted = (*(f"{controller}." for controller in given), *others)
        for file in self.template.iterdir():
            if file.name.startswith(wanted) and (others or not Path(os.fsdecode(path), file.name).exists()):
                shutil.copy(file, os.fsdecode(path))
        Path(os.fsdecode(path), "cgroup.controllers").write_text(" ".join(given) + "\n")

    def remove(self, path: bytes) -> bool:
        if not os.path.isdir(path):
            return False
        if self._living(path):
            raise explain(path, OSError(errno.EBUSY, "Device or resource busy"), "remove")
        shutil.rmtree(os.fsdecode(path))
        return True

    def _members(self, folder: bytes) -> list[int]:
        return [int(pid) for pid in Path(os.fsdecode(folder), "cgroup.procs").read_text().split()]

    def _below(self, folder: bytes) -> list[bytes]:
        return [os.fsencode(file.parent) for file in Path(os.fsdecode(folder)).rglob("cgroup.procs")]

    def _living(self, folder: bytes) -> list[int]:
        return [pid for group in self._below(folder) for pid in self._members(group) if _alive(pid)]

    def _play(self, path: bytes) -> None:
        folder, name = os.path.split(path)
        if name == b"cgroup.procs" and os.path.exists(path):
            living = [pid for pid in self._members(folder) if _alive(pid)]
            Path(os.fsdecode(path)).write_text("".join(f"{pid}\n" for pid in living))
        if name == b"cgroup.events" and os.path.exists(path):
            frozen = Path(os.fsdecode(folder), "cgroup.freeze").read_text().strip()
            Path(os.fsdecode(path)).write_text(f"populated {int(bool(self._living(folder)))}\nfrozen {frozen}\n")

    def _write_cgroup_procs(self, folder: bytes, text: str) -> None:
        control = Path(os.fsdecode(folder), "cgroup.subtree_control").read_text().split()
        if control and folder != self.root:
            raise explain(folder, OSError(errno.EBUSY, "Device or resource busy"), "write")
        if not _alive(int(text)):
            raise explain(folder, OSError(errno.ESRCH, "No such process"), "write")
        for group in self._below(self.root):
            kept = [pid for pid in self._members(group) if pid != int(text)]
            Path(os.fsdecode(group), "cgroup.procs").write_text("".join(f"{pid}\n" for pid in kept))
        with Path(os.fsdecode(folder), "cgroup.procs").open("a") as sink:
            sink.write(text + "\n")

    def _write_cgroup_subtree_control(self, folder: bytes, text: str) -> None:
        path = Path(os.fsdecode(folder))
        available = (path / "cgroup.controllers").read_text().split()
        control = set((path / "cgroup.subtree_control").read_text().split())
        if folder != self.root and [pid for pid in self._members(folder) if _alive(pid)]:
            raise explain(folder, OSError(errno.EBUSY, "Device or resource busy"), "write")
        for word in text.split():
            if word[1:] not in available:
                raise explain(
                    folder + b"/cgroup.subtree_control", OSError(errno.ENOENT, "No such file or directory"), "write"
                )
            control.add(word[1:])
        (path / "cgroup.subtree_control").write_text(" ".join(sorted(control)) + "\n")
        for below in path.glob("*/cgroup.procs"):
            self._give(os.fsencode(below.parent), set())

    def _write_cgroup_kill(self, folder: bytes, text: str) -> None:
        for pid in self._living(folder):
            os.kill(pid, signal.SIGKILL)

    def _write_cgroup_freeze(self, folder: bytes, text: str) -> None:
        for group in self._below(folder):
            Path(os.fsdecode(group), "cgroup.freeze").write_text(text + "\n")
        for pid in self._living(folder):
            os.kill(pid, signal.SIGSTOP if text == "1" else signal.SIGCONT)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def played(folder: Path, version: str) -> V2Tree:
    """A tree on a recorded kernel."""
    return V2Tree(Mount(os.fspath(folder)), "kolejka", PlayedKernel(folder, version), base="")


def real(name: str) -> V1Tree | V2Tree:
    """This machine's own."""
    tree = choose(name)
    assert isinstance(tree, V1Tree | V2Tree)
    return tree


def pure_v1(name: str) -> V1Tree:
    """This machine's version-1 hierarchies, as if nothing else were mounted."""
    return V1Tree(read_mounts().v1, None, name)

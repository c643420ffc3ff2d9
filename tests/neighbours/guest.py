"""A Debian with a systemd of its own, booted in a container within a second: for what only a whole system shows.

Its root file system is built once from Debian's packages and kept below ``build/guest`` under the hash of its recipe;
each guest writes into a layer of its own. It has no network but its loopback. Its control groups, of every version
that this machine has, are below one group of the tests', which it sees as the top.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.neighbours.needs import find
from tests.neighbours.processes import Program
from tests.support import wait_until

PROJECT: Final = Path(__file__).parents[2]
SUITES: Final = {"12": "bookworm", "13": "trixie"}
PACKAGES: Final = ("systemd", "systemd-sysv", "dbus", "procps", "python3", "ca-certificates", "iproute2")
BOOT_S: Final = 60.0
ENVIRONMENT: Final = (
    "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive",
)  # fmt: skip


def _release() -> str:
    """Debian's number of this machine: what is built here is for its like."""
    words = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return words.get("VERSION_ID", "").strip('"')


def built_root() -> Path:
    """The root file system, from ``build/guest`` or built now (about half a minute)."""
    suite = SUITES[_release()]
    sources = [Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list")]
    command = [
        "unshare", "--mount", "mmdebstrap", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}",
        '--aptopt=APT::Install-Recommends "false"',
        *(f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "man", "locale")),
        suite,
    ]  # fmt: skip
    folder = PROJECT / "build/guest" / hashlib.sha256(" ".join(command).encode()).hexdigest()[:16]
    if not folder.is_dir():
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.parent.mkdir(parents=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent))
        words = [*command, os.fspath(scratch / "root"), *(os.fspath(path) for path in sources if path.is_file())]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        (scratch / "root").rename(folder)
        scratch.rmdir()
    return folder


def hierarchies() -> list[Path]:
    """Where the control groups of each hierarchy are mounted."""
    lines = [line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    return [Path(place) for _, place, kind, *_ in lines if kind in {"cgroup", "cgroup2"}]


class Guest:
    """One guest. ``files``: folders of this machine that it sees, by their places there."""

    def __init__(self, files: Mapping[str, Path] = {}) -> None:
        self.name = f"kolejka-test-{os.getpid()}-guest"
        self.folder = Path(tempfile.mkdtemp(prefix="kolejka-test-"))
        self.root = self.folder / "root"
        self._files = files
        self._program: Program | None = None
        self._leader = 0
        self._init = -1
        for name in ("root", "upper", "work"):
            (self.folder / name).mkdir()
        layers = f"lowerdir={built_root()},upperdir={self.folder}/upper,workdir={self.folder}/work"
        (self.folder / "upper").chmod(0o755)
        subprocess.run(["mount", "-t", "overlay", "-o", layers, self.name, self.root], check=True)

    def boot(self) -> Guest:
        """Start its systemd and wait until it has started what it starts."""
        groups = [place / self.name for place in hierarchies()]
        for group in groups:
            group.mkdir()
            for name in ("cpuset.cpus", "cpuset.mems"):  # version 1 has them empty, and then nobody may enter
                if (group / name).exists() and (group.parent / name).exists():
                    (group / name).write_text((group.parent / name).read_text())
                    (group / "cgroup.clone_children").write_text("1")
        enter = "".join(f"echo $$ > {group}/cgroup.procs && " for group in groups)
        binds = [f"--bind-ro={source}:{target}" for target, source in self._files.items()]
        words = [
            find("systemd-nspawn") or "", "--quiet", "--register=no", "--keep-unit", f"--directory={self.root}",
            "--boot", "--private-network", f"--machine={self.name}", "--console=read-only", *binds,
        ]  # fmt: skip
        self._program = Program("guest", ["sh", "-c", f'{enter}exec "$@"', "sh", *words], self.folder / "console.log")
        self._program.wait_ready(self._up, BOOT_S)
        # Nodes write what nspawn keeps from it; not before the boot, which would set sysctls of this machine.
        self._init = os.pidfd_open(self._leader)
        places = "/sys/fs/cgroup/*/ /proc/sys"
        self.run("sh", "-c", f"for place in {places}; do mount -o remount,bind,rw $place 2>&-; done; true")
        return self

    def _up(self) -> bool:
        program = self._program
        assert program is not None
        children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
        if not children:
            return False
        self._leader = int(children[0])
        said = self._inside("systemctl", "is-system-running").stdout.strip()
        return said in {"running", "degraded"}

    def _inside(self, *words: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [find("nsenter") or "", "--target", str(self._leader), "--all", "--", *ENVIRONMENT, *words]
        return subprocess.run(command, input=input or "", capture_output=True, text=True, check=False, timeout=300)

    def run(self, *words: str, status: int | None = 0, input: str | None = None) -> str:
        """Run a command inside as root; what it said. AssertionError when it ends otherwise than with ``status``."""
        done = self._inside(*words, input=input)
        said = f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        assert status is None or done.returncode == status, said
        return done.stdout + (done.stderr if status != 0 else "")

    def property(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", f"--property={name}", "--value", unit).strip()

    def journal(self, unit: str, lines: int = 40) -> str:
        """The last that a unit has said."""
        return self.run("journalctl", "--no-pager", f"--lines={lines}", f"--unit={unit}")

    def chroot(self, *words: str) -> str:
        """Run a command in the root file system, while no systemd runs there; what it said."""
        command = ["chroot", os.fspath(self.root), *ENVIRONMENT, *words]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def stop(self) -> None:
        """End it, and take away what it was made of. Safe to call twice."""
        if self._program is not None:
            self._program.stop(60)
            self._program = None
            with suppress(ProcessLookupError):  # it has halted; a nspawn that had to be killed leaves it behind
                signal.pidfd_send_signal(self._init, signal.SIGKILL)
            os.close(self._init)
            for place in hierarchies():
                wait_until(lambda place=place: _removed(place / self.name), about=f"{place}/{self.name} goes")  # type: ignore[misc]
        if self.folder.exists():
            subprocess.run(["umount", self.root], check=True)
            shutil.rmtree(self.folder)
            # nspawn leaves an empty folder of its name
            shutil.rmtree(f"/run/systemd/nspawn/propagate/{self.name}", ignore_errors=True)


def _removed(group: Path) -> bool:
    for folder in sorted(group.rglob("*"), reverse=True):
        if folder.is_dir():
            try:
                folder.rmdir()
            except OSError:
                return False
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True

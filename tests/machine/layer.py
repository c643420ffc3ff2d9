"""The machine's root file system: Debian packages and the wheels of this environment, built once per content.

mmdebstrap makes the tree, pip brings the same versions that this environment has, ``mke2fs -d`` packs it without loop
devices. Kernel and initrd are Debian's own, taken out of the tree.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SUITES: Final = {(3, 11): "bookworm", (3, 13): "trixie"}
"""Debian's release by its Python: the guest must run the wheels of this environment."""
PACKAGES: Final = (
    "linux-image-cloud-amd64", "systemd", "systemd-sysv", "udev", "kmod", "procps", "iproute2", "ca-certificates",
    "python3", "python3-venv", "busybox-static", "docker.io", "runc", "gcc", "libc6-dev",
)  # fmt: skip
TOOLS: Final = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "qemu-system-x86_64": "qemu-system-x86"}
MASKED: Final = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer",
    "systemd-timesyncd.service", "docker.service", "docker.socket", "containerd.service", "getty@tty1.service",
    "serial-getty@ttyS0.service",
)  # fmt: skip
SIZE: Final = "3G"

UNIT: Final = """\
[Unit]
Description=Kolejka's tests
After=local-fs.target
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=oneshot
ExecStart=/bin/mount -t ext4 -o noatime /dev/vdb /mnt
ExecStart=/bin/sh /mnt/run-tests
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
Delegate=yes
TasksMax=infinity
LimitNOFILE=65536

[Install]
WantedBy=multi-user.target
"""


class MachineError(Exception):
    """The machine cannot be built or booted; the message says why and what helps."""


@dataclass(frozen=True)
class Root:
    """A built root file system with its kernel."""

    image: Path
    kernel: Path
    initrd: Path


def run(*command: str | os.PathLike[str], **words: object) -> str:
    """Run a tool and return what it printed. MachineError with its last words when it fails."""
    done = subprocess.run(
        [os.fspath(word) for word in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        **words,
    )  # type: ignore[call-overload]
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-10:])
        raise MachineError(f"{Path(command[0]).name} ended with {done.returncode}:\n{last}")
    return str(done.stdout)


def check_tools() -> None:
    """MachineError with the command that installs what is missing."""
    if os.geteuid() != 0:
        raise MachineError("building the machine needs root")
    missing = sorted(package for tool, package in TOOLS.items() if not shutil.which(tool))
    if missing:
        raise MachineError(
            f"{', '.join(missing)} missing; run: apt-get install --no-install-recommends {' '.join(missing)}"
        )


def _suite() -> str:
    """The Debian release whose Python is this one. MachineError when there is none."""
    suite = SUITES.get(sys.version_info[:2])
    if suite is None:
        known = " or ".join(f"{major}.{minor}" for major, minor in SUITES)
        raise MachineError(f"the machine needs the environment to be of Python {known}; make .venv with one of them")
    return suite


def _requirements() -> list[str]:
    """What this environment has, by exact version."""
    frozen = run(sys.executable, "-m", "pip", "freeze", "--exclude-editable").splitlines()
    return [line for line in frozen if "==" in line and not line.startswith(("-e", "kolejka"))]


def built_root(project: Path) -> Root:
    """The root file system for this environment, from ``build/machine`` or built now (about three minutes)."""
    check_tools()
    suite = _suite()
    requirements = _requirements()
    recipe = "\n".join([suite, Path(__file__).read_text(encoding="utf-8"), *requirements])
    key = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    folder = project / "build" / "machine" / f"root-{key}"
    root = Root(folder / "root.ext4", folder / "vmlinuz", folder / "initrd")
    if folder.is_dir():
        return root
    print(f"tests.machine: building the machine's root file system in {folder}", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for old in folder.parent.glob("root-*"):
        shutil.rmtree(old)
    with tempfile.TemporaryDirectory(prefix="kolejka-machine-", dir=folder.parent) as scratch:
        built = Path(scratch) / "built"
        built.mkdir()
        _build(Path(scratch), built, suite, requirements)
        built.chmod(0o755)
        built.rename(folder)
    return root


def _sources() -> list[str]:
    """This machine's own package sources, so that the guest's packages come from where the host's do."""
    return [
        os.fspath(path)
        for path in (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
        if path.is_file()
    ]


def _build(scratch: Path, built: Path, suite: str, requirements: list[str]) -> None:
    tree, wheels = scratch / "tree", scratch / "wheels"
    run(
        "unshare", "--mount",  # what it mounts while it works is nobody else's to see
        "mmdebstrap", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}",
        '--aptopt=APT::Install-Recommends "false"',
        *(f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "man", "locale")),
        suite, tree, *_sources(),
    )  # fmt: skip
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", wheels, *requirements)
    (tree / "opt/wheels").mkdir()
    for wheel in wheels.iterdir():
        shutil.copy(wheel, tree / "opt/wheels")
    run("chroot", tree, "python3", "-m", "venv", "/opt/venv")
    names = [f"/opt/wheels/{wheel.name}" for wheel in wheels.iterdir()]
    run(
        "chroot",
        tree,
        "env",
        "-i",
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
        "/opt/venv/bin/pip",
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        *names,
    )
    shutil.rmtree(tree / "opt/wheels")
    units = tree / "etc/systemd/system"
    (units / "kolejka-test.service").write_text(UNIT)
    wanted = units / "multi-user.target.wants"
    wanted.mkdir(exist_ok=True)
    (wanted / "kolejka-test.service").symlink_to("/etc/systemd/system/kolejka-test.service")
    for unit in MASKED:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    shutil.copy(next((tree / "boot").glob("vmlinuz-*")), built / "vmlinuz")
    shutil.copy(next((tree / "boot").glob("initrd.img-*")), built / "initrd")
    run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", tree, built / "root.ext4", SIZE)

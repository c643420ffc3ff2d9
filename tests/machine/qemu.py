"""Emulated machines: how qemu is called here, and whether KVM may be used.

Multi-threaded emulation crashes guests now and then; one thread with a plain processor model does not. The device
file of KVM alone tells nothing: it opens on machines where every guest hangs, so a kernel must come up with it first.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

EMULATED: Final = ("-accel", "tcg,thread=single", "-cpu", "qemu64,-cx16", "-smp", "2")
EMULATED_SLOWNESS: Final = 6
"""How many times longer tests may take in an emulated machine; they do take some twenty times longer, waits do not."""
VIRTUAL: Final = ("-accel", "kvm", "-cpu", "host", "-smp", "2")
BARE: Final = (
    "-machine", "q35", "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
    "-device", "virtio-rng-pci",
)  # fmt: skip
QUICK_WORDS: Final = (
    "boot=kolejka console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off selinux=0 apparmor=0 audit=0 psi=1 "
    "rcupdate.rcu_expedited=1 systemd.show_status=false systemd.swap=0 systemd.gpt_auto=0"
)
TRIAL_S: Final = 30.0


@functools.cache
def accelerator(kernel: Path) -> tuple[str, ...]:
    """Words for qemu: KVM where a kernel comes up with it, else emulation."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    if {"vmx", "svm"}.isdisjoint(flags) or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return EMULATED
    return VIRTUAL if comes_up(kernel, VIRTUAL) else EMULATED


def comes_up(kernel: Path, words: Sequence[str]) -> bool:
    """Whether a kernel without any root file system gets as far as missing it."""
    command = ["qemu-system-x86_64", *words, *BARE, "-m", "256", "-kernel", os.fspath(kernel)]
    command += ["-append", "console=ttyS0 panic=-1"]
    try:
        said = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=TRIAL_S)
    except subprocess.TimeoutExpired:
        return False
    return b"Kernel panic" in said.stdout


def drive(path: Path, *more: str, kind: str = "raw") -> tuple[str, ...]:
    """A disk of the machine; ``more`` are qemu's words for it (``snapshot=on``, ``readonly=on``)."""
    return ("-drive", ",".join([f"file={path}", "if=virtio", f"format={kind}", *more]))


def write_scratch(disk: Path, size: str = "8G") -> None:
    """An empty disk of the kind that a node keeps its scratch on; sparse."""
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-L", "kolejka-scratch",
         disk, size],
        check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip

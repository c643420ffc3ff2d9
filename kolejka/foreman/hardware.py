"""On which features of this machine measured times depend: told by ``doctor`` as information, never as a fault.

Each is a choice that its owner makes: with SMT a task shares its core with another task's threads; a governor and turbo
change the clock under it; address space randomisation moves what the cache meets; swap makes memory as slow as a disk.
Whoever compares times wants them off, or at least alike on all nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kolejka.common.checks import Check

_CPUS: Final = "sys/devices/system/cpu"
_UNKNOWN: Final = "unknown: the kernel does not tell"


def checks(root: Path = Path("/")) -> Iterator[Check]:
    """The features, each with how it stands. All are ``ok``."""
    for name, words in (
        ("SMT", _smt(root)), ("governor", _governor(root)), ("turbo", _turbo(root)), ("ASLR", _aslr(root)),
        ("swap", _swap(root)),
    ):  # fmt: skip
        yield Check(f"timing: {name}", ok=True, message=words, required=False)


def _read(path: Path) -> str | None:
    """A kernel file's text; ``None`` where this machine has none, or does not let us read it."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:  # virtual machines and containers lack most of these
        return None


def _smt(root: Path) -> str:
    active = _read(root / _CPUS / "smt/active")
    return {
        "1": "on: tasks on the two threads of one core slow each other down (kernel word nosmt turns it off)",
        "0": "off: a CPU is a core",
    }.get(active or "", _UNKNOWN)


def _governor(root: Path) -> str:
    found = sorted(
        {text for path in (root / _CPUS).glob("cpu[0-9]*/cpufreq/scaling_governor") if (text := _read(path))}
    )
    if not found:
        return "none: the clock is not the kernel's to change"
    if found == ["performance"]:
        return "performance: the clock stays high"
    return f"{' '.join(found)}: the clock follows the load (`cpupower frequency-set -g performance` keeps it high)"


def _turbo(root: Path) -> str:
    off, boost = _read(root / _CPUS / "intel_pstate/no_turbo"), _read(root / _CPUS / "cpufreq/boost")
    if off is None and boost is None:
        return _UNKNOWN
    if off == "0" or boost == "1":
        where = f"1 > /{_CPUS}/intel_pstate/no_turbo" if off == "0" else f"0 > /{_CPUS}/cpufreq/boost"
        return f"on: the clock depends on heat and on the neighbours (echo {where} turns it off)"
    return "off: the clock does not depend on the neighbours"


def _aslr(root: Path) -> str:
    value = _read(root / "proc/sys/kernel/randomize_va_space")
    if value is None:
        return _UNKNOWN
    if value == "0":
        return "off: addresses are the same in every run"
    return "on: addresses differ from run to run, and times with them a little (`setarch -R` for one run)"


def _swap(root: Path) -> str:
    text = _read(root / "proc/swaps")
    if text is None or len(text.splitlines()) < 2:
        return "off: memory is memory"
    return "on: a machine short of memory gets slow instead of refusing (`swapoff -a` turns it off)"

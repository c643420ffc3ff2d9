"""A stand-in for a driver: a real ``libnvidia-ml.so.1`` that gcc makes of ``nvml_stub.c``, and device files beside it.

The library reads its GPUs from a file, a line each, at every call. A process uses a GPU by its name: one that calls
itself ``gpu1:48`` has 48 MiB on the second GPU. So programs in a sandbox can play their part with a shell only.
"""

from __future__ import annotations

import os
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from kolejka.worker.gpus import CONTROL_DEVICES, Gpus

SOURCE = Path(__file__).with_name("nvml_stub.c")
MIB = 1 << 20
PARTNERS = ((1, 5), (1, 7), (1, 8), (1, 9))
"""Devices of the machine that stand in for GPUs: zero, full, random, urandom."""


@dataclass(frozen=True)
class Card:
    """One GPU of the stand-in."""

    uuid: str
    memory: int = 1024
    """MiB"""
    busy: int = 50
    """percent"""
    mig: int = -1
    """-1 = it cannot be divided, 0 = it is not, 1 = it is"""
    tells: int = 2
    """of its processes: 0 = nothing, 1 = who they are, 2 = what they use as well"""
    name: str = "Stand-in 1"


class Driver:
    """The stand-in, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._state = folder / "state"
        self.devices = folder / "dev"
        self.devices.mkdir()
        self.library = folder / "libnvidia-ml.so.1"
        subprocess.run(
            ["gcc", "-O1", "-shared", "-fPIC", f'-DSTATE="{self._state}"', "-o", self.library, SOURCE], check=True
        )

    def show(self, *cards: Card, status: int = 0) -> None:
        """From now on the machine has these GPUs; with ``status`` the driver fails with that number."""
        lines = [f"{card.uuid} {card.memory} {card.busy} {card.mig} {card.tells} {card.name}" for card in cards]
        self._state.write_text("\n".join([str(status), *lines, ""]))

    def make_devices(self, count: int) -> None:
        """Device files for so many GPUs. For root only."""
        for name, (major, minor) in zip(
            [*(f"nvidia{number}" for number in range(count)), *CONTROL_DEVICES], [*PARTNERS[:count], *[(1, 3)] * 3],
            strict=True,
        ):  # fmt: skip
            os.mknod(self.devices / name, 0o666 | stat.S_IFCHR, os.makedev(major, minor))
            (self.devices / name).chmod(0o666)

    def gpus(self) -> Gpus:
        """What a worker sees of it."""
        return Gpus(str(self.library), self.devices)

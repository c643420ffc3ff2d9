"""A wall clock that jumps, for programs that are started with its ``environment``."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path


class Clock:
    """Built below ``folder``; at first it goes right."""

    def __init__(self, folder: Path) -> None:
        self._library = folder / "clock.so"
        self._file = folder / "clock"
        source = Path(__file__).with_suffix(".c")
        subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", self._library, source, "-ldl"], check=True)
        self.set(0)

    @property
    def environment(self) -> dict[str, str]:
        """What a program is started with that shall go by it."""
        return {"LD_PRELOAD": str(self._library), "KOLEJKA_TEST_CLOCK": str(self._file)}

    def set(self, seconds: float) -> None:
        """From now on it is so many seconds ahead (or behind) of the true time."""
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(descriptor, struct.pack("=q", round(seconds * 1e9)), 0)
        finally:
            os.close(descriptor)

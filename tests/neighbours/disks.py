"""Small disks of the tests' own, that can be full."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


class Disk:
    """A file system in memory at ``place``, ``size`` bytes large; ``remove`` takes it away."""

    def __init__(self, place: Path, size: int, *, user: int = 0, mode: str = "0755") -> None:
        place.mkdir(parents=True, exist_ok=True)
        options = f"size={size},mode={mode},uid={user},gid={user}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "kolejka-test", place], check=True)
        self.place = place
        self._filler = place / ".filler"

    def fill(self) -> None:
        """Leave not one byte free."""
        descriptor = os.open(self._filler, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            piece = b"\0" * (1 << 20)
            while piece:
                try:
                    os.write(descriptor, piece)
                except OSError:  # full, for a piece of this size
                    piece = piece[: len(piece) // 2]
        finally:
            os.close(descriptor)

    def free(self) -> None:
        """Give back what ``fill`` took."""
        self._filler.unlink(missing_ok=True)

    def remove(self) -> None:
        """Take it away with all that is on it."""
        subprocess.run(["umount", self.place], check=True)

"""Where sessions survive the observer: one small JSON file each, in a folder that ends with the boot (tmpfs).

A file is replaced as a whole (rename), readable by its owner only because it holds the secret. It is not synced: a
crash of the machine ends every process and every session anyway. Files of another boot are dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from kolejka.common.errors import NodeError

_OWNER: Final = "owner"
_SUFFIX: Final = ".json"


def boot_id() -> str:
    """A word that every boot of every machine has for its own; monotonic times compare only within it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class StateFolder:
    """The folder. NodeError with the cure when it cannot be made or is open to others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._boot = boot_id()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            status = folder.stat()
        except OSError as error:
            raise NodeError(f"{folder}: {error.strerror}; name another folder with --state") from None
        if status.st_uid != os.geteuid():
            raise NodeError(f"{folder} belongs to another user; name another folder with --state")
        folder.chmod(0o700)

    def save(self, name: str, data: dict[str, Any]) -> None:
        """Write one entry, as a whole."""
        target = f"{self.folder}/{name}{_SUFFIX}"
        draft = f"{self.folder}/.{name}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(descriptor, json.dumps({**data, "boot": self._boot}).encode())
        finally:
            os.close(descriptor)
        os.rename(draft, target)

    def drop(self, name: str) -> None:
        """Forget one entry. Safe twice."""
        with suppress(FileNotFoundError):  # forgotten already
            os.unlink(f"{self.folder}/{name}{_SUFFIX}")

    def load(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every entry of this boot, by name; what is of another boot, half-written or broken is removed."""
        for path in sorted(self.folder.iterdir()):
            if path.suffix == _SUFFIX and path.stem != _OWNER:
                data = self._read(path)
                if data is not None:
                    yield path.stem, data
            elif path.name.startswith("."):
                path.unlink()

    @property
    def owner(self) -> int | None:
        """The number under which earlier starts marked their groups; see ``cgroups.interface.Owner``."""
        path = self.folder / (_OWNER + _SUFFIX)
        data = self._read(path) if path.exists() else None
        return None if data is None else int(data["number"])

    @owner.setter
    def owner(self, number: int) -> None:
        self.save(_OWNER, {"number": number})

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            data = json.loads(path.read_text(encoding="ascii"))
        except ValueError:
            data = None
        if isinstance(data, dict) and data.pop("boot", None) == self._boot:
            return data
        path.unlink()
        return None

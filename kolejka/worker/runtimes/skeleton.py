"""The folders and empty files that a world's root must have, so that something can be mounted on them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from kolejka.worker.runtimes.base import INIT, OBSERVER_SOCKET

_HOSTS: Final = "127.0.0.1 localhost\n::1 localhost\n"


def prepare_root(root: Path) -> None:
    """Make what a world's root must have for us to mount on. What is there already, and is no link, stays."""
    for name, mode in (
        ("proc", 0o755), ("dev", 0o755), ("tmp", 0o1777), ("task", 0o755), ("etc", 0o755), ("var", 0o755),
        ("root", 0o700), ("run", 0o755), ("run/kolejka", 0o755), ("run/kolejka/observer", 0o755),
    ):  # fmt: skip
        folder = root / name
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            folder.unlink()
        if not folder.is_dir():
            folder.mkdir(parents=True)
            folder.chmod(mode)
    for name, text in (("etc/hosts", _HOSTS), ("etc/resolv.conf", ""), (INIT[1:], ""), (OBSERVER_SOCKET[1:], "")):
        file = root / name
        if file.is_symlink():
            file.unlink()
        if not file.exists():
            file.write_text(text)
            file.chmod(0o644)

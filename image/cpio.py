"""Archives that the kernel unpacks as (part of) an initrd: cpio's ``newc`` form, the same bytes every time.

Linux, Documentation/driver-api/early-userspace/buffer-format.rst. The kernel takes several archives one behind the
other, compressed or not, each beginning at a multiple of four bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Final

_FOLDER: Final = 0o40755
_FILE: Final = 0o100600


def write_archive(target: IO[bytes], files: Mapping[str, Path | bytes], epoch: int) -> None:
    """Append an archive of ``files`` (name in the initrd → its content), readable by root only."""
    _pad(target)
    number = 0
    for folder in _folders(files):
        number += 1
        _entry(target, folder, _FOLDER, number, epoch, b"")
    for name, content in sorted(files.items()):
        number += 1
        _entry(target, name, _FILE, number, epoch, content)
    _entry(target, "TRAILER!!!", 0, 0, 0, b"")
    _pad(target)


def append_file(target: IO[bytes], path: Path) -> None:
    """Append what is an archive already."""
    _pad(target)
    with path.open("rb") as source:
        shutil.copyfileobj(source, target, 1 << 20)
    _pad(target)


def _folders(files: Iterable[str]) -> list[str]:
    found = {str(parent) for name in files for parent in Path(name).parents if str(parent) != "."}
    return sorted(found)


def _entry(target: IO[bytes], name: str, mode: int, number: int, epoch: int, content: Path | bytes) -> None:
    size = content.stat().st_size if isinstance(content, Path) else len(content)
    encoded = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, epoch, size, 0, 0, 0, 0, len(encoded), 0)
    target.write(b"070701" + b"".join(b"%08X" % field for field in fields) + encoded)
    _pad(target)
    if isinstance(content, Path):
        append_file(target, content)
    else:
        target.write(content)
        _pad(target)


def _pad(target: IO[bytes]) -> None:
    target.write(b"\0" * (-target.tell() % 4))

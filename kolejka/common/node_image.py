"""The node image's name and versions: what a node that was booted from it says, and what the server can demand.

``/etc/os-release`` names image and version (``IMAGE_ID``, ``IMAGE_VERSION``; os-release(5)). Versions are compared by
the numbers that they begin with, separated by dots; what follows (``1.4+abc``, ``1.4-rc1``) does not count.
"""

from __future__ import annotations

import re
from typing import Final

from kolejka.common.errors import InputError

IMAGE_ID: Final = "kolejka-node"
_NUMBERS: Final = re.compile(r"[0-9]{1,18}(\.[0-9]{1,18})*")


def numbers(version: str) -> tuple[int, ...]:
    """What a version is compared by; nothing where it begins with no number. ``1.4`` and ``1.4.0`` are the same."""
    found = _NUMBERS.match(version)
    parts = [int(part) for part in found[0].split(".")] if found else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def check_version(version: str) -> str:
    """InputError when nothing can be compared with this version."""
    if version and not _NUMBERS.match(version):
        raise InputError(f"{version!r} is no version; write numbers such as 1.4")
    return version


def is_older(version: str | None, least: str) -> bool:
    """Whether a node's image is below the least that is demanded. A node of no image is below none."""
    return bool(version) and bool(least) and numbers(version or "") < numbers(least)

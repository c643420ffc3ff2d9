"""What a foreman says of its machine beside what it offers: which boot this is, which image, which Kolejka."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, Final

from kolejka import __version__

_BOOT: Final = "proc/sys/kernel/random/boot_id"


def machine_words(root: Path = Path("/")) -> dict[str, Any]:
    """``boot``, ``image`` (of machines that say one) and ``version``, as heartbeats carry them."""
    words: dict[str, Any] = {"version": __version__}
    boot = root / _BOOT
    if boot.exists():
        words["boot"] = boot.read_text(encoding="ascii").strip()
    image = image_of(root)
    return words if image is None else {**words, "image": image}


def image_of(root: Path = Path("/")) -> dict[str, str] | None:
    """Id and version of the image that this machine was booted from; ``None`` where its system says none."""
    try:
        fields = platform.freedesktop_os_release() if root == Path("/") else _fields(root / "etc/os-release")
    except OSError:  # a system without os-release(5) has no image of ours either
        return None
    if not fields.get("IMAGE_ID") or not fields.get("IMAGE_VERSION"):
        return None
    return {"id": fields["IMAGE_ID"][:200], "version": fields["IMAGE_VERSION"][:200]}


def _fields(path: Path) -> dict[str, str]:
    lines = (line.partition("=") for line in path.read_text(encoding="utf-8").splitlines())
    return {name: value.strip("\"'") for name, equals, value in lines if equals}

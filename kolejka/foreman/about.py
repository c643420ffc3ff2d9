"""What a foreman says of its machine beside what it offers: which boot this is, which image, which Kolejka."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from kolejka import __version__

_BOOT: Final = "proc/sys/kernel/random/boot_id"


def machine_words(
    root: Path = Path("/"), release: Callable[[], Mapping[str, str]] = platform.freedesktop_os_release
) -> dict[str, Any]:
    """``boot``, ``image`` (of machines that say one) and ``version``, as heartbeats carry them."""
    words: dict[str, Any] = {"version": __version__}
    boot = root / _BOOT
    if boot.exists():
        words["boot"] = boot.read_text(encoding="ascii").strip()
    image = _image_of(release)
    return words if image is None else {**words, "image": image}


def _image_of(release: Callable[[], Mapping[str, str]]) -> dict[str, str] | None:
    """Id and version of the image that this machine was booted from; ``None`` where its system says none."""
    try:
        fields = release()
    except OSError:  # a system without os-release(5) has no image of ours either
        return None
    if not fields.get("IMAGE_ID") or not fields.get("IMAGE_VERSION"):
        return None
    return {"id": fields["IMAGE_ID"][:200], "version": fields["IMAGE_VERSION"][:200]}

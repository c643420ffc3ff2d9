"""What a node says about itself, so that tasks can require it.

Automatic tags are ``cpu:<vendor>``, ``cpu:<model>``, ``cpus:<n>``, ``gpu:<model>``, ``gpus:<n>``, ``hostname:<name>``,
``kernel:<release>``, ``arch:<machine>`` and ``runtime:<name>`` for each runtime that works here; configured ones
follow.
Names from the hardware are written in lower case with ``-`` for everything that is no letter, digit or dot.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from kolejka.common.errors import InputError
from kolejka.foreman.capacity import Machine

MAX_TAG: Final = 256
_VENDORS: Final = {"genuineintel": "intel", "authenticamd": "amd", "hygongenuine": "hygon"}


def automatic_tags(
    machine: Machine, runtimes: Iterable[str] = (), *, root: Path = Path("/"), uname: os.uname_result | None = None
) -> tuple[str, ...]:
    """The tags that follow from the machine and the runtimes that work on it."""
    uname = uname or os.uname()
    tags = [f"cpu:{word}" for word in _cpu_words(root)]
    tags.append(f"cpus:{len(machine.cpus)}")
    tags += sorted({f"gpu:{plain(gpu.model)}" for gpu in machine.gpus})
    if machine.gpus:
        tags.append(f"gpus:{len(machine.gpus)}")
    tags += [f"hostname:{uname.nodename}", f"kernel:{uname.release}", f"arch:{uname.machine}"]
    tags += [f"runtime:{name}" for name in runtimes]
    return tuple(dict.fromkeys(tags))


def all_tags(automatic: Iterable[str], configured: Iterable[str]) -> tuple[str, ...]:
    """Automatic and configured tags, each once. InputError names a configured one that no task could require."""
    for tag in configured:
        if not tag or len(tag) > MAX_TAG or not tag.isprintable():
            raise InputError(f"{tag!r} is no tag; a tag is a printable word of at most {MAX_TAG} characters",
                             field="foreman.tags")  # fmt: skip
    return tuple(dict.fromkeys((*automatic, *configured)))


def plain(name: str) -> str:
    """A hardware's name as a tag's word: ``Intel(R) Xeon(R) CPU @ 2.10GHz`` → ``intel-xeon-cpu-2.10ghz``."""
    name = re.sub(r"\((r|tm|c)\)", " ", name.lower())
    return re.sub(r"[^a-z0-9.]+", "-", name).strip("-.")


def _cpu_words(root: Path) -> list[str]:
    """Vendor and model of the first CPU, as far as this architecture's kernel tells them."""
    path = root / "proc/cpuinfo"
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    fields: dict[str, str] = {}
    for key, value in re.findall(r"^([^\t:]+?)\s*:\s*(.*?)\s*$", text, re.MULTILINE):
        fields.setdefault(key, value)
    vendor = plain(fields.get("vendor_id", ""))
    words = [_VENDORS.get(vendor, vendor), plain(fields.get("model name", ""))]
    return [word for word in words if word]

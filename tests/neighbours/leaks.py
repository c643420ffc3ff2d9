"""What tests may leave behind on a machine, and how to tell it from what others have there.

Processes are known by a word in their environment, which children inherit; a payload, whose environment is its own, by
the control group it keeps alive. Control groups and mounts are known by their names: those of the tests hold
``kolejka``. What was there before the first test, or is named after another session (``kolejka-test-<pid>…``), is
somebody else's. A session that shares its tests out to worker processes is one session: whoever shares them out looks,
before the first and after the last of them.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support import wait_until

MARK = "KOLEJKA_TEST_SESSION"
OURS = {os.getpid()}
"""the processes of this session after which things are named"""
_PID_IN_NAME = re.compile(r"kolejka-test-(?:\w+-)?(\d+)")


@dataclass(frozen=True)
class Traces:
    """Names of things that exist on the machine at one moment."""

    processes: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    mounts: frozenset[str] = frozenset()

    def beyond(self, before: Traces) -> list[str]:
        """What is here and was not before, a line each."""
        return [
            *(f"process {name}" for name in sorted(self.processes - before.processes)),
            *(f"control group {name}" for name in sorted(self.groups - before.groups)),
            *(f"mount {name}" for name in sorted(self.mounts - before.mounts)),
        ]


def look() -> Traces:
    """What is there now."""
    return Traces(_processes(), _groups(), _mounts())


def left_behind(before: Traces) -> list[str]:
    """What the session made and did not take away, after a moment for those that are just leaving."""
    timeout_s = float(os.environ.get("KOLEJKA_TEST_PATIENCE_S", "10"))
    with suppress(AssertionError):  # what is still there is the answer
        wait_until(lambda: not look().beyond(before), timeout_s)
    return look().beyond(before)


def _processes() -> frozenset[str]:
    word = f"{MARK}={os.environ.get(MARK)}".encode()
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        if int(folder.name) == os.getpid():
            continue
        with suppress(OSError):  # it ended while we looked, or is not ours to read
            if word in (folder / "environ").read_bytes().split(b"\0"):
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.add(f"{folder.name} {line.strip()[:200]}")
    return frozenset(found)


def _is_of_another_session(name: str) -> bool:
    match = _PID_IN_NAME.search(name)
    return match is not None and int(match[1]) not in OURS


def _groups() -> frozenset[str]:
    root = Path("/sys/fs/cgroup")
    places = [*root.glob("kolejka*"), *root.glob("*/kolejka*")]
    return frozenset(str(place) for place in places if place.is_dir() and not _is_of_another_session(place.name))


def _mounts() -> frozenset[str]:
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    places = [line.split()[4] for line in lines]
    return frozenset(
        place
        for place in places
        if ("kolejka" in place or f"pytest-of-{os.environ.get('USER')}" in place) and not _is_of_another_session(place)
    )

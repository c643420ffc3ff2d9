"""The node's screen: what its foreman is doing, for a person in front of the machine.

Everything comes from the file that the foreman keeps (``state.py``), so looking disturbs nobody; whether a foreman runs
is told by the lock on its data folder. Foreign words lose their control characters; nothing but plain text and two
well-known sequences (clear, home) is written, so that any console will do.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from kolejka.client.transport import printable
from kolejka.common.errors import InputError, NodeError
from kolejka.common.files import read_json
from kolejka.foreman.state import NAME

REFRESH_S: Final = 1.0
MOST_TASKS: Final = 16
MOST_ERRORS: Final = 5
_CLEAR: Final = "\x1b[H\x1b[2J"
_FLOCK: Final = "@hhqqi4x"
"""struct flock of a 64-bit Linux (fcntl(2))"""


def is_running(data: Path) -> bool:
    """Whether a foreman holds the folder. NodeError when that cannot be told."""
    try:
        descriptor = os.open(data / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # none ever did
        return False
    except OSError as error:
        raise NodeError(
            f"{data} cannot be read: {error.strerror}; run as the foreman's user", field="foreman.data"
        ) from None
    try:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        return int(struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))[0]) != fcntl.F_UNLCK
    finally:
        os.close(descriptor)


def read_state(data: Path) -> Mapping[str, Any]:
    """The foreman's words; empty before its first start. NodeError when they cannot be read."""
    path = data / NAME
    if not path.exists():
        return {}
    try:
        state = read_json(path)
    except InputError as error:
        raise NodeError(str(error)) from None
    return state if isinstance(state, dict) else {}


def addresses() -> list[str]:
    """This machine's addresses, without those of the loopback."""
    import psutil

    return [
        entry.address.partition("%")[0]
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family in {socket.AF_INET, socket.AF_INET6}
        and not entry.address.startswith(("127.", "::1", "fe80:", "169.254."))
    ]


def draw(state: Mapping[str, Any], *, running: bool, at: list[str], width: int = 80) -> list[str]:
    """The screen's lines."""
    return [printable(line, max(20, width)) if line else "" for line in _lines(state, running=running, at=at)]


def _lines(state: Mapping[str, Any], *, running: bool, at: list[str]) -> Iterator[str]:
    image = state.get("image") or {}
    yield f"Kolejka node {state.get('node', '')}"
    yield ""
    yield f"address   {' '.join(at) or 'none yet: is the network up?'}"
    yield f"server    {state.get('server', '')}"
    yield f"image     {image.get('id', '')} {image.get('version', '')}" if image else "image     none"
    yield f"version   {state.get('version', '')}"
    yield f"state     {state.get('state', 'no foreman has run here') if running else 'the foreman does not run'}"
    if state.get("reason"):
        yield f"          {state['reason']}"
    if running and state.get("fingerprint"):
        yield ""
        yield f"This machine waits to be let in. Its fingerprint is {state['fingerprint']}"
        yield "An admin compares it with the one in `kolejka node list`, then runs:"
        yield f"    {state.get('then_run', '')}"
    tasks = list(state.get("running") or []) if running else []
    yield ""
    yield f"running   {len(tasks)} tasks, {state.get('backlog', 0)} results to upload"
    for task in tasks[:MOST_TASKS]:
        yield f"    {task.get('task')}  since {str(task.get('since', ''))[:19]}"
    if len(tasks) > MOST_TASKS:
        yield f"    and {len(tasks) - MOST_TASKS} more"
    errors = list(state.get("errors") or [])[:MOST_ERRORS]
    yield ""
    yield "last errors" if errors else "no errors"
    for error in errors:
        yield f"    {str(error.get('at', ''))[:19]}  {error.get('message', '')}"


def show(data: Path, write: Callable[[str], object], pause: Callable[[float], bool], *, once: bool) -> None:
    """Draw the screen: ``once``, or again whenever something changed until ``pause`` (seconds) says to stop."""
    before: list[str] = []
    while True:
        width = _width()
        lines = draw(read_state(data), running=is_running(data), at=addresses(), width=width)
        if once:
            write("\n".join(lines) + "\n")
            return
        if lines != before:
            write(_CLEAR + "\r\n".join(lines) + "\r\n")
            before = lines
        if not pause(REFRESH_S):
            return


def _width() -> int:
    try:
        return os.get_terminal_size().columns or 80
    except OSError:  # no terminal
        return 200

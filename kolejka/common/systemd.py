"""Telling systemd how a service is (sd_notify(3)), without its library. Outside a unit nothing happens."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(*words: str) -> None:
    """Send words such as ``READY=1``, ``STOPPING=1``, ``WATCHDOG=1``, ``STATUS=…`` to the service manager."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    target = "\0" + address[1:] if address.startswith("@") else address
    # A manager that is gone needs no news, and its absence must not keep a service from ending in good order.
    with (
        suppress(ConnectionRefusedError, FileNotFoundError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door,
    ):
        door.connect(target)
        door.send("\n".join(words).encode())


def watchdog_s() -> float | None:
    """How often ``WATCHDOG=1`` is due (half of what systemd allows), or ``None`` where nobody watches."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    limit_us = os.environ.get("WATCHDOG_USEC")
    return int(limit_us) / 2e6 if limit_us else None

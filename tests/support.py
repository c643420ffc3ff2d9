"""What tests share: waiting for a condition without guessing how long it takes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

SLOWNESS = float(os.environ.get("KOLEJKA_TEST_SLOWNESS", "1"))
"""How many times longer than elsewhere things may take here: an emulated machine is slow, not wrong."""


def wait_until(condition: Callable[[], T], timeout_s: float = 30.0, about: str = "") -> T:
    """The condition's first true value. AssertionError when it stays false for ``timeout_s`` × ``SLOWNESS`` seconds."""
    deadline = time.monotonic() + timeout_s * SLOWNESS
    pause = threading.Event()
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"still not true after {timeout_s} s: {about or condition}")
        pause.wait(0.01)

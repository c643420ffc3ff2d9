"""How the foreman is, in a small file for whoever looks at this machine (``kolejka-foreman screen``).

::

    DATA/state.json    name, server, state, running tasks, last errors, …; mode 0600

It is written as a whole, when something changed, at most once a second: a change costs the threads that make it a
glance at a flag.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from kolejka.common.files import write_json

logger = logging.getLogger(__name__)

NAME: Final = "state.json"
PAUSE_S: Final = 1.0


def write_state(data: Path, state: Mapping[str, Any]) -> bool:
    """Write the file; whether that was possible. (A full disk keeps nobody from working.)"""
    try:
        write_json(data / NAME, dict(state), mode=0o600)
    except OSError as error:
        logger.debug("the state cannot be written", extra={"file": str(data / NAME), "reason": str(error)})
        return False
    return True


class StateFile:
    """Writes what ``snapshot`` says after ``stirred`` was set."""

    def __init__(self, data: Path, snapshot: Callable[[], Mapping[str, Any]], stirred: threading.Event) -> None:
        self._data = data
        self._snapshot = snapshot
        self._stirred = stirred
        self._closed = threading.Event()
        self._last: Mapping[str, Any] | None = None
        self.written = 0
        """how often"""

    def loop(self) -> None:
        """Write until closed, and once more."""
        while not self._closed.is_set():
            self._stirred.wait()
            self._write()
            self._closed.wait(PAUSE_S)
        self._write()

    def _write(self) -> None:
        self._stirred.clear()  # before the look: what changes during it is written next time
        state = self._snapshot()
        if state != self._last and write_state(self._data, state):
            self._last = state
            self.written += 1

    def close(self) -> None:
        """End the loop."""
        self._closed.set()
        self._stirred.set()

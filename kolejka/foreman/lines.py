"""What the foreman has logged of late: its last lines, for an admin who asks, and the last errors, for the screen.

Lines are kept as they came and formatted when somebody asks. Under systemd the journal has them, with those of the
node's other programs and of earlier lives; elsewhere this foreman's own are all there is. Either way they are bounded
in number and size, and whatever looks like a secret is taken out on the way.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from kolejka.common.logs import TextFormatter

MOST_LINES: Final = 2000
MOST_ERRORS: Final = 10
MOST_CHARACTERS: Final = 256 << 10
"""of a log that is sent; the oldest lines go first"""
MOST_MESSAGE: Final = 500
UNITS: Final = "kolejka-*"
JOURNAL_S: Final = 20.0
_SECRET: Final = re.compile(r"\b(kl[je]|kcs)_[A-Za-z0-9_-]{8,}")


class Lines(logging.Handler):
    """Keeps the last lines and errors. ``stir`` is told of each error."""

    def __init__(self, stir: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self._records: deque[logging.LogRecord] = deque(maxlen=MOST_LINES)
        self._errors: deque[logging.LogRecord] = deque(maxlen=MOST_ERRORS)
        self._form = TextFormatter()
        self.stir = stir

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self._records.append(record)
        if record.levelno >= logging.WARNING:
            self._errors.append(record)
            self.stir()

    def errors(self) -> list[dict[str, str]]:
        """The last warnings and errors, the newest first: ``at`` and ``message``."""
        found = []
        for record in reversed(list(self._errors)):
            at, _, rest = self._form.format(record).partition(" ")
            message = rest.partition(": ")[2].partition("\n")[0]
            found.append({"at": at, "message": without_secrets(message)[:MOST_MESSAGE]})
        return found

    def last(self, lines: int) -> list[str]:
        """The last lines, the oldest first."""
        return [self._form.format(record) for record in list(self._records)[-lines:]]


def without_secrets(text: str) -> str:
    """The text with every token and key cut short."""
    return _SECRET.sub(r"\1_…", text)


def log_text(own: Lines, lines: int, environment: Mapping[str, str] = os.environ, journal: Any = None) -> str:
    """The last lines of this node's log: the journal's where it has this foreman's, else those it remembers."""
    found: list[str] = []
    if "JOURNAL_STREAM" in environment:  # systemd says so to a service whose words go to its journal
        found = (journal or _journal)(lines)
    if not found:
        found = own.last(lines)
    return bounded(without_secrets("\n".join(found)))


def bounded(text: str) -> str:
    """The end of a text that is too long, from the beginning of a line."""
    if len(text) <= MOST_CHARACTERS:
        return text
    return text[-MOST_CHARACTERS:].partition("\n")[2]


def _journal(lines: int) -> list[str]:
    """The journal's last lines of the node's programs; with a remark of ours where it cannot be read."""
    command = ["journalctl", f"--unit={UNITS}", f"--lines={lines}", "--no-pager", "--quiet", "--output=short-iso"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=JOURNAL_S, check=False
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        logging.getLogger(__name__).warning("the journal cannot be read", extra={"reason": str(error)})
        return []
    return done.stdout.decode(errors="replace").splitlines()[-lines:]

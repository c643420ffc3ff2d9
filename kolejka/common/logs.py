"""Log lines: a constant message, data aside, written once where the event is handled.

``logger.info("attempt started", extra={"task": id, "lease": 7})`` becomes
``2026-01-01T12:00:00.000Z info kolejka.foreman: attempt started task=… lease=7`` or one JSON object.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

from kolejka.common.settings import LogSettings

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def stamp(seconds: float) -> str:
    """A moment (seconds since the epoch), as lines of logs begin with it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TextFormatter(logging.Formatter):
    """One line for a person."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; a traceback, if any, follows it."""
        data = "".join(f" {key}={value!r}" if isinstance(value, str) and " " in value else f" {key}={value}"
                       for key, value in _fields(record).items())  # fmt: skip
        line = f"{stamp(record.created)} {record.levelname.lower()} {record.name}: {record.getMessage()}{data}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object for a program."""

    def format(self, record: logging.LogRecord) -> str:
        """The object, on one line."""
        data: dict[str, Any] = {
            "time": stamp(record.created), "level": record.levelname.lower(), "logger": record.name,
            "message": record.getMessage(), **_fields(record),
        }  # fmt: skip
        if record.exc_info:
            data["traceback"] = self.formatException(record.exc_info)
        return json.dumps(data, default=str)


def configure(settings: LogSettings) -> None:
    """Send this process's log lines to standard error. Called once, by a program's entry point."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("kolejka").setLevel(settings.level.upper())

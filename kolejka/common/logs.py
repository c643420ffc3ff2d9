"""Log lines: a constant message, data aside, written once where the event is handled.

``logger.info("attempt started", extra={"task": id, "lease": 7})`` becomes
``2026-01-01T12:00:00.000Z info kolejka.foreman: attempt started task=… lease=7`` or one JSON object. Within
``about(task=…, lease=…)`` every line of this thread has these fields, whoever writes it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final

from kolejka.common.settings import LogSettings

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


_ABOUT: ContextVar[Mapping[str, Any]] = ContextVar("about", default={})  # noqa: B039 never changed


@contextlib.contextmanager
def about(**fields: Any) -> Iterator[None]:
    """Within, every line that this thread logs has these fields, where it has none of its own of the name."""
    token = _ABOUT.set({**_ABOUT.get(), **fields})
    try:
        yield
    finally:
        _ABOUT.reset(token)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {**_ABOUT.get(), **{key: value for key, value in vars(record).items() if key not in _STANDARD}}


def _shown(value: Any) -> str:
    """A value on one line, told apart from the fields beside it, whatever stands in it."""
    text = str(value)
    return repr(text) if " " in text or not text.isprintable() else text


def stamp(seconds: float) -> str:
    """A moment (seconds since the epoch), as lines of logs begin with it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TextFormatter(logging.Formatter):
    """One line for a person."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; a traceback, if any, follows it."""
        data = "".join(f" {key}={_shown(value)}" for key, value in _fields(record).items())
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

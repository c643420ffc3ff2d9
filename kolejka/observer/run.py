"""One command in a session of its own: ``kolejka-observer run``.

The supervisor stays outside of the session. The command is started as a launcher, a bare interpreter that waits on a
pipe; when it is inside the session, a byte lets it turn into the command. Nothing is forked with code of ours
(``preexec_fn``), so this is safe in a program with threads. Standard input, output and error are inherited, no shell is
involved, and the launcher hands on no descriptor but those three.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from kolejka.common.limits import Limits
from kolejka.common.result import Outcome, Result
from kolejka.observer.access import Report, Sessions

_LAUNCHER: Final = """
import _signal, os, sys
for name in ("SIGPIPE", "SIGXFSZ"):  # what this interpreter ignores, the command does not
    _signal.signal(getattr(_signal, name), _signal.SIG_DFL)
door, report = int(sys.argv[1]), int(sys.argv[2])
if os.read(door, 1) != b"!":
    os._exit(125)
os.close(door)
os.set_inheritable(report, False)
try:
    os.execvp(sys.argv[3], sys.argv[3:])
except OSError as error:
    os.write(report, str(error.errno).encode())
os._exit(126)
"""
_NOT_FOUND: Final = 127
_NOT_STARTED: Final = 126


@dataclass(frozen=True)
class Finished:
    """How a command ended. ``code`` as a shell tells it: 128 + N for signal N, 127 not found, 126 not startable."""

    code: int
    report: Report
    message: str | None = None
    """why it could not start"""

    @property
    def result(self) -> Result:
        """The same as a result, for the table of exit statuses."""
        if self.report.limit is not None:
            outcome = Outcome.LIMIT
        elif self.code == 0:
            outcome = Outcome.OK
        else:
            outcome = Outcome.SIGNALED if self.code > 128 and self.message is None else Outcome.FAILED
        return Result(outcome, result=self.code, limit=self.report.limit, stats=self.report.stats, message=self.message)

    def to_json(self) -> dict[str, Any]:
        """For ``--stats-file``: the figures at top level, as the observer tells them."""
        return {**self.report.to_json(), "result": self.code, "message": self.message}


def run_command(
    sessions: Sessions,
    args: Sequence[str],
    limits: Limits,
    *,
    cpuset: Sequence[int] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Run ``args`` in a fresh session with ``limits`` and wait for its end; what it leaves running is killed.

    An exception that interrupts the wait (KeyboardInterrupt, one raised by a signal handler) ends the session too.
    """
    session = sessions.open(limits, cpuset=cpuset)
    try:
        door, opener = os.pipe()
        listener, reporter = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(door), str(reporter), *args],
            pass_fds=(door, reporter),
            env=None if environment is None else dict(environment),
        )
        os.close(door)
        os.close(reporter)
        with os.fdopen(listener, "rb") as told:
            try:
                try:
                    session.attach(process.pid)
                    with suppress(BrokenPipeError):  # it was killed already: its limits are that tight
                        os.write(opener, b"!")
                finally:
                    os.close(opener)  # without the byte the launcher ends by itself
                status = process.wait()
            except BaseException:
                session.kill()
                process.wait()
                raise
            words = told.read()
    finally:
        report = session.close()
    if words:
        return _not_started(args[0], int(words), report)
    return Finished(status if status >= 0 else 128 - status, report)


def _not_started(name: str, number: int, report: Report) -> Finished:
    code = _NOT_FOUND if number in (2, 20) else _NOT_STARTED  # ENOENT, ENOTDIR
    return Finished(code, report, f"{name}: {os.strerror(number)}")

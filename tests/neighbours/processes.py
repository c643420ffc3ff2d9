"""Programs that tests start: each with a log file of its own, waited for, ended for certain."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.support import wait_until


class Program:
    """A program running beside the tests, in a process group of its own, its output in a log file."""

    def __init__(
        self, name: str, command: Sequence[str | os.PathLike[str]], log: Path, env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.log = log
        with open(log, "ab") as sink:
            self.process = subprocess.Popen(
                [os.fspath(word) for word in command], stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
                env=None if env is None else dict(env), cwd=cwd, start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def around(self, word: str, lines: int = 60) -> str:
        """The lines of its log around the last one with this word."""
        words = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        at = max((place for place, line in enumerate(words) if word in line), default=len(words))
        return "\n".join(words[max(0, at - lines // 3) : at + lines])

    def tail(self, lines: int = 30) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def wait_ready(self, condition: Callable[[], object], timeout_s: float = 30.0) -> None:
        """Wait until the condition holds; AssertionError with the end of its log if it dies or takes longer."""

        def ready_or_dead() -> bool:
            return not self.alive or bool(condition())

        try:
            wait_until(ready_or_dead, timeout_s, f"{self.name} is ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tail()}") from None
        if not self.alive:
            raise AssertionError(f"{self.name} ended with status {self.process.returncode}:\n{self.tail()}")

    def stop(self, timeout_s: float = 20.0) -> int:
        """Ask it to end, then make it; its exit status. Safe to call twice."""
        if self.alive:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.wait()

    def kill(self) -> None:
        """End it at once, as a crash would, with what else is in its process group."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            self.process.kill()  # it ended itself in between, or moved to another group
        self.process.wait()

"""What a person who waits is shown: a moving line or a bar on a terminal, then one line about the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

import click

from kolejka.client.cli.output import on_terminal
from kolejka.client.client import Progress
from kolejka.client.transport import printable
from kolejka.common.result import Outcome, Result
from kolejka.common.units import show_size

T = TypeVar("T")


class Watch:
    """One line on standard error that says how things stand; nothing at all where no person watches."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._status: Any = None
        self._shown = on_terminal() and not quiet

    def __enter__(self) -> Self:
        if self._shown:
            from rich.console import Console

            self._status = Console(stderr=True).status("")
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def say(self, line: str) -> None:
        """Show this line now."""
        if self._status is not None:
            from rich.text import Text

            self._status.update(Text(printable(line, 200)))

    def tell(self, progress: Progress) -> None:
        """Show how a task stands."""
        if progress.state == "waiting":
            self.say(f"task {progress.task_id} waits: {progress.why or 'for a node'}")
        elif progress.node:
            self.say(f"task {progress.task_id} is {progress.state} on {progress.node}")
        else:
            self.say(f"task {progress.task_id} is {progress.state}")

    @property
    def listener(self) -> Any:
        """What to hand to the library: ``tell`` where a person watches, else ``None``, which asks the server less."""
        return self.tell if self._shown else None


class Bar:
    """A bar on standard error for what is done one by one; nothing at all where no person watches."""

    def __init__(self, about: str, total: int) -> None:
        self._about, self._total = about, total
        self._progress: Any = None

    def __enter__(self) -> Self:
        if on_terminal():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._progress.add_task(self._about, total=self._total)
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.stop()

    def each(self, things: Iterable[T]) -> Iterator[T]:
        """The things; each is done when the next one is asked for."""
        for thing in things:
            yield thing
            if self._progress is not None:
                self._progress.advance(self._task)


def summary(result: Result) -> str:
    """How a task ended, on one line: outcome, time, CPU, memory."""
    words = {
        Outcome.OK: "ok",
        Outcome.FAILED: f"failed with exit code {result.result}",
        Outcome.SIGNALED: f"ended by signal {(result.result or 128) - 128}",
        Outcome.LIMIT: f"ended by its limit of {result.limit}",
        Outcome.CANCELLED: "cancelled",
        Outcome.ERROR: "error",
    }
    facts = [words[result.outcome]]
    if result.stats.time is not None:
        facts.append(f"time {result.stats.time:.3f} s")
    if result.stats.cpu.usage is not None:
        facts.append(f"CPU {result.stats.cpu.usage:.3f} s")
    if result.stats.memory.max_usage is not None:
        facts.append(f"memory {show_size(result.stats.memory.max_usage)}")
    line = ", ".join(facts)
    return f"{line}: {printable(result.message)}" if result.message else line


def conclude(task_id: str, result: Result, *, quiet: bool = False) -> None:
    """Say how a task ended: always on a terminal, elsewhere only when it did not end well."""
    if not quiet and (on_terminal() or result.outcome is not Outcome.OK):
        click.echo(f"task {task_id} done: {summary(result)}", err=True)

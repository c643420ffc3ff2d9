"""What commands print: a table for people, JSON for programs, bare keys for shells.

A terminal gets a table drawn by rich; anything else gets columns of plain text. Words that came from elsewhere lose
their control characters on the way to a person. JSON is what the server said.
"""

from __future__ import annotations

import functools
import json as json_format
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from kolejka.client.transport import printable
from kolejka.common.units import format_time, show_size

Command = Callable[..., Any]
Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], Any]]

JSON = click.option("--json", "as_json", is_flag=True, help="print JSON, for programs")


@dataclass(frozen=True)
class Output:
    """How this command should speak."""

    as_json: bool = False
    quiet: bool = False

    def listing(self, items: Iterable[Row], columns: Sequence[Column], *, key: str) -> None:
        """Many things: a row each, or with ``--quiet`` the ``key`` of each."""
        if self.as_json:
            click.echo(json_format.dumps(list(items), indent=2))
        elif self.quiet:
            for item in items:
                click.echo(printable(item.get(key, "")))
        else:
            titles = [title for title, _ in columns]
            _table(titles, [[_cell(show(item)) for _, show in columns] for item in items])

    def notes(self, items: Iterable[Row]) -> None:
        """What was done, for programs only: a person asked for it and hears no more."""
        if self.as_json:
            click.echo(json_format.dumps(list(items), indent=2))

    def thing(self, item: Row, *, key: str) -> None:
        """One thing: a line for each of its fields, or with ``--quiet`` its ``key``."""
        if self.as_json:
            click.echo(json_format.dumps(item, indent=2))
        elif self.quiet:
            click.echo(printable(item.get(key, "")))
        else:
            shown = {name: value for name, value in item.items() if value not in (None, "", [], {})}
            width = max(map(len, shown), default=0)
            for name, value in shown.items():
                text = json_format.dumps(value) if isinstance(value, dict | list) else _cell(value)
                click.echo(f"{printable(name):<{width}}  {text}")


def printed(command: Command) -> Command:
    """Give a command ``output=Output(…)``, made from ``--json`` and ``--quiet``."""

    @functools.wraps(command)
    def wrapped(*args: Any, as_json: bool, quiet: bool, **words: Any) -> Any:
        return command(*args, output=Output(as_json, quiet), **words)

    decorated = click.option("--quiet", "-q", is_flag=True, help="print bare keys only, one a line")(wrapped)
    return JSON(decorated)


def field(name: str) -> Callable[[Row], Any]:
    """A column that is a field."""
    return lambda item: item.get(name)


def moment(name: str) -> Callable[[Row], str]:
    """A column that is a point in time: ``2026-01-01T12:00:00.123Z`` without its fractions."""
    return lambda item: str(item.get(name) or "")[:19].replace("T", " ")


def limits_in_words(limits: Mapping[str, Any]) -> str:
    """Limits for a person's eye, on one line."""
    sizes, times = {"memory", "swap", "storage", "workspace", "output", "image", "gpu_memory"}, {"time", "cpu_time"}
    return " ".join(
        f"{name}={show_size(value) if name in sizes else format_time(value) if name in times else value}"
        for name, value in limits.items()
    )


def on_terminal() -> bool:
    """Whether a person watches what goes to standard error."""
    return sys.stderr.isatty()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return printable(" ".join(map(str, value)))
    return printable(value)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for title in titles:
            table.add_column(title, overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in (titles, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

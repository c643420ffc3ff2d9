"""Options that select tasks by what they are, the same for every command that takes many."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import click

from kolejka.common.errors import InputError

Command = Callable[..., Any]
_OPTIONS = (
    click.option("--queue", metavar="NAME", help="only tasks of this queue"),
    click.option(
        "--label", "labels", metavar="KEY=VALUE", multiple=True, help="only tasks with this label (repeatable)"
    ),
    click.option("--name", metavar="TEXT", help="only tasks of this name"),
    click.option("--owner", metavar="USER", help="only tasks of this user"),
)


def selecting(command: Command) -> Command:
    """Give a command ``selection``: what to hand to ``KolejkaClient.tasks``, empty where nothing was said."""

    @functools.wraps(command)
    def wrapped(
        *args: Any, queue: str | None, labels: Sequence[str], name: str | None, owner: str | None, **words: Any
    ) -> Any:
        pairs = [label.partition("=") for label in labels]
        if any(not key or not equals for key, equals, _ in pairs):
            raise InputError("a label is written KEY=VALUE", field="--label")
        said = {"queue": queue, "name": name, "owner": owner, "labels": {key: value for key, _, value in pairs}}
        return command(*args, selection={word: value for word, value in said.items() if value}, **words)

    return functools.reduce(lambda decorated, option: option(decorated), reversed(_OPTIONS), wrapped)

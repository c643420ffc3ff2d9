"""Commands that do the same to many things: what is wrong with one stops no other.

A task that has just ended by itself, or a name with a slip in it, is told of; the rest is done all the same. A token
that may not do such things, and a server that does not answer, end everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click

from kolejka.cli.exits import error_status
from kolejka.client.transport import printable
from kolejka.common.errors import InputError, KolejkaError, NotAllowed

Row = Mapping[str, Any]


def each(words: Iterable[str], act: Callable[[str], Row], show: Callable[[list[Row]], object]) -> int:
    """Do ``act`` to each, ``show`` what came of it, and say what was refused; the exit status.

    What was done before an error that ends everything is shown too.
    """
    done: list[Row] = []
    refused: list[InputError] = []
    try:
        for word in words:
            try:
                done.append(act(word))
            except NotAllowed:
                raise
            except InputError as error:
                refused.append(type(error)(error.message, field=word))
    except KolejkaError:
        if done:
            show(done)
        raise
    if done or not refused:
        show(done)
    for one in refused:
        click.echo(f"kolejka-client: {printable(one, 4000)}", err=True)
    return error_status(refused[0]) if refused else 0

"""A command's way to the server: the options that name it, and the client they make."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from kolejka.cli.options import settings_options
from kolejka.client.client import KolejkaClient
from kolejka.common.errors import InputError
from kolejka.common.settings import ClientSettings
from kolejka.common.units import parse_time

Command = Callable[..., Any]


def connected(command: Command) -> Command:
    """Give a command ``client=KolejkaClient(…)``, made from ``--server``, ``--config`` and their like."""

    @functools.wraps(command)
    def wrapped(*args: Any, client: ClientSettings, **words: Any) -> Any:
        with KolejkaClient(client) as opened:
            return command(*args, client=opened, **words)

    return settings_options(ClientSettings)(wrapped)


def seconds(option: str, text: str | None) -> float | None:
    """A time given to ``option``, in seconds. InputError names the option."""
    try:
        return None if text is None else parse_time(text)
    except InputError as error:
        raise error.within(option) from None

"""``doctor``: what keeps this machine from talking to the server, and the command that mends it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import click

from kolejka.cli.doctor import report
from kolejka.cli.options import settings_options
from kolejka.client.cli.output import JSON
from kolejka.client.client import KolejkaClient
from kolejka.client.credentials import find_token, is_set_up
from kolejka.client.transport import is_loopback
from kolejka.common.checks import Check
from kolejka.common.errors import KolejkaError, Unavailable
from kolejka.common.settings import ClientSettings


@click.command()
@JSON
@settings_options(ClientSettings, without=("patience",))
def doctor(client: ClientSettings, *, as_json: bool) -> int:
    """Say what is in place and what is not: packages, server, token. Ends with 1 when something is missing."""
    return report(checks(client), as_json=as_json)


def checks(settings: ClientSettings) -> Iterator[Check]:
    """Everything that a client needs, in the order in which it needs it."""
    missing = [name for name in ("requests", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        yield Check("packages", ok=False, message=f"not installed: {', '.join(missing)}",
                    cure="pip install 'kolejka[client]'")  # fmt: skip
        return
    yield Check("packages", ok=True, message="requests and rich are installed")
    try:
        source = find_token(settings)
        client = KolejkaClient(settings)
    except KolejkaError as error:
        yield Check("settings", ok=False, message=str(error))
        return
    with client:
        try:
            yield Check("server", ok=True, message=f"{client.server} answers, version {client.version()}")
        except KolejkaError as error:
            absent = isinstance(error, Unavailable) and not is_set_up(settings)
            yield Check("server", ok=False, message=str(error), cure="kolejka up", absent=absent)
            return
        if client.server.startswith("http://") and not is_loopback(client.server):
            yield Check("encryption", ok=False, message="your token travels in the open", cure="use https://",
                        required=False)  # fmt: skip
        try:
            me = client.whoami()
        except KolejkaError as error:
            yield Check("token", ok=False, message=str(error), cure=f"kolejka login --server {client.server}")
            return
        yield Check("token", ok=True, message=f"from {source.source}: you are {me.get('user')} ({me.get('role')})")

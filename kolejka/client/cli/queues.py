"""``queue``: list."""

from __future__ import annotations

import click

from kolejka.client.cli.connection import connected
from kolejka.client.cli.output import Output, field, printed
from kolejka.client.client import KolejkaClient

COLUMNS = (("NAME", field("name")), ("STATE", field("state")))


@click.group()
def queue() -> None:
    """See the queues in which tasks wait."""


@queue.command("list")
@printed
@connected
def list_queues(client: KolejkaClient, output: Output) -> None:
    """List the queues."""
    output.listing(client.queues(), COLUMNS, key="name")

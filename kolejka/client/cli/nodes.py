"""``node``: list, show."""

from __future__ import annotations

import click

from kolejka.client.cli.connection import connected
from kolejka.client.cli.output import Output, field, limits_in_words, moment, printed
from kolejka.client.client import KolejkaClient

COLUMNS = (
    ("NAME", field("name")),
    ("STATE", field("state")),
    ("RUNNING", lambda node: len(node.get("running") or [])),
    ("FREE", lambda node: limits_in_words(node.get("capacity") or {})),
    ("SEEN", moment("last_seen")),
)


@click.group()
def node() -> None:
    """See the nodes that run tasks."""


@node.command("list")
@printed
@connected
def list_nodes(client: KolejkaClient, output: Output) -> None:
    """List the nodes: their state, how many tasks they run, what they have free."""
    output.listing(client.nodes(), COLUMNS, key="name")


@node.command("show")
@click.argument("name")
@printed
@connected
def show(client: KolejkaClient, name: str, output: Output) -> None:
    """Show a node: its tags, its capacity, the tasks it runs."""
    output.thing(client.node(name), key="name")

"""``node``: list, show, drain, resume."""

from __future__ import annotations

from collections.abc import Sequence

import click

from kolejka.client.cli.connection import connected
from kolejka.client.cli.output import Output, field, limits_in_words, moment, printed
from kolejka.client.client import KolejkaClient

COLUMNS = (
    ("NAME", field("name")),
    ("STATE", field("state")),
    ("RUNNING", field("busy")),
    ("FREE", lambda node: limits_in_words(node.get("capacity") or {})),
    ("SEEN", moment("last_seen")),
)


@click.group()
def node() -> None:
    """See the nodes that run tasks, and let them rest."""


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


@node.command("drain")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@printed
@connected
def drain(client: KolejkaClient, names: Sequence[str], output: Output) -> None:
    """Ask nodes to take no more tasks (for admins). What runs there ends by itself.

    The foreman stays and says so; `node resume` lets it go on. A node that is quarantined could not kill a payload:
    its administrator looks, and restarts its foreman.
    """
    output.listing([client.drain_node(name) for name in names], COLUMNS, key="name")


@node.command("resume")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@printed
@connected
def resume(client: KolejkaClient, names: Sequence[str], output: Output) -> None:
    """Ask drained nodes to take tasks again (for admins)."""
    output.listing([client.resume_node(name) for name in names], COLUMNS, key="name")

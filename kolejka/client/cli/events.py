"""``events``: follow what happens to tasks."""

from __future__ import annotations

import json

import click

from kolejka.client.cli.connection import connected
from kolejka.client.cli.output import moment
from kolejka.client.client import KolejkaClient
from kolejka.client.transport import printable


@click.command()
@click.option("--task", "selector", metavar="ID", help="only of this task")
@click.option(
    "--after", type=click.IntRange(min=0), help="begin behind this event instead of now; --json shows numbers"
)
@click.option("--json", "as_json", is_flag=True, help="print a JSON object a line, for programs")
@connected
def events(client: KolejkaClient, *, selector: str | None, after: int | None, as_json: bool) -> None:
    """Follow what happens to your tasks, a line for each step, until interrupted.

    A connection that breaks is made anew where it broke, so nothing is missed.

    \b
    Example:
      kolejka-client events --json | jq -r 'select(.event == "done") | .task'
    """
    task = client.find(selector) if selector is not None else None
    for event in client.events(after=after, task=task):
        if as_json:
            click.echo(json.dumps(event))
            continue
        words = [moment("at")(event), event["event"], event.get("task")]
        words += [f"on {event['node']}" if event.get("node") else None, event.get("outcome")]
        click.echo(printable("  ".join(str(word) for word in words if word)))

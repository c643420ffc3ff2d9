"""``task``: put, list, show, why, cancel, delete."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from kolejka.cli.options import limit_options
from kolejka.client.cli.connection import connected
from kolejka.client.cli.output import Output, field, moment, printed
from kolejka.client.client import KolejkaClient
from kolejka.client.transport import printable
from kolejka.common.errors import InputError
from kolejka.common.limits import Limits
from kolejka.common.states import TaskState
from kolejka.common.task import Task

COLUMNS = (
    ("ID", field("id")),
    ("STATE", lambda task: task.get("outcome") or task.get("state")),
    ("EXIT", field("result")),
    ("NAME", field("name")),
    ("QUEUE", field("queue")),
    ("OWNER", field("owner")),
    ("PUT", moment("created_at")),
    ("NODE", field("node")),
)


@click.group()
def task() -> None:
    """Put, list, inspect, cancel and delete tasks.

    Wherever a command takes an ID, the start of one is enough while only one task's id starts so, and `last` is the
    newest task of yours.
    """


@task.command("put")
@click.argument("folders", metavar="DIR...", nargs=-1, required=True)
@limit_options
@printed
@connected
def put(client: KolejkaClient, folders: Sequence[str], limits: Limits, output: Output) -> None:
    """Put the tasks in the folders DIR... and print their ids, one a line.

    All folders are checked before the first task is put. Limits given here and limits of a task merge: the stricter
    holds.

    \b
    Examples:
      kolejka-client task put examples/uname
      kolejka-client task put --time 1min tasks/*
    """
    for folder in folders:
        Task.load(Path(folder))
    tasks = []
    for folder in folders:
        put_one = client.put_task(folder, limits=limits)
        tasks.append(put_one)
        if not output.as_json:
            click.echo(printable(put_one["id"]))
    if output.as_json:
        output.listing(tasks, COLUMNS, key="id")


@task.command("list")
@click.option("--state", type=click.Choice([str(s) for s in TaskState]), help="only tasks in this state")
@click.option("--queue", metavar="NAME", help="only tasks of this queue")
@click.option("--label", "labels", metavar="KEY=VALUE", multiple=True, help="only tasks with this label (repeatable)")
@click.option("--name", metavar="TEXT", help="only tasks of this name")
@click.option("--owner", metavar="USER", help="only tasks of this user")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="how many at most")
@click.option("--all", "everything", is_flag=True, help="as many as there are")
@printed
@connected
def list_tasks(
    client: KolejkaClient, output: Output, *, state: str | None, queue: str | None, labels: Sequence[str],
    name: str | None, owner: str | None, limit: int, everything: bool,
) -> None:  # fmt: skip
    """List tasks, newest first.

    \b
    Examples:
      kolejka-client task list --state waiting
      kolejka-client task list --label course=algorithms --json
    """
    pairs = [label.partition("=") for label in labels]
    if any(not key or not equals for key, equals, _ in pairs):
        raise InputError("a label is written KEY=VALUE", field="--label")
    tasks = client.tasks(
        state=state, queue=queue, labels={key: value for key, _, value in pairs}, name=name, owner=owner,
        limit=None if everything else limit,
    )  # fmt: skip
    output.listing(tasks, COLUMNS, key="id")


@task.command("show")
@click.argument("id")
@printed
@connected
def show(client: KolejkaClient, id: str, output: Output) -> None:
    """Show a task: its state, its spec, and every attempt at it."""
    output.thing(client.task(client.find(id)), key="id")


@task.command("why")
@click.argument("id")
@click.option("--json", "as_json", is_flag=True, help="print JSON, for programs")
@connected
def why(client: KolejkaClient, id: str, *, as_json: bool) -> None:
    """Say in words why a task is where it is: what it waits for, where it runs, how it ended."""
    answer = client.why(client.find(id))
    if as_json:
        Output(as_json=True).thing(answer, key="why")
        return
    click.echo(printable(answer.get("why") or ""))
    reasons = [printable(reason) for reason in answer.get("reasons") or [] if reason != answer.get("why")]
    for reason in reasons:
        click.echo(f"  {reason}")


@task.command("cancel")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@printed
@connected
def cancel(client: KolejkaClient, ids: Sequence[str], output: Output) -> None:
    """Cancel tasks: waiting ones are done at once, running ones are killed on their nodes."""
    found = [client.find(selector) for selector in ids]  # all of them, before the first is touched
    tasks = [client.cancel(task_id) for task_id in found]
    output.listing(tasks, COLUMNS, key="id")


@task.command("delete")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@connected
def delete(client: KolejkaClient, ids: Sequence[str]) -> None:
    """Forget tasks that are done, with their results."""
    found = [client.find(selector) for selector in ids]  # all of them, before the first is touched
    for task_id in found:
        client.delete(task_id)

"""``task``: put, list, show, why, cancel, retry, delete."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from kolejka.cli.options import limit_options
from kolejka.client import arrays
from kolejka.client.cli.connection import connected
from kolejka.client.cli.each import each
from kolejka.client.cli.output import JSON, Output, field, limits_in_words, moment, printed
from kolejka.client.cli.progress import Bar
from kolejka.client.cli.selection import selecting
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
SHOWN = ("id", "name", "state", "outcome", "limit", "result", "owner", "queue", "priority", "image", "node", "lease")
ATTEMPTS = (
    ("LEASE", field("lease")),
    ("NODE", field("node")),
    ("STATE", lambda attempt: attempt.get("outcome") or attempt.get("state")),
    ("STARTED", moment("started_at")),
    ("FINISHED", moment("finished_at")),
    ("MESSAGE", field("message")),
)


@click.group()
def task() -> None:
    """Put, list, inspect, cancel, retry and delete tasks.

    Wherever a command takes an ID, the start of one is enough while only one task's id starts so, and `last` is the
    newest task of yours.
    """


@task.command("put")
@click.argument("folders", metavar="DIR...", nargs=-1, required=True)
@click.option("--array", "parameters", metavar="FILE", help="put DIR once for each set of parameters in FILE")
@limit_options
@printed
@connected
def put(client: KolejkaClient, folders: Sequence[str], parameters: str | None, limits: Limits, output: Output) -> None:
    """Put the tasks in the folders DIR... and print their ids, one a line.

    All folders are checked before the first task is put. Up to 10000 tasks go to the server in one call, which puts all
    of them or none. Limits given here and limits of a task merge: the stricter holds.

    With --array, FILE is a CSV file with a line of names, a .json file with a list of objects, or a .jsonl file with an
    object a line. Wherever {name} stands in the task's JSON, the set's text takes its place.

    \b
    Examples:
      kolejka-client task put examples/uname
      kolejka-client task put --time 1min tasks/*
      kolejka-client task put --array seeds.csv my-task     with "args": ["./simulate", "{seed}"]
    """
    if parameters is None and len(folders) == 1:
        _tell(iter([client.put_task(folders[0], limits=limits)]), output)
        return
    if parameters is not None and len(folders) != 1:
        raise InputError("an array is made of one folder", field="--array")
    count = sum(1 for _ in _read(folders, parameters))  # every one is checked before the first is put
    known: dict[str, str] = {}
    with Bar("putting tasks", count) as bar:
        tasks = client.put_many(
            (place, client.upload_files(task, folder, known=known).replace(limits=task.limits.merge(limits)))
            for place, folder, task in bar.each(_read(folders, parameters))
        )
        _tell(tasks, output)


def _tell(tasks: Iterator[dict[str, Any]], output: Output) -> None:
    if output.as_json:
        output.listing(tasks, COLUMNS, key="id")
        return
    for task in tasks:
        click.echo(printable(task["id"]))


def _read(folders: Sequence[str], parameters: str | None) -> Iterator[tuple[str, str, Task]]:
    """Where each task comes from, its folder, itself."""
    for folder in folders:
        if parameters is None:
            yield folder, folder, Task.load(Path(folder))
        else:
            for place, task in arrays.tasks(Path(folder), Path(parameters)):
                yield place, folder, task


@task.command("list")
@click.option("--state", type=click.Choice([str(s) for s in TaskState]), help="only tasks in this state")
@selecting
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="how many at most")
@click.option("--all", "everything", is_flag=True, help="as many as there are")
@printed
@connected
def list_tasks(
    client: KolejkaClient, output: Output, selection: dict[str, Any], *, state: str | None, limit: int, everything: bool
) -> None:
    """List tasks, newest first.

    \b
    Examples:
      kolejka-client task list --state waiting
      kolejka-client task list --label course=algorithms --json
    """
    tasks = client.tasks(state=state, limit=None if everything else limit, **selection)
    output.listing(tasks, COLUMNS, key="id")


@task.command("show")
@click.argument("id")
@printed
@connected
def show(client: KolejkaClient, id: str, output: Output) -> None:
    """Show a task: its state, its spec, and every attempt at it."""
    shown = client.task(client.find(id))
    if output.as_json or output.quiet:
        output.thing(shown, key="id")
        return
    spec, attempts = dict(shown.get("spec") or {}), list(shown.get("attempts") or [])
    call = dict(shown.get("callback") or {})
    facts = {
        **{name: shown.get(name) for name in SHOWN},
        **{name: moment(f"{name}_at")(shown) for name in ("created", "started", "finished", "cancel")},
        "labels": " ".join(f"{key}={value}" for key, value in dict(shown.get("labels") or {}).items()),
        "args": shlex.join(map(str, spec.get("args") or [])),
        "limits": limits_in_words(dict(spec.get("limits") or {})),
        "files": " ".join(dict(spec.get("files") or {})),
        **{name: spec.get(name) for name in spec if name not in {*shown, "args", "limits", "files", "callback_url"}},
    }
    if call:
        state = call.get("answer") or "not tried"
        facts["callback"] = f"{call.get('url')} ({call.get('tries')} tries, {state})"
    output.thing({name: fact for name, fact in facts.items() if fact not in (None, "", {}, [])}, key="id")
    if attempts:
        click.echo()
        output.listing(attempts, ATTEMPTS, key="lease")


@task.command("why")
@click.argument("id")
@JSON
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
def cancel(client: KolejkaClient, ids: Sequence[str], output: Output) -> int:
    """Cancel tasks: waiting ones are done at once, running ones are killed on their nodes.

    One that is done already is told of, and the others are cancelled all the same.
    """
    found = [client.find(selector) for selector in ids]  # all of them, before the first is touched
    return each(found, client.cancel, lambda tasks: output.listing(tasks, COLUMNS, key="id"))


@task.command("retry")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@printed
@connected
def retry(client: KolejkaClient, ids: Sequence[str], output: Output) -> int:
    """Put done tasks once more, as new tasks, and print those.

    A task that is done stays as it is, with its result and its attempts. The new one has the label retry_of, with the
    id of the old one: `task list --label retry_of=ID` shows it.
    """
    found = [client.find(selector) for selector in ids]  # all of them, before the first is touched
    return each(found, client.retry, lambda tasks: output.listing(tasks, COLUMNS, key="id"))


@task.command("delete")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@JSON
@connected
def delete(client: KolejkaClient, ids: Sequence[str], *, as_json: bool) -> int:
    """Forget tasks that are done, with their results."""

    def forget(task_id: str) -> dict[str, Any]:
        client.delete(task_id)
        return {"id": task_id, "deleted": True}

    found = [client.find(selector) for selector in ids]  # all of them, before the first is touched
    return each(found, forget, Output(as_json).notes)

"""``execute``: put a task, wait for it, bring its result, end as it ended."""

from __future__ import annotations

import functools
import json
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from kolejka.cli.exits import INTERRUPTED, TERMINATED, exit_status
from kolejka.cli.options import limit_options
from kolejka.client.cli.connection import connected
from kolejka.client.cli.progress import Watch, conclude
from kolejka.client.client import KolejkaClient
from kolejka.client.results import check_result_folder
from kolejka.common.errors import KolejkaError
from kolejka.common.limits import Limits
from kolejka.common.task import Task


@click.command()
@click.argument("task_path", metavar="TASK")
@click.argument("result_path", metavar="RESULT")
@click.option("--json", "as_json", is_flag=True, help="print the result's JSON")
@click.option("--quiet", "-q", is_flag=True, help="say nothing about how it goes and how it ended")
@limit_options
@connected
def execute(
    client: KolejkaClient, task_path: str, result_path: str, limits: Limits, *, as_json: bool, quiet: bool
) -> int:
    """Run the task in the folder TASK and bring its result into the folder RESULT.

    RESULT must not exist yet, or be empty. The command waits until the task is done, through a restart of the server
    too, and ends with the task's own exit code; or 124 when time ran out, 137 when memory did, 153 for other limits,
    130 when it was cancelled, 125 when the server or the node failed. Limits given here and limits of the task merge:
    the stricter holds.

    Ctrl-C asks once whether to cancel the task (without a terminal it cancels at once) and exits with 130. SIGTERM
    cancels it without a question and exits with 143.

    \b
    Examples:
      kolejka-client execute examples/uname RESULT
      kolejka-client execute --memory 256M --time 10s my-task my-result && cat my-result/stdout.txt
    """
    check_result_folder(result_path)
    task_id, put = "", None
    try:
        with _terminable(), Watch(quiet=quiet) as watch:
            watch.say("putting the task")
            task = Task.load(Path(task_path))
            task = client.upload_files(task, task_path).replace(limits=task.limits.merge(limits))
            put = functools.partial(client.put_spec, task, key=uuid.uuid4().hex)
            task_id = str(put()["id"])
            watch.say(f"task {task_id} is put")
            result = client.get_result(task_id, result_path, wait=True, progress=watch.listener)
    except KeyboardInterrupt as interrupt:
        if put is not None:
            _interrupted(client, task_id, put, asks=not isinstance(interrupt, _Terminated))
        return TERMINATED if isinstance(interrupt, _Terminated) else INTERRUPTED
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=2))
    conclude(task_id, result, quiet=quiet)
    return exit_status(result)


class _Terminated(KeyboardInterrupt):
    """SIGTERM came."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Within, SIGTERM raises _Terminated, once: a second one ends the process as ever."""

    def terminate(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, before)
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupted(client: KolejkaClient, task_id: str, put: Callable[[], dict[str, Any]], *, asks: bool) -> None:
    """Cancel the task, unless a person at a terminal, who is asked, would rather have it run on.

    Without a ``task_id`` nobody knows whether the server has it: ``put``, said again under the same key, tells.
    """
    try:
        if not task_id:
            client.transport.patience_s = min(client.transport.patience_s, 5.0)
            task_id = str(put()["id"])
        if asks and sys.stdin.isatty() and sys.stderr.isatty():
            try:
                cancel = click.confirm(f"\ncancel task {task_id}?", default=True, err=True)
            except click.Abort:  # a second Ctrl-C: no more questions
                cancel = True
            if not cancel:
                click.echo(f"it goes on; `kolejka result get --wait {task_id} RESULT` brings its result", err=True)
                return
        client.transport.patience_s = min(client.transport.patience_s, 5.0)  # somebody wants to leave
        client.cancel(task_id)
        click.echo(f"task {task_id} is cancelled", err=True)
    except KolejkaError as error:
        click.echo(f"task {task_id} could not be cancelled: {error}", err=True)

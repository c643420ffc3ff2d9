"""``result``: get."""

from __future__ import annotations

import json

import click

from kolejka.cli.exits import exit_status
from kolejka.client.cli.connection import connected, seconds
from kolejka.client.cli.progress import Watch, conclude
from kolejka.client.client import KolejkaClient
from kolejka.client.results import check_result_folder


@click.group()
def result() -> None:
    """Get the results of tasks."""


@result.command("get")
@click.argument("id")
@click.argument("result_path", metavar="RESULT")
@click.option("--wait", is_flag=True, help="wait until the task is done, and end with its exit code")
@click.option("--timeout", metavar="TIME", help="wait for so long at most, such as 30s or 1h (implies --wait)")
@click.option("--json", "as_json", is_flag=True, help="print the result's JSON")
@click.option("--quiet", "-q", is_flag=True, help="say nothing about how it goes and how it ended")
@connected
def get(
    client: KolejkaClient, id: str, result_path: str, *, wait: bool, timeout: str | None, as_json: bool, quiet: bool
) -> int:
    """Bring the result of the task ID into the folder RESULT.

    RESULT must not exist yet, or be empty. With --wait the command ends as `execute` does: with the task's exit code,
    or 124 (time), 137 (memory), 153 (another limit), 130 (cancelled), 125 (the server or the node failed, or --timeout
    passed). Without --wait a task that is not done yet is an error.

    \b
    Examples:
      kolejka-client result get last RESULT
      kolejka-client result get --wait --timeout 10min 01k9 RESULT
    """
    timeout_s = seconds("--timeout", timeout)
    wait = wait or timeout_s is not None
    check_result_folder(result_path)
    task_id = client.find(id)
    with Watch(quiet=quiet) as watch:
        brought = client.get_result(task_id, result_path, wait=wait, timeout_s=timeout_s, progress=watch.listener)
    if as_json:
        click.echo(json.dumps(brought.to_json(), indent=2))
    conclude(task_id, brought, quiet=quiet)
    return exit_status(brought) if wait else 0

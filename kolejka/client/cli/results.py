"""``result``: get, get-many."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from kolejka.cli.exits import INFRASTRUCTURE, exit_status
from kolejka.client.cli.connection import connected, seconds
from kolejka.client.cli.output import Output, field, on_terminal, printed
from kolejka.client.cli.progress import Bar, Watch, conclude
from kolejka.client.cli.selection import selecting
from kolejka.client.client import KolejkaClient
from kolejka.client.many import Brought
from kolejka.client.results import check_result_folder
from kolejka.client.transport import printable
from kolejka.common.errors import InputError
from kolejka.common.files import check_name
from kolejka.common.units import show_size


def _of_result(show: Callable[[Mapping[str, Any]], Any]) -> Callable[[Mapping[str, Any]], Any]:
    """A column that is found in a result's JSON."""
    return lambda row: show(row["result"])


def _figure(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def _memory(result: Mapping[str, Any]) -> str | None:
    most = result["stats"].get("memory", {}).get("max_usage")
    return None if most is None else show_size(most)


COLUMNS = (
    ("ID", field("id")),
    ("OUTCOME", _of_result(lambda result: result.get("limit") or result["outcome"])),
    ("EXIT", _of_result(lambda result: result["result"])),
    ("TIME", _of_result(lambda result: _figure(result["stats"].get("time")))),
    ("CPU", _of_result(lambda result: _figure(result["stats"].get("cpu", {}).get("usage")))),
    ("MEMORY", _of_result(_memory)),
    ("FOLDER", field("folder")),
)


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


@result.command("get-many")
@click.argument("folder", metavar="FOLDER")
@click.argument("ids", metavar="[ID...]", nargs=-1)
@selecting
@click.option("--by-name", is_flag=True, help="name each result's folder by its task's name, not by its id")
@click.option("--wait", is_flag=True, help="wait until all of them are done")
@click.option("--timeout", metavar="TIME", help="wait for so long at most, such as 30s or 1h (implies --wait)")
@printed
@connected
def get_many(
    client: KolejkaClient, folder: str, ids: Sequence[str], selection: dict[str, Any], output: Output,
    *, by_name: bool, wait: bool, timeout: str | None,
) -> int:  # fmt: skip
    """Bring the results of many tasks into FOLDER, each into a folder named by its task's id.

    Which tasks is said by their IDs, or by --label and the other options, as for `task list`. A result that is there
    already is left as it is, so that the command can be said again, after an interrupt or to bring what is done since.

    It prints a line for each result, and ends with 0 when all of them are there, however their tasks ended; with 125
    when some are not (not done yet, or --timeout passed), and says which.

    \b
    Examples:
      kolejka-client task put homework/* > ids && kolejka-client result get-many --wait results $(cat ids)
      kolejka-client result get-many --label course=algorithms --by-name results
    """
    timeout_s = seconds("--timeout", timeout)
    if bool(ids) == bool(selection):
        raise InputError("say which tasks: by their IDs, or by --label, --name, --queue or --owner")
    found = [client.find(word) for word in ids]  # all of them, before the first is brought
    if not found:
        tasks = list(client.tasks(**selection))
    else:
        tasks = [client.task(task_id) if by_name else {"id": task_id} for task_id in found]
    places = _places(Path(folder), tasks, by_name=by_name)
    if places:
        _make(folder)
    with Bar("bringing results", len(places)) as bar:
        brought = list(bar.each(client.get_many(places, wait=wait or timeout_s is not None, timeout_s=timeout_s)))
    shown = [one for one in brought if output.as_json or one.result is not None]
    output.listing((one.to_json() for one in shown), COLUMNS, key="id")
    return _sum_up(brought, quiet=output.quiet)


def _places(folder: Path, tasks: Sequence[dict[str, Any]], *, by_name: bool) -> list[tuple[str, Path]]:
    """Where each result goes. InputError names the task that has no place of its own."""
    places: dict[str, str] = {}
    for task in tasks:
        task_id, name = str(task["id"]), str(task["id"])
        if by_name:
            name = str(task.get("name") or "")
            if not name or "/" in name:
                raise InputError("its name is no name for a folder; leave out --by-name", field=f"task {task_id}")
        try:
            check_name(name)
        except InputError as error:
            raise error.within(f"task {task_id}") from None
        if places.setdefault(name, task_id) != task_id:
            shown = printable(name)
            raise InputError(f"tasks {places[name]} and {task_id} have it both; leave out --by-name", field=shown)
    return [(task_id, folder / name) for name, task_id in places.items()]


def _make(folder: str) -> None:
    try:
        Path(folder).mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot be made: {error.strerror}", field=folder) from None


def _sum_up(brought: Sequence[Brought], *, quiet: bool) -> int:
    """Say what is missing, and on a terminal how all of it went."""
    missing = [one.error for one in brought if one.error is not None]
    for error in missing:
        click.echo(printable(error), err=True)
    if on_terminal() and not quiet:
        outcomes = Counter(str(one.result.outcome) for one in brought if one.result is not None)
        words = [f"{count} {outcome}" for outcome, count in outcomes.most_common()]
        words += [f"{len(missing)} missing"] if missing else []
        click.echo(f"{len(brought)} tasks: {', '.join(words) or 'none'}", err=True)
    return INFRASTRUCTURE if missing else 0

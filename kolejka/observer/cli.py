"""``kolejka-observer``: serve (the default), run one command in a session, doctor."""

from __future__ import annotations

import json
import signal
from typing import Any, NoReturn

import click

from kolejka.cli.doctor import report
from kolejka.cli.exits import exit_status
from kolejka.cli.options import limit_options, main, refuse_options_before, settings_options
from kolejka.common.errors import InputError
from kolejka.common.files import write_json
from kolejka.common.limits import Limits
from kolejka.common.settings import ObserverSettings


@click.group(invoke_without_command=True)
@settings_options(ObserverSettings)
@click.pass_context
def command(context: click.Context, observer: ObserverSettings) -> None:
    """Keep accounted, limited sessions of processes, for programs that ask through a unix socket.

    Without a subcommand the observer serves, until SIGTERM. Sessions open then stay: the next start finds them.
    """
    refuse_options_before(context, "serve")
    context.obj = observer
    if context.invoked_subcommand is None:
        _serve(observer)


@command.command()
@settings_options(ObserverSettings)
def serve(observer: ObserverSettings) -> None:
    """Serve until SIGTERM."""
    _serve(observer)


@command.command("run", context_settings={"allow_interspersed_args": False})
@limit_options
@click.option("--stats-file", metavar="FILE", default=None, help="file to write the figures to; - = standard error")
@click.option(
    "--observer",
    "socket",
    metavar="SOCKET",
    default="",
    help="the observer's socket; absent = the usual one if it serves, else a session of one's own",
)
@click.argument("args", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def run_in_session(
    settings: ObserverSettings, args: tuple[str, ...], limits: Limits, stats_file: str | None, socket: str
) -> int:
    """Run a command in a session of its own, with limits: kolejka-observer run --memory 64M --time 1s -- CMD ARGS.

    Ends as the command does; 124 when a time limit, 137 when the memory limit ended it.
    """
    from kolejka.observer.access import connect
    from kolejka.observer.run import run_command

    sessions = connect(socket, cgroup=settings.cgroup)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        finished = run_command(sessions, args, limits)
    finally:
        stop = getattr(sessions, "stop", None)
        if stop is not None:  # a registry of our own
            stop()
    if stats_file == "-":
        click.echo(json.dumps(finished.to_json()), err=True)
    elif stats_file is not None:
        try:
            write_json(stats_file, finished.to_json())
        except OSError as error:
            raise InputError(f"cannot be written: {error.strerror}", field=stats_file) from None
    if finished.message is not None:
        click.echo(f"kolejka-observer: {finished.message}", err=True)
    return exit_status(finished.result)


@command.command()
@click.option("--json", "as_json", is_flag=True, help="as JSON, for programs")
@click.pass_obj
def doctor(settings: ObserverSettings, as_json: bool) -> int:
    """Tell what this machine lacks for sessions, and the command that gives it."""
    from kolejka.observer.doctor import checks

    return report(checks(settings), as_json=as_json)


def _serve(settings: ObserverSettings) -> None:
    from kolejka.observer.daemon import serve as serve_until_stopped

    serve_until_stopped(settings)


def _interrupt(_number: int, _frame: Any) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(128 + signal.SIGTERM)


def run() -> NoReturn:
    """The program."""
    main(command, "kolejka-observer")

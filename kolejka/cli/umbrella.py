"""``kolejka``: all programs under one name.

``up``, ``doctor`` and ``completion`` are its own. ``server``, ``foreman``, ``observer`` and ``worker`` become those
programs; every other word is a command of ``kolejka-client``.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

import click

from kolejka.cli.completion import complete_umbrella, completion_command, variable
from kolejka.cli.options import main
from kolejka.cli.programs import PROGRAMS, program

OWN: Final = ("up", "doctor", "completion")
SHARED: Final = ("doctor", "completion")
"""those of which the client has one, too"""


@click.group()
def command() -> None:
    """Kolejka: a strict, measured task system for clusters.

    \b
    Try it on this machine (as root):
      kolejka up                                run a server, an observer and a foreman
      kolejka execute examples/uname RESULT     run a task and bring its result, in another terminal

    \b
    Tasks and results, as in kolejka-client:
      execute  task  result  events  blob  node  queue  login  whoami  token  user  audit  callback

    \b
    The programs themselves (`kolejka worker --help` is `kolejka-worker --help`):
      client  server  foreman  observer  worker
    """


@command.command("up")
@click.option("--data", metavar="DIR", help="folder for all data and logs [default: the usual places]")
@click.option("--port", metavar="PORT", help="port of the server; 0 = any free one [default: the server's setting]")
@click.option("--no-node", is_flag=True, help="start the server only; needs no root")
def up(data: str | None, port: str | None, *, no_node: bool) -> int:
    """Run all of Kolejka on this machine: a server on the loopback, an observer and a foreman.

    Says when everything is ready, and what to try first. Ctrl-C stops everything: running tasks get a moment to
    finish. When one part dies, the others are stopped and its last words are shown; the logs stand below DIR/logs.
    """
    from kolejka.cli import up as starter

    return starter.up(data=data, port=port, node=not no_node)


@command.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="print JSON, for programs")
def doctor(*, as_json: bool) -> int:
    """Say what this machine has and lacks for every program, and what gives it. Ends with 1 if something is missing."""
    from kolejka.cli.doctor import report
    from kolejka.cli.doctor_all import checks

    return report(checks(), as_json=as_json)


command.add_command(completion_command("kolejka"))


def target(words: Sequence[str]) -> list[str] | None:
    """The program that these words of the command line mean, or ``None`` where they mean this one."""
    if not words or words[0] in OWN or words[0].startswith("-"):
        return None
    if words[0] in PROGRAMS:
        return program(words[0], *words[1:])
    return program("client", *words)


def run() -> NoReturn:
    """The program's entry point."""
    shell, _, what = os.environ.get(variable("kolejka"), "").partition("_")
    if what == "complete":
        sys.exit(complete_umbrella(shell, command.commands, SHARED, program))
    other = target(sys.argv[1:])
    if other is not None:
        # Importing a program takes a while, in which Ctrl-C would be a traceback: it waits for ``main`` to answer it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        os.execv(other[0], other)
    main(command, "kolejka")

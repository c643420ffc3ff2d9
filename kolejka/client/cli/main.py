"""``kolejka-client``: every command on one screen."""

from __future__ import annotations

from typing import NoReturn

import click

from kolejka.cli.options import main
from kolejka.client.cli import access, blobs, completion, doctor, events, execute, nodes, queues, results, tasks


@click.group()
def command() -> None:
    """Put tasks to a Kolejka server and get their results.

    A task is a folder with a kolejka_task.json; a result is a folder with a kolejka_result.json.

    \b
    First steps:
      kolejka-client login --server https://kolejka.example   keep a token for a server
      kolejka-client doctor                                   see whether everything is in place
      kolejka-client execute examples/uname RESULT            run a task and bring its result

    Without a server of your own, `kolejka up` starts one on this machine, and no login is needed.
    """


command.add_command(execute.execute)
command.add_command(tasks.task)
command.add_command(results.result)
command.add_command(blobs.blob)
command.add_command(nodes.node)
command.add_command(queues.queue)
command.add_command(access.login)
command.add_command(access.whoami)
command.add_command(access.token)
command.add_command(access.user)
command.add_command(access.audit)
command.add_command(access.callback)
command.add_command(events.events)
command.add_command(doctor.doctor)
command.add_command(completion.completion)


def run() -> NoReturn:
    """The program's entry point."""
    main(command, "kolejka-client")

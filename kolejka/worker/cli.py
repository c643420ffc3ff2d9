"""``kolejka-worker``: run one task on this machine, look after its images, ask what it lacks."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from kolejka.cli.doctor import report
from kolejka.cli.exits import exit_status
from kolejka.cli.options import limit_options, main, settings_options
from kolejka.common.checks import Check
from kolejka.common.errors import KolejkaError
from kolejka.common.files import usual_modes
from kolejka.common.limits import Limits
from kolejka.common.result import Outcome
from kolejka.common.settings import WorkerSettings
from kolejka.common.units import show_size


@click.group()
def command() -> None:
    """Run tasks on this machine, without server or foreman."""


class Interrupts:
    """SIGINT and SIGTERM as orders to cancel."""

    def __init__(self) -> None:
        self._ordered = False
        self._reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)
        signal.set_wakeup_fd(writer)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._ordered = True

    def fileno(self) -> int:
        """Readable after a signal."""
        return self._reader

    def read(self) -> Outcome | None:
        """Cancelled, after a signal."""
        return Outcome.CANCELLED if self._ordered else None


@command.command()
@click.argument("task", type=click.Path(path_type=Path))
@click.argument("result", type=click.Path(path_type=Path))
@settings_options(WorkerSettings)
@limit_options
def execute(task: Path, result: Path, worker: WorkerSettings, limits: Limits) -> int:
    """Run the task in folder TASK and write its result to the new folder RESULT. Ends as the task did."""
    from kolejka.worker.job import Job
    from kolejka.worker.perform import Tools, perform

    sessions_log = logging.getLogger("kolejka.observer")
    if sessions_log.getEffectiveLevel() == logging.INFO:  # the result says what the sessions of our own would log
        sessions_log.setLevel(logging.WARNING)
    tools = Tools(worker, orders=Interrupts())
    return exit_status(perform(Job(task=task, result=result, limits=limits, runtime=worker.runtime), tools))


@command.command()
@click.option("--json", "as_json", is_flag=True, help="as JSON, for programs")
@settings_options(WorkerSettings)
def doctor(as_json: bool, worker: WorkerSettings) -> int:
    """Say what this machine lacks to run tasks, and how to get it."""
    return report(check_machine(worker), as_json=as_json)


def check_machine(worker: WorkerSettings) -> list[Check]:
    """All checks. One working runtime is enough, so what only the other one lacks is a warning."""
    from kolejka.worker.perform import Tools

    tools = Tools(worker)
    found = {runtime.name: list(runtime.check()) for runtime in tools.runtimes.values()}
    some = any(all(check.ok for check in checks) for checks in found.values())
    checks = [
        Check(f"{name}: {check.check}", check.ok, check.message, check.cure, check.required and not some)
        for name, its in found.items()
        for check in its
    ]
    checks.append(tools.gpus.check())
    try:
        sessions = type(tools.sessions).__name__
        words = "an observer serves" if sessions.startswith("Remote") else "control groups may be made here"
        checks.append(Check("sessions", True, words))
    except KolejkaError as error:
        checks.append(Check("sessions", False, str(error), "kolejka-observer"))
    try:
        worker.data.mkdir(parents=True, exist_ok=True)
        writable = os.access(worker.data, os.W_OK)
        checks.append(Check("data", writable, f"{worker.data}", "name a folder of yours with --data"))
    except OSError as error:
        checks.append(Check("data", False, f"{worker.data}: {error.strerror}", "name a folder of yours with --data"))
    return checks


@command.group()
def image() -> None:
    """The images that the sandbox runs."""


@image.command("import")
@click.argument("name")
@click.argument("source", type=click.Path(path_type=Path))
@settings_options(WorkerSettings)
def import_image(name: str, source: Path, worker: WorkerSettings) -> None:
    """Bring image NAME in from SOURCE: a root tarball, a docker archive, an OCI layout."""
    from kolejka.worker.runtimes.images import Store

    with usual_modes():
        about = Store(worker.data / "images").add(name, source)
    click.echo(f"{about['name']} {show_size(about['size'])}")


@image.command("list")
@settings_options(WorkerSettings)
def list_images(worker: WorkerSettings) -> None:
    """List the images."""
    from kolejka.worker.runtimes.images import Store

    for about in Store(worker.data / "images").list():
        click.echo(f"{about['name']} {show_size(about['size'])}")


@image.command("drop")
@click.argument("name")
@settings_options(WorkerSettings)
def drop_image(name: str, worker: WorkerSettings) -> None:
    """Remove image NAME."""
    from kolejka.worker.runtimes.images import Store

    Store(worker.data / "images").drop(name)


def run() -> NoReturn:
    """The program's entry point."""
    main(command, "kolejka-worker")

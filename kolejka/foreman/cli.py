"""``kolejka-foreman``: claim tasks for this node and run them, until told to stop.

The main thread does nothing but wait: signals and the foreman's end reach it as bytes in one pipe (a signal handler
that did more could meet a lock half taken). The first SIGTERM or SIGINT drains, the second stops.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, Final, NoReturn

import click

from kolejka.cli.options import main, refuse_options_before, settings_options
from kolejka.common import systemd
from kolejka.common.enrolment import approval
from kolejka.common.errors import KolejkaError
from kolejka.common.files import USUAL_UMASK
from kolejka.common.settings import ClientSettings, ForemanSettings, WorkerSettings
from kolejka.foreman import enrol
from kolejka.foreman.about import machine_words
from kolejka.foreman.daemon import Foreman
from kolejka.foreman.leftovers import instance, locked
from kolejka.foreman.lines import Lines
from kolejka.foreman.prove import prove
from kolejka.foreman.reboot import reboot_words
from kolejka.foreman.state import write_state

logger = logging.getLogger(__name__)

STATUS_S: Final = 10.0
"""how often the service manager is told how it goes, unless its watchdog wants to hear more often"""
PATIENCE_S: Final = 2.0
"""how long one request is repeated by the client; beyond that the foreman's own loops try again, and can be woken"""
_END: Final = b"\0"
_options = settings_options(ForemanSettings, WorkerSettings, ClientSettings, without=("patience",))


@click.group(invoke_without_command=True)
@_options
@click.pass_context
def command(context: click.Context, foreman: ForemanSettings, worker: WorkerSettings, client: ClientSettings) -> None:
    """Run a node: claim tasks from the server, run them under their limits, bring the results back.

    SIGTERM drains: running tasks finish, their results are uploaded. A second one stops: payloads are killed and
    their tasks given back to the server.
    """
    refuse_options_before(context, "doctor", "screen")
    if context.invoked_subcommand is None:
        serve(foreman, worker, client)


@command.command()
@_options
@click.option("--json", "as_json", is_flag=True, help="print the checks as JSON")
def doctor(foreman: ForemanSettings, worker: WorkerSettings, client: ClientSettings, *, as_json: bool) -> int:
    """Say what this machine lacks to be a node, and how to get it."""
    from kolejka.cli.doctor import report
    from kolejka.foreman.doctor import checks

    return report(checks(foreman, worker, client), as_json=as_json)


@command.command()
@settings_options(ForemanSettings)
@click.option("--once", is_flag=True, help="print it once instead of drawing it again and again")
@click.option("--json", "as_json", is_flag=True, help="print it once as JSON, for programs")
def screen(foreman: ForemanSettings, *, once: bool, as_json: bool) -> None:
    """Show what the foreman of this machine is doing: state, running tasks, last errors, how to let it in."""
    from kolejka.foreman.screen import addresses, is_running, read_state, show

    if as_json:
        words = {**read_state(foreman.data), "alive": is_running(foreman.data), "addresses": addresses()}
        click.echo(json.dumps(words, indent=2))
        return

    def pause(seconds: float) -> bool:
        threading.Event().wait(seconds)
        return True

    show(foreman.data, lambda text: click.echo(text, nl=False), pause, once=once)


def serve(foreman: ForemanSettings, worker: WorkerSettings, client: ClientSettings) -> None:
    """Be the foreman of this machine until told to end. InputError, NodeError or NotAllowed when it cannot start."""
    reboot_words(foreman.reboot_command)
    lines = Lines()
    logging.getLogger().addHandler(lines)
    with locked(foreman.data), _signals() as (reader, writer):
        if enrol.is_enrolled(foreman, client):
            if not _let_in(foreman, client, reader, lines):
                return
            client = enrol.with_token(foreman, client)
        systemd.notify("WATCHDOG=1")
        with _last_words(foreman, client):
            daemon = build(foreman, worker, client, lines)
            daemon.start()
        systemd.notify("READY=1", f"STATUS={daemon.status()}")
        threading.Thread(target=_tell_end, args=(daemon, writer), name="tell-end", daemon=True).start()
        _watch(daemon, reader)
        daemon.wait_finished()


@contextmanager
def _last_words(foreman: ForemanSettings, client: ClientSettings) -> Iterator[None]:
    """Leave for the screen why the foreman did not start."""
    try:
        yield
    except KolejkaError as error:
        write_state(foreman.data, {
            "node": foreman.name, "server": client.server, "state": "not started", "reason": str(error),
            **machine_words(),
        })  # fmt: skip
        raise


def _let_in(foreman: ForemanSettings, client: ClientSettings, reader: int, lines: Lines) -> bool:
    """Have a token, if need be by asking for it; False when a signal ended the asking."""
    from kolejka.client.enrolment import Door

    if enrol.token_file(foreman).exists():
        return True
    door = Door(client)
    poll = select.poll()
    poll.register(reader, select.POLLIN)

    def pause(seconds: float) -> bool:
        turn_s = min(systemd.watchdog_s() or STATUS_S, STATUS_S)
        while seconds > 0:
            systemd.notify("WATCHDOG=1")
            if poll.poll(min(seconds, turn_s) * 1000):
                systemd.notify("STOPPING=1")
                return False
            seconds -= turn_s
        return True

    def tell(words: str, shown: str) -> None:
        # For the service manager it is ready: it will wait for an admin, who may come tomorrow.
        systemd.notify("READY=1", f"STATUS={words}")
        write_state(foreman.data, {
            "node": foreman.name, "server": door.transport.server, "state": words, "fingerprint": shown,
            "then_run": approval(foreman.name), **machine_words(), "errors": lines.errors(),
        })  # fmt: skip

    try:
        return enrol.let_in(foreman, door, pause, tell)
    finally:
        door.close()


def build(
    foreman: ForemanSettings, worker: WorkerSettings, client: ClientSettings, lines: Lines | None = None
) -> Foreman:
    """A foreman of this machine, made of its real parts, not started."""
    from kolejka.client.node import NodeClient
    from kolejka.foreman.capacity import detect, offer
    from kolejka.foreman.doctor import usable_gpus, working_runtimes
    from kolejka.foreman.tags import all_tags, automatic_tags
    from kolejka.worker.perform import Tools
    from kolejka.worker.pool import Pool
    from kolejka.worker.runtimes.images import Store

    server = NodeClient(dataclasses.replace(client, patience=min(client.patience, PATIENCE_S)))
    server.instance = instance(foreman.data)
    if client.token_file == str(enrol.token_file(foreman)):
        server.transport.cure = enrol.revoked(foreman)
    machine = detect(worker.data, usable_gpus(worker))
    offered = offer(machine, foreman.capacity, foreman.slots)
    working = working_runtimes(worker)
    tags = all_tags(automatic_tags(machine, working), foreman.tags)
    runtimes = Tools(worker).runtimes
    images = {name: runtimes[name].images for name in working if worker.runtime in {"auto", name}}
    pool = Pool(worker, offered.slots)
    tries = partial(
        prove, runtimes=working, folder=foreman.data / "proof", cpu=offered.cpus[0].number,
        store=Store(worker.data / "images"), tick=lambda: systemd.notify("WATCHDOG=1"),
    )  # fmt: skip
    return Foreman(
        foreman, offered, tags, pool, server, runtime=worker.runtime, images=images, machine=machine_words(),
        lines=lines, address=server.server, prove=tries if foreman.prove else None, work=worker.data,
    )  # fmt: skip


def _watch(daemon: Foreman, reader: int) -> None:
    """Turn signals into what they ask for, and tell the service manager how it goes, until the foreman ends."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    turn_s = min(systemd.watchdog_s() or STATUS_S, STATUS_S) if "NOTIFY_SOCKET" in os.environ else None
    drained = False
    while True:
        if poll.poll(None if turn_s is None else turn_s * 1000):
            for byte in os.read(reader, 64):
                if byte == _END[0]:
                    return
                (daemon.stop if drained else daemon.drain)()
                systemd.notify("STOPPING=1")
                drained = True
        if turn_s is not None and daemon.healthy():
            systemd.notify("WATCHDOG=1", f"STATUS={daemon.status()}")


def _tell_end(daemon: Foreman, writer: int) -> None:
    try:
        daemon.wait_finished()
    finally:
        os.write(writer, _END)


@contextmanager
def _signals() -> Iterator[tuple[int, int]]:
    """A pipe into which every SIGTERM and SIGINT writes its number."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def nothing(number: int, frame: FrameType | None) -> None:
        """The byte in the pipe is all that a handler has to do."""

    before: dict[int, Any] = {number: signal.signal(number, nothing) for number in (signal.SIGTERM, signal.SIGINT)}
    wakeup = signal.set_wakeup_fd(writer)
    try:
        yield reader, writer
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)  # the writing end stays with the thread that may still tell the end


def run() -> NoReturn:
    """The program ``kolejka-foreman``."""
    os.umask(USUAL_UMASK)
    main(command, "kolejka-foreman")

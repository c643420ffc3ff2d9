"""The chaos matrix: what breaks, on which engines, and what is excused by it.

A cell is a function that breaks something while tasks are in flight, waits until the fault has bitten, and mends what
in life somebody or something else mends: it starts a killed program again, as systemd does, or gives disk space back.
Everything else the system must do by itself.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.world import World
from tests.support import wait_until

SQLITE, POSTGRES = "sqlite", "postgres"
BOTH = (SQLITE, POSTGRES)


@dataclass(frozen=True)
class Cell:
    """One fault. ``short`` = the engines on which ``make test`` tries it as well as ``make chaos``."""

    name: str
    breaks: Callable[[World], None]
    engines: tuple[str, ...] = BOTH
    short: tuple[str, ...] = ()
    excused: int = 0
    """tasks for each slot of the node that may end as its error, each time: those it had in hand when it failed"""


def server(world: World) -> None:
    world.kill("server")
    world.start_server()


def one_server_of_two(world: World) -> None:
    victim = world.servers()[0]
    victim.kill()
    wait_until(lambda: not victim.is_running() and len(world.servers()) == 2)


def foreman(world: World) -> None:
    world.kill("foreman")
    world.start_foreman()


def workers(world: World) -> None:
    hears = world.listen("foreman")
    for worker in world.workers():
        worker.kill()
    world.wait_said("foreman", hears, "worker died")


def observer(world: World) -> None:
    world.kill("observer")
    world.start_observer()


def everything(world: World) -> None:
    world.kill("foreman", "observer", "server")
    if world.postgres is not None:
        world.kill_database()
        world.postgres.start()
    world.start_server()
    world.start_observer()
    world.start_foreman()


def database(world: World) -> None:
    assert world.postgres is not None
    world.kill_database()
    world.postgres.start()


def connections(world: World) -> None:
    assert world.postgres is not None
    for _ in range(4):
        assert world.postgres.cut(world.postgres.url("kolejka"))
        world.wait_done(1)


def network_cut(world: World) -> None:
    hears = world.listen("server")
    world.network.cut()
    world.wait_said("server", hears, "attempt lost")
    world.network.mend()


def network_slow(world: World) -> None:
    world.network.slow("1mbit")
    try:
        world.wait_done(4)
    finally:
        world.network.quicken()


def foreman_frozen(world: World) -> None:
    hears = world.listen("server")
    world.programs["foreman"].process.send_signal(signal.SIGSTOP)
    world.wait_said("server", hears, "attempt lost")
    world.programs["foreman"].process.send_signal(signal.SIGCONT)


def blobs_full(world: World) -> None:
    hears = world.listen("server")
    world.disks["blobs"].fill()
    world.wait_said("server", hears, "the blob cannot be stored", "blobs cannot be stored")
    world.disks["blobs"].free()


def spool_full(world: World) -> None:
    hears = world.listen("foreman")
    world.disks["spool"].fill()
    world.wait_said("foreman", hears, "its disk is full")
    world.disks["spool"].free()


def database_full(world: World) -> None:
    hears = world.listen("server")
    world.disks["database"].fill()
    world.wait_said("server", hears, "database write failed")
    world.disks["database"].free()


def log_full(world: World) -> None:
    """The disk of PostgreSQL's write-ahead log: it ends all connections, and cannot start before there is room."""
    assert world.postgres is not None
    world.disks["log"].fill()
    world.postgres.exhaust_log()
    status, words = wait_until(lambda: refused if (refused := world.refusal())[0] != 200 else None, 60)
    assert (status, bool(words), "Traceback" in words) == (503, True, False)
    world.disks["log"].free()
    world.postgres.revive()


def clock(world: World) -> None:
    for days in (1, -1, 0):
        world.clock.set(days * 86400)
        world.wait_done(2)


CELLS = (
    Cell("server", server, short=(SQLITE,)),
    Cell("one server of two", one_server_of_two, (POSTGRES,)),
    Cell("foreman", foreman, short=(SQLITE,)),
    Cell("workers", workers, short=(SQLITE,), excused=1),
    Cell("observer", observer, short=(SQLITE,)),
    Cell("everything", everything),
    Cell("database", database, (POSTGRES,), (POSTGRES,)),
    Cell("connections", connections, (POSTGRES,), (POSTGRES,)),
    Cell("network cut", network_cut, short=(POSTGRES,)),
    Cell("network slow", network_slow, short=(SQLITE,)),
    Cell("foreman frozen", foreman_frozen),
    Cell("blobs full", blobs_full, short=(SQLITE,)),
    Cell("spool full", spool_full, short=(SQLITE,), excused=1),
    Cell("database full", database_full, short=(POSTGRES,)),
    Cell("log full", log_full, (POSTGRES,)),
    Cell("clock", clock, short=BOTH),
)

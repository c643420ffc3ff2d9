"""The chaos matrix: whatever breaks, every accepted task ends with exactly one result, and nobody has to help.

``make test`` tries a selection once; ``make chaos`` (``KOLEJKA_TEST_CHAOS=ROUNDS``) breaks everything, several times
during each load. A fault comes when so many tasks are done, and goes when it has bitten; none of it goes by time.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.faults.cells import BOTH, CELLS, POSTGRES, Cell
from tests.faults.world import World
from tests.neighbours.network import Network

pytestmark = pytest.mark.needs("root", "cgroups", "bwrap", "gcc", "netns")

ROUNDS = int(os.environ.get("KOLEJKA_TEST_CHAOS", "0"))
"""how often each thing breaks; 0 = once, and of the matrix only the selection"""
TASKS = 24


@pytest.fixture(scope="module")
def standing() -> Iterator[dict[str, Standing]]:
    """The one world that stands, by its engine."""
    worlds: dict[str, Standing] = {}
    yield worlds
    for one in worlds.values():
        one.close()


@pytest.fixture
def world(request: pytest.FixtureRequest, standing: dict[str, Standing]) -> Iterator[World]:
    """A world on one engine: the one that stands, unless a cell that failed spoilt it."""
    engine = request.param
    if engine not in standing:
        for other in list(standing):
            standing.pop(other).close()
        standing[engine] = Standing(engine)
    one = standing[engine]
    yield one.world
    if not one.world.whole:
        standing.pop(engine).close()


class Standing:
    """A world with what has to be taken away after it."""

    def __init__(self, engine: str) -> None:
        with ExitStack() as stack:
            folder = Path(tempfile.mkdtemp(prefix=f"kolejka-test-{os.getpid()}-"))
            folder.chmod(0o711)
            stack.callback(shutil.rmtree, folder)
            network = Network()
            stack.callback(network.remove)
            stack.enter_context(network.inside())
            self.world = World(folder, engine, network)
            stack.callback(self.world.raze)
            self.world.build()
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Take it away."""
        self._stack.close()


def matrix() -> list[Any]:
    """Cells by engine: world after world."""
    return [
        pytest.param(engine, cell, id=f"{engine}-{cell.name}",
                     marks=[pytest.mark.needs("postgres")] if engine == POSTGRES else [])
        for engine in BOTH for cell in CELLS if engine in (cell.engines if ROUNDS else cell.short)
    ]  # fmt: skip


@pytest.mark.parametrize(("world", "cell"), matrix(), indirect=["world"])
def test_whatever_breaks_every_accepted_task_ends_with_one_result(world: World, cell: Cell) -> None:
    rounds = max(1, ROUNDS)
    with world.watched(cell.name, cell.excused * len(world.workers()) * rounds) as load:
        for _ in range(rounds):
            load.put(TASKS)
            world.wait_done(4)
            cell.breaks(world)

"""Claims of one node that overlap, fall silent, or are overtaken by a heartbeat: the handlers on a real database."""

from __future__ import annotations

import asyncio
import dataclasses
import types
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from kolejka.common.limits import Limits
from kolejka.common.settings import ServerSettings
from kolejka.common.task import Task
from kolejka.server import intake, prepare
from kolejka.server.api import nodes
from kolejka.server.api.routes import Call
from kolejka.server.auth.roles import Role
from kolejka.server.auth.tokens import Caller
from kolejka.server.deps import Deps, open_deps
from kolejka.server.storage import users
from kolejka.server.storage.base import Store, ask
from tests.support import wait_until

AMOUNTS = {"cpus": 2, "memory": 1 << 30}


class SlowStore:
    """Writes at once, and answers when the test says so."""

    def __init__(self, store: Store) -> None:
        self.real = store
        self.slow = False
        self.kept: list[Callable[[], None]] = []

    def write(self, work: Any) -> Future[Any]:
        done = self.real.write(work)
        if not self.slow:
            return done
        value = done.result()
        answer: Future[Any] = Future()
        self.kept.append(lambda: answer.set_result(value))
        return answer

    def read(self, work: Any) -> Future[Any]:
        return self.real.read(work)

    def close(self) -> None:
        self.real.close()


class World:
    """A server without its door. ``now`` is its clock."""

    def __init__(self, folder: Path) -> None:
        settings = ServerSettings(data=folder, heartbeat=60.0)
        prepare.prepare(settings)
        self.now = 1000.0
        deps = open_deps(settings, clock=lambda: self.now, steady=lambda: self.now)
        self.store = SlowStore(deps.store)
        self.deps: Deps = dataclasses.replace(deps, store=self.store)
        user_id = self.store.write(lambda db: users.add_user(db, "smith", Role.NODE.value, self.now)).result()
        self.smith = Caller(user_id, "smith", Role.NODE, 0)

    def put(self, **words: Any) -> None:
        """A task of one CPU."""
        task = Task.parse({"args": ["true"], **words})
        considered = intake.consider(task, defaults=Limits.of(cpus=1, memory="64M"), ceilings=Limits())
        self.store.real.write(lambda db: intake.put(db, considered, self.smith, None, self.now)).result()

    async def ask(self, handler: Any, **words: Any) -> Any:
        body = {"node": "anvil", "tags": [], "total": AMOUNTS, "capacity": AMOUNTS, **words}
        request: Any = types.SimpleNamespace(scope={})
        return (await handler(self.deps, Call(request, {}, {}, body, self.smith))).json

    def claim(self, **words: Any) -> asyncio.Task[Any]:
        return asyncio.ensure_future(self.ask(nodes.claim, **{"slots": 2, "wait": 1000, "idle": True, **words}))

    async def beat(self, **words: Any) -> None:
        await self.ask(nodes.heartbeat, **{"leases": [], **words})

    async def looked(self) -> None:
        """Those who came have looked at the database."""
        await asyncio.to_thread(str)  # they get their turn
        await ask(self.store.write(lambda _db: None))

    async def until(self, condition: Callable[[], object]) -> None:
        await asyncio.to_thread(wait_until, condition)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "data")
    yield made
    made.store.close()


def run(world: World, body: Coroutine[Any, Any, None]) -> None:
    async def connected() -> None:
        world.deps.bridge.connect(asyncio.get_running_loop())
        await body
        world.deps.bridge.connect(None)

    asyncio.run(asyncio.wait_for(connected(), 20))


def count(answer: Any) -> int:
    return len(answer["attempts"])


def test_only_the_newest_claim_of_a_node_is_given_what_comes(world: World) -> None:
    async def body() -> None:
        claims = []
        for _ in range(3):
            claims.append(world.claim())
            await asyncio.to_thread(str)
        assert [count(await claim) for claim in claims[:2]] == [0, 0]
        for _ in range(3):
            world.put()
        assert count(await claims[2]) >= 1

    run(world, body())


def test_what_an_older_claim_took_while_a_newer_was_on_its_way_is_not_offered_again(world: World) -> None:
    async def body() -> None:
        world.put()
        world.store.slow = True
        older = world.claim()
        await world.until(lambda: world.store.kept)  # it has its task, and its answer is not out yet
        world.put()
        world.put()
        newer = world.claim()
        await asyncio.to_thread(str)
        world.store.slow = False
        world.store.kept.pop()()
        assert count(await older) == 1
        assert count(await newer) == 1, "two CPUs, and one of them was given"

    run(world, body())


def test_a_claim_whose_turn_comes_after_a_newer_arrived_takes_nothing(world: World) -> None:
    async def body() -> None:
        older = world.claim()
        newer = world.claim()
        world.put()
        assert (count(await older), count(await newer)) == (0, 1)

    run(world, body())


@pytest.mark.parametrize("state", ["draining", "quarantined"])
def test_a_heartbeat_that_is_not_active_ends_the_open_claim_and_no_claim_makes_the_node_active(
    world: World, state: str
) -> None:
    async def body() -> None:
        await world.beat(state="active")
        claim = world.claim()
        await world.looked()
        await world.beat(state=state)
        assert count(await claim) == 0
        world.put()
        assert count(await world.claim()) == 0
        shown = world.store.read(lambda db: db.row("SELECT state FROM nodes")).result()
        assert shown == (state,)
        await world.beat(state="active")
        assert count(await world.claim()) == 1

    run(world, body())


def test_the_old_poll_of_a_node_that_fell_silent_gets_nothing_and_the_task_goes_to_another(world: World) -> None:
    async def body() -> None:
        silent = world.claim()
        await world.looked()
        world.now += 40
        alive = world.claim(node="alive")
        await world.looked()
        world.now += 40
        await world.beat(node="alive")
        world.put()
        assert count(await alive) == 1
        silent.cancel()

    run(world, body())


def test_a_poll_that_is_woken_after_its_node_fell_silent_ends_with_nothing(world: World) -> None:
    async def body() -> None:
        silent = world.claim()
        await world.looked()
        world.now += 61
        world.put()
        world.deps.wakes.node_changed("anvil")
        assert count(await silent) == 0

    run(world, body())


def test_heartbeats_keep_an_old_poll_alive(world: World) -> None:
    async def body() -> None:
        claim = world.claim()
        await world.looked()
        for _ in range(3):
            world.now += 59
            await world.beat()
        world.put()
        assert count(await claim) == 1

    run(world, body())

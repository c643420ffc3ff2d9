"""Every storage engine, for the suite that each must pass: what a test needs comes by ``make_store`` and ``store``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kolejka.common.limits import Limits
from kolejka.common.result import Outcome, Result
from kolejka.common.task import Task
from kolejka.server import intake
from kolejka.server.auth.roles import Role
from kolejka.server.auth.tokens import Caller
from kolejka.server.scheduling import claims
from kolejka.server.scheduling.claims import Claim, Claimed, Handed
from kolejka.server.scheduling.classes import Classes
from kolejka.server.scheduling.match import NOTHING_AHEAD, Ahead, Offer
from kolejka.server.scheduling.rules import Moment, Rules
from kolejka.server.storage import users
from kolejka.server.storage.base import Announcement, Connection, Listener, Store
from kolejka.server.storage.nodes import NodeWords
from kolejka.server.storage.postgres import PostgresStore
from kolejka.server.storage.sqlite import SqliteStore, migrate

MakeStore = Callable[[Listener], Store]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.needs("postgres"))])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeStore]:
    """Open the same database again and again: with the next listener, after the store before was closed."""
    opened: list[Store] = []
    if request.param == "postgres":
        server = request.getfixturevalue("postgres")
        url = server.migrated()
    else:
        migrate(tmp_path / "kolejka.sqlite")

    def make(listener: Listener) -> Store:
        if request.param == "postgres":
            opened.append(PostgresStore(url, listener))
        else:
            opened.append(SqliteStore(tmp_path / "kolejka.sqlite", listener))
        return opened[-1]

    yield make
    for store in opened:
        store.close()
    if request.param == "postgres":
        server.drop(url)


@pytest.fixture
def announced() -> list[Announcement]:
    """What the store has announced."""
    return []


@pytest.fixture
def classes() -> Classes:
    """What the server process knows."""
    return Classes()


@pytest.fixture
def store(make_store: MakeStore, announced: list[Announcement], classes: Classes) -> Store:
    """An empty database."""

    def listen(announcements: Sequence[Announcement]) -> None:
        announced.extend(announcements)
        classes.heard(announcements)

    return make_store(listen)


@dataclass
class Cluster:
    """A database, a clock that stands still until told, and short words for what users and nodes do."""

    store: Store
    classes: Classes = field(default_factory=Classes)
    rules: Rules = field(default_factory=lambda: Rules(heartbeat_s=60, deadline_margin_s=120, attempts=3))
    wall: float = 1_700_000_000.0
    steady: float = 1_700_000_000.0
    hears: bool = False
    """``classes`` are told what the store announces; else each claim looks."""

    @property
    def now(self) -> Moment:
        return Moment(self.wall, self.steady)

    def sleep(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds

    def user(self, name: str, role: Role = Role.CLIENT) -> Caller:
        user_id = self.store.write(lambda db: users.add_user(db, name, role.value, self.wall)).result()
        return Caller(user_id, name, role, 0)

    def put(self, caller: Caller, *, key: str | None = None, count: int = 1, **words: object) -> list[str]:
        considered = intake.consider(
            Task.parse({"args": ["true"], **words}),
            defaults=Limits.of(cpus=1, memory="64M", time="10s"), ceilings=Limits(),
        )  # fmt: skip
        return self.store.write(
            lambda db: [intake.put(db, considered, caller, key, self.wall)[0] for _ in range(count)]
        ).result()

    def put_kinds(self, caller: Caller, kinds: Sequence[dict[str, object]]) -> None:
        """One task of each kind, all in one transaction."""
        considered = [
            intake.consider(
                Task.parse({"args": ["true"], **words}), defaults=Limits.of(cpus=1, memory="64M", time="10s"),
                ceilings=Limits(),
            )
            for words in kinds
        ]  # fmt: skip
        self.store.write(lambda db: [intake.put(db, one, caller, None, self.wall) for one in considered]).result()

    def claim(
        self, caller: Caller, node: str = "anvil", *, slots: int = 16, tags: list[str] = [], idle: bool = False,
        queues: list[str] = [], total: dict[str, object] = {}, free: dict[str, object] = {}, turn: int | None = None,
        knows: list[int] | None = None, ahead: Ahead = NOTHING_AHEAD,
    ) -> Claimed:  # fmt: skip
        amounts = Limits.of(**{"cpus": 64, "memory": "64G", **total})
        offer = Offer(frozenset(tags), amounts, Limits.of(**{**amounts.values, **free}), idle)
        words = NodeWords(node, "active", tuple(tags), dict(amounts.values), dict(offer.free.values))
        request = Claim(caller.user_id, words, offer, slots, frozenset(queues), turn=turn or 0,
                        knows=None if knows is None else frozenset(knows), ahead=ahead)  # fmt: skip

        def work(db: Connection) -> Claimed:
            if not self.hears:
                self.classes.refresh(db)
            return claims.claim(db, request, self.rules, self.classes, self.now, arrives=turn is None)

        return self.store.write(work).result()

    def heartbeat(self, caller: Caller, leases: list[int], node: str = "anvil") -> claims.Beat:
        words = NodeWords(node, "active", (), {}, {})
        return self.store.write(lambda db: claims.heartbeat(db, words, caller.user_id, leases, self.now)).result()

    def finish(self, caller: Caller, lease: int, outcome: Outcome = Outcome.OK, **words: object) -> str:
        handed = Handed.of(Result(outcome, **{"result": 0 if outcome is Outcome.OK else None, **words}))  # type: ignore[arg-type]
        return self.store.write(lambda db: claims.accept(db, lease, caller.user_id, handed, self.now)).result()[1]

    def rescue(self) -> list[claims.Rescued]:
        return self.store.write(lambda db: claims.rescue(db, self.rules, self.now)).result()


@pytest.fixture
def cluster(store: Store, classes: Classes) -> Cluster:
    """A cluster without anybody in it."""
    return Cluster(store, classes, hears=True)


@pytest.fixture
def ala(cluster: Cluster) -> Caller:
    """A user."""
    return cluster.user("ala")


@pytest.fixture
def smith(cluster: Cluster) -> Caller:
    """The user of nodes."""
    return cluster.user("smith", Role.NODE)

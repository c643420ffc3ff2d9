"""Databases that earlier servers wrote are opened for ever, and life in them goes on."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from kolejka.common.errors import NodeError
from kolejka.common.limits import Limits
from kolejka.common.result import Outcome, Result
from kolejka.server.auth import tokens
from kolejka.server.auth.roles import Role
from kolejka.server.scheduling import claims
from kolejka.server.scheduling.claims import Claim, Handed
from kolejka.server.scheduling.classes import Classes
from kolejka.server.scheduling.match import Offer
from kolejka.server.scheduling.rules import Moment, Rules
from kolejka.server.storage import blobs, leases, sqlite, tasks, users
from kolejka.server.storage.nodes import NodeWords
from kolejka.server.storage.sqlite import SqliteStore, migrate

DUMPS = sorted(Path(__file__).parent.glob("schema_*.sql"))
NOW = Moment(1_700_000_100.0, 1_700_000_100.0)


@pytest.fixture(params=DUMPS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A database as a server of that schema left it."""
    path = tmp_path / "kolejka.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(request.param.read_text(encoding="utf-8"))
    connection.close()
    return path


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    """The same, opened by this version."""
    migrate(path)
    store = SqliteStore(path)
    yield store
    store.close()


def test_there_is_a_dump_of_every_schema() -> None:
    steps = list((Path(sqlite.__file__).parent / "migrations").glob("[0-9]*.py"))
    assert len(DUMPS) == len(steps)


def test_tasks_results_and_tokens_are_read(store: SqliteStore) -> None:
    waiting, running, done = store.read(lambda db: tasks.listing(db, tasks.Filters())).result()
    assert (done["name"], done["state"], done["outcome"], done["image"]) == ("done", "done", "ok", "ubuntu:xenial")
    assert (running["name"], running["state"], running["node"]) == ("lost once then running", "running", "forge")
    assert (waiting["name"], waiting["state"], waiting["rank"]) == ("waiting", "waiting", -5)
    result = Result.parse(json.loads(store.read(lambda db: tasks.result(db, done["number"])).result()))
    assert (result.outcome, result.stats.time, result.manifest["out"].size) == (Outcome.OK, 1.5, 3)
    assert [
        one["state"] for one in store.read(lambda db: leases.history(db, running["number"])).result()
    ] == ["lost", "running"]  # fmt: skip
    labelled = tasks.Filters(labels=(("exam", "1"),))
    assert [row["id"] for row in store.read(lambda db: tasks.listing(db, labelled)).result()] == [done["id"]]
    token = store.read(lambda db: users.find_token(db, tokens.digest("klj_" + "A" * 43))).result()
    assert token is not None
    assert (token.user, token.role, token.name) == ("ala", Role.CLIENT, "laptop")
    assert store.read(lambda db: tasks.ids_by_keys(db, token.user_id, ["once"])()).result() == {
        "once": (done["id"], done["queue"])
    }
    for data in (b"hello", b"bye"):
        sha = hashlib.sha256(data).hexdigest()
        assert store.read(lambda db, sha=sha: blobs.readable(db, sha, blobs.Reach(token.user_id))).result()  # type: ignore[misc]


def test_life_goes_on(store: SqliteStore) -> None:
    smith = 3
    handed = Handed.of(Result(Outcome.OK, result=0))
    assert store.write(lambda db: claims.accept(db, 3, smith, handed, NOW)).result()[1] == "done"
    amounts = Limits.of(cpus=4, memory="1G")
    words = NodeWords("forge", "active", ("gpu",), {}, {})
    request = Claim(smith, words, Offer(frozenset({"gpu"}), amounts, amounts), 4)
    (given,) = store.write(lambda db: claims.claim(db, request, Rules(), Classes(), NOW)).result().given
    assert given.spec["name"] == "waiting"
    assert given.lease == 4, "leases only grow"
    failed = Handed.of(Result(Outcome.FAILED, result=1))
    assert store.write(lambda db: claims.accept(db, given.lease, smith, failed, NOW)).result()[1] == "waiting"


def test_an_old_database_gets_the_schema_of_a_new_one(path: Path, tmp_path: Path) -> None:
    migrate(path)
    migrate(tmp_path / "new.sqlite")
    schemas = []
    for one in (path, tmp_path / "new.sqlite"):
        with sqlite3.connect(one) as connection:
            schemas.append({
                name: [tuple(column) for column in connection.execute(f"PRAGMA table_info({name})")]
                for name, in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            } | dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index'")))  # fmt: skip
        connection.close()
    assert schemas[0] == schemas[1]


def test_migrating_again_does_nothing(path: Path) -> None:
    migrate(path)
    assert migrate(path) == []


def test_a_database_of_a_newer_kolejka_is_left_alone(path: Path) -> None:
    migrate(path)
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO schema_migration (name, applied) VALUES ('9999_future', '2099-01-01')")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(NodeError, match="9999_future"):
        migrate(path)
    assert path.read_bytes() == before

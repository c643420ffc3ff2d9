"""The database dies under the server's store: nothing acknowledged is lost, nothing is done twice, all goes on."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import pytest

from kolejka.common.errors import Unavailable
from kolejka.server.storage import postgres as engine
from kolejka.server.storage import users
from kolejka.server.storage.base import (
    AccessChanged,
    Announcement,
    CancelAsked,
    Connection,
    LogTold,
    Missed,
    NodeChanged,
    QueuesChanged,
    TaskDone,
    TaskWaiting,
)
from kolejka.server.storage.pipeline import Pipeline, Sent
from kolejka.server.storage.postgres import PostgresStore
from tests.neighbours.postgres import Postgres
from tests.support import wait_until

pytestmark = pytest.mark.needs("postgres")


@pytest.fixture(scope="module")
def mortal() -> Iterator[Postgres]:
    """A PostgreSQL of this module's own, that may die."""
    server = Postgres()
    yield server.start()
    server.stop()


@pytest.fixture
def url(mortal: Postgres) -> str:
    return mortal.migrated()


@pytest.fixture
def heard() -> list[Announcement]:
    return []


@pytest.fixture
def store(url: str, heard: list[Announcement]) -> Iterator[PostgresStore]:
    store = PostgresStore(url, heard.extend, patience_s=30)
    yield store
    store.close()


def add(name: str) -> object:
    return lambda db: users.add_user(db, name, "client", 0.0)


def names(store: PostgresStore) -> list[str]:
    return [user["name"] for user in store.read(users.list_users).result()]


def under_way(store: PostgresStore, name: str, times: int = 1) -> tuple[threading.Event, Future[int]]:
    """A work that has changed something and waits for the event; it waits in its first ``times`` tries only."""
    begun, go = threading.Semaphore(0), threading.Event()
    tries: list[int] = []

    def work(db: Connection) -> int:
        made = users.add_user(db, name, "client", 0.0)
        db.announce(TaskDone(name))
        tries.append(made)
        begun.release()
        if len(tries) <= times:
            assert go.wait(30)
        return len(tries)

    future = store.write(work)
    assert begun.acquire(timeout=30)
    return go, future


def test_a_backend_that_is_cut_off_in_a_work_costs_one_more_try(
    mortal: Postgres, url: str, store: PostgresStore, heard: list[Announcement]
) -> None:
    go, future = under_way(store, "ala")
    assert mortal.cut(url) >= 1
    go.set()
    assert future.result() == 2
    assert names(store) == ["ala"]
    assert heard.count(TaskDone("ala")) == 1


def test_a_database_that_is_killed_and_comes_back_costs_one_more_try(
    mortal: Postgres, store: PostgresStore, heard: list[Announcement]
) -> None:
    store.write(add("acknowledged")).result()
    go, future = under_way(store, "ala")
    mortal.kill()
    go.set()
    waiting = [store.write(add(f"user{n}")) for n in range(20)]
    mortal.start()
    assert future.result() == 2
    for one in waiting:
        one.result()
    assert names(store) == sorted(["acknowledged", "ala", *(f"user{n}" for n in range(20))])
    wait_until(lambda: Missed() in heard, 30, "word that announcements were missed")


def test_a_database_that_stays_away_is_told_and_what_was_asked_is_not_done_later(mortal: Postgres, url: str) -> None:
    store = PostgresStore(url, patience_s=1)
    store.write(add("before")).result()
    mortal.end()
    try:
        with pytest.raises(Unavailable, match="the database"):
            store.write(add("away")).result()
        with pytest.raises(Unavailable, match="the database"):
            names(store)
    finally:
        mortal.start()
    wait_until(lambda: not store.write(add("after")).exception(), 30, "the store goes on")
    assert set(names(store)) == {"before", "after"}
    store.close()


@pytest.mark.parametrize("committed", [True, False])
def test_a_commit_whose_answer_is_lost_is_neither_forgotten_nor_repeated(
    url: str, store: PostgresStore, heard: list[Announcement], monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    """The connection dies as COMMIT is sent: once after the database has done it, once before."""
    send, tries = Pipeline.send, list[int]()

    def broken(self: Pipeline, text: str, values: Sequence[object] = ()) -> Sent:
        if text != "COMMIT" or tries:
            return send(self, text, values)
        tries.append(1)
        if committed:
            send(self, text, values)
            self.settle()
        with contextlib.closing(socket.socket(fileno=self.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)
            line.detach()
        return send(self, "SELECT 1")

    monkeypatch.setattr(Pipeline, "send", broken)
    counts: list[int] = []

    def work(db: Connection) -> int:
        counts.append(1)
        db.announce(TaskDone("ala"))
        return users.add_user(db, "ala", "client", 0.0)

    store.write(work).result()
    assert tries
    assert len(counts) == (1 if committed else 2)
    assert names(store) == ["ala"]
    assert heard.count(TaskDone("ala")) == 1


def test_announcements_reach_the_other_servers_once_and_not_the_sender_twice(
    url: str, heard: list[Announcement]
) -> None:
    other: list[Announcement] = []
    with contextlib.ExitStack() as stack:
        stores = [PostgresStore(url, listener) for listener in (heard.extend, other.extend)]
        for store in stores:
            stack.callback(store.close)

        def work(db: Connection) -> None:
            for _ in range(3):
                db.announce(TaskDone("a"))
            db.announce(TaskDone("b"))

        stores[0].write(work).result()
        wait_until(lambda: len(other) == 2, about="the other server hears")
        stores[0].write(lambda db: db.announce(TaskDone("c"))).result()
        wait_until(lambda: len(other) == 3, about="the other server hears again")
    assert [one.task_id for one in heard if isinstance(one, TaskDone)] == ["a", "a", "a", "b", "c"]
    assert other == [TaskDone("a"), TaskDone("b"), TaskDone("c")]


def test_an_announcement_too_long_for_a_notification_wakes_everybody() -> None:
    sender, found = engine.unpack(engine.pack("me", [TaskDone(f"task{n}") for n in range(1000)]))
    assert (sender, found) == ("me", [Missed()])
    assert engine.unpack('["you", [["OfAnotherVersion", [1], 2]]]') == ("you", [Missed()])


def test_tasks_of_a_class_are_told_of_together_by_the_lowest_number_and_their_count() -> None:
    waiting = [TaskWaiting("q", 1, 0, 1, 7, 2), TaskWaiting("q", 1, 0, 2, 9), TaskWaiting("q", 1, 0, 1, 5, 3)]
    _, found = engine.unpack(engine.pack("me", [*waiting, TaskDone("a"), TaskDone("a")]))
    assert [(one.owner, one.number, one.count) for one in found if isinstance(one, TaskWaiting)] == [
        (1, 5, 5),
        (2, 9, 1),
    ]
    assert found[2:] == [TaskDone("a")]


def test_a_deadlock_is_tried_again(store: PostgresStore) -> None:
    for name in ("a", "b"):
        store.write(add(name)).result()
    together, tries = threading.Barrier(2), list[str]()

    def lock(first: str, second: str) -> object:
        def work(db: Connection) -> None:
            tries.append(first)
            db.run("UPDATE users SET role = 'node' WHERE name = ?", first)
            if len(tries) <= 2:
                together.wait(30)
            db.run("UPDATE users SET role = 'node' WHERE name = ?", second)

        return work

    futures = [store.write(lock("a", "b")), store.write(lock("b", "a"))]  # type: ignore[arg-type]
    for future in futures:
        future.result()
    assert len(tries) == 3


def test_heartbeats_change_their_rows_in_place(mortal: Postgres, url: str, store: PostgresStore) -> None:
    """Heap-only tuples: no index is touched, and no row moves to another page."""
    store.write(lambda db: db.run_many(
        "INSERT INTO leases (lease, number, owner_id, node, exclusive, heartbeat_at) VALUES (?, ?, 1, ?, 0, 0)",
        [(n, n, f"node{n % 10}") for n in range(1000)],
    )).result()  # fmt: skip
    for beat in range(20):
        store.write(lambda db, at=float(beat): db.run("UPDATE leases SET heartbeat_at = ?", at)).result()  # type: ignore[misc]
    name = url.rpartition("/")[2]

    def figures() -> tuple[int, int]:
        ((updated, hot),) = mortal.run(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'leases'", name
        )
        return int(updated), int(hot)  # type: ignore[call-overload]

    store.close()  # its sessions hand in their figures
    wait_until(lambda: figures()[0] == 20_000, 30, "figures")
    updated, hot = figures()
    assert hot > 0.9 * updated


def test_what_servers_look_for_anyway_is_told_after_the_commit_and_all_else_by_it(
    url: str, store: PostgresStore, heard: list[Announcement], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who notifies in a transaction has all others that do so wait for the disk with it."""
    send, told_by = Pipeline.send, list[str]()

    def spied(self: Pipeline, text: str, values: Sequence[object] = ()) -> Sent:
        if "pg_notify" in text:
            told_by.append(threading.current_thread().name)
        return send(self, text, values)

    monkeypatch.setattr(Pipeline, "send", spied)
    other: list[Announcement] = []
    with contextlib.closing(PostgresStore(url, other.extend)):
        for number, one in enumerate((TaskDone("a"), NodeChanged("n"), TaskWaiting("q", 1, 0, 1, 7)), start=1):
            store.write(lambda db, one=one: db.announce(one)).result()  # type: ignore[misc]
            wait_until(lambda at=number: len(other) == at, about="the other server hears")  # type: ignore[misc]
        assert set(told_by) == {"store-herald"}
        told_by.clear()
        for one in (CancelAsked("n"), AccessChanged(), QueuesChanged(), LogTold(5)):
            store.write(lambda db, one=one: db.announce(one)).result()  # type: ignore[misc]
        assert told_by == ["store-writer"] * 4
        wait_until(lambda: len(other) == 7, about="the other server hears")
    assert heard == other


def test_what_is_told_while_the_store_closes_is_told(url: str) -> None:
    other: list[Announcement] = []
    with contextlib.closing(PostgresStore(url, other.extend)):
        store = PostgresStore(url)
        futures = [store.write(lambda db, n=n: db.announce(TaskDone(f"{n}"))) for n in range(100)]  # type: ignore[misc]
        store.close()
        assert all(future.exception() is None for future in futures)
        wait_until(lambda: len(other) == 100, about="the other server hears")
    assert {one.task_id for one in other if isinstance(one, TaskDone)} == {str(n) for n in range(100)}


def test_works_that_write_are_planned_once_by_keys_and_nothing_is_compiled(store: PostgresStore) -> None:
    """Also on a table that PostgreSQL has never looked at, which it takes for small."""

    def plan(db: Connection) -> str:
        text, values = db.table([(n, n) for n in range(1000)], ("BIGINT", "BIGINT"))
        update = f"UPDATE tasks SET lease = v.column2 FROM {text} AS v WHERE number = v.column1"
        return "\n".join(row[0] for row in db.rows(f"EXPLAIN {update}", *values))

    assert "Seq Scan" not in store.write(plan).result()
    for do in (store.write, store.read):
        assert do(lambda db: db.row("SHOW jit")).result() == ("off",)
    assert store.write(lambda db: db.row("SHOW plan_cache_mode")).result() == ("force_generic_plan",)

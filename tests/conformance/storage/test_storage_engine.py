"""What every storage engine promises about transactions, announcements and ends."""

from __future__ import annotations

import threading

import pytest

from kolejka.common.errors import Conflict, Unavailable
from kolejka.server.scheduling.queues import Queue
from kolejka.server.storage import postgres, queues, users
from kolejka.server.storage.base import Announcement, Connection, Store, TaskDone, marks
from kolejka.server.storage.models import TABLES, Users
from kolejka.server.storage.pipeline import REMEMBERED
from kolejka.server.storage.sqlite import SqliteStore
from tests.conformance.storage.conftest import MakeStore


def names(store: Store) -> list[str]:
    return [user["name"] for user in store.read(users.list_users).result()]


def add(name: str) -> object:
    return lambda db: users.add_user(db, name, "client", 0.0)


def occupy(store: Store) -> threading.Event:
    """Keep everybody who writes busy until the event is set, so that what is written meanwhile gathers."""
    writers = 1 if isinstance(store, SqliteStore) else postgres.WRITERS
    begun, go = threading.Barrier(writers + 1), threading.Event()

    def work(_db: Connection) -> None:
        begun.wait(30)
        assert go.wait(30)

    for _ in range(writers):
        store.write(work)
    begun.wait(30)
    return go


def test_what_was_acknowledged_is_read(store: Store) -> None:
    for number in range(50):
        store.write(add(f"user{number:02}")).result()
        assert len(names(store)) == number + 1


def test_a_work_that_raises_changes_nothing_and_spoils_no_other(store: Store, announced: list[Announcement]) -> None:
    def failing(db: Connection) -> None:
        users.add_user(db, "half", "client", 0.0)
        db.announce(TaskDone("half"))
        raise Conflict("not now")

    go = occupy(store)
    futures = [store.write(add("before")), store.write(failing), store.write(add("after"))]
    go.set()
    assert futures[0].result()
    with pytest.raises(Conflict, match="not now"):
        futures[1].result()
    assert futures[2].result()
    assert names(store) == ["after", "before"]
    assert announced == []


def test_of_works_that_wait_together_each_sees_what_the_others_did(store: Store) -> None:
    go = occupy(store)
    futures = [store.write(add("ala")) for _ in range(8)]
    go.set()
    assert sorted(type(future.exception()) is Conflict for future in futures) == [False] + [True] * 7
    assert names(store) == ["ala"]


def test_of_a_thousand_works_that_wait_together_each_is_done_once(store: Store) -> None:
    go = occupy(store)
    futures = [store.write(add(f"user{n}")) for n in range(1000)]
    go.set()
    assert len({future.result() for future in futures}) == 1000
    assert len(names(store)) == 1000


def test_announcements_come_after_the_commit_and_before_the_answer(make_store: MakeStore) -> None:
    seen: list[tuple[str, list[str]]] = []

    def listener(announcements: object) -> None:
        seen.extend((one.task_id, names(store)) for one in announcements)  # type: ignore[attr-defined]

    store = make_store(listener)

    def work(db: Connection) -> None:
        users.add_user(db, "ala", "client", 0.0)
        db.announce(TaskDone("a"))
        db.announce(TaskDone("b"))

    store.write(work).result()
    assert seen == [("a", ["ala"]), ("b", ["ala"])]


def test_a_work_dropped_by_its_caller_is_not_done(store: Store) -> None:
    go = occupy(store)
    dropped = store.write(add("dropped"))
    kept = store.write(add("kept"))
    assert dropped.cancel()
    go.set()
    kept.result()
    assert names(store) == ["kept"]


def test_a_reading_work_cannot_write(store: Store) -> None:
    with pytest.raises(Exception, match=r"readonly|read-only|read only"):
        store.read(add("ala")).result()
    assert names(store) == []


def test_a_reading_work_sees_one_moment(store: Store) -> None:
    looked, go = threading.Event(), threading.Event()

    def work(db: Connection) -> tuple[int, int]:
        first = len(users.list_users(db))
        looked.set()
        assert go.wait(30)
        return first, len(users.list_users(db))

    reading = store.read(work)
    assert looked.wait(30)
    store.write(add("ala")).result()
    go.set()
    assert reading.result() == (0, 0)
    assert names(store) == ["ala"]


def test_everything_acknowledged_is_there_after_reopening(make_store: MakeStore) -> None:
    store = make_store(lambda _: None)
    store.write(add("ala")).result()
    queued = [store.write(add(f"user{n}")) for n in range(100)]
    store.close()
    store.close()
    assert all(future.result() for future in queued), "what was queued is done before the end"
    assert len(names(make_store(lambda _: None))) == 101


def test_a_closed_store_says_so(store: Store) -> None:
    store.close()
    for future in (store.write(add("ala")), store.read(users.list_users)):
        with pytest.raises(Unavailable):
            future.result()


def test_a_peewee_query_runs_and_gives_names(store: Store) -> None:
    store.write(add("ala")).result()
    rows = store.read(lambda db: db.select(Users.select(Users.name, Users.role).where(Users.name == "ala"))).result()
    assert rows == [{"name": "ala", "role": "client"}]


def test_every_table_has_the_columns_that_its_model_says(store: Store) -> None:
    for model in TABLES:
        columns = [field.column_name for field in model._meta.sorted_fields]
        listed = ", ".join(columns)
        store.read(lambda db, sql=f"SELECT {listed} FROM {model._meta.table_name}": db.rows(sql)).result()  # type: ignore[misc]


def test_there_is_the_queue_that_everybody_uses(store: Store) -> None:
    assert store.read(queues.listing).result() == [Queue("default")]


AWKWARD = ["", " ", "NULL", '"', "\\", '\\"', "{", "},{", "a,b", "'", "$1", "?", "%s", "ł🦆\n\t", "x" * 5000]


@pytest.mark.parametrize("many", [1, len(AWKWARD)])
def test_a_table_of_values_is_what_was_put_in(store: Store, many: int) -> None:
    rows = [(text, place, place / 7, None if place % 2 else text) for place, text in enumerate(AWKWARD[-many:])]
    rows[-1] = (rows[-1][0], 2**62, 1e-300, None)

    def work(db: Connection) -> list[tuple[object, ...]]:
        text, values = db.table(rows, ("TEXT", "BIGINT", "DOUBLE PRECISION", "TEXT"))
        return db.rows(f"SELECT * FROM {text} AS v ORDER BY column2", *values)

    assert [tuple(row) for row in store.write(work).result()] == rows


def test_a_list_of_values_is_found_as_it_is(store: Store) -> None:
    for text in AWKWARD:
        store.write(add(text)).result()

    def found(texts: list[str]) -> set[str]:
        query = f"SELECT name FROM users WHERE name IN ({marks(texts)}) AND role = ?"
        return {row[0] for row in store.read(lambda db: db.rows(query, *texts, "client")).result()}

    assert found(AWKWARD) == set(AWKWARD)
    for text in AWKWARD:
        assert found([text]) == {text}
    assert found(["no such", "NULL"]) == {"NULL"}


def test_a_change_of_other_rows_than_were_said_undoes_its_work(store: Store, announced: list[Announcement]) -> None:
    store.write(add("ala")).result()

    def work(db: Connection) -> None:
        users.add_user(db, "ola", "client", 0.0)
        db.announce(TaskDone("none"))
        db.later("UPDATE users SET role = 'node' WHERE name = ?", "ala", rows=2)

    with pytest.raises(Exception, match=r"^$|division by zero"):
        store.write(work).result()
    assert names(store) == ["ala"]
    assert announced == []
    store.write(lambda db: db.later("UPDATE users SET role = 'node' WHERE name = ?", "ala", rows=1)).result()


def test_more_statements_than_are_remembered_are_all_done(store: Store) -> None:
    def work(db: Connection) -> list[object]:
        return [db.rows(f"SELECT {n} + ?", 1)[0][0] for n in range(2 * REMEMBERED)]

    for _ in range(3):
        assert store.write(work).result() == list(range(1, 2 * REMEMBERED + 1))


def test_a_work_that_fails_in_the_database_leaves_the_connection_as_it_was(store: Store) -> None:
    """Also what was asked for the second time then, and so prepared."""

    def failing(db: Connection) -> None:
        users.add_user(db, "half", "client", 0.0)
        db.rows("SELECT name FROM no_such_table")
        db.rows("SELECT role FROM users WHERE name = ?", "half")

    for _ in range(3 * postgres.WRITERS):
        with pytest.raises(Exception, match="no_such_table"):
            store.write(failing).result()
    for number in range(3 * postgres.WRITERS):
        store.write(add(f"user{number}")).result()
        role = store.write(lambda db: db.rows("SELECT role FROM users WHERE name = ?", "user0")).result()
        assert [tuple(row) for row in role] == [("client",)]
    assert "half" not in names(store)


def test_what_is_announced_at_the_end_knows_what_was_asked(store: Store, announced: list[Announcement]) -> None:
    def work(db: Connection) -> None:
        asked = db.soon("SELECT name FROM users")
        users.add_user(db, "ola", "client", 0.0)
        db.announce_then(lambda: [TaskDone(name) for (name,) in asked()])

    store.write(add("ala")).result()
    store.write(work).result()
    assert announced == [TaskDone("ala")]

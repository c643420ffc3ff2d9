"""Many tasks in one transaction: each is treated as it would be alone, for the statements of one."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from kolejka.common.errors import Conflict, InputError, NotFound
from kolejka.common.limits import Limits
from kolejka.common.result import Outcome, Result, ResultFile
from kolejka.common.task import Task
from kolejka.server import intake
from kolejka.server.auth.roles import Role
from kolejka.server.auth.tokens import Caller
from kolejka.server.calling import Hosts
from kolejka.server.scheduling import claims
from kolejka.server.scheduling.claims import Given, Handed
from kolejka.server.storage import blobs, callbacks, events, tasks
from kolejka.server.storage.base import Connection, Store
from kolejka.server.storage.postgres import PostgresConnection
from kolejka.server.storage.sqlite import SqliteConnection
from tests.conformance.storage.conftest import Cluster

SHA = "ab" * 32


def put(cluster: Cluster, caller: Caller, kinds: list[dict[str, object]], keys: list[str] = []) -> list[str]:
    considered = [
        intake.consider(Task.parse({"args": ["true"], **words}), defaults=Limits.of(cpus=1), ceilings=Limits())
        for words in kinds
    ]

    def work(db: Connection) -> list[str]:
        door = intake.Door(db, considered, caller, cluster.wall, keys=keys)
        found = [door.admit(one, key)[0] for one, key in zip(considered, keys or [None] * len(kinds), strict=True)]
        door.close()
        return found

    return cluster.store.write(work).result()


def accept(cluster: Cluster, caller: Caller, results: Mapping[int, Result]) -> dict[int, object]:
    handed = {lease: Handed.of(result) for lease, result in results.items()}
    answers = cluster.store.write(lambda db: claims.accept_many(db, handed, caller.user_id, cluster.now)).result()
    return {lease: answer[1] if isinstance(answer, tuple) else type(answer) for lease, answer in answers.items()}


def store_blob(cluster: Cluster, caller: Caller, sha: str = SHA, size: int = 5) -> None:
    cluster.store.write(lambda db: blobs.add(db, sha, size, sha, user_id=caller.user_id, now=cluster.wall)).result()


def states(cluster: Cluster, ids: list[str]) -> list[str]:
    def look(db: Connection) -> list[str]:
        return [found.state.value for task_id in ids if (found := tasks.find(db, task_id)) is not None]

    return cluster.store.read(look).result()


def test_tasks_put_together_keep_their_order_and_their_own_words(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    store_blob(cluster, ala)
    kinds: list[dict[str, object]] = [
        {"args": [f"n{n}"], "labels": {"n": str(n), "all": "yes"}, "limits": {"memory": 4096 + n % 2},
         "files": {"in": {"reference": SHA}} if n % 3 == 0 else {}}
        for n in range(12)
    ]  # fmt: skip
    ids = put(cluster, ala, kinds)
    assert len(set(ids)) == 12
    given = cluster.claim(smith, slots=12).given
    assert [one.task_id for one in given] == ids
    assert [one.spec["args"] for one in given] == [[f"n{n}"] for n in range(12)]
    assert [one.owner for one in given] == ["ala"] * 12
    for n in (0, 7):
        with_label = tasks.Filters(labels=(("n", str(n)), ("all", "yes")))
        assert [row["id"] for row in cluster.store.read(lambda db, f=with_label: tasks.listing(db, f)).result()] == [  # type: ignore[misc]
            ids[n]
        ]
    found = cluster.store.read(lambda db: events.page(db, above=0, up_to=10**6, most=100)).result()
    assert [(one["what"], one["task_id"]) for one in found[:12]] == [("waiting", task_id) for task_id in ids]
    assert [(one["task_id"], one["lease"]) for one in found[12:]] == [(one.task_id, one.lease) for one in given]
    counted = cluster.store.read(
        lambda db: db.row("SELECT COUNT(*) FROM blob_references WHERE kind = 'input'")
    ).result()
    assert counted == (4,)


def test_of_tasks_put_together_one_that_is_refused_keeps_all_out(cluster: Cluster, ala: Caller) -> None:
    good: dict[str, object] = {}
    for bad in ({"queue": "nowhere"}, {"files": {"in": {"reference": SHA}}}):
        with pytest.raises(InputError):
            put(cluster, ala, [good, {**bad}, good])
    assert cluster.store.read(lambda db: tasks.listing(db, tasks.Filters())).result() == []


def test_keys_put_again_among_new_ones_are_the_tasks_of_before(cluster: Cluster, ala: Caller) -> None:
    first = put(cluster, ala, [{}, {}], ["a", "b"])
    again = put(cluster, ala, [{}, {}, {}], ["b", "c", "a"])
    assert (again[0], again[2]) == (first[1], first[0])
    assert again[1] not in first


def claim(cluster: Cluster, caller: Caller, smith: Caller, kinds: list[dict[str, object]]) -> list[Given]:
    put(cluster, caller, kinds)
    return list(cluster.claim(smith, slots=len(kinds)).given)


def test_results_handed_in_together_are_each_taken_or_refused_by_themselves(
    cluster: Cluster, ala: Caller, smith: Caller
) -> None:
    thief = cluster.user("thief", Role.NODE)
    put(cluster, ala, [{}])
    (stolen,) = cluster.claim(thief, "den", slots=1).given
    retry = {"max": 1, "on": ["failed"]}
    ok, failed, again, lacking, known, wrong = claim(cluster, ala, smith, [{}, {}, {"retry": retry}, {}, {}, {}])
    assert cluster.finish(smith, known.lease, result=0) == "done"
    store_blob(cluster, smith)
    store_blob(cluster, ala, "cd" * 32)
    out = {"out": ResultFile(5, "0644", SHA)}
    answers = accept(cluster, smith, {
        stolen.lease: Result(Outcome.OK), ok.lease: Result(Outcome.OK, result=0, manifest=out),
        failed.lease: Result(Outcome.FAILED, result=3), again.lease: Result(Outcome.FAILED, result=3),
        lacking.lease: Result(Outcome.OK, manifest={"out": ResultFile(5, "0644", "cd" * 32)}),
        known.lease: Result(Outcome.OK, result=0), 10**6: Result(Outcome.OK),
        wrong.lease: Result(Outcome.OK, id="other"),
    })  # fmt: skip
    assert answers == {
        stolen.lease: NotFound, ok.lease: "done", failed.lease: "done", again.lease: "waiting",
        lacking.lease: InputError, known.lease: "done", 10**6: Conflict, wrong.lease: InputError,
    }  # fmt: skip
    assert states(cluster, [one.task_id for one in (ok, failed, again, lacking, known, wrong, stolen)]) == [
        "done", "done", "waiting", "running", "done", "running", "running",
    ]  # fmt: skip
    rows = cluster.store.read(lambda db: db.rows(
        "SELECT t.id, t.outcome, t.exit_code FROM tasks t JOIN accounting a ON a.task_id = t.id"
        " WHERE t.state = 'done' ORDER BY a.lease"
    )).result()  # fmt: skip
    assert rows == [(ok.task_id, "ok", 0), (failed.task_id, "failed", 3), (known.task_id, "ok", 0)]
    assert cluster.store.read(lambda db: db.rows("SELECT lease FROM leases ORDER BY lease")).result() == [
        (stolen.lease,), (lacking.lease,), (wrong.lease,),
    ]  # fmt: skip
    shown = cluster.store.read(lambda db: db.rows("SELECT sha FROM blob_references WHERE kind = 'output'")).result()
    assert shown == [(SHA,)]


def test_calls_of_tasks_that_end_together_are_each_owed_with_their_own_end(store: Store) -> None:
    cluster = Cluster(store)
    ala, smith = cluster.user("ala"), cluster.user("smith")
    store.write(lambda db: callbacks.set_secret(db, ala.user_id, "kcs_1", cluster.wall)).result()
    hosts = Hosts.parse(["example.org"])
    task = Task.parse({"args": ["x"], "callback_url": "http://example.org/"})
    considered = intake.consider(task, defaults=Limits(), ceilings=Limits(), hosts=hosts)
    for _ in range(2):
        store.write(lambda db: intake.put(db, considered, ala, None, cluster.wall)).result()
    one, two = cluster.claim(smith).given
    accept(cluster, smith, {one.lease: Result(Outcome.OK, result=0), two.lease: Result(Outcome.FAILED, result=1)})
    due = store.write(lambda db: callbacks.take(db, cluster.wall, cluster.wall + 9, 10)).result()
    assert {(call.task_id, call.lease, call.outcome) for call in due} == {
        (one.task_id, one.lease, "ok"), (two.task_id, two.lease, "failed"),
    }  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every statement that a work says."""
    said: list[str] = []
    for engine in (PostgresConnection, SqliteConnection):
        for name in ("rows", "row", "soon", "run", "later"):
            method = getattr(engine, name)

            def spied(self: object, sql: str, *values: object, _method=method, **more: object) -> object:  # type: ignore[no-untyped-def]
                said.append(sql)
                return _method(self, sql, *values, **more)

            monkeypatch.setattr(engine, name, spied)
    return said


def test_many_tasks_take_no_more_statements_than_one(
    cluster: Cluster, ala: Caller, smith: Caller, asked: list[str]
) -> None:
    store_blob(cluster, smith)
    out = {"out": ResultFile(5, "0644", SHA)}
    counts = []
    for many in (1, 50):
        asked.clear()
        put(cluster, ala, [{}] * many)
        given = cluster.claim(smith, slots=many).given
        accept(cluster, smith, {one.lease: Result(Outcome.OK, result=0, manifest=out) for one in given})
        assert len(given) == many
        counts.append(len(asked))
    assert counts[1] <= counts[0], counts

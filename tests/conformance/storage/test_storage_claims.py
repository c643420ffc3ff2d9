"""Claims, leases, results and rescues, on every storage engine."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random

import pytest

from kolejka.common.errors import Conflict, InputError, NotAllowed, NotFound
from kolejka.common.result import Outcome, Result, ResultFile
from kolejka.common.stats import CpuStats, MemoryStats, Stats
from kolejka.server.auth.roles import Role
from kolejka.server.auth.tokens import Caller, Scope
from kolejka.server.scheduling import claims
from kolejka.server.scheduling.queues import Queue
from kolejka.server.scheduling.rescue import Next
from kolejka.server.storage import blobs, leases, nodes, queues, tasks
from kolejka.server.storage.base import Announcement, CancelAsked, TaskDone, TaskWaiting
from kolejka.server.storage.blob_store import new_place as place_of
from tests.conformance.storage.conftest import Cluster

SHA = "ab" * 32


def state(cluster: Cluster, task_id: str) -> str:
    found = cluster.store.read(lambda db: tasks.find(db, task_id)).result()
    assert found is not None
    return found.state.value


def number(cluster: Cluster, task_id: str) -> int:
    found = cluster.store.read(lambda db: tasks.find(db, task_id)).result()
    assert found is not None
    return found.number


def result(cluster: Cluster, task_id: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(
        cluster.store.read(lambda db: tasks.result(db, number(cluster, task_id))).result()
    )
    return found


def test_results_of_many_tasks_are_read_together_and_no_more_than_wanted(
    cluster: Cluster, ala: Caller, smith: Caller
) -> None:
    ids = cluster.put(ala, count=40)
    for given in cluster.claim(smith, slots=40).given:
        cluster.finish(smith, given.lease)
    numbers = [number(cluster, task_id) for task_id in ids]
    found = cluster.store.read(lambda db: tasks.results(db, numbers)).result()
    assert [json.loads(found[one])["id"] for one in numbers] == ids
    assert 0 < len(cluster.store.read(lambda db: tasks.results(db, numbers, most=1)).result()) < 40
    assert cluster.store.read(lambda db: tasks.results(db, [])).result() == {}


def history(cluster: Cluster, task_id: str) -> list[dict[str, object]]:
    return cluster.store.read(lambda db: leases.history(db, number(cluster, task_id))).result()


def ids(claimed: claims.Claimed) -> list[str]:
    return [given.task_id for given in claimed.given]


def cancel(cluster: Cluster, task_id: str) -> None:
    def work(db):  # type: ignore[no-untyped-def]
        claims.cancel(db, tasks.find(db, task_id), cluster.now)

    cluster.store.write(work).result()


# Who gets what


def test_a_claim_gives_the_oldest_tasks_with_their_specs(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    put = cluster.put(ala, count=5)
    given = cluster.claim(smith, slots=3).given
    assert [one.task_id for one in given] == put[:3]
    assert [one.owner for one in given] == ["ala"] * 3
    assert given[0].spec["args"] == ["true"]
    assert given[0].spec["limits"] == {"cpus": 1, "memory": 64 << 20, "time": 10.0}
    assert given[0].deadline_s == 130.0
    assert ids(cluster.claim(smith)) == put[3:]
    assert ids(cluster.claim(smith)) == []


def test_lease_numbers_only_grow_even_when_tasks_are_deleted(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    seen = []
    for _ in range(5):
        (task_id,) = cluster.put(ala)
        (given,) = cluster.claim(smith).given
        seen.append(given.lease)
        cluster.finish(smith, given.lease)
        at = number(cluster, task_id)
        cluster.store.write(lambda db, at=at: tasks.delete(db, [at], 0.0)).result()  # type: ignore[misc]
    assert seen == sorted(set(seen))


def test_a_claim_never_gives_more_than_fits_together(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    cluster.put(ala, count=10, limits={"cpus": 3})
    assert len(cluster.claim(smith, total={"cpus": 8}).given) == 2
    assert len(cluster.claim(smith, total={"cpus": 8}, free={"cpus": 2}).given) == 0


def test_ten_thousand_impossible_tasks_of_one_kind_delay_nobody(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    cluster.put(ala, count=10_000, requires=["gpu"], priority=9)
    (possible,) = cluster.put(ala)
    assert ids(cluster.claim(smith, slots=1)) == [possible]


def test_thousands_of_kinds_of_impossible_tasks_delay_nobody(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    cluster.put_kinds(ala, [{"requires": [f"tag{kind}"], "priority": 9} for kind in range(2_000)])
    (possible,) = cluster.put(ala)
    assert ids(cluster.claim(smith, slots=1)) == [possible]
    assert ids(cluster.claim(smith, slots=1, tags=["tag1999"]))


def test_tasks_too_big_for_what_is_free_delay_nobody(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    cluster.put(ala, count=500, limits={"memory": "8G"}, priority=9)
    (small,) = cluster.put(ala, limits={"memory": "1G"})
    assert ids(cluster.claim(smith, total={"memory": "8G"}, free={"memory": "4G"})) == [small]


def test_priority_then_fairness_then_arrival(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    ola = cluster.user("ola")
    many, few = cluster.put(ala, count=4), cluster.put(ola, count=2)
    (urgent,) = cluster.put(ala, priority=1)
    assert ids(cluster.claim(smith, slots=1)) == [urgent]
    assert ids(cluster.claim(smith, slots=4)) == [few[0], many[0], few[1], many[1]]


def test_a_claim_for_some_queues_gets_no_other(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    cluster.store.write(lambda db: db.run("INSERT INTO queues (name, state) VALUES ('night', 'open')")).result()
    (day,), (night,) = cluster.put(ala), cluster.put(ala, queue="night")
    assert ids(cluster.claim(smith, queues=["night"])) == [night]
    assert ids(cluster.claim(smith, queues=[])) == [day]


def test_a_task_that_was_put_while_its_queue_was_deleted_is_given(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    cluster.store.write(lambda db: queues.save(db, Queue("brief"))).result()
    (task,) = cluster.put(ala, queue="brief")
    cluster.store.write(lambda db: db.run("DELETE FROM queues WHERE name = 'brief'")).result()
    assert ids(cluster.claim(smith)) == [task]


def test_a_task_that_somebody_deleted_meanwhile_is_not_there(cluster: Cluster, ala: Caller) -> None:
    """Where transactions overlap, what was found may be gone a moment later."""
    store, (task,) = cluster.store, cluster.put(ala)
    found = store.read(lambda db: tasks.find(db, task)).result()
    assert found is not None
    store.write(lambda db: claims.cancel(db, found, cluster.now)).result()
    assert store.write(lambda db: tasks.delete(db, [found.number], cluster.wall)).result() == {found.number}
    for work in (lambda db: claims.cancel(db, found, cluster.now), lambda db: tasks.show(db, task)):
        with pytest.raises(NotFound):
            store.write(work).result()
    assert store.read(lambda db: (tasks.spec(db, found.number), tasks.created_at(db, found.number))).result() == (
        {},
        None,
    )


def test_an_unknown_queue_is_refused(cluster: Cluster, ala: Caller) -> None:
    with pytest.raises(InputError) as caught:
        cluster.put(ala, queue="nowhere")
    assert caught.value.field == "queue"


def test_an_exclusive_task_is_alone(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    alone = cluster.put(ala, exclusive=True)
    others = cluster.put(ala, count=2)
    assert ids(cluster.claim(smith, idle=False, slots=1)) == others[:1]
    assert ids(cluster.claim(smith, idle=True, slots=1)) == others[1:], "the node says idle; its leases say otherwise"
    assert ids(cluster.claim(smith, node="other", idle=True)) == alone
    cluster.put(ala)
    assert ids(cluster.claim(smith, node="other", idle=True)) == [], "nothing beside an exclusive task"


def test_every_task_is_given_exactly_once(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    dice = random.Random(7)
    put = [cluster.put(ala, requires=dice.sample(["a", "b"], dice.randint(0, 2)), priority=dice.randint(-2, 2),
                       limits={"cpus": dice.randint(1, 4)})[0] for _ in range(200)]  # fmt: skip
    given: list[str] = []
    while len(given) < len(put):
        found = ids(cluster.claim(
            smith, f"node{dice.randint(0, 3)}", slots=dice.randint(1, 7), tags=dice.sample(["a", "b"], 2)
        ))  # fmt: skip
        assert found
        given += found
    assert sorted(given) == sorted(put)


def test_a_node_name_belongs_to_the_user_who_came_first(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    thief = cluster.user("thief", Role.NODE)
    cluster.put(ala)
    cluster.claim(smith, slots=0)
    with pytest.raises(NotAllowed):
        cluster.claim(thief)
    with pytest.raises(NotAllowed):
        cluster.heartbeat(thief, [])


# Leases and results


def test_a_result_ends_a_task_and_is_accounted(
    cluster: Cluster, ala: Caller, smith: Caller, announced: list[Announcement]
) -> None:
    (task_id,) = cluster.put(ala)
    (given,) = cluster.claim(smith).given
    assert state(cluster, task_id) == "running"
    cluster.sleep(5)
    stats = Stats(time=4.5, cpu=CpuStats(usage=3.25), memory=MemoryStats(max_usage=1000))
    assert cluster.finish(smith, given.lease, Outcome.FAILED, result=3, stats=stats) == "done"
    assert state(cluster, task_id) == "done"
    stored = result(cluster, task_id)
    assert (stored["id"], stored["outcome"], stored["result"]) == (task_id, "failed", 3)
    assert TaskDone(task_id) in announced
    (row,) = cluster.store.read(lambda db: db.rows(
        "SELECT lease, task_id, owner_id, queue, node, outcome, cpu, wall, memory_peak, finished_at - started_at"
        " FROM accounting"
    )).result()  # fmt: skip
    assert row == (given.lease, task_id, ala.user_id, "default", "anvil", "failed", 3.25, 4.5, 1000, 5.0)


def test_a_repeated_result_is_answered_the_same_and_another_one_is_not(
    cluster: Cluster, ala: Caller, smith: Caller
) -> None:
    (task_id,) = cluster.put(ala)
    (given,) = cluster.claim(smith).given
    assert cluster.finish(smith, given.lease, result=0) == "done"
    assert cluster.finish(smith, given.lease, result=0) == "done"
    assert cluster.finish(smith, given.lease, result=0, id=task_id) == "done", "the id is no news"
    with pytest.raises(Conflict):
        cluster.finish(smith, given.lease, result=1)
    assert result(cluster, task_id)["result"] == 0
    assert cluster.store.read(lambda db: db.row("SELECT COUNT(*) FROM accounting")).result() == (1,)


def test_a_result_for_another_task_is_refused(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    cluster.put(ala)
    (given,) = cluster.claim(smith).given
    with pytest.raises(InputError) as caught:
        cluster.finish(smith, given.lease, id="another")
    assert caught.value.field == "id"


@pytest.mark.parametrize("lease", [99, 2**62, 2**70])
def test_a_lease_that_nobody_holds(cluster: Cluster, smith: Caller, lease: int) -> None:
    with pytest.raises(Conflict):
        cluster.finish(smith, lease)


def test_a_lease_of_another_users_node_does_not_exist(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    thief = cluster.user("thief", Role.NODE)
    (task_id,) = cluster.put(ala)
    (given,) = cluster.claim(smith).given
    with pytest.raises(NotFound):
        cluster.finish(thief, given.lease)
    with pytest.raises(NotFound):
        cluster.store.write(lambda db: claims.release(db, given.lease, thief.user_id, "", cluster.now)).result()
    assert state(cluster, task_id) == "running"


def test_a_result_may_only_name_bytes_that_the_node_stored_or_was_given(
    cluster: Cluster, ala: Caller, smith: Caller
) -> None:
    cluster.put(ala)
    (given,) = cluster.claim(smith).given
    manifest = {"out": ResultFile(5, "0644", SHA)}
    cluster.store.write(lambda db: blobs.add(db, SHA, 5, place_of(SHA), user_id=ala.user_id, now=0.0)).result()
    with pytest.raises(InputError) as caught:
        cluster.finish(smith, given.lease, manifest=manifest)
    assert (caught.value.code, caught.value.field) == ("blob_missing", "manifest.out")
    assert cluster.store.write(lambda db: blobs.add(db, SHA, 5, place_of(SHA), user_id=smith.user_id, now=0.0)).result()
    with pytest.raises(InputError) as caught:
        cluster.finish(smith, given.lease, manifest={"out": ResultFile(6, "0644", SHA)})
    assert caught.value.field == "manifest.out.size"
    named = {"out": manifest["out"], "b": manifest["out"], "a": manifest["out"]}
    assert cluster.finish(smith, given.lease, manifest=named) == "done"
    stored = Result.parse(result(cluster, given.task_id))
    assert list(stored.manifest) == ["out", "b", "a"], "in the order in which the node named them"


def test_an_input_may_come_back_as_output_without_a_second_upload(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    cluster.store.write(lambda db: blobs.add(db, SHA, 5, place_of(SHA), user_id=ala.user_id, now=0.0)).result()
    cluster.put(ala, files={"in": {"reference": SHA}})
    (given,) = cluster.claim(smith).given
    assert cluster.finish(smith, given.lease, manifest={"out": ResultFile(5, "0644", SHA)}) == "done"


def test_who_may_have_a_blob(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    def readable(caller: Caller, sha: str = SHA) -> bool:
        return cluster.store.read(lambda db: blobs.readable(db, sha, caller.blobs)).result()

    ola = cluster.user("ola")
    cluster.store.write(lambda db: blobs.add(db, SHA, 5, place_of(SHA), user_id=ala.user_id, now=0.0)).result()
    assert readable(ala)
    assert not readable(ola)
    with pytest.raises(InputError) as caught:
        cluster.put(ola, files={"in": {"reference": SHA}})
    assert (caught.value.code, caught.value.field) == ("blob_missing", "files.in")
    cluster.put(ala, files={"in": {"reference": SHA}})
    assert not readable(ola), "it is another owner's task that refers to it"
    assert not readable(smith)
    (given,) = cluster.claim(smith).given
    assert readable(smith)
    made = "cd" * 32
    cluster.store.write(lambda db: blobs.add(db, made, 7, place_of(made), user_id=smith.user_id, now=0.0)).result()
    assert not readable(ala, made)
    cluster.finish(smith, given.lease, manifest={"out": ResultFile(7, "0644", made)})
    assert readable(ala, made), "a result's files are its owner's"
    assert not readable(smith), "the lease is over"


def test_a_token_for_some_queues_reaches_the_blobs_of_their_tasks_and_those_that_came_under_it(
    cluster: Cluster, ala: Caller, smith: Caller
) -> None:
    cluster.store.write(lambda db: queues.save(db, Queue("exams"))).result()
    exams = frozenset({"exams"})
    narrow = dataclasses.replace(ala, token=7, scope=Scope(queues=exams))
    other = dataclasses.replace(narrow, token=8)
    node = dataclasses.replace(smith, token=9, scope=Scope(queues=exams))
    watch = dataclasses.replace(cluster.user("watch", Role.INSPECTOR), scope=Scope(queues=exams))
    shas = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("of ala", "of exams", "of narrow", "lab's")}

    def add(name: str, caller: Caller) -> None:
        cluster.store.write(lambda db: blobs.add(
            db, shas[name], 5, place_of(shas[name]), user_id=caller.user_id, now=0.0, token=caller.blobs.narrow_token
        )).result()  # fmt: skip

    def reached(caller: Caller) -> set[str]:
        return {name for name, sha in shas.items()
                if cluster.store.read(lambda db: blobs.readable(db, sha, caller.blobs)).result()}  # fmt: skip  # noqa: B023 at once

    for name in ("of ala", "of exams", "lab's"):
        add(name, ala)
    add("of narrow", narrow)
    cluster.put(ala, queue="exams", files={"in": {"reference": shas["of exams"]}})
    cluster.put(ala, files={"in": {"reference": shas["lab's"]}})
    assert reached(ala) == set(shas)
    assert reached(narrow) == {"of exams", "of narrow"}
    assert reached(other) == {"of exams"}
    assert reached(watch) == {"of exams"}
    with pytest.raises(InputError) as caught:
        cluster.put(narrow, queue="exams", files={"in": {"reference": shas["of ala"]}})
    assert caught.value.code == "blob_missing", "else its task would give it the bytes"
    cluster.put(narrow, queue="exams", files={"in": {"reference": shas["of narrow"]}})
    cluster.claim(smith)
    assert reached(smith) == {"of exams", "of narrow", "lab's"}
    assert reached(node) == {"of exams", "of narrow"}

    def listed(caller: Caller) -> set[str]:
        found = cluster.store.read(lambda db: blobs.granted(db, caller.uploads, limit=9)).result()
        return {one["sha256"] for one in found}

    assert listed(ala) == set(shas.values())
    assert listed(narrow) == {shas["of narrow"]}
    assert not cluster.store.write(lambda db: blobs.disown(db, shas["of ala"], narrow.uploads)).result()
    assert cluster.store.write(lambda db: blobs.disown(db, shas["of narrow"], narrow.uploads)).result()
    assert listed(ala) == set(shas.values()) - {shas["of narrow"]}


# Rescue


def test_a_claim_of_a_silent_node_returns_to_the_queue(
    cluster: Cluster, ala: Caller, smith: Caller, announced: list[Announcement]
) -> None:
    (task_id,) = cluster.put(ala)
    (given,) = cluster.claim(smith).given
    cluster.sleep(61)
    announced.clear()
    (rescued,) = cluster.rescue()
    assert (rescued.task_id, rescued.then) == (task_id, Next.WAIT)
    assert state(cluster, task_id) == "waiting"
    assert [type(one) for one in announced] == [TaskWaiting]
    (attempt,) = history(cluster, task_id)
    assert (attempt["state"], attempt["message"]) == ("lost", "the node fell silent")
    (again,) = cluster.claim(smith, "other").given
    assert again.lease > given.lease


def test_heartbeats_keep_a_claim(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    cluster.put(ala, limits={"time": "1h"})
    (given,) = cluster.claim(smith).given
    for _ in range(10):
        cluster.sleep(40)
        assert cluster.heartbeat(smith, [given.lease]) == claims.Beat((), ())
        assert cluster.rescue() == []


def test_a_heartbeat_that_leaves_a_lease_out_does_not_keep_it(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    (task_id,) = cluster.put(ala)
    cluster.claim(smith)
    cluster.sleep(40)
    cluster.heartbeat(smith, [])
    cluster.sleep(40)
    assert [one.task_id for one in cluster.rescue()] == [task_id]


def test_an_overtaken_node_changes_nothing(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    (task_id,) = cluster.put(ala)
    (old,) = cluster.claim(smith, "frozen").given
    cluster.sleep(61)
    cluster.rescue()
    with pytest.raises(Conflict):
        cluster.finish(smith, old.lease, Outcome.FAILED, result=1)
    assert state(cluster, task_id) == "waiting"
    (new,) = cluster.claim(smith, "fresh").given
    assert cluster.heartbeat(smith, [old.lease], "frozen").lost == (old.lease,)
    assert cluster.heartbeat(smith, [new.lease], "frozen").lost == (new.lease,), "it is another node's"
    with pytest.raises(Conflict):
        cluster.finish(smith, old.lease, Outcome.FAILED, result=1)
    assert cluster.finish(smith, new.lease, result=0) == "done"
    with pytest.raises(Conflict):
        cluster.finish(smith, old.lease, Outcome.FAILED, result=1)
    assert result(cluster, task_id)["outcome"] == "ok"
    assert [one["state"] for one in history(cluster, task_id)] == ["lost", "done"]


def test_a_hung_attempt_is_ended_by_its_deadline_though_its_node_lives(
    cluster: Cluster, ala: Caller, smith: Caller
) -> None:
    (task_id,) = cluster.put(ala)
    (given,) = cluster.claim(smith).given
    for _ in range(4):
        assert cluster.rescue() == []
        cluster.sleep(40)
        cluster.heartbeat(smith, [given.lease])
    assert [one.why for one in cluster.rescue()] == ["the attempt ran past its deadline"]
    assert cluster.heartbeat(smith, [given.lease]).lost == (given.lease,)
    assert state(cluster, task_id) == "waiting"


def test_a_task_that_keeps_losing_its_nodes_ends_as_error_with_its_history(
    cluster: Cluster, ala: Caller, smith: Caller, announced: list[Announcement]
) -> None:
    (task_id,) = cluster.put(ala)
    for attempt in range(cluster.rules.attempts):
        assert state(cluster, task_id) == "waiting"
        cluster.claim(smith, f"node{attempt}")
        cluster.sleep(61)
        cluster.rescue()
    assert state(cluster, task_id) == "done"
    stored = result(cluster, task_id)
    assert stored["outcome"] == "error"
    for attempt in range(cluster.rules.attempts):
        assert f"node{attempt}: the node fell silent" in str(stored["message"])
    assert stored["limits"] == {"cpus": 1, "memory": 64 << 20, "time": 10.0}
    assert TaskDone(task_id) in announced
    assert ids(cluster.claim(smith)) == []


def test_a_task_that_asks_never_to_run_twice_is_not(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    (task_id,) = cluster.put(ala, retry={"max": 0, "on": []})
    cluster.claim(smith)
    cluster.sleep(61)
    cluster.rescue()
    assert result(cluster, task_id)["outcome"] == "error"


def test_a_failed_task_is_tried_again_as_its_retry_says(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    (task_id,) = cluster.put(ala, retry={"max": 2, "on": ["failed"]})
    for expected in ("waiting", "waiting", "done"):
        (given,) = cluster.claim(smith).given
        assert cluster.finish(smith, given.lease, Outcome.FAILED, result=1) == expected
        assert cluster.finish(smith, given.lease, Outcome.FAILED, result=1) == expected, "repeated: the same"
    assert result(cluster, task_id)["outcome"] == "failed"
    assert [one["outcome"] for one in history(cluster, task_id)] == ["failed"] * 3


def test_an_attempt_given_back_is_no_loss(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    (task_id,) = cluster.put(ala)
    for _ in range(cluster.rules.attempts + 2):
        (given,) = cluster.claim(smith).given
        for _repeated in range(2):
            held, then = cluster.store.write(
                lambda db, lease=given.lease: claims.release(db, lease, smith.user_id, "draining", cluster.now)  # type: ignore[misc]
            ).result()
            assert (held.task_id, then) == (task_id, "waiting")
        with pytest.raises(Conflict):
            cluster.finish(smith, given.lease)
    assert state(cluster, task_id) == "waiting"
    assert history(cluster, task_id)[0]["message"] == "draining"


def test_the_shared_clock_goes_by_the_fastest_and_never_back(cluster: Cluster) -> None:
    assert cluster.store.read(lambda db: db.row("SELECT steady FROM clock")).result() == (0.0,)
    told = [cluster.store.write(lambda db, at=at: leases.wind(db, at)).result() for at in (5.0, 3.0, 7.0)]  # type: ignore[misc]
    assert told == [5.0, 5.0, 7.0]


def test_a_clock_that_is_set_loses_nobodys_attempts(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    cluster.put(ala)
    (given,) = cluster.claim(smith).given
    cluster.wall += 86_400
    assert cluster.rescue() == []
    cluster.wall -= 2 * 86_400
    assert cluster.rescue() == []
    assert cluster.finish(smith, given.lease) == "done"


# Cancelling


def test_a_waiting_task_is_cancelled_at_once(
    cluster: Cluster, ala: Caller, smith: Caller, announced: list[Announcement]
) -> None:
    (task_id,) = cluster.put(ala)
    cancel(cluster, task_id)
    assert result(cluster, task_id)["outcome"] == "cancelled"
    assert TaskDone(task_id) in announced
    assert ids(cluster.claim(smith)) == []
    with pytest.raises(Conflict):
        cancel(cluster, task_id)


def test_a_running_task_is_cancelled_through_its_node(
    cluster: Cluster, ala: Caller, smith: Caller, announced: list[Announcement]
) -> None:
    (task_id,) = cluster.put(ala)
    (given,) = cluster.claim(smith).given
    cancel(cluster, task_id)
    cancel(cluster, task_id)
    assert state(cluster, task_id) == "running"
    assert CancelAsked("anvil") in announced
    assert cluster.claim(smith).cancel == (given.lease,)
    assert cluster.claim(smith, "other").cancel == ()
    assert cluster.heartbeat(smith, [given.lease]).cancel == (given.lease,)
    assert cluster.finish(smith, given.lease, Outcome.CANCELLED) == "done"
    assert cluster.claim(smith).cancel == ()


@pytest.mark.parametrize("end", ["lost", "released", "failed"])
def test_a_cancelled_task_is_never_tried_again(cluster: Cluster, ala: Caller, smith: Caller, end: str) -> None:
    (task_id,) = cluster.put(ala, retry={"max": 9, "on": ["failed", "lost", "error"]})
    (given,) = cluster.claim(smith).given
    cancel(cluster, task_id)
    if end == "lost":
        cluster.sleep(61)
        cluster.rescue()
    elif end == "released":
        cluster.store.write(lambda db: claims.release(db, given.lease, smith.user_id, "", cluster.now)).result()
    else:
        cluster.finish(smith, given.lease, Outcome.FAILED, result=1)
    assert state(cluster, task_id) == "done"
    assert result(cluster, task_id)["outcome"] == ("failed" if end == "failed" else "cancelled")


# Keys, listings, deletion


def test_an_idempotency_key_is_one_task_for_its_owner(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    ola = cluster.user("ola")
    first = cluster.put(ala, key="k")
    assert cluster.put(ala, key="k", name="ignored") == first
    assert cluster.put(ala, key="other") != first
    assert cluster.put(ola, key="k") != first
    assert len(ids(cluster.claim(smith))) == 3


def test_listings_filter_and_page(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    ola = cluster.user("ola")
    put = [cluster.put(ala, labels={"n": str(n % 2), "all": "x"}, name=f"t{n}")[0] for n in range(5)]
    (hers,) = cluster.put(ola, labels={"all": "x"})

    def listed(**filters: object) -> list[str]:
        return [
            row["id"]
            for row in cluster.store.read(lambda db: tasks.listing(db, tasks.Filters(**filters))).result()  # type: ignore[arg-type]
        ]

    assert listed() == [hers, *reversed(put)]
    assert listed(owner_id=ala.user_id) == list(reversed(put))
    assert listed(owner="ola") == [hers]
    assert listed(labels=(("n", "1"),)) == [put[3], put[1]]
    assert listed(labels=(("n", "1"), ("all", "x"))) == [put[3], put[1]]
    assert listed(labels=(("n", "1"), ("all", "y"))) == []
    assert listed(name="t3") == [put[3]]
    assert listed(state="running") == []
    cluster.claim(smith, slots=1)
    assert len(listed(state="running")) == 1
    assert listed(limit=2) == [hers, put[4]]
    assert listed(limit=2, after=number(cluster, put[4])) == [put[3], put[2]]


def test_a_deleted_task_leaves_only_its_accounting(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    cluster.store.write(lambda db: blobs.add(db, SHA, 5, place_of(SHA), user_id=ala.user_id, now=0.0)).result()
    (task_id,) = cluster.put(ala, labels={"a": "b"}, files={"in": {"reference": SHA}})
    (given,) = cluster.claim(smith).given
    cluster.finish(smith, given.lease)
    at = number(cluster, task_id)
    cluster.store.write(lambda db: tasks.delete(db, [at], 0.0)).result()
    for table in ("tasks", "specs", "results", "labels", "attempts", "leases", "blob_references"):
        assert cluster.store.read(lambda db, t=table: db.row(f"SELECT COUNT(*) FROM {t}")).result() == (0,)  # type: ignore[misc]
    assert cluster.store.read(lambda db: db.row("SELECT COUNT(*) FROM accounting")).result() == (1,)


def test_a_moved_task_never_leaves_its_end(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    (task_id,) = cluster.put(ala)
    (given,) = cluster.claim(smith).given
    cluster.finish(smith, given.lease)
    at = number(cluster, task_id)
    for to in (tasks.TaskState.WAITING, tasks.TaskState.RUNNING, tasks.TaskState.DONE):
        assert not cluster.store.write(lambda db, to=to: tasks.move(db, at, to, now=0.0)).result()  # type: ignore[misc]


def test_depth_counts_what_waits_and_runs(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    cluster.put(ala, count=5)
    cluster.claim(smith, slots=2)
    assert sorted(cluster.store.read(tasks.depth).result()) == [("default", "running", 2), ("default", "waiting", 3)]


def test_nodes_are_listed_with_what_runs_on_them(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    put = cluster.put(ala, count=3)
    cluster.claim(smith, "b", slots=2, tags=["y", "x"])
    cluster.claim(smith, "a", slots=1)
    a, b = cluster.store.read(nodes.listing).result()
    assert (a["name"], a["running"]) == ("a", put[2:])
    assert (b["name"], b["running"], b["tags"]) == ("b", put[:2], ["y", "x"])
    assert cluster.store.read(lambda db: nodes.listing(db, "b")).result() == [b]


def test_many_works_at_once_keep_every_rule(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    """A long random life: whatever happens, each task ends with one result, and running tasks are those with leases."""
    dice = random.Random(11)
    cluster.rules = dataclasses.replace(cluster.rules, attempts=4)
    put: list[str] = []
    held: list[int] = []
    for _ in range(400):
        match dice.choice(["put", "put", "claim", "finish", "beat", "rescue", "cancel", "release"]):
            case "put":
                put += cluster.put(ala, retry={"max": dice.randint(0, 1), "on": ["failed", "lost"]})
            case "claim":
                held += [one.lease for one in cluster.claim(smith, f"node{dice.randint(0, 2)}", slots=2).given]
            case "finish" if held:
                lease = held.pop(dice.randrange(len(held)))
                try:
                    cluster.finish(smith, lease, dice.choice([Outcome.OK, Outcome.FAILED]), result=1)
                except Conflict:
                    assert not cluster.store.read(
                        lambda db, lease=lease: db.row("SELECT 1 FROM leases WHERE lease = ?", lease)  # type: ignore[misc]
                    ).result()
            case "beat":
                for node in range(3):
                    cluster.heartbeat(smith, held, f"node{node}")
            case "rescue":
                cluster.sleep(35)
                cluster.rescue()
            case "cancel" if put:
                try:
                    cancel(cluster, dice.choice(put))
                except Conflict:
                    continue
            case "release" if held:
                lease = held.pop()
                try:
                    cluster.store.write(
                        lambda db, lease=lease: claims.release(db, lease, smith.user_id, "", cluster.now)  # type: ignore[misc]
                    ).result()
                except Conflict:
                    continue
        running, leased = cluster.store.read(lambda db: (
            {row[0] for row in db.rows("SELECT number FROM tasks WHERE state = 'running'")},
            [row[0] for row in db.rows("SELECT number FROM leases")],
        )).result()  # fmt: skip
        assert sorted(running) == sorted(leased)
        mismatch = cluster.store.read(lambda db: db.rows(
            "SELECT t.number FROM tasks t LEFT JOIN results r ON r.number = t.number"
            " WHERE (t.state = 'done') <> (r.number IS NOT NULL)"
        )).result()  # fmt: skip
        assert mismatch == []
    assert len(put) > 50

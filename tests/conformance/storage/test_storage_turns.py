"""Shares, ceilings, reservations and queues, on every storage engine."""

from __future__ import annotations

import dataclasses

import pytest

from kolejka.common.errors import Conflict, InputError
from kolejka.common.limits import Limits
from kolejka.common.stats import CpuStats, Stats
from kolejka.server.auth.tokens import Caller
from kolejka.server.scheduling.match import Ahead
from kolejka.server.scheduling.queues import Queue
from kolejka.server.storage import queues, tasks, usage
from kolejka.server.storage.base import Announcement, TaskWaiting
from tests.conformance.storage.conftest import Cluster


def ids(cluster: Cluster, caller: Caller, **words: object) -> list[str]:
    return [given.task_id for given in cluster.claim(caller, **words).given]  # type: ignore[arg-type]


def save(cluster: Cluster, name: str = "default", **policy: object) -> None:
    cluster.store.write(lambda db: queues.save(db, Queue.parse(name, policy))).result()


def fold(cluster: Cluster) -> int:
    return cluster.store.write(lambda db: usage.fold(db, half_life_s=3600.0)).result()


def test_what_was_used_is_charged_once_and_decides_who_goes_first(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    ola = cluster.user("ola")
    cluster.put(ala)
    (given,) = cluster.claim(smith).given
    cluster.finish(smith, given.lease, stats=Stats(time=600.0, cpu=CpuStats(usage=600.0)))
    first, second = cluster.put(ala), cluster.put(ola)
    assert (fold(cluster), fold(cluster)) == (1, 0)
    owed = cluster.store.read(
        lambda db: usage.of_owners(db, [ala.user_id, ola.user_id], half_life_s=3600.0, now=cluster.wall + 3600.0)()
    ).result()
    assert owed == {ala.user_id: pytest.approx(300.0)}
    assert ids(cluster, smith, slots=1) == second
    assert ids(cluster, smith, slots=1) == first


def test_tasks_are_given_ahead_of_room_unless_a_ceiling_counts_them(
    cluster: Cluster, ala: Caller, smith: Caller
) -> None:
    cluster.put(ala, count=10)
    ahead = Ahead(Limits.of(cpus=4, memory="1G"), 4)
    assert len(cluster.claim(smith, "a", slots=1, free={"cpus": 1}, ahead=ahead).given) == 5
    assert len(cluster.claim(smith, "b", slots=0, ahead=Ahead(Limits.of(cpus=1), 4)).given) == 4
    cluster.put(ala, count=10)
    save(cluster, "other", running=100)
    assert len(cluster.claim(smith, "c", slots=1, free={"cpus": 1}, ahead=ahead).given) == 1
    assert cluster.claim(smith, "d", slots=0, ahead=ahead).given == ()


def test_ceilings_of_queue_owner_and_server(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    ola = cluster.user("ola")
    save(cluster, running=3, running_per_owner=2)
    cluster.put(ala, count=5)
    cluster.put(ola, count=5)
    first = cluster.claim(smith)
    assert (len(first.given), first.held) == (3, True)
    assert ids(cluster, smith, node="other") == []
    cluster.finish(smith, first.given[0].lease)
    assert len(ids(cluster, smith)) == 1
    save(cluster)
    cluster.rules = dataclasses.replace(cluster.rules, running_per_owner=2)
    assert len(ids(cluster, smith)) == 1, "two of one owner, two of the other"


def test_what_was_looked_at_and_not_given_is_announced_as_waiting(
    cluster: Cluster, ala: Caller, smith: Caller, announced: list[Announcement]
) -> None:
    ola = cluster.user("ola")
    for caller in (ala, ola):
        cluster.put(caller, count=5)
    announced.clear()
    given = {one.owner for one in cluster.claim(smith, slots=2).given}
    assert given == {"ala", "ola"}
    left = [one for one in announced if isinstance(one, TaskWaiting)]
    assert [(one.owner, one.number) for one in left] == [(ala.user_id, 2)], "of hers two were looked at first"
    announced.clear()
    assert len(cluster.claim(smith, slots=8).given) == 8
    assert not [one for one in announced if isinstance(one, TaskWaiting)]
    assert len(cluster.classes.board) == 0, "nothing is left, which needs no look"


def test_a_look_begins_at_the_bound(cluster: Cluster, ala: Caller) -> None:
    cluster.put(ala, count=3)
    ((queue, signature, rank, owner, first),) = cluster.store.read(tasks.waiting_groups).result()

    def numbers(first: int, count: int) -> list[int]:
        return cluster.store.write(
            lambda db: tasks.oldest(db, (queue, signature, rank, owner), first=first, count=count, in_hand=True)
        ).result()

    assert numbers(0, 2) == [first, first + 1]
    assert numbers(first + 1, 9) == [first + 1, first + 2]


def test_a_paused_queue_gives_nothing_and_a_draining_one_what_it_has(
    cluster: Cluster, ala: Caller, smith: Caller
) -> None:
    put = cluster.put(ala)
    save(cluster, state="paused")
    assert ids(cluster, smith) == []
    save(cluster, state="draining")
    with pytest.raises(Conflict):
        cluster.put(ala)
    assert ids(cluster, smith) == put


def test_a_queue_with_tasks_is_not_deleted_and_members_are_users(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    cluster.put(ala)
    for _ in ("waiting", "running"):
        with pytest.raises(Conflict):
            cluster.store.write(lambda db: queues.delete(db, "default")).result()
        given = cluster.claim(smith).given
    with pytest.raises(InputError) as caught:
        save(cluster, members=["nobody"])
    assert caught.value.field == "members"
    assert not given
    assert cluster.store.read(lambda db: queues.get(db, "default")).result() == Queue("default")


def test_a_big_task_gets_a_node_reserved_and_short_ones_fill_the_time(
    cluster: Cluster, ala: Caller, smith: Caller
) -> None:
    total = {"cpus": 4}
    cluster.put(ala, limits={"cpus": 3, "time": "100s"})
    (running,) = cluster.claim(smith, total=total).given
    big = cluster.put(ala, limits={"cpus": 4, "time": "10s"})
    cluster.sleep(61)
    long = cluster.put(ala, limits={"cpus": 1, "time": "50s"})
    short = cluster.put(ala, limits={"cpus": 1, "time": "39s"})
    held = cluster.claim(smith, total=total, free={"cpus": 1})
    assert [given.task_id for given in held.given] == short
    assert held.held
    assert held.offer is None
    kept = cluster.store.read(lambda db: usage.reservations(db, heard_after=cluster.wall - 60)()).result()
    assert [(one.node, tasks_id(cluster, one.number)) for one in kept] == [("anvil", big[0])]
    cluster.finish(smith, running.lease)
    assert ids(cluster, smith, total=total, free={"cpus": 3}) == [], "a short one still runs; the long one waits"
    cluster.finish(smith, held.given[0].lease)
    assert ids(cluster, smith, total=total) == big
    assert cluster.store.read(lambda db: usage.reservations(db, heard_after=0)()).result() == []
    assert ids(cluster, smith, node="other", total=total) == long


def tasks_id(cluster: Cluster, number: int) -> str:
    return cluster.store.read(lambda db: tasks.ids(db, [number])).result()[number]


def test_a_reservation_ends_with_its_node_or_its_task(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    total = {"cpus": 4}
    cluster.put(ala, limits={"cpus": 3, "time": "500s"})
    cluster.claim(smith, total=total)
    big = cluster.put(ala, limits={"cpus": 4, "time": "10s"})
    cluster.sleep(61)
    assert ids(cluster, smith, total=total, free={"cpus": 1}) == []
    assert ids(cluster, smith, node="other", total=total) == big, "another node has room sooner"
    small = cluster.put(ala, limits={"cpus": 1, "time": "900s"})
    assert ids(cluster, smith, total=total, free={"cpus": 1}) == small

"""Many who claim, put, finish, cancel and rescue at the same time: nothing is given twice, nothing is lost."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kolejka.common.errors import Conflict, NotFound
from kolejka.server.scheduling import claims
from kolejka.server.scheduling.claims import Given
from kolejka.server.scheduling.queues import Queue
from kolejka.server.storage import queues, tasks
from kolejka.server.storage.base import Announcement, Connection, Store
from kolejka.server.storage.tasks import Filters
from tests.conformance.storage.conftest import Cluster, MakeStore

THREADS = 8


@pytest.fixture
def crew() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(THREADS) as crew:
        yield crew


@pytest.fixture
def clusters(make_store: MakeStore, announced: list[Announcement]) -> list[Cluster]:
    """The same database as several servers see it: each its own store and caches; SQLite has one."""
    first = make_store(announced.extend)
    stores: list[Store] = [first] if first.alone else [first, make_store(lambda _: None)]
    return [Cluster(store) for store in stores]


def at_once(crew: ThreadPoolExecutor, work: Callable[[int], object]) -> list[object]:
    """The work, by every thread at the same moment."""
    together = threading.Barrier(THREADS)

    def begin(place: int) -> object:
        together.wait(30)
        return work(place)

    return list(crew.map(begin, range(THREADS)))


def test_no_task_is_given_twice_and_none_is_left_lying(clusters: list[Cluster], crew: ThreadPoolExecutor) -> None:
    ala, smith = clusters[0].user("ala"), clusters[0].user("smith")
    put = clusters[0].put(ala, count=400)

    def claim(place: int) -> list[tuple[int, str]]:
        cluster, mine = clusters[place % len(clusters)], []
        while given := cluster.claim(smith, f"node{place}", slots=7, total={"cpus": 1000, "memory": "1T"}).given:
            mine += [(one.lease, one.task_id) for one in given]
        return mine

    found = at_once(crew, claim)
    given = [one for mine in found for one in mine]  # type: ignore[attr-defined]
    assert Counter(task_id for _, task_id in given) == Counter(put)
    assert len({lease for lease, _ in given}) == len(given)
    assert all(mine == sorted(mine) for mine in found), "leases grow"  # type: ignore[type-var]


def test_changes_of_one_queue_at_the_same_time_are_all_kept(clusters: list[Cluster], crew: ThreadPoolExecutor) -> None:
    fields = {
        "state": "paused", "images": ["a"], "runtimes": ["sandbox"], "defaults": {"cpus": 1}, "ceilings": {"cpus": 2},
        "running": 3, "running_per_owner": 4, "retention_s": 5.0,
    }  # fmt: skip

    def change(place: int) -> object:
        name = list(fields)[place]
        store = clusters[place % len(clusters)].store
        return store.write(lambda db: queues.change(db, "default", {name: fields[name]})).result()

    at_once(crew, change)
    kept = clusters[0].store.read(lambda db: queues.get(db, "default")).result().to_json()
    assert {name: kept[name] for name in fields} == fields


def test_a_queue_is_deleted_once(clusters: list[Cluster], crew: ThreadPoolExecutor) -> None:
    clusters[0].store.write(lambda db: queues.save(db, Queue("short"))).result()

    def delete(place: int) -> bool:
        with contextlib.suppress(NotFound):
            clusters[place % len(clusters)].store.write(lambda db: queues.delete(db, "short")).result()
            return True
        return False

    assert sorted(at_once(crew, delete)) == [False] * (THREADS - 1) + [True]  # type: ignore[type-var]


@pytest.mark.parametrize("make_store", [pytest.param("postgres", marks=pytest.mark.needs("postgres"))], indirect=True)
def test_claims_at_the_same_time_share_what_waits(clusters: list[Cluster]) -> None:
    ala, smith = clusters[0].user("ala"), clusters[0].user("smith")
    put = clusters[0].put(ala, count=6)
    begun, over = threading.Event(), threading.Event()

    def hold(db: Connection) -> None:
        found = tasks.find(db, put[0])
        assert found is not None
        assert tasks.take_waiting(db, found.number)
        assert not clusters[1].store.write(lambda other: tasks.take_waiting(other, found.number)).result()
        begun.set()
        assert over.wait(30)

    held = clusters[0].store.write(hold)
    assert begun.wait(30)
    assert [one.task_id for one in clusters[1].claim(smith, "b", slots=2).given] == put[1:3], "the first is passed over"
    over.set()
    held.result()
    assert [one.task_id for one in clusters[1].claim(smith, "c", slots=2).given] == [put[0], put[3]]


def test_a_claim_is_overtaken_by_a_newer_one_of_its_node_at_another_server(clusters: list[Cluster]) -> None:
    ala, smith = clusters[0].user("ala"), clusters[0].user("smith")
    older = clusters[0].claim(smith)
    newer = clusters[-1].claim(smith)
    assert newer.turn > older.turn
    clusters[0].put(ala)
    late = clusters[0].claim(smith, turn=older.turn)
    assert (late.given, late.over) == ((), True)
    assert len(clusters[-1].claim(smith, turn=newer.turn).given) == 1


def test_what_another_server_gave_a_node_a_moment_before_is_taken_off_its_offer(clusters: list[Cluster]) -> None:
    """The answer is still on its way, so the node's figures and its leases do not know of it."""
    ala, smith = clusters[0].user("ala"), clusters[0].user("smith")
    clusters[0].put(ala, count=20, limits={"cpus": 3})
    (known,) = clusters[0].claim(smith, slots=1, total={"cpus": 16}).given
    (missed,) = clusters[0].claim(smith, slots=1, total={"cpus": 16}, free={"cpus": 13}, knows=[known.lease]).given
    late = clusters[-1].claim(smith, slots=9, total={"cpus": 16}, free={"cpus": 13}, knows=[known.lease])
    assert len(late.given) == (16 - 2 * 3) // 3
    everything = [known.lease, missed.lease, *(one.lease for one in late.given)]
    assert not clusters[0].claim(smith, slots=9, total={"cpus": 16}, free={"cpus": 1}, knows=everything).given
    assert len(clusters[0].claim(smith, slots=1, total={"cpus": 16}, free={"cpus": 4}, knows=everything).given) == 1


def test_the_slots_of_a_node_count_what_is_on_its_way_to_it(clusters: list[Cluster]) -> None:
    ala, smith = clusters[0].user("ala"), clusters[0].user("smith")
    clusters[0].put(ala, count=20)
    assert len(clusters[0].claim(smith, slots=2, knows=[]).given) == 2
    assert len(clusters[-1].claim(smith, slots=3, knows=[]).given) == 1


def test_an_answer_that_got_lost_is_taken_off_for_a_while_only(clusters: list[Cluster]) -> None:
    ala, smith = clusters[0].user("ala"), clusters[0].user("smith")
    clusters[0].put(ala, count=20)
    assert len(clusters[0].claim(smith, slots=4, knows=[]).given) == 4
    for cluster in {id(one): one for one in clusters}.values():
        cluster.sleep(claims.ON_ITS_WAY_S)
    assert len(clusters[-1].claim(smith, slots=4, knows=[]).given) == 4


def test_one_key_put_by_many_is_one_task(clusters: list[Cluster], crew: ThreadPoolExecutor) -> None:
    ala = clusters[0].user("ala")
    found = at_once(crew, lambda place: clusters[place % len(clusters)].put(ala, key="once"))
    assert len({task_id for (task_id,) in found}) == 1  # type: ignore[misc]


def test_a_user_made_by_many_is_made_once(clusters: list[Cluster], crew: ThreadPoolExecutor) -> None:
    def make(place: int) -> bool:
        try:
            clusters[place % len(clusters)].user("ola")
        except Conflict:
            return False
        return True

    assert sorted(at_once(crew, make)) == [False] * (THREADS - 1) + [True]  # type: ignore[type-var]


def test_a_result_handed_in_by_many_counts_once(clusters: list[Cluster], crew: ThreadPoolExecutor) -> None:
    ala, smith = clusters[0].user("ala"), clusters[0].user("smith")
    clusters[0].put(ala, count=20)
    for given in clusters[0].claim(smith, slots=20).given:

        def finish(place: int, lease: int = given.lease) -> str:
            return clusters[place % len(clusters)].finish(smith, lease)

        assert set(at_once(crew, finish)) == {"done"}
    assert clusters[0].store.read(lambda db: db.row("SELECT COUNT(*) FROM accounting")).result() == (20,)


@pytest.mark.parametrize("ran", [True, False])
def test_a_task_deleted_by_many_is_deleted_once_and_told_once(
    clusters: list[Cluster], crew: ThreadPoolExecutor, ran: bool
) -> None:
    """While its result is handed in again, which takes the same rows; or though it has no attempt to be taken."""
    ala, smith = clusters[0].user("ala"), clusters[0].user("smith")
    for _ in range(5):
        given: list[Given] = []
        for task_id in clusters[0].put(ala, count=8):
            if ran:
                given += clusters[0].claim(smith, slots=1).given
                clusters[0].finish(smith, given[-1].lease)
            else:
                clusters[0].store.write(
                    lambda db, task_id=task_id: claims.cancel(db, tasks.find(db, task_id), clusters[0].now)  # type: ignore[misc]
                ).result()
        numbers = [row["number"] for row in clusters[0].store.read(lambda db: tasks.listing(db, Filters())).result()]

        def end(place: int, numbers: list[int] = numbers, given: list[Given] = given) -> int:
            cluster = clusters[place % len(clusters)]
            if place < THREADS // 2:
                return len(cluster.store.write(lambda db: tasks.delete(db, numbers[::-1], cluster.wall)).result())
            for one in given:
                with contextlib.suppress(Conflict):  # deleted before
                    cluster.finish(smith, one.lease)
            return 0

        assert sum(at_once(crew, end)) == 8  # type: ignore[arg-type]
    told = clusters[0].store.read(lambda db: db.row("SELECT COUNT(*) FROM events WHERE what = 'deleted'")).result()
    assert told == (40,)


def test_a_task_that_is_not_done_is_not_deleted_whoever_claims_it(
    clusters: list[Cluster], crew: ThreadPoolExecutor
) -> None:
    ala, smith = clusters[0].user("ala"), clusters[0].user("smith")
    clusters[0].put(ala, count=80)
    numbers = [row["number"] for row in clusters[0].store.read(lambda db: tasks.listing(db, Filters())).result()]

    def act(place: int) -> int:
        cluster = clusters[place % len(clusters)]
        if place % 2:
            return len(cluster.store.write(lambda db: tasks.delete(db, numbers, cluster.wall)).result())
        return -len(cluster.claim(smith, f"node{place}", slots=20).given)

    assert sum(at_once(crew, act)) == -80  # type: ignore[arg-type]
    assert clusters[0].store.read(lambda db: db.row("SELECT COUNT(*) FROM attempts")).result() == (80,)


def test_whoever_ends_an_attempt_first_ends_it(clusters: list[Cluster], crew: ThreadPoolExecutor) -> None:
    """Results, cancels, releases, rescues and heartbeats at once: each task ends once, and leases are of what runs."""
    ala, smith = clusters[0].user("ala"), clusters[0].user("smith")
    for cluster in clusters:
        cluster.rules = claims.Rules(heartbeat_s=60, deadline_margin_s=120, attempts=10_000)
    put = clusters[0].put(ala, count=60, retry={"max": 0, "on": ["lost"]})

    def live(place: int) -> None:
        dice, cluster, mine = random.Random(place), clusters[place % len(clusters)], list[int]()
        node = f"node{place % 3}"
        for _ in range(60):
            try:
                match dice.choice(["claim", "claim", "finish", "beat", "rescue", "cancel", "release"]):
                    case "claim":
                        mine += [one.lease for one in cluster.claim(smith, node, slots=3).given]
                    case "finish" if mine:
                        cluster.finish(smith, mine.pop(dice.randrange(len(mine))))
                    case "beat":
                        cluster.heartbeat(smith, mine, node)
                    case "rescue":
                        cluster.sleep(25)
                        cluster.rescue()
                    case "release" if mine:
                        lease = mine.pop()
                        cluster.store.write(
                            lambda db, lease=lease: claims.release(db, lease, smith.user_id, "", cluster.now)  # type: ignore[misc]
                        ).result()
                    case "cancel" if dice.random() < 0.3:
                        task_id = dice.choice(put)
                        cluster.store.write(
                            lambda db, task_id=task_id: claims.cancel(db, tasks.find(db, task_id), cluster.now)  # type: ignore[misc, arg-type]
                        ).result()
            except Conflict:
                continue

    at_once(crew, live)
    one = clusters[0]
    running, leased, attempts, mismatched, ended = one.store.read(lambda db: (
        {row[0] for row in db.rows("SELECT number FROM tasks WHERE state = 'running'")},
        [row[0] for row in db.rows("SELECT number FROM leases")],
        [row[0] for row in db.rows("SELECT number FROM attempts WHERE state = 'running'")],
        db.rows("SELECT t.number FROM tasks t LEFT JOIN results r ON r.number = t.number"
                " WHERE (t.state = 'done') <> (r.number IS NOT NULL)"),
        db.row("SELECT COUNT(*) FROM results"),
    )).result()  # fmt: skip
    assert sorted(running) == sorted(leased) == sorted(attempts)
    assert mismatched == []
    assert ended is not None
    while (
        any(one.claim(smith, "last", slots=60, total={"cpus": 1000, "memory": "1T"}).given)
        or one.store.read(lambda db: db.row("SELECT 1 FROM leases LIMIT 1")).result()
    ):
        for (lease,) in one.store.read(lambda db: db.rows("SELECT lease FROM leases")).result():
            one.finish(smith, lease)
    assert one.store.read(lambda db: db.row("SELECT COUNT(*) FROM results")).result() == (60,)

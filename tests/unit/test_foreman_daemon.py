"""The foreman with a pool and a server in memory: what it claims, runs, keeps, gives back, and how it ends."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kolejka.client.node import Attempt
from kolejka.common.errors import Conflict, InputError, NodeError, NotAllowed, NotFound, Unavailable
from kolejka.common.limits import Limits
from kolejka.common.result import Outcome, Result
from kolejka.foreman import claims, heartbeat, leftovers, slots, upload
from kolejka.foreman import spool as spool_module
from kolejka.foreman.board import Board, InLine, NodeState, Running
from kolejka.foreman.daemon import Foreman
from kolejka.foreman.pack import Misfit, Wish
from kolejka.worker.job import Job
from tests.support import wait_until
from tests.unit.foreman_fakes import EMPTY, FakePool, FakeServer, foreman_of, offer_of, task, with_file


class World:
    """A foreman and its fakes; whatever a test leaves running is ended."""

    def __init__(self, data: Path, **settings: Any) -> None:
        self.data = data
        data.mkdir(exist_ok=True)
        self.server = FakeServer()
        self.pool = FakePool()
        self.settings = settings
        self.foreman: Foreman | None = None

    def start(self, offer: Any = None, **words: Any) -> Foreman:
        self.foreman = foreman_of(self.data, self.server, self.pool, offer, **self.settings, **words)
        self.foreman.start()
        return self.foreman

    def jobs(self, count: int) -> list[Any]:
        wait_until(lambda: len(self.pool.started) >= count)
        return self.pool.started

    def results(self, count: int) -> dict[int, Result]:
        wait_until(lambda: len(self.server.results) >= count)
        return self.server.results

    def nothing_left(self) -> bool:
        return not [path for name in ("running", "spool") for path in (self.data / name).iterdir()]

    def end(self) -> None:
        if self.foreman is not None:
            self.server.set_down(False)
            self.foreman.stop()
            self.pool.finish_all()
            assert self.foreman.wait_finished(30)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for module in (upload, slots, heartbeat):
        monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
        monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr("kolejka.foreman.daemon.LAST_ANSWERS_S", 0.01)
    made = World(tmp_path / "data")
    yield made
    made.end()


def test_tasks_side_by_side_are_told_different_gpus_and_others_none(world: World) -> None:
    for name, count in (("a", 1), ("b", 1), ("c", 0)):
        asked = task(name)
        world.server.put(asked.replace(limits=asked.limits.replace(gpus=count)))
    world.start(replace(offer_of(4, gpus=2, gpu_memory="16G"), gpus=("GPU-a", "GPU-b")))
    jobs = world.jobs(3)
    assert sorted(job.gpus for job in jobs) == [(), ("GPU-a",), ("GPU-b",)]
    assert sorted(job.limits.get("gpus") for job in jobs) == [0, 1, 1]
    assert {job.limits.get("gpu_memory") for job in jobs} == {None}, "what the least GPU has is no ceiling"


def test_a_task_goes_from_the_claim_to_its_result_and_leaves_nothing(world: World) -> None:
    world.pool.outcomes["a"] = with_file()
    world.server.put(task("a"))
    world.start()
    job = world.jobs(1)[0]
    assert job.cpuset == (0,)
    assert job.node == {"name": "n1", "tags": ["tag"]}
    assert job.limits == Limits.of(cpus=1, memory="64M", pids=16)
    assert job.blobs is None
    world.pool.finish()
    result = world.results(1)[1]
    assert (result.id, result.outcome, result.files) == ("a", Outcome.OK, ("stdout.txt",))
    assert world.server.blobs == {EMPTY: b""}
    wait_until(world.nothing_left)
    foreman = world.foreman
    assert foreman is not None
    wait_until(lambda: foreman.board.leases() == [])


def test_a_long_task_never_keeps_the_other_slots_idle(world: World) -> None:
    world.start(offer_of(3))
    world.server.put(task("long"))
    world.jobs(1)
    for number in range(20):
        world.server.put(task(f"short-{number}"))
        world.jobs(number + 2)
        world.pool.finish()
    world.results(20)
    assert "long" not in {result.id for result in world.server.results.values()}
    assert world.pool.started[0].slot not in {job.slot for job in world.pool.started[1:]}


def test_what_frees_while_a_request_waits_at_the_server_is_offered_at_once(world: World) -> None:
    world.start(offer_of(2))
    world.server.put(task("small"))
    world.jobs(1)
    wait_until(lambda: world.server.claims[-1]["slots"] == 1, about="the rest of the node is on offer")
    world.server.put(task("big", cpus=2))
    world.pool.finish()
    assert world.jobs(2)[1].cpuset == (0, 1)
    assert world.server.released == {}


def test_a_request_asks_once_waits_once_and_is_not_repeated_while_nothing_changes(world: World) -> None:
    foreman = world.start(offer_of(2))
    wait_until(lambda: len(world.server.claims) == 2)
    with foreman.board.changed:
        foreman.board.changed.notify_all()
    world.server.put(task("a"))
    world.jobs(1)
    wait_until(lambda: len(world.server.claims) == 4)
    assert [(claim["slots"], claim["wait_s"]) for claim in world.server.claims] == [(2, 0), (2, 30), (1, 0), (1, 30)]
    assert [claim["leases"] for claim in world.server.claims] == [[], [], [1], [1]], "what the figures know of"
    assert world.server.claims[-1]["capacity"].get("cpus") == 1


# Ahead of room.


@pytest.fixture
def brisk(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Every task is a short one, and who stands in line does so as long as the test likes."""
    monkeypatch.setattr("kolejka.foreman.board.AHEAD_S", 1000.0)
    monkeypatch.setattr("kolejka.foreman.board.PATIENCE_S", 1000.0)
    return world


def test_short_tasks_are_asked_for_many_at_a_time_and_run_in_order(brisk: World) -> None:
    brisk.pool.instant = True
    tasks = [task(f"t{number}") for number in range(100)]
    brisk.server.put(*tasks)
    brisk.start(offer_of(1))
    brisk.results(100)
    assert [job.task.id for job in brisk.pool.started] == [one.id for one in tasks]
    assert len(brisk.server.claims) < 20
    assert brisk.server.released == {}
    assert max(map(len, brisk.server.together)) > 1
    wait_until(brisk.nothing_left)


def test_results_gather_while_others_stand_in_line(brisk: World, monkeypatch: pytest.MonkeyPatch) -> None:
    standing(brisk)
    monkeypatch.setattr(upload, "GATHER_S", 1000.0)
    monkeypatch.setattr(upload, "TOGETHER", 2)
    for number in range(2):
        brisk.pool.finish()
        brisk.jobs(22 + number)
    brisk.results(22)
    assert brisk.server.together[-1] == [21, 22]


def test_nothing_is_asked_ahead_of_room_where_tasks_are_long(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kolejka.foreman.board.AHEAD_S", 0.0)
    world.pool.instant = True
    world.server.put(*(task(f"t{number}") for number in range(10)))
    world.start(offer_of(2))
    world.results(10)
    assert {claim["ahead"] for claim in world.server.claims} == {0}


def standing(world: World) -> Foreman:
    """A node of one slot that did short tasks, and went on with a long one; three more of that kind stand in line."""
    lasting = [task(f"long-{number}") for number in range(4)]
    world.pool.instant, world.pool.lasting = True, frozenset(str(one.id) for one in lasting)
    world.server.put(*(task(f"short-{number}") for number in range(20)), *lasting)
    foreman = world.start(offer_of(1))
    world.results(20)
    wait_until(lambda: foreman.board.in_line() == 3 and foreman.board.backlog() == 0)
    return foreman


def test_who_stands_in_line_for_too_long_goes_back_unstarted(brisk: World, monkeypatch: pytest.MonkeyPatch) -> None:
    foreman = standing(brisk)
    monkeypatch.setattr("kolejka.foreman.board.PATIENCE_S", 0.01)
    with foreman.board.late:
        foreman.board.late.notify_all()  # it would look by itself after the patience that it knew
    wait_until(lambda: {22, 23, 24} <= set(brisk.server.released))
    assert set(brisk.server.released.values()) == {"others took longer than expected"}
    assert foreman.board.leases() == [21]
    assert len(brisk.pool.started) == 21
    wait_until(lambda: [path.name for path in (brisk.data / "running").iterdir()] == ["21-long-0"])


def test_who_stands_in_line_is_known_to_the_server_and_to_the_next_life(brisk: World) -> None:
    foreman = standing(brisk)
    assert foreman.board.leases() == [21, 22, 23, 24]
    folders = {path.name for path in (brisk.data / "running").iterdir()}
    assert folders == {"21-long-0", "22-long-1", "23-long-2", "24-long-3"}
    assert foreman.board.free().slots == 0, "heartbeats tell what is free without them"


def test_a_task_that_is_cancelled_in_line_ends_and_one_that_is_lost_is_dropped(brisk: World) -> None:
    foreman = standing(brisk)
    brisk.server.cancel(22)
    brisk.server.lost.add(23)
    foreman.pulse.now()
    result = brisk.results(21)[22]
    assert (result.id, result.outcome) == ("long-1", Outcome.CANCELLED)
    wait_until(lambda: foreman.board.leases() == [21, 24])
    brisk.pool.finish()
    assert brisk.jobs(22)[21].task.id == "long-3"
    assert 23 not in brisk.server.results
    brisk.pool.finish()
    wait_until(brisk.nothing_left)


@pytest.mark.parametrize("end", ["drain", "stop", "hold"])
def test_a_node_that_takes_no_more_tasks_gives_back_its_line_at_once(brisk: World, end: str) -> None:
    foreman = standing(brisk)
    if end == "hold":
        brisk.server.ask("drain")
        foreman.pulse.now()
    else:
        getattr(foreman, end)()
    wait_until(lambda: {22, 23, 24} <= set(brisk.server.released))
    assert len(brisk.pool.started) == 21
    brisk.pool.finish()
    if end != "hold":
        assert foreman.wait_finished(30)


def test_nothing_is_asked_ahead_of_room_where_tasks_fail_at_once(brisk: World) -> None:
    brisk.pool.instant, brisk.pool.fault = True, NodeError("nothing works here")
    brisk.server.put(*(task(f"t{number}") for number in range(10)))
    brisk.start(offer_of(2))
    brisk.results(10)
    assert {claim["ahead"] for claim in brisk.server.claims} == {0}


def test_nobody_overtakes_in_line() -> None:
    board = Board(offer_of(2))

    def admit(lease: int, cpus: int) -> Running | InLine | Misfit:
        limits = Limits.of(cpus=cpus, memory="64M", pids=16)
        return board.admit(lease, task(str(lease)), Wish(limits), None, ahead=True)

    first, second = admit(1, 1), admit(2, 1)
    assert isinstance(first, Running)
    assert isinstance(second, Running)
    assert isinstance(admit(3, 2), InLine)
    assert isinstance(admit(4, 1), InLine)
    assert isinstance(admit(5, 3), Misfit), "it never fits here"
    assert board.vacate(first, spooled=False) == [], "a CPU is free, but the first in line wants two"
    assert isinstance(admit(6, 1), InLine)
    (wide,) = board.vacate(second, spooled=False)
    assert wide.lease == 3
    assert [running.lease for running in board.vacate(wide, spooled=False)] == [4, 6]
    assert board.in_line() == 0


def test_an_exclusive_task_starts_when_the_node_becomes_idle_though_an_older_request_waits(world: World) -> None:
    world.start(offer_of(3))
    world.server.put(task("t0"))
    world.jobs(1)
    world.server.put(task("t1"))
    world.jobs(2)
    world.server.put(task("alone", exclusive=True))
    wait_until(lambda: (world.server.claims[-1]["slots"], world.server.claims[-1]["wait_s"]) == (1, 30))
    for number in range(2):
        assert len(world.pool.started) == 2
        world.pool.finish(number)
        world.results(number + 1)
    assert world.jobs(3)[2].cpuset
    assert [claim["idle"] for claim in world.server.claims].count(True) >= 2
    assert world.server.released == {}


def test_one_who_waits_is_overtaken_by_what_a_late_answer_leaves(world: World) -> None:
    foreman = world.start(offer_of(2))
    wait_until(lambda: len(world.server.claims) == 2)
    late = Attempt(50, "late", "owner", task("late").to_json(), None)
    foreman._claims._place(late, [], ahead=False)
    wait_until(lambda: world.server.claims[-1]["slots"] == 1, 10, "what waits for 30 s offers too much")


def test_nothing_is_asked_before_the_server_knows_this_life(world: World) -> None:
    world.server.refuse_beat = Unavailable("not yet")
    world.server.put(task("a"))
    foreman = world.start()
    wait_until(lambda: foreman.pulse._failures >= 3)
    assert world.server.claims == []
    world.server.refuse_beat = None
    world.jobs(1)


def test_a_server_that_lets_nobody_wait_is_asked_ever_more_rarely(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreman = world.start(offer_of(2))
    wait_until(lambda: len(world.server.claims) == 2)
    world.server.close()
    wait_until(lambda: foreman._claims._pause_s >= 2 * claims.FIRST_PAUSE_S)


def test_running_tasks_share_neither_cpus_nor_slots(world: World) -> None:
    world.server.put(*(task(f"t{number}") for number in range(6)))
    world.start(offer_of(4))
    jobs = world.jobs(4)[:4]
    assert sorted(cpu for job in jobs for cpu in job.cpuset) == [0, 1, 2, 3]
    assert sorted(job.slot for job in jobs) == [0, 1, 2, 3]
    assert len(world.server.waiting) == 2


def test_an_attempt_that_does_not_fit_is_given_back_at_once(world: World) -> None:
    foreman = world.start(offer_of(2))
    world.server.put(task("a"))
    world.jobs(1)
    # What an overlapping request may bring: a task for the CPUs of an older offer.
    world.server.leases[50] = task("late", cpus=2)
    late = Attempt(50, "late", "owner", task("late", cpus=2).to_json(), None)
    assert foreman._claims._place(late, [], ahead=False) is True
    wait_until(lambda: 50 in world.server.released)
    assert world.server.results == {}


def test_an_exclusive_task_runs_alone_and_nothing_is_asked_for_meanwhile(world: World) -> None:
    world.start(offer_of(4))
    world.server.put(task("alone", exclusive=True))
    world.jobs(1)
    asked = len(world.server.claims)
    world.server.put(task("other"))
    wait_until(lambda: not world.server.waiting or len(world.server.claims) > asked or len(world.pool.started) == 1)
    assert len(world.pool.started) == 1
    world.pool.finish()
    world.jobs(2)


def test_the_nodes_ceilings_cut_a_tasks_limits(tmp_path: Path) -> None:
    world = World(tmp_path / "data", ceilings=Limits.of(memory="32M", time="5s", cpus=1))
    world.server.put(task("a", cpus=2))
    world.start()
    job = world.jobs(1)[0]
    assert job.limits == Limits.of(cpus=1, memory="32M", pids=16, time="5s")
    assert job.cpuset == (0,)
    world.end()


def test_a_task_that_this_node_does_not_understand_ends_as_an_error(world: World) -> None:
    foreman = world.start()
    foreman._claims._place(Attempt(9, "odd", "owner", {"id": "odd", "args": ["x"], "future": 1}, None), [], ahead=False)
    result = world.results(1)[9]
    assert result.outcome is Outcome.ERROR
    assert "future" in (result.message or "")


# Heartbeats: lost, cancelled.


def test_heartbeats_name_running_and_spooled_leases(world: World) -> None:
    foreman = world.start()
    world.server.put(task("a"), task("b"))
    world.jobs(2)

    def refuse(lease: int, result: Result) -> None:
        raise NotAllowed("not now")

    world.server.refuse_result = refuse
    world.pool.finish_lease(1)
    wait_until(lambda: foreman.board.backlog() == 1)
    foreman.pulse.now()
    wait_until(lambda: world.server.beats[-1]["leases"] == [1, 2])
    assert world.server.beats[-1]["capacity"].get("cpus") == 1
    world.server.refuse_result = lambda lease, result: None


def test_a_cancelled_task_is_killed_and_its_result_says_so(world: World) -> None:
    foreman = world.start()
    world.server.put(task("a"))
    world.jobs(1)
    world.server.cancelled.add(1)
    foreman.pulse.now()
    assert world.results(1)[1].outcome is Outcome.CANCELLED


def test_a_cancel_that_a_request_brings_is_obeyed_and_asking_does_not_run_hot_meanwhile(world: World) -> None:
    world.start(offer_of(2))
    world.server.put(task("a"))
    world.jobs(1)
    wait_until(lambda: (world.server.claims[-1]["slots"], world.server.claims[-1]["wait_s"]) == (1, 30))
    obeyed = threading.Event()

    def slow(job: Job, outcome: Outcome = Outcome.CANCELLED) -> None:
        obeyed.set()

    real, world.pool.cancel = world.pool.cancel, slow  # type: ignore[method-assign]
    world.server.cancel(1)
    assert obeyed.wait(30)
    before, began = len(world.server.claims), time.monotonic()
    wait_until(lambda: len(world.server.claims) >= before + 3)
    assert time.monotonic() - began >= 2 * claims.FIRST_PAUSE_S
    world.pool.cancel = real  # type: ignore[method-assign]
    assert world.results(1)[1].outcome is Outcome.CANCELLED


def test_a_lost_attempt_is_killed_and_nothing_of_it_reaches_the_server(world: World) -> None:
    world.pool.outcomes["a"] = with_file()
    foreman = world.start()
    world.server.put(task("a"))
    world.jobs(1)
    world.server.lost.add(1)
    foreman.pulse.now()
    wait_until(lambda: not foreman.board.leases() and world.nothing_left())
    assert world.server.results == {}
    assert world.server.released == {}
    assert world.server.puts == []


def test_a_spooled_result_that_was_overtaken_is_thrown_away(world: World) -> None:
    foreman = world.start()
    world.server.put(task("a"))
    world.jobs(1)
    world.server.set_down(True)
    world.pool.finish()
    wait_until(lambda: (world.data / "spool/1").exists())
    world.server.lost.add(1)
    world.server.set_down(False)
    wait_until(lambda: not foreman.board.leases() and world.nothing_left())
    assert world.server.results == {}


def test_a_foreman_that_was_silent_too_long_asks_before_it_uploads(world: World) -> None:
    foreman = world.start()
    world.server.put(task("a"))
    world.jobs(1)
    beats = len(world.server.beats)
    foreman.pulse._last = -1e9  # as after SIGSTOP, a long time, SIGCONT
    world.server.lost.add(1)
    foreman.board._running[1].ended.clear()
    world.pool.finish()
    wait_until(lambda: not foreman.board.leases())
    assert len(world.server.beats) > beats
    assert world.server.results == {}


def test_the_heartbeat_follows_the_servers_clock(world: World) -> None:
    world.server.heartbeat_s = 0.03
    world.start()
    wait_until(lambda: len(world.server.beats) > 5)
    assert world.server.beats[-1]["timeout_s"] == heartbeat.SHORTEST_TIMEOUT_S


def test_a_beat_in_vain_leaves_time_for_others(world: World) -> None:
    world.server.heartbeat_s = 45
    foreman = world.start()
    foreman.pulse.now()
    wait_until(lambda: len(world.server.beats) > 1)
    assert world.server.beats[-1]["timeout_s"] == 15


# The server away, results refused.


def test_results_wait_in_the_spool_while_the_server_is_away(world: World) -> None:
    world.pool.outcomes["a"] = with_file()
    foreman = world.start()
    world.server.put(task("a"), task("b"))
    world.jobs(2)
    world.server.set_down(True)
    world.pool.finish_lease(1)
    wait_until(lambda: (world.data / "spool/1").exists())
    assert foreman.board.leases() == [1, 2]
    assert [one.lease for one in foreman.board.running()] == [2]
    world.server.set_down(False)
    assert world.results(1)[1].id == "a"
    wait_until(lambda: foreman.board.backlog() == 0)


def test_a_spooled_result_is_delivered_by_the_next_life(world: World) -> None:
    first = world.start()
    world.server.put(task("a"))
    world.jobs(1)
    world.server.set_down(True)
    world.pool.finish()
    wait_until(lambda: (world.data / "spool/1").exists())
    first.stop()
    assert first.wait_finished(30)
    assert (world.data / "spool/1").exists()
    world.server.set_down(False)
    world.server.closed = False
    world.start()
    assert world.results(1)[1].id == "a"
    wait_until(world.nothing_left)


def test_an_overtaken_result_is_thrown_away(world: World) -> None:
    def overtaken(lease: int, result: Result) -> None:
        raise Conflict("overtaken")

    world.server.refuse_result = overtaken
    foreman = world.start()
    world.server.put(task("a"))
    world.jobs(1)
    world.pool.finish()
    wait_until(lambda: not foreman.board.leases() and world.nothing_left())
    assert world.server.results == {}


def test_a_result_that_the_server_refuses_ends_the_task_with_the_reason(world: World) -> None:
    def refuse(lease: int, result: Result) -> None:
        if result.outcome is not Outcome.ERROR:
            raise InputError("the result is too large", field="manifest")

    world.server.refuse_result = refuse
    world.start()
    world.server.put(task("a"))
    world.jobs(1)
    world.pool.finish()
    result = world.results(1)[1]
    assert (result.id, result.outcome) == ("a", Outcome.ERROR)
    assert "too large" in (result.message or "")


def test_an_address_that_is_no_server_any_more_loses_no_result(world: World) -> None:
    wrong = [True]

    def proxy(lease: int, result: Result) -> None:
        if wrong[0]:
            raise InputError("this is no Kolejka server", code="not_kolejka")

    world.server.refuse_result = proxy
    foreman = world.start()
    world.server.put(task("a"))
    world.jobs(1)
    world.pool.finish()
    wait_until(lambda: foreman.board.backlog() == 1)
    wrong[0] = False
    assert world.results(1)[1].outcome is Outcome.OK


def test_a_blob_is_sent_once_and_again_if_the_server_has_lost_it(world: World) -> None:
    missing = [False]

    def forgetful(lease: int, result: Result) -> None:
        if missing[0]:
            missing[0] = False
            raise InputError("gone", code="blob_missing", field="manifest.stdout.txt")

    world.server.refuse_result = forgetful
    world.pool.instant = True
    world.start()
    for number, name in enumerate("abc"):
        world.pool.outcomes[name] = with_file()
        missing[0] = name == "c"
        world.server.put(task(name))
        world.results(number + 1)
    assert world.server.puts == [EMPTY, EMPTY]


class Desk:
    """Attempts 1 to 4, of which the first result is held up on its way until ``gathered`` has the others wait."""

    def __init__(self, world: World) -> None:
        self.server, self.go, self.entered = world.server, threading.Event(), threading.Event()
        self.alone: list[int] = []
        self._put_result = world.server.put_result
        world.server.put_result = self._slow  # type: ignore[method-assign]
        self.foreman = world.start(offer_of(4))
        world.server.put(*(task(name) for name in "abcd"))
        world.jobs(4)
        world.pool.finish_lease(1)
        assert self.entered.wait(30)
        for lease in (2, 3, 4):
            world.pool.finish_lease(lease)
        wait_until(lambda: self.foreman._couriers._desk.qsize() == 3)

    def _slow(self, lease: int, result: Result) -> dict[str, Any]:
        self.alone.append(lease)
        self.entered.set()
        assert self.go.wait(30)
        return self._put_result(lease, result)

    def gathered(self) -> None:
        """Let go, and wait until everything is settled."""
        self.go.set()
        wait_until(lambda: not self.foreman.board.backlog())


def test_results_that_gather_while_one_is_on_its_way_are_handed_in_together(world: World) -> None:
    desk = Desk(world)
    assert desk.alone == [1], "what is alone goes at once"
    desk.gathered()
    assert desk.server.together == [[2, 3, 4]]
    assert sorted(world.results(4)) == [1, 2, 3, 4]
    wait_until(world.nothing_left)


def test_of_results_handed_in_together_each_is_answered_by_itself(world: World) -> None:
    desk, refused = Desk(world), list[int]()

    def refuse(lease: int, result: Result) -> None:
        if lease == 3 and not refused:
            refused.append(lease)
            raise InputError("gone", code="blob_missing", field="manifest.stdout.txt")
        if lease == 4 and result.outcome is not Outcome.ERROR:
            raise InputError("the result is too large", field="manifest")

    world.server.refuse_result = refuse
    world.server.lost.add(2)
    desk.gathered()
    assert desk.server.together == [[2, 3, 4]]
    assert {lease: result.outcome for lease, result in world.results(3).items()} == {
        1: Outcome.OK, 3: Outcome.OK, 4: Outcome.ERROR,
    }  # fmt: skip
    wait_until(world.nothing_left)


@pytest.mark.parametrize("reason", [NotFound("there is nothing under this address"), InputError("x", code="too_large")])
def test_a_server_that_takes_no_results_together_gets_them_one_by_one(world: World, reason: InputError) -> None:
    desk = Desk(world)
    desk.server.refuse_together = reason
    desk.gathered()
    assert (desk.server.together, sorted(desk.alone)) == ([], [1, 2, 3, 4])
    assert sorted(world.results(4)) == [1, 2, 3, 4]


def test_results_gathered_at_the_desk_survive_a_server_that_goes_away_and_may_come_back_as_another(
    world: World,
) -> None:
    desk = Desk(world)
    desk.server.refuse_together = NotFound("there is nothing under this address")

    def away(lease: int, result: Result) -> None:
        if len(desk.alone) == 3 and desk.server.refuse_together is not None:
            desk.server.refuse_together = None  # it is upgraded
            raise slots.Unavailable("no server")

    world.server.refuse_result = away
    desk.gathered()
    assert [len(leases) for leases in desk.server.together] == [2]
    assert sorted(world.results(4)) == [1, 2, 3, 4]


def test_a_full_disk_under_the_spool_loses_no_result(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(spool_module, "_sync_tree", full)
    world.pool.outcomes["a"] = with_file()
    world.start()
    world.server.put(task("a"))
    world.jobs(1)
    world.pool.finish()
    assert world.results(1)[1].outcome is Outcome.OK
    assert EMPTY in world.server.blobs


def test_too_many_results_that_do_not_get_away_stop_the_asking(world: World) -> None:
    def refuse(lease: int, result: Result) -> None:
        raise NotAllowed("not now")

    world.server.refuse_result = refuse
    world.pool.instant = True
    foreman = world.start()
    foreman._claims._backlog = 3
    world.server.put(*(task(f"t{number}") for number in range(20)))
    wait_until(lambda: foreman.board.backlog() >= 3 and not foreman.board.running())
    assert len(world.server.waiting) >= 20 - 3 - 2
    world.server.refuse_result = lambda lease, result: None


# Inputs.


def test_inputs_are_brought_before_the_payload_starts(world: World, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    world.server.blobs[EMPTY] = b""
    world.server.put(task("a", files={"in.txt": {"reference": EMPTY}}))
    world.start()
    job = world.jobs(1)[0]
    assert job.blobs is not None
    assert (job.blobs / EMPTY).exists()


def test_an_input_that_cannot_be_had_ends_the_task_with_an_error_that_names_it(world: World) -> None:
    world.server.put(task("a", files={"in.txt": {"reference": "0" * 64}}))
    world.start()
    result = world.results(1)[1]
    assert result.outcome is Outcome.ERROR
    assert "files.in.txt" in (result.message or "")
    assert world.pool.started == []


def test_a_download_is_tried_again_while_only_the_network_is_at_fault(world: World) -> None:
    world.server.blobs[EMPTY] = b""
    foreman = world.start()
    real, failures = world.server.get_blob, [3]

    def flaky(reference: str, path: Path) -> int:
        if failures[0]:
            failures[0] -= 1
            raise slots.Unavailable("the network is away")
        return real(reference, path)

    foreman._slots._fetch = flaky
    world.server.put(task("a", files={"in.txt": {"reference": EMPTY}}))
    world.jobs(1)
    assert failures == [0]


def test_a_cancel_ends_a_download_that_waits(world: World) -> None:
    foreman = world.start()

    def never(reference: str, path: Path) -> int:
        raise slots.Unavailable("the network is away")

    foreman._slots._fetch = never
    world.server.put(task("a", files={"in.txt": {"reference": EMPTY}}))
    wait_until(lambda: foreman.board.running())
    world.server.cancelled.add(1)
    foreman.pulse.now()
    result = world.results(1)[1]
    assert result.outcome is Outcome.CANCELLED
    assert world.pool.started == []


# Faults of the node.


def test_a_worker_that_fails_gives_an_error_result_and_the_slot_goes_on(world: World) -> None:
    world.pool.fault = NodeError("the worker is broken")
    world.pool.instant = True
    world.start(offer_of(1))
    world.server.put(task("a"), task("b"))
    results = world.results(2)
    assert {result.outcome for result in results.values()} == {Outcome.ERROR}
    assert results[1].message == "the worker is broken"


def test_a_payload_that_cannot_be_killed_quarantines_the_node(world: World) -> None:
    world.pool.fault = NodeError("process 7 does not die", code=slots.UNKILLABLE)
    foreman = world.start(offer_of(1))
    world.server.put(task("a"))
    world.jobs(1)
    world.pool.finish()
    world.results(1)
    world.server.put(task("b"))
    wait_until(lambda: world.server.beats[-1]["state"] == "quarantined")
    assert foreman.board.state is NodeState.QUARANTINED
    wait_until(lambda: not foreman._claims.open_requests() or world.server.released)
    assert len(world.pool.started) == 1
    assert foreman.healthy()


def test_a_thread_that_fails_ends_the_foreman(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    foreman = world.start()

    def broken() -> None:
        raise RuntimeError("a fault of ours")

    foreman._spawn(broken, "broken")
    with pytest.raises(RuntimeError, match="a fault of ours"):
        wait_until(lambda: foreman.wait_finished(0.1))
    assert not foreman.healthy()
    assert world.pool.calls[-1] == "stop"
    world.foreman = None


# The end.


def test_drain_takes_nothing_new_finishes_what_runs_and_uploads_it(world: World) -> None:
    foreman = world.start(offer_of(2))
    world.server.put(task("a"))
    world.jobs(1)
    foreman.drain()
    wait_until(lambda: world.server.beats[-1]["state"] == "draining")
    world.server.put(task("b"))
    assert not foreman.wait_finished(0.05)
    world.pool.finish()
    assert foreman.wait_finished(30)
    assert [result.id for result in world.server.results.values()] == ["a"]
    assert [one.id for one in world.server.waiting] == ["b"]
    assert world.pool.calls == ["start", "stop"]
    assert world.nothing_left()


def test_attempts_that_arrive_after_the_drain_began_are_given_back(world: World) -> None:
    foreman = world.start(offer_of(2))
    world.server.put(task("a"))
    world.jobs(1)
    wait_until(lambda: world.server.claims[-1]["slots"] == 1)
    foreman.drain()
    world.server.put(task("b"))
    wait_until(lambda: world.server.released == {2: "the node is draining"})
    assert [one.id for one in world.server.waiting] == ["b"]


def test_an_idle_foreman_drains_at_once(world: World) -> None:
    foreman = world.start()
    foreman.drain()
    foreman.drain()
    assert foreman.wait_finished(30)


def test_stop_kills_what_runs_and_gives_it_back(world: World) -> None:
    foreman = world.start(offer_of(2))
    world.server.put(task("a"), task("b"))
    world.jobs(2)
    foreman.drain()
    foreman.stop()
    foreman.stop()
    assert foreman.wait_finished(30)
    assert set(world.server.released) == {1, 2}
    assert world.server.results == {}
    assert world.nothing_left()


def test_stop_before_start_ends_a_foreman_that_is_started(world: World) -> None:
    world.foreman = foreman_of(world.data, world.server, world.pool)
    world.foreman.stop()
    world.server.put(task("a"))
    world.foreman.start()
    assert world.foreman.wait_finished(30)
    assert world.pool.started == []


def test_a_drained_foreman_leaves_results_in_the_spool_when_the_server_stays_away(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kolejka.foreman.daemon.DRAIN_PATIENCE_S", 0.1)
    foreman = world.start()
    world.server.put(task("a"))
    world.jobs(1)
    world.server.set_down(True)
    world.pool.finish()
    wait_until(lambda: (world.data / "spool/1").exists())
    foreman.drain()
    assert foreman.wait_finished(30)
    assert (world.data / "spool/1").exists()


# The beginning.


def test_a_refused_token_is_an_error_at_the_start(world: World) -> None:
    world.server.error = NotAllowed("who are you")
    with pytest.raises(NotAllowed):
        world.start()
    assert world.pool.calls == ["start", "stop"]
    world.foreman = None


def test_a_server_that_is_not_there_yet_is_waited_for(world: World) -> None:
    world.server.down = True
    world.pool.instant = True
    world.start()
    world.server.put(task("a"))
    world.server.set_down(False)
    world.results(1)


def test_attempts_of_an_earlier_life_are_given_back_after_the_pools_sweep(world: World) -> None:
    folder = world.data / "running/41/task"
    folder.mkdir(parents=True)
    task("old").save(folder)
    world.pool.start = lambda: world.pool.calls.append(f"start {folder.exists()}")  # type: ignore[method-assign]
    world.start()
    wait_until(lambda: 41 in world.server.released)
    assert world.pool.calls == ["start True"]
    assert not folder.exists()
    assert 41 not in world.server.beats[0]["leases"]


def test_a_foreman_killed_between_spool_and_cleaning_gives_no_finished_attempt_back(world: World) -> None:
    result = world.data / "spool/41"
    result.mkdir(parents=True)
    Result(Outcome.OK, result=0, id="old").save(result)
    (world.data / "running/41/task").mkdir(parents=True)
    world.start()
    assert world.results(1)[41].id == "old"
    wait_until(world.nothing_left)
    assert world.server.released == {}


def test_the_lease_of_a_task_that_kills_foremen_is_left_to_run_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "FREE_DEATHS", 0)
    folder = world.data / "running/41/task"
    folder.mkdir(parents=True)
    task("poison").save(folder)
    world.pool.instant = True
    world.start()
    world.server.put(task("a"))
    world.results(1)
    assert world.server.released == {}


def test_many_tasks_on_few_slots_all_end_once(world: World) -> None:
    world.pool.instant = True
    world.server.put(*(task(f"t{number}", cpus=1 + number % 3) for number in range(200)))
    world.start(offer_of(4))
    results = world.results(200)
    assert sorted(result.id or "" for result in results.values()) == sorted(f"t{number}" for number in range(200))


def test_a_node_that_is_asked_to_drain_finishes_takes_nothing_and_comes_back_when_asked(world: World) -> None:
    world.server.put(task("a"))
    foreman = world.start()
    world.jobs(1)
    world.server.ask("drain")
    wait_until(lambda: foreman.board.state is NodeState.HELD)
    wait_until(lambda: world.server.beats[-1]["state"] == "draining")
    world.server.put(task("b"))
    world.pool.finish()
    world.results(1)
    assert len(world.pool.started) == 1
    assert not foreman.wait_finished(0), "it stays, so that it can be asked to resume"
    world.server.ask(None)
    foreman.pulse.now()
    wait_until(lambda: world.server.beats[-1]["state"] == "active")
    world.jobs(2)
    world.pool.finish()
    world.results(2)


def test_a_node_that_is_held_still_ends_when_it_is_told_to(world: World) -> None:
    foreman = world.start()
    world.server.ask("drain")
    wait_until(lambda: foreman.board.state is NodeState.HELD)
    foreman.drain()
    assert foreman.wait_finished(30)


def test_a_data_folder_keeps_its_instance_and_another_has_another(tmp_path: Path) -> None:
    first = leftovers.instance(tmp_path)
    assert leftovers.instance(tmp_path) == first
    (tmp_path / "instance.json").write_text("{broken")
    assert leftovers.instance(tmp_path) != first


# Bytes on their way.


def test_downloads_and_uploads_hold_up_no_task_that_runs(world: World) -> None:
    """One task's input and another's output are on their way all the time; two others come, run and end meanwhile."""
    events: list[str] = []
    arrived, taken = threading.Event(), threading.Event()
    foreman = world.start(offer_of(2))
    fetch, send = world.server.get_blob, world.server.put_blob

    def slow_fetch(reference: str, path: Path) -> int:
        events.append("download begins")
        assert arrived.wait(30)
        events.append("download ends")
        return fetch(reference, path)

    def slow_send(source: Path, *, reference: str | None = None) -> str:
        events.append("upload begins")
        assert taken.wait(30)
        events.append("upload ends")
        return send(source, reference=reference)

    foreman._slots._fetch = slow_fetch
    world.server.put_blob = slow_send  # type: ignore[method-assign]
    world.server.blobs[EMPTY] = b""
    world.pool.outcomes["uploads"] = with_file()
    world.server.put(task("uploads"))
    world.jobs(1)
    world.pool.finish()
    wait_until(lambda: "upload begins" in events)
    world.server.put(task("downloads", files={"in": {"reference": EMPTY}}))
    wait_until(lambda: "download begins" in events)
    for name in ("first", "second"):
        world.server.put(task(name))
        world.jobs(len(world.pool.started) + 1)
        world.pool.finish()
        wait_until(lambda name=name: name in {result.id for result in world.server.results.values()})  # type: ignore[misc]
        events.append(f"{name} is done")
    taken.set()
    arrived.set()
    world.jobs(4)
    world.pool.finish()
    world.results(4)
    assert events[:4] == ["upload begins", "download begins", "first is done", "second is done"]
    assert sorted(events[4:]) == ["download ends", "upload ends"]


def test_a_node_that_is_offline_loses_no_result_and_takes_up_where_it_was(world: World) -> None:
    """Everything in hand ends while the server is away, the foreman dies and starts again, then the server is back."""
    world.pool.instant = False
    world.start(offer_of(8))
    world.server.put(*(task(f"t{number}") for number in range(8)))
    world.jobs(8)
    world.server.set_down(True)
    world.pool.finish_all()
    wait_until(lambda: len(list((world.data / "spool").iterdir())) == 8)
    assert world.server.results == {}
    foreman = world.foreman
    assert foreman is not None
    foreman.stop()
    assert foreman.wait_finished(30)
    world.server.closed = False
    again = world.start(offer_of(8))
    assert len(again.board.leases()) == 8
    assert world.server.results == {}
    world.server.set_down(False)
    assert sorted(result.id or "" for result in world.results(8).values()) == [f"t{number}" for number in range(8)]
    wait_until(world.nothing_left)


def fill(path: Path) -> None:
    """Write until the disk takes no more: OSError."""
    with path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def test_a_node_whose_disk_is_full_takes_no_tasks_until_it_has_room(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kolejka.foreman.daemon.ROOM_BYTES", 1 << 20)
    world = World(small_disk / "data")
    world.pool.instant = True
    try:
        world.start()
        wait_until(lambda: len(world.server.claims) == 2, about="a request waits")
        with pytest.raises(OSError, match="No space left"):
            fill(small_disk / "ballast")
        world.server.put(task("a"))  # into the answer of a request that waits
        wait_until(lambda: "its disk is full" in caplog.text)
        wait_until(lambda: world.server.released)
        assert world.server.results == {}
        (small_disk / "ballast").unlink()
        assert world.results(1).popitem()[1].outcome is Outcome.OK
        assert caplog.text.count("its disk is full") == 1
        wait_until(world.nothing_left)
    finally:
        world.end()


def test_a_disk_that_can_hold_no_more_files_is_full_too_the_workers_as_well_as_the_foremans(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kolejka.foreman.daemon.ROOM_BYTES", 1 << 20)
    subprocess.run(["mount", "-o", "remount,nr_inodes=1500", small_disk], check=True)
    world = World(tmp_path / "data")
    world.pool.instant = True
    try:
        for number in range(1000):
            (small_disk / str(number)).touch()
        world.start(work=small_disk / "work")
        wait_until(lambda: any(getattr(one, "folder", "") == str(small_disk / "work") for one in caplog.records))
        world.server.put(task("a"))
        for number in range(1000):
            (small_disk / str(number)).unlink()
        assert world.results(1).popitem()[1].outcome is Outcome.OK
        wait_until(world.nothing_left)
    finally:
        world.end()


def test_a_disk_that_becomes_read_only_keeps_no_result_from_the_server_and_no_task_from_other_nodes(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kolejka.foreman.daemon.ROOM_BYTES", 1 << 20)
    monkeypatch.setattr(upload, "LONGEST_PAUSE_S", 0.05)

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", small_disk], check=True)

    world = World(small_disk / "data")
    try:
        world.server.put(task("a"), task("b"))
        world.start(offer_of(2))
        world.jobs(2)
        world.server.set_down(True)
        world.pool.finish(0)
        wait_until(lambda: list((world.data / "spool").iterdir()), about="the result waits")
        remount("ro")
        world.server.set_down(False)
        world.pool.finish(1)
        assert {result.outcome for result in world.results(2).values()} == {Outcome.OK, Outcome.ERROR}
        wait_until(lambda: "its disk is read-only" in caplog.text)
        foreman = world.foreman
        assert foreman is not None
        wait_until(lambda: foreman.board.leases() == [])
        remount("rw")
        world.pool.instant = True
        world.server.put(task("c"))
        assert world.results(3)[3].outcome is Outcome.OK
    finally:
        remount("rw")
        world.end()
    world.start()  # what the disk did not let go is handed in once more
    wait_until(world.nothing_left)
    world.end()


def test_a_disk_that_fills_up_under_a_task_ends_it_with_the_reason_and_leaves_nothing(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kolejka.foreman.daemon.ROOM_BYTES", 0)
    world = World(small_disk / "data")
    world.pool.instant = True
    try:
        world.start()
        with pytest.raises(OSError, match="No space left"):
            fill(small_disk / "ballast")
        world.server.put(task("a"))
        result = world.results(1)[1]
        assert result.outcome is Outcome.ERROR
        assert "No space left on device" in (result.message or "")
        wait_until(world.nothing_left)
        (small_disk / "ballast").unlink()
        world.server.put(task("b"))
        assert world.results(2)[2].outcome is Outcome.OK
        wait_until(world.nothing_left)
    finally:
        world.end()

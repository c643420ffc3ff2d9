"""What an admin asks of a foreman beside tasks: reboots and its log. With a pool and a server in memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from kolejka.client.node import DRAIN, REBOOT, REBOOT_WHEN_IDLE, LogWish
from kolejka.common.errors import InputError, NotFound, Unavailable
from kolejka.common.result import Outcome
from kolejka.foreman import heartbeat, reboot
from kolejka.foreman.board import NodeState
from kolejka.foreman.reboot import reboot_words
from tests.support import wait_until
from tests.unit.foreman_fakes import offer_of, task
from tests.unit.test_foreman_daemon import World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(heartbeat, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(heartbeat, "LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(reboot, "AGAIN_S", 0.02)
    monkeypatch.setattr("kolejka.foreman.daemon.LAST_ANSWERS_S", 0.01)
    made = World(tmp_path / "data", reboot_command=f"sh -c 'echo x >> {tmp_path}/rebooted'")
    made.server.heartbeat_s = 0.3
    yield made
    made.end()


def reboots(world: World) -> int:
    path = world.data.parent / "rebooted"
    return len(path.read_text().split()) if path.exists() else 0


def test_when_idle_waits_for_what_runs_and_for_its_result(world: World) -> None:
    world.server.put(task("a"))
    world.start(offer_of(1))
    world.jobs(1)
    refused = True

    def refuse(_lease: int, _result: object) -> None:
        if refused:
            raise Unavailable("busy")

    world.server.refuse_result = refuse
    world.server.ask(REBOOT_WHEN_IDLE)
    foreman = world.foreman
    assert foreman is not None
    wait_until(lambda: foreman.board.state is NodeState.HELD)
    world.pool.finish()
    wait_until(lambda: not foreman.board.placements())
    assert reboots(world) == 0, "its result is not at the server"
    refused = False
    wait_until(lambda: reboots(world) == 1)
    assert world.server.results[1].outcome is Outcome.OK
    world.server.put(task("b"))
    assert len(world.pool.started) == 1, "a node that reboots takes nothing"
    world.server.ask(None)
    world.jobs(2)
    assert reboots(world) == 1


def test_who_will_not_wait_has_what_runs_given_back_first(world: World) -> None:
    world.server.put(task("a"), task("b"))
    world.start(offer_of(2))
    world.jobs(2)
    world.server.ask(REBOOT)
    wait_until(lambda: reboots(world) == 1)
    assert world.server.released == {1: "the node reboots", 2: "the node reboots"}
    assert world.server.results == {}


def test_a_drain_is_no_reboot_and_a_word_that_is_taken_back_none_either(world: World) -> None:
    world.server.put(task("a"))
    foreman = world.start(offer_of(1))
    world.jobs(1)
    world.server.ask(REBOOT_WHEN_IDLE)
    wait_until(lambda: foreman.board.state is NodeState.HELD)
    world.server.ask(DRAIN)
    beats = len(world.server.beats)
    wait_until(lambda: len(world.server.beats) > beats + 1)
    world.pool.finish()
    world.results(1)
    wait_until(lambda: not foreman.board.leases())
    beats = len(world.server.beats)
    wait_until(lambda: len(world.server.beats) > beats + 1)
    assert reboots(world) == 0


def test_a_command_that_fails_is_tried_again_and_told(tmp_path: Path, world: World) -> None:
    world.settings["reboot_command"] = f"sh -c 'echo x >> {tmp_path}/rebooted; echo no such luck >&2; exit 3'"
    foreman = world.start(offer_of(1))
    logging.getLogger().addHandler(foreman.lines)
    try:
        world.server.ask(REBOOT)
        wait_until(lambda: reboots(world) >= 2)
        wait_until(lambda: [one for one in foreman.lines.errors() if "no such luck" in one["message"]])
    finally:
        logging.getLogger().removeHandler(foreman.lines)


def test_a_quarantined_node_can_be_rebooted(world: World) -> None:
    foreman = world.start(offer_of(1))
    foreman._quarantine("stuck")
    world.server.ask(REBOOT)
    wait_until(lambda: reboots(world) == 1)
    assert foreman.board.state is NodeState.QUARANTINED
    assert "stuck" in world.server.beats[-1]["about"]["reason"]


@pytest.mark.parametrize("command", ["", "  ", "sh -c 'never ends"])
def test_a_command_that_is_none_is_refused(command: str) -> None:
    with pytest.raises(InputError) as caught:
        reboot_words(command)
    assert caught.value.field == "foreman.reboot_command"


# The log


def test_a_log_that_is_wanted_is_sent_once(world: World) -> None:
    foreman = world.start(offer_of(1))
    foreman.lines.handle(record("attempt started"))
    world.server.log_wish = LogWish(7, 5)
    wait_until(lambda: world.server.logs)
    number, text = world.server.logs[0]
    assert (number, "attempt started" in text) == (7, True)
    beats = len(world.server.beats)
    wait_until(lambda: len(world.server.beats) > beats + 2)
    assert len(world.server.logs) == 1
    world.server.log_wish = LogWish(8, 5)
    wait_until(lambda: len(world.server.logs) == 2)


def test_a_log_that_could_not_be_sent_is_sent_when_it_is_wanted_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []
    put = world.server.put_log

    def fail(node: str, number: int, log: str) -> None:
        tries.append(number)
        if len(tries) == 1:
            raise Unavailable("away")
        if number == 8:
            raise NotFound("nobody waits")
        put(node, number, log)

    monkeypatch.setattr(world.server, "put_log", fail)
    foreman = world.start(offer_of(1))
    world.server.log_wish = LogWish(7, 5)
    wait_until(lambda: world.server.logs)
    world.server.log_wish = LogWish(8, 5)
    wait_until(lambda: 8 in tries)
    assert foreman.healthy()


def test_beats_say_what_the_machine_is_and_its_last_errors(world: World) -> None:
    foreman = world.start(offer_of(1))
    foreman.lines.handle(record("delivery waits"))
    foreman.pulse.now()
    wait_until(lambda: world.server.beats[-1]["about"]["errors"])
    assert world.server.beats[-1]["about"]["errors"][0]["message"] == "delivery waits"


def test_the_state_names_what_runs(world: World) -> None:
    world.server.put(task("a"))
    foreman = world.start(offer_of(1))
    world.jobs(1)
    state = foreman.snapshot()
    assert [one["task"] for one in state["running"]] == ["a"]
    assert (state["node"], state["state"], state["backlog"]) == ("n1", "active", 0)


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("kolejka.foreman", logging.WARNING, "", 0, message, None, None)

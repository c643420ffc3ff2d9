"""Shares, quotas, and the rule of reservations."""

from __future__ import annotations

import pytest

from kolejka.common.limits import Limits
from kolejka.server.scheduling.fairness import FORECAST_S, Busy, Gate, Load, Quotas, cpus_of, decayed, shares
from kolejka.server.scheduling.match import Signature
from kolejka.server.scheduling.reserve import expected_start


def needs(cpus: int = 1, *, exclusive: bool = False) -> Signature:
    return Signature((), exclusive, {"cpus": cpus})


def test_what_was_used_counts_half_after_each_half_life() -> None:
    assert decayed(8.0, 20.0, 10.0) == 2.0
    assert decayed(8.0, -20.0, 10.0) == 8.0, "a clock that was set back"


def test_what_runs_counts_since_its_start_and_for_a_moment_ahead() -> None:
    assert shares({1: 5.0}, [Busy(1, 2.0, 7.0), Busy(2, 1.0, -3.0)]) == {1: 12.0 + 2 * FORECAST_S, 2: FORECAST_S}


def test_an_exclusive_task_keeps_the_whole_node_from_others() -> None:
    assert cpus_of(needs(2), 8.0) == 2.0
    assert cpus_of(needs(2, exclusive=True), 8.0) == 8.0
    assert cpus_of(Signature(), None) == 1.0


@pytest.mark.parametrize(
    ("gate", "owner", "words"),
    [
        (Gate(), None, None), (Gate(running=3), None, None), (Gate(running=2), None, "queue 'q' runs as many"),
        (Gate(running_per_owner=1), None, "its owner runs as many tasks in the queue 'q'"), (Gate(), 1, "this server"),
        (Gate(running=0), None, "(0)"),
    ],
)  # fmt: skip
def test_each_quota_says_in_words_that_it_is_full(gate: Gate, owner: int | None, words: str | None) -> None:
    full = Quotas({"q": gate}, owner).full(1, "q", Load([(1, "q", 1), (2, "q", 1)]))
    assert (full is None) if words is None else (full is not None and words in full)


def test_a_paused_queue_gives_nothing_and_one_that_was_deleted_meanwhile_what_it_has() -> None:
    quotas = Quotas({"open": Gate(), "paused": Gate(gives=False)})
    assert [quotas.gives(name) for name in ("open", "paused", "unknown")] == [True, False, True]


@pytest.mark.parametrize(
    ("signature", "free", "running", "start"),
    [
        (needs(4), 1, [(50.0, needs(1)), (20.0, needs(2)), (90.0, needs(4))], 50.0),
        (needs(4), 1, [(50.0, needs(1)), (None, needs(2))], None),
        (needs(9), 1, [(50.0, needs(1))], None),
        (needs(1, exclusive=True), 8, [(50.0, needs(1)), (70.0, needs(1))], 70.0),
        (needs(1, exclusive=True), 8, [], None),
    ],
)
def test_when_a_node_is_free_enough(
    signature: Signature, free: int, running: list[tuple[float | None, Signature]], start: float | None
) -> None:
    assert expected_start(signature, Limits.of(cpus=free), running) == start

"""The node's proof: a probe for every limit, what its results mean, what becomes of a node that fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kolejka.common.errors import InputError, NodeError
from kolejka.common.limits import LIMITS, Limits
from kolejka.common.result import Outcome, Result, ResultFile
from kolejka.common.stats import Stats
from kolejka.foreman import heartbeat
from kolejka.foreman.board import NodeState
from kolejka.foreman.prove import PROBES, Proof, Tried, prove
from kolejka.worker.job import Job
from tests.support import wait_until
from tests.unit.foreman_fakes import EMPTY, offer_of, task
from tests.unit.test_foreman_daemon import World


def test_every_declared_limit_has_a_probe_or_a_reason() -> None:
    assert set(PROBES) == set(LIMITS), "write the program that breaks the new limit"
    for name, probe in PROBES.items():
        assert bool(probe.script) != bool(probe.why_not), name
        Limits.parse(dict(probe.limits))


def ended(limit: str) -> Result:
    return Result(Outcome.LIMIT, 137, limit=limit)


def few(most: int | None, failures: int) -> Result:
    stats = Stats.parse(
        {"pids": {"max_usage": most, "failures": failures}} if most else {"pids": {"failures": failures}}
    )
    return Result(Outcome.FAILED, 2, limits=Limits.of(pids=8), stats=stats)


def kept(size: int, limit: str | None = "output") -> Result:
    outcome = Outcome.OK if limit is None else Outcome.LIMIT
    return Result(outcome, limit=limit, limits=Limits.of(output="10K"),
                  manifest={"stdout": ResultFile(size, "0644", EMPTY)})  # fmt: skip


OK = Result(Outcome.OK, 0)


@pytest.mark.parametrize(
    ("name", "result", "held"),
    [
        *((name, ended(name), True) for name in ("memory", "time", "cpu_time", "storage", "workspace")),
        *((name, OK, False) for name in ("memory", "swap", "time", "cpu_time", "storage", "workspace", "image")),
        ("swap", ended("memory"), True), ("memory", ended("time"), False), ("cpu_time", ended("time"), False),
        ("pids", few(8, 1), True), ("pids", few(None, 1), True), ("pids", few(9, 1), False), ("pids", few(8, 0), False),
        ("output", kept(10240), True), ("output", kept(10241), False), ("output", kept(10240, None), False),
        *((name, OK, True) for name in ("cpus", "network", "gpus")),
        *((name, Result(Outcome.FAILED, 1), False) for name in ("cpus", "network", "gpus")),
        ("image", Result(Outcome.ERROR, message="limits.image: it is too large"), True),
        ("image", Result(Outcome.ERROR, message="something else"), False),
    ],
)  # fmt: skip
def test_what_a_probes_result_means(name: str, result: Result, held: bool) -> None:
    wrong = PROBES[name].judge(result)
    assert (wrong is None) is held, wrong
    assert held or wrong


class Runs:
    """A pool in which the results are known."""

    def __init__(self, folder: Path, **results: Result | Exception) -> None:
        self.folder, self.results, self.jobs = folder, results, list[Job]()

    def run(self, job: Job) -> Result:
        self.jobs.append(job)
        assert self.folder.is_dir()
        name = (job.load().id or "").removeprefix("proof-")
        result = self.results.get(name, OK)
        if isinstance(result, Exception):
            raise result
        return result


class Images:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def add(self, image: str, source: Path) -> None:
        assert source.stat().st_size > 65536
        self.calls.append("add")

    def drop(self, image: str) -> None:
        self.calls.append("drop")


GOOD: dict[str, Any] = {
    **{name: ended(name) for name in ("memory", "time", "cpu_time", "storage", "workspace")}, "swap": ended("memory"),
    "pids": few(8, 1), "output": kept(10), "image": Result(Outcome.ERROR, message="limits.image: too large"),
}  # fmt: skip


def test_a_node_whose_limits_hold_passes_and_leaves_nothing(tmp_path: Path) -> None:
    folder, images = tmp_path / "proof", Images()
    pool = Runs(folder, **GOOD)
    proof = prove(pool, ["sandbox"], folder, cpu=3, store=images)
    assert (proof.passed, proof.reason) == (True, "")
    assert [one.limit for one in proof.tried] == list(LIMITS)
    assert {one.limit for one in proof.tried if one.held is None} == {"gpu_memory"}
    assert images.calls == ["add", "drop"]
    assert not folder.exists()
    assert {job.cpuset for job in pool.jobs} == {(3,)}


@pytest.mark.parametrize("broken", [OK, NodeError("no session"), InputError("refused", field="limits.memory")])
def test_one_limit_that_does_not_hold_is_a_node_that_fails(tmp_path: Path, broken: Any) -> None:
    proof = prove(Runs(tmp_path / "proof", **GOOD | {"memory": broken}), ["sandbox"], tmp_path / "proof", cpu=0,
                  store=Images())  # fmt: skip
    assert not proof.passed
    assert proof.reason.startswith("these limits do not hold here: memory on sandbox (")
    assert [one["held"] for one in proof.to_json()["checks"] if one["limit"] == "memory"] == [False]


def test_a_runtime_that_needs_images_is_told_as_not_tried_and_proves_nothing(tmp_path: Path) -> None:
    proof = prove(Runs(tmp_path / "proof"), ["docker"], tmp_path / "proof", cpu=0)
    assert {one.held for one in proof.tried} == {None}
    assert (proof.passed, proof.reason) == (False, "no limit could be tried here")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(heartbeat, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("kolejka.foreman.daemon.LAST_ANSWERS_S", 0.01)
    made = World(tmp_path / "data")
    yield made
    made.end()


@pytest.mark.parametrize("held", [True, False])
def test_a_node_that_fails_takes_no_tasks_and_says_why(world: World, held: bool) -> None:
    proof = Proof(0.0, (Tried("memory", "sandbox", held, "" if held else "it went on"),))
    world.server.put(task("a"))
    world.pool.instant = True
    world.start(offer_of(1), prove=lambda _pool: proof)
    foreman = world.foreman
    assert foreman is not None
    beat = world.server.beats[0]
    assert beat["about"]["proof"] == proof.to_json()
    assert beat["state"] == ("active" if held else "quarantined")
    if held:
        world.results(1)
        assert "reason" not in beat["about"]
        return
    assert "memory on sandbox (it went on)" in beat["about"]["reason"]
    assert foreman.board.state is NodeState.QUARANTINED
    foreman.pulse.now()
    wait_until(lambda: len(world.server.beats) > 1)
    assert world.server.claims == []
    assert foreman.snapshot()["state"] == "quarantined"

"""The judge gives every submission of its own, hostile ones included, the verdict that is expected of it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kolejka.common.result import Outcome
from tests.neighbours.cluster import ROOT, Cluster

JUDGE = ROOT / "examples/judge"
EXPECTED: dict[str, dict[str, Any]] = json.loads((JUDGE / "expected.json").read_text(encoding="utf-8"))


def prepare(name: str, folder: Path) -> Path:
    """A task that judges one of the submissions, made as the README says."""
    command = [sys.executable, "-B", JUDGE / "prepare.py", JUDGE / f"submissions/{name}.c", folder]
    subprocess.run(command, check=True, timeout=60)
    return folder


@pytest.fixture(scope="module")
def put(session_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """All submissions on their way at once: name → id of the task."""
    folder = tmp_path_factory.mktemp("judge")
    return {name: session_cluster.admin.put_task(prepare(name, folder / name))["id"] for name in EXPECTED}


@pytest.mark.needs("root", "cgroups", "bwrap", "gcc")
@pytest.mark.parametrize("name", EXPECTED)
def test_a_submission_gets_the_verdict_it_deserves(
    name: str, put: dict[str, str], cluster: Cluster, tmp_path: Path
) -> None:
    expected = EXPECTED[name]
    result = cluster.admin.wait(put[name], 120)
    assert str(result.outcome) == expected.get("outcome", "ok"), result
    assert result.stats.time is not None
    cluster.admin.get_result(put[name], tmp_path / "result")
    text = (tmp_path / "result/report.json").read_text(encoding="utf-8")
    if result.outcome is not Outcome.OK:
        assert not text
        return
    report = json.loads(text)
    assert (report["verdict"], [test["verdict"] for test in report["tests"]]) == (
        expected["verdict"],
        expected["tests"],
    )
    for run in [report["compile"], *report["tests"]]:
        assert run["time"] >= 0
        assert run["cpu"]["usage"] > 0
    for test in report["tests"]:
        assert bool(test["processes_left"]) == expected.get("processes_left", False) or test["limit"], test
        assert test["output"] == expected.get("output", test["output"])
        check_limits(test)


def check_limits(test: dict[str, Any]) -> None:
    """A run stays within its limits, and the figures show the one that ended it."""
    limits = {"memory": 64 << 20, "pids": 8}
    assert test["memory"]["max_usage"] <= limits["memory"]
    assert test["pids"]["max_usage"] <= limits["pids"]
    if test["limit"] == "cpu_time":
        assert test["cpu"]["usage"] >= 0.5
    if test["limit"] == "time":
        assert test["time"] >= 2.0
    if test["limit"] == "memory":
        assert test["memory"]["oom_kills"]


def test_every_submission_of_the_example_has_an_expected_verdict() -> None:
    assert {path.stem for path in (JUDGE / "submissions").glob("*.c")} == set(EXPECTED)


def test_the_example_carries_the_observers_client_as_it_is() -> None:
    copy, original = JUDGE / "observer_client.py", ROOT / "kolejka/observer/client.py"
    assert copy.read_bytes() == original.read_bytes(), f"cp {original} {copy}"


@pytest.mark.parametrize("name", ["judge.py", "observer_client.py", "prepare.py"])
def test_the_example_runs_on_old_pythons(name: str) -> None:
    ast.parse((JUDGE / name).read_text(encoding="utf-8"), feature_version=(3, 6))

"""The docker runtime on Podman's socket: the limits, the isolation and the clean-up of the other engine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kolejka.common.errors import NodeError
from kolejka.common.result import Result
from kolejka.common.settings import WorkerSettings
from kolejka.observer import access
from kolejka.worker.job import Job
from kolejka.worker.perform import Tools, perform
from kolejka.worker.runtimes.docker import Docker
from tests.neighbours.nvml import Card, Driver
from tests.neighbours.podman import Podman

pytestmark = pytest.mark.needs("cgroups", "root", "podman")
IMAGE = "docker.io/kolejka/busybox:latest"
Execute = Callable[..., tuple[Result, Path]]


@pytest.fixture(scope="module")
def tools(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tools]:
    data = tmp_path_factory.mktemp("data")
    registry = access.connect(cgroup=f"kolejka-test-{os.getpid()}-podman")
    yield Tools(WorkerSettings(data=data), runtimes={"docker": Docker(data, podman.url)}, connect=lambda _: registry)
    registry.stop()  # type: ignore[attr-defined]  # tests run without an observer


@pytest.fixture
def execute(tools: Tools, tmp_path: Path) -> Execute:
    def run(script: str, tools: Tools = tools, **fields: Any) -> tuple[Result, Path]:
        folder = tmp_path / "task"
        folder.mkdir()
        spec = {"args": ["sh", "-c", script], "image": IMAGE, "stdout": "stdout", **fields}
        (folder / "kolejka_task.json").write_text(json.dumps(spec))
        return perform(Job(folder, tmp_path / "result", runtime="docker"), tools), tmp_path / "result"

    return run


def test_a_task_runs_and_its_output_and_files_come_back(execute: Execute) -> None:
    result, folder = execute("echo out; echo kept > file; exit 3", collect=[{"glob": "file"}])
    assert (str(result.outcome), result.result) == ("failed", 3)
    assert ((folder / "stdout").read_text(), (folder / "file").read_text()) == ("out\n", "kept\n")
    assert result.stats.cpu.usage


@pytest.mark.parametrize(
    ("script", "limits", "limit"),
    [
        ("echo partial; while :; do :; done", {"time": "300ms"}, "time"),
        ("while :; do :; done", {"cpu_time": "300ms", "time": "60s"}, "cpu_time"),
        ("x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done", {"memory": "24M", "time": "60s"}, "memory"),
        ("yes", {"output": "10K", "time": "60s"}, "output"),
        ("cat /dev/zero > /tmp/big", {"storage": "4M", "workspace": "4M", "time": "60s"}, "storage"),
    ],
)
def test_limits_are_held(execute: Execute, script: str, limits: dict[str, str], limit: str) -> None:
    result, _ = execute(script, limits=limits)
    assert (str(result.outcome), result.limit) == ("limit", limit)


def test_daemons_that_are_left_behind_do_not_keep_the_container(execute: Execute, podman: Podman) -> None:
    result, _ = execute("for i in 1 2 3; do (setsid sleep 1000 &); done; echo done")
    assert str(result.outcome) == "ok"
    assert "processes_left" in result.flags
    assert podman.containers() == []


@pytest.mark.needs("gcc")
def test_gpus_which_podman_would_silently_not_give_are_refused(execute: Execute, tools: Tools, tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    driver.make_devices(1)
    driver.show(Card("GPU-1"))
    with pytest.raises(NodeError, match=r"limits\.gpus.*Podman"):
        execute("true", tools=replace(tools, find_gpus=lambda _: driver.gpus()), limits={"gpus": 1})


def test_how_the_node_was_booted_is_not_told(execute: Execute) -> None:
    _, folder = execute("cat /proc/cmdline; ls /sys/firmware")
    assert (folder / "stdout").read_text() == ""


def test_the_payload_is_as_confined_as_under_docker(execute: Execute, tools: Tools) -> None:
    _, folder = execute(
        "cat /proc/self/status; cat /proc/net/route; ls /sys/fs/cgroup; unshare -U true || echo refused"
    )
    text = (folder / "stdout").read_text()
    fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == [str(tools.settings.first_uid)] * 4
    assert {fields[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Amb")} == {"0" * 16}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert text.rpartition("IRTT")[2].split() == ["refused"], "no route, no control group, no new namespace"

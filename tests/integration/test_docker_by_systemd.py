"""An engine that has systemd make its control groups, as engines do by default where those are of version 2."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kolejka.common.settings import WorkerSettings
from kolejka.observer import access
from kolejka.worker.job import Job
from kolejka.worker.perform import Tools, perform
from kolejka.worker.runtimes import docker as runtime
from tests.neighbours.docker import Docker

pytestmark = pytest.mark.needs("root", "cgroups", "systemd", "docker", "busybox")

IMAGE = "kolejka/busybox:latest"


@pytest.fixture
def tools(tmp_path: Path, busybox_root_tar: Path) -> Iterator[Tools]:
    engine = Docker("systemd")
    sessions = access.connect(cgroup=f"kolejka-test-{os.getpid()}-systemd")
    try:
        engine.start()
        engine.import_image(busybox_root_tar, IMAGE)
        data = tmp_path / "data"
        subject = runtime.Docker(data, engine.url)
        yield Tools(WorkerSettings(data=data), runtimes={"docker": subject}, connect=lambda _: sessions)
    finally:
        stop = getattr(sessions, "stop", None)
        if stop is not None:
            stop()
        assert engine.stop() == []


def test_its_payloads_are_held_and_measured_like_any(tools: Tools, tmp_path: Path) -> None:
    def run(script: str, **limits: object):
        number = len(list(tmp_path.iterdir()))
        task = tmp_path / f"task-{number}"
        task.mkdir()
        spec = {"args": ["sh", "-c", script], "image": IMAGE, "stdout": "stdout", "limits": limits}
        (task / "kolejka_task.json").write_text(json.dumps(spec))
        return perform(Job(task, tmp_path / f"result-{number}", runtime="docker"), tools)

    fine = run("sleep 0.1 & wait", pids=4, time="60s")
    assert (fine.outcome, fine.result, fine.stats.pids.max_usage) == ("ok", 0, 2)
    hog = run("x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done", memory="24M", time="60s")
    assert (hog.outcome, hog.limit) == ("limit", "memory")
    assert hog.stats.memory.oom_kills

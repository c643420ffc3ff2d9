"""Every runtime behind the same door: ``execute(args, …)`` runs a task for real, in a session for real."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kolejka.common.limits import Limits
from kolejka.common.result import Result
from kolejka.common.settings import WorkerSettings
from kolejka.observer import access
from kolejka.worker.job import Job
from kolejka.worker.perform import Tools, perform
from kolejka.worker.runtimes import mounts
from kolejka.worker.runtimes.base import Runtime
from kolejka.worker.runtimes.docker import Docker
from kolejka.worker.runtimes.fake import Fake
from kolejka.worker.runtimes.sandbox import Sandbox
from kolejka.worker.watch import Orders
from tests.neighbours.docker import Docker as DockerEngine
from tests.neighbours.nvml import Card, Driver

IMAGE = "kolejka/busybox:latest"


@dataclass(frozen=True)
class Subject:
    """A runtime to test: how to run with it, and what it is able to."""

    tools: Tools
    name: str
    image: str | None
    isolates: bool
    engine: DockerEngine | None = None

    @property
    def runtime(self) -> Runtime:
        return self.tools.runtimes[self.name]


@dataclass(frozen=True)
class Done:
    """A finished task: the result and the folder it lies in."""

    result: Result
    folder: Path

    def text(self, name: str) -> str:
        return (self.folder / name).read_text(errors="surrogateescape")

    @property
    def stdout(self) -> str:
        return self.text("stdout")

    @property
    def verdict(self) -> tuple[str, str | None, int | None]:
        return str(self.result.outcome), self.result.limit, self.result.result


Execute = Callable[..., Done]
NEEDS = pytest.mark.needs("cgroups", "root")
SUBJECTS = [
    pytest.param("fake", marks=NEEDS),
    pytest.param("sandbox", marks=[NEEDS, pytest.mark.needs("bwrap")]),
    pytest.param("sandbox-image", marks=[NEEDS, pytest.mark.needs("bwrap", "busybox")]),
    pytest.param("docker", marks=[NEEDS, pytest.mark.needs("docker", "busybox")]),
    pytest.param("podman", marks=[NEEDS, pytest.mark.needs("podman", "busybox")]),
]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "isolating: about what only an isolating runtime can do; the fake is left out")
    config.addinivalue_line("markers", "gpus: about GPUs, of which Podman's API gives none; it is left out")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker, subject in (("isolating", "[fake"), ("gpus", "[podman")):
        items[:] = [item for item in items if not (item.get_closest_marker(marker) and subject in item.name)]


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """A stand-in for a driver, with two GPUs."""
    driver = Driver(tmp_path_factory.mktemp("driver"))
    driver.make_devices(2)
    driver.show(Card("GPU-1"), Card("GPU-2", memory=2048))
    return driver


@pytest.fixture(scope="module")
def sessions() -> Iterator[access.Sessions]:
    registry = access.connect(cgroup=f"kolejka-test-{os.getpid()}-runtimes")
    yield registry
    stop = getattr(registry, "stop", None)
    if stop is not None:
        stop()


@pytest.fixture(params=SUBJECTS, scope="module")
def subject(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, sessions: access.Sessions
) -> Iterator[Subject]:
    name: str = request.param
    data = tmp_path_factory.mktemp("data")
    settings = WorkerSettings(data=data)
    runtimes: dict[str, Runtime] = {"fake": Fake(data), "sandbox": Sandbox(data)}
    if name == "sandbox-image":
        sandbox = Sandbox(data)
        sandbox.images.add(IMAGE, request.getfixturevalue("busybox_root_tar"))
        runtimes["sandbox"] = sandbox
    engine = request.getfixturevalue(name) if name in {"docker", "podman"} else None
    if engine is not None:
        runtimes["docker"] = Docker(data, engine.url)
    tools = Tools(settings, runtimes=runtimes, connect=lambda _: sessions)
    image = IMAGE if engine is not None or name == "sandbox-image" else None
    runtime = "docker" if engine is not None else name.partition("-")[0]
    yield Subject(tools, runtime, image, isolates=name != "fake", engine=engine)
    mounts.leave_stage()


@pytest.fixture
def execute(subject: Subject, tmp_path: Path) -> Execute:
    """Run a task with the subject; keyword arguments are fields of the task."""
    counter = iter(range(1000))

    def run(
        args: Sequence[str],
        *,
        orders: Orders | None = None,
        tools: Tools = subject.tools,
        cpuset: tuple[int, ...] | None = None,
        gpus: tuple[str, ...] | None = None,
        ceilings: Limits | None = None,
        slot: int = 0,
        local: Mapping[str, bytes] = {},
        blobs: Path | None = None,
        **fields: Any,
    ) -> Done:
        number = next(counter)
        folder = tmp_path / f"task-{number}"
        folder.mkdir()
        for name, data in local.items():
            (folder / name).write_bytes(data)
        spec = {"args": list(args), "stdout": "stdout", "stderr": "stderr", **fields}
        if subject.image is not None:
            spec.setdefault("image", subject.image)
        (folder / "kolejka_task.json").write_text(json.dumps({k: v for k, v in spec.items() if v is not None}))
        result = tmp_path / f"result-{number}"
        if orders is not None:
            tools = replace(tools, orders=orders)
        job = Job(
            folder, result, blobs=blobs, limits=ceilings or Limits(), runtime=subject.name, slot=slot, cpuset=cpuset,
            gpus=gpus,
        )  # fmt: skip
        done = Done(perform(job, tools), result)
        assert Result.load(result) == done.result
        assert not list((subject.tools.settings.data / "work").iterdir()), "the workspace was left behind"
        return done

    return run

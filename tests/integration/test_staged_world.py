"""The tree that a worker mounts for a world: what a payload may not do in it, and what is left of it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kolejka.common.errors import NodeError
from kolejka.common.limits import Limits
from kolejka.common.result import Outcome
from kolejka.common.settings import WorkerSettings
from kolejka.common.task import Task
from kolejka.worker.job import Job
from kolejka.worker.perform import Tools, attempt
from kolejka.worker.runtimes import mounts

pytestmark = pytest.mark.needs("root", "cgroups", "bwrap")


@pytest.fixture(autouse=True)
def stage() -> Iterator[None]:
    yield
    mounts.leave_stage()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("dev/shm", "tmp", "usr"):
        (tmp_path / "root" / name).mkdir(parents=True)
    return tmp_path / "root"


def flags(folder: Path) -> int:
    return os.statvfs(folder).f_flag & (os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV)


def test_what_is_sealed_is_read_only_with_all_that_is_mounted_in_it(tmp_path: Path, root: Path) -> None:
    mounts.leave_host_namespace()
    sealed, private = tmp_path / "sealed", tmp_path / "private"
    (sealed / "deeper").mkdir(parents=True)
    private.mkdir()
    devices = mounts.stage_devices()
    assert devices is not None
    mounts.mount_memory(sealed / "deeper", 1 << 20)
    try:
        with mounts.stage_world(root, {"usr": sealed}, {"tmp": private}, devices) as world:
            for folder in (world, world / "usr", world / "usr/deeper"):
                assert flags(folder) == os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV, folder
            assert flags(world / "tmp") == os.ST_NOSUID | os.ST_NODEV
            (world / "tmp/file").touch()
            assert flags(world / "dev") == os.ST_RDONLY | os.ST_NOSUID
            (world / "dev/null").write_text("works")
        (sealed / "deeper/file").touch()
    finally:
        mounts.unmount(sealed / "deeper")
    assert (private / "file").exists()
    assert not os.path.ismount(world)
    assert list(world.iterdir()) == []


def test_what_is_mounted_later_stays_outside(tmp_path: Path, root: Path) -> None:
    mounts.leave_host_namespace()
    sealed = tmp_path / "sealed"
    sealed.mkdir()
    devices = mounts.stage_devices()
    assert devices is not None
    mounts.mount_memory(sealed, 1 << 20)
    subprocess.run(["mount", "--make-shared", sealed], check=True)
    (sealed / "later").mkdir()
    try:
        with mounts.stage_world(root, {"usr": sealed}, {}, devices) as world:
            mounts.mount_memory(sealed / "later", 1 << 20)
            assert os.path.ismount(sealed / "later")
            assert not os.path.ismount(world / "usr/later")
    finally:
        mounts.unmount(sealed)


def test_a_kernel_without_the_call_leaves_all_mounts_to_bubblewrap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "MOUNT_SETATTR", 1 << 20)  # no system call has this number
    (tmp_path / "task").mkdir()
    settings = WorkerSettings(data=tmp_path / "data")
    task = Task.parse({"args": ["sh", "-c", "! touch /usr/x; echo free > /tmp/x; exec cat /tmp/x"], "stdout": "out"})
    task.save(tmp_path / "task")
    job = Job(tmp_path / "task", tmp_path / "result", None, Limits.of(memory="64M", time="30s"), runtime="sandbox")
    result = attempt(job, Tools(settings))
    assert (result.outcome, (tmp_path / "result/out").read_text()) == (Outcome.OK, "free\n")
    assert mounts.stage_devices() is None
    assert not os.path.ismount(mounts.STAGE / "dev")
    assert not (mounts.STAGE / "world").exists()


def test_a_world_that_cannot_be_mounted_leaves_nothing(tmp_path: Path, root: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(NodeError, match="missing"), mounts.stage_world(root, {"usr": missing}, {}, root / "dev"):
        pass
    assert list((mounts.STAGE / "world").iterdir()) == []

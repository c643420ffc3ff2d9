"""The node's proof with real workers: what holds is told so, and what is lifted is noticed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kolejka.common.limits import LIMITS
from kolejka.common.result import Result
from kolejka.common.settings import WorkerSettings
from kolejka.foreman.prove import PROBES, prove
from kolejka.worker.job import Job
from kolejka.worker.pool import Pool
from kolejka.worker.runtimes.images import Store

pytestmark = pytest.mark.needs("root", "cgroups", "bwrap")

LIFTED = {
    "memory": "512M", "pids": 4096, "time": "30s", "cpu_time": "30s", "network": True, "storage": "128M",
    "workspace": "128M", "output": "8M", "image": "1G",
}  # fmt: skip
"""Not swap, cpus and GPUs: not every machine that runs tests has more to give."""


class Lifting:
    """A pool in which one limit is not what the probe says."""

    def __init__(self, pool: Pool, name: str | None = None) -> None:
        self._pool, self._name = pool, name

    def run(self, job: Job) -> Result:
        task = job.load()
        if self._name is not None and task.id == f"proof-{self._name}":
            task = task.replace(
                limits=task.limits.replace(**{self._name: LIMITS[self._name].parse(LIFTED[self._name])})
            )
        return self._pool.run(replace(job, task=task))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="kolejka-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def pool(folder: Path) -> Iterator[Pool]:
    pool = Pool(WorkerSettings(data=folder / "worker"), 1)
    pool.start()
    yield pool
    pool.stop(30)


def test_a_node_proves_itself_with_what_it_has(pool: Pool, folder: Path) -> None:
    store = Store(folder / "worker/images")
    proof = prove(Lifting(pool), ["sandbox"], folder / "proof", cpu=0, store=store)
    assert proof.passed, proof.reason
    assert {one.limit for one in proof.tried if one.held} == set(LIMITS) - {"gpu_memory"}
    assert not list(store.list())


@pytest.mark.parametrize("name", LIFTED)
def test_a_limit_that_does_not_hold_is_noticed(
    pool: Pool, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kolejka.foreman.prove.LIMITS", {name: LIMITS[name]})
    proof = prove(Lifting(pool, name), ["sandbox"], folder / "proof", cpu=0, store=Store(folder / "worker/images"))
    (tried,) = proof.tried
    assert tried.held is False, PROBES[name].script

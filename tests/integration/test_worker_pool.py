"""The pool of warm workers, with real sandboxes in real sessions."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kolejka.common.errors import InputError, NodeError
from kolejka.common.limits import Limits
from kolejka.common.result import Outcome, Result
from kolejka.common.settings import WorkerSettings
from kolejka.common.task import File, Task
from kolejka.worker.job import Job
from kolejka.worker.perform import Tools, attempt
from kolejka.worker.pool import Pool
from kolejka.worker.runtimes import mounts
from kolejka.worker.workspace import Workspace
from tests.support import wait_until

pytestmark = pytest.mark.needs("cgroups", "root", "bwrap")


@pytest.fixture
def settings(tmp_path: Path) -> WorkerSettings:
    return WorkerSettings(data=tmp_path / "data")


@pytest.fixture
def pool(settings: WorkerSettings) -> Iterator[Pool]:
    pool = Pool(settings, 2)
    pool.start()
    yield pool
    pool.stop(20)


def job(folder: Path, args: list[str], name: str = "one", **words: Any) -> Job:
    task = folder / f"task-{name}"
    task.mkdir()
    fields = {key: words.pop(key) for key in ("stdout", "collect", "limits", "files", "id") if key in words}
    (task / "kolejka_task.json").write_text(json.dumps({"args": args, **fields}))
    return Job(task, folder / f"result-{name}", **words)


def work(settings: WorkerSettings) -> list[Path]:
    return list((settings.data / "work").glob("*/task/*"))


def test_a_job_runs_to_its_result(pool: Pool, tmp_path: Path) -> None:
    node = {"name": "node-1", "tags": ["a"]}
    done = pool.run(job(tmp_path, ["uname"], stdout="out", id="task-7", node=node, limits={"pids": 1}))
    assert done == Result.load(tmp_path / "result-one")
    assert (done.outcome, done.id) == (Outcome.OK, "task-7")
    assert done.node == {**node, "runtime": "sandbox"}
    assert (tmp_path / "result-one" / "out").read_text() == "Linux\n"


def test_a_disk_that_is_full_when_the_result_is_written_is_an_error_of_the_node(
    settings: WorkerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where that ended the worker, a traceback was all that was said of it."""

    def full(_result: Result, _folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Result, "save", full)
    try:
        with pytest.raises(NodeError, match="cannot be written: No space left on device"):
            attempt(job(tmp_path, ["true"]), Tools(settings))
    finally:
        mounts.leave_stage()
    assert work(settings) == []


def test_a_payload_can_end_its_children_by_the_usual_signals(pool: Pool, tmp_path: Path) -> None:
    script = "for name in HUP INT TERM; do timeout --preserve-status -s $name 0.1 sleep 1000; echo $?; done"
    done = pool.run(job(tmp_path, ["sh", "-c", script], stdout="out", limits={"time": "60s"}))
    assert done.outcome is Outcome.OK
    assert (tmp_path / "result-one/out").read_text().split() == ["129", "130", "143"]


def test_more_jobs_than_workers_wait_for_their_turn(pool: Pool, tmp_path: Path) -> None:
    jobs = [job(tmp_path, ["sh", "-c", f"exit {n}"], name=str(n), slot=n) for n in range(8)]
    results: dict[int, Result] = {}
    threads = [threading.Thread(target=lambda n=n: results.update({n: pool.run(jobs[n])})) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {n: result.result for n, result in results.items()} == {n: n for n in range(8)}


def test_what_cannot_run_gives_an_error_result_that_names_the_field(pool: Pool, tmp_path: Path) -> None:
    done = pool.run(job(tmp_path, ["true"], limits={"gpus": 1}))
    assert done.outcome is Outcome.ERROR
    assert "limits.gpus" in (done.message or "")
    assert Result.load(tmp_path / "result-one") == done
    assert pool.run(job(tmp_path, ["true"], name="two")).outcome is Outcome.OK


@pytest.mark.parametrize("outcome", [Outcome.CANCELLED, Outcome.ERROR])
def test_cancel_kills_at_once_with_the_outcome_that_was_ordered(
    pool: Pool, settings: WorkerSettings, tmp_path: Path, outcome: Outcome
) -> None:
    running = job(tmp_path, ["sh", "-c", "touch started; sleep 1000"])
    thread = threading.Thread(target=lambda: (wait_until(lambda: work(settings)), pool.cancel(running, outcome)))
    thread.start()
    assert pool.run(running).outcome is outcome
    thread.join()
    pool.cancel(running)  # over already: nothing happens
    assert pool.run(job(tmp_path, ["true"], name="next")).outcome is Outcome.OK


def test_a_job_cancelled_before_its_turn_never_starts(pool: Pool, settings: WorkerSettings, tmp_path: Path) -> None:
    busy = [job(tmp_path, ["sh", "-c", "touch started; sleep 1000"], name=f"busy-{n}", slot=n) for n in range(2)]
    threads = [threading.Thread(target=pool.run, args=[one]) for one in busy]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(work(settings)) == 2)
    third = job(tmp_path, ["true"], name="third")
    results: list[Result] = []
    waiting = threading.Thread(target=lambda: results.append(pool.run(third)))
    waiting.start()
    wait_until(lambda: len(pool._turns) == 3)
    pool.cancel(third)
    waiting.join(30)
    assert results[0].outcome is Outcome.CANCELLED
    for one in busy:
        pool.cancel(one)
    for thread in threads:
        thread.join(30)


def test_a_job_of_which_nothing_ran_goes_to_another_worker_when_its_own_dies(pool: Pool, tmp_path: Path) -> None:
    for worker in pool._all:
        os.kill(worker.process.pid, signal.SIGSTOP)
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(pool.run(job(tmp_path, ["true"]))))
    thread.start()
    wait_until(lambda: pool._turns and pool._turns[0].worker)
    taken, other = pool._turns[0].worker, pool._idle[0]
    assert taken is not None
    os.kill(other.process.pid, signal.SIGCONT)
    os.kill(taken.process.pid, signal.SIGKILL)
    thread.join(60)
    assert results[0].outcome is Outcome.OK
    wait_until(lambda: len(pool._idle) == 2)


def test_a_job_over_which_workers_die_before_it_runs_is_an_error(pool: Pool, tmp_path: Path) -> None:
    for worker in pool._all:
        os.kill(worker.process.pid, signal.SIGSTOP)
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(pool.run(job(tmp_path, ["true"]))))
    thread.start()
    for again in (False, True):
        wait_until(lambda: pool._turns and pool._turns[0].again is again and pool._turns[0].worker)  # noqa: B023 - waited for here
        taken = pool._turns[0].worker
        assert taken is not None
        os.kill(taken.process.pid, signal.SIGKILL)
    thread.join(60)
    assert results[0].outcome is Outcome.ERROR
    assert "died" in (results[0].message or "")


def test_a_worker_that_dies_takes_its_payload_along_and_is_replaced(
    pool: Pool, settings: WorkerSettings, tmp_path: Path
) -> None:
    marker = f"4{os.getpid()}"
    running = job(tmp_path, ["sh", "-c", f"touch started; setsid sleep {marker} & sleep {marker}"], stdout="out")
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(pool.run(running)))
    thread.start()
    wait_until(lambda: work(settings))
    busy = next(worker for worker in pool._all if worker.run)
    os.kill(busy.process.pid, signal.SIGKILL)
    thread.join(60)
    assert results[0].outcome is Outcome.ERROR
    assert "died" in (results[0].message or "")
    assert Result.load(tmp_path / "result-one") == results[0]
    wait_until(lambda: not [p for p in Path("/proc").glob("[0-9]*/cmdline") if marker in _read(p)])
    assert list((settings.data / "work").iterdir()) == []
    for name in ("a", "b", "c"):
        assert pool.run(job(tmp_path, ["true"], name=name)).outcome is Outcome.OK
    wait_until(lambda: len(pool._idle) == 2)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the process is gone
        return ""


def test_a_worker_that_died_in_idleness_costs_no_job(pool: Pool, tmp_path: Path) -> None:
    for worker in list(pool._all):
        worker.process.kill()
        worker.process.wait()
    assert pool.run(job(tmp_path, ["true"])).outcome is Outcome.OK


def test_start_sweeps_what_dead_workers_left_and_nothing_of_the_living(
    settings: WorkerSettings, tmp_path: Path
) -> None:

    left = settings.data / "work" / "kolejka-0123456789abcdef"
    (left / "task" / "deep").mkdir(parents=True)
    foreign = settings.data / "work" / "somebody-else"
    foreign.mkdir()
    living = Workspace(settings.data, os.geteuid())
    pool = Pool(settings, 1)
    pool.start()
    pool.stop(10)
    assert not left.exists()
    assert foreign.exists()
    assert living.path.exists()
    living.remove()


def test_stop_kills_what_runs_and_refuses_what_comes(settings: WorkerSettings, tmp_path: Path) -> None:
    pool = Pool(settings, 1)
    pool.stop(1)  # before start
    pool = Pool(settings, 1)
    pool.start()
    results: list[Result] = []
    running = job(tmp_path, ["sh", "-c", "touch started; sleep 1000"])
    thread = threading.Thread(target=lambda: results.append(pool.run(running)))
    thread.start()
    wait_until(lambda: work(settings))
    pool.stop(20)
    thread.join(20)
    assert results[0].outcome is Outcome.CANCELLED
    pool.stop(1)
    with pytest.raises(NodeError, match="stopped"):
        pool.run(job(tmp_path, ["true"], name="late"))


def test_a_job_survives_the_way_to_the_worker_and_back(tmp_path: Path) -> None:
    full = Job(
        tmp_path, tmp_path / "r", tmp_path / "b", Limits.of(time="1s"), "sandbox", 3, (0, 1), ("GPU-1",), {"name": "x"},
        {"lease": 7},
    )  # fmt: skip
    for one in (full, replace(full, task=Task(("true",), id="a", files={"f": File(content="x")}))):
        assert Job.parse(json.loads(json.dumps(one.to_json()))) == one


def test_a_task_without_a_folder_names_no_local_file(tmp_path: Path) -> None:
    assert Job(Task(("true",), files={"f": File(content="x")}), tmp_path).load().args == ("true",)
    with pytest.raises(InputError, match="no folder") as caught:
        Job(Task(("true",), files={"f": File(path="x")}), tmp_path).load()
    assert caught.value.field == "files.f"

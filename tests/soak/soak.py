"""Many tasks of mixed fates through a pool of warm workers with an observer of their own; then a look at what is left.

The order is a fixed shuffle, so that every fate follows every other one in each slot. What programs hold is compared
between a moment after the first ``WARM`` tasks and the end.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue

import psutil

from kolejka.common.result import Result
from kolejka.common.settings import WorkerSettings
from kolejka.worker.job import Job
from kolejka.worker.pool import Pool
from tests.neighbours.cluster import Cluster
from tests.soak import census
from tests.soak.fates import FATES, OK, Fate
from tests.support import wait_until

FIRST_UID = 2_300_000
"""Users of this soak's payloads alone, so that those of others on the machine are not counted."""
WARM = 3 * len(FATES)


@dataclass
class Report:
    """What came of it."""

    tasks: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)
    """tasks that did not end as they must"""
    left: list[str] = field(default_factory=list)
    grown: list[str] = field(default_factory=list)
    """what a program holds more than before"""
    resident: dict[str, tuple[int, int]] = field(default_factory=dict)
    """program → bytes before and after"""
    costs: list[float] = field(default_factory=list)
    """seconds of the plain tasks, in order"""

    @property
    def flatness(self) -> float:
        """Median cost of a plain task in the last tenth, by that in the first tenth."""
        return self._last_by_first(statistics.median)

    @property
    def least_flatness(self) -> float:
        """The same of the cheapest task, which says less about what else the machine did meanwhile."""
        return self._last_by_first(min)

    def _last_by_first(self, of: Callable[[list[float]], float]) -> float:
        tenth = max(1, len(self.costs) // 10)
        return of(self.costs[-tenth:]) / of(self.costs[:tenth])

    def show(self) -> str:
        """For people."""
        lines = [
            f"{self.tasks} tasks in {self.seconds:.0f} s",
            f"cost of a plain task, last tenth by first: median {self.flatness:.2f}, least {self.least_flatness:.2f}",
        ]
        lines += [
            f"memory of {name}: {a >> 10} → {b >> 10} KiB ({(b - a) >> 10:+})" for name, (a, b) in self.resident.items()
        ]
        for title, entries in (("WRONG", self.wrong), ("LEFT", self.left), ("GROWN", self.grown)):
            lines += [f"{title}: {entry}" for entry in entries] or [f"{title.lower()}: nothing"]
        return "\n".join(lines)


class Soak:
    """A pool of ``slots`` and its observer, below ``folder``."""

    def __init__(self, folder: Path, slots: int) -> None:
        self.folder = folder
        self.slots = slots
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.cluster = Cluster(folder, {"KOLEJKA_OBSERVER_REMEMBER": "1s", "TMPDIR": str(self.temporary)})
        self.program = folder / "fates"
        source = Path(__file__).parent / "fates.c"
        subprocess.run(["gcc", "-O1", "-static", "-w", "-o", self.program, source], check=True)
        settings = replace(
            WorkerSettings(), data=folder / "worker", observer=str(folder / "observer.sock"), first_uid=FIRST_UID
        )
        self.pool = Pool(settings, slots)
        self.report = Report()
        self._slots: SimpleQueue[int] = SimpleQueue()
        for slot in range(slots):
            self._slots.put(slot)

    # running

    def run(self, tasks: int) -> None:
        """Run so many tasks, ``slots`` at a time."""
        fates = [FATES[number % len(FATES)] for number in range(tasks)]
        random.Random(7).shuffle(fates)
        begun = time.monotonic()
        with ThreadPoolExecutor(self.slots) as threads:
            for _ in threads.map(self._one, range(self.report.tasks, self.report.tasks + tasks), fates):
                pass
        self.report.tasks += tasks
        self.report.seconds += time.monotonic() - begun

    def _one(self, number: int, fate: Fate) -> None:
        place = self.folder / f"task-{number}"
        fate.write(place, self.program)
        slot = self._slots.get()
        try:
            begun = time.perf_counter()
            result = self._perform(Job(place, place / "result", runtime="sandbox", slot=slot), fate)
            if fate is OK:
                self.report.costs.append(time.perf_counter() - begun)
            fate.check(result)
        except AssertionError as error:
            self.report.wrong.append(str(error))
        finally:
            self._slots.put(slot)
            shutil.rmtree(place)

    def _perform(self, job: Job, fate: Fate) -> Result:
        if not fate.cancelled:
            return self.pool.run(job)
        over = threading.Event()

        def cancel() -> None:
            while not over.wait(0.02):  # again, because nothing runs yet when the order comes too early
                self.pool.cancel(job)

        canceller = threading.Thread(target=cancel)
        canceller.start()
        try:
            return self.pool.run(job)
        finally:
            over.set()
            canceller.join()

    def kill_workers(self) -> None:
        """Kill all worker processes, one of them in the middle of a task: it is an error, and the pool goes on."""
        fate = Fate("worker killed", ("./fates", "spin"), "error")
        place = self.folder / "task-of-the-dead"
        fate.write(place, self.program)
        results: list[Result] = []
        job = Job(place, place / "result", runtime="sandbox")
        thread = threading.Thread(target=lambda: results.append(self.pool.run(job)))
        thread.start()
        wait_until(lambda: [line for line in census.processes_of(self.users) if line.endswith("fates")])
        for pid in self.workers():
            os.kill(pid, signal.SIGKILL)
        thread.join()
        try:
            fate.check(results[0])
        except AssertionError as error:
            self.report.wrong.append(str(error))
        shutil.rmtree(place)

    # counting

    @property
    def users(self) -> range:
        """The payloads' users."""
        return range(FIRST_UID, FIRST_UID + self.slots)

    def workers(self) -> list[int]:
        """The worker processes."""
        found = []
        for child in psutil.Process().children():
            try:
                if "kolejka.worker.process" in child.cmdline():
                    found.append(child.pid)
            except psutil.Error:
                continue  # it ended while we looked
        return found

    def programs(self) -> dict[int, str]:
        """Process → what it is."""
        arbiter = self.cluster.programs["observer"].pid
        observers = [arbiter, *(child.pid for child in psutil.Process(arbiter).children())]
        names = {os.getpid(): "this process", **{pid: f"observer {pid}" for pid in observers}}
        return {**names, **{pid: f"worker {pid}" for pid in self.workers()}}

    def look(self) -> census.Census:
        """What is there now."""
        work, state = self.folder / "worker/work", self.folder / "sessions"
        found = census.take(self.programs(), self.cluster.cgroup, self.users, self.folder, work, self.temporary)
        sessions = [path for path in census.entries(state) if Path(path).name != "owner.json"]
        return replace(found, left=(*found.left, *sessions))

    def settle(self) -> census.Census:
        """What is there when nothing changes any more: what is just leaving has a moment."""
        try:
            wait_until(lambda: not self.look().left, 20)
        except AssertionError:  # what is still there is the answer
            return self.look()
        return self.look()

    def compare(self, before: census.Census, after: census.Census) -> None:
        """Into the report: what is left, and what programs hold more than before."""
        self.report.left += after.left
        for pid, name in self.programs().items():
            if pid not in before.held or pid not in after.held:
                continue
            old, new = before.held[pid], after.held[pid]
            self.report.resident[name] = (old.resident, new.resident)
            for what in ("descriptors", "mounts"):
                a, b = getattr(old, what), getattr(new, what)
                if b > a:
                    self.report.grown.append(f"{what} of {name}: {a} → {b}")


@contextmanager
def open_soak(folder: Path, slots: int) -> Iterator[Soak]:
    """A soak that is ready to run; afterwards everything is stopped, and what even then is left is in its report."""
    soak = Soak(folder, slots)
    mounts = census.held_by(os.getpid(), folder).mounts
    inherited = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(soak.temporary)
    try:
        soak.cluster.start_observer()
        try:
            soak.pool.start()
            yield soak
        finally:
            soak.pool.stop(20)
    finally:
        soak.cluster.stop()
        if inherited is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = inherited
    left = [*census.groups_below(soak.cluster.cgroup), *census.processes_of(soak.users)]
    left += [str(top) for top in census.CGROUPS.glob(f"*/{soak.cluster.cgroup}")]
    more = census.held_by(os.getpid(), folder).mounts - mounts
    soak.report.left += [*(f"after the stop: {name}" for name in left), *([f"{more} mounts"] if more > 0 else [])]


def soak_all(folder: Path, tasks: int, slots: int, *, say: Callable[[str], object] = lambda _: None) -> Report:
    """The whole soak: warm up, look, run the rest, look again, kill the workers, look a last time."""
    with open_soak(folder, slots) as soak:
        soak.run(min(WARM, tasks // 2))
        before = soak.settle()
        step = max(1, (tasks - soak.report.tasks) // 20)
        while soak.report.tasks < tasks:
            soak.run(min(step, tasks - soak.report.tasks))
            wrong = "".join(f"\n  {entry}" for entry in soak.report.wrong)
            say(f"{soak.report.tasks} tasks, {soak.report.seconds:.0f} s, {len(soak.report.wrong)} wrong{wrong}")
        soak.compare(before, soak.settle())
        soak.kill_workers()
        soak.run(len(FATES))
        soak.report.left += [f"after the workers' death: {name}" for name in soak.settle().left]
    return soak.report


def say(text: str) -> None:
    """A line for the person who watches."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()

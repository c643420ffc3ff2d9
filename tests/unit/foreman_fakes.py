"""A pool and a server that exist in memory, and a foreman made of them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from kolejka.client.node import Attempt, Beat, Claimed, LogWish
from kolejka.common.errors import Conflict, InputError, KolejkaError, NotFound, Unavailable
from kolejka.common.limits import LIMITS, Limits, Share
from kolejka.common.result import Outcome, Result, ResultFile
from kolejka.common.settings import ForemanSettings
from kolejka.common.task import Task
from kolejka.foreman.daemon import Foreman
from kolejka.foreman.pack import Cpu, Offer
from kolejka.worker.job import Job

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def offer_of(cpus: int = 2, slots: int = 0, **amounts: object) -> Offer:
    """An offer with one core for each CPU."""
    total = Limits.of(**{"cpus": cpus, "memory": "8G", "pids": 1000, **amounts})
    return Offer(total, tuple(Cpu(number, number) for number in range(cpus)), slots or cpus)


class FakePool:
    """Payloads end when the test says so, or at once if ``instant``, but for those of the tasks ``lasting``."""

    def __init__(self, *, instant: bool = False) -> None:
        self.instant = instant
        self.lasting: frozenset[str] = frozenset()
        self.started: list[Job] = []
        self.calls: list[str] = []
        self.outcomes: dict[str, Result] = {}
        self.fault: KolejkaError | None = None
        self._ends: dict[Path, tuple[threading.Event, list[Outcome]]] = {}
        self._lock = threading.Lock()

    def start(self) -> None:
        self.calls.append("start")

    def stop(self, timeout_s: float) -> None:
        self.calls.append("stop")

    def run(self, job: Job) -> Result:
        task = job.load()
        event, outcome = threading.Event(), list[Outcome]()
        with self._lock:
            self._ends[job.result] = (event, outcome)
            self.started.append(job)
        if not self.instant or task.id in self.lasting:
            event.wait()
        if self.fault is not None:
            raise self.fault
        result = self.outcomes.get(task.id or "", Result(Outcome.OK, result=0))
        if outcome:
            result = Result(outcome[0])
        result = result.replace(id=task.id, limits=task.limits, node=job.node)
        job.result.mkdir(parents=True, exist_ok=True)
        for name in result.manifest:
            (job.result / name).write_bytes(b"")
        result.save(job.result)
        return result

    def cancel(self, job: Job, outcome: Outcome = Outcome.CANCELLED) -> None:
        with self._lock:
            event, said = self._ends[job.result]
        said.append(outcome)
        event.set()

    def finish(self, number: int = -1) -> None:
        """Let a payload end by itself."""
        with self._lock:
            event, _ = self._ends[self.started[number].result]
        event.set()

    def finish_lease(self, lease: int) -> None:
        """Let the payload of an attempt end by itself."""
        with self._lock:
            event = next(
                event for result, (event, _) in self._ends.items() if result.name.partition("-")[0] == str(lease)
            )
        event.set()

    def finish_all(self) -> None:
        with self._lock:
            for event, _ in self._ends.values():
                event.set()


class FakeServer:
    """A server with a list of waiting tasks. ``down`` makes it unreachable; ``wait_s`` is honoured."""

    def __init__(self, heartbeat_s: float = 60.0) -> None:
        self.heartbeat_s = heartbeat_s
        self.waiting: list[Task] = []
        self.leases: dict[int, Task] = {}
        self.lost: set[int] = set()
        self.cancelled: set[int] = set()
        self.results: dict[int, Result] = {}
        self.released: dict[int, str] = {}
        self.blobs: dict[str, bytes] = {}
        self.beats: list[dict[str, Any]] = []
        self.claims: list[dict[str, Any]] = []
        self.puts: list[str] = []
        self.asked: str | None = None
        self.log_wish: LogWish | None = None
        self.logs: list[tuple[int, str]] = []
        self.down = False
        self.error: KolejkaError | None = None
        self.refuse_beat: KolejkaError | None = None
        self.together: list[list[int]] = []
        self.refuse_together: InputError | None = None
        self.refuse_result: Callable[[int, Result], None] = lambda lease, result: None
        self._numbers = itertools.count(1)
        self.changed = threading.Condition()
        self.closed = False

    def put(self, *tasks: Task) -> None:
        with self.changed:
            self.waiting += tasks
            self.changed.notify_all()

    def _check(self) -> None:
        if self.error is not None:
            raise self.error
        if self.down:
            raise Unavailable("no server")

    def cancel(self, lease: int) -> None:
        """Wakes the requests that wait, as the server does."""
        with self.changed:
            self.cancelled.add(lease)
            self.changed.notify_all()

    def ask(self, asked: str | None) -> None:
        """What an admin asks of the node from now on."""
        with self.changed:
            self.asked = asked
            self.changed.notify_all()

    def set_down(self, down: bool) -> None:
        with self.changed:
            self.down = down
            self.changed.notify_all()

    def claim(
        self, node: str, *, capacity: Limits, total: Limits, slots: int, tags: Iterable[str], queues: Iterable[str],
        wait_s: float, idle: bool, leases: Iterable[int], ahead: Limits | None = None, ahead_slots: int = 0,
    ) -> Claimed:  # fmt: skip
        with self.changed:
            claim = {"capacity": capacity, "slots": slots, "idle": idle, "wait_s": wait_s, "leases": list(leases),
                     "ahead": ahead_slots}  # fmt: skip
            more = {} if ahead is None else ahead.values
            capacity = capacity.replace(**{name: value + more.get(name, 0) for name, value in capacity.values.items()})
            slots += ahead_slots
            self.claims.append(claim)
            self.changed.notify_all()
            self._check()

            def ready() -> list[Task]:
                return [] if self.down or self.closed else self._fitting(capacity, slots, idle)

            def over() -> object:
                overtaken = self.claims[-1] is not claim or self.asked is not None
                return overtaken or self.down or self.closed or self.cancelled.difference(self.results)

            self.changed.wait_for(lambda: over() or ready(), wait_s)
            if self.claims[-1] is not claim:
                return Claimed(heartbeat_s=self.heartbeat_s)
            if self.asked is not None:
                return Claimed(heartbeat_s=self.heartbeat_s, asked=self.asked)
            self._check()
            found = ready()
            attempts = []
            for task in found:
                self.waiting.remove(task)
                lease = next(self._numbers)
                self.leases[lease] = task
                attempts.append(Attempt(lease, task.id or "", "owner", task.to_json(), 3600.0))
            return Claimed(tuple(attempts), frozenset(self.cancelled.difference(self.results)), self.heartbeat_s)

    def _fitting(self, capacity: Limits, slots: int, idle: bool) -> list[Task]:
        found: list[Task] = []
        left = dict(capacity.values)
        for task in self.waiting:
            needs = {n: v for n, v in task.limits.values.items() if LIMITS[n].share is Share.SPLIT and n in left}
            if (
                len(found) < slots
                and all(left[n] >= v for n, v in needs.items())
                and (not task.exclusive or (idle and not found))
            ):
                found.append(task)
                left.update({n: left[n] - v for n, v in needs.items()})
                if task.exclusive:
                    break
        return found

    def heartbeat(
        self, node: str, *, leases: Iterable[int], capacity: Limits, total: Limits, tags: Iterable[str], state: str,
        timeout_s: float, about: Mapping[str, Any] = {},
    ) -> Beat:  # fmt: skip
        with self.changed:
            self._check()
            if self.refuse_beat is not None:
                raise self.refuse_beat
            held = list(leases)
            self.beats.append({"leases": held, "state": state, "capacity": capacity, "timeout_s": timeout_s,
                               "about": dict(about)})  # fmt: skip
            self.changed.notify_all()
            return Beat(
                frozenset(self.lost.intersection(held)), frozenset(self.cancelled.intersection(held)), self.heartbeat_s,
                self.asked, self.log_wish,
            )  # fmt: skip

    def put_log(self, node: str, number: int, log: str) -> None:
        with self.changed:
            self._check()
            self.logs.append((number, log))
            self.changed.notify_all()

    def put_result(self, lease: int, result: Result) -> dict[str, Any]:
        with self.changed:
            self._check()
            self.refuse_result(lease, result)
            if lease in self.lost:
                raise Conflict("overtaken")
            self.results[lease] = result
            self.changed.notify_all()
            return {}

    def put_results(self, results: Mapping[int, Result]) -> dict[int, InputError | None]:
        with self.changed:
            self._check()
            if self.refuse_together is not None:
                raise self.refuse_together
            self.together.append(sorted(results))
        answers: dict[int, InputError | None] = {}
        for lease, result in results.items():
            try:
                self.put_result(lease, result)
            except InputError as error:
                answers[lease] = error
            else:
                answers[lease] = None
        return answers

    def release(self, lease: int, message: str) -> dict[str, Any]:
        with self.changed:
            self._check()
            self.released[lease] = message
            self.waiting += [self.leases[lease]] if lease in self.leases else []
            self.changed.notify_all()
            return {}

    def put_blob(self, source: Path, *, reference: str | None = None) -> str:
        with self.changed:
            self._check()
            assert reference is not None
            self.blobs[reference] = source.read_bytes()
            self.puts.append(reference)
            return reference

    def get_blob(self, reference: str, path: Path) -> int:
        with self.changed:
            self._check()
            if reference not in self.blobs:
                raise NotFound(f"there is no blob {reference}")
            return path.write_bytes(self.blobs[reference])

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()


def task(name: str = "t", *, cpus: int = 1, **words: Any) -> Task:
    """A task with all limits set, as a server gives it."""
    limits = Limits.of(cpus=cpus, memory="64M", pids=16)
    return Task.parse({"id": name, "args": ["true"], **words}).replace(limits=limits)


def with_file(name: str = "stdout.txt") -> Result:
    return Result(Outcome.OK, result=0, manifest={name: ResultFile(0, "0644", EMPTY)})


def foreman_of(
    data: Path, server: FakeServer, pool: FakePool, offer: Offer | None = None, *, prove: Any = None,
    work: Path | None = None, **settings: Any,
) -> Foreman:  # fmt: skip
    return Foreman(
        ForemanSettings(name="n1", data=data, **settings), offer or offer_of(), ("tag",), pool, server, prove=prove,
        work=work,
    )  # fmt: skip

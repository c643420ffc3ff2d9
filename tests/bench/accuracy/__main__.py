"""``make bench-accuracy``: what results say against what programs know of themselves.

Small static C programs measure themselves and run as tasks of a warm worker pool, in sandbox or docker, with an
observer of their own. Everything is done ``--rounds`` times; the table shows the round whose difference is the median,
and the worst. In every round the same is done beside a task in another slot that burns its CPU, walks through memory,
forks and writes to disk.

The truth of CPU time is what the process and its waited-for children were charged (getrusage); of wall-clock time, what
passed between the program's first and last instruction; of a limit, the limit itself, against what the program, by its
last word in a shared page, was let live and burn. Figures go to ``bench-accuracy.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from kolejka.common.limits import Limits
from kolejka.common.result import Outcome, Result
from kolejka.common.settings import WorkerSettings
from kolejka.common.task import Task
from kolejka.worker.job import Job
from kolejka.worker.pool import Pool
from tests.bench.accuracy.figures import Line, Target, table
from tests.neighbours import needs
from tests.neighbours.cluster import Cluster
from tests.support import wait_until

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = Path(__file__).parent / "programs"
MIB = 1 << 20
MEMORY_CONSTANT = MIB // 2
"""Bytes that a peak may be above the program's own memory: its stack and kernel objects, and what the kernel charges
ahead (up to 64 pages for each CPU)."""
LIMIT_S = 0.5
NEIGHBOUR_SHARE = 0.02

Pair = tuple[float, float]


def say(text: str = "") -> None:
    """A line for the person who watches."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@dataclass(frozen=True)
class Subject:
    """One thing to measure: a program, its limits, and how to tell truth and figure from what came back."""

    name: str
    unit: str
    words: tuple[str, ...]
    read: Callable[[Result, Path], Pair]
    target: Target
    limits: Limits = Limits.of(cpus=1)
    ends: str | None = None
    """the limit that is to end it"""
    beside_neighbour: bool = True


class Bench:
    """A pool of two, its observer, the programs."""

    def __init__(self, folder: Path, pool: Pool, runtime: str, image: str | None) -> None:
        self.folder = folder
        self.pool = pool
        self.runtime = runtime
        self.image = image
        self._numbers = count()

    def job(self, words: Sequence[str], limits: Limits, slot: int) -> Job:
        """A task that runs one of the programs."""
        place = self.folder / f"task-{next(self._numbers)}"
        place.mkdir()
        shutil.copy(self.folder / words[0], place / "program")
        spec = {
            "args": ["./program", *words[1:]], "files": {"program": {"path": "program", "executable": True}},
            "stdout": "stdout.txt", "collect": [{"glob": "beats"}], "image": self.image,
        }  # fmt: skip
        (place / "kolejka_task.json").write_text(json.dumps({k: v for k, v in spec.items() if v is not None}))
        Task.load(place)
        limits = limits.with_defaults(Limits.of(swap=0, pids=64, time="120s", network=False))
        return Job(place, place / "result", None, limits, runtime=self.runtime, slot=slot)

    def measure(self, subject: Subject) -> Pair:
        """Run it once. RuntimeError when it does not end as it must."""
        job = self.job(subject.words, subject.limits, 0)
        result = self.pool.run(job)
        expected = (Outcome.OK, None) if subject.ends is None else (Outcome.LIMIT, subject.ends)
        if (result.outcome, result.limit) != expected:
            raise RuntimeError(f"{subject.name}: this is not how it should end: {result}")
        pair = subject.read(result, job.result)
        shutil.rmtree(job.task)
        return pair

    @contextmanager
    def neighbour(self) -> Iterator[None]:
        """A noisy task in the other slot."""
        job = self.job(["neighbour"], Limits.of(cpus=1, memory="256M"), 1)
        results: list[Result] = []
        thread = threading.Thread(target=lambda: results.append(self.pool.run(job)))
        thread.start()
        try:
            wait_until(lambda: results or next((self.folder / "worker/work").glob("*/task/noise"), None))
            if results:
                raise RuntimeError(f"the neighbour ended: {results[0]}")
            yield
            if results:
                raise RuntimeError(f"the neighbour ended too early: {results[0]}")
        finally:
            self.pool.cancel(job)
            thread.join()


# What is measured


def said(folder: Path) -> float:
    """The number that the program printed."""
    return float((folder / "stdout.txt").read_text(encoding="ascii"))


def known(value: float | None) -> float:
    """A figure that must be there."""
    if value is None:
        raise RuntimeError("this kernel does not give the figure")
    return value


def beats(folder: Path, processes: int) -> tuple[float, float]:
    """Seconds that ``beat`` lived, and burned, by its own last word."""
    numbers = struct.unpack(f"{3 * processes}q", (folder / "beats").read_bytes()[: 24 * processes])
    return (max(numbers[1::3]) - min(numbers[::3])) / 1e9, sum(numbers[2::3]) / 1e9


def subjects(largest: int) -> list[Subject]:
    """Everything that is measured; allocations up to ``largest`` bytes."""
    found = [
        Subject(
            f"CPU time, {words}", "s", ("spin", "1000", children),
            lambda result, folder: (said(folder) / 1e9, known(result.stats.cpu.usage)), Target.within(0, 0.01),
        )
        for children, words in (("0", "one process"), ("8", "8 children"), ("200", "200 children"))
    ]  # fmt: skip
    found += [
        Subject(
            f"peak memory, {size // MIB} MiB", "bytes", ("memory", str(size)),
            lambda result, folder: (said(folder), known(result.stats.memory.max_usage)),
            Target(MEMORY_CONSTANT, 0, 0.01),
        )
        for size in (1 * MIB, 16 * MIB, 256 * MIB, 1024 * MIB, 4096 * MIB)
        if size <= largest
    ]  # fmt: skip
    found.append(
        Subject(
            "wall-clock time", "s", ("wall", "500"),
            lambda result, folder: (said(folder) / 1e9, known(result.stats.time)), Target.within(0.001),
        )
    )  # fmt: skip
    limit = Limits.of(cpus=1, time=LIMIT_S)
    found += [
        Subject(
            "limit of wall-clock time, lived", "s", ("beat", "1"), lambda _, folder: (LIMIT_S, beats(folder, 1)[0]),
            Target(0.02, 0.02), limit, "time",
        ),
        Subject(
            "limit of wall-clock time, said", "s", ("beat", "1"), lambda result, _: (LIMIT_S, known(result.stats.time)),
            Target(0.02, 0.001), limit, "time",
        ),
    ]  # fmt: skip
    for processes in (1, 2):
        words = f"{processes} process{'es' if processes > 1 else ''}"
        limit = Limits.of(cpus=processes, cpu_time=LIMIT_S)
        found += [
            Subject(
                f"limit of CPU time, {words}, burned", "s", ("beat", str(processes)),
                lambda _, folder, processes=processes: (LIMIT_S, beats(folder, processes)[1]), Target(0.05, 0.05),
                limit, "cpu_time", processes < (os.cpu_count() or 1),
            ),
            Subject(
                f"limit of CPU time, {words}, said", "s", ("beat", str(processes)),
                lambda result, _: (LIMIT_S, known(result.stats.cpu.usage)), Target(0.05, 0),
                limit, "cpu_time", processes < (os.cpu_count() or 1),
            ),
        ]  # fmt: skip
    found += [
        Subject(
            f"bytes {verb}, {kind}", "bytes", ("transfer", kind, str(32 * MIB)),
            lambda result, folder, field=field: (said(folder), known(getattr(result.stats.io, field))),
            Target(64 << 10, 0, 0.01),
        )
        for kind, verb, field in (
            ("direct", "written", "write_bytes"), ("buffered", "written", "write_bytes"), ("read", "read", "read_bytes")
        )
    ]  # fmt: skip
    return found


def measure(bench: Bench, chosen: Sequence[Subject], rounds: int) -> list[Line]:
    """All of it, quiet and beside a neighbour, ``rounds`` times in turns."""
    quiet: dict[str, list[Pair]] = {subject.name: [] for subject in chosen}
    noisy: dict[str, list[Pair]] = {subject.name: [] for subject in chosen}
    bench.measure(subjects(0)[0])  # warms caches, does not count
    for turn in range(rounds):
        say(f"round {turn + 1} of {rounds}")
        for subject in chosen:
            quiet[subject.name].append(bench.measure(subject))
        with bench.neighbour():
            for subject in chosen:
                if subject.beside_neighbour:
                    noisy[subject.name].append(bench.measure(subject))
    return [
        Line(s.name, s.unit, quiet[s.name], s.target, noisy[s.name], NEIGHBOUR_SHARE if noisy[s.name] else None)
        for s in chosen
    ]


def largest_allocation() -> int:
    """Half of what the machine has free now."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    free = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("MemAvailable:"))
    return free * 1024 // 2


@contextmanager
def open_bench(folder: Path, docker: str | None, image: str | None) -> Iterator[Bench]:
    """Programs compiled, an observer and a pool started, below ``folder``."""
    for source in PROGRAMS.glob("*.c"):
        subprocess.run(["gcc", "-O2", "-static", "-w", "-o", folder / source.stem, source], check=True)
    cluster = Cluster(folder)
    try:
        cluster.start_observer()
        settings = replace(
            WorkerSettings(), data=folder / "worker", observer=cluster.environment["KOLEJKA_WORKER_OBSERVER"],
            docker=docker or "",
        )  # fmt: skip
        pool = Pool(settings, 2)
        pool.start()
        try:
            yield Bench(folder, pool, "docker" if docker else "sandbox", image)
        finally:
            pool.stop(10)
    finally:
        cluster.stop()


def main() -> int:
    """Measure, show, write. 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.accuracy", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often to measure everything (default 5)")
    parser.add_argument("--docker", metavar="URL", help="measure in containers of this engine, not in the sandbox")
    parser.add_argument("--image", default="kolejka/busybox:latest", help="the containers' image (default %(default)s)")
    parser.add_argument("--only", default="", help="measure only what has this in its name")
    parser.add_argument("--output", type=Path, default=ROOT / "bench-accuracy.json", help="default %(default)s")
    words = parser.parse_args()
    for name in ("root", "cgroups", "gcc", *(() if words.docker else ("bwrap",))):
        if needs.lacking(name):
            say(f"accuracy: {needs.lacking(name)}; {needs.NEEDS[name].cure}")
            return 2
    folder = Path(tempfile.mkdtemp(prefix="kolejka-accuracy-"))
    folder.chmod(0o711)
    try:
        with open_bench(folder, words.docker, words.image if words.docker else None) as bench:
            chosen = [subject for subject in subjects(largest_allocation()) if words.only in subject.name]
            lines = measure(bench, chosen, words.rounds)
    finally:
        shutil.rmtree(folder)
    machine = {"kernel": platform.release(), "cpus": os.cpu_count(), "load": os.getloadavg()}
    data = {"machine": machine, "runtime": bench.runtime, "lines": [line.to_json() for line in lines]}
    words.output.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    say(table(lines))
    return 1 if any(line.met is False or line.change_met is False for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())

"""The node tries its own limits: each is broken once by a small hostile program, and must hold.

``PROBES`` has an entry for every limit that is declared (a test compares them). A probe is a program of the shell, so
that nothing is needed but what every node has, and it is bounded in itself: where a limit does not hold, the program
ends after a little more than the limit and says so by its end. It runs as any task does, through the node's own worker
pool. What a limit did is read from the result.

A runtime whose tasks need an image cannot run these programs; its limits are told as not tried. Most of them are held
by the same sessions as the others'.
"""

from __future__ import annotations

import io
import logging
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from kolejka.common.errors import KolejkaError
from kolejka.common.limits import LIMITS, Limits
from kolejka.common.logs import stamp
from kolejka.common.result import Outcome, Result
from kolejka.common.task import Task
from kolejka.foreman.slots import remove_tree
from kolejka.worker.job import Job

logger = logging.getLogger(__name__)

ABLE: Final = "sandbox"
"""the runtime whose tasks need no image"""
IMAGE: Final = "kolejka-proof:latest"
_IMAGE_BYTES: Final = 65536
_MESSAGE: Final = 500
_BASE: Final = {
    "cpus": 1, "memory": "128M", "swap": 0, "pids": 32, "time": "30s", "network": False, "storage": "128M",
    "workspace": "128M", "output": "8M",
}  # fmt: skip
_EAT: Final = "x=aaaaaaaaaaaaaaaa; while [ ${#x} -lt 67108864 ]; do x=$x$x; done"
_SPIN: Final = "i=0; while [ $i -lt 20000000 ]; do i=$((i+1)); done"


def _ended_by(limit: str) -> Callable[[Result], str | None]:
    def judge(result: Result) -> str | None:
        return None if (result.outcome, result.limit) == (Outcome.LIMIT, limit) else _in_words(result)

    return judge


def _in_words(result: Result) -> str:
    end = f"the program ended as {result.outcome}"
    if result.limit is not None:
        end += f" {result.limit}"
    if result.result is not None:
        end += f" with {result.result}"
    return f"{end}: {result.message}" if result.message else end


def _few_processes(result: Result) -> str | None:
    pids, most = result.stats.pids, int(result.limits.values["pids"])
    if pids.max_usage is not None and pids.max_usage > most:
        return f"{pids.max_usage} processes ran, and {most} are allowed"
    return None if pids.failures else f"no process was refused; {_in_words(result)}"


def _short_output(result: Result) -> str | None:
    size = sum(file.size for file in result.manifest.values())
    if size > int(result.limits.values["output"]):
        return f"{size} bytes of output were kept"
    return _ended_by("output")(result)


def _saw_none(result: Result) -> str | None:
    return None if result.outcome is Outcome.OK else _in_words(result)


def _refused(result: Result) -> str | None:
    refused = result.outcome is Outcome.ERROR and "limits.image" in (result.message or "")
    return None if refused else _in_words(result)


@dataclass(frozen=True)
class Probe:
    """A program that breaks a limit, and what its result must be. ``judge`` says what is wrong, ``None`` for nothing.

    A probe without a ``script`` cannot be tried here; ``why_not`` says why.
    """

    script: str = ""
    limits: Mapping[str, Any] = field(default_factory=dict)
    judge: Callable[[Result], str | None] = _saw_none
    image: bool = False
    why_not: str = ""


PROBES: Final[Mapping[str, Probe]] = {
    "cpus": Probe(
        "taskset -cp 0-4095 $$ > /dev/null 2>&1; while read -r name value; do case $name:$value in"
        " Cpus_allowed_list:*[,-]*) exit 1;; esac; done < /proc/self/status",
    ),
    "memory": Probe(_EAT, {"memory": "24M"}, _ended_by("memory")),
    "swap": Probe(_EAT, {"memory": "24M", "swap": "4M"}, _ended_by("memory")),
    "pids": Probe(
        "i=0; while [ $i -lt 64 ]; do sleep 3 & i=$((i+1)); done; wait", {"pids": 8}, _few_processes
    ),
    "time": Probe("sleep 3", {"time": "300ms"}, _ended_by("time")),
    "cpu_time": Probe(f"({_SPIN}) & ({_SPIN}) & wait", {"cpu_time": "300ms", "time": "5s"}, _ended_by("cpu_time")),
    "network": Probe(
        "while read -r name from rest; do case $from in Destination) ;; *) exit 1;; esac; done < /proc/net/route",
        {"network": False},
    ),
    "storage": Probe("head -c 67108864 /dev/zero > /tmp/big", {"storage": "4M"}, _ended_by("storage")),
    "workspace": Probe("head -c 67108864 /dev/zero > big", {"workspace": "4M"}, _ended_by("workspace")),
    "output": Probe("head -c 1048576 /dev/zero", {"output": "10K"}, _short_output),
    "image": Probe("true", {"image": "4K"}, _refused, image=True),
    "gpus": Probe(
        "for file in /dev/nvidia[0-9]* /dev/dri/card*; do if [ -e $file ]; then exit 1; fi; done", {"gpus": 0}
    ),
    "gpu_memory": Probe(why_not="it takes a program that uses a GPU"),
}  # fmt: skip
"""By the limit's name."""


@dataclass(frozen=True)
class Tried:
    """What became of one limit on one runtime: ``held`` is ``None`` where it was not tried."""

    limit: str
    runtime: str
    held: bool | None
    message: str = ""

    def to_json(self) -> dict[str, Any]:
        """The object form."""
        return dict(vars(self))


@dataclass(frozen=True)
class Proof:
    """The report: when, and what became of each limit."""

    at: float
    tried: tuple[Tried, ...]

    @property
    def passed(self) -> bool:
        """Whether something was tried and all of it held."""
        return any(one.held for one in self.tried) and not any(one.held is False for one in self.tried)

    @property
    def reason(self) -> str:
        """Why the node takes no tasks; empty when it may."""
        if self.passed:
            return ""
        broken = [f"{one.limit} on {one.runtime} ({one.message})" for one in self.tried if one.held is False]
        return f"these limits do not hold here: {'; '.join(broken)}" if broken else "no limit could be tried here"

    def to_json(self) -> dict[str, Any]:
        """The object form, as heartbeats carry it."""
        return {"passed": self.passed, "at": stamp(self.at), "checks": [one.to_json() for one in self.tried]}


class Runs(Protocol):
    """The part of the worker pool that runs the programs."""

    def run(self, job: Job) -> Result:
        """Run a job to its end."""


class Store(Protocol):
    """The part of the sandbox's image store that the image's probe uses."""

    def add(self, image: str, source: Path) -> Any:
        """Import an image."""

    def drop(self, image: str) -> None:
        """Remove an image."""


def prove(
    pool: Runs, runtimes: Iterable[str], folder: Path, *, cpu: int, store: Store | None = None,
    tick: Callable[[], object] = lambda: None,
) -> Proof:  # fmt: skip
    """Try every limit of these runtimes. ``folder`` is made for the results, and removed; ``tick`` is told of each."""
    tried: list[Tried] = []
    remove_tree(folder)
    folder.mkdir(parents=True, mode=0o711)
    try:
        for runtime in runtimes:
            for name in LIMITS:
                tick()
                tried.append(_try(pool, runtime, name, folder=folder, cpu=cpu, store=store))
    finally:
        remove_tree(folder)
    proof = Proof(time.time(), tuple(tried))
    for one in tried:
        if one.held is False:
            about = {"limit": one.limit, "runtime": one.runtime, "reason": one.message}
            logger.error("a limit does not hold", extra=about)
    logger.info("limits were tried", extra={"held": sum(one.held is True for one in tried), "passed": proof.passed})
    return proof


def _try(pool: Runs, runtime: str, name: str, *, folder: Path, cpu: int, store: Store | None) -> Tried:
    probe = PROBES[name]
    if runtime != ABLE:
        return Tried(name, runtime, None, "tasks of this runtime need an image")
    if not probe.script:
        return Tried(name, runtime, None, probe.why_not)
    if probe.image and store is None:
        return Tried(name, runtime, None, "there is no place for an image here")
    task = Task.parse({
        "id": f"proof-{name}", "args": ["sh", "-c", probe.script], "stdout": "stdout",
        "limits": {**_BASE, **probe.limits}, **({"image": IMAGE} if probe.image else {}),
    })  # fmt: skip
    job = Job(task=task, result=folder / name, limits=Limits(), runtime=runtime, cpuset=(cpu,), gpus=())
    try:
        with _image(store if probe.image else None):
            result = pool.run(job)
    except (KolejkaError, OSError) as error:
        return Tried(name, runtime, held=False, message=f"it could not be tried: {error}"[:_MESSAGE])
    wrong = probe.judge(result)
    return Tried(name, runtime, wrong is None, (wrong or "")[:_MESSAGE])


@contextmanager
def _image(store: Store | None) -> Iterator[None]:
    """A small image, where the store is given."""
    if store is None:
        yield
        return
    with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
        with tarfile.open(fileobj=archive, mode="w") as tar:
            member = tarfile.TarInfo("etc/proof")
            member.size = _IMAGE_BYTES
            tar.addfile(member, io.BytesIO(bytes(range(256)) * (_IMAGE_BYTES // 256)))
        archive.flush()
        store.add(IMAGE, Path(archive.name))
    try:
        yield
    finally:
        store.drop(IMAGE)

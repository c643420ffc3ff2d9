"""One task, from its folder to its result: the story of the worker.

read the task → merge the limits → choose a runtime → check that every limit will be held → fill a workspace → open a
session → build the payload's world and hold the payload → attach it → release it → watch → close the session (kills
whoever is left, reads the figures) → collect → judge → write the result → take everything down.

The supervisor (this process) is never inside the limited session, so a task that was killed still brings its partial
output, its files and its figures. Until the release every problem is an error of input or of the node and is raised;
the result's folder is then as it was. ``attempt`` turns such an error into a result of outcome ``error`` for callers
who need a result whatever happens.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from kolejka.common import logs
from kolejka.common.errors import InputError, KolejkaError, NodeError, NotFound
from kolejka.common.files import hash_file, usual_modes
from kolejka.common.limits import LIMITS, Limits
from kolejka.common.result import Outcome, Result, ResultFile
from kolejka.common.settings import ObserverSettings, WorkerSettings
from kolejka.common.stats import Stats
from kolejka.common.task import Task
from kolejka.observer import access
from kolejka.worker.collect import Collection, collect
from kolejka.worker.gpus import LOOK_S, Gpus, Meter, Taken
from kolejka.worker.job import Job
from kolejka.worker.runtimes.base import DEFAULT_ENVIRONMENT, Run, RunningTask, Runtime
from kolejka.worker.runtimes.choose import choose
from kolejka.worker.runtimes.docker import Docker
from kolejka.worker.runtimes.sandbox import Sandbox
from kolejka.worker.trees import remove_tree
from kolejka.worker.verdict import Seen, judge
from kolejka.worker.watch import TIME_GRACE_S, Gauge, NoOrders, Orders, Output, Stream, watch
from kolejka.worker.workspace import Workspace, leftovers, remove_leftover

logger = logging.getLogger(__name__)

LOCAL_DEFAULTS: Final = Limits.of(network=False, swap=0)
"""What a task gets that nobody limited: everything but network and swap."""
WORKER_ENFORCES: Final = frozenset({"output", "workspace", "image"})
"""Limits that the worker itself holds, whatever the runtime."""
SESSION_ENFORCES: Final = access.ENFORCED


@dataclass
class Tools:
    """What a worker keeps between tasks."""

    settings: WorkerSettings
    orders: Orders = field(default_factory=NoOrders)
    started: Callable[[str, str], None] = lambda _name, _session: None
    """told the names of run and session once both exist, so that others can clean up after us"""
    runtimes: Mapping[str, Runtime] = field(default_factory=dict)
    connect: Callable[[str], access.Sessions] = access.connect
    find_gpus: Callable[[str], Gpus] = Gpus

    def __post_init__(self) -> None:
        if not self.runtimes:
            self.runtimes = {
                "sandbox": Sandbox(self.settings.data),
                "docker": Docker(self.settings.data, self.settings.docker),
            }

    @cached_property
    def sessions(self) -> access.Sessions:
        """Where sessions come from. NodeError with the cure where there are none."""
        return self.connect(self.settings.observer)

    @cached_property
    def gpus(self) -> Gpus:
        """The GPUs of this machine."""
        return self.find_gpus(self.settings.nvml)

    def uid(self, slot: int) -> int:
        """The payload's user on the host: its slot's own, or ourselves where we may not choose."""
        return self.settings.first_uid + slot if os.geteuid() == 0 else os.geteuid()

    def observer_socket(self) -> Path:
        """The socket to give to a payload that asks. NodeError where no observer serves."""
        path = Path(self.settings.observer) if self.settings.observer else ObserverSettings().socket
        if not path.is_socket():
            raise NodeError(f"the task asks for the observer, but none serves at {path}; start kolejka-observer")
        return path


def perform(job: Job, tools: Tools) -> Result:
    """Run one task and write its result. Raises KolejkaError for whatever kept it from being run and judged.

    InputError: the task asks for what cannot be given. NodeError: this machine failed.
    """
    try:
        return _perform(job, tools)
    except OSError as error:  # its disk is full or read-only, it has no descriptors or memory left, …
        place = f"{error.filename!s}: " if error.filename is not None else ""
        raise NodeError(f"{place}{error.strerror or error}") from error


def _perform(job: Job, tools: Tools) -> Result:
    task = job.load()
    limits = task.limits.merge(job.limits).with_defaults(LOCAL_DEFAULTS)
    runtime, reason = choose(job.runtime, task, tools.runtimes)
    check_limits(limits, runtime)
    check_image(task, limits, runtime)
    logger.debug("runtime chosen", extra={"runtime": runtime.name, "reason": reason})
    with ExitStack() as stack:
        result_folder = ResultFolder(job.result, stack)
        stack.enter_context(usual_modes())
        workspace = Workspace(tools.settings.data, tools.uid(job.slot))
        stack.callback(workspace.remove)
        workspace.fill(task, job.task if isinstance(job.task, Path) else None, job.blobs)
        check_workspace(workspace, limits)
        taken = take_gpus(limits, job, tools)
        stack.callback(taken.close)
        storage = limits.get("storage")
        run = Run(
            name=workspace.name,
            args=task.args,
            folder=workspace.folder,
            workspace=workspace.path,
            uid=workspace.uid,
            environment=taken.variables(environment(task, runtime)),
            image=task.image,
            network=bool(limits.get("network")),
            storage=int(storage) if storage is not None else None,
            gpus=taken.uuids,
            devices=taken.devices,
            observer=tools.observer_socket() if task.observer else None,
        )
        result = run_held(
            task, limits, job, run=run, runtime=runtime, workspace=workspace, folder=result_folder, tools=tools,
            taken=taken,
        )  # fmt: skip
        _save(result, job.result)
        result_folder.keep()
    return result


def attempt(job: Job, tools: Tools) -> Result:
    """The same, and a result of outcome ``error`` where nothing could be run: always a result, always written.

    NodeError only if not even that can be written.
    """
    which = str(job.task) if isinstance(job.task, Path) else job.task.id
    with logs.about(task=which, **job.about):
        try:
            return perform(job, tools)
        except KolejkaError as error:
            logger.warning("task not run", extra={"reason": str(error)})
            return write_error(job, str(error))


def write_error(job: Job, message: str, outcome: Outcome = Outcome.ERROR) -> Result:
    """Write a result that says why there is no other. NodeError when the folder cannot be written."""
    task_id = None
    limits = job.limits
    with suppress(KolejkaError):  # the task's words may be what is wrong
        task = job.load()
        task_id, limits = task.id, task.limits.merge(job.limits)
    result = Result(outcome, id=task_id, limits=limits, node=describe_node(job, None), message=message)
    _save(result, job.result)
    return result


def _save(result: Result, folder: Path) -> None:
    """Write a result's words. NodeError when the disk does not take them: a worker whose disk is full goes on."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        result.save(folder)
    except OSError as error:
        raise NodeError(f"{folder}: cannot be written: {error.strerror}") from error


def check_limits(limits: Limits, runtime: Runtime) -> None:
    """InputError for the first limit that nobody here would hold."""
    held = SESSION_ENFORCES | WORKER_ENFORCES | runtime.enforces
    for name in limits:
        nothing_asked = name in {"gpus", "gpu_memory"} and not limits.get(name)
        if name not in held and not nothing_asked:
            can = f"the {runtime.name} runtime cannot hold the limit {name!r}"
            raise InputError(f"{can} on this node; leave it out, or run it elsewhere", field=f"limits.{name}")


def check_image(task: Task, limits: Limits, runtime: Runtime) -> None:
    """InputError when the image is larger than its limit."""
    limit = limits.get("image")
    if limit is None or task.image is None:
        return
    size = runtime.images.size(task.image)
    if size > limit:
        raise InputError(
            f"{task.image!r} has {size} bytes, more than {LIMITS['image'].show(limit)}", field="limits.image"
        )


def check_workspace(workspace: Workspace, limits: Limits) -> None:
    """InputError when the input files alone are larger than the working folder may be."""
    limit = limits.get("workspace")
    if limit is not None and (size := workspace.weight()) > limit:
        shown = LIMITS["workspace"].show(limit)
        raise InputError(f"the input files have {size} bytes, more than {shown}", field="limits.workspace")


def take_gpus(limits: Limits, job: Job, tools: Tools) -> Taken:
    """The GPUs that the task has for itself. InputError when this node has none such, NodeError when they are taken."""
    memory = limits.get("gpu_memory")
    return tools.gpus.take(int(limits.get("gpus") or 0), job.gpus, int(memory) if memory is not None else None)


def environment(task: Task, runtime: Runtime) -> dict[str, str]:
    """The payload's variables: a clean set, the image's own, the task's."""
    image = runtime.images.environment(task.image) if task.image is not None else {}
    return {**DEFAULT_ENVIRONMENT, **image, **task.environment}


def describe_node(job: Job, runtime: Runtime | None) -> dict[str, object]:
    """The result's ``node``."""
    node: dict[str, object] = dict(job.node) if job.node is not None else {"name": socket.gethostname()}
    return {**node, "runtime": runtime.name} if runtime is not None else node


class ResultFolder:
    """The folder of a result: made now, given up with all that is in it unless it is kept."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self._keep = False
        try:
            self._made = not path.exists()
            if not self._made and (not path.is_dir() or any(path.iterdir())):
                raise InputError("there is something already; name a new or an empty folder", field=str(path))
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot be made: {error.strerror}", field=str(path)) from error
        stack.callback(self._give_up)

    def keep(self) -> None:
        """The result is whole."""
        self._keep = True

    def create(self, name: str) -> int:
        """A descriptor of a new file in it."""
        path = self.path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise NodeError(f"{path}: cannot be written: {error.strerror}") from error

    def _give_up(self) -> None:
        if self._keep:
            return
        with suppress(OSError):  # the error that brought us here matters more
            if self._made:
                remove_tree(self.path)
            else:
                for entry in list(self.path.iterdir()):
                    remove_tree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def open_output(task: Task, limits: Limits, folder: ResultFolder, uid: int) -> tuple[Output, int, int]:
    """Pipes for standard output and error on their way into the result; the payload's ends.

    They belong to ``uid``, or whoever opens ``/dev/stdout`` would be told that he may not.
    """
    limit = limits.get("output")
    streams: list[Stream] = []

    def make(names: str, file: str | None) -> int:
        if file is None and limit is None:
            return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        source, sink = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(source, False)
        if os.geteuid() == 0:
            os.fchown(sink, uid, uid)
        streams.append(Stream(names, source, folder.create(file) if file is not None else None))
        return sink

    if task.stdout is not None and task.stdout == task.stderr:
        stdout = make("stdout", task.stdout)
        stderr = os.dup(stdout)
    else:
        stdout, stderr = make("stdout", task.stdout), make("stderr", task.stderr)
    return Output(streams, int(limit) if limit is not None else None), stdout, stderr


def largest_file(limits: Limits) -> int:
    """Bytes that no file can exceed without exceeding a limit on disk, wherever it lies; 0 = unknown."""
    workspace, storage = limits.get("workspace"), limits.get("storage")
    return int(max(workspace, storage)) + 4096 if workspace is not None and storage is not None else 0


def run_held(
    task: Task,
    limits: Limits,
    job: Job,
    *,
    run: Run,
    runtime: Runtime,
    workspace: Workspace,
    folder: ResultFolder,
    tools: Tools,
    taken: Taken,
) -> Result:
    """From the session to the verdict."""
    with ExitStack() as stack:
        stdin = workspace.open_input(task.stdin, "stdin")
        ends = [stdin]

        def close_ends() -> None:
            while ends:
                os.close(ends.pop())

        stack.callback(close_ends)
        output, stdout, stderr = open_output(task, limits, folder, run.uid)
        stack.callback(output.close)
        ends += [stdout, stderr]

        running = runtime.start(run)
        stack.callback(end_world, running)
        kept = Limits({name: value for name, value in limits.values.items() if name in SESSION_ENFORCES})
        time_limit = limits.get("time")
        if time_limit is not None:
            kept = kept.replace(time=time_limit + TIME_GRACE_S)
        try:
            session = OnceClosed(tools.sessions.enclose(running.pid, kept, cpuset=job.cpuset))
        except NotFound:  # killed while it was held: the watch tells how
            session = OnceClosed(tools.sessions.open(kept, cpuset=job.cpuset))
        stack.callback(session.close)
        tools.started(run.name, session.id)
        meter = taken.meter(running.pid)
        if meter is not None:
            stack.callback(meter.close)

        looks = gauges(limits, workspace, running)
        if looks:
            running.know_world()
        running.release(stdin, stdout, stderr, largest_file(limits))
        close_ends()
        seen = watch(
            running,
            session.kill,
            output=output,
            gauges=[*looks, *look_at(meter)],
            orders=tools.orders,
            time_limit_s=float(time_limit) if time_limit is not None else None,
        )
        report = session.close()
        within = output.drain()
        beyond = None if within else "output"
        for gauge in looks:
            if beyond is None and gauge.exceeded():
                beyond = gauge.name

        # Everybody is dead: while the kernel takes their namespaces apart, the files are collected.
        collected = bring_files(task, workspace, folder, limits)
        running.remove()
        stats = report.stats
        if seen.end is not None:
            stats = stats.replace(time=max(0.0, seen.end.at - running.released_at))
        if meter is not None:
            stats = stats.replace(gpus=meter.stats())
        verdict = judge(Seen(seen.end, stats, limits, task.args, seen.ordered, seen.cause, report.limit, beyond))
        return Result(
            verdict.outcome,
            verdict.result,
            id=task.id,
            limit=verdict.limit,
            manifest=collected.manifest,
            limits=limits,
            stats=stats,
            node=describe_node(job, runtime),
            message=verdict.message,
            flags=(*verdict.flags, *side_facts(output, report, stats, collected)),
            skipped=collected.skipped,
        )


class OnceClosed:
    """A session that is closed once, whoever comes first."""

    def __init__(self, session: access.Session) -> None:
        self._session = session
        self._report: access.Report | None = None
        self.id = session.id

    def kill(self) -> None:
        """Kill everything in it."""
        if self._report is None:
            self._session.kill()

    def close(self) -> access.Report:
        """The final report; the same again when asked again."""
        if self._report is None:
            self._report = self._session.close()
        return self._report


def end_world(running: RunningTask) -> None:
    """Make sure that nobody in the payload's world is alive, and take it down."""
    running.kill()
    running.remove()


def gauges(limits: Limits, workspace: Workspace, running: RunningTask) -> list[Gauge]:
    """The limits on disk that must be looked at."""
    found = []
    limit = limits.get("workspace")
    if limit is not None:
        found.append(Gauge("workspace", int(limit), lambda: workspace.weight() + running.unlinked(inside=True)))
    limit = limits.get("storage")
    if limit is not None:
        found.append(Gauge("storage", int(limit), lambda: running.storage_used() or 0))
    return found


def look_at(meter: Meter | None) -> list[Gauge]:
    """The looks at a task's GPUs, for their limit and for the figures."""
    if meter is None:
        return []
    limit = float("inf") if meter.limit is None else meter.limit
    return [Gauge("gpu_memory", limit, meter.look, longest_s=LOOK_S)]


def bring_files(task: Task, workspace: Workspace, folder: ResultFolder, limits: Limits) -> Collection:
    """Standard output, error and whatever ``collect`` selects, in the result's folder."""
    outputs = {}
    for name in (task.stdout, task.stderr):
        if name is not None and name not in outputs:
            digest, size = hash_file(folder.path / name)
            outputs[name] = ResultFile(size, "0644", digest)
    limit = limits.get("workspace")
    disk = os.statvfs(folder.path)
    collected = collect(
        workspace.path,
        task.collect,
        folder.path,
        changed=workspace.changed,
        taken=dict.fromkeys(outputs, "standard output"),
        # A hole can be longer than any disk; without a limit, what the disk could never hold is not read either.
        max_size=int(limit) if limit is not None else disk.f_blocks * disk.f_frsize,
    )
    collected.manifest = {**outputs, **collected.manifest}
    return collected


def side_facts(output: Output, report: access.Report, stats: Stats, collected: Collection) -> list[str]:
    """What is worth knowing beside the verdict."""
    facts = [f"{stream.name}_truncated" for stream in output.streams if stream.truncated]
    if report.processes_left:
        facts.append("processes_left")
    if stats.memory.oom_kills:
        facts.append("oom_kills")
    if stats.pids.failures:
        facts.append("pids_failures")
    if stats.memory.max_swap:
        facts.append("swap_used")
    if collected.skipped:
        facts.append("files_skipped")
    if collected.skipped_more:
        collected.skipped["…"] = f"{collected.skipped_more} more files were skipped"
    return facts


def sweep(tools: Tools) -> int:
    """Remove what dead workers left behind on this node. Returns how many runs that were."""
    count = 0
    for folder in leftovers(tools.settings.data):
        for runtime in tools.runtimes.values():
            try:
                runtime.sweep(folder.name)
            except KolejkaError as error:
                logger.warning("left-over not removed", extra={"run": folder.name, "reason": str(error)})
        remove_leftover(folder)
        count += 1
    return count

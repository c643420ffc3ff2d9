"""One attempt on this node, from the claim's answer to a result in the spool.

A thread takes one attempt after another: makes the result's folder, brings the input files, has the pool run the
payload, and gives the node's part back the moment the payload is gone; then it puts the result into the spool and hands
it to the couriers. There are more threads than slots: while one waits for the disk, another runs what comes next in the
slot. Whatever goes wrong on the way ends in an ``error`` result that says what.

::

    DATA/running/<lease>-<task>/    the result, as the worker makes it
"""

from __future__ import annotations

import logging
import queue
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from kolejka.common import logs
from kolejka.common.errors import InputError, KolejkaError, NodeError, Unavailable
from kolejka.common.limits import LIMITS, Limits, Share
from kolejka.common.result import Outcome, Result
from kolejka.foreman.blobs import BlobCache
from kolejka.foreman.board import Board, NodeState, Running, Verdict, seconds
from kolejka.foreman.images import ImageCache
from kolejka.foreman.spool import Entry, Spool
from kolejka.foreman.upload import Couriers, Parcel, Return
from kolejka.worker.job import Job

logger = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 15.0
STOPS: Final = "the node's foreman stops"
REBOOTS: Final = "the node reboots"
UNKILLABLE: Final = "unkillable"
"""the error code, or the flag of a result, by which a worker says that it could not kill a payload"""
_PLAIN: Final = re.compile(r"[0-9A-Za-z_-]{1,128}")
_HELD: Final = ("cpus", "memory", "swap", "pids", "gpus")
"""split amounts that every node enforces, so a task can be held to its part even if it set no limit"""


class Payloads(Protocol):
    """The part of the worker pool that runs payloads."""

    def run(self, job: Job) -> Result:
        """Run a job to its end."""

    def cancel(self, job: Job, outcome: Outcome = Outcome.CANCELLED) -> None:
        """Kill a job's payload at once; ``run`` then returns."""


class Slots:
    """The slots of one node. ``fetch`` downloads a blob; ``quarantine`` is told when a payload cannot be killed."""

    def __init__(
        self,
        board: Board,
        pool: Payloads,
        *,
        folder: Path,
        blobs: BlobCache,
        images: ImageCache,
        spool: Spool,
        couriers: Couriers,
        fetch: Callable[[str, Path], object],
        ceilings: Limits,
        runtime: str,
        node: Mapping[str, Any],
        quarantine: Callable[[str], None],
    ) -> None:
        self._board = board
        self._pool = pool
        self._folder = folder
        self._blobs = blobs
        self._images = images
        self._spool = spool
        self._couriers = couriers
        self._fetch = fetch
        # What the least of the node's GPUs has is no ceiling for a task that got a larger one.
        each = [name for name in board.offer.total if LIMITS[name].share is Share.EACH and name != "gpu_memory"]
        self._ceilings = ceilings.merge(board.offer.total.only(each))
        self._runtime = runtime
        self._node = node
        self._quarantine = quarantine
        self.threads: Final = 2 * board.offer.slots
        """how many run ``loop``"""
        self.why_stopped = STOPS
        """what the server is told of leases that are given back because nothing is to run here"""
        self._closed = False
        self._queue: queue.SimpleQueue[Running | None] = queue.SimpleQueue()

    def expect(self, lease: int, task: str) -> None:
        """Make an attempt's folder: from now on a foreman that starts anew gives it back."""
        with suppress(OSError):  # whoever runs it tries again, and tells
            (self._folder / folder_name(lease, task)).mkdir(parents=True, exist_ok=True)

    def give_back(self, lease: int, task: str, message: str) -> None:
        """Return an attempt that was not started."""
        remove_tree(self._folder / folder_name(lease, task))
        self._couriers.put(Return(lease, message, task))

    def start(self, running: Running) -> None:
        """Run an admitted attempt."""
        self._queue.put(running)

    def close(self) -> None:
        """End the loops, each after what it was given before."""
        for _ in range(self.threads):
            self._queue.put(None)
        with self._board.late:
            self._closed = True
            self._board.late.notify_all()

    def kill(self, running: Running) -> None:
        """End an attempt whose verdict was passed. Again is fine, and the way when the pool had not heard of it yet."""
        logger.info("attempt is ended", extra={**_about(running), "verdict": str(running.verdict)})
        job = running.job
        if job is not None:
            self._pool.cancel(job)

    def refuse(self, lease: int, task: str, message: str, outcome: Outcome = Outcome.ERROR) -> None:
        """End an attempt that is not even started."""
        self._board.spool([lease])
        folder = self._folder / folder_name(lease, task)
        result = self._error(Result(outcome, id=task, message=message), folder)
        self._hand_over(lease, task, folder, result)

    def dismiss(self, leases: Collection[int], verdict: Verdict) -> None:
        """End attempts that stand in line."""
        with self._board.changed:
            out = self._board.step_out(leases)
            if verdict is Verdict.CANCELLED:  # in one step, so that every heartbeat names them
                self._board.spool(one.lease for one in out)
        for one in out:
            logger.info("attempt is ended", extra={"task": one.task.id, "lease": one.lease, "verdict": str(verdict)})
            if verdict is Verdict.CANCELLED:
                self.refuse(one.lease, one.task.id or "", "cancelled before it was started", Outcome.CANCELLED)
            else:
                remove_tree(self._folder / folder_name(one.lease, one.task.id or ""))

    def watch_line(self) -> None:
        """Give back what stands in line for too long, until closed."""
        with self._board.late:
            while not self._closed:
                late, pause = self._board.too_late()
                state = self._board.state
                why = "others took longer than expected" if state is NodeState.ACTIVE else f"the node is {state}"
                for one in late:  # in one step with their leaving, so that the foreman's end waits for it
                    about = {"task": one.task.id, "lease": one.lease, "reason": why}
                    logger.info("attempt given back", extra=about)
                    self.give_back(one.lease, one.task.id or "", why)
                self._board.late.wait(pause)

    def loop(self) -> None:
        """Run attempts until closed."""
        while (running := self._queue.get()) is not None:
            try:
                with logs.about(**_about(running)):
                    self._carry_out(running)
            except Exception as error:  # a fault of ours with one task must not take the node's other tasks along
                logger.exception("attempt failed in the foreman", extra=_about(running))
                self._couriers.put(Return(running.lease, f"the node's foreman failed: {error}", running.task.id))
                if running in self._board.running():
                    self._start_all(self._board.vacate(running, spooled=False))
                self._board.forget(running.lease)

    def _start_all(self, begun: Iterable[Running]) -> None:
        for running in begun:
            self.start(running)

    def _carry_out(self, running: Running) -> None:
        folder = self._folder / folder_name(running.lease, running.task.id or "")
        about = _about(running)
        logger.info("attempt started", extra={**about, "cpus": running.placement.cpuset, "slot": running.slot})
        try:
            folder.mkdir(parents=True, exist_ok=True)
            result = self._run(running, folder)
        except (KolejkaError, OSError) as error:
            if isinstance(error, NodeError) and error.code == UNKILLABLE:
                self._quarantine(str(error))
            result = self._failed(running, folder, str(error))
        if UNKILLABLE in result.flags:
            self._quarantine(result.message or "a payload could not be killed")
        with self._board.changed:
            verdict = running.verdict
            stopped = verdict is Verdict.STOPPED and result.outcome is Outcome.CANCELLED
            keep = not stopped and verdict is not Verdict.LOST
            if stopped:  # in one step with the vacating, so that the foreman's end waits for it
                self._couriers.put(Return(running.lease, self.why_stopped, running.task.id))
            ran = verdict is None and result.outcome is not Outcome.ERROR
            self._start_all(self._board.vacate(running, spooled=keep, ran=ran))
        logger.info("payload ended", extra={**about, "outcome": str(result.outcome), "limit": result.limit})
        if keep:
            self._hand_over(running.lease, running.task.id or "", folder, result)
            return
        remove_tree(folder)
        if not stopped:
            logger.info("result thrown away: the lease was overtaken", extra=about)

    def _run(self, running: Running, folder: Path) -> Result:
        """The payload's result, in ``folder``."""
        references = [file.reference for file in running.task.files.values() if file.reference is not None]
        fetch = partial(self._bring, running)
        with self._images.hold(running.task.image), self._blobs.hold(references, fetch) as blobs:
            placement = running.placement
            job = Job(
                task=running.task, result=folder, blobs=blobs if references else None,
                limits=self._ceilings.merge(placement.taken.only(_HELD)), runtime=self._runtime, slot=running.slot,
                cpuset=placement.cpuset, gpus=placement.gpus, node=self._node,
                about={"lease": running.lease},
            )  # fmt: skip
            with self._board.changed:
                if running.verdict is None:
                    running.job = job
            if running.job is None:
                return self._cancelled(running, folder)
            result = self._pool.run(job)
        if result.id != running.task.id:
            result = result.replace(id=running.task.id)
            result.save(folder)
        return result

    def _bring(self, running: Running, reference: str, path: Path) -> None:
        """Download one input, trying again while only the network is at fault and the attempt has time."""
        names = [name for name, file in running.task.files.items() if file.reference == reference]
        pause = FIRST_PAUSE_S
        while running.verdict is None:
            try:
                self._fetch(reference, path)
                return
            except Unavailable as error:
                late = running.deadline is not None and seconds() + pause > running.deadline
                if late:
                    raise NodeError(f"the input could not be downloaded in time: {error}",
                                    field=f"files.{names[0]}") from None  # fmt: skip
                logger.info("download waits", extra={**_about(running), "reason": str(error), "next_try_s": pause})
                running.ended.wait(pause)
                pause = min(LONGEST_PAUSE_S, pause * 2)
            except (InputError, NodeError) as error:
                raise NodeError(f"the input cannot be had: {error}", field=f"files.{names[0]}") from None
        raise _EndedError("ended while its inputs were downloaded")

    def _failed(self, running: Running, folder: Path, message: str) -> Result:
        if running.verdict is not None and running.job is None:
            return self._cancelled(running, folder)
        logger.warning("attempt failed on this node", extra={**_about(running), "reason": message})
        return self._error(
            Result(Outcome.ERROR, id=running.task.id, limits=running.task.limits, node=self._node, message=message),
            folder,
        )

    def _cancelled(self, running: Running, folder: Path) -> Result:
        return self._error(
            Result(Outcome.CANCELLED, id=running.task.id, limits=running.task.limits, node=self._node,
                   message="cancelled before it was started"),
            folder,
        )  # fmt: skip

    def _error(self, result: Result, folder: Path) -> Result:
        """Make a result's folder that holds nothing but this spec. A full disk leaves the spec in memory only."""
        try:
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
            result.save(folder)
        except OSError as error:
            logger.error(  # noqa: TRY400  the message says all
                "a result cannot be written", extra={"task": result.id, "reason": str(error)}
            )
        return result

    def _hand_over(self, lease: int, task: str, folder: Path, result: Result) -> None:
        """Into the spool, and to the couriers. A result that the disk does not take goes to the server unspooled."""
        try:
            entry = self._spool.add(lease, task, folder)
        except OSError as error:
            logger.error(  # noqa: TRY400  the message says all
                "the spool takes no result", extra={"task": task, "lease": lease, "reason": str(error)}
            )
            self._couriers.put(Parcel(Entry(lease, task, folder), result))
            return
        self._couriers.put(Parcel(entry, result))


class _EndedError(NodeError):
    """The attempt was ended while it waited."""


def folder_name(lease: int, task: str) -> str:
    """The name of an attempt's folder: which lease, and of which task unless its id cannot stand in a name."""
    return f"{lease}-{task}" if _PLAIN.fullmatch(task) else str(lease)


def read_folder_name(name: str) -> tuple[int, str] | None:
    """Lease and task of an attempt's folder; ``None`` for a folder that is none."""
    lease, _, task = name.partition("-")
    return (int(lease), task) if lease.isascii() and lease.isdigit() else None


def remove_tree(folder: Path) -> None:
    """Remove a folder of ours. What cannot be removed stays for the next start to try, with a line in the log."""
    with suppress(OSError):  # it holds something, as it seldom does
        folder.rmdir()
        return
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:  # it was never made
        return
    except OSError as error:
        logger.warning("a folder cannot be removed", extra={"folder": str(folder), "reason": str(error)})


def _about(running: Running) -> dict[str, Any]:
    return {"task": running.task.id, "lease": running.lease}

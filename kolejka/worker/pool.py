"""A pool of warm worker processes: a task pays for no interpreter start and no import.

Each worker process (process.py) does one job at a time; ``run`` is called from as many threads as there are slots and
blocks. A process that dies takes its payload along (the sandbox dies with its parent, the session with its creator, a
container is removed here by its name); ``run`` then returns an ``error`` result and a new process takes its place. A
job of which nothing had run yet is given to another process instead, once: it may be the job that kills them.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from kolejka.common.errors import KolejkaError, NodeError
from kolejka.common.result import Outcome, Result
from kolejka.common.settings import WorkerSettings
from kolejka.worker.job import Job
from kolejka.worker.perform import Tools, sweep, write_error
from kolejka.worker.watch import KILL_TIMEOUT_S

logger = logging.getLogger(__name__)

START_TIMEOUT_S: Final = 120.0
REPLACE_PAUSE_S: Final = 5.0
"""pause after a worker process that could not be started"""
CANCEL_TIMEOUT_S: Final = KILL_TIMEOUT_S + 30.0
"""A worker that has not answered for so long after a cancel is killed itself."""


@dataclass(eq=False)
class Worker:
    """One worker process and the line to it."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    pending: bytes = b""
    run: str | None = None
    """name of the run it is in the middle of"""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, value: dict[str, Any]) -> None:
        """Tell the process. BrokenPipeError when it is dead."""
        with self.lock:
            self.channel.sendall(json.dumps(value).encode() + b"\n")

    def receive(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """What it says next; None when it is dead. TimeoutError when it says nothing for so long."""
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        while b"\n" not in self.pending:
            if not poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000):
                raise TimeoutError
            try:
                data = self.channel.recv(1 << 16)
            except OSError:  # reset, or closed by ``end`` meanwhile: dead either way
                data = b""
            if not data:
                return None
            self.pending += data
        line, _, self.pending = self.pending.partition(b"\n")
        value: dict[str, Any] = json.loads(line)
        return value

    def end(self, timeout_s: float) -> None:
        """Close the line, which ends the process; kill it when it does not go."""
        with suppress(OSError):  # the process has left already
            self.channel.shutdown(socket.SHUT_RDWR)  # wakes a thread that listens, which closing alone does not
        self.channel.close()
        try:
            self.process.wait(max(0.0, timeout_s))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass(eq=False)
class _Turn:
    """One call of ``run``."""

    job: Job
    worker: Worker | None = None
    ordered: Outcome | None = None
    ordered_at: float = 0.0
    again: bool = False
    """whether a process died over it before anything of it ran"""


class Pool:
    """Worker processes for ``size`` jobs at a time. Safe for threads; stop is safe twice and before start."""

    def __init__(self, settings: WorkerSettings, size: int) -> None:
        self._settings = settings
        self._size = size
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()
        self._turns: list[_Turn] = []
        self._change = threading.Condition()
        self._stopping = False

    def start(self) -> None:
        """Remove what dead workers left behind, then start the processes and wait until they are warm.

        NodeError when they do not start.
        """
        sweep(Tools(self._settings))
        fresh = [self._spawn() for _ in range(self._size)]
        for worker in fresh:
            self._await_ready(worker)
        with self._change:
            self._idle += fresh
            self._change.notify_all()

    def run(self, job: Job) -> Result:
        """Run a job to its end. Always a result, written in the job's folder.

        NodeError when not even that could be written, or when the pool is stopped.
        """
        turn = _Turn(job)
        with self._change:
            self._turns.append(turn)
        try:
            return self._give(turn)
        finally:
            with self._change:
                self._turns.remove(turn)

    def _give(self, turn: _Turn) -> Result:
        """Have a process that lives do it."""
        turn.worker = self._take(turn)
        while turn.worker is not None and turn.worker.process.poll() is not None:
            self._discard(turn.worker)  # it died while nobody used it
            turn.worker = self._take(turn)
        if turn.worker is None:
            return write_error(turn.job, "cancelled before it started", turn.ordered or Outcome.CANCELLED)
        return self._converse(turn, turn.worker)

    def cancel(self, job: Job, outcome: Outcome = Outcome.CANCELLED) -> None:
        """End a job: its payload is killed at once and ``run`` returns with that outcome. Done already is fine."""
        with self._change:
            for turn in self._turns:
                if turn.job == job and turn.ordered is None:
                    turn.ordered = outcome
                    turn.ordered_at = time.monotonic()
                    if turn.worker is not None:
                        self._send_cancel(turn.worker, outcome)
            self._change.notify_all()

    def stop(self, timeout_s: float) -> None:
        """End all processes; payloads that still run are killed. Afterwards ``run`` refuses."""
        with self._change:
            self._stopping = True
            for turn in self._turns:
                if turn.worker is not None and turn.ordered is None:
                    turn.ordered = Outcome.CANCELLED
                    turn.ordered_at = time.monotonic()
                    self._send_cancel(turn.worker, Outcome.CANCELLED)
            self._change.notify_all()
            deadline = time.monotonic() + timeout_s
            while self._turns and (left := deadline - time.monotonic()) > 0:
                self._change.wait(left)
            workers, self._all = list(self._all), set()
            self._idle.clear()
        for worker in workers:
            worker.end(max(1.0, deadline - time.monotonic()))

    def _take(self, turn: _Turn) -> Worker | None:
        """Wait for an idle process; None when the turn was cancelled meanwhile. NodeError when the pool is stopped."""
        with self._change:
            while not self._idle and turn.ordered is None and not self._stopping:
                self._change.wait()
            if self._stopping:
                raise NodeError("the pool of workers is stopped")
            return self._idle.pop() if turn.ordered is None else None

    def _discard(self, worker: Worker) -> None:
        """Bury a dead process and start another."""
        worker.end(0)
        logger.error("worker died", extra={"run": worker.run, "status": worker.process.returncode})
        with self._change:
            self._all.discard(worker)
        threading.Thread(target=self._replace, name="kolejka-worker-start", daemon=True).start()

    @staticmethod
    def _send_cancel(worker: Worker, outcome: Outcome) -> None:
        with suppress(OSError):  # dead or ended: `run` notices by itself
            worker.send({"cancel": str(outcome)})

    def _spawn(self) -> Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "kolejka.worker.process", str(theirs.fileno())]
            try:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
            except OSError as error:
                ours.close()
                raise NodeError(f"no worker process can be started: {error.strerror}") from error
        worker = Worker(process, ours)
        with self._change:
            self._all.add(worker)
        settings = {f.name: getattr(self._settings, f.name) for f in fields(self._settings)}
        with suppress(OSError):  # dead already: the caller waits for its word and notices
            worker.send({"settings": {**settings, "data": os.fspath(self._settings.data)}})
        return worker

    def _await_ready(self, worker: Worker) -> None:
        try:
            said = worker.receive(START_TIMEOUT_S)
        except TimeoutError:
            said = None
        if said is None:
            worker.end(0)
            raise NodeError("a worker process ended before it was ready; its words stand above in the log")

    def _converse(self, turn: _Turn, worker: Worker) -> Result:
        """Give the job to the process and wait for its result."""
        try:
            worker.send({"job": turn.job.to_json()})
            with self._change:
                if turn.ordered is not None:  # it was ordered before the job was on its way
                    self._send_cancel(worker, turn.ordered)
            while True:
                try:
                    said = worker.receive(self._patience(turn))
                except TimeoutError:
                    if turn.ordered is None or self._patience(turn) > 0:
                        continue
                    worker.process.kill()
                    return self._bury(turn, worker, "the worker did not end the payload in time and was killed")
                if said is None:
                    return self._bury(turn, worker, "the worker process died")
                if "started" in said:
                    worker.run = said["started"][0]
                elif "result" in said or "failed" in said:
                    break
        except OSError:
            return self._bury(turn, worker, "the worker process died")
        worker.run = None
        with self._change:
            self._idle.append(worker)
            self._change.notify()
        if "failed" in said:
            raise NodeError(said["failed"])
        return Result.parse(said["result"])

    @staticmethod
    def _patience(turn: _Turn) -> float:
        """Seconds until a worker that was told to cancel must have answered; a glance otherwise, for orders to come."""
        if turn.ordered is None:
            return 60.0
        return max(0.0, turn.ordered_at + CANCEL_TIMEOUT_S - time.monotonic())

    def _bury(self, turn: _Turn, worker: Worker, message: str) -> Result:
        """Clean up after a dead process, replace it, and tell what happened; or have it done by another one."""
        unborn = worker.run is None and not turn.again
        self._discard(worker)
        try:
            sweep(Tools(self._settings))
        except KolejkaError as error:
            logger.warning("left-over not removed", extra={"run": worker.run, "reason": str(error)})
        _empty(turn.job.result)
        if unborn:
            turn.again, turn.worker = True, None
            return self._give(turn)
        return write_error(turn.job, message, turn.ordered or Outcome.ERROR)

    def _replace(self) -> None:
        """Start a process in a dead one's place; again and again, since without it the pool is smaller for ever."""
        while not self._is_stopping():
            try:
                worker = self._spawn()
                self._await_ready(worker)
            except KolejkaError as error:
                logger.warning("worker not replaced", extra={"reason": str(error), "next_try_s": REPLACE_PAUSE_S})
                with self._change:
                    self._change.wait_for(self._is_stopping, REPLACE_PAUSE_S)
                continue
            with self._change:
                if not self._is_stopping():
                    self._idle.append(worker)
                    self._change.notify()
                    return
            worker.end(1.0)

    def _is_stopping(self) -> bool:
        return self._stopping


def _empty(folder: Path) -> None:
    """Remove what a dead worker had written of a result."""
    from kolejka.worker.trees import remove_tree

    with suppress(FileNotFoundError):
        for entry in list(folder.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                remove_tree(entry)
            else:
                entry.unlink()

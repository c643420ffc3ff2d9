"""A node's foreman: claim → place → run → spool → upload → forget.

::

    claim threads ──admit──▶ slot threads ──spool──▶ courier threads ──▶ the server
         ▲                        │                        │
         └────────── board (what is in hand, what is free) ┴──── heartbeat thread

Every thread waits on the board (or on its queue) and is woken by what it waits for: nothing polls. Threads share the
board, nothing else that changes. A fault that ends one of them ends the foreman: better a restart, which is safe at
any moment, than a node that looks alive.

Ending is a contract. ``drain`` takes no more tasks; what runs ends by itself and its results are uploaded. ``stop``
kills payloads and gives their leases back. Both return at once, can be called twice and before ``start``;
``wait_finished`` returns when all is done. What could not be uploaded stays in the spool for the next life.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from kolejka.client.node import Attempt, Beat, Claimed, LogWish
from kolejka.common.errors import InputError, KolejkaError, NotAllowed, NotFound
from kolejka.common.limits import LIMITS, Limits
from kolejka.common.logs import stamp
from kolejka.common.result import Result
from kolejka.common.settings import ForemanSettings
from kolejka.foreman import leftovers
from kolejka.foreman.blobs import BlobCache
from kolejka.foreman.board import Board, NodeState, Running, Verdict, seconds
from kolejka.foreman.capacity import disk_of
from kolejka.foreman.claims import Claims, Request
from kolejka.foreman.heartbeat import Pulse
from kolejka.foreman.images import ImageCache
from kolejka.foreman.lines import Lines, log_text
from kolejka.foreman.pack import UNSET, Offer, Wish
from kolejka.foreman.prove import Proof
from kolejka.foreman.reboot import Reboots
from kolejka.foreman.slots import REBOOTS, STOPS, Payloads, Slots
from kolejka.foreman.spool import Spool
from kolejka.foreman.state import StateFile, write_state
from kolejka.foreman.upload import Couriers, Parcel, Return
from kolejka.worker.runtimes.base import Images

logger = logging.getLogger(__name__)

COURIERS: Final = 4
DRAIN_PATIENCE_S: Final = 10.0
"""how long a drained foreman tries to reach a silent server before it leaves results in the spool"""
STOP_PATIENCE_S: Final = 10.0
"""how long a stopping foreman waits for payloads to die and for leases to be given back"""

ROOM_BYTES: Final = 64 << 20
"""of each disk with a data folder: with less than this left the node takes no tasks"""
ROOM_FILES: Final = 1024
"""the same for files, of which most disks hold only so many"""
LAST_ANSWERS_S: Final = 0.5
"""how long an ending foreman listens for answers to requests that wait at the server"""
MOST_REASON: Final = 900
_LAST: Final = "end"
"""name of the thread that sees the others off"""


class Pool(Payloads, Protocol):
    """The worker pool, as the foreman uses it."""

    def start(self) -> None:
        """Sweep what dead workers left, and start workers."""

    def stop(self, timeout_s: float) -> None:
        """End the workers."""


class Server(Protocol):
    """The node's side of the server; the client's ``NodeClient`` is one."""

    def claim(
        self,
        node: str,
        *,
        capacity: Limits,
        total: Limits,
        slots: int,
        tags: Iterable[str],
        queues: Iterable[str],
        wait_s: float,
        idle: bool,
        leases: Iterable[int],
        ahead: Limits | None,
        ahead_slots: int,
    ) -> Claimed:
        """Ask for tasks."""  # fmt: skip

    def heartbeat(
        self,
        node: str,
        *,
        leases: Iterable[int],
        capacity: Limits,
        total: Limits,
        tags: Iterable[str],
        state: str,
        about: Mapping[str, Any],
        timeout_s: float,
    ) -> Beat:
        """Say that the node lives."""

    def put_log(self, node: str, number: int, log: str) -> None:
        """Hand in lines of the node's log."""

    def put_result(self, lease: int, result: Result) -> Any:
        """Hand in a result."""

    def put_results(self, results: Mapping[int, Result]) -> Mapping[int, InputError | None]:
        """Hand in many."""

    def release(self, lease: int, message: str) -> Any:
        """Give an attempt back."""

    def put_blob(self, source: Path, *, reference: str | None = None) -> str:
        """Store a file."""

    def get_blob(self, reference: str, path: Path) -> Any:
        """Bring a file."""

    def close(self) -> None:
        """Close the connections."""


class Foreman:
    """One node's foreman. Its data folder must be locked by the caller (``leftovers.locked``)."""

    def __init__(
        self, settings: ForemanSettings, offer: Offer, tags: tuple[str, ...], pool: Pool, server: Server,
        *, runtime: str = "auto", images: Mapping[str, Images] = {}, machine: Mapping[str, Any] = {},
        lines: Lines | None = None, address: str = "", prove: Callable[[Pool], Proof] | None = None,
        work: Path | None = None,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.board = Board(offer)
        self._tags = tags
        self._pool = pool
        self._server = server
        self._node: Mapping[str, Any] = {"name": settings.name, "tags": list(tags)}
        self._failure: BaseException | None = None
        self._joined: list[threading.Thread] = []
        """the threads that must have ended before the foreman has"""
        self._unheard = 0
        """beats before the server knows that this node takes tasks"""
        self._full: tuple[Path, str] | None = None
        self._folders = [settings.data, *([work] if work is not None else [])]
        """where inputs, results and working folders lie"""
        self._machine = machine
        self._address = address
        self._prove = prove
        self.proof: Proof | None = None
        self._reason: str | None = None
        """why the node is quarantined"""
        self.lines = lines or Lines()
        self.lines.stir = self.board.stir
        self._logs: deque[int] = deque(maxlen=16)
        """the wishes for lines of the log that were heard"""
        self._finished = threading.Event()
        data = settings.data
        self._blobs = BlobCache(data / "blobs", settings.cache)
        self._images = ImageCache(data / "images.json", images, settings.images if images else 0)
        self._spool = Spool(data / "spool")
        self.pulse = Pulse(self.board, self._beat, self.end)
        self._couriers = Couriers(self.board, self._spool, server, self.pulse)
        self._reboots = Reboots(
            self.board, settings.reboot_command, give_back=self._clear,
            left=lambda: self.board.backlog() + self._couriers.pending,
        )  # fmt: skip
        self._state_file = StateFile(settings.data, self.snapshot, self.board.stirred)
        self._claims = Claims(
            self.board, self, wait_s=min(settings.wait, 30.0), spawn=self._spawn,
            known=lambda: self.pulse.beats > self._unheard, is_full=self._is_full,
        )  # fmt: skip
        self._slots = Slots(
            self.board, pool, folder=data / "running", blobs=self._blobs, images=self._images, spool=self._spool,
            couriers=self._couriers, fetch=server.get_blob, ceilings=settings.ceilings, runtime=runtime,
            node=self._node, quarantine=self._stuck,
        )  # fmt: skip

    def start(self) -> None:
        """Clean up after an earlier life, then work. NotAllowed when the server knows this node's token not at all."""
        self._pool.start()
        entries = self._spool.open()
        cut_short = leftovers.clean(self.settings.data, [entry.lease for entry in entries])
        self._blobs.open()
        self._images.open()
        self.board.spool(entry.lease for entry in entries)
        for entry in entries:
            logger.info("result found in the spool", extra={"task": entry.task, "lease": entry.lease})
            self._couriers.put(Parcel(entry))
        for leftover in cut_short:
            about = {"task": leftover.task, "lease": leftover.lease}
            if leftover.again:
                logger.warning("attempt was cut short again; its lease is left to run out", extra=about)
            else:
                logger.info("attempt was cut short", extra=about)
                self._couriers.put(
                    Return(leftover.lease, "the node's foreman was restarted while it ran", leftover.task)
                )
        if self._prove is not None:
            self._try_limits(self._prove)
        self._introduce()
        for number in range(self._slots.threads):
            self._joined.append(self._spawn(self._slots.loop, f"slot-{number}"))
        for number in range(COURIERS):
            self._joined.append(self._spawn(self._couriers.loop, f"courier-{number}"))
        self._joined.append(self._spawn(self._couriers.hand_in, "desk"))
        self._joined.append(self._spawn(self._slots.watch_line, "line"))
        self._joined.append(self._spawn(self._state_file.loop, "state"))
        self._spawn(self._reboots.loop, "reboot")
        self._spawn(self.pulse.loop, "heartbeat")
        self._spawn(self._see_off, _LAST)
        self._claims.start()
        logger.info(
            "foreman started",
            extra={"node": self.settings.name, "slots": self.board.offer.slots, **self.board.offer.total.to_json()},
        )

    def _try_limits(self, prove: Callable[[Pool], Proof]) -> None:
        """Before any work: a node where a limit does not hold is quarantined."""
        logger.info("node tries its limits")
        write_state(self.settings.data, {**self.snapshot(), "state": "trying its limits"})
        self.proof = prove(self._pool)
        if not self.proof.passed:
            self._quarantine(self.proof.reason)

    def _introduce(self) -> None:
        """A first heartbeat. A server that does not answer is waited for; one that refuses the token is an error."""
        try:
            self.pulse.once()
        except NotAllowed:
            self._pool.stop(STOP_PATIENCE_S)
            raise
        except KolejkaError as error:
            logger.warning("the server cannot be reached yet", extra={"reason": str(error)})

    # What others ask of a running foreman.

    def drain(self) -> None:
        """Take no more tasks, finish what runs, then end."""
        if self.board.move(NodeState.DRAINING):
            logger.info("foreman drains", extra={"running": len(self.board.running())})
            self.pulse.now()

    def stop(self) -> None:
        """Kill what runs, give it back, then end."""
        if self.board.move(NodeState.STOPPED):
            logger.info("foreman stops", extra={"running": len(self.board.running())})
            self.pulse.now()

    def wait_finished(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; whether it has come. Raises what ended a thread that should not have."""
        finished = self._finished.wait(timeout_s)
        if finished and self._failure is not None:
            raise self._failure
        return finished

    def healthy(self) -> bool:
        """Whether every thread that should work does."""
        return self._failure is None

    def status(self) -> str:
        """One line for people."""
        reach = "" if self.pulse.reachable else ", the server does not answer"
        return f"{self.board.state}: {len(self.board.running())} running, {self.board.backlog()} to upload{reach}"

    # What the loops ask of the daemon.

    def ask(self, request: Request) -> Claimed:
        """Send one request for tasks."""
        free = request.free
        answer = self._server.claim(
            self.settings.name, capacity=free.limits, total=self.board.offer.total, slots=free.slots, tags=self._tags,
            queues=self.settings.queues, wait_s=request.wait_s, idle=free.idle, leases=request.leases,
            ahead=None if request.ahead is None else request.ahead.limits,
            ahead_slots=0 if request.ahead is None else request.ahead.slots,
        )  # fmt: skip
        if answer.asked is not None:
            self._obey(answer.asked)
        self._send_log(answer.log)
        return answer

    def wish(self, attempt: Attempt) -> Wish:
        """What an attempt wants here, under this node's ceilings."""
        task = attempt.task
        ceilings = self.settings.ceilings.only(n for n in LIMITS if n in task.limits.values or n not in UNSET)
        return Wish(task.limits.merge(ceilings), task.exclusive, task.image)

    def expect(self, attempt: Attempt) -> None:
        """Make sure that a foreman that starts anew gives this attempt back."""
        self._slots.expect(attempt.lease, attempt.task_id)

    def start_attempt(self, running: Running) -> None:
        """Run an admitted attempt."""
        self._slots.start(running)

    def give_back(self, attempt: Attempt, message: str) -> None:
        """Return an attempt that was not started."""
        self._slots.give_back(attempt.lease, attempt.task_id, message)

    def refuse(self, attempt: Attempt, error: InputError) -> None:
        """End an attempt whose task this node does not understand."""
        logger.warning(
            "task is not understood", extra={"task": attempt.task_id, "lease": attempt.lease, "reason": str(error)}
        )
        self._slots.refuse(attempt.lease, attempt.task_id, f"the node does not understand this task: {error}")

    def end(self, leases: Iterable[int], verdict: Verdict) -> None:
        """End attempts before their time."""
        leases = list(leases)
        for running in self.board.judge(leases, verdict):
            self._slots.kill(running)
        if leases and verdict is not Verdict.STOPPED:  # what stands in line when the foreman stops is given back anyway
            self._slots.dismiss(leases, verdict)

    def heard(self, heartbeat_s: float) -> None:
        """A claim's answer told how long a node may be silent."""
        self.pulse.expect(heartbeat_s)

    def _beat(self) -> Beat:
        free = self.board.free()
        state = self.board.state
        answer = self._server.heartbeat(
            self.settings.name, leases=self.board.leases(), capacity=free.limits, total=self.board.offer.total,
            tags=self._tags, timeout_s=self.pulse.timeout_s, about=self._about(),
            state=str(NodeState.DRAINING if state in {NodeState.HELD, NodeState.STOPPED} else state),
        )  # fmt: skip
        self._send_log(answer.log)
        if answer.asked is not None:
            self._obey(answer.asked)
            return answer
        self._reboots.ask(None)
        if self.board.state is NodeState.HELD:
            self._unheard = self.pulse.beats + 1  # this beat still said that it drains
            if self.board.move(NodeState.ACTIVE):
                logger.info("node takes tasks again, as an admin asks")
                self.pulse.now()
        return answer

    def _about(self) -> dict[str, Any]:
        """What the node says of itself beside what it offers."""
        reason = {} if self._reason is None else {"reason": self._reason[:MOST_REASON]}
        proof = {} if self.proof is None else {"proof": self.proof.to_json()}
        takes = {"queues": list(self.settings.queues), "slots": self.board.offer.slots}
        return {**self._machine, **takes, **reason, **proof, "errors": self.lines.errors()}

    def snapshot(self) -> dict[str, Any]:
        """How this foreman is, for whoever looks at the machine."""
        return {
            "node": self.settings.name, "server": self._address, "state": self._state_in_words(),
            "running": [
                {"task": running.task.id, "lease": running.lease, "since": stamp(running.since)}
                for running in self.board.running()
            ],
            "backlog": self.board.backlog(), **self._about(),
        }  # fmt: skip

    def _state_in_words(self) -> str:
        state = {NodeState.HELD: "draining, as an admin asks", NodeState.DRAINING: "draining, to end",
                 NodeState.STOPPED: "stopped"}.get(self.board.state, str(self.board.state))  # fmt: skip
        return state if self.pulse.reachable else f"{state}; the server does not answer"

    def _send_log(self, wish: LogWish | None) -> None:
        """Have lines of the log sent to the admin who wants them, by a thread that may wait for the journal."""
        if wish is None or wish.number in self._logs:
            return
        self._logs.append(wish.number)

        def send() -> None:
            try:
                self._server.put_log(self.settings.name, wish.number, log_text(self.lines, wish.lines))
            except NotFound:
                logger.info("nobody waits for the log any more")
            except KolejkaError as error:
                logger.warning("the log cannot be sent", extra={"reason": str(error)})
                self._logs.remove(wish.number)  # whoever still wants it asks again

        self._spawn(send, "log")

    def _is_full(self) -> bool:
        """Whether a disk has too little room for inputs, working folders and results of further tasks."""
        full = next(((folder, lack) for folder in self._folders if (lack := _lack(folder)) is not None), None)
        if full != self._full:
            self._full = full
            if full is not None:
                logger.error(full[1], extra={"folder": str(full[0])})
            else:
                logger.info("node takes tasks again: its disk has room")
        return full is not None

    def _obey(self, asked: str) -> None:
        """An admin asks the node to take no more tasks, and perhaps to reboot then."""
        if self.board.move(NodeState.HELD):
            logger.info("node takes no more tasks, as an admin asks", extra={"running": len(self.board.running())})
            self.pulse.now()
        self._reboots.ask(asked)

    def _stuck(self, reason: str) -> None:
        self._quarantine(f"a payload could not be killed: {reason}")

    def _quarantine(self, reason: str) -> None:
        if self.board.move(NodeState.QUARANTINED):
            self._reason = reason
            logger.error("node is quarantined; an administrator has to look", extra={"reason": reason})
            self.pulse.now()

    # Threads, and how they end.

    def _spawn(self, loop: Callable[[], None], name: str) -> threading.Thread:
        def guarded() -> None:
            try:
                loop()
            except BaseException as error:  # the thread's last words; the foreman ends, see the module
                logger.critical("a thread of the foreman failed", exc_info=error, extra={"which": name})
                self._failure = self._failure or error
                self.stop()
                if name == _LAST:
                    self._finished.set()

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    def _see_off(self) -> None:
        """Wait until the foreman is to end, see that all is finished, then end the loops."""
        board = self.board
        board.ending.wait()
        board.wait(lambda: board.state is NodeState.STOPPED or not (board.placements() or board.in_line()))
        if not board.wait(self._drained, DRAIN_PATIENCE_S):
            while self.pulse.reachable and not board.wait(self._drained, DRAIN_PATIENCE_S):
                self.pulse.now()
        if board.state is NodeState.STOPPED:
            self._slots.why_stopped = STOPS
            self._end_all()
        left = board.backlog()
        board.move(NodeState.STOPPED)
        self._hang_up()
        self._slots.close()
        self._couriers.close(COURIERS)
        self.pulse.close()
        self._reboots.close()
        self._state_file.close()
        deadline = seconds() + STOP_PATIENCE_S
        for thread in self._joined:
            thread.join(max(0.0, deadline - seconds()))
        self._pool.stop(STOP_PATIENCE_S)
        self._server.close()
        if left:
            logger.warning("results stay in the spool for the next start", extra={"results": left})
        logger.info("foreman ended")
        self._finished.set()

    def _end_all(self) -> None:
        """Kill what runs, and wait until it is dead and its leases are given back, but not for ever."""
        deadline = seconds() + STOP_PATIENCE_S
        while seconds() < deadline:
            self.end([running.lease for running in self.board.running()], Verdict.STOPPED)
            if self.board.wait(self._nothing_in_hand, 1.0):
                return
        logger.warning("foreman ends before its payloads", extra={"running": len(self.board.running())})

    def _nothing_in_hand(self) -> bool:
        return not (self.board.placements() or self.board.in_line() or self._couriers.pending)

    def _clear(self) -> None:
        """Give back what runs, for a reboot."""
        self._slots.why_stopped = REBOOTS
        self._end_all()

    def _hang_up(self) -> None:
        """Leave no attempt behind in the answer to a request that still waits at the server.

        What was just given back may have gone into such an answer at once. The server notices a closed connection, but
        not in the moment in which it writes: so listen for a last while, and give back what came.
        """
        self.board.wait(lambda: not self._claims.open_requests(), LAST_ANSWERS_S)
        self.board.wait(lambda: not self._couriers.pending, STOP_PATIENCE_S)

    def _drained(self) -> bool:
        return self.board.state is NodeState.STOPPED or not (self.board.backlog() or self._couriers.pending)


def _lack(folder: Path) -> str | None:
    """What keeps inputs and results of tasks from a folder's disk, in words."""
    disk = disk_of(folder)
    if disk.f_flag & os.ST_RDONLY:
        return "node takes no tasks: its disk is read-only"
    few = disk.f_files > 0 and disk.f_favail < ROOM_FILES  # some file systems have no bound, and say 0
    return "node takes no tasks: its disk is full" if few or disk.f_bavail * disk.f_frsize < ROOM_BYTES else None

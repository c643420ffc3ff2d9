"""Bringing results from the spool to the server, and giving leases back.

Couriers are a few threads that take parcels one by one, so a slot never waits for the network and a large upload does
not hold up small ones. For each parcel: the files first (the client skips those the server has), then the result's
spec, then the spool forgets it. What the server says decides:

===========================  ========================================================================================
it takes the result          forget it
the lease was overtaken      throw it away: another attempt's result counts
a file is missing            send all files again, once
it refuses the result        send an ``error`` result that says why, so that the task ends; refused too: throw away
it refuses this node         keep it and try again later: an administrator mends the token
it does not answer           keep it and try again, sooner when a heartbeat gets through
===========================  ========================================================================================
"""

from __future__ import annotations

import logging
import queue
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from kolejka.common.errors import Conflict, InputError, KolejkaError, NotAllowed, NotFound
from kolejka.common.result import Outcome, Result
from kolejka.foreman.board import Board, NodeState
from kolejka.foreman.heartbeat import Pulse
from kolejka.foreman.spool import Entry, Spool

logger = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 15.0
KNOWN_BLOBS: Final = 4096
"""hashes remembered as stored at the server; most results share a few, such as the empty file's"""


class Receiver(Protocol):
    """The part of the client that takes results."""

    def put_blob(self, source: Path, *, reference: str | None = None) -> str:
        """Store a file."""

    def put_result(self, lease: int, result: Result) -> Any:
        """Hand in a result."""

    def release(self, lease: int, message: str) -> Any:
        """Give an attempt back."""


@dataclass(frozen=True)
class Parcel:
    """A spooled result on its way. ``result`` spares reading it again."""

    entry: Entry
    result: Result | None = None


@dataclass(frozen=True)
class Return:
    """A lease to give back."""

    lease: int
    message: str


class Couriers:
    """``put`` hands a parcel or a return over; ``loop`` is what each courier thread runs."""

    def __init__(self, board: Board, spool: Spool, server: Receiver, pulse: Pulse) -> None:
        self._board = board
        self._spool = spool
        self._server = server
        self._pulse = pulse
        self._queue: queue.SimpleQueue[Parcel | Return | None] = queue.SimpleQueue()
        self._known: OrderedDict[str, None] = OrderedDict()
        self._returns = 0

    @property
    def pending(self) -> int:
        """How many leases are still to be given back."""
        return self._returns

    def put(self, item: Parcel | Return) -> None:
        """Hand something over."""
        if isinstance(item, Return):
            with self._board.changed:
                self._returns += 1
        self._queue.put(item)

    def close(self, couriers: int) -> None:
        """End so many loops, after what was handed over before."""
        for _ in range(couriers):
            self._queue.put(None)

    def loop(self) -> None:
        """Deliver until closed."""
        while (item := self._queue.get()) is not None:
            if isinstance(item, Return):
                self._persist(partial(self._give_back, item))
                with self._board.changed:
                    self._returns -= 1
                    self._board.changed.notify_all()
            else:
                self._persist(partial(self._deliver, item))

    def _persist(self, attempt: Callable[[], None]) -> None:
        """Try until it is done, or this foreman stops."""
        pause = FIRST_PAUSE_S
        while True:
            seen = self._pulse.beats
            try:
                return attempt()
            except (KolejkaError, OSError) as error:
                refused, reason = isinstance(error, NotAllowed), str(error)
            if self._board.state is NodeState.STOPPED:
                return None
            if refused:
                pause = LONGEST_PAUSE_S
            logger.log(
                logging.WARNING if pause >= LONGEST_PAUSE_S else logging.INFO,
                "delivery waits", extra={"reason": reason, "next_try_s": pause},
            )  # fmt: skip
            self._board.wait(self._stopped if refused else partial(self._stopped_or_beaten, seen), pause)
            pause = min(LONGEST_PAUSE_S, pause * 2)

    def _stopped(self) -> bool:
        return self._board.state is NodeState.STOPPED

    def _stopped_or_beaten(self, seen: int) -> bool:
        return self._stopped() or self._pulse.beats > seen

    def _give_back(self, item: Return) -> None:
        about = {"lease": item.lease, "reason": item.message}
        try:
            self._server.release(item.lease, item.message)
        except InputError as error:  # overtaken, or done before: either way it is ours no more
            _raise_unless_final(error)
            logger.info("lease was not ours to give back", extra={**about, "answer": str(error)})
        else:
            logger.info("lease given back", extra=about)

    def _deliver(self, parcel: Parcel) -> None:
        entry = parcel.entry
        about = {"task": entry.task, "lease": entry.lease}
        while not self._pulse.fresh() and not self._stopped():
            self._pulse.now()
            self._board.wait(lambda: self._pulse.fresh() or self._stopped(), LONGEST_PAUSE_S)
        if self._stopped():
            return None  # it stays in the spool for the next life
        if not self._board.is_spooled(entry.lease):
            logger.info("result thrown away: the lease was overtaken", extra=about)
            return self._forget(entry)
        try:
            result = parcel.result or entry.result()
            self._send(entry, result)
        except (Conflict, NotFound) as error:
            logger.info("result thrown away: the server wants it no more", extra={**about, "reason": str(error)})
        except InputError as error:
            _raise_unless_final(error)
            self._explain(entry, error)
        else:
            logger.info("result delivered", extra={**about, "outcome": str(result.outcome)})
        return self._forget(entry)

    def _send(self, entry: Entry, result: Result) -> None:
        self._send_files(entry.folder, result)
        try:
            self._server.put_result(entry.lease, result)
        except InputError as error:
            if error.code != "blob_missing":
                raise
            for file in result.manifest.values():
                self._known.pop(file.sha256, None)
            self._send_files(entry.folder, result)
            self._server.put_result(entry.lease, result)

    def _send_files(self, folder: Path, result: Result) -> None:
        for name, file in result.manifest.items():
            if file.sha256 not in self._known:
                self._server.put_blob(folder / name, reference=file.sha256)
                with self._board.changed:
                    self._known[file.sha256] = None
                    while len(self._known) > KNOWN_BLOBS:
                        self._known.popitem(last=False)

    def _explain(self, entry: Entry, error: InputError) -> None:
        """The server refuses the result itself: let the task end with the reason."""
        about = {"task": entry.task, "lease": entry.lease, "reason": str(error)}
        logger.error("the server refuses a result", extra=about)
        try:
            self._server.put_result(
                entry.lease,
                Result(Outcome.ERROR, id=entry.task, message=f"the result could not be delivered: {error}"[:4000]),
            )
        except InputError as again:
            _raise_unless_final(again)
            logger.error(  # noqa: TRY400  the message says all
                "the server refuses the explanation too; result thrown away", extra={**about, "answer": str(again)}
            )

    def _forget(self, entry: Entry) -> None:
        self._spool.remove(entry)
        self._board.forget(entry.lease)


def _raise_unless_final(error: InputError) -> None:
    """Raise what is about this node's token or address rather than about the lease: an administrator mends that."""
    if isinstance(error, NotAllowed) or error.code == "not_kolejka" or error.field == "server":
        raise error

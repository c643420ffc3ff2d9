"""Bringing results from the spool to the server, and giving leases back.

Couriers are a few threads that take parcels one by one, so a slot never waits for the network and a large upload does
not hold up small ones. For each parcel: the files first (the client skips those the server has). Then its result lies
on the *desk*, from which one more thread hands in, in one request, all that lie there: what is alone goes at once, and
while a request is on its way the next ones gather, as they do for a moment while more tasks stand in line (board.py).
Then the spool forgets them. What the server says of each decides:

===========================  ========================================================================================
it takes the result          forget it
the lease was overtaken      throw it away: another attempt's result counts
a file is missing            send all files again, once
it refuses the result        send an ``error`` result that says why, so that the task ends; refused too: throw away
it refuses this node         keep it and try again later: an administrator mends the token
it does not answer           keep it and try again, sooner when a heartbeat gets through
===========================  ========================================================================================

A server that does not take them together (an older one, or one for which they are too large) gets them one by one.
"""

from __future__ import annotations

import contextlib
import logging
import queue
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from kolejka.common import logs
from kolejka.common.errors import Conflict, InputError, KolejkaError, NotAllowed, NotFound, Unavailable
from kolejka.common.result import Outcome, Result
from kolejka.foreman.board import Board, NodeState, seconds
from kolejka.foreman.heartbeat import Pulse
from kolejka.foreman.spool import Entry, Spool

logger = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 15.0
TOGETHER: Final = 64
"""results in one request at most: the others need not wait for an answer that is long in coming"""
GATHER_S: Final = 0.05
"""how long a result waits for others while short tasks follow one another"""
KNOWN_BLOBS: Final = 4096
"""hashes remembered as stored at the server; most results share a few, such as the empty file's"""


class Receiver(Protocol):
    """The part of the client that takes results."""

    def put_blob(self, source: Path, *, reference: str | None = None) -> str:
        """Store a file."""

    def put_result(self, lease: int, result: Result) -> Any:
        """Hand in a result."""

    def put_results(self, results: Mapping[int, Result]) -> Mapping[int, InputError | None]:
        """Hand in results by their leases; why each was refused, or ``None`` when it was taken."""

    def release(self, lease: int, message: str) -> Any:
        """Give an attempt back."""


@dataclass(frozen=True)
class Parcel:
    """A spooled result on its way. ``result`` spares reading it again."""

    entry: Entry
    result: Result | None = None
    again: bool = False
    """the server had lost a file: all of them are sent once more"""


@dataclass(frozen=True)
class Return:
    """A lease to give back."""

    lease: int
    message: str
    task: str | None = None


class Couriers:
    """``put`` hands a parcel or a return over; ``loop`` is what each courier thread runs, ``hand_in`` the thread at the
    desk.
    """

    def __init__(self, board: Board, spool: Spool, server: Receiver, pulse: Pulse) -> None:
        self._board = board
        self._spool = spool
        self._server = server
        self._pulse = pulse
        self._queue: queue.SimpleQueue[Parcel | Return | None] = queue.SimpleQueue()
        self._desk: queue.SimpleQueue[Parcel | None] = queue.SimpleQueue()
        self._known: OrderedDict[str, None] = OrderedDict()
        self._returns = 0
        self._one_by_one = False

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
        self._desk.put(None)

    def loop(self) -> None:
        """Deliver until closed."""
        while (item := self._queue.get()) is not None:
            if isinstance(item, Return):
                with logs.about(task=item.task, lease=item.lease):
                    self._persist(partial(self._give_back, item))
                with self._board.changed:
                    self._returns -= 1
                    self._board.changed.notify_all()
            else:
                with logs.about(task=item.entry.task, lease=item.entry.lease):
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
        """Send the files, and lay the result on the desk."""
        entry = parcel.entry
        while not self._pulse.fresh() and not self._stopped():
            self._pulse.now()
            self._board.wait(lambda: self._pulse.fresh() or self._stopped(), LONGEST_PAUSE_S)
        if self._stopped() or not self._is_wanted(entry):
            return  # what stays in the spool is for the next life
        try:
            result = parcel.result or entry.result()
            self._send_files(entry.folder, result)
        except InputError as error:
            self._refused(parcel, error)
        else:
            self._desk.put(replace(parcel, result=result))

    def _is_wanted(self, entry: Entry) -> bool:
        if self._board.is_spooled(entry.lease):
            return True
        logger.info("result thrown away: the lease was overtaken", extra={"task": entry.task, "lease": entry.lease})
        self._forget(entry)
        return False

    def hand_in(self) -> None:
        """Hand in what lies on the desk until closed."""
        going = True
        while going:
            parcels = [self._desk.get()]
            until = seconds() + (GATHER_S if self._board.in_line() else 0.0)
            with contextlib.suppress(queue.Empty):
                while parcels[-1] is not None and len(parcels) < TOGETHER:
                    left_s = until - seconds()
                    parcels.append(self._desk.get(timeout=left_s) if left_s > 0 else self._desk.get_nowait())
            going = None not in parcels
            left = [parcel for parcel in parcels if parcel is not None]
            self._persist(partial(self._hand_in, left))

    def _hand_in(self, left: list[Parcel]) -> None:
        """Hand these parcels in, in one request where that is possible; those that are settled are taken out."""
        left[:] = [parcel for parcel in left if self._is_wanted(parcel.entry)]
        if len(left) > 1 and not self._one_by_one:
            results = {parcel.entry.lease: parcel.result for parcel in left if parcel.result is not None}
            try:
                answers = self._server.put_results(results)
            except NotAllowed:
                raise
            except InputError as error:
                self._one_by_one = error.code == "not_found"  # an older server: there is no such call
                logger.info("results are handed in one by one", extra={"results": len(left), "reason": str(error)})
            else:
                for parcel in left[:]:
                    if parcel.entry.lease in answers:
                        self._settle(parcel, answers[parcel.entry.lease])
                        left.remove(parcel)
        while left:
            try:
                assert left[0].result is not None  # it was read before it lay on the desk
                self._server.put_result(left[0].entry.lease, left[0].result)
            except InputError as error:
                self._settle(left[0], error)
            except Unavailable:
                self._one_by_one = False  # it may come back as a newer one
                raise
            else:
                self._settle(left[0], None)
            del left[0]

    def _settle(self, parcel: Parcel, error: InputError | None) -> None:
        """What the server said of a result decides what becomes of it."""
        entry = parcel.entry
        if error is None:
            assert parcel.result is not None  # it was handed in
            outcome = str(parcel.result.outcome)
            logger.info("result delivered", extra={"task": entry.task, "lease": entry.lease, "outcome": outcome})
            self._forget(entry)
        elif error.code == "blob_missing" and not parcel.again:
            for file in parcel.result.manifest.values() if parcel.result is not None else ():
                self._known.pop(file.sha256, None)
            self._queue.put(replace(parcel, again=True))
        else:
            self._refused(parcel, error)

    def _refused(self, parcel: Parcel, error: InputError) -> None:
        """The server does not take a result, or it cannot be read any more."""
        entry = parcel.entry
        if isinstance(error, Conflict | NotFound):
            about = {"task": entry.task, "lease": entry.lease, "reason": str(error)}
            logger.info("result thrown away: the server wants it no more", extra=about)
        else:
            _raise_unless_final(error)
            self._explain(entry, error)
        self._forget(entry)

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

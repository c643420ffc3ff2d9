"""What is known of many tasks: waiting until they are done, and bringing their results, into a folder each.

The server is asked for some tasks together, and answers when as many of them are done as should be in half a second:
whoever waits for thousands asks a few times a second, whoever waits for one hears of it at once. What is done is
brought meanwhile by a few threads. A folder that holds the task's result already is left as it is, so whoever was
interrupted says the same once more. What is wrong with one task stops no other; a server that does not answer and a
disk that takes nothing stop all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from kolejka.client.results import check_result_folder
from kolejka.common.errors import Conflict, InputError, KolejkaError, NotAllowed, NotFound, Unavailable
from kolejka.common.result import RESULT_FILE, Result
from kolejka.common.states import TaskState

T = TypeVar("T")

PIECE: Final = 100
"""tasks that the server is asked for together"""
TRANSFERS: Final = 4
"""results that are brought at a time"""
LONG_POLL_S: Final = 30.0
SHORT_POLL_S: Final = 1.0
"""how long some results wait for others, so that the caller hears of all of them together"""
PACE_S: Final = 0.5
_OF_ONE_TASK: Final = frozenset({"timeout", "broken_result"})


@dataclass(frozen=True)
class Told:
    """What the server tells of one task among many: its ``state``, and its ``result`` if it is done; or the ``error``
    in the way.
    """

    state: str = ""
    result: Result | None = None
    error: KolejkaError | None = None


@dataclass(frozen=True)
class Brought:
    """What became of one task's result: ``result`` is in ``folder``, or ``error`` says why it is not."""

    task_id: str
    folder: Path
    result: Result | None
    error: KolejkaError | None = None
    new: bool = True
    """false where it was there before"""

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        result = None if self.result is None else self.result.to_json()
        error = None if self.error is None else str(self.error)
        return {"id": self.task_id, "folder": str(self.folder), "new": self.new, "result": result, "error": error}


class Source(Protocol):
    """The part of the client that results come from."""

    def results(self, ids: Collection[str], *, wait_s: float = 0.0, enough: int = 1) -> Mapping[str, Told]:
        """What the server tells of each of these tasks, once ``enough`` of them are done."""

    def result(self, id: str, *, wait_s: float = 0.0) -> Result | None:
        """The result, if the task is done."""

    def wait(self, id: str, timeout_s: float | None = None) -> Result:
        """Wait until the task is done."""

    def bring(self, id: str, result: Result, folder: Path) -> Result:
        """Bring the result's files into ``folder``."""


def until_done(
    source: Source, ids: Iterable[str], timeout_s: float | None = None
) -> Iterator[tuple[str, Result | KolejkaError]]:
    """Wait for the results of tasks; see ``KolejkaClient.wait_many``."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    for piece in _pieces(dict.fromkeys(ids)):
        yield from _piece_done(source, piece, deadline, timeout_s)


def _piece_done(
    source: Source, left: list[str], deadline: float | None, timeout_s: float | None
) -> Iterator[tuple[str, Result | KolejkaError]]:
    """The same for tasks that the server is asked for together."""
    enough = 1
    while left:
        began = time.monotonic()
        wait_s = LONG_POLL_S if enough == 1 else SHORT_POLL_S
        if deadline is not None:
            wait_s = max(0.0, min(wait_s, deadline - began))
        try:
            told = source.results(left, wait_s=wait_s, enough=enough)
        except NotFound:  # an older server: there is no such call
            for task_id in left:
                yield task_id, _alone(partial(source.wait, task_id, _left(deadline)))
            return
        settled = {task_id: found for task_id in left if (found := _settled(source, task_id, told[task_id]))}
        yield from settled.items()
        left = [task_id for task_id in left if task_id not in settled]
        if deadline is not None and time.monotonic() >= deadline:
            for task_id in left:
                words = f"task {task_id} is still {told[task_id].state} after {timeout_s:g} s"
                yield task_id, Unavailable(words, code="timeout")
            return
        pace = len(settled) / max(time.monotonic() - began, 0.001)
        enough = max(1, min(len(left), round(pace * PACE_S)))


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _settled(source: Source, task_id: str, told: Told) -> Result | KolejkaError | None:
    """How a task ended, if it did; a result that was too large for the common answer is asked for by itself."""
    if told.error is None and told.result is None and told.state == TaskState.DONE:
        return _alone(partial(source.wait, task_id))
    return told.error or told.result


def _alone(ask: Callable[[], Result]) -> Result | KolejkaError:
    try:
        return ask()
    except KolejkaError as error:
        return _if_of_one(error)


def _if_of_one(error: KolejkaError) -> KolejkaError:
    """An error that is about one task; what stops all of them is raised."""
    if isinstance(error, NotAllowed) or (isinstance(error, Unavailable) and error.code not in _OF_ONE_TASK):
        raise error
    if isinstance(error, InputError | Unavailable):
        return error
    raise error


def gather(
    source: Source, places: Iterable[tuple[str, Path]], *, wait: bool = False, timeout_s: float | None = None
) -> Iterator[Brought]:
    """Bring the result of each task into its folder, in order; see ``KolejkaClient.get_many``."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with ThreadPoolExecutor(TRANSFERS, thread_name_prefix="transfer") as pool:
        for piece in _pieces(places):
            under_way: list[Future[Brought] | Brought | None] = [_look(*place) for place in piece]
            asked: dict[str, list[int]] = {}
            for number, (task_id, _) in enumerate(piece):
                if under_way[number] is None:
                    asked.setdefault(task_id, []).append(number)
            told = 0
            for task_id, found in _found(source, list(asked), wait=wait, deadline=deadline, timeout_s=timeout_s):
                for number in asked[task_id]:
                    folder = piece[number][1]
                    if isinstance(found, KolejkaError):
                        under_way[number] = Brought(task_id, folder, None, found)
                    else:
                        under_way[number] = pool.submit(_bring, source, task_id, found, folder)
                while told < len(piece) and _has_ended(first := under_way[told]):
                    yield _ended(first)
                    told += 1
            yield from map(_ended, under_way[told:])


def _found(
    source: Source, ids: list[str], *, wait: bool, deadline: float | None, timeout_s: float | None
) -> Iterator[tuple[str, Result | KolejkaError]]:
    """The results of these tasks: those that are there now, or all, waiting for them."""
    if wait:
        yield from _piece_done(source, ids, deadline, timeout_s)
    elif ids:
        try:
            told = source.results(ids)
        except NotFound:  # an older server
            told = {task_id: _told_alone(source, task_id) for task_id in ids}
        for task_id in ids:
            found = _settled(source, task_id, told[task_id])
            yield task_id, found or Conflict("it is not done yet; add --wait", field=task_id)


def _told_alone(source: Source, task_id: str) -> Told:
    try:
        return Told(result=source.result(task_id))
    except KolejkaError as error:
        return Told(error=_if_of_one(error))


def _bring(source: Source, task_id: str, result: Result, folder: Path) -> Brought:
    try:
        return Brought(task_id, folder, source.bring(task_id, result, folder))
    except KolejkaError as error:
        return Brought(task_id, folder, None, _if_of_one(error))


def _has_ended(one: Future[Brought] | Brought | None) -> bool:
    return isinstance(one, Brought) or (one is not None and one.done())


def _ended(one: Future[Brought] | Brought | None) -> Brought:
    """What came of it, when it has."""
    assert one is not None  # all were asked for
    return one if isinstance(one, Brought) else one.result()


def _look(task_id: str, folder: Path) -> Brought | None:
    """What is in the folder already, or in the way."""
    with suppress(KolejkaError):  # whatever else is there, a result of this task it is not
        if (folder / RESULT_FILE).is_file() and (result := Result.load(folder)).id == task_id:
            return Brought(task_id, folder, result, new=False)
    try:
        check_result_folder(folder)
    except InputError as error:
        return Brought(task_id, folder, None, error)
    return None


def _pieces(values: Iterable[T]) -> Iterator[list[T]]:
    """The values, no more at a time than the server is asked for together."""
    source = iter(values)
    while piece := list(islice(source, PIECE)):
        yield piece

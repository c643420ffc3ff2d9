"""The results of many tasks, brought into a folder each.

Tasks are asked for one after the other, and what is done is brought meanwhile by a few threads. A folder that holds the
task's result already is left as it is, so whoever was interrupted says the same once more. What is wrong with one task
stops no other; a server that does not answer and a disk that takes nothing stop all.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from kolejka.client.results import check_result_folder
from kolejka.common.errors import Conflict, InputError, KolejkaError, NotAllowed, Unavailable
from kolejka.common.result import RESULT_FILE, Result

TRANSFERS: Final = 4
"""results that are brought at a time"""
_AHEAD: Final = 4 * TRANSFERS
_OF_ONE_TASK: Final = frozenset({"timeout", "broken_result"})


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

    def result(self, id: str, *, wait_s: float = 0.0) -> Result | None:
        """The result, if the task is done."""

    def wait(self, id: str, timeout_s: float | None = None) -> Result:
        """Wait until the task is done."""

    def bring(self, id: str, result: Result, folder: Path) -> Result:
        """Bring the result's files into ``folder``."""


def gather(
    source: Source, places: Iterable[tuple[str, Path]], *, wait: bool = False, timeout_s: float | None = None
) -> Iterator[Brought]:
    """Bring the result of each task into its folder, in order; see ``KolejkaClient.get_many``."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    under_way: deque[Future[Brought] | Brought] = deque()
    with ThreadPoolExecutor(TRANSFERS, thread_name_prefix="transfer") as pool:
        for task_id, folder in places:
            found = _look(source, task_id, folder)
            if found.result is None and found.error is None and wait:
                yield from _ended(under_way, 0)  # before a wait that may be long
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                found = _of_one(task_id, folder, partial(source.wait, task_id, left))
            if found.result is not None and found.new:
                bring = partial(source.bring, task_id, found.result, folder)
                under_way.append(pool.submit(_of_one, task_id, folder, bring))
            elif found.result is None and found.error is None:
                under_way.append(
                    Brought(task_id, folder, None, Conflict("it is not done yet; add --wait", field=task_id))
                )
            else:
                under_way.append(found)
            yield from _ended(under_way, _AHEAD)
        yield from _ended(under_way, 0)


def _ended(under_way: deque[Future[Brought] | Brought], most: int) -> Iterator[Brought]:
    """Take what has ended off the front, and wait for what has not while there is more than ``most``."""
    while under_way:
        first = under_way[0]
        if isinstance(first, Future):
            if len(under_way) <= most and not first.done():
                return
            first = first.result()
        under_way.popleft()
        yield first


def _look(source: Source, task_id: str, folder: Path) -> Brought:
    """What is in the folder already, else what the server has now."""

    def look() -> Result | None:
        check_result_folder(folder)
        return source.result(task_id)

    with suppress(KolejkaError):  # whatever else is there, a result of this task it is not
        if (folder / RESULT_FILE).is_file() and (result := Result.load(folder)).id == task_id:
            return Brought(task_id, folder, result, new=False)
    return _of_one(task_id, folder, look)


def _of_one(task_id: str, folder: Path, step: Callable[[], Result | None]) -> Brought:
    """What a step gave for this task, or why it gave nothing."""
    try:
        return Brought(task_id, folder, step())
    except NotAllowed:
        raise
    except InputError as error:
        return Brought(task_id, folder, None, error)
    except Unavailable as error:
        if error.code not in _OF_ONE_TASK:
            raise
        return Brought(task_id, folder, None, error)

"""Which waiting tasks a node gets.

The order: priority first; among equal priorities the owner with the fewest running tasks, counted again after each
choice (a round-robin that weighs what already runs); then the order of arrival. Classes that do not fit are passed
over as a whole: they delay nobody behind them. An exclusive task is given alone, to an idle node.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kolejka.common.limits import Limits
from kolejka.server.scheduling.match import Signature, fits_now, take


@dataclass(frozen=True)
class Group:
    """Waiting tasks that differ only in their order of arrival; ``first`` is the number of the oldest."""

    queue: str
    signature: Signature
    rank: int
    owner: int
    first: int


@dataclass(frozen=True)
class Choice:
    """A task to give."""

    number: int
    group: Group


def choose(
    groups: Iterable[Group],
    oldest: Callable[[Group, int], Sequence[int]],
    *,
    free: Limits,
    slots: int,
    idle: bool,
    running: Mapping[int, int],
) -> list[Choice]:
    """At most ``slots`` tasks that fit ``free`` together.

    ``groups`` are those the node could ever run. ``oldest(group, count)`` gives the numbers of a group's oldest tasks.
    ``running`` counts each owner's running tasks.
    """
    counts = dict(running)
    heap = [(g.rank, counts.get(g.owner, 0), g.first, place, g) for place, g in enumerate(groups)]
    heapq.heapify(heap)
    chosen: list[Choice] = []
    numbers: dict[int, list[int]] = {}
    while heap and len(chosen) < slots:
        rank, count, first, place, group = heapq.heappop(heap)
        current = counts.get(group.owner, 0)
        if current != count:  # a choice since then has changed its place
            heapq.heappush(heap, (rank, current, first, place, group))
            continue
        if not fits_now(group.signature, free) or (group.signature.exclusive and (chosen or not idle)):
            continue  # the free amounts only shrink, so nothing of this group fits later either
        if place not in numbers:
            numbers[place] = list(reversed(oldest(group, slots - len(chosen))))
        waiting = numbers[place]
        if not waiting:
            continue  # others were faster
        chosen.append(Choice(waiting.pop(), group))
        if group.signature.exclusive:
            break
        free = take(free, group.signature)
        counts[group.owner] = current + 1
        if waiting:
            heapq.heappush(heap, (rank, current + 1, waiting[-1], place, group))
    return chosen

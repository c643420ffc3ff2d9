"""Which waiting tasks a node gets.

The owner with the smallest share goes first, counted again after each choice; of an owner's tasks the one with the
highest priority; then the order of arrival. Classes that do not fit are passed over as a whole: they delay nobody
behind them. An exclusive task is given alone, to an idle node.

A task that does not fit in its turn, because smaller ones keep its nodes busy, would wait for ever. So when it has
waited long enough a node is *held* for it (``reserve``): it goes first there as soon as it fits, and until then the
node takes only tasks that end, by their time limit, before it is expected to start.

The lines (``board``) know a lower bound of each class's oldest number. ``oldest`` tells the truth about a class whose
turn it seems to be; the class then takes the place that it really has. It is asked for no more than could be taken:
what it tells of, it may keep from others.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from kolejka.common.limits import Limits
from kolejka.server.scheduling.board import Class, Line
from kolejka.server.scheduling.fairness import FORECAST_S, Load, Quotas, cpus_of
from kolejka.server.scheduling.match import Signature, fits_now, how_many, take

_PASSED: Final = 64
"""How many classes are told of that did not fit in their turn."""


@dataclass(frozen=True)
class Choice:
    """A task to give."""

    number: int
    name: Class
    signature: Signature


@dataclass(frozen=True)
class Hold:
    """A node is kept for one waiting task, which is expected to start in ``until_s`` seconds."""

    number: int
    name: Class
    until_s: float


@dataclass(frozen=True)
class Waiting:
    """What waits: the lines of classes, and ways to ask about them.

    ``oldest(class, first, count)`` gives numbers of a class's oldest tasks, none of which is below ``first``;
    ``time_s(number)`` a task's limit of time.
    """

    lines: Collection[Line]
    signature: Callable[[int], Signature]
    oldest: Callable[[Class, int, int], Sequence[int]]
    time_s: Callable[[int], float | None]


@dataclass(frozen=True)
class Chosen:
    """The tasks to give, and what was learned: ``firsts`` of classes that were asked about (``None`` = nobody is left);
    ``passed`` = classes whose turn it was and that did not fit; ``full`` = a quota kept something back.
    """

    choices: tuple[Choice, ...]
    firsts: Mapping[Class, int | None]
    passed: tuple[Class, ...]
    full: bool


def fits(signature: Signature, free: Limits, *, idle: bool) -> bool:
    """Whether a node takes such a task now."""
    return (idle or not signature.exclusive) and fits_now(signature, free)


def choose(
    waiting: Waiting, *, free: Limits, slots: int, idle: bool, cpus: float | None, shares: Mapping[int, float],
    quotas: Quotas, load: Load, hold: Hold | None = None,
) -> Chosen:  # fmt: skip
    """At most ``slots`` tasks that fit ``free`` together, for a node that has ``cpus`` altogether.

    The lines are of classes that the node could ever run, in queues that give tasks.
    """
    room = _Room(free, slots, idle, cpus)
    return _Choosing(waiting, room, dict(shares), quotas, load.copy()).choose(hold)


@dataclass(frozen=True)
class _Room:
    free: Limits
    slots: int
    idle: bool
    cpus: float | None


class _Choosing:
    def __init__(
        self, waiting: Waiting, room: _Room, shares: dict[int, float], quotas: Quotas, load: Load
    ) -> None:  # fmt: skip
        self._waiting, self._lines = waiting, list(waiting.lines)
        self._free, self._slots, self._idle, self._cpus = room.free, room.slots, room.idle, room.cpus
        self._shares, self._quotas, self._load = shares, quotas, load
        self._heap: list[tuple[float, int, int, int, int]] = []
        self._numbers: dict[tuple[int, int], list[int]] = {}
        self._begun = [0] * len(self._lines)
        self._choices: list[Choice] = []
        self._passed: list[Class] = []
        self._firsts: dict[Class, int | None] = {}
        self._seen: set[Class] = set()  # classes of which nothing is left behind what was told
        self._full = False

    def choose(self, hold: Hold | None) -> Chosen:
        if hold is not None and self._quotas.full(hold.name.owner, hold.name.queue, self._load):
            hold, self._full = None, True
        if hold is not None and self._slots > 0:
            signature = self._waiting.signature(hold.name.signature)
            if fits(signature, self._free, idle=self._idle):
                self._take(Choice(hold.number, hold.name, signature))
                hold = None
        for place in range(len(self._lines)):
            self._push_next(place)
        while self._heap and len(self._choices) < self._slots and not self._is_alone():
            self._consider(heapq.heappop(self._heap), hold)
        return Chosen(tuple(self._choices), self._firsts, tuple(self._passed), self._full)

    def _is_alone(self) -> bool:
        return bool(self._choices) and self._choices[-1].signature.exclusive

    def _push(self, place: int, position: int, first: int) -> None:
        name = self._lines[place][position].name
        heapq.heappush(self._heap, (self._shares.get(name.owner, 0.0), name.rank, first, place, position))

    def _push_next(self, place: int) -> None:
        """The next class of a line comes into play when the one before it has had its turn."""
        position = self._begun[place]
        if position < len(self._lines[place]):
            self._begun[place] += 1
            self._push(place, position, self._lines[place][position].first)

    def _consider(self, entry: tuple[float, int, int, int, int], hold: Hold | None) -> None:
        share, _, first, place, position = entry
        name = self._lines[place][position].name
        if self._shares.get(name.owner, 0.0) != share:  # a choice since then has changed its place
            self._push(place, position, first)
            return
        if self._quotas.full(name.owner, name.queue, self._load):
            self._full = True  # and so is all that follows in this line
            return
        if position == self._begun[place] - 1:
            self._push_next(place)
        signature = self._waiting.signature(name.signature)
        alone = self._idle and not self._choices
        if not fits(signature, self._free, idle=alone):
            if not self._choices and len(self._passed) < _PASSED:
                self._passed.append(name)
            return  # the free amounts only shrink, so nothing of this class fits later either
        numbers = self._numbers.get((place, position))
        if numbers is None:
            numbers = self._numbers[place, position] = self._ask(name, first, signature, hold)
            if numbers and numbers[-1] > first:
                self._push(place, position, numbers[-1])
                return
        if not numbers:
            return
        self._take(Choice(numbers.pop(), name, signature))
        if hold is None:  # else some were passed over
            behind = None if name in self._seen else self._choices[-1].number + 1
            self._firsts[name] = numbers[-1] if numbers else behind
        if numbers:
            self._push(place, position, numbers[-1])

    def _ask(self, name: Class, first: int, signature: Signature, hold: Hold | None) -> list[int]:
        """The numbers of a class's oldest tasks, the oldest last; under a hold those that end before it."""
        taken = {choice.number for choice in self._choices if choice.name == name}  # the one for which it was held
        count = self._slots - len(self._choices)
        if hold is None:  # else not all that fit are taken
            count = min(count, how_many(signature, self._free))
        found = [n for n in self._waiting.oldest(name, first, count + len(taken)) if n not in taken]
        self._firsts[name] = found[0] if found else None
        if len(found) < count:
            self._seen.add(name)
        if hold is not None:
            found = [number for number in found if _ends_before(self._waiting.time_s(number), hold.until_s)]
        return found[::-1]

    def _take(self, choice: Choice) -> None:
        self._choices.append(choice)
        owner = choice.name.owner
        self._free = take(self._free, choice.signature)
        self._load.add(owner, choice.name.queue)
        cost = cpus_of(choice.signature, self._cpus) * FORECAST_S
        self._shares[owner] = self._shares.get(owner, 0.0) + cost


def _ends_before(time_s: float | None, until_s: float) -> bool:
    return time_s is not None and time_s <= until_s

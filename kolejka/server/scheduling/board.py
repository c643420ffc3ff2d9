"""Which classes of tasks wait, kept in memory, so that a claim asks the database for the tasks it takes and no more.

A *class* is what waiting tasks have in common but for their order of arrival: queue, signature, rank, owner. The
database announces each task that begins to wait, after its commit; the board remembers its class, with a lower bound
of the number of its oldest task. Whether a class still has tasks, and which, the database says whenever a claim takes
some: the board may list a class too many, which costs one look, after which it is struck out. It lists none too few,
and bounds none too high, for longer than until everything that waits is added anew, which the service does in each
round against words that were lost (a connection that broke; a claim that failed after others had passed over its
tasks).

A claim that has looked tells what it found (``looked``). What was heard since it began may be of tasks that it has not
seen, so the bound stays at these.

A *view* is what of the board the nodes of one kind could ever run: classes that are impossible there never come before
a claim again, however many they are. Views catch up with the board by its changes. Their lines are not changed once
they were given out, so a claim may walk through one while others go on. Safe to use from every thread.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

_VIEWS: Final = 256
"""Kinds of nodes whose views are kept; the one that was not asked for the longest is made anew when it is."""
_SLACK: Final = 10_000
_HEARD: Final = 64
"""Words of a class that are told apart; of more the lowest number is taken for all."""


class Class(NamedTuple):
    """What waiting tasks have in common."""

    queue: str
    signature: int
    rank: int
    owner: int


class Entry(NamedTuple):
    """A class in its place: by rank, then by its oldest task. ``first`` is at most that task's number."""

    rank: int
    first: int
    name: Class


Line = Sequence[Entry]
"""One owner's classes in one queue, in their order."""


@dataclass
class _View:
    seen: int = 0
    lines: dict[tuple[int, str], list[Entry]] = field(default_factory=dict)
    entries: dict[Class, Entry] = field(default_factory=dict)


class Board:
    """The classes that wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._first: dict[Class, int] = {}
        self._heard: dict[Class, list[tuple[int, int]]] = {}  # serial and number of the words since the last look
        self._changes: dict[Class, int] = {}  # in the order of their latest change
        self._forgotten = 0
        self._views: dict[object, _View] = {}
        self.serial = 1  # a view that has seen nothing has seen less
        """grows with every word that is heard"""

    def add(self, waiting: Iterable[tuple[Class, int]]) -> None:
        """Tasks began to wait: their classes and numbers."""
        with self._lock:
            for name, number in waiting:
                self.serial += 1
                heard = self._heard.setdefault(name, [])
                heard.append((self.serial, number))
                if len(heard) > _HEARD:
                    heard[:] = [(self.serial, min(one for _, one in heard))]
                known = self._first.get(name)
                if known is None or number < known:
                    self._first[name] = number
                    self._changed(name)

    def looked(self, name: Class, first: int | None, since: int) -> None:
        """A claim that began at the serial ``since`` found ``first`` to be the oldest task left, or that none is."""
        with self._lock:
            heard = self._heard.get(name)
            if heard is None:  # it was struck out
                return
            heard[:] = [word for word in heard if word[0] > since]
            bounds = [number for _, number in heard]
            if first is not None:
                bounds.append(first)
            if not bounds:
                del self._first[name], self._heard[name]
            elif min(bounds) != self._first[name]:
                self._first[name] = min(bounds)
            else:
                return
            self.serial += 1
            self._changed(name)

    def _changed(self, name: Class) -> None:
        self._changes.pop(name, None)
        self._changes[name] = self.serial
        if len(self._changes) > 2 * len(self._first) + _SLACK:  # mostly classes that were struck out
            self._changes = dict.fromkeys(self._first, self.serial)
            self._forgotten = self.serial

    def lines(self, kind: object, possible: Callable[[Class], bool]) -> dict[tuple[int, str], list[Entry]]:
        """Owner and queue → line of the classes that are possible for a kind of node."""
        with self._lock:
            view = self._views.pop(kind, None)
            if view is None or view.seen < self._forgotten:
                view = _View()
            self._views[kind] = view
            if len(self._views) > _VIEWS:
                del self._views[next(iter(self._views))]
            self._catch_up(view, possible)
            return dict(view.lines)

    def _catch_up(self, view: _View, possible: Callable[[Class], bool]) -> None:
        changed: defaultdict[tuple[int, str], list[Class]] = defaultdict(list)
        names: Iterable[Class] = self._first
        if view.seen:
            news = []
            for name, serial in reversed(self._changes.items()):
                if serial <= view.seen:
                    break
                news.append(name)
            names = news
        for name in names:
            if name in view.entries or possible(name):
                changed[name.owner, name.queue].append(name)
        for place, some in changed.items():
            line = self._changed_line(view, view.lines.get(place, []), some)
            if line:
                view.lines[place] = line
            else:
                view.lines.pop(place, None)
        view.seen = self.serial

    def _changed_line(self, view: _View, line: list[Entry], names: list[Class]) -> list[Entry]:
        """A copy of a line with the new places of some classes."""
        new = []
        line = line.copy()
        for name in names:
            old, first = view.entries.pop(name, None), self._first.get(name)
            if old is not None:
                del line[bisect_left(line, old)]
            if first is not None:
                view.entries[name] = entry = Entry(name.rank, first, name)
                new.append(entry)
        if len(new) > 8:
            return sorted(line + new)
        for entry in new:
            insort(line, entry)
        return line

    def __len__(self) -> int:
        return len(self._first)

"""One node's turn: what it is given in a claim, from what the database says and what the pure parts decide.

Tasks are taken in hand as they are looked at, and those that others have in hand are passed over: so claims that come
at the same time share what waits, and none decides twice. What was looked at and not given after all is announced as
waiting, since others have passed over it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from kolejka.server.scheduling.board import Class, Entry, Line
from kolejka.server.scheduling.choose import Choice, Chosen, Hold, Waiting, choose
from kolejka.server.scheduling.classes import Classes
from kolejka.server.scheduling.fairness import Busy, Gate, Load, Quotas, cpus_of, shares
from kolejka.server.scheduling.match import Offer, Signature, can_ever_run
from kolejka.server.scheduling.reserve import expected_start
from kolejka.server.scheduling.rules import Moment, Rules
from kolejka.server.scheduling.why import Stand
from kolejka.server.storage import leases, queues, tasks, usage
from kolejka.server.storage.base import Asked, Connection, Row, TaskWaiting
from kolejka.server.storage.usage import Reservation


@dataclass(frozen=True)
class Taken:
    """What a turn came to. ``waits`` = the node is kept for a task; ``full`` = a quota kept something back."""

    choices: tuple[Choice, ...] = ()
    waits: bool = False
    full: bool = False
    total_cpus: float | None = None

    def cpus(self, choice: Choice) -> float:
        """How many CPUs a task keeps from others on this node."""
        return cpus_of(choice.signature, self.total_cpus)


@dataclass(frozen=True)
class Outlook:
    """What a turn goes by, asked for in one round trip, if anything waits that the node could ever run."""

    since: int
    """what of the board is known"""
    lines: Mapping[tuple[int, str], list[Entry]]
    gates: Callable[[], Mapping[str, Gate]]
    reservations: Callable[[], list[Reservation]]
    running: Asked
    past: Callable[[], Mapping[int, float]]

    @classmethod
    def ask(cls, db: Connection, offer: Offer, rules: Rules, classes: Classes, now: Moment) -> Outlook | None:
        """``None``: nothing waits. What is free on the node makes no difference."""
        since = classes.board.serial
        lines = classes.lines(db, offer)
        if not lines:
            return None
        return cls(
            since, lines, queues.gates(db), usage.reservations(db, heard_after=now.wall - rules.heartbeat_s),
            leases.running(db),
            usage.of_owners(db, {owner for owner, _ in lines}, half_life_s=rules.half_life_s, now=now.wall),
        )  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """A claim of a node that could take ``slots`` tasks of ``queues`` (none named: all)."""

    db: Connection
    outlook: Outlook
    node: str
    queues: frozenset[str]
    offer: Offer
    slots: int
    rules: Rules
    classes: Classes
    now: Moment
    in_hand: dict[int, Class] = field(default_factory=dict)
    """the tasks that nobody else can be given until this transaction ends"""

    def take(self) -> Taken:
        """Choose and take in hand, and reserve the node where that is due."""
        if not self._lines:
            return Taken()
        if self._quotas.any:
            queues.lock_ceilings(self.db)
        hold = self._kept_for()
        while True:
            chosen = self._choose(hold)
            if hold is None and chosen.passed:
                hold = self._reserve(chosen.passed)
                if hold is not None:
                    continue
            given = {choice.number for choice in chosen.choices}
            if hold is None or hold.number not in given or tasks.take_waiting(self.db, hold.number):
                break
            hold = None  # it is being given to somebody else
        self._tell(chosen, given)
        for one in self._reservations:
            if one.number in given:
                usage.unreserve(self.db, one.number)
        waits = hold is not None and hold.number not in given
        return Taken(chosen.choices, waits, chosen.full, self.offer.total.get("cpus"))

    def _tell(self, chosen: Chosen, given: Collection[int]) -> None:
        """What is known of the classes once this has happened, and which tasks go on waiting."""
        board, since = self.classes.board, self.outlook.since

        def learn() -> Sequence[TaskWaiting]:
            for name, first in chosen.firsts.items():
                board.looked(name, first, since)
            left: defaultdict[Class, list[int]] = defaultdict(list)
            for number in self.in_hand.keys() - given:
                left[self.in_hand[number]].append(number)
            return [TaskWaiting(*name, min(numbers), len(numbers)) for name, numbers in left.items()]

        self.db.announce_then(learn)

    @cached_property
    def _quotas(self) -> Quotas:
        return Quotas(self.outlook.gates(), self.rules.running_per_owner)

    @cached_property
    def _lines(self) -> dict[tuple[int, str], Line]:
        return {
            (owner, queue): line for (owner, queue), line in self.outlook.lines.items() if self._takes_from(queue)
        }  # fmt: skip

    def _takes_from(self, queue: str) -> bool:
        return self._quotas.gives(queue) and (not self.queues or queue in self.queues)

    @cached_property
    def _reservations(self) -> list[Reservation]:
        return self.outlook.reservations()

    @cached_property
    def _running(self) -> list[Row]:
        if self._quotas.any:  # what was asked before the ceilings were locked is not good enough
            return leases.running(self.db)()
        return self.outlook.running()

    @cached_property
    def _load(self) -> Load:
        return Load((owner, queue, count) for owner, queue, count, _, _ in self._running)

    @cached_property
    def _shares(self) -> dict[int, float]:
        past = self.outlook.past()
        runs = (Busy(owner, cpus, cpus * self.now.steady - starts) for owner, _, _, cpus, starts in self._running)
        return shares(past, [*runs, *(Busy(one.owner, one.cpus) for one in self._reservations)])

    def _signature(self, signature: int) -> Signature:
        return self.classes.signature(self.db, signature)

    def _take_oldest(self, name: Class, first: int, count: int) -> Sequence[int]:
        numbers = tasks.oldest(self.db, name, first=first, count=count, in_hand=True)
        self.in_hand.update(dict.fromkeys(numbers, name))
        return numbers

    def _time_s(self, number: int) -> float | None:
        limit: float | None = tasks.spec(self.db, number).get("limits", {}).get("time")
        return limit

    def _choose(self, hold: Hold | None) -> Chosen:
        offer = self.offer
        waiting = Waiting(tuple(self._lines.values()), self._signature, self._take_oldest, self._time_s)
        return choose(
            waiting, free=offer.free, slots=self.slots, idle=offer.idle, cpus=offer.total.get("cpus"),
            shares=self._shares, quotas=self._quotas, load=self._load, hold=hold,
        )  # fmt: skip

    def _kept_for(self) -> Hold | None:
        """The task that this node is kept for, if that still makes sense."""
        mine = next((one for one in self._reservations if one.node == self.node), None)
        if mine is None:
            return None
        signature = self._signature(mine.signature)
        if (
            not can_ever_run(signature, self.offer.tags, self.offer.total)
            or not self._takes_from(mine.queue)
            or self._quotas.full(mine.owner, mine.queue, self._load)
        ):
            usage.unreserve(self.db, mine.number)
            return None
        start = self._expected_start(signature)
        until_s = 0.0 if start is None else start - self.now.steady
        return Hold(mine.number, Class(mine.queue, mine.signature, mine.rank, mine.owner), until_s)

    def _reserve(self, passed: Iterable[Class]) -> Hold | None:
        """Keep the node for the oldest of those whose turn it is, if it has waited long enough and has no node yet."""
        housed = {one.number for one in self._reservations}
        found = []
        for name in passed:
            homeless = (n for n in tasks.oldest(self.db, name, count=len(housed) + 1) if n not in housed)
            found += [(number, name) for number in homeless][:1]
        for number, name in sorted(found):
            created_at = tasks.created_at(self.db, number)
            if created_at is None:
                continue
            if created_at > self.now.wall - self.rules.reserve_after_s:
                return None  # and the others are younger
            signature = self._signature(name.signature)
            start, cpus = self._expected_start(signature), cpus_of(signature, self.offer.total.get("cpus"))
            if start is not None and usage.reserve(self.db, self.node, number, name.owner, cpus):
                return Hold(number, name, start - self.now.steady)
        return None

    def _expected_start(self, signature: Signature) -> float | None:
        """When the node's attempts leave room for such a task, on the steady clock."""
        margin_s = self.rules.deadline_margin_s
        return expected_start(signature, self.offer.free, [
            (None if deadline_at is None else deadline_at - margin_s, self._signature(one))
            for one, deadline_at in leases.ends_on(self.db, self.node)
        ])  # fmt: skip


def stand(
    db: Connection, task: tasks.Found, rules: Rules, now: Moment, *, competes: Callable[[Signature, str], bool]
) -> Stand:  # fmt: skip
    """Where a waiting task stands: its queue, its quota, who goes before it.

    ``competes`` says whether tasks of a signature and a queue could run where this one could.
    """
    running = leases.running(db)()
    load = Load((owner, queue, count) for owner, queue, count, _, _ in running)
    quotas = Quotas(queues.gates(db)(), rules.running_per_owner)
    groups, counts = tasks.waiting_groups(db), tasks.ahead(db, task)
    words = tasks.signatures(db, {*counts, *(signature for _, signature, _, _, _ in groups)})
    known = {signature: Signature.parse(text) for signature, text in words.items()}
    ahead = sum(count for signature, count in counts.items() if competes(known[signature], task.queue))
    waiting = {
        owner for queue, signature, _, owner, _ in groups
        if owner != task.owner_id and quotas.gives(queue) and quotas.full(owner, queue, load) is None
        and competes(known[signature], queue)
    }  # fmt: skip
    past = usage.of_owners(db, {*waiting, task.owner_id}, half_life_s=rules.half_life_s, now=now.wall)()
    share = shares(past, (Busy(owner, cpus, cpus * now.steady - starts) for owner, _, _, cpus, starts in running))
    mine = share.get(task.owner_id, 0.0)
    return Stand(
        task.id, task.queue, quotas.gives(task.queue), quotas.full(task.owner_id, task.queue, load), ahead,
        sum(share.get(owner, 0.0) < mine for owner in waiting),
    )  # fmt: skip

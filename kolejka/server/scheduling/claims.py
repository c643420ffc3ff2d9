"""Claims, heartbeats, results: where the words of nodes meet the database. Each function is one transaction.

A claim gives each task it takes a *lease*, a number that only grows. Heartbeat, result and release must show it. A
lease is good while its row stands in ``leases``; whoever ends the attempt (a result, the rescue, a release) removes the
row, so exactly one of them wins and every later word about that lease is a Conflict that changes nothing. A result that
is repeated word for word is answered the same again.

What a claim says of the node is true at the moment it was sent. Whatever the server gave the node since, it takes off
itself. A node's state is what its latest heartbeat said: a claim, which may be older, never changes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kolejka.common import node_image
from kolejka.common.errors import Conflict, InputError, KolejkaError, NotFound
from kolejka.common.limits import Limits
from kolejka.common.result import Outcome, Result
from kolejka.common.states import AttemptState, TaskState
from kolejka.common.task import Retry
from kolejka.server.scheduling.classes import Classes
from kolejka.server.scheduling.fairness import Quotas
from kolejka.server.scheduling.match import NOTHING_AHEAD, Ahead, Offer, take
from kolejka.server.scheduling.rescue import Loss, Next, Watched, after_loss, after_result, loss
from kolejka.server.scheduling.rules import Moment, Rules
from kolejka.server.scheduling.turn import Outlook, Taken, Turn
from kolejka.server.storage import blobs, events, leases, nodes, tasks
from kolejka.server.storage.base import CancelAsked, Connection, TaskWaiting
from kolejka.server.storage.leases import Held, OnNode
from kolejka.server.storage.nodes import LogWish, NodeWords

ON_ITS_WAY_S = 10.0
"""an answer to a claim that takes longer does not arrive"""
_RELEASED = "released"
_USUAL = Rules()


@dataclass(frozen=True)
class Claim:
    """A node's request: at most ``slots`` tasks of ``queues`` (none named: all) that fit its offer.

    ``ahead`` is what it may be given besides. The offer knows nothing of the leases ``unknown``: they were given while
    it was on its way. Where the node says of which it ``knows``, what other servers gave it meanwhile is seen as well.
    ``turn`` is the number that the claim was given when it arrived.
    """

    user_id: int
    words: NodeWords
    offer: Offer
    slots: int
    queues: frozenset[str] = frozenset()
    unknown: frozenset[int] = frozenset()
    knows: frozenset[int] | None = None
    turn: int = 0
    ahead: Ahead = NOTHING_AHEAD

    def missed(self, there: Iterable[OnNode], steady: float) -> list[OnNode]:
        """Of what runs on the node, what its offer does not know of. An answer that was on its way for too long got
        lost, and what it gave is never begun.
        """
        return [
            one for one in there
            if one.lease in self.unknown
            or (self.knows is not None and one.lease not in self.knows and steady - one.started_at < ON_ITS_WAY_S)
        ]  # fmt: skip


@dataclass(frozen=True)
class Given:
    """A task that was given, with the lease to run it."""

    lease: int
    task_id: str
    owner: str
    spec: dict[str, Any]
    deadline_s: float | None

    def to_json(self) -> dict[str, Any]:
        """The object form."""
        return dict(vars(self))


@dataclass(frozen=True)
class Claimed:
    """The answer to a claim. ``over`` = nothing will be given, however long it waits.

    ``offer`` is what the node turned out to offer, ``None`` for nothing at the moment. ``asked`` is what an admin asks
    of the node, ``log`` that lines of its log are wanted. ``held`` = a quota or a reservation keeps something back, so
    it is worth to look again soon, whoever is told of what ends.
    """

    given: tuple[Given, ...] = ()
    cancel: tuple[int, ...] = ()
    offer: Offer | None = None
    over: bool = False
    turn: int = 0
    asked: str | None = None
    log: LogWish | None = None
    held: bool = False


@dataclass(frozen=True)
class Beat:
    """The answer to a heartbeat: leases that are lost, and those whose tasks are to be stopped."""

    lost: tuple[int, ...]
    cancel: tuple[int, ...]
    asked: str | None = None
    log: LogWish | None = None


@dataclass(frozen=True)
class Rescued:
    """A lost attempt and what became of its task."""

    lease: int
    task_id: str
    node: str
    why: str
    then: Next


def claim(
    db: Connection, request: Claim, rules: Rules, classes: Classes, now: Moment, *, arrives: bool = True
) -> Claimed:
    """Give the node what fits it best. ``arrives`` = the node says it now, and did not just wait since it said it.

    NotAllowed when its name belongs to another user.
    """
    node = request.words.name
    if arrives:
        silent_before = now.wall - rules.heartbeat_s
        stands = nodes.heard(db, request.words, request.user_id, now.wall, silent_before=silent_before, claims=True)
    else:
        stands = nodes.stands(db, node)
    runs = leases.on(db, node)  # asked behind the lock, so it knows of every claim before this one
    asks = request.slots or request.ahead.slots
    outlook = Outlook.ask(db, request.offer, rules, classes, now) if asks else None
    standing = stands()
    turn = standing.claim if arrives else request.turn
    there = runs()
    cancel = tuple(one.lease for one in there if one.cancelled)
    if standing.claim != turn:
        return Claimed(cancel=cancel, over=True, turn=turn, asked=standing.asked)
    log = _tell_log(db, node, standing)
    if not standing.takes or node_image.is_older(standing.image, rules.minimum_image):
        return Claimed(cancel=cancel, over=True, turn=turn, asked=standing.asked, log=log)
    if any(one.exclusive for one in there):
        return Claimed(cancel=cancel, turn=turn, log=log)
    free, slots = request.offer.free, request.slots
    if outlook is not None and request.ahead.slots and not Quotas(outlook.gates(), rules.running_per_owner).any:
        free, slots = request.ahead.beside(free), slots + request.ahead.slots
    for one in request.missed(there, now.steady):
        free, slots = take(free, classes.signature(db, one.signature)), slots - 1
    offer = replace(request.offer, free=free, idle=request.offer.idle and not there)
    if slots <= 0:
        return Claimed(cancel=cancel, turn=turn, log=log)
    if outlook is None:
        return Claimed(cancel=cancel, offer=offer, turn=turn, log=log)
    taken = Turn(db, outlook, node, request.queues, offer, slots, rules, classes, now).take()
    given = _give(db, taken, node, rules, now)
    return Claimed(
        tuple(given), cancel, None if taken.waits else offer, turn=turn, log=log, held=taken.waits or taken.full
    )  # fmt: skip


def _tell_log(db: Connection, node: str, stands: nodes.Standing) -> LogWish | None:
    """What of its log is wanted of a node: it is told once, and again when whoever wants it asks again."""
    if stands.log is not None:
        nodes.log_told(db, node)
    return stands.log


def _give(db: Connection, taken: Taken, node: str, rules: Rules, now: Moment) -> list[Given]:
    """Begin attempts at tasks that were seen waiting, and are in hand, in this transaction."""
    chosen = taken.choices
    if not chosen:
        return []
    words = tasks.taken(db, [one.number for one in chosen])
    numbered = leases.attempts(db, [one.number for one in chosen], node, wall=now.wall)
    found, given = words(), numbered()
    deadlines = {}
    for number, one in found.items():
        time_s = one.spec.get("limits", {}).get("time")
        deadlines[number] = None if time_s is None else time_s + rules.deadline_margin_s
    leases.begin(
        db,
        [
            leases.Begun(
                given[one.number], one.number, one.name.owner, one.name.queue, taken.cpus(one),
                one.signature.exclusive, deadlines[one.number],
            )
            for one in chosen
        ],
        node, steady=now.steady,
    )  # fmt: skip
    tasks.run(db, given, node, now.wall)
    return [
        Given(given[number], one.spec["id"], one.owner, one.spec, deadlines[number])
        for number, one in ((choice.number, found[choice.number]) for choice in chosen)
    ]


def heartbeat(
    db: Connection, words: NodeWords, user_id: int, held: Collection[int], now: Moment, *, rules: Rules = _USUAL
) -> Beat:
    """Renew the leases a node says it holds; tell those it has lost and those whose tasks are to be stopped."""
    standing = nodes.heard(db, words, user_id, now.wall, silent_before=now.wall - rules.heartbeat_s)()
    kept = leases.renew(db, words.name, held, now.steady)
    return Beat(
        lost=tuple(lease for lease in held if lease not in kept),
        cancel=tuple(one.lease for one in leases.on(db, words.name)() if one.cancelled and one.lease in kept),
        asked=standing.asked,
        log=_tell_log(db, words.name, standing),
    )


@dataclass(frozen=True)
class Handed:
    """A result as a node hands it in: ``text`` is its JSON without the id. By ``digest`` a repeated one is known."""

    result: Result
    text: str
    digest: str

    @classmethod
    def of(cls, result: Result) -> Handed:
        """Made ready for ``accept``."""
        words = {name: value for name, value in result.to_json().items() if name != "id"}
        text = json.dumps(words)  # in the order in which it names its files
        return cls(result, text, hashlib.sha256(text.encode()).hexdigest())

    def with_id(self, task_id: str) -> str:
        """The JSON of the task's result."""
        return f'{{"id": {json.dumps(task_id)}, {self.text[1:]}'


def _show_lease(db: Connection, lease: int, user_id: int) -> Held:
    """The attempt behind a lease. NotFound when it is another user's, Conflict when there is none (any more)."""
    held = leases.take_in_hand(db, [lease]).get(lease) if lease < 1 << 62 else None
    return _check_lease(lease, held, user_id)


def _check_lease(lease: int, held: Held | None, user_id: int) -> Held:
    if held is None:
        raise Conflict(f"the lease {lease} is not held by anybody; throw its result away")
    if held.user_id != user_id:
        raise NotFound(f"there is no lease {lease}")
    return held


def accept(db: Connection, lease: int, user_id: int, handed: Handed, now: Moment) -> tuple[Held, str]:
    """Take a result: the attempt's, and the task's new state.

    Conflict when the lease was overtaken, NotFound when another user's node holds it, InputError when the result is
    another task's or refers to bytes that this node has not stored.
    """
    [answer] = accept_many(db, {lease: handed}, user_id, now).values()
    if isinstance(answer, KolejkaError):
        raise answer
    return answer


def accept_many(
    db: Connection, results: Mapping[int, Handed], user_id: int, now: Moment
) -> dict[int, tuple[Held, str] | KolejkaError]:
    """The same for many results by their leases: each is taken, or has the error for which it was not."""
    everything = leases.take_in_hand(db, [lease for lease in results if lease < 1 << 62])
    mine = {held.lease: held for held in everything.values() if held.user_id == user_id}
    wanted = {
        (held.number, entry.sha256) for lease, held in mine.items() for entry in results[lease].result.manifest.values()
    }  # fmt: skip
    sizes = blobs.sizes(db, wanted, user_id, now.wall)
    answers: dict[int, tuple[Held, str] | KolejkaError] = {}
    ends = []
    for lease, handed in results.items():
        try:  # whatever is wrong is found before anything is changed
            held = _check_lease(lease, everything.get(lease), user_id)
            end = _end(held, handed, sizes)
        except InputError as error:
            answers[lease] = error
        else:
            answers[lease] = held, end.state.value
            if held.state == AttemptState.RUNNING:
                ends.append(end)
    _record(db, ends, now)
    return answers


@dataclass(frozen=True)
class _End:
    """What a result that is taken comes to."""

    held: Held
    handed: Handed
    state: TaskState


def _end(held: Held, handed: Handed, sizes: blobs.Sizes) -> _End:
    """Whether a result is taken; one that was taken before is the same again."""
    lease, result = held.lease, handed.result
    if result.id not in {None, held.task_id}:
        raise InputError(f"the lease {lease} is for the task {held.task_id}", field="id")
    if held.state != AttemptState.RUNNING:
        if held.result_hash == handed.digest and held.task_state is not None:
            return _End(held, handed, TaskState(held.task_state))
        raise Conflict(f"the lease {lease} was overtaken; throw its result away")
    _check_manifest(held, result, sizes)
    retry = _retry(held.retry)
    then = after_result(result.outcome, retries=held.retries, retry=retry, cancelled=held.cancelled)
    return _End(held, handed, TaskState.WAITING if then is Next.WAIT else TaskState.DONE)


def _record(db: Connection, ends: Sequence[_End], now: Moment) -> None:
    """Store results that were taken: a statement for all of them, not for each."""
    leases.end(
        db,
        [
            leases.Ended(
                end.held.lease, AttemptState.DONE, end.handed.result.outcome.value, end.state.value,
                message=end.handed.result.message, result_hash=end.handed.digest,
            )
            for end in ends
        ],
        now.wall,
    )  # fmt: skip
    tasks.account(db, [(end.held, end.handed.result) for end in ends], now.wall)
    done = [end for end in ends if end.state is TaskState.DONE]
    outputs = [(end.held.number, file.sha256) for end in done for file in end.handed.result.manifest.values()]
    blobs.refer(db, outputs, "output")
    tasks.finish(
        db,
        [
            tasks.Ended(
                end.held.number, end.held.task_id, end.handed.result,
                end.handed.with_id(end.held.task_id),
            )
            for end in done
        ],
        now.wall,
    )  # fmt: skip
    for end in ends:
        if end.state is TaskState.WAITING:
            _wait_again(db, end.held, now, retries=end.held.retries + 1)


def _check_manifest(held: Held, result: Result, sizes: blobs.Sizes) -> None:
    """Every file of the result is a blob that the node stored or was given, of the size it says."""
    for name, entry in result.manifest.items():
        size = sizes.get(held.number, entry.sha256)
        if size is None:
            raise InputError(
                f"the blob {entry.sha256} was not uploaded; put it first", field=f"manifest.{name}", code="blob_missing"
            )
        if size != entry.size:
            raise InputError(f"the blob has {size} bytes, not {entry.size}", field=f"manifest.{name}.size")


def _retry(words: str | None) -> Retry:
    if words is None:
        return Retry()
    data = json.loads(words)
    return Retry(data["max"], tuple(data["on"]))


def _wait_again(db: Connection, held: Held, now: Moment, **columns: object) -> None:
    tasks.move_in_hand(
        db, held.number, TaskState.WAITING, now=now.wall, lease=None, node=None, started_at=None, **columns
    )
    db.announce(TaskWaiting(held.queue, held.signature, held.rank, held.owner_id, held.number))


def release(db: Connection, lease: int, user_id: int, message: str, now: Moment) -> tuple[Held, str]:
    """A node gives an attempt back that it has not started: no loss. Conflict when the lease was overtaken."""
    held = _show_lease(db, lease, user_id)
    if held.state != AttemptState.RUNNING:
        if held.outcome == _RELEASED and held.task_state is not None:
            return held, held.task_state
        raise Conflict(f"the lease {lease} was overtaken")
    state = TaskState.DONE if held.cancelled else TaskState.WAITING
    leases.end(db, [leases.Ended(lease, AttemptState.LOST, _RELEASED, state.value, message=message)], now.wall)
    if held.cancelled:
        _finish_without_result(
            db, held.number, held.task_id, Outcome.CANCELLED, message="cancelled before it started", now=now
        )
    else:
        _wait_again(db, held, now)
    return held, state.value


def _finish_without_result(
    db: Connection, number: int, task_id: str, outcome: Outcome, *, message: str, now: Moment
) -> None:
    limits = Limits.parse(tasks.spec(db, number).get("limits", {}))
    result = Result(outcome, id=task_id, limits=limits, message=message)
    tasks.finish(db, [tasks.Ended(number, task_id, result, json.dumps(result.to_json()))], now.wall)


def cancel(db: Connection, found: tasks.Found, now: Moment) -> None:
    """End a waiting task at once; ask for the end of a running one. Conflict when it is done, NotFound when it was
    deleted meanwhile.
    """
    taken = tasks.take_in_hand(db, found.number)
    if taken is None:
        raise NotFound(f"there is no task {found.id!r}")
    found = taken
    if found.state is TaskState.DONE:
        raise Conflict("this task is done; there is nothing to cancel")
    if found.state is TaskState.WAITING:
        _finish_without_result(
            db, found.number, found.id, Outcome.CANCELLED, message="cancelled before it started", now=now
        )
        return
    if not found.cancelled:
        db.run("UPDATE tasks SET cancel_at = ? WHERE number = ?", now.wall, found.number)
        events.record(db, [found.number], events.CANCELLING, now.wall)
    row = db.row("SELECT node FROM leases WHERE number = ?", found.number)
    if row is not None:
        db.announce(CancelAsked(row[0]))


def rescue(db: Connection, rules: Rules, now: Moment) -> list[Rescued]:
    """Take back every attempt on which a clock has run out. Any number of servers may do so at the same time."""
    rescued = []
    silent_before = now.steady - rules.heartbeat_s
    for lease, heartbeat_at, deadline_at in leases.watched(db, silent_before=silent_before, now=now.steady):
        why = loss(Watched(heartbeat_at, deadline_at), now=now.steady, heartbeat_s=rules.heartbeat_s)
        if why is not None:
            rescued.append(_take_back(db, leases.take_in_hand(db, [lease])[lease], why, rules, now))
    return rescued


def _take_back(db: Connection, held: Held, why: Loss, rules: Rules, now: Moment) -> Rescued:
    losses = held.losses + 1
    then = after_loss(losses=losses, cap=rules.attempts, retry=_retry(held.retry), cancelled=held.cancelled)
    state = TaskState.WAITING if then is Next.WAIT else TaskState.DONE
    leases.end(db, [leases.Ended(held.lease, AttemptState.LOST, None, state.value, message=why.value)], now.wall)
    if then is Next.WAIT:
        _wait_again(db, held, now, losses=losses)
    elif then is Next.CANCELLED:
        _finish_without_result(
            db, held.number, held.task_id, Outcome.CANCELLED, message=f"cancelled; then {why} ({held.node})", now=now
        )
    else:
        db.run("UPDATE tasks SET losses = ? WHERE number = ?", losses, held.number)
        history = [entry for entry in leases.history(db, held.number) if entry["state"] == AttemptState.LOST]
        told = "; ".join(f"{entry['node']}: {entry['message']}" for entry in history[-5:])
        count = f"{losses} attempts were" if losses > 1 else "an attempt was"
        _finish_without_result(db, held.number, held.task_id, Outcome.ERROR, message=f"{count} lost ({told})", now=now)
    return Rescued(held.lease, held.task_id, held.node, why.value, then)

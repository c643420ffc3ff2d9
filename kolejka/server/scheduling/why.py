"""Why a task waits, in words."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from kolejka.common.limits import LIMITS
from kolejka.server.scheduling.match import Offer, Signature, available, can_ever_run, fits_now, lacking, missing_tags


@dataclass(frozen=True)
class Machine:
    """A node as the waiting see it. ``state`` is active, draining, quarantined, silent or outdated, ``remark`` what
    more there is to say of that; ``kept_for`` is the task that it is reserved for. ``queues`` are those that it takes
    tasks from (none named: all), ``full`` says that it runs as many tasks as it may, whatever else is free.
    """

    name: str
    state: str
    offer: Offer
    kept_for: str | None = None
    remark: str = ""
    queues: Collection[str] = ()
    full: bool = False

    def serves(self, queue: str) -> bool:
        """Whether it takes tasks from this queue."""
        return not self.queues or queue in self.queues

    def can_ever_run(self, signature: Signature, queue: str) -> bool:
        """Whether such a task of this queue could run there, if the node was free."""
        return self.serves(queue) and self.fits(signature)

    def fits(self, signature: Signature) -> bool:
        """Whether such a task could run there, whatever its queue."""
        return can_ever_run(signature, self.offer.tags, self.offer.total)


@dataclass(frozen=True)
class Stand:
    """Where a task stands among the waiting.

    ``gives`` is whether its queue gives tasks, ``quota`` the ceiling that is reached, in words. ``ahead`` counts the
    tasks of its owner in its queue that go before it, ``owners`` the owners whose share is smaller and who have tasks
    waiting; both leave out what could not run on any of the nodes that could run this task: it is passed over.
    """

    task_id: str = ""
    queue: str = "default"
    gives: bool = True
    quota: str | None = None
    ahead: int = 0
    owners: int = 0


def reasons(signature: Signature, machines: Sequence[Machine], stand: Stand) -> list[str]:
    """Everything that stands between a waiting task and a node, the heaviest first."""
    found = [*_of_queue(stand), *_of_nodes(signature, machines, stand)]
    return found or ["a node that fits it is about to take it"]


def _of_queue(stand: Stand) -> list[str]:
    if not stand.gives:
        return [f"the queue {stand.queue!r} is paused; an admin resumes it"]
    return [stand.quota] if stand.quota is not None else []


def _of_nodes(signature: Signature, machines: Sequence[Machine], stand: Stand) -> list[str]:
    if not machines:
        return ["no node has ever connected; start a foreman"]
    active = [m for m in machines if m.state == "active"]
    if not active:
        return [f"no node takes tasks now: {_states(machines)}"]
    if not any(m.serves(stand.queue) for m in active):
        serving = [m for m in machines if m.serves(stand.queue)]
        more = f": {_states(serving)}" if serving else ""
        return [f"no active node takes tasks from the queue {stand.queue!r}{more}"]
    others = [m for m in active if not m.serves(stand.queue) and m.fits(signature)]
    machines = [m for m in machines if m.serves(stand.queue)]
    active = [m for m in active if m.serves(stand.queue)]
    able = [m for m in machines if m.can_ever_run(signature, stand.queue)]
    if able and not any(m.state == "active" for m in able):
        return [f"the nodes that could run it take no tasks now: {_states(able)}"]
    if not able and others:
        names = ", ".join(m.name for m in others[:5])
        return [f"the nodes that could run it take no tasks from the queue {stand.queue!r}: {names}"]
    impossible = _impossible(signature, active)
    return impossible or _busy(signature, [m for m in able if m.state == "active"], stand)


def _states(machines: Sequence[Machine]) -> str:
    return ", ".join(f"{m.name} is {m.state}" + (f" ({m.remark})" if m.remark else "") for m in machines[:5])


def _impossible(signature: Signature, active: Sequence[Machine]) -> list[str]:
    """Why no active node could ever run it; nothing when one could."""
    for tag in signature.requires:
        if not any(tag in m.offer.tags for m in active):
            return [f"no active node has the tag {tag!r}"]
    tagged = [m for m in active if not missing_tags(signature, m.offer.tags)]
    if not tagged:
        return [f"no single node has all the tags {', '.join(signature.requires)}"]
    if any(not lacking(signature, m.offer.total) for m in tagged):
        return []
    found = []
    for name in signature.needs:
        most = max(available(m.offer.total, name) for m in tagged)
        if signature.needs[name] > most:
            limit = LIMITS[name]
            if limit.unit.value == "flag":
                found.append(f"{name} is asked for, and no node with its tags allows it")
            else:
                found.append(
                    f"{name} of {limit.show(signature.needs[name])} is more than any node with its tags has "
                    f"(the most is {limit.show(most)})"
                )
    return found or ["no single node has everything it asks for at once"]


def _has_room(signature: Signature, machine: Machine) -> bool:
    idle = machine.offer.idle or not signature.exclusive
    return idle and not machine.full and fits_now(signature, machine.offer.free)


def _busy(signature: Signature, able: Sequence[Machine], stand: Stand) -> list[str]:
    """What it waits for where it could run: others, reservations, room."""
    found = []
    if stand.ahead:
        count = f"{stand.ahead} {'task goes' if stand.ahead == 1 else 'tasks go'}"
        found.append(f"{count} before it in the queue {stand.queue!r}")
    if stand.owners:
        found.append(f"{stand.owners} {'owner has' if stand.owners == 1 else 'owners have'} used less and go first")
    mine = [m.name for m in able if m.kept_for == stand.task_id and m.kept_for]
    if mine:
        return [*found, f"the node {mine[0]} is reserved for it and waits until there is room"]
    kept = [m for m in able if m.kept_for is not None]
    others = [m for m in able if m.kept_for is None]
    if kept:
        words = ", ".join(f"{m.name} for the task {m.kept_for}" for m in kept[:5])
        found.append(f"nodes are reserved for tasks that waited longer: {words}")
    if not any(_has_room(signature, m) for m in others):
        names = ", ".join(m.name for m in others[:5])
        if names:
            found.append(
                f"it must be alone on its node, and {names} is not idle" if signature.exclusive
                else f"the nodes that fit it are busy: {names}"
            )  # fmt: skip
    return found

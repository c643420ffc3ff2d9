"""Why a task waits, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kolejka.common.limits import LIMITS
from kolejka.server.scheduling.match import Offer, Signature, available, fits_now, lacking, missing_tags


@dataclass(frozen=True)
class Machine:
    """A node as the waiting see it. ``state`` is active, draining, quarantined or silent."""

    name: str
    state: str
    offer: Offer


def reasons(signature: Signature, machines: Sequence[Machine], *, ahead: int, queue: str) -> list[str]:
    """Everything that stands between a waiting task and a node, the heaviest first.

    ``ahead`` counts the tasks in its queue that go before it.
    """
    if not machines:
        return ["no node has ever connected; start a foreman"]
    active = [m for m in machines if m.state == "active"]
    if not active:
        states = ", ".join(f"{m.name} is {m.state}" for m in machines[:5])
        return [f"no node takes tasks now: {states}"]
    for tag in signature.requires:
        if not any(tag in m.offer.tags for m in active):
            return [f"no active node has the tag {tag!r}"]
    tagged = [m for m in active if not missing_tags(signature, m.offer.tags)]
    if not tagged:
        return [f"no single node has all the tags {', '.join(signature.requires)}"]
    possible = [m for m in tagged if not lacking(signature, m.offer.total)]
    if not possible:
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
    found = []
    ready = [m for m in possible if fits_now(signature, m.offer.free) and (m.offer.idle or not signature.exclusive)]
    if ahead:
        found.append(f"{ahead} {'task goes' if ahead == 1 else 'tasks go'} before it in the queue {queue!r}")
    if not ready:
        names = ", ".join(m.name for m in possible[:5])
        found.append(
            f"it must be alone on its node, and {names} is not idle" if signature.exclusive
            else f"the nodes that fit it are busy: {names}"
        )  # fmt: skip
    return found or ["a node that fits it is about to take it"]

"""Big and exclusive tasks get their turn: a node is reserved for one, and smaller tasks fill the time until then.

The rule. When it is a task's turn on a node that could run it, were it less busy, and the task has waited
``reserve_after``, the node is reserved for it, if it can be told when the node will be free enough: when those that run
there have ended by their time limits. Of several such tasks the oldest gets the node. A node is reserved for one task,
and a task has one node reserved.

What it gives. From the reservation on, nothing is given on the node that could still run at the expected start, and the
task goes first. So it starts, on this node or sooner on another, at the latest when the attempts that ran at the
reservation have reached their time limits: the expected start never moves away. An attempt that overruns its limit is
ended by its hard deadline.
"""

from __future__ import annotations

from collections.abc import Iterable

from kolejka.common.limits import Limits
from kolejka.server.scheduling.choose import fits
from kolejka.server.scheduling.match import SPLIT, Signature


def give_back(free: Limits, signature: Signature) -> Limits:
    """What is free when one such task has ended."""
    more = {n: free.values[n] + signature.needs[n] for n in SPLIT if n in signature.needs and n in free.values}
    return free.replace(**more) if more else free


def expected_start(
    signature: Signature, free: Limits, running: Iterable[tuple[float | None, Signature]]
) -> float | None:
    """When a node will be free enough for a task, if each attempt there ends at its time at the latest.

    ``running`` are the ends and signatures of its attempts. ``None`` when that cannot be told.
    """
    ends = sorted((float("inf") if end is None else end, place, one) for place, (end, one) in enumerate(running))
    left = len(ends)
    for end, _, one in ends:
        free, left = give_back(free, one), left - 1
        if fits(signature, free, idle=not left):
            return end if end != float("inf") else None
    return None

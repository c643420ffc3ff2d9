"""What fits on this node: a pure decision.

A node makes an ``Offer``: amounts of every limit, CPUs and GPUs by name, and how many tasks may run at one time. Every
running task holds a ``Placement``, its part of the offer. ``place`` answers whether one more task fits beside those,
and where; ``free`` says what is left. Both follow the declaration of limits: a ``split`` amount is divided, an ``each``
amount bounds every task alone, an ``image`` amount is taken once for each image.

CPUs are handed out by number, so no two tasks ever share one. They are chosen by one rule, first among memory nodes,
then among the physical cores of a node: *the smallest group that holds all that is wanted; where none does, the
biggest, and go on with the rest*. So the hardware threads of a core stay together, a task stays on one memory node
where it can, a single-CPU task takes the left-over thread of a core before it breaks up a whole one.

A limit that nobody set would be unlimited, and unlimited cannot be shared. Such a task gets one CPU, neither swap nor
GPUs, and of everything else all that is free at that moment. (The server sets defaults, so this is rare.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from kolejka.common.limits import LIMITS, Limits, Share, Value

UNSET: Final[dict[str, Value]] = {"cpus": 1, "swap": 0, "gpus": 0}
"""What a task takes of a split amount when it did not say; everything else that is free where not listed."""


@dataclass(frozen=True, order=True)
class Cpu:
    """One logical CPU. ``core`` and ``node`` name its physical core and its memory node; equal = the same one."""

    number: int
    core: int
    node: int = 0


@dataclass(frozen=True)
class Offer:
    """What the node offers. ``total`` holds an amount for every limit that is bounded here, ``cpus`` included."""

    total: Limits
    cpus: tuple[Cpu, ...]
    slots: int
    gpus: tuple[str, ...] = ()
    """by UUID; as many as ``total`` says"""


@dataclass(frozen=True)
class Wish:
    """What one task wants, its limits merged with the node's ceilings."""

    limits: Limits
    exclusive: bool = False
    image: str | None = None


@dataclass(frozen=True)
class Placement:
    """What one task holds: its part of every split amount, and its CPUs and GPUs."""

    taken: Limits
    cpuset: tuple[int, ...]
    exclusive: bool = False
    image: str | None = None
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class Misfit:
    """Why a task does not fit now. ``limit`` is the first limit in the way, or ``None``."""

    message: str
    limit: str | None = None


@dataclass(frozen=True)
class Free:
    """What is left of an offer. ``idle`` = nothing runs, so a task that wants the node for itself fits too."""

    limits: Limits
    cpus: tuple[Cpu, ...] = field(repr=False)
    slots: int
    idle: bool


@dataclass(frozen=True)
class Ahead:
    """What may be taken on beyond what is free, since short tasks make room for it in a moment."""

    limits: Limits
    slots: int


def ahead(offer: Offer, ended: Sequence[Placement], waiting: Sequence[Wish]) -> Ahead:
    """As much as short tasks held that ``ended`` lately, less what waits here for its room already."""
    amounts: dict[str, Value] = {}
    for name in offer.total.values:
        if LIMITS[name].share is Share.SPLIT:
            held = sum(placement.taken.get(name) or 0 for placement in ended)
            amounts[name] = max(0, held - sum(wish.limits.get(name) or UNSET.get(name, 0) for wish in waiting))
    return Ahead(Limits(amounts), max(0, len(ended) - len(waiting)))


def free(offer: Offer, placements: Iterable[Placement]) -> Free:
    """What ``placements`` leave of the offer. Nothing is left beside a task that has the node for itself."""
    held = list(placements)
    taken_cpus = {number for placement in held for number in placement.cpuset}
    alone = any(placement.exclusive for placement in held)
    cpus = () if alone else tuple(cpu for cpu in offer.cpus if cpu.number not in taken_cpus)
    left: dict[str, Value | None] = {}
    for name, total in offer.total.values.items():
        share = LIMITS[name].share
        if name == "cpus":
            left[name] = len(cpus)
        elif share is Share.SPLIT:
            left[name] = 0 if alone else total - sum(placement.taken.get(name) or 0 for placement in held)
        elif share is Share.IMAGE:
            left[name] = total - _images_taken(name, held, beside=None)
    slots = 0 if alone else max(0, offer.slots - len(held))
    return Free(offer.total.replace(**left), cpus, slots, idle=not held)


def place(offer: Offer, placements: Iterable[Placement], wish: Wish) -> Placement | Misfit:
    """The part of the offer that this task gets beside ``placements``, or why it does not fit now."""
    held = list(placements)
    left = free(offer, held)
    if any(placement.exclusive for placement in held):
        return Misfit("a task has the node for itself")
    if wish.exclusive and held:
        return Misfit("the task wants the node for itself, and others run")
    if left.slots < 1:
        return Misfit(f"all {offer.slots} slots are taken")
    taken: dict[str, Value] = {}
    for name, amount in left.limits.values.items():
        limit = LIMITS[name]
        wanted = wish.limits.get(name)
        if limit.share is Share.SPLIT:
            taken[name] = UNSET.get(name, amount) if wanted is None else wanted
            short = taken[name] > amount or (wanted is None and name not in UNSET and amount < limit.minimum)
        elif limit.share is Share.IMAGE:
            taken[name] = wanted or 0
            short = taken[name] > offer.total.values[name] - _images_taken(name, held, beside=wish.image)
        else:
            short = wanted is not None and wanted > amount
        if short:
            shown = limit.show(taken.get(name, wanted or 0))
            return Misfit(f"the task wants {shown} of {name}, and {limit.show(amount)} is free", name)
    cpuset = choose_cpus(left.cpus, int(taken.get("cpus", 1)))
    taken_gpus = {gpu for placement in held for gpu in placement.gpus}
    gpus = tuple(gpu for gpu in offer.gpus if gpu not in taken_gpus)[: int(taken.get("gpus", 0))]
    return Placement(Limits(taken), cpuset, wish.exclusive, wish.image, gpus)


def choose_cpus(cpus: Sequence[Cpu], count: int) -> tuple[int, ...]:
    """Numbers of ``count`` of ``cpus``, near to one another. ValueError where there are fewer."""
    if count > len(cpus):
        raise ValueError(f"{count} of {len(cpus)} CPUs")
    chosen: list[Cpu] = []
    for on_node in _nearest(cpus, count, lambda cpu: cpu.node):
        for on_core in _nearest(on_node[0], on_node[1], lambda cpu: cpu.core):
            chosen += sorted(on_core[0])[: on_core[1]]
    return tuple(sorted(cpu.number for cpu in chosen))


def _nearest(cpus: Sequence[Cpu], count: int, group: Callable[[Cpu], int]) -> list[tuple[list[Cpu], int]]:
    """How many to take from which group: the smallest that holds all, else the biggest and go on."""
    groups: dict[int, list[Cpu]] = {}
    for cpu in cpus:
        groups.setdefault(group(cpu), []).append(cpu)
    plan: list[tuple[list[Cpu], int]] = []
    while count > 0:
        holding = [key for key in groups if len(groups[key]) >= count]
        key = (
            min(holding, key=lambda k: (len(groups[k]), k))
            if holding
            else max(groups, key=lambda k: (len(groups[k]), -k))
        )
        members = groups.pop(key)
        part = min(count, len(members))
        plan.append((members, part))
        count -= part
    return plan


def _images_taken(name: str, held: Sequence[Placement], *, beside: str | None) -> Value:
    """The amount that images other than ``beside`` take, each image once."""
    by_image: dict[str, Value] = {}
    for placement in held:
        if placement.image is not None and placement.image != beside:
            by_image[placement.image] = max(by_image.get(placement.image, 0), placement.taken.get(name) or 0)
    return sum(by_image.values())

"""Does a node fit a task?

What a task asks of a node is its *signature*: the tags it requires, whether it must be alone, and how much it needs of
what nodes have. Tasks with equal signatures form one class, so a node is compared with classes, not with tasks, and a
class that does not fit is skipped as a whole, however many tasks wait in it.

A limit takes part when it is an amount a node *has* (shared by splitting, or by image, and of the others the GPUs'
memory and the network). Limits of time and of output do not: every node can hold them.
An amount that a node does not state is not bounded there, except GPUs: who states none has none.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Self

from kolejka.common.limits import LIMITS, Limits, Share, Value
from kolejka.common.task import Task

MATCHED: Final = tuple(
    limit.name for limit in LIMITS.values() if limit.share is not Share.EACH or limit.name in {"gpu_memory", "network"}
)
"""The limits that decide where a task can run."""
SPLIT: Final = tuple(name for name in MATCHED if LIMITS[name].share is Share.SPLIT)
MOST: Final = 1000
"""tasks that a node is given at one time"""
_NONE_UNLESS_STATED: Final = frozenset({"gpus", "gpu_memory"})


@dataclass(frozen=True)
class Ahead:
    """What a node may be given besides what is free: short tasks make room for it in a moment."""

    free: Limits = field(default_factory=Limits)
    slots: int = 0

    def beside(self, free: Limits) -> Limits:
        """What is free or will be in a moment, of what tasks divide among themselves."""
        values = self.free.values
        return free.replace(**{n: free.values[n] + values[n] for n in SPLIT if n in free.values and n in values})


NOTHING_AHEAD: Final = Ahead()


@dataclass(frozen=True)
class Signature:
    """What a class of tasks asks of a node. ``needs`` leaves out zeros: whoever needs nothing fits everywhere."""

    requires: tuple[str, ...] = ()
    exclusive: bool = False
    needs: Mapping[str, Value] = field(default_factory=dict)

    @classmethod
    def of(cls, task: Task) -> Signature:
        """The signature of a task whose limits are final."""
        needs = {name: value for name, value in task.limits.values.items() if value and name in MATCHED}
        return _one(tuple(sorted(set(task.requires))), task.exclusive, tuple(needs), *needs.values())

    @classmethod
    def parse(cls, words: str) -> Self:
        """Back from ``words``."""
        data: dict[str, Any] = json.loads(words)
        return cls(tuple(data["requires"]), data["exclusive"], data["needs"])

    @cached_property
    def words(self) -> str:
        """The canonical text: equal for equal signatures."""
        data = {"requires": self.requires, "exclusive": self.exclusive, "needs": dict(self.needs)}
        return json.dumps(data, sort_keys=True, separators=(",", ":"))

    @cached_property
    def id(self) -> int:
        """A number for the database that derives from ``words`` alone: 63 bits of its SHA-256."""
        return int.from_bytes(hashlib.sha256(self.words.encode()).digest()[:8]) >> 1


@functools.lru_cache(maxsize=1024, typed=True)
def _one(requires: tuple[str, ...], exclusive: bool, names: tuple[str, ...], *values: Value) -> Signature:
    """The same signature for the same words: most tasks ask what one before them asked, and ``id`` is found once."""
    return Signature(requires, exclusive, dict(zip(names, values, strict=True)))


@dataclass(frozen=True)
class Offer:
    """What a node is (``tags``, ``total``) and what is free on it now (``free``; ``idle`` when nothing runs)."""

    tags: frozenset[str] = frozenset()
    total: Limits = field(default_factory=Limits)
    free: Limits = field(default_factory=Limits)
    idle: bool = True


def available(limits: Limits, name: str) -> float:
    """How much of a limit there is."""
    value = limits.get(name)
    if value is None:
        return 0 if name in _NONE_UNLESS_STATED else float("inf")
    return value


def missing_tags(signature: Signature, tags: Iterable[str]) -> tuple[str, ...]:
    """The required tags that a node lacks."""
    return tuple(sorted(set(signature.requires) - set(tags)))


def lacking(signature: Signature, amounts: Limits, names: Iterable[str] = MATCHED) -> tuple[str, ...]:
    """The limits of which a task needs more than ``amounts`` has."""
    return tuple(n for n in names if n in signature.needs and signature.needs[n] > available(amounts, n))


def can_ever_run(signature: Signature, tags: frozenset[str], total: Limits) -> bool:
    """Whether the node could run such a task when nothing else ran there."""
    return tags.issuperset(signature.requires) and not lacking(signature, total)


def fits_now(signature: Signature, free: Limits) -> bool:
    """Whether the free amounts hold one more such task."""
    return not lacking(signature, free, SPLIT)


def how_many(signature: Signature, free: Limits) -> int:
    """How many such tasks the free amounts hold together, where they hold one; MOST where nothing bounds it."""
    bounds = [available(free, name) / signature.needs[name] for name in SPLIT if name in signature.needs]
    return 1 if signature.exclusive else int(min([*bounds, MOST]))


def take(free: Limits, signature: Signature) -> Limits:
    """What stays free beside one such task."""
    left = {n: free.values[n] - signature.needs[n] for n in SPLIT if n in signature.needs and n in free.values}
    return free.replace(**left) if left else free


def wants(signature: Signature, offer: Offer) -> bool:
    """Whether the node would take such a task at once."""
    return (
        (offer.idle or not signature.exclusive)
        and can_ever_run(signature, offer.tags, offer.total)
        and fits_now(signature, offer.free)
    )

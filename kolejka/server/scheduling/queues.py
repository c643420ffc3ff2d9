"""What a queue allows: decided from values.

A queue is a named policy. ``open`` takes tasks and gives them to nodes; ``paused`` takes them and gives none;
``draining`` gives what it has and takes none. Its *members* may put tasks (nobody named: everybody may; an admin
always). Limits merge in one order: the task's own, else the queue's default, else the server's default; then the lower
of that and the ceilings of queue and server.

``running`` and ``running_per_owner`` are ceilings on tasks that run at one time: of the queue, and of one owner in it.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final, Self

from kolejka.common.errors import Conflict, InputError, NotAllowed
from kolejka.common.limits import Limits, limits_schema
from kolejka.common.schema import Field, check, object_schema
from kolejka.common.task import QUEUE_PATTERN, Task

RUNTIMES: Final = ("sandbox", "docker")
NO_IMAGE: Final = "none"
"""The pattern that stands for tasks without an image."""
RUNTIME_TAG: Final = "runtime:"


class QueueState(enum.StrEnum):
    """What a queue does."""

    OPEN = "open"
    PAUSED = "paused"
    DRAINING = "draining"


_COUNT: Final = {"type": ["integer", "null"], "minimum": 0, "maximum": 10**9}
_WORDS: Final = {"type": "array", "maxItems": 1000, "uniqueItems": True}
_LIMITS: Final = {key: value for key, value in limits_schema().items() if key != "description"}
FIELDS: Final = (
    Field("state", {"enum": [state.value for state in QueueState]},
          "open; paused = takes tasks and gives none; draining = gives what it has and takes none"),
    Field("members", {**_WORDS, "items": {"type": "string", "minLength": 1, "maxLength": 64}},
          "users who may put tasks; none named = everybody"),
    Field("images", {**_WORDS, "items": {"type": "string", "minLength": 1, "maxLength": 512}},
          "patterns (`*`, `?`) of which an image must match one, `none` for tasks without an image; empty = any"),
    Field("runtimes", {**_WORDS, "items": {"enum": list(RUNTIMES)}},
          "runtimes that may run its tasks; empty = any"),
    Field("defaults", _LIMITS, "limits of tasks that set none of their own"),
    Field("ceilings", _LIMITS, "limits that no task of the queue exceeds"),
    Field("running", _COUNT, "how many of its tasks run at one time at most; null = any number"),
    Field("running_per_owner", _COUNT, "how many of one owner's tasks run in it at one time at most"),
    Field("retention_s", {"type": ["number", "null"], "minimum": 0, "maximum": 3650 * 86400},
          "seconds for which done tasks and their results are kept; null = until they are deleted"),
)  # fmt: skip
"""The one declaration of a queue's policy: schema, checks, columns and the reference derive from it."""
POLICY_SCHEMA: Final = object_schema(FIELDS)
NAME_SCHEMA: Final = {"type": "string", "pattern": QUEUE_PATTERN}


@dataclass(frozen=True)
class Queue:
    """A queue and its policy."""

    name: str
    state: str = QueueState.OPEN.value
    members: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()
    defaults: Limits = field(default_factory=Limits)
    ceilings: Limits = field(default_factory=Limits)
    running: int | None = None
    running_per_owner: int | None = None
    retention_s: float | None = None

    @classmethod
    def parse(cls, name: str, data: Mapping[str, Any]) -> Self:
        """A queue from the words of an admin. InputError names the field."""
        check({"name": name}, object_schema({"name": NAME_SCHEMA}))
        words = dict(data)
        for place in ("defaults", "ceilings"):
            try:
                words[place] = Limits.parse(words.get(place, {}))
            except InputError as error:
                raise error.within(place, ".") from None
        check(data, POLICY_SCHEMA)
        for place in ("members", "images", "runtimes"):
            words[place] = tuple(words.get(place, ()))
        return cls(name, **words)

    def to_json(self) -> dict[str, Any]:
        """The object form: everything, whether it was set or not."""
        shown = dict(vars(self))
        for place in ("members", "images", "runtimes"):
            shown[place] = list(shown[place])
        for place in ("defaults", "ceilings"):
            shown[place] = shown[place].to_json()
        return shown

    def changed(self, data: Mapping[str, Any]) -> Self:
        """A copy in which the fields of ``data`` are as they say. InputError names the field."""
        policy = {key: value for key, value in self.to_json().items() if key != "name"}
        return type(self).parse(self.name, {**policy, **data})

    @classmethod
    def from_row(cls, row: Iterable[Any]) -> Self:
        """A queue from its columns: the name, then those of ``FIELDS`` in their order."""
        name, *values = row
        words = dict(zip(COLUMNS, values, strict=True))
        for place in ("members", "images", "runtimes"):
            words[place] = tuple(json.loads(words[place]))
        for place in ("defaults", "ceilings"):
            words[place] = Limits(json.loads(words[place]))
        return cls(name, **words)

    def to_row(self) -> list[Any]:
        """The columns' values, in the order of ``FIELDS``."""
        shown = self.to_json()
        values = [shown[column] for column in COLUMNS]
        return [json.dumps(value) if isinstance(value, list | dict) else value for value in values]

    @property
    def shapes(self) -> bool:
        """Whether a task may leave this queue's door with other words than it came."""
        return bool(self.defaults or self.ceilings or len(self.runtimes) == 1)


COLUMNS: Final = tuple(entry.name for entry in FIELDS)


def admit(queue: Queue, task: Task, *, user: str, admin: bool) -> None:
    """Whether this user may put this task here. NotAllowed, Conflict name the field that is in the way."""
    if queue.members and user not in queue.members and not admin:
        raise NotAllowed(f"the queue {queue.name!r} has members, and {user!r} is none; ask an admin", field="queue")
    if queue.state == QueueState.DRAINING:
        raise Conflict(f"the queue {queue.name!r} is draining and takes no tasks; put it to another", field="queue")
    if queue.images and not _image_allowed(task.image, queue.images):
        what = "tasks without an image" if task.image is None else f"the image {task.image!r}"
        raise NotAllowed(
            f"the queue {queue.name!r} does not allow {what}; it allows {', '.join(queue.images)}", field="image"
        )
    if queue.runtimes:
        allowed = ", ".join(queue.runtimes)
        if task.image is None and "sandbox" not in queue.runtimes:
            raise NotAllowed(
                f"the queue {queue.name!r} runs tasks by {allowed} only, which needs an image; name one", field="image"
            )
        for tag in task.requires:
            if tag.startswith(RUNTIME_TAG) and tag.removeprefix(RUNTIME_TAG) not in queue.runtimes:
                raise NotAllowed(f"the queue {queue.name!r} runs tasks by {allowed} only, not by {tag}",
                                 field="requires")  # fmt: skip


def _image_allowed(image: str | None, patterns: Iterable[str]) -> bool:
    if image is None:
        return NO_IMAGE in patterns
    return any(fnmatchcase(image, pattern) for pattern in patterns if pattern != NO_IMAGE)


def shape(task: Task, queue: Queue | None, *, defaults: Limits, ceilings: Limits) -> Task:
    """The task with its final limits; with the tag of the queue's only runtime, so that no node takes another."""
    if queue is None:
        return task.replace(limits=task.limits.with_defaults(defaults).merge(ceilings))
    limits = task.limits.with_defaults(queue.defaults).with_defaults(defaults).merge(queue.ceilings, ceilings)
    tag = RUNTIME_TAG + queue.runtimes[0] if len(queue.runtimes) == 1 else None
    requires = (*task.requires, tag) if tag is not None and tag not in task.requires else task.requires
    return task.replace(limits=limits, requires=requires)

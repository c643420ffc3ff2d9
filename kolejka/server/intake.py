"""Putting a task: what the server makes of a spec before it accepts it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from kolejka.common.errors import InputError, NotAllowed
from kolejka.common.limits import Limits
from kolejka.common.task import Retry, Task
from kolejka.server.auth.roles import Role
from kolejka.server.auth.tokens import Caller
from kolejka.server.calling import Hosts
from kolejka.server.scheduling.match import Signature
from kolejka.server.scheduling.queues import admit, shape
from kolejka.server.storage import blobs, callbacks, queues, tasks
from kolejka.server.storage.base import Connection
from kolejka.server.storage.tasks import NewTask

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: nothing that reads like something else


def new_id(now: float) -> str:
    """A task's id: 26 letters and digits that sort by time (48 bits of milliseconds, 80 random bits)."""
    value = (int(now * 1000) << 80) | secrets.randbits(80)
    return "".join(_ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))


def put_at(task_id: str) -> float:
    """When the task of this id was put."""
    value = 0
    for letter in task_id:
        value = value << 5 | _ALPHABET.index(letter)
    return (value >> 80) / 1000


@dataclass(frozen=True)
class Intake:
    """A spec that was accepted as such, checked as far as it can be without the database.

    ``task`` and ``signature`` are final where its queue says nothing of limits; ``asked`` is what the client said.
    """

    task: Task
    signature: Signature
    references: dict[str, str]
    """name → blob"""
    asked: Task
    defaults: Limits
    ceilings: Limits


def consider(task: Task, *, defaults: Limits, ceilings: Limits, hosts: Hosts | None = None) -> Intake:
    """Make a client's spec final. InputError names what a server cannot accept."""
    if task.id is not None:
        raise InputError("the server assigns the id; leave it out", field="id")
    if task.callback_url is not None:
        (hosts or Hosts()).target(task.callback_url)
    references = {}
    for name, file in task.files.items():
        if file.path is not None:
            raise InputError(
                "a local path means nothing to the server; upload the file and give its reference, or its content",
                field=f"files.{name}",
            )
        if file.reference is not None:
            references[name] = file.reference
    shaped = shape(task, None, defaults=defaults, ceilings=ceilings)
    return Intake(shaped, Signature.of(shaped), references, task, defaults, ceilings)


class Door:
    """Tasks that one caller puts in one transaction. ``admit`` each, then ``close``.

    What it has to know of the database it asks once, not for each task.
    """

    def __init__(
        self, db: Connection, intakes: Collection[Intake], caller: Caller, now: float, *, keys: Collection[str] = ()
    ) -> None:
        self._db, self._caller, self._now = db, caller, now
        known = tasks.ids_by_keys(db, caller.user_id, keys)
        policies = queues.by_names(db, {intake.task.queue for intake in intakes})
        self._known, self._queues = known(), policies()
        calls = any(intake.task.callback_url is not None for intake in intakes)
        self._has_secret = calls and callbacks.has_secret(db, caller.user_id)
        shas = {sha for intake in intakes for sha in intake.references.values()}
        blobs.use(db, shas, now)  # first: from here on none of them goes
        self._readable = blobs.readable_among(db, shas, caller.uploads)
        self._admitted: list[NewTask] = []

    def admit(self, intake: Intake, key: str | None) -> tuple[str, dict[str, Any] | None]:
        """Accept a task: its id, and its spec when it is new (it is not when the caller's idempotency key was used).

        InputError when there is no such queue, or a blob that this caller may not have; NotAllowed or Conflict when the
        queue does not take it, NotAllowed when the key stands for a task that this token does not reach.
        """
        if key is not None and key in self._known:
            task_id, queue_name = self._known[key]
            if not self._caller.reaches(self._caller.user_id, queue_name):
                raise NotAllowed("the task that was put under this key is not for this token", field="Idempotency-Key")
            return task_id, None
        caller, task, signature = self._caller, intake.task, intake.signature
        queue = self._queues.get(task.queue) or queues.for_task(self._db, task.queue)
        if caller.scope.queues is not None and task.queue not in caller.scope.queues:
            raise NotAllowed(
                f"this token is for the queues {', '.join(sorted(caller.scope.queues))} only", field="queue"
            )
        admit(queue, intake.asked, user=caller.user, admin=caller.role is Role.ADMIN)
        if queue.shapes:
            task = shape(intake.asked, queue, defaults=intake.defaults, ceilings=intake.ceilings)
            signature = Signature.of(task)
        if task.callback_url is not None and not self._has_secret:
            raise InputError(
                "your callbacks have no key to be signed with; make one with `kolejka callback secret`",
                field="callback_url",
            )
        for name, sha in intake.references.items():
            if sha not in self._readable:
                raise InputError(
                    f"there is no blob {sha} of yours; upload it", field=f"files.{name}", code="blob_missing"
                )
        task_id = new_id(self._now)
        spec = {"id": task_id, **task.to_json()}
        self._admitted.append(NewTask(
            id=task_id, owner_id=caller.user_id, queue=task.queue, rank=-task.priority, signature=signature.id,
            signature_words=signature.words, spec=json.dumps(spec), name=task.name, image=task.image,
            labels=task.labels, retry=json.dumps(task.retry.to_json()) if task.retry != Retry() else None,
            inputs=tuple(intake.references.values()), idempotency_key=key, callback_url=task.callback_url,
        ))  # fmt: skip
        return task_id, spec

    def close(self) -> None:
        """Store what was admitted."""
        tasks.put(self._db, self._admitted, self._now)


def put(
    db: Connection, intake: Intake, caller: Caller, key: str | None, now: float
) -> tuple[str, dict[str, Any] | None]:
    """Accept one task; ``Door.admit`` says how."""
    door = Door(db, [intake], caller, now, keys=() if key is None else (key,))
    answer = door.admit(intake, key)
    door.close()
    return answer

"""Putting a task: what the server makes of a spec before it accepts it."""

from __future__ import annotations

import json
import secrets
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


def put(
    db: Connection, intake: Intake, caller: Caller, key: str | None, now: float
) -> tuple[str, dict[str, Any] | None]:
    """Accept a task: its id, and its spec when it is new (it is not when the caller's idempotency key was used before).

    InputError when there is no such queue, or a blob that this caller may not have; NotAllowed or Conflict when the
    queue does not take it.
    """
    if key is not None:
        known = tasks.id_by_key(db, caller.user_id, key)
        if known is not None:
            return known, None
    task, signature = intake.task, intake.signature
    queue = queues.for_task(db, task.queue)
    if caller.scope.queues is not None and task.queue not in caller.scope.queues:
        raise NotAllowed(f"this token is for the queues {', '.join(sorted(caller.scope.queues))} only", field="queue")
    admit(queue, intake.asked, user=caller.user, admin=caller.role is Role.ADMIN)
    if queue.shapes:
        task = shape(intake.asked, queue, defaults=intake.defaults, ceilings=intake.ceilings)
        signature = Signature.of(task)
    if task.callback_url is not None and not callbacks.has_secret(db, caller.user_id):
        raise InputError(
            "your callbacks have no key to be signed with; make one with `kolejka callback secret`",
            field="callback_url",
        )
    blobs.use(db, intake.references.values(), now)
    for name, sha in intake.references.items():
        if not blobs.readable(db, sha, caller.user_id, node=False):
            raise InputError(f"there is no blob {sha} of yours; upload it", field=f"files.{name}", code="blob_missing")
    task = task.replace(id=new_id(now))
    assert task.id is not None  # set just now
    spec = task.to_json()
    new = NewTask(
        id=task.id, owner_id=caller.user_id, queue=task.queue, rank=-task.priority, signature=signature.id,
        signature_words=signature.words, spec=json.dumps(spec), name=task.name, image=task.image,
        labels=task.labels, retry=json.dumps(task.retry.to_json()) if task.retry != Retry() else None,
        inputs=tuple(intake.references.values()), idempotency_key=key, callback_url=task.callback_url,
    )  # fmt: skip
    tasks.put(db, new, now)
    return task.id, spec

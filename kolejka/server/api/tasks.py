"""Tasks: put, list, show, cancel, delete; their results; why they wait; queues."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from kolejka.common.errors import Conflict, InputError, NotFound
from kolejka.common.limits import Limits
from kolejka.common.states import TaskState
from kolejka.common.task import Task
from kolejka.server import intake
from kolejka.server.api.routes import Answer, Call, plain
from kolejka.server.auth.tokens import Caller
from kolejka.server.deps import Deps
from kolejka.server.scheduling import claims, why
from kolejka.server.scheduling.match import Offer, Signature
from kolejka.server.storage import leases, nodes, tasks
from kolejka.server.storage.base import Connection, ask
from kolejka.server.storage.tasks import Filters, Found
from kolejka.server.wakes import wait

logger = logging.getLogger("kolejka.server")


def stamp(seconds: float | None) -> str | None:
    """A moment, as answers write it."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def task_json(row: dict[str, Any]) -> dict[str, Any]:
    """A task as listings show it."""
    return {
        "id": row["id"], "state": row["state"], "owner": row["owner"], "queue": row["queue"], "priority": -row["rank"],
        "name": row["name"], "labels": json.loads(row["labels"]) if row["labels"] else {}, "image": row["image"],
        "created_at": stamp(row["created_at"]), "started_at": stamp(row["started_at"]),
        "finished_at": stamp(row["finished_at"]), "cancel_at": stamp(row["cancel_at"]), "outcome": row["outcome"],
        "limit": row["verdict"], "result": row["exit_code"], "node": row["node"], "lease": row["lease"],
    }  # fmt: skip


def _show(db: Connection, task_id: str) -> dict[str, Any]:
    row = tasks.show(db, task_id)
    attempts = [
        {**entry, "started_at": stamp(entry["started_at"]), "finished_at": stamp(entry["finished_at"])}
        for entry in leases.history(db, row["number"])
    ]
    return {**task_json(row), "attempts": attempts, "spec": json.loads(row["spec"])}


def _find(db: Connection, task_id: str, caller: Caller) -> Found:
    """The caller's task. One of somebody else does not exist for them."""
    found = tasks.find(db, task_id)
    if found is None or not (caller.sees_all or found.owner_id == caller.user_id):
        raise NotFound(f"there is no task {task_id[:128]!r}")
    return found


async def put_task(deps: Deps, call: Call) -> Answer:
    """Put a task. Repeated under the same `Idempotency-Key`, the answer is the same task."""
    key = call.request.get_header("Idempotency-Key")
    if key is not None and not 0 < len(key) <= 128:
        raise InputError("the Idempotency-Key has 1 to 128 characters", field="Idempotency-Key")
    task: Task = call.body
    for place, text in (("name", task.name or ""), ("image", task.image or ""), *task.labels.items()):
        try:
            plain(text)
        except InputError as error:
            raise error.within(place) from None
    considered = intake.consider(task, defaults=deps.settings.defaults, ceilings=deps.settings.ceilings)
    deps.classes.learn(considered.signature)
    now = deps.clock()

    def work(db: Connection) -> tuple[str, dict[str, Any]]:
        task_id, spec = intake.put(db, considered, call.caller, key, now)
        return task_id, _show(db, task_id) if spec is None else _new(task_id, spec, call.caller, task, now)

    task_id, shown = await ask(deps.store.write(work))
    deps.metrics.put.inc()
    logger.info("task put", extra={"task": task_id, "owner": call.caller.user, "queue": shown["queue"]})
    return Answer(201, shown)


def _new(task_id: str, spec: dict[str, Any], caller: Caller, task: Task, now: float) -> dict[str, Any]:
    """What ``_show`` would read back of a task that was put just now."""
    row = dict.fromkeys(tasks.SHOWN) | {
        "id": task_id, "state": TaskState.WAITING, "owner": caller.user, "queue": task.queue, "rank": -task.priority,
        "name": task.name, "image": task.image, "created_at": now,
    }  # fmt: skip
    return {**task_json(row), "labels": dict(task.labels), "attempts": [], "spec": spec}


async def list_tasks(deps: Deps, call: Call) -> Answer:
    """List tasks, newest first. `next` is the `after` of the following page."""
    query = call.query
    filters = Filters(
        state=query["state"], queue=query["queue"], name=query["name"], owner=query["owner"],
        owner_id=None if call.caller.sees_all else call.caller.user_id, labels=tuple(query["label"]),
        after=query["after"], limit=query["limit"] + 1,
    )  # fmt: skip
    rows = await ask(deps.store.read(lambda db: tasks.listing(db, filters)))
    page = rows[: query["limit"]]
    more = len(rows) > len(page) and page
    return Answer(json={"tasks": [task_json(row) for row in page], "next": str(page[-1]["number"]) if more else None})


async def show_task(deps: Deps, call: Call) -> Answer:
    """Show a task with its spec and its attempts."""
    task_id = call.path["task_id"]

    def work(db: Connection) -> dict[str, Any]:
        _find(db, task_id, call.caller)
        return _show(db, task_id)

    return Answer(json=await ask(deps.store.read(work)))


async def delete_task(deps: Deps, call: Call) -> Answer:
    """Delete a done task with its result."""
    task_id = call.path["task_id"]

    def work(db: Connection) -> None:
        found = _find(db, task_id, call.caller)
        if found.state is not TaskState.DONE:
            raise Conflict(f"this task is {found.state}; cancel it first")
        tasks.delete(db, found.number)

    await ask(deps.store.write(work))
    logger.info("task deleted", extra={"task": task_id, "by": call.caller.user})
    return Answer(204)


async def cancel_task(deps: Deps, call: Call) -> Answer:
    """Cancel a task: a waiting one is done at once, a running one is stopped on its node."""
    task_id, now = call.path["task_id"], deps.now()

    def work(db: Connection) -> dict[str, Any]:
        claims.cancel(db, _find(db, task_id, call.caller), now)
        return _show(db, task_id)

    shown = await ask(deps.store.write(work))
    logger.info(
        "task cancelled",
        extra={"task": task_id, "lease": shown["lease"], "by": call.caller.user, "state": shown["state"]},
    )
    return Answer(json=shown)


async def get_result(deps: Deps, call: Call) -> Answer:
    """Get a task's result, waiting for it for up to `wait` seconds; 202 when it is not there by then."""
    task_id = call.path["task_id"]

    def work(db: Connection) -> tuple[TaskState, dict[str, Any] | None]:
        found = _find(db, task_id, call.caller)
        return found.state, tasks.result(db, found.number) if found.state is TaskState.DONE else None

    deadline = deps.steady() + call.query["wait"]
    with deps.wakes.for_result(task_id) as waiter:
        while True:
            waiter.looked()
            state, result = await ask(deps.store.read(work))
            if result is not None:
                return Answer(json=result)
            left = deadline - deps.steady()
            if deps.wakes.closing or not await wait(waiter, left, call.gone):
                return Answer(202, {"state": state})


async def why_task(deps: Deps, call: Call) -> Answer:
    """Say in words why a task waits."""
    task_id, now = call.path["task_id"], deps.clock()

    def work(db: Connection) -> list[str]:
        found = _find(db, task_id, call.caller)
        if found.state is TaskState.DONE:
            return ["it is done"]
        if found.state is TaskState.RUNNING:
            row = tasks.show(db, task_id)
            stopping = ", and is being stopped" if found.cancelled else ""
            return [f"it runs on {row['node']} since {stamp(row['started_at'])}{stopping}"]
        signature = Signature.parse(tasks.signature_words(db, found.signature))
        return why.reasons(
            signature, machines(db, now, deps.settings.heartbeat), ahead=tasks.ahead(db, found), queue=found.queue
        )

    found = await ask(deps.store.read(work))
    return Answer(json={"why": found[0], "reasons": found})


def node_state(node: dict[str, Any], now: float, heartbeat_s: float) -> str:
    """What the node said of itself, or ``silent`` when it has said nothing for the heartbeat time."""
    return "silent" if node["last_seen"] < now - heartbeat_s else str(node["state"])


def machines(db: Connection, now: float, heartbeat_s: float) -> list[why.Machine]:
    """The nodes, as the waiting see them."""
    return [
        why.Machine(
            node["name"],
            node_state(node, now, heartbeat_s),
            Offer(frozenset(node["tags"]), Limits(node["total"]), Limits(node["capacity"]), not node["running"]),
        )
        for node in nodes.listing(db)
    ]


async def list_queues(deps: Deps, _call: Call) -> Answer:
    """List the queues."""
    return Answer(json=await ask(deps.store.read(tasks.queues)))

"""Tasks: put, list, show, cancel, retry, delete; their results; why they wait; queues."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from kolejka.common import node_image
from kolejka.common.errors import Conflict, InputError, KolejkaError
from kolejka.common.limits import Limits
from kolejka.common.schema import check, object_schema
from kolejka.common.states import TaskState
from kolejka.common.task import Task, task_schema
from kolejka.server import intake
from kolejka.server.api.errors import body as error_body
from kolejka.server.api.routes import Answer, Call, plain
from kolejka.server.auth.roles import Role
from kolejka.server.auth.tokens import Caller
from kolejka.server.deps import Deps
from kolejka.server.scheduling import claims, why
from kolejka.server.scheduling.match import Offer, Signature
from kolejka.server.scheduling.rules import Rules
from kolejka.server.scheduling.turn import stand
from kolejka.server.storage import audit, callbacks, leases, nodes, tasks, usage
from kolejka.server.storage.base import Connection, ask
from kolejka.server.storage.tasks import Filters, Found
from kolejka.server.wakes import wait

logger = logging.getLogger("kolejka.server")

MOST_AT_ONCE: Final = 10_000
FEW: Final = 64
"""Tasks that are considered at once; more beside the event loop."""
MOST_LABELS: Final = task_schema()["properties"]["labels"]["maxProperties"]
MOST_IDS: Final = 100
"""Tasks whose results are asked for in one call: a longer address is not for every proxy."""
MOST_RESULTS: Final = 8 << 20
"""Characters of results in one answer, about."""
RETRY_OF: Final = "retry_of"
BULK: Final = object_schema(
    {"tasks": {"type": "array", "minItems": 1, "maxItems": MOST_AT_ONCE, "items": {"type": "object"},
               "description": "specs, each as POST /tasks takes it"}},
    required=["tasks"],
)  # fmt: skip


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
    call = callbacks.show(db, row["number"])
    if call is not None:
        call = {**call, "due_at": stamp(call["due_at"]), "ended_at": stamp(call["ended_at"])}
    attempts = [
        {**entry, "started_at": stamp(entry["started_at"]), "finished_at": stamp(entry["finished_at"])}
        for entry in leases.history(db, row["number"])
    ]
    told = {} if call is None else {"callback": call}
    return {**task_json(row), "attempts": attempts, "spec": json.loads(row["spec"]), **told}


def find_task(db: Connection, task_id: str, caller: Caller) -> Found:
    """The caller's task. One of somebody else does not exist for them."""
    found = tasks.find(db, task_id) if "\0" not in task_id else None
    if found is None or not caller.reaches(found.owner_id, found.queue):
        raise tasks.none_of(task_id)
    return found


def _check_key(call: Call) -> str | None:
    key = call.request.get_header("Idempotency-Key")
    if key is not None and not 0 < len(key) <= 128:
        raise InputError("the Idempotency-Key has 1 to 128 characters", field="Idempotency-Key")
    return key


def _consider(deps: Deps, task: Task) -> intake.Intake:
    """A client's spec made final. InputError names what is wrong with it."""
    labels = ((f"labels.{key}", text) for key, text in task.labels.items())
    for place, text in (("name", task.name or ""), ("image", task.image or ""), *labels):
        try:
            plain(text)
        except InputError as error:
            raise error.within(place) from None
    settings = deps.settings
    return intake.consider(task, defaults=settings.defaults, ceilings=settings.ceilings, hosts=deps.hosts)


async def put_task(deps: Deps, call: Call) -> Answer:
    """Put a task. Repeated under the same `Idempotency-Key`, the answer is the same task."""
    key = _check_key(call)
    considered = _consider(deps, call.body)
    deps.classes.learn(considered.signature)
    shown = await _put(deps, call.caller, considered, key)
    return Answer(201, shown)


async def _put(
    deps: Deps, owner: Caller, considered: intake.Intake, key: str | None,
    also: Callable[[Connection], object] = lambda _: None,
) -> dict[str, Any]:  # fmt: skip
    """Put a task and do ``also`` in one transaction."""
    now = deps.clock()

    def work(db: Connection) -> tuple[str, dict[str, Any]]:
        task_id, spec = intake.put(db, considered, owner, key, now)
        also(db)
        return task_id, _show(db, task_id) if spec is None else _new(task_id, spec, owner, considered.task, now)

    task_id, shown = await ask(deps.store.write(work))
    deps.metrics.put.inc()
    logger.info("task put", extra={"task": task_id, "owner": owner.user, "queue": shown["queue"]})
    return shown


def parse_bulk(data: Any) -> list[Task]:
    """The body of a bulk put. InputError names the task by its place in the list."""
    check(data, BULK)
    parsed = []
    for place, spec in enumerate(data["tasks"]):
        try:
            parsed.append(Task.parse(spec))
        except InputError as error:
            raise _at(error, place) from None
    return parsed


def _at(error: KolejkaError, place: int) -> KolejkaError:
    return error.within(f"tasks[{place}]", ".")


async def put_tasks(deps: Deps, call: Call) -> Answer:
    """Put many tasks at once: all of them, or none when one is refused; the error names which. The answer is in order.

    Repeated under the same `Idempotency-Key`, the answer is the same tasks.
    """
    key, now, caller = _check_key(call), deps.clock(), call.caller

    def consider() -> list[intake.Intake]:
        considered = []
        for place, task in enumerate(call.body):
            try:
                considered.append(_consider(deps, task))
            except InputError as error:
                raise _at(error, place) from None
        return considered

    everything = consider() if len(call.body) <= FEW else await asyncio.to_thread(consider)
    for considered in everything:
        deps.classes.learn(considered.signature)

    def work(db: Connection) -> list[dict[str, Any]]:
        shown = []
        # no header can hold a line break, so no other key is like these
        keys = [None if key is None else f"{key}\n{place}" for place in range(len(everything))]
        door = intake.Door(db, everything, caller, now, keys=[one for one in keys if one is not None])
        for place, considered in enumerate(everything):
            try:
                task_id, spec = door.admit(considered, keys[place])
            except InputError as error:
                raise _at(error, place) from None
            row = tasks.show(db, task_id) if spec is None else _row(task_id, caller, considered.task, now)
            shown.append(task_json(row))
        door.close()
        return shown

    shown = await ask(deps.store.write(work))
    deps.metrics.put.inc(len(shown))
    for task in shown:
        logger.info("task put", extra={"task": task["id"], "owner": caller.user, "queue": task["queue"]})
    return Answer(201, {"tasks": shown})


async def retry_task(deps: Deps, call: Call) -> Answer:
    """Put a done task once more, as a new task of the same owner and spec. The old one stays as it is.

    The new one has the label `retry_of`, so that both are found from either.
    """
    task_id, now, caller = call.path["task_id"], deps.clock(), call.caller

    def read(db: Connection) -> tuple[Found, dict[str, Any]]:
        found = find_task(db, task_id, caller)
        if found.state is not TaskState.DONE:
            raise Conflict(f"this task is {found.state}; only what is done can be tried once more")
        return found, tasks.show(db, task_id)

    found, row = await ask(deps.store.read(read))
    task = Task.parse(json.loads(row["spec"]))
    labels = {**task.labels, RETRY_OF: found.id}
    if len(labels) > MOST_LABELS:
        raise InputError(f"there is no room for the label {RETRY_OF} beside its {MOST_LABELS}", field="labels")
    considered = _consider(deps, task.replace(id=None, labels=labels))
    deps.classes.learn(considered.signature)
    owner = Caller(found.owner_id, row["owner"], Role.CLIENT, caller.token, caller.scope)

    def also(db: Connection) -> None:
        _record_for_others(db, caller, found, "task.retry", now)

    return Answer(201, await _put(deps, owner, considered, _check_key(call), also))


def record(db: Connection, caller: Caller, act: str, target: str, now: float, **detail: object) -> None:
    """Write an act of an admin down."""
    audit.record(db, (caller.user, caller.token), act, target, now=now, detail=detail)


def _record_for_others(db: Connection, caller: Caller, found: Found, act: str, now: float) -> None:
    if found.owner_id != caller.user_id:
        record(db, caller, act, found.id, now)


def _row(task_id: str, caller: Caller, task: Task, now: float) -> dict[str, Any]:
    """What ``tasks.show`` would read back of a task that was put just now."""
    return dict.fromkeys(tasks.SHOWN) | {
        "id": task_id, "state": TaskState.WAITING, "owner": caller.user, "queue": task.queue, "rank": -task.priority,
        "name": task.name, "image": task.image, "created_at": now,
        "labels": json.dumps(dict(task.labels)) if task.labels else None,
    }  # fmt: skip


def _new(task_id: str, spec: dict[str, Any], caller: Caller, task: Task, now: float) -> dict[str, Any]:
    """What ``_show`` would read back of it."""
    told = {} if task.callback_url is None else {"callback": {
        "url": task.callback_url, "tries": 0, "due_at": None, "ended_at": None, "answer": None,
    }}  # fmt: skip
    return {**task_json(_row(task_id, caller, task, now)), "attempts": [], "spec": spec, **told}


async def list_tasks(deps: Deps, call: Call) -> Answer:
    """List tasks, newest first. `next` is the `after` of the following page."""
    query = call.query
    filters = Filters(
        state=query["state"], queue=query["queue"], name=query["name"], owner=query["owner"],
        owner_id=None if call.caller.sees_all else call.caller.user_id, queues=call.caller.scope.queues,
        labels=tuple(query["label"]), after=query["after"], limit=query["limit"] + 1,
    )  # fmt: skip
    rows = await ask(deps.store.read(lambda db: tasks.listing(db, filters)))
    page = rows[: query["limit"]]
    more = len(rows) > len(page) and page
    return Answer(json={"tasks": [task_json(row) for row in page], "next": str(page[-1]["number"]) if more else None})


async def show_task(deps: Deps, call: Call) -> Answer:
    """Show a task with its spec and its attempts."""
    task_id = call.path["task_id"]

    def work(db: Connection) -> dict[str, Any]:
        find_task(db, task_id, call.caller)
        return _show(db, task_id)

    return Answer(json=await ask(deps.store.read(work)))


async def delete_task(deps: Deps, call: Call) -> Answer:
    """Delete a done task with its result."""
    task_id, now = call.path["task_id"], deps.clock()

    def work(db: Connection) -> None:
        found = find_task(db, task_id, call.caller)
        if not tasks.delete(db, [found.number], now):
            found = find_task(db, task_id, call.caller)  # not there any more, or not done yet
            raise Conflict(f"this task is {found.state}; cancel it first")
        _record_for_others(db, call.caller, found, "task.delete", now)

    await ask(deps.store.write(work))
    logger.info("task deleted", extra={"task": task_id, "by": call.caller.user})
    return Answer(204)


async def cancel_task(deps: Deps, call: Call) -> Answer:
    """Cancel a task: a waiting one is done at once, a running one is stopped on its node."""
    task_id, now = call.path["task_id"], deps.now()

    def work(db: Connection) -> dict[str, Any]:
        found = find_task(db, task_id, call.caller)
        claims.cancel(db, found, now)
        _record_for_others(db, call.caller, found, "task.cancel", now.wall)
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

    def work(db: Connection) -> tuple[TaskState, str | None]:
        found = find_task(db, task_id, call.caller)
        return found.state, tasks.result(db, found.number) if found.state is TaskState.DONE else None

    deadline = deps.steady() + call.query["wait"]
    with deps.wakes.for_results([task_id]) as waiter:
        while True:
            waiter.looked()
            await call.still()
            state, result = await ask(deps.store.read(work))
            if result is not None:
                return Answer(data=result.encode())
            left = deadline - deps.steady()
            if deps.wakes.closing or not await wait(waiter, left, call.gone):
                return Answer(202, {"state": state})


async def get_results(deps: Deps, call: Call) -> Answer:
    """Get the results of many tasks, as soon as `enough` of them are done or `wait` seconds are over.

    Each task asked for is in the answer, in order: with its `state`, and its `result` if it is done (unless the answer
    would be too large: then ask for the rest again); or with an `error`, for one that is not the caller's.
    """
    task_ids = list(dict.fromkeys(call.query["tasks"]))
    if not task_ids:
        raise InputError("say which tasks, by their ids with commas between them", field="tasks")
    enough = min(call.query["enough"], len(task_ids))

    def work(db: Connection) -> tuple[dict[str, TaskState], dict[str, str]]:
        found = tasks.find_many(db, task_ids)
        mine = [one for one in found.values() if call.caller.reaches(one.owner_id, one.queue)]
        done = {one.number: one.id for one in mine if one.state is TaskState.DONE}
        settled = len(task_ids) - len(mine) + len(done)
        results = tasks.results(db, done, most=MOST_RESULTS) if over or settled >= enough else {}
        return {one.id: one.state for one in mine}, {done[number]: text for number, text in results.items()}

    deadline = deps.steady() + call.query["wait"]
    over = call.query["wait"] == 0
    with deps.wakes.for_results(task_ids) as waiter:
        while True:
            waiter.looked()
            await call.still()
            states, results = await ask(deps.store.read(work))
            settled = [task_id for task_id in task_ids if states.get(task_id, TaskState.DONE) is TaskState.DONE]
            if over or len(settled) >= enough:
                return Answer(data=_told(task_ids, states, results))
            waiter.lacks(enough - len(settled), settled)
            over = not await wait(waiter, deadline - deps.steady(), call.gone) or deps.wakes.closing


def _told(task_ids: Sequence[str], states: Mapping[str, TaskState], results: Mapping[str, str]) -> bytes:
    """The answer about many tasks. What is stored as JSON goes out as it is."""
    told = []
    for task_id in task_ids:
        if task_id not in states:
            error = tasks.none_of(task_id)
            told.append(json.dumps({"id": task_id, **error_body(error.code, error.message, error.field)}))
        else:
            words = json.dumps({"id": task_id, "state": states[task_id]})
            told.append(f'{words[:-1]}, "result": {results.get(task_id, "null")}}}')
    return f'{{"results": [{", ".join(told)}]}}'.encode()


async def why_task(deps: Deps, call: Call) -> Answer:
    """Say in words why a task waits."""
    task_id, now = call.path["task_id"], deps.clock()

    def work(db: Connection) -> list[str]:
        found = find_task(db, task_id, call.caller)
        if found.state is TaskState.DONE:
            return ["it is done"]
        if found.state is TaskState.RUNNING:
            row = tasks.show(db, task_id)
            stopping = ", and is being stopped" if found.cancelled else ""
            return [f"it runs on {row['node']} since {stamp(row['started_at'])}{stopping}"]
        signature = Signature.parse(tasks.signature_words(db, found.signature))
        kept = {one.node: one.number for one in usage.reservations(db, heard_after=now - deps.settings.heartbeat)()}
        ids = tasks.ids(db, set(kept.values()))
        nodes_now = machines(db, now, deps.rules, {node: ids[kept[node]] for node in kept})
        homes = [one for one in nodes_now if one.state == "active" and one.can_ever_run(signature, found.queue)]

        def competes(other: Signature, queue: str) -> bool:
            return any(one.can_ever_run(other, queue) for one in homes)

        return why.reasons(signature, nodes_now, stand(db, found, deps.rules, deps.now(), competes=competes))

    found = await ask(deps.store.read(work))
    return Answer(json={"why": found[0], "reasons": found})


def node_state(node: dict[str, Any], now: float, rules: Rules) -> str:
    """What the node said of itself, ``silent`` when it has said nothing for the heartbeat time, ``draining`` when it
    was asked to and may not know yet, or ``outdated`` when its image is older than the server demands.
    """
    if node["last_seen"] < now - rules.heartbeat_s:
        return "silent"
    if node["state"] != "active":
        return str(node["state"])
    if node_image.is_older(node["image_version"], rules.minimum_image):
        return "outdated"
    return "draining" if node["asked"] else "active"


def outdated(node: dict[str, Any], rules: Rules) -> str:
    """What is wrong with the image of an outdated node, in words."""
    return (
        f"its image is version {node['image_version']}, and this server demands {rules.minimum_image}; reboot it into "
        "a newer one"
    )


def machines(db: Connection, now: float, rules: Rules, kept: Mapping[str, str]) -> list[why.Machine]:
    """The nodes, as the waiting see them; ``kept`` names the tasks that nodes are reserved for."""
    found = []
    for node in nodes.listing(db):
        state = node_state(node, now, rules)
        offer = Offer(frozenset(node["tags"]), Limits(node["total"]), Limits(node["capacity"]), not node["busy"])
        about = node["about"]
        remark = outdated(node, rules) if state == "outdated" else ""
        if state == "quarantined":
            remark = about.get("reason") or ""
        full = node["busy"] >= about.get("slots", math.inf)
        found.append(
            why.Machine(node["name"], state, offer, kept.get(node["name"]), remark, about.get("queues", ()), full)
        )
    return found

"""The nodes' side: claims, heartbeats, results, releases; and what is known of nodes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kolejka.common.errors import Conflict, InputError, KolejkaError, NotAllowed, NotFound
from kolejka.common.limits import LIMITS, Limits, Unit
from kolejka.common.result import Result
from kolejka.common.schema import check, object_schema
from kolejka.common.task import QUEUE_PATTERN
from kolejka.server.api.errors import body as error_body
from kolejka.server.api.routes import Answer, Call, plain, whole
from kolejka.server.api.tasks import node_state, record, stamp
from kolejka.server.deps import Deps
from kolejka.server.intake import put_at
from kolejka.server.scheduling import claims
from kolejka.server.scheduling.claims import Claim, Claimed
from kolejka.server.scheduling.match import Offer, wants
from kolejka.server.storage import leases, nodes
from kolejka.server.storage.base import Connection, NodeChanged, TaskWaiting, ask
from kolejka.server.storage.leases import Held
from kolejka.server.storage.nodes import NodeWords
from kolejka.server.wakes import wait

logger = logging.getLogger("kolejka.server")

AGAIN_S = 5.0
"""After so long a claim looks again for tasks that a quota or a reservation kept back."""
NODE_STATES = ("active", "draining", "quarantined")
_AMOUNT = {"type": "number", "minimum": 0, "maximum": 2**62}
_AMOUNTS = object_schema(
    {limit.name: {"type": "boolean"} if limit.unit is Unit.FLAG else _AMOUNT for limit in LIMITS.values()}
)
_LEASES = {"type": "array", "maxItems": 100_000, "items": {"type": "integer", "minimum": 0, "maximum": 2**62}}
_WORDS = {
    "node": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[^\x00-\x1f/]+$"},
    "tags": {"type": "array", "maxItems": 1000, "items": {"type": "string", "minLength": 1, "maxLength": 4096}},
    "total": {**_AMOUNTS, "description": "what the node has: plain numbers"},
    "capacity": {**_AMOUNTS, "description": "what of it is free"},
    "instance": {
        "type": "string",
        "pattern": "^[0-9a-f]{32}$",
        "description": "tells two foremen of one name apart: the second is refused while the first is heard",
    },
}
CLAIM = object_schema(
    {
        **_WORDS,
        "slots": {"type": "integer", "minimum": 0, "maximum": 1000},
        "queues": {"type": "array", "maxItems": 1000, "items": {"type": "string", "pattern": QUEUE_PATTERN}},
        "wait": {"type": "number", "minimum": 0, "maximum": 30, "description": "seconds"},
        "idle": {"type": "boolean", "description": "nothing runs on the node: an exclusive task may be given"},
        "leases": {**_LEASES, "description": "those that the node knew of when it counted what is free"},
    },
    required=["node", "total", "capacity", "slots"],
)
HEARTBEAT = object_schema(
    {
        **_WORDS,
        "leases": _LEASES,
        "state": {"enum": list(NODE_STATES)},
    },
    required=["node", "tags", "total", "capacity", "leases"],
)
RESULTS = object_schema(
    {
        "results": {
            "type": "array", "minItems": 1, "maxItems": 1000,
            "items": object_schema(
                {
                    "lease": {"type": "integer", "minimum": 0, "maximum": 2**62},
                    "result": {"type": "object", "description": "as PUT /attempts/{lease}/result takes it"},
                },
                required=["lease", "result"],
            ),
        }
    },
    required=["results"],
)  # fmt: skip
RELEASE = object_schema({"message": {"type": "string", "maxLength": 4096}}, required=["message"])


def _words(body: Mapping[str, Any], state: str | None) -> NodeWords:
    for text in (body["node"], *body.get("tags", ())):
        try:
            plain(text)
        except InputError as error:
            raise error.within("node" if text == body["node"] else "tags") from None
    return NodeWords(
        body["node"], state, tuple(sorted(set(body.get("tags", ())))), body.get("total", {}), body.get("capacity", {}),
        body.get("instance"),
    )  # fmt: skip


async def claim(deps: Deps, call: Call) -> Answer:
    """Ask for tasks that fit; wait for them up to `wait` seconds, or until something of this node is cancelled.

    The answer is empty as soon as a newer claim of the same node comes, or a heartbeat says that it is not active; and
    when the node has not been heard for the heartbeat's time.
    """
    body = call.body
    words = _words(body, None)
    offer = Offer(frozenset(words.tags), Limits(words.total), Limits(words.capacity), body.get("idle", False))
    queues, scope = frozenset(body.get("queues", ())), call.caller.scope.queues
    if scope is not None:
        queues = queues & scope if queues else scope
        if not queues:
            raise NotAllowed(f"this token is for the queues {', '.join(sorted(scope))} only", field="queues")
    knows = frozenset(body["leases"]) if "leases" in body else None
    request = Claim(call.caller.user_id, words, offer, body["slots"], queues, knows=knows)

    def wanted(announcement: TaskWaiting) -> bool | None:
        if open_to is None or request.slots == 0 or is_silent():
            return False
        if request.queues and announcement.queue not in request.queues:
            return False
        signature = deps.classes.known(announcement.signature)
        return None if signature is None else wants(signature, open_to)

    def is_silent() -> bool:
        return deps.steady() - waiter.heard > deps.settings.heartbeat

    def look(db: Connection) -> Claimed:
        if waiter.overtaken or is_silent():
            return Claimed(over=True)
        return claims.claim(db, request, deps.rules, deps.classes, deps.now(), arrives=arrives)

    deadline = deps.steady() + body.get("wait", 0)
    claimed, arrives = Claimed(), True
    open_to: Offer | None = offer
    with deps.wakes.for_tasks(words.name, wanted, user_id=call.caller.user_id, heard=deps.steady()) as waiter:
        request = replace(request, unknown=await waiter.unknown())
        while not waiter.overtaken:
            woken_by = waiter.looked()
            await call.still()
            began = deps.steady()
            claimed = await ask(deps.store.write(look))
            deps.metrics.claim_s.observe(deps.steady() - began)
            arrives, open_to = False, claimed.offer
            request = replace(request, turn=claimed.turn)
            waiter.given = tuple(given.lease for given in claimed.given)
            if claimed.given or claimed.cancel or deps.wakes.closing:
                break
            deps.wakes.deliver([task for task in woken_by if wanted(task) is False])  # to somebody who can take it
            if claimed.over:
                break
            with contextlib.ExitStack() as timers:
                if claimed.held:  # by a quota or a reservation: whoever ends that wakes somebody else
                    again = asyncio.get_running_loop().call_later(AGAIN_S, waiter.woken.set)
                    timers.callback(again.cancel)
                if not await wait(waiter, deadline - deps.steady(), call.gone):
                    break
    now = deps.clock()
    for given in claimed.given:
        deps.metrics.given.inc()
        deps.metrics.wait_s.observe(max(0.0, now - put_at(given.task_id)))
        logger.info("task given", extra={"task": given.task_id, "lease": given.lease, "node": words.name})
    return Answer(json={
        "attempts": [given.to_json() for given in claimed.given], "cancel": claimed.cancel,
        "heartbeat_s": deps.settings.heartbeat, "asked": claimed.asked,
    })  # fmt: skip


async def heartbeat(deps: Deps, call: Call) -> Answer:
    """Say that a node lives and which leases it holds; learn which are lost and which to stop."""
    words, now = _words(call.body, call.body.get("state", "active")), deps.now()

    def work(db: Connection) -> claims.Beat:
        if words.state != "active":
            db.announce(NodeChanged(words.name))
        return claims.heartbeat(db, words, call.caller.user_id, call.body["leases"], now, rules=deps.rules)

    beat = await ask(deps.store.write(work))
    deps.wakes.heard(words.name, deps.steady())
    return Answer(json={
        "lost": beat.lost, "cancel": beat.cancel, "heartbeat_s": deps.settings.heartbeat, "asked": beat.asked,
    })  # fmt: skip


def _handed(result: Result) -> claims.Handed:
    if result.result is not None and not -(2**31) <= result.result < 2**32:
        raise InputError(f"{result.result} is no exit code", field="result")
    if result.message is not None:
        result = result.replace(message=result.message.encode(errors="replace").decode().replace("\0", "?"))
    return claims.Handed.of(result)


def _tell_idle(db: Connection, nodes_of: set[str]) -> None:
    for node in sorted(nodes_of):
        if not leases.any_on(db, node):
            db.announce(NodeChanged(node))


def _count(deps: Deps, call: Call, lease: int, result: Result, answer: tuple[Held, str] | KolejkaError) -> None:
    """Record what became of a result."""
    if isinstance(answer, KolejkaError):
        if isinstance(answer, Conflict):
            deps.metrics.refused.inc()
        logger.warning("result refused", extra={"lease": lease, "by": call.caller.user, "reason": answer.message})
        return
    held, state = answer
    if held.state == "running":
        deps.metrics.results.labels(result.outcome.value).inc()
        logger.info(
            "result accepted",
            extra={"task": held.task_id, "lease": lease, "node": held.node, "outcome": str(result.outcome),
                   "state": state},
        )  # fmt: skip


async def put_result(deps: Deps, call: Call) -> Answer:
    """Hand in the result of an attempt. Its files are uploaded before; repeated, the answer is the same."""
    lease, now = whole(call.path["lease"], "lease"), deps.now()
    handed = _handed(call.body)

    def work(db: Connection) -> tuple[Held, str]:
        held, state = claims.accept(db, lease, call.caller.user_id, handed, now)
        _tell_idle(db, {held.node})
        return held, state

    try:
        answer = await ask(deps.store.write(work))
    except Conflict as error:
        _count(deps, call, lease, handed.result, error)
        raise
    _count(deps, call, lease, handed.result, answer)
    return Answer(json={"task_id": answer[0].task_id, "state": answer[1]})


def parse_results(data: Any) -> dict[int, claims.Handed]:
    """The body of many results, by lease. InputError names the result by its place in the list."""
    check(data, RESULTS)
    found: dict[int, claims.Handed] = {}
    for place, entry in enumerate(data["results"]):
        if entry["lease"] in found:
            raise InputError("this lease stands twice in the list", field=f"results[{place}].lease")
        try:
            found[entry["lease"]] = _handed(Result.parse(entry["result"]))
        except InputError as error:
            raise error.within(f"results[{place}].result", ".") from None
    return found


async def put_results(deps: Deps, call: Call) -> Answer:
    """Hand in many results at once. Each is taken or refused by itself; the answers are in order."""
    results, now = call.body, deps.now()

    def work(db: Connection) -> dict[int, tuple[Held, str] | KolejkaError]:
        answers = claims.accept_many(db, results, call.caller.user_id, now)
        _tell_idle(db, {answer[0].node for answer in answers.values() if not isinstance(answer, KolejkaError)})
        return answers

    answers = await ask(deps.store.write(work))
    shown: list[dict[str, Any]] = []
    for lease, answer in answers.items():
        _count(deps, call, lease, results[lease].result, answer)
        if isinstance(answer, KolejkaError):
            shown.append({"lease": lease, **error_body(answer.code, answer.message, answer.field)})
        else:
            shown.append({"lease": lease, "task_id": answer[0].task_id, "state": answer[1]})
    return Answer(json={"results": shown})


async def release(deps: Deps, call: Call) -> Answer:
    """Give an attempt back that was not started: the task waits again."""
    lease, now = whole(call.path["lease"], "lease"), deps.now()
    message = plain(call.body["message"])

    def work(db: Connection) -> tuple[Held, str]:
        held, state = claims.release(db, lease, call.caller.user_id, message, now)
        db.announce(NodeChanged(held.node))  # its figures are free again, and perhaps it is idle
        return held, state

    held, state = await ask(deps.store.write(work))
    logger.info(
        "attempt given back", extra={"task": held.task_id, "lease": lease, "node": held.node, "reason": message}
    )
    return Answer(json={"task_id": held.task_id, "state": state})


def _node_json(node: dict[str, Any], now: float, heartbeat_s: float) -> dict[str, Any]:
    return {
        **node, "state": node_state(node, now, heartbeat_s), "first_seen": stamp(node["first_seen"]),
        "last_seen": stamp(node["last_seen"]),
    }  # fmt: skip


def _whose(call: Call) -> int | None:
    """Whose tasks a listing of nodes may name."""
    return None if call.caller.sees_all else call.caller.user_id


async def list_nodes(deps: Deps, call: Call) -> Answer:
    """List the nodes. `busy` counts the tasks that run there; `running` names those that the caller may see."""
    now = deps.clock()
    found = await ask(deps.store.read(lambda db: nodes.listing(db, owner_id=_whose(call))))
    return Answer(json=[_node_json(node, now, deps.settings.heartbeat) for node in found])


async def show_node(deps: Deps, call: Call) -> Answer:
    """Show a node."""
    name, now = plain(call.path["name"]), deps.clock()
    found = await ask(deps.store.read(lambda db: nodes.listing(db, name, owner_id=_whose(call))))
    if not found:
        raise NotFound(f"there is no node {name[:255]!r}")
    return Answer(json=_node_json(found[0], now, deps.settings.heartbeat))


async def drain_node(deps: Deps, call: Call) -> Answer:
    """Ask a node to take no more tasks. What runs there ends by itself; the foreman stays."""
    return await _ask_node(deps, call, nodes.DRAIN)


async def resume_node(deps: Deps, call: Call) -> Answer:
    """Ask a node that was asked to drain to take tasks again."""
    return await _ask_node(deps, call, None)


async def _ask_node(deps: Deps, call: Call, asked: str | None) -> Answer:
    name, now, caller = plain(call.path["name"]), deps.clock(), call.caller

    def work(db: Connection) -> dict[str, Any]:
        nodes.ask(db, name, asked)
        db.announce(NodeChanged(name))
        record(db, caller, "node.drain" if asked else "node.resume", name, now)
        return nodes.listing(db, name)[0]

    found = await ask(deps.store.write(work))
    logger.info("node asked", extra={"node": name, "asked": asked or "resume", "by": caller.user})
    return Answer(json=_node_json(found, now, deps.settings.heartbeat))

"""The nodes' side: claims, heartbeats, results, releases; and what is known of nodes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from kolejka.common.errors import Conflict, InputError, KolejkaError, NotAllowed, NotFound
from kolejka.common.limits import LIMITS, Limits, Unit
from kolejka.common.node_image import IMAGE_ID
from kolejka.common.result import Result
from kolejka.common.schema import check, object_schema
from kolejka.common.task import QUEUE_PATTERN
from kolejka.server.api.errors import body as error_body
from kolejka.server.api.routes import Answer, Call, plain, whole
from kolejka.server.api.tasks import node_state, outdated, record, stamp
from kolejka.server.auth.tokens import Caller
from kolejka.server.deps import Deps
from kolejka.server.intake import put_at
from kolejka.server.scheduling import claims
from kolejka.server.scheduling.claims import Claim, Claimed
from kolejka.server.scheduling.match import NOTHING_AHEAD, Ahead, Offer, wants
from kolejka.server.scheduling.rules import Rules
from kolejka.server.storage import leases, nodes
from kolejka.server.storage.base import Connection, LogTold, NodeChanged, TaskWaiting, ask
from kolejka.server.storage.leases import Held
from kolejka.server.storage.nodes import LogWish, NodeWords
from kolejka.server.wakes import wait

logger = logging.getLogger("kolejka.server")

AGAIN_S = 5.0
"""After so long a claim looks again for tasks that a quota or a reservation kept back."""
LOG_LINES = 200
LOG_WAIT_S = 30.0
ASK_AGAIN_S = 5.0
"""After so long a node that has not sent its log is asked again."""
MOST_LOG = 1 << 20
"""Characters of a log that a node hands in."""
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
_QUEUES = {"type": "array", "maxItems": 1000, "items": {"type": "string", "pattern": QUEUE_PATTERN}}
_LINE = {"type": "string", "maxLength": 1000}
_SHORT = {"type": "string", "maxLength": 200}
ABOUT = object_schema(
    {
        "boot": {"type": "string", "pattern": "^[0-9a-f-]{1,64}$", "description": "the kernel's id of this boot"},
        "image": object_schema({"id": _SHORT, "version": _SHORT}, required=["id", "version"]),
        "version": {**_SHORT, "description": "of Kolejka"},
        "queues": {**_QUEUES, "description": "from which it takes tasks; none named = all"},
        "slots": {"type": "integer", "minimum": 0, "maximum": 100_000, "description": "tasks that it runs at one time"},
        "reason": {**_LINE, "description": "why it takes no tasks"},
        "errors": {
            "type": "array", "maxItems": 20, "items": object_schema({"at": _SHORT, "message": _LINE}),
            "description": "the last warnings and errors of its log",
        },
        "proof": object_schema(
            {
                "passed": {"type": "boolean"}, "at": _SHORT,
                "checks": {
                    "type": "array", "maxItems": 200,
                    "items": object_schema(
                        {"limit": _SHORT, "runtime": _SHORT, "held": {"type": ["boolean", "null"]}, "message": _LINE}
                    ),
                },
            },
            required=["passed", "at", "checks"],
        ),
    }
)  # fmt: skip
"""What a node says of itself beside what it offers: which limits it tried to break, say. Bounded: about 200 KiB."""
CLAIM = object_schema(
    {
        **_WORDS,
        "slots": {"type": "integer", "minimum": 0, "maximum": 1000},
        "queues": _QUEUES,
        "wait": {"type": "number", "minimum": 0, "maximum": 30, "description": "seconds"},
        "idle": {"type": "boolean", "description": "nothing runs on the node: an exclusive task may be given"},
        "leases": {**_LEASES, "description": "those that the node knew of when it counted what is free"},
        "ahead": {
            **object_schema(
                {"capacity": _AMOUNTS, "slots": {"type": "integer", "minimum": 0, "maximum": 1000}},
                required=["capacity", "slots"],
            ),
            "description": "what may be given besides: short tasks make room for it in a moment",
        },
    },
    required=["node", "total", "capacity", "slots"],
)
HEARTBEAT = object_schema(
    {
        **_WORDS,
        "leases": _LEASES,
        "state": {"enum": list(NODE_STATES)},
        "about": ABOUT,
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
REBOOT = object_schema({"when_idle": {"type": "boolean", "description": "when nothing runs there any more"}})
LOG = object_schema({
    "lines": {"type": "integer", "minimum": 1, "maximum": 10_000},
    "wait": {"type": "number", "minimum": 0, "maximum": 60, "description": "seconds"},
})  # fmt: skip
LOG_TEXT = object_schema({"log": {"type": "string", "maxLength": MOST_LOG}}, required=["log"])
RELEASE = object_schema({"message": {"type": "string", "maxLength": 4096}}, required=["message"])


def _words(body: Mapping[str, Any], state: str | None) -> NodeWords:
    for text in (body["node"], *body.get("tags", ())):
        try:
            plain(text)
        except InputError as error:
            raise error.within("node" if text == body["node"] else "tags") from None
    words = NodeWords(
        body["node"], state, tuple(sorted(set(body.get("tags", ())))), body.get("total", {}), body.get("capacity", {}),
        body.get("instance"),
    )  # fmt: skip
    if state is None:
        return words
    about = body.get("about", {})
    image = about.get("image", {})
    version = image.get("version", "") if image.get("id") == IMAGE_ID else ""
    return replace(words, boot=about.get("boot"), image=plain(version), about=about)


def _takes_from(queues: Iterable[str], caller: Caller) -> frozenset[str]:
    """From which queues a node is given tasks that names these (none: all), by what its token lets it."""
    named, scope = frozenset(queues), caller.scope.queues
    if scope is None:
        return named
    return named & scope if named else scope


async def claim(deps: Deps, call: Call) -> Answer:
    """Ask for tasks that fit; wait for them up to `wait` seconds, or until something of this node is cancelled.

    The answer is empty as soon as a newer claim of the same node comes, or a heartbeat says that it is not active; and
    when the node has not been heard for the heartbeat's time.
    """
    body = call.body
    words = _words(body, None)
    offer = Offer(frozenset(words.tags), Limits(words.total), Limits(words.capacity), body.get("idle", False))
    ahead = Ahead(Limits(body["ahead"]["capacity"]), body["ahead"]["slots"]) if "ahead" in body else NOTHING_AHEAD
    queues, scope = _takes_from(body.get("queues", ()), call.caller), call.caller.scope.queues
    if scope is not None and not queues:
        raise NotAllowed(f"this token is for the queues {', '.join(sorted(scope))} only", field="queues")
    knows = frozenset(body["leases"]) if "leases" in body else None
    request = Claim(call.caller.user_id, words, offer, body["slots"], queues, knows=knows, ahead=ahead)

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
    waiting = deps.wakes.for_tasks(words.name, wanted, user_id=call.caller.user_id, heard=deps.steady())
    with deps.metrics.claims.track_inprogress(), waiting as waiter:
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
            if claimed.given or claimed.cancel or claimed.log or deps.wakes.closing:
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
        "heartbeat_s": deps.settings.heartbeat, "asked": claimed.asked, "log": _log_json(claimed.log),
    })  # fmt: skip


def _log_json(wish: LogWish | None) -> dict[str, int] | None:
    return None if wish is None else {"number": wish.number, "lines": wish.lines}


async def heartbeat(deps: Deps, call: Call) -> Answer:
    """Say that a node lives and which leases it holds; learn which are lost and which to stop."""
    words, now = _words(call.body, call.body.get("state", "active")), deps.now()
    queues = sorted(_takes_from((words.about or {}).get("queues", ()), call.caller))
    words = replace(words, about={**(words.about or {}), "queues": queues})

    def work(db: Connection) -> claims.Beat:
        if words.state != "active":
            db.announce(NodeChanged(words.name))
        return claims.heartbeat(db, words, call.caller.user_id, call.body["leases"], now, rules=deps.rules)

    beat = await ask(deps.store.write(work))
    deps.wakes.heard(words.name, deps.steady())
    return Answer(json={
        "lost": beat.lost, "cancel": beat.cancel, "heartbeat_s": deps.settings.heartbeat, "asked": beat.asked,
        "log": _log_json(beat.log),
    })  # fmt: skip


def _handed(result: Result) -> claims.Handed:
    if result.result is not None and not -(2**31) <= result.result < 2**32:
        raise InputError(f"{result.result} is no exit code", field="result")
    if result.message is not None:
        result = result.replace(message=result.message.encode(errors="replace").decode().replace("\0", "?"))
    return claims.Handed.of(result)


def _tell_idle(db: Connection, nodes_of: set[str]) -> None:
    busy = {node: leases.any_on(db, node) for node in sorted(nodes_of)}
    db.announce_then(lambda: [NodeChanged(node) for node in busy if not busy[node]()])


def _count(deps: Deps, call: Call, lease: int, result: Result, answer: tuple[Held, str] | KolejkaError) -> None:
    """Record what became of a result."""
    if isinstance(answer, KolejkaError):
        if isinstance(answer, Conflict):
            deps.metrics.refused.inc()
        about = {"task": result.id, "lease": lease, "by": call.caller.user, "reason": answer.message}
        logger.warning("result refused", extra=about)
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


def _node_json(node: dict[str, Any], now: float, rules: Rules, *, errors: bool) -> dict[str, Any]:
    """A node as it is shown; its ``errors``, which may name tasks of others, to those who see all."""
    about, state = node["about"], node_state(node, now, rules)
    shown = {key: value for key, value in node.items() if key not in {"about", "image_version"}}
    return {
        **shown, "state": state, "first_seen": stamp(node["first_seen"]), "last_seen": stamp(node["last_seen"]),
        "image": about.get("image"), "version": about.get("version"), "queues": about.get("queues", []),
        "reason": outdated(node, rules) if state == "outdated" else about.get("reason"),
        "errors": about.get("errors", []) if errors else [], "proof": about.get("proof"),
    }  # fmt: skip


def _whose(call: Call) -> int | None:
    """Whose tasks a listing of nodes may name."""
    return None if call.caller.sees_all else call.caller.user_id


async def list_nodes(deps: Deps, call: Call) -> Answer:
    """List the nodes. `busy` counts the tasks that run there; `running` names those that the caller may see."""
    now = deps.clock()
    found = await ask(deps.store.read(lambda db: nodes.listing(db, owner_id=_whose(call))))
    return Answer(json=[_node_json(node, now, deps.rules, errors=call.caller.sees_all) for node in found])


async def show_node(deps: Deps, call: Call) -> Answer:
    """Show a node."""
    name, now = plain(call.path["name"]), deps.clock()
    found = await ask(deps.store.read(lambda db: nodes.listing(db, name, owner_id=_whose(call))))
    if not found:
        raise NotFound(f"there is no node {name[:255]!r}")
    return Answer(json=_node_json(found[0], now, deps.rules, errors=call.caller.sees_all))


async def drain_node(deps: Deps, call: Call) -> Answer:
    """Ask a node to take no more tasks. What runs there ends by itself; the foreman stays."""
    return await _ask_node(deps, call, nodes.DRAIN, "node.drain")


async def resume_node(deps: Deps, call: Call) -> Answer:
    """Ask a node that was asked to drain or to reboot to take tasks again."""
    return await _ask_node(deps, call, None, "node.resume")


async def reboot_node(deps: Deps, call: Call) -> Answer:
    """Ask a node to reboot: at once, or when nothing runs there any more. Its tasks are given back, not lost."""
    asked = nodes.REBOOT_WHEN_IDLE if call.body.get("when_idle") else nodes.REBOOT
    return await _ask_node(deps, call, asked, "node.reboot", when_idle=bool(call.body.get("when_idle")))


async def delete_node(deps: Deps, call: Call) -> Answer:
    """Forget a node that is silent and will not come back. It is there again when it is heard again."""
    name, now = plain(call.path["name"]), deps.clock()

    def work(db: Connection) -> None:
        nodes.delete(db, name, now, silent_before=now - deps.rules.heartbeat_s)
        record(db, call.caller, "node.delete", name, now)

    await ask(deps.store.write(work))
    logger.info("node deleted", extra={"node": name, "by": call.caller.user})
    return Answer(204)


async def _ask_node(deps: Deps, call: Call, asked: str | None, act: str, **detail: object) -> Answer:
    name, now, caller = plain(call.path["name"]), deps.clock(), call.caller

    def work(db: Connection) -> dict[str, Any]:
        nodes.ask(db, name, asked)
        db.announce(NodeChanged(name))
        record(db, caller, act, name, now, **detail)
        return nodes.listing(db, name)[0]

    found = await ask(deps.store.write(work))
    logger.info("node asked", extra={"node": name, "asked": asked or "resume", "by": caller.user})
    return Answer(json=_node_json(found, now, deps.rules, errors=True))


async def get_log(deps: Deps, call: Call) -> Answer:
    """Bring the last lines of a node's log, which the node is asked for; wait for them. 202 when they did not come."""
    name, lines, caller = plain(call.path["name"]), call.body.get("lines", LOG_LINES), call.caller
    wish, deadline = LogWish(secrets.randbits(53), lines), deps.steady() + call.body.get("wait", LOG_WAIT_S)

    def want(db: Connection) -> None:
        now = deps.clock()
        nodes.want_log(db, name, wish, now, forgotten_before=now - 10 * LOG_WAIT_S)
        db.announce(NodeChanged(name))

    def begin(db: Connection) -> None:
        want(db)
        record(db, caller, "node.log", name, deps.clock(), lines=lines)
        node = nodes.listing(db, name)[0]
        if node_state(node, deps.clock(), deps.rules) == "silent":
            raise Conflict(f"the node {name!r} is silent since {stamp(node['last_seen'])}; it tells nothing")

    await ask(deps.store.write(begin))
    leaving, text = asyncio.ensure_future(call.gone()), None
    try:
        with deps.wakes.for_log(wish.number) as waiter:
            while not deps.wakes.closing and not leaving.done():
                waiter.looked()
                text = await ask(deps.store.read(lambda db: nodes.find_log(db, wish.number)))
                left_s = deadline - deps.steady()
                if text is not None or left_s <= 0:
                    break
                if not await wait(waiter, min(left_s, ASK_AGAIN_S), call.gone):
                    await ask(deps.store.write(want))  # our word to the node may have got lost
    finally:
        leaving.cancel()
        await ask(deps.store.write(lambda db: nodes.drop_log(db, name, wish.number)))
    return Answer(202, {}) if text is None else Answer(json={"node": name, "log": text})


async def put_log(deps: Deps, call: Call) -> Answer:
    """Hand in lines of this node's log, as the answer to a claim or a heartbeat asked for."""
    name, number = plain(call.path["name"]), whole(call.path["number"], "log")
    text, user_id = call.body["log"].replace("\0", "?").encode(errors="replace").decode(), call.caller.user_id

    def work(db: Connection) -> None:
        nodes.keep_log(db, name, number, text, user_id)
        db.announce(LogTold(number))

    await ask(deps.store.write(work))
    return Answer(204)

"""Machines that ask to be let in, and the admins who answer them.

The first two calls take no token: whoever makes them is nobody yet. They are counted by address, their bodies are
small, they wait for nothing, and their answers say nothing that the caller did not bring: not whether a name is known,
who else asks, or (to whoever shows no secret) what became of a request.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from kolejka.common.enrolment import HASH_PATTERN, NAME_PATTERN, SECRET_PATTERN, digest, fingerprint
from kolejka.common.errors import NotAllowed
from kolejka.common.schema import object_schema
from kolejka.server.api.errors import TooMany
from kolejka.server.api.routes import Answer, Call, plain
from kolejka.server.api.tasks import record, stamp
from kolejka.server.auth import tokens
from kolejka.server.deps import Deps
from kolejka.server.storage import audit, enrolments
from kolejka.server.storage.base import Connection, ask
from kolejka.server.storage.enrolments import Enrolment

logger = logging.getLogger("kolejka.server")

MOST_BYTES: Final = 4096
"""size of a stranger's largest body"""
FULL_S: Final = 60.0
"""after so long a machine for which there was no room may ask again"""
ASK = object_schema(
    {
        "name": {"type": "string", "pattern": NAME_PATTERN, "description": "what the node is to be called"},
        "hash": {"type": "string", "pattern": HASH_PATTERN, "description": "SHA-256 of the secret that it keeps"},
    },
    required=["name", "hash"],
)
FETCH = object_schema({"secret": {"type": "string", "pattern": SECRET_PATTERN}}, required=["secret"])
WHICH = object_schema({
    "fingerprint": {"type": "string", "minLength": 1, "maxLength": 64, "description": "the one that is meant"},
})  # fmt: skip


def _json(found: Enrolment) -> dict[str, Any]:
    return {
        "name": found.name, "fingerprint": found.fingerprint, "state": found.state, "asked_at": stamp(found.asked_at),
        "seen_at": stamp(found.seen_at),
    }  # fmt: skip


def _check_stranger(deps: Deps, call: Call) -> None:
    """TooMany when this address called too often."""
    again_s = deps.strangers.wait_s(call.request.remote_addr)
    if again_s:
        raise TooMany("you call too often; wait", again_s=again_s)


async def ask_in(deps: Deps, call: Call) -> Answer:
    """Ask to be let in as a node. An admin compares the fingerprint; repeated, the answer is the same."""
    _check_stranger(deps, call)
    hashed, name, now, most = call.body["hash"], call.body["name"], deps.clock(), deps.settings.enrolments
    if most == 0:
        raise NotAllowed("no machine may ask this server to be let in; an admin makes a token by hand")
    if not await ask(deps.store.write(lambda db: enrolments.ask(db, hashed, name, now, most=most))):
        raise TooMany("too many machines wait to be let in; an admin approves or refuses some", again_s=FULL_S)
    return Answer(202, {"fingerprint": fingerprint(hashed)})


async def fetch_token(deps: Deps, call: Call) -> Answer:
    """Show the secret and get the token, once an admin has approved; 202 until then."""
    _check_stranger(deps, call)
    hashed, now = digest(call.body["secret"]), deps.clock()
    found = await ask(deps.store.read(lambda db: enrolments.find(db, hashed)))
    enrolments.answer(found)
    if enrolments.is_noted(found, now):
        return Answer(202, {})
    token = tokens.new_token()

    def work(db: Connection) -> Enrolment:
        told = enrolments.fetch(db, hashed, tokens.digest(token), now)
        if told.token_id is not None:
            audit.record(
                db, (told.name, told.token_id), "node.enrol", told.name, now=now,
                detail={"fingerprint": told.fingerprint},
            )  # fmt: skip
        return told

    told = await ask(deps.store.write(work))
    if told.token_id is None:
        return Answer(202, {})
    logger.info("node let in", extra={"node": told.name, "fingerprint": told.fingerprint, "token": told.token_id})
    return Answer(200, {"name": told.name, "token": token}, headers={"Cache-Control": "no-store"})


async def list_enrolments(deps: Deps, _call: Call) -> Answer:
    """List the machines that ask to be let in as nodes."""
    return Answer(json=[_json(one) for one in await ask(deps.store.read(enrolments.listing))])


async def approve(deps: Deps, call: Call) -> Answer:
    """Let the machine in that asks under this name; with a fingerprint, the one that has it."""
    name, now, caller = plain(call.path["name"]), deps.clock(), call.caller
    shown = call.body.get("fingerprint")

    def work(db: Connection) -> Enrolment:
        found = enrolments.approve(db, name, shown, heard_since=now - deps.settings.heartbeat, now=now)
        record(db, caller, "node.approve", name, now, fingerprint=found.fingerprint)
        return found

    found = await ask(deps.store.write(work))
    logger.info("node approved", extra={"node": name, "fingerprint": found.fingerprint, "by": caller.user})
    return Answer(json=_json(found))


async def refuse(deps: Deps, call: Call) -> Answer:
    """Refuse the machines that ask under this name; with a fingerprint, the one that has it."""
    name, now, caller = plain(call.path["name"]), deps.clock(), call.caller
    shown = call.body.get("fingerprint")

    def work(db: Connection) -> list[Enrolment]:
        found = enrolments.refuse(db, name, shown, most=deps.settings.enrolments)
        for one in found:
            record(db, caller, "node.refuse", name, now, fingerprint=one.fingerprint)
        return found

    found = await ask(deps.store.write(work))
    logger.info("nodes refused", extra={"node": name, "machines": len(found), "by": caller.user})
    return Answer(json=[{**_json(one), "state": enrolments.REFUSED} for one in found])

"""Users, tokens, what admins did, and the keys that sign callbacks."""

from __future__ import annotations

import logging
import secrets
from typing import Any, Final

from kolejka.common.errors import InputError
from kolejka.common.schema import object_schema
from kolejka.common.task import QUEUE_PATTERN
from kolejka.server.api.routes import Answer, Call, plain, whole
from kolejka.server.api.tasks import record, stamp
from kolejka.server.auth import tokens
from kolejka.server.auth.roles import Role
from kolejka.server.auth.tokens import Scope
from kolejka.server.deps import Deps
from kolejka.server.storage import audit, callbacks, users
from kolejka.server.storage.base import AccessChanged, Connection, ask

logger = logging.getLogger("kolejka.server")

SECRET: Final = "kcs_"

_ROLE = {"enum": [role.value for role in Role]}
_NAME = {"type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$"}
USER = object_schema({"name": _NAME, "role": _ROLE}, required=["name", "role"])
TOKEN = object_schema(
    {
        "user": _NAME, "role": _ROLE, "name": {"type": "string", "maxLength": 128},
        "expires_s": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 3650 * 86400},
        "scope": object_schema({
            "queues": {"type": "array", "minItems": 1, "maxItems": 100, "uniqueItems": True,
                       "items": {"type": "string", "pattern": QUEUE_PATTERN}},
            "read_only": {"type": "boolean"},
        }),
    },
    required=["user"],
)  # fmt: skip


def _stamped(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: stamp(value) if key.endswith("_at") else value for key, value in entry.items()}


async def whoami(_deps: Deps, call: Call) -> Answer:
    """Say whose token this is."""
    caller = call.caller
    return Answer(json={
        "user": caller.user, "role": caller.role, "token": caller.token, "scope": caller.scope.to_json(),
    })  # fmt: skip


async def add_user(deps: Deps, call: Call) -> Answer:
    """Make a user."""
    name, role, now = call.body["name"], call.body["role"], deps.clock()

    def work(db: Connection) -> None:
        users.add_user(db, name, role, now)
        record(db, call.caller, "user.create", name, now, role=role)

    await ask(deps.store.write(work))
    logger.info("user made", extra={"user": name, "role": role, "by": call.caller.user})
    return Answer(201, {"name": name, "role": role, "created_at": stamp(now)})


async def list_users(deps: Deps, _call: Call) -> Answer:
    """List the users."""
    return Answer(json=[_stamped(entry) for entry in await ask(deps.store.read(users.list_users))])


async def add_token(deps: Deps, call: Call) -> Answer:
    """Make a token for a user; it is shown this once."""
    body, now = call.body, deps.clock()
    role = Role(body["role"]) if "role" in body else None
    try:
        name = plain(body.get("name", ""))
    except InputError as error:
        raise error.within("name") from None
    expires_s, scope = body.get("expires_s"), Scope.parse(body.get("scope"))

    def work(db: Connection) -> tuple[int, str, Role]:
        made = tokens.issue(db, body["user"], role=role, name=name, now=now, expires_s=expires_s, scope=scope)
        record(
            db, call.caller, "token.create", body["user"], now, token=made[0], role=made[2].value, name=name,
            scope=scope.to_json(), expires_s=expires_s,
        )  # fmt: skip
        return made

    token_id, token, role = await ask(deps.store.write(work))
    logger.info("token made", extra={"token": token_id, "user": body["user"], "role": role, "by": call.caller.user})
    expires_at = stamp(None if expires_s is None else now + expires_s)
    return Answer(
        201,
        {"id": token_id, "token": token, "user": body["user"], "role": role, "name": name, "expires_at": expires_at,
         "scope": scope.to_json()},
        headers={"Cache-Control": "no-store"},
    )  # fmt: skip


async def list_tokens(deps: Deps, _call: Call) -> Answer:
    """List the tokens, without their secrets."""
    return Answer(json=[_stamped(entry) for entry in await ask(deps.store.read(users.list_tokens))])


async def revoke_token(deps: Deps, call: Call) -> Answer:
    """Revoke a token, at once."""
    token_id, now = whole(call.path["token_id"], "token"), deps.clock()

    def work(db: Connection) -> None:
        users.revoke_token(db, token_id)
        record(db, call.caller, "token.revoke", str(token_id), now)
        db.announce(AccessChanged())

    await ask(deps.store.write(work))
    deps.doorkeeper.forget()  # before the answer; those who wait are told by the announcement
    logger.info("token revoked", extra={"token": token_id, "by": call.caller.user})
    return Answer(204)


async def list_audit(deps: Deps, call: Call) -> Answer:
    """List what admins did, newest first. `next` is the `after` of the following page."""
    query = call.query
    rows = await ask(deps.store.read(
        lambda db: audit.listing(db, user=query["user"], after=query["after"], limit=query["limit"] + 1)
    ))  # fmt: skip
    page = rows[: query["limit"]]
    return Answer(json={
        "acts": [{**row, "at": stamp(row["at"])} for row in page],
        "next": str(page[-1]["id"]) if len(rows) > len(page) and page else None,
    })  # fmt: skip


async def make_callback_secret(deps: Deps, call: Call) -> Answer:
    """Make the key that signs the caller's callbacks, in place of any earlier; it is shown this once."""
    secret, now, caller = SECRET + secrets.token_urlsafe(32), deps.clock(), call.caller
    await ask(deps.store.write(lambda db: callbacks.set_secret(db, caller.user_id, secret, now)))
    logger.info("callback key made", extra={"user": caller.user})
    return Answer(201, {"secret": secret}, headers={"Cache-Control": "no-store"})

"""Users and tokens."""

from __future__ import annotations

import logging
from typing import Any

from kolejka.common.errors import InputError
from kolejka.common.schema import object_schema
from kolejka.server.api.routes import Answer, Call, plain, whole
from kolejka.server.api.tasks import stamp
from kolejka.server.auth import tokens
from kolejka.server.auth.roles import Role
from kolejka.server.deps import Deps
from kolejka.server.storage import users
from kolejka.server.storage.base import Connection, ask

logger = logging.getLogger("kolejka.server")

_ROLE = {"enum": [role.value for role in Role]}
_NAME = {"type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$"}
USER = object_schema({"name": _NAME, "role": _ROLE}, required=["name", "role"])
TOKEN = object_schema(
    {
        "user": _NAME, "role": _ROLE, "name": {"type": "string", "maxLength": 128},
        "expires_s": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 3650 * 86400},
    },
    required=["user"],
)  # fmt: skip


def _stamped(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: stamp(value) if key.endswith("_at") else value for key, value in entry.items()}


async def whoami(_deps: Deps, call: Call) -> Answer:
    """Say whose token this is."""
    caller = call.caller
    return Answer(json={"user": caller.user, "role": caller.role, "token": caller.token})


async def add_user(deps: Deps, call: Call) -> Answer:
    """Make a user."""
    name, role, now = call.body["name"], call.body["role"], deps.clock()
    await ask(deps.store.write(lambda db: users.add_user(db, name, role, now)))
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
    expires_s = body.get("expires_s")

    def work(db: Connection) -> tuple[int, str, Role]:
        return tokens.issue(db, body["user"], role=role, name=name, now=now, expires_s=expires_s)

    token_id, token, role = await ask(deps.store.write(work))
    logger.info("token made", extra={"token": token_id, "user": body["user"], "role": role, "by": call.caller.user})
    expires_at = stamp(None if expires_s is None else now + expires_s)
    return Answer(
        201,
        {"id": token_id, "token": token, "user": body["user"], "role": role, "name": name, "expires_at": expires_at},
        headers={"Cache-Control": "no-store"},
    )


async def list_tokens(deps: Deps, _call: Call) -> Answer:
    """List the tokens, without their secrets."""
    return Answer(json=[_stamped(entry) for entry in await ask(deps.store.read(users.list_tokens))])


async def revoke_token(deps: Deps, call: Call) -> Answer:
    """Revoke a token, at once."""
    token_id = whole(call.path["token_id"], "token")
    await ask(deps.store.write(lambda db: users.revoke_token(db, token_id)))
    deps.doorkeeper.forget()
    logger.info("token revoked", extra={"token": token_id, "by": call.caller.user})
    return Answer(204)

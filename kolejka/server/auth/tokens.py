"""Tokens: shown once, kept as a hash, checked on every request.

A token is ``klj_`` and 256 random bits, so its plain SHA-256 cannot be guessed back. Tokens that were found are
remembered for a few seconds, so that most requests ask no database; a revocation forgets them at once.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kolejka.common.errors import InputError
from kolejka.server.auth.roles import Role, may_hold
from kolejka.server.storage import users
from kolejka.server.storage.base import Connection, Store, ask

PREFIX: Final = "klj_"
_REMEMBER_S: Final = 5.0
_MOST: Final = 10_000


@dataclass(frozen=True)
class Caller:
    """Who makes a request. ``token`` is the token's id."""

    user_id: int
    user: str
    role: Role
    token: int

    @property
    def sees_all(self) -> bool:
        """Whether tasks of others exist for this caller."""
        return self.role in {Role.INSPECTOR, Role.ADMIN}


def new_token() -> str:
    """A fresh token."""
    return PREFIX + secrets.token_urlsafe(32)


def digest(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def issue(
    db: Connection, user: str, *, role: Role | None, name: str, now: float, expires_s: float | None = None
) -> tuple[int, str, Role]:
    """Make a token for a user: its id, itself, its role (by default the user's).

    NotFound when there is no such user, InputError when its role may not hold such a token.
    """
    user_id, user_role = users.find_user(db, user)
    role = Role(user_role) if role is None else role
    if not may_hold(Role(user_role), role):
        raise InputError(f"the user {user!r} has the role {user_role}, which may not hold a {role} token", field="role")
    token = new_token()
    expires_at = None if expires_s is None else now + expires_s
    token_id = users.add_token(
        db, user_id, role=role.value, name=name, digest=digest(token), now=now, expires_at=expires_at
    )
    return token_id, token, role


class NotKnown(InputError):
    """No token, or one that opens nothing."""

    code = "unauthorized"


class Doorkeeper:
    """Tells callers by their tokens. Used by one thread, the event loop's."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._known: dict[str, tuple[float, Caller, float | None]] = {}

    async def caller(self, authorization: str | None) -> Caller:
        """The caller behind an ``Authorization`` header. NotKnown when there is none."""
        if not authorization:
            raise NotKnown("no token was shown; run `kolejka login` or set KOLEJKA_CLIENT_TOKEN")
        kind, _, token = authorization.partition(" ")
        token = token.strip()
        if kind.lower() != "bearer" or not token:
            raise NotKnown("the Authorization header should be `Bearer TOKEN`")
        key, now = digest(token), self._clock()
        known = self._known.get(key)
        if known is None or not 0 <= now - known[0] < _REMEMBER_S:
            known = await self._find(key, now)
        if known[2] is not None and known[2] <= now:
            raise NotKnown("this token has expired; ask an admin for another")
        return known[1]

    async def _find(self, key: str, now: float) -> tuple[float, Caller, float | None]:
        found = await ask(self._store.read(lambda db: users.find_token(db, key)))
        if found is None:
            self._known.pop(key, None)
            raise NotKnown("this token is not known here; it may have been revoked")
        if len(self._known) >= _MOST:
            self._known.clear()
        caller = Caller(found.user_id, found.user, Role(found.role), found.id)
        self._known[key] = known = (now, caller, found.expires_at)
        return known

    def forget(self) -> None:
        """Ask the database again for every token: one was revoked."""
        self._known.clear()

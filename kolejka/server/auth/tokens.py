"""Tokens: shown once, kept as a hash, checked on every request.

A token is ``klj_`` and 256 random bits, so its plain SHA-256 cannot be guessed back. Tokens that were found are
remembered for a few seconds, so that most requests ask no database; a revocation forgets them at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from kolejka.common.errors import InputError
from kolejka.server.auth.roles import Role, may_hold
from kolejka.server.storage import users
from kolejka.server.storage.base import Connection, Store, ask
from kolejka.server.storage.blobs import Reach

PREFIX: Final = "klj_"
_REMEMBER_S: Final = 5.0
_MOST: Final = 10_000


@dataclass(frozen=True)
class Scope:
    """What narrows a token below its role: tasks of these queues only (``None``: of all), and reading only."""

    queues: frozenset[str] | None = None
    read_only: bool = False

    @classmethod
    def parse(cls, words: dict[str, Any] | None) -> Scope:
        """A scope from its JSON object, whose form was checked."""
        words = words or {}
        queues = words.get("queues")
        return cls(None if queues is None else frozenset(queues), bool(words.get("read_only")))

    def to_json(self) -> dict[str, Any] | None:
        """The object form; ``None`` when it narrows nothing."""
        words: dict[str, Any] = {} if self.queues is None else {"queues": sorted(self.queues)}
        return {**words, **({"read_only": True} if self.read_only else {})} or None

    def check(self, role: Role) -> None:
        """InputError when a token of this role cannot be narrowed so."""
        if role is Role.ADMIN and self != Scope():
            raise InputError(
                "an admin token can make itself another, so a scope would narrow nothing; give it a smaller role",
                field="scope",
            )
        if role is Role.NODE and self.read_only:
            raise InputError("a node that only reads can do nothing; leave it out", field="scope.read_only")


@dataclass(frozen=True)
class Caller:
    """Who makes a request. ``token`` is the token's id."""

    user_id: int
    user: str
    role: Role
    token: int
    scope: Scope = Scope()

    @property
    def sees_all(self) -> bool:
        """Whether tasks of others exist for this caller."""
        return self.role in {Role.INSPECTOR, Role.ADMIN}

    def reaches(self, owner_id: int, queue: str) -> bool:
        """Whether a task of this owner in this queue exists for this caller."""
        return (self.sees_all or owner_id == self.user_id) and (self.scope.queues is None or queue in self.scope.queues)

    @property
    def blobs(self) -> Reach:
        """Which blobs this caller may have."""
        return Reach(self.user_id, self.role is Role.NODE, self.sees_all, self.scope.queues, self.token)

    @property
    def uploads(self) -> Reach:
        """Which of them its words may name without bringing the bytes: its own, whatever it sees or runs of others."""
        return dataclasses.replace(self.blobs, node=False, everybody=False)


def new_token() -> str:
    """A fresh token."""
    return PREFIX + secrets.token_urlsafe(32)


def digest(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def issue(
    db: Connection, user: str, *, role: Role | None, name: str, now: float, expires_s: float | None = None,
    scope: Scope = Scope(),
) -> tuple[int, str, Role]:  # fmt: skip
    """Make a token for a user: its id, itself, its role (by default the user's).

    NotFound when there is no such user, InputError when its role may not hold such a token or bear such a scope.
    """
    user_id, user_role = users.find_user(db, user)
    role = Role(user_role) if role is None else role
    if not may_hold(Role(user_role), role):
        raise InputError(f"the user {user!r} is {user_role} and may not hold a token of the role {role}", field="role")
    scope.check(role)
    words = scope.to_json()
    token = new_token()
    expires_at = None if expires_s is None else now + expires_s
    token_id = users.add_token(
        db, user_id, role=role.value, name=name, digest=digest(token), now=now, expires_at=expires_at,
        scope=None if words is None else json.dumps(words),
    )  # fmt: skip
    return token_id, token, role


def _scope(text: str | None) -> Scope:
    return Scope.parse(json.loads(text)) if text else Scope()


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
        caller = Caller(found.user_id, found.user, Role(found.role), found.id, _scope(found.scope))
        self._known[key] = known = (now, caller, found.expires_at)
        return known

    def forget(self) -> None:
        """Ask the database again for every token: one was revoked."""
        self._known.clear()

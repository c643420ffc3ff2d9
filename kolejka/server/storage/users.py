"""Users and tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from kolejka.common.errors import Conflict, NotFound
from kolejka.server.storage.base import Connection


@dataclass(frozen=True)
class KnownToken:
    """A token as it is kept. ``user_role`` bounds ``role``."""

    id: int
    user_id: int
    user: str
    user_role: str
    role: str
    name: str
    expires_at: float | None
    scope: str | None


def add_user(db: Connection, name: str, role: str, now: float) -> int:
    """A new user's id. Conflict when there is one of that name."""
    row = db.row(
        "INSERT INTO users (name, role, created_at) VALUES (?, ?, ?) ON CONFLICT (name) DO NOTHING RETURNING id",
        name, role, now,
    )  # fmt: skip
    if row is None:
        raise Conflict(f"there is a user {name!r} already", field="name")
    return int(row[0])


def find_user(db: Connection, name: str) -> tuple[int, str]:
    """A user's id and role. NotFound when there is none."""
    row = db.row("SELECT id, role FROM users WHERE name = ?", name)
    if row is None:
        raise NotFound(f"there is no user {name!r}", field="user")
    return int(row[0]), str(row[1])


def list_users(db: Connection) -> list[dict[str, Any]]:
    """Every user, by name."""
    rows = db.rows("SELECT name, role, created_at FROM users ORDER BY name")
    return [{"name": name, "role": role, "created_at": created} for name, role, created in rows]


def add_token(
    db: Connection, user_id: int, *, role: str, name: str, digest: str, now: float, expires_at: float | None,
    scope: str | None = None,
) -> int:  # fmt: skip
    """Keep a token by its hash; its id. ``scope`` is the JSON of what narrows it."""
    row = db.row(
        "INSERT INTO tokens (user_id, role, name, hash, created_at, expires_at, scope) VALUES (?, ?, ?, ?, ?, ?, ?)"
        " RETURNING id",
        user_id, role, name, digest, now, expires_at, scope,
    )  # fmt: skip
    assert row is not None  # RETURNING gives the row that was made
    return int(row[0])


def find_token(db: Connection, digest: str) -> KnownToken | None:
    """The token with this hash."""
    row = db.row(
        "SELECT t.id, t.user_id, u.name, u.role, t.role, t.name, t.expires_at, t.scope"
        " FROM tokens t JOIN users u ON u.id = t.user_id WHERE t.hash = ?",
        digest,
    )
    return KnownToken(*row) if row else None


def list_tokens(db: Connection) -> list[dict[str, Any]]:
    """Every token without its secret, newest first."""
    rows = db.rows(
        "SELECT t.id, u.name, t.role, t.name, t.created_at, t.expires_at, t.scope"
        " FROM tokens t JOIN users u ON u.id = t.user_id ORDER BY t.id DESC"
    )
    names = ("id", "user", "role", "name", "created_at", "expires_at")
    return [{**dict(zip(names, row, strict=False)), "scope": json.loads(row[-1]) if row[-1] else None} for row in rows]


def revoke_token(db: Connection, token_id: int) -> None:
    """Forget a token: from now on it opens nothing. NotFound when there is none."""
    if not db.run("DELETE FROM tokens WHERE id = CAST(? AS BIGINT)", token_id):
        raise NotFound(f"there is no token {token_id}")
    db.run("DELETE FROM token_grants WHERE token_id = ?", token_id)

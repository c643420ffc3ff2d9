"""What admins did: a row for each act, written in the transaction of the act itself. Rows are never changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from kolejka.server.storage.base import Connection

_COLUMNS: Final = ("id", "at", "user", "token", "act", "target", "detail")


def record(
    db: Connection, who: tuple[str, int], act: str, target: str, *, now: float, detail: Mapping[str, object] = {}
) -> None:
    """Write down what the bearer (user, token's id) did: ``"token.create"`` of the user ``"ala"``, with details."""
    db.run(
        'INSERT INTO audit (at, "user", token_id, act, target, detail) VALUES (?, ?, ?, ?, ?, ?)',
        now, *who, act, target, json.dumps(detail),
    )  # fmt: skip


def listing(
    db: Connection, *, user: str | None = None, after: int | None = None, limit: int = 100
) -> list[dict[str, Any]]:
    """Acts, newest first; ``after`` is the cursor of the page before."""
    where, values = "", list[object]()
    if user is not None:
        where, values = where + ' AND "user" = ?', [*values, user]
    if after is not None:
        where, values = where + " AND id < ?", [*values, after]
    rows = db.rows(
        f'SELECT id, at, "user", token_id, act, target, detail FROM audit WHERE 1 = 1{where} ORDER BY id DESC LIMIT ?',  # noqa: S608 constants
        *values, limit,
    )  # fmt: skip
    return [{**dict(zip(_COLUMNS, row, strict=True)), "detail": json.loads(row[-1])} for row in rows]

"""The nodes and what they said last."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from kolejka.common.errors import NotAllowed
from kolejka.server.storage.base import Connection

_COLUMNS = "name, state, tags, total, capacity, first_seen, last_seen"


@dataclass(frozen=True)
class NodeWords:
    """What a node says about itself: ``total`` and ``capacity`` are plain limits.

    A ``state`` of ``None`` says nothing: a claim, which is older than the heartbeat that may have overtaken it.
    """

    name: str
    state: str | None
    tags: tuple[str, ...]
    total: dict[str, Any]
    capacity: dict[str, Any]


def heard(db: Connection, words: NodeWords, user_id: int, now: float) -> None:
    """Record a node's words. NotAllowed when the name belongs to another user: the first to use it keeps it."""
    changed = db.run(
        "INSERT INTO nodes (name, user_id, state, tags, total, capacity, first_seen, last_seen)"
        " VALUES (?, ?, COALESCE(?, 'active'), ?, ?, ?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET state = COALESCE(?, nodes.state), tags = excluded.tags,"
        " total = excluded.total, capacity = excluded.capacity, last_seen = excluded.last_seen"
        " WHERE nodes.user_id = excluded.user_id",
        words.name, user_id, words.state, json.dumps(words.tags), json.dumps(words.total), json.dumps(words.capacity),
        now, now, words.state,
    )  # fmt: skip
    if not changed:
        raise NotAllowed(f"the node name {words.name!r} belongs to another user; give this node another", field="node")


def takes_tasks(db: Connection, name: str) -> bool:
    """Whether the node neither drains nor is quarantined."""
    return db.row("SELECT 1 FROM nodes WHERE name = ? AND state = 'active'", name) is not None


def listing(db: Connection, name: str | None = None) -> list[dict[str, Any]]:
    """All nodes by name, or the one; each with the ids of the tasks that run on it."""
    where, values = (" WHERE name = ?", (name,)) if name is not None else ("", ())
    nodes = [
        {"name": row[0], "state": row[1], "tags": json.loads(row[2]), "total": json.loads(row[3]),
         "capacity": json.loads(row[4]), "first_seen": row[5], "last_seen": row[6], "running": []}
        for row in db.rows(f"SELECT {_COLUMNS} FROM nodes{where} ORDER BY name", *values)  # noqa: S608 constants
    ]  # fmt: skip
    by_name = {node["name"]: node["running"] for node in nodes}
    for holder, task_id in db.rows(
        "SELECT l.node, t.id FROM leases l JOIN tasks t ON t.number = l.number ORDER BY l.lease"
    ):
        if holder in by_name:
            by_name[holder].append(task_id)
    return nodes

"""The nodes and what they said last."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from kolejka.common.errors import NotAllowed, NotFound
from kolejka.server.storage.base import Connection

_COLUMNS = "name, state, tags, total, capacity, first_seen, last_seen, asked"
DRAIN = "drain"
"""what a node may be asked for: to take no more tasks"""


@dataclass(frozen=True)
class NodeWords:
    """What a node says about itself: ``total`` and ``capacity`` are plain limits.

    A ``state`` of ``None`` says nothing: a claim, which is older than the heartbeat that may have overtaken it. An
    ``instance`` tells two foremen of one name apart; ``None`` is one that does not tell.
    """

    name: str
    state: str | None
    tags: tuple[str, ...]
    total: dict[str, Any]
    capacity: dict[str, Any]
    instance: str | None = None


def heard(db: Connection, words: NodeWords, user_id: int, now: float, *, silent_before: float) -> None:
    """Record a node's words. NotAllowed when the name belongs to another user (the first to use it keeps it), or to
    another foreman that was heard since ``silent_before``.
    """
    changed = db.run(
        "INSERT INTO nodes (name, user_id, state, tags, total, capacity, first_seen, last_seen, instance)"
        " VALUES (?, ?, COALESCE(?, 'active'), ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET state = COALESCE(?, nodes.state), tags = excluded.tags,"
        " total = excluded.total, capacity = excluded.capacity, last_seen = excluded.last_seen,"
        " instance = COALESCE(excluded.instance, nodes.instance)"
        " WHERE nodes.user_id = excluded.user_id AND (nodes.last_seen < ?"
        " OR COALESCE(excluded.instance, nodes.instance, '') = COALESCE(nodes.instance, excluded.instance, ''))",
        words.name, user_id, words.state, json.dumps(words.tags), json.dumps(words.total), json.dumps(words.capacity),
        now, now, words.instance, words.state, silent_before,
    )  # fmt: skip
    if changed:
        return
    row = db.row("SELECT user_id, last_seen FROM nodes WHERE name = ?", words.name)
    if row is not None and row[0] == user_id:
        raise NotAllowed(
            f"another foreman uses the node name {words.name!r}, heard {max(0.0, now - row[1]):.0f} s ago; stop it, or "
            "give this one another --name",
            field="node",
        )
    raise NotAllowed(f"the node name {words.name!r} belongs to another user; give this node another", field="node")


def ask(db: Connection, name: str, asked: str | None) -> None:
    """An admin asks a node to DRAIN, or with ``None`` to work on. NotFound when there is no such node."""
    if not db.run("UPDATE nodes SET asked = ? WHERE name = ?", asked, name):
        raise NotFound(f"there is no node {name[:255]!r}")


def asked(db: Connection, name: str) -> str | None:
    """What an admin asks of the node."""
    row = db.row("SELECT asked FROM nodes WHERE name = ?", name)
    return row[0] if row else None


def claims(db: Connection, name: str) -> int:
    """A claim of a node arrives: its number, larger than those of all before."""
    row = db.row("UPDATE nodes SET claim = claim + 1 WHERE name = ? RETURNING claim", name)
    assert row is not None  # it was heard in this transaction
    return int(row[0])


def takes_tasks(db: Connection, name: str, claim: int) -> bool:
    """Whether the node neither drains nor is quarantined, nobody asked it to drain, and this claim is its newest.

    Until this transaction ends no other gives tasks to the node.
    """
    row = db.row("SELECT state = 'active' AND asked IS NULL, claim FROM nodes WHERE name = ? FOR UPDATE", name)
    return row is not None and bool(row[0]) and row[1] == claim


def listing(db: Connection, name: str | None = None, *, owner_id: int | None = None) -> list[dict[str, Any]]:
    """All nodes by name, or the one; each with how many tasks it runs (``busy``) and their ids (``running``).

    With ``owner_id`` the ids are those of this owner's tasks.
    """
    where, values = (" WHERE name = ?", (name,)) if name is not None else ("", ())
    nodes = [
        {"name": row[0], "state": row[1], "tags": json.loads(row[2]), "total": json.loads(row[3]),
         "capacity": json.loads(row[4]), "first_seen": row[5], "last_seen": row[6], "asked": row[7], "busy": 0,
         "running": []}
        for row in db.rows(f"SELECT {_COLUMNS} FROM nodes{where} ORDER BY name", *values)  # noqa: S608 constants
    ]  # fmt: skip
    by_name = {node["name"]: node for node in nodes}
    for holder, task_id, owner in db.rows(
        "SELECT l.node, t.id, t.owner_id FROM leases l JOIN tasks t ON t.number = l.number ORDER BY l.lease"
    ):
        if holder in by_name:
            by_name[holder]["busy"] += 1
            if owner_id in {None, owner}:
                by_name[holder]["running"].append(task_id)
    return nodes

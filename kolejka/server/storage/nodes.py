"""The nodes and what they said last."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

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


@dataclass(frozen=True)
class Standing:
    """Where a node stands: the number of its newest claim, and what an admin asks of it.

    ``takes`` = it neither drains nor is quarantined, and nobody asked it to drain.
    """

    claim: int
    takes: bool
    asked: str | None


_STANDING: Final = "claim, state = 'active' AND asked IS NULL, asked"


def heard(
    db: Connection, words: NodeWords, user_id: int, now: float, *, silent_before: float, claims: bool = False
) -> Callable[[], Standing]:
    """Record a node's words; what that gives says where it stands, which stays so until this transaction ends. With
    ``claims`` they are a claim, whose number is larger than those of all before.

    NotAllowed when the name belongs to another user (the first to use it keeps it), or to another foreman that was
    heard since ``silent_before``.
    """
    rows = db.soon(
        "INSERT INTO nodes (name, user_id, state, tags, total, capacity, first_seen, last_seen, instance, claim)"  # noqa: S608 constants
        " VALUES (?, ?, COALESCE(?, 'active'), ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET claim = nodes.claim + excluded.claim,"
        " state = COALESCE(?, nodes.state), tags = excluded.tags,"
        " total = excluded.total, capacity = excluded.capacity, last_seen = excluded.last_seen,"
        " instance = COALESCE(excluded.instance, nodes.instance)"
        " WHERE nodes.user_id = excluded.user_id AND (nodes.last_seen < ?"
        " OR COALESCE(excluded.instance, nodes.instance, '') = COALESCE(nodes.instance, excluded.instance, ''))"
        f" RETURNING {_STANDING}",
        words.name, user_id, words.state, json.dumps(words.tags), json.dumps(words.total), json.dumps(words.capacity),
        now, now, words.instance, int(claims), words.state, silent_before,
    )  # fmt: skip

    def told() -> Standing:
        found = rows()
        if not found:
            raise _not_its_own(db, words.name, user_id, now)
        claim, takes, asked = found[0]
        return Standing(claim, bool(takes), asked)

    return told


def _not_its_own(db: Connection, name: str, user_id: int, now: float) -> NotAllowed:
    row = db.row("SELECT user_id, last_seen FROM nodes WHERE name = ?", name)
    if row is not None and row[0] == user_id:
        return NotAllowed(
            f"another foreman uses the node name {name!r}, heard {max(0.0, now - row[1]):.0f} s ago; stop it, or "
            "give this one another --name",
            field="node",
        )
    return NotAllowed(f"the node name {name!r} belongs to another user; give this node another", field="node")


def ask(db: Connection, name: str, asked: str | None) -> None:
    """An admin asks a node to DRAIN, or with ``None`` to work on. NotFound when there is no such node."""
    if not db.run("UPDATE nodes SET asked = ? WHERE name = ?", asked, name):
        raise NotFound(f"there is no node {name[:255]!r}")


def stands(db: Connection, name: str) -> Callable[[], Standing]:
    """Ask where a node stands that was heard before, which stays so until this transaction ends."""
    rows = db.soon(f"SELECT {_STANDING} FROM nodes WHERE name = ? FOR UPDATE", name)  # noqa: S608 constants

    def told() -> Standing:
        [(claim, takes, asked)] = rows() or [(0, False, None)]  # its row is gone: it takes nothing
        return Standing(claim, bool(takes), asked)

    return told


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

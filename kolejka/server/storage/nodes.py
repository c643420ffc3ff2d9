"""The nodes, what they said last, and what is asked of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kolejka.common.errors import Conflict, NotAllowed, NotFound
from kolejka.server.storage import leases
from kolejka.server.storage.base import Connection, Row

_COLUMNS = (
    "n.name, n.state, n.tags, n.total, n.capacity, n.first_seen, n.last_seen, n.asked, n.reboot, n.boot, n.image,"
    " w.words"
)
DRAIN = "drain"
"""what a node may be asked for: to take no more tasks"""
REBOOT = "reboot"
"""to give back what runs and boot anew"""
REBOOT_WHEN_IDLE = "reboot when idle"
"""to take no more tasks, and boot anew when nothing runs any more"""


@dataclass(frozen=True)
class NodeWords:
    """What a node says about itself: ``total`` and ``capacity`` are plain limits.

    A ``state`` of ``None`` says nothing: a claim, which is older than the heartbeat that may have overtaken it. An
    ``instance`` tells two foremen of one name apart; ``None`` is one that does not tell. So it is with ``boot``, the
    kernel's id of this boot, and ``image``, the version of its node image (empty = it has none). ``about`` is what else
    it says of itself.
    """

    name: str
    state: str | None
    tags: tuple[str, ...]
    total: dict[str, Any]
    capacity: dict[str, Any]
    instance: str | None = None
    boot: str | None = None
    image: str | None = None
    about: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class LogWish:
    """An admin wants the last ``lines`` lines of a node's log, under this ``number``."""

    number: int
    lines: int


@dataclass(frozen=True)
class Standing:
    """Where a node stands: the number of its newest claim, what it said it is, what an admin asks of it, the version of
    its image, what of its log is wanted.
    """

    claim: int
    state: str
    asked: str | None
    image: str | None = None
    log: LogWish | None = None

    @classmethod
    def of(cls, row: Row) -> Standing:
        """From the columns ``_STANDING``."""
        claim, state, asked, image, number, lines = row
        return cls(claim, state, asked, image, None if number is None else LogWish(number, lines or 0))

    @property
    def takes(self) -> bool:
        """Whether it neither drains nor is quarantined, and nobody asks anything of it."""
        return self.state == "active" and self.asked is None


_STANDING: Final = "claim, state, COALESCE(reboot, asked), image, log_number, log_lines"


def heard(
    db: Connection, words: NodeWords, user_id: int, now: float, *, silent_before: float, claims: bool = False
) -> Callable[[], Standing]:
    """Record a node's words; what that gives says where it stands, which stays so until this transaction ends. With
    ``claims`` they are a claim, whose number is larger than those of all before. Another boot than the one known is the
    reboot that was asked for.

    NotAllowed when the name belongs to another user (the first to use it keeps it), or to another foreman that was
    heard since ``silent_before``.
    """
    rows = db.soon(
        "INSERT INTO nodes (name, user_id, state, tags, total, capacity, first_seen, last_seen, instance, claim, boot,"  # noqa: S608 constants
        " image) VALUES (?, ?, COALESCE(?, 'active'), ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET claim = nodes.claim + excluded.claim,"
        " state = COALESCE(?, nodes.state), tags = excluded.tags,"
        " total = excluded.total, capacity = excluded.capacity, last_seen = excluded.last_seen,"
        " instance = COALESCE(excluded.instance, nodes.instance), boot = COALESCE(excluded.boot, nodes.boot),"
        " image = COALESCE(excluded.image, nodes.image),"
        " reboot = CASE WHEN excluded.boot <> nodes.boot THEN NULL ELSE nodes.reboot END"
        " WHERE nodes.user_id = excluded.user_id AND (nodes.last_seen < ?"
        " OR COALESCE(excluded.instance, nodes.instance, '') = COALESCE(nodes.instance, excluded.instance, ''))"
        f" RETURNING {_STANDING}",
        words.name, user_id, words.state, json.dumps(words.tags), json.dumps(words.total), json.dumps(words.capacity),
        now, now, words.instance, int(claims), words.boot, words.image, words.state, silent_before,
    )  # fmt: skip

    def told() -> Standing:
        found = rows()
        if not found:
            raise _not_its_own(db, words.name, user_id, now)
        if words.about is not None:
            _keep_words(db, words.name, json.dumps(words.about, sort_keys=True))
        return Standing.of(found[0])

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


def _keep_words(db: Connection, name: str, text: str) -> None:
    """Most heartbeats say what the one before said, and write nothing here."""
    db.later(
        "INSERT INTO node_words (node, words) VALUES (?, ?)"
        " ON CONFLICT (node) DO UPDATE SET words = excluded.words WHERE node_words.words <> excluded.words",
        name, text,
    )  # fmt: skip


def ask(db: Connection, name: str, asked: str | None) -> None:
    """An admin asks a node to DRAIN, to REBOOT or REBOOT_WHEN_IDLE, or with ``None`` to work on.

    A node that drains goes on draining after the reboot. NotFound when there is no such node, Conflict when it cannot
    be asked: its foreman never said which boot this is, so nobody would know when it is done.
    """
    if asked in {REBOOT, REBOOT_WHEN_IDLE}:
        row = db.row("SELECT boot FROM nodes WHERE name = ? FOR UPDATE", name)
        if row is not None and row[0] is None:
            raise Conflict(f"the foreman of {name!r} is too old to be asked for a reboot; reboot it by hand")
        change, values = "reboot = ?", [asked]
    elif asked is None:
        change, values = "asked = NULL, reboot = NULL", []
    else:
        change, values = "asked = ?", [asked]
    if not db.run(f"UPDATE nodes SET {change} WHERE name = ?", *values, name):  # noqa: S608 constants
        raise NotFound(f"there is no node {name[:255]!r}")


def delete(db: Connection, name: str, now: float, *, silent_before: float) -> None:
    """Forget a node, whose name anybody may use then. NotFound when there is none.

    Conflict when it was heard since ``silent_before``, or tasks that ran there were not given to others yet.
    """
    row = db.row("SELECT last_seen FROM nodes WHERE name = ? FOR UPDATE", name)
    if row is None:
        raise NotFound(f"there is no node {name[:255]!r}")
    if row[0] >= silent_before:
        ago = f"heard {max(0.0, now - row[0]):.0f} s ago"
        raise Conflict(f"the node {name!r} is at work, {ago}; stop its foreman, and try again when it is silent")
    if leases.any_on(db, name)():
        raise Conflict(f"tasks still count as running on the node {name!r}; others get them soon, try again then")
    db.run("DELETE FROM reservations WHERE node = ?", name)
    db.run("DELETE FROM node_logs WHERE node = ?", name)
    db.run("DELETE FROM node_words WHERE node = ?", name)
    db.run("DELETE FROM nodes WHERE name = ?", name)


def stands(db: Connection, name: str) -> Callable[[], Standing]:
    """Ask where a node stands that was heard before, which stays so until this transaction ends."""
    rows = db.soon(f"SELECT {_STANDING} FROM nodes WHERE name = ? FOR UPDATE", name)  # noqa: S608 constants

    def told() -> Standing:
        found = rows()
        return Standing.of(found[0]) if found else Standing(0, "gone", None)  # it takes nothing

    return told


def want_log(db: Connection, name: str, wish: LogWish, now: float, *, forgotten_before: float) -> None:
    """An admin wants lines of a node's log: the node is told with its next claim or heartbeat. NotFound as ``ask``.

    What somebody wanted and did not come to read is forgotten.
    """
    if not db.run("UPDATE nodes SET log_number = ?, log_lines = ? WHERE name = ?", wish.number, wish.lines, name):
        raise NotFound(f"there is no node {name[:255]!r}")
    db.run("DELETE FROM node_logs WHERE asked_at < ?", forgotten_before)
    db.run(
        "INSERT INTO node_logs (number, node, asked_at) VALUES (?, ?, ?) ON CONFLICT (number) DO NOTHING",
        wish.number, name, now,
    )  # fmt: skip


def log_told(db: Connection, name: str) -> None:
    """The node is being told that its log is wanted."""
    db.later("UPDATE nodes SET log_number = NULL, log_lines = NULL WHERE name = ?", name)


def keep_log(db: Connection, name: str, number: int, text: str, user_id: int) -> None:
    """A node hands in lines of its log. NotFound when nobody waits for them, or for this user's."""
    done = db.run(
        "UPDATE node_logs SET log = ? WHERE number = ? AND node = ? AND log IS NULL"
        " AND EXISTS (SELECT 1 FROM nodes WHERE name = ? AND user_id = ?)",
        text, number, name, name, user_id,
    )  # fmt: skip
    if not done:
        raise NotFound("nobody waits for this log")


def find_log(db: Connection, number: int) -> str | None:
    """The lines that were handed in under a number."""
    row = db.row("SELECT log FROM node_logs WHERE number = ?", number)
    return row[0] if row else None


def drop_log(db: Connection, name: str, number: int) -> None:
    """Whoever wanted this log has it, or waits no more."""
    db.run("DELETE FROM node_logs WHERE number = ?", number)
    db.run("UPDATE nodes SET log_number = NULL, log_lines = NULL WHERE name = ? AND log_number = ?", name, number)


def listing(db: Connection, name: str | None = None, *, owner_id: int | None = None) -> list[dict[str, Any]]:
    """All nodes by name, or the one; each with how many tasks it runs (``busy``) and their ids (``running``), and what
    it says of itself (``about``).

    With ``owner_id`` the ids are those of this owner's tasks.
    """
    where, values = (" WHERE n.name = ?", (name,)) if name is not None else ("", ())
    nodes = [
        {"name": row[0], "state": row[1], "tags": json.loads(row[2]), "total": json.loads(row[3]), "busy": 0,
         "capacity": json.loads(row[4]), "first_seen": row[5], "last_seen": row[6], "asked": row[8] or row[7],
         "running": [], "boot": row[9], "image_version": row[10], "about": json.loads(row[11]) if row[11] else {}}
        for row in db.rows(
            f"SELECT {_COLUMNS} FROM nodes n LEFT JOIN node_words w ON w.node = n.name{where} ORDER BY n.name",  # noqa: S608 constants
            *values,
        )
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

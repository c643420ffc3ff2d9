"""Machines that ask to be let in, and what became of their asking.

::

    ask ──▶ waiting ──approve──▶ approved ──the secret is shown──▶ told ──a while──▶ (forgotten)
               └────refuse────▶ refused ──approve──▶ approved

Whoever asks is nobody yet, so what strangers can write is bounded: so many machines wait at most, so many refused ones
are remembered, and those that are not heard of any more are forgotten. A token is made when its machine shows the
secret. The answer may get lost, so the secret gives another one for a while, as long as the first was not revoked;
after that it opens nothing: a revoked node does not let itself in again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kolejka.common.enrolment import approval, fingerprint, same_fingerprint
from kolejka.common.errors import Conflict, NotAllowed, NotFound
from kolejka.server.auth.roles import Role
from kolejka.server.storage import users
from kolejka.server.storage.base import AccessChanged, Connection

WAITING: Final = "waiting"
APPROVED: Final = "approved"
REFUSED: Final = "refused"
TOLD: Final = "told"
KEEP_S: Final = 86400.0
"""a machine that has not asked for so long is forgotten"""
QUIET_S: Final = 600.0
"""one that has not asked for so long makes room for another where there is none"""
AGAIN_S: Final = 600.0
"""for so long after the first time the secret gives a token again"""
NOTE_S: Final = 60.0
"""how exactly it is known when a machine asked last; most of its questions write nothing"""
TOKEN_NAME: Final = "enrolment "
"""how names of tokens begin that enrolled machines got; the fingerprint follows"""
_LOCK: Final = "enrolments"
_COLUMNS: Final = "hash, name, state, asked_at, seen_at, token_id, told_at"


@dataclass(frozen=True)
class Enrolment:
    """A machine that asked. ``hash`` is the SHA-256 of its secret."""

    hash: str
    name: str
    state: str
    asked_at: float
    seen_at: float
    token_id: int | None = None
    told_at: float | None = None

    @property
    def fingerprint(self) -> str:
        """What people compare."""
        return fingerprint(self.hash)


def ask(db: Connection, hashed: str, name: str, now: float, *, most: int) -> bool:
    """A machine asks to be let in. Asking again is fine. False when ``most`` wait already."""
    _lock(db)
    db.run("DELETE FROM enrolments WHERE seen_at < ? OR (state = ? AND told_at < ?)", now - KEEP_S, TOLD, now - AGAIN_S)
    found = find(db, hashed)
    if found is not None:
        if found.state == WAITING:
            db.run("UPDATE enrolments SET name = ?, seen_at = ? WHERE hash = ?", name, now, hashed)
        return True
    if _count(db) >= most:
        db.run("DELETE FROM enrolments WHERE state = ? AND seen_at < ?", WAITING, now - QUIET_S)
        if _count(db) >= most:
            return False
    db.run(
        "INSERT INTO enrolments (hash, name, state, asked_at, seen_at) VALUES (?, ?, ?, ?, ?)",
        hashed, name, WAITING, now, now,
    )  # fmt: skip
    return True


def _lock(db: Connection) -> None:
    """Until this transaction ends nobody else lets machines ask or wait: so their number is known."""
    db.rows("SELECT 1 FROM chores WHERE name = ? FOR UPDATE", _LOCK)


def _count(db: Connection) -> int:
    row = db.row("SELECT COUNT(*) FROM enrolments WHERE state IN (?, ?)", WAITING, APPROVED)
    return int(row[0]) if row else 0


def find(db: Connection, hashed: str) -> Enrolment | None:
    """The machine with this secret's hash."""
    row = db.row(f"SELECT {_COLUMNS} FROM enrolments WHERE hash = ?", hashed)  # noqa: S608 constants
    return Enrolment(*row) if row else None


def listing(db: Connection, name: str | None = None) -> list[Enrolment]:
    """Those who wait or are about to fetch their token, and those who were refused; by name, the oldest first."""
    where, values = (" AND name = ?", (name,)) if name is not None else ("", ())
    return [Enrolment(*row) for row in db.rows(
        f"SELECT {_COLUMNS} FROM enrolments WHERE state <> ?{where} ORDER BY name, asked_at, hash", TOLD, *values  # noqa: S608 constants
    )]  # fmt: skip


def approve(db: Connection, name: str, shown: str | None, *, heard_since: float, now: float) -> Enrolment:
    """Let a machine in: with its next question it gets a token of the user of its name, who is made if need be.

    NotFound when none asks under the name (with this fingerprint). Conflict when it takes the fingerprint to tell which
    one is meant: several ask, or a node of the name was heard since ``heard_since``; or when the name is taken by
    somebody else.
    """
    _lock(db)
    chosen = _meant(listing(db, name), name, shown)
    _check_name(db, name, shown, heard_since=heard_since)
    try:
        users.find_user(db, name)
    except NotFound:
        users.add_user(db, name, Role.NODE.value, now)
    db.run("UPDATE enrolments SET state = ? WHERE hash = ?", APPROVED, chosen.hash)
    return Enrolment(chosen.hash, name, APPROVED, chosen.asked_at, chosen.seen_at)


def _meant(asking: Sequence[Enrolment], name: str, shown: str | None) -> Enrolment:
    if shown is not None:
        chosen = [one for one in asking if same_fingerprint(one.fingerprint, shown)]
        if not chosen:
            raise NotFound(f"no machine with this fingerprint asks to be {name!r}; see `kolejka node list`",
                           field="fingerprint")  # fmt: skip
        return chosen[0]
    waiting = [one for one in asking if one.state == WAITING]
    if not waiting:
        raise NotFound(f"no machine asks to be {name!r}; see `kolejka node list`")
    if len(waiting) > 1:
        raise Conflict(
            f"{len(waiting)} machines ask to be {name!r}; read the fingerprint on the right one's screen, then run "
            f"`{approval(name, 'FINGERPRINT')}`",
            field="fingerprint",
        )
    return waiting[0]


def _check_name(db: Connection, name: str, shown: str | None, *, heard_since: float) -> None:
    """Conflict when the name is another's, or (without a fingerprint) of a node that lives."""
    user = db.row("SELECT id, role FROM users WHERE name = ?", name)
    if user is not None and user[1] != Role.NODE:
        raise Conflict(f"there is a user {name!r} who is no node; give this node another name", field="name")
    node = db.row(
        "SELECT n.user_id, n.last_seen, u.name FROM nodes n JOIN users u ON u.id = n.user_id WHERE n.name = ?", name
    )
    if node is not None and (user is None or node[0] != user[0]):
        raise Conflict(f"the node name {name!r} belongs to the user {node[2]!r}; give this node another", field="name")
    if node is not None and node[1] >= heard_since and shown is None:
        raise Conflict(
            f"a node {name!r} is at work, and another machine asks for its name; if it is the right one, read the "
            f"fingerprint on its screen, then run `{approval(name, 'FINGERPRINT')}`",
            field="fingerprint",
        )


def refuse(db: Connection, name: str, shown: str | None, *, most: int) -> list[Enrolment]:
    """Refuse those who ask under a name, or the one with this fingerprint; who they are.

    NotFound when there is none. At most ``most`` refused ones are remembered, those who asked last.
    """
    _lock(db)
    asking = [one for one in listing(db, name) if one.state != REFUSED]
    chosen = [one for one in asking if shown is None or same_fingerprint(one.fingerprint, shown)]
    if not chosen:
        which = " with this fingerprint" if shown is not None else ""
        raise NotFound(f"no machine{which} asks to be {name!r}; see `kolejka node list`")
    for one in chosen:
        db.run("UPDATE enrolments SET state = ? WHERE hash = ?", REFUSED, one.hash)
    db.run(
        "DELETE FROM enrolments WHERE state = ? AND hash NOT IN"
        " (SELECT hash FROM enrolments WHERE state = ? ORDER BY seen_at DESC, hash LIMIT ?)",
        REFUSED, REFUSED, most,
    )  # fmt: skip
    return chosen


def is_noted(found: Enrolment | None, now: float) -> bool:
    """Whether a question of this machine changes nothing that is kept."""
    return found is not None and found.state == WAITING and 0 <= now - found.seen_at < NOTE_S


def answer(found: Enrolment | None) -> None:
    """NotFound or NotAllowed when that is the answer to a machine's question."""
    if found is None:
        raise NotFound("no machine asks with this secret; ask to be let in first", field="secret")
    if found.state == REFUSED:
        raise NotAllowed("an admin refused to let this machine in")


def fetch(db: Connection, hashed: str, token: str, now: float) -> Enrolment:
    """A machine shows its secret: it, as it is now. Once it was approved it is told the token with the hash ``token``.

    The token takes the place of one that an earlier enrolment under the name gave. NotFound when nobody asks with this
    secret, NotAllowed when it was refused.
    """
    _lock(db)
    found = find(db, hashed)
    if found is not None:
        db.run("UPDATE enrolments SET seen_at = ? WHERE hash = ?", now, hashed)
    if found is not None and found.state == TOLD and not _may_have_another(db, found, now):
        raise NotAllowed("this machine had its token, which an admin may have revoked")
    answer(found)
    assert found is not None  # it was answered otherwise
    if found.state == WAITING:
        return found
    user_id, _ = users.find_user(db, found.name)
    db.run("DELETE FROM tokens WHERE user_id = ? AND name LIKE ?", user_id, TOKEN_NAME + "%")
    token_id = users.add_token(
        db, user_id, role=Role.NODE.value, name=TOKEN_NAME + found.fingerprint, digest=token, now=now, expires_at=None
    )
    db.run(
        "UPDATE enrolments SET state = ?, token_id = ?, told_at = COALESCE(told_at, ?) WHERE hash = ?",
        TOLD, token_id, now, hashed,
    )  # fmt: skip
    db.announce(AccessChanged())
    return Enrolment(hashed, found.name, TOLD, found.asked_at, now, token_id, now)


def _may_have_another(db: Connection, found: Enrolment, now: float) -> bool:
    young = found.told_at is not None and now - found.told_at < AGAIN_S
    return young and db.row("SELECT 1 FROM tokens WHERE id = ?", found.token_id) is not None

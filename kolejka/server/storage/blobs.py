"""Which blobs there are, where their bytes lie, who may have them, and which nobody needs any more.

A caller may have what they uploaded, and what a task of theirs refers to; a node, what the tasks it runs refer to.
Knowing a hash gives nobody the bytes.

A blob lives while a task refers to it, and for a grace after it was last *used*: uploaded, asked for by an uploader, or
referred to. Whoever refers to a blob uses it in the same transaction, and a sweep first locks the rows it means to
take, then looks again at what refers to them: of the two, one sees what the other did, on every engine. A use that is
younger than ``FRESH_S`` is not written again; the shortest grace is far longer than that and any transaction.

What a sweep takes out of ``blobs`` it writes into ``removals`` in the same transaction. So bytes are removed only when
no row names them, and a sweep that dies in between is finished by the next.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kolejka.server.storage.base import Connection, marks, pieces
from kolejka.server.storage.blob_store import reference_at

FRESH_S: Final = 10.0
LEAST_GRACE_S: Final = 60.0

_UNREFERENCED: Final = "NOT EXISTS (SELECT 1 FROM blob_references r WHERE r.sha = blobs.sha)"


@dataclass(frozen=True)
class Blob:
    """A blob that exists."""

    size: int
    place: str


@dataclass(frozen=True)
class Added:
    """What became of an upload: ``new`` for its user; ``place`` is where the blob's bytes lie, maybe since before."""

    new: bool
    place: str


@dataclass(frozen=True)
class Reach:
    """Which blobs somebody may have: those that their user uploaded, and those of the user's tasks.

    As a ``node``, of the tasks that run on the user's nodes; as ``everybody``, of all tasks and all that came.
    With ``queues`` (of a token that is narrowed to them) of tasks in these only, and of the uploads those that came
    under this ``token``.
    """

    user_id: int
    node: bool = False
    everybody: bool = False
    queues: frozenset[str] | None = None
    token: int = 0

    @property
    def narrow_token(self) -> int | None:
        """The token, if it is narrowed."""
        return None if self.queues is None else self.token


def add(
    db: Connection, sha: str, size: int, place: str, *, user_id: int, now: float, token: int | None = None
) -> Added:
    """Record bytes that are durable at a place, and who uploaded them; under which ``token``, if that is narrowed."""
    row = db.row(
        "INSERT INTO blobs (sha, size, created_at, place, used_at) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (sha) DO UPDATE SET used_at = excluded.used_at RETURNING place",
        sha, size, now, place, now,
    )  # fmt: skip
    assert row is not None  # made, or there before
    new = db.run(
        "INSERT INTO grants (user_id, sha, created_at) VALUES (?, ?, ?) ON CONFLICT (user_id, sha) DO NOTHING",
        user_id, sha, now,
    )  # fmt: skip
    if token is not None:
        db.run("INSERT INTO token_grants (token_id, sha) VALUES (?, ?) ON CONFLICT DO NOTHING", token, sha)
    return Added(bool(new), str(row[0]))


def find(db: Connection, sha: str) -> Blob | None:
    """A blob, ``None`` when there is no such."""
    row = db.row("SELECT size, place FROM blobs WHERE sha = ?", sha)
    return Blob(int(row[0]), str(row[1])) if row else None


def use(db: Connection, shas: Collection[str], now: float) -> None:
    """Let the grace of these blobs begin anew."""
    for some in pieces(shas):
        db.run(
            f"UPDATE blobs SET used_at = ? WHERE sha IN ({marks(some)}) AND used_at < ?",  # noqa: S608 question marks
            now, *some, now - FRESH_S,
        )  # fmt: skip


def granted(db: Connection, reach: Reach, *, after: str = "", limit: int) -> list[dict[str, Any]]:
    """What a user uploaded, by hash: ``sha256``, ``size``, ``created_at``, ``references`` = how many tasks need it.

    Of a narrowed token: what came under it.
    """
    narrow, values = "", list[object]()
    if reach.narrow_token is not None:
        narrow = " AND g.sha IN (SELECT sha FROM token_grants WHERE token_id = ?)"
        values = [reach.narrow_token]
    rows = db.rows(
        "SELECT b.sha, b.size, g.created_at,"  # noqa: S608 constants
        " (SELECT COUNT(DISTINCT r.number) FROM blob_references r JOIN tasks t ON t.number = r.number"
        " WHERE r.sha = b.sha AND t.owner_id = g.user_id)"
        f" FROM grants g JOIN blobs b ON b.sha = g.sha WHERE g.user_id = ? AND g.sha > ?{narrow}"
        " ORDER BY g.sha LIMIT ?",
        reach.user_id, after, *values, limit,
    )  # fmt: skip
    return [dict(zip(("sha256", "size", "created_at", "references"), row, strict=True)) for row in rows]


def disown(db: Connection, sha: str, reach: Reach) -> bool:
    """Forget that a user uploaded a blob; whether they had. Their tasks keep what they refer to."""
    if reach.narrow_token is not None and not db.run(
        "DELETE FROM token_grants WHERE sha = ? AND token_id = ?", sha, reach.narrow_token
    ):
        return False
    return bool(db.run("DELETE FROM grants WHERE sha = ? AND user_id = ?", sha, reach.user_id))


def unneeded(db: Connection, *, before: float, after: str, limit: int) -> tuple[list[str], str | None]:
    """Blobs that nothing refers to and nobody used since ``before``, among the next ``limit`` blobs by hash.

    With them the hash to go on ``after``; ``None`` at the end.
    """
    rows = db.rows(
        f"SELECT sha, used_at < ? AND {_UNREFERENCED} FROM blobs WHERE sha > ? ORDER BY sha LIMIT ?",  # noqa: S608 constants
        before, after, limit,
    )  # fmt: skip
    return [sha for sha, is_unneeded in rows if is_unneeded], str(rows[-1][0]) if len(rows) == limit else None


def take_out(db: Connection, shas: Sequence[str], *, before: float) -> int:
    """Take those of these blobs out that are still unneeded, their bytes to be removed; how many."""
    taken = 0
    for some in pieces(sorted(shas), 500):
        here = marks(some)
        # The lock: whoever refers to one of these from now on waits for us and then finds it gone.
        db.run(f"UPDATE blobs SET used_at = used_at WHERE sha IN ({here}) AND used_at < ?", *some, before)  # noqa: S608 question marks
        rows = db.rows(
            f"DELETE FROM blobs WHERE sha IN ({here}) AND used_at < ? AND {_UNREFERENCED}"  # noqa: S608 constants
            " RETURNING sha, place",
            *some, before,
        )  # fmt: skip
        for sha, place in rows:
            db.run("INSERT INTO removals (place) VALUES (?)", place)
            db.run("DELETE FROM grants WHERE sha = ?", sha)
            db.run("DELETE FROM token_grants WHERE sha = ?", sha)
        taken += len(rows)
    return taken


def removals(db: Connection, limit: int) -> list[str]:
    """Places whose bytes are to be removed."""
    return [row[0] for row in db.rows("SELECT place FROM removals LIMIT ?", limit)]


def removed(db: Connection, places: Collection[str]) -> None:
    """The bytes at these places are gone."""
    for some in pieces(places):
        db.run(f"DELETE FROM removals WHERE place IN ({marks(some)})", *some)  # noqa: S608 question marks


def strangers(db: Connection, places: Collection[str]) -> list[str]:
    """Those of these places that no row names."""
    known: set[str] = set()
    for some in pieces(places, 500):
        shas = [reference_at(place) for place in some]
        known.update(row[0] for row in db.rows(
            f"SELECT place FROM blobs WHERE sha IN ({marks(shas)})", *shas  # noqa: S608 question marks
        ))  # fmt: skip
        known.update(row[0] for row in db.rows(
            f"SELECT place FROM removals WHERE place IN ({marks(some)})", *some  # noqa: S608 question marks
        ))  # fmt: skip
    return [place for place in places if place not in known]


def readable(db: Connection, sha: str, reach: Reach) -> bool:
    """Whether somebody may have the blob."""
    if reach.everybody and reach.queues is None:
        return True
    if sha in _uploaded(db, [sha], reach):
        return True
    if reach.node:
        source = "leases q ON q.number = r.number JOIN nodes n ON n.name = q.node AND n.user_id = ?"
    else:
        source = "tasks q ON q.number = r.number" + ("" if reach.everybody else " AND q.owner_id = ?")
    whose = () if reach.everybody and not reach.node else (reach.user_id,)
    queues = "" if reach.queues is None else f" AND q.queue IN ({marks(list(reach.queues))})"
    return bool(db.row(
        f"SELECT 1 FROM blob_references r JOIN {source} WHERE r.sha = ?{queues} LIMIT 1",  # noqa: S608 constants, marks
        *whose, sha, *(reach.queues or ()),
    ))  # fmt: skip


def _uploaded(db: Connection, shas: Collection[str], reach: Reach) -> set[str]:
    """Those of these blobs that came from this user, or under this narrowed token."""
    if reach.narrow_token is None:
        where, whose = "grants WHERE user_id", reach.user_id
    else:
        where, whose = "token_grants WHERE token_id", reach.narrow_token
    return {row[0] for some in pieces(shas) for row in db.rows(
        f"SELECT sha FROM {where} = ? AND sha IN ({marks(some)})", whose, *some  # noqa: S608 constants, marks
    )}  # fmt: skip


def readable_among(db: Connection, shas: Collection[str], reach: Reach) -> set[str]:
    """Those of these blobs that somebody may have."""
    found = _uploaded(db, shas, reach)
    return found | {sha for sha in set(shas) - found if readable(db, sha, reach)}  # few, mostly none


@dataclass(frozen=True)
class Sizes:
    """Sizes of blobs: of those that a user uploaded, and of those that tasks refer to."""

    uploaded: Mapping[str, int]
    referred: Mapping[tuple[int, str], int]

    def get(self, number: int, sha: str) -> int | None:
        """The size of a blob, for a task's result."""
        return self.uploaded.get(sha, self.referred.get((number, sha)))


def sizes(db: Connection, wanted: Collection[tuple[int, str]], user_id: int, now: float) -> Sizes:
    """Of blobs that results of tasks name, those that the user uploaded, or that the task refers to.

    They are used ``now``.
    """
    shas = sorted({sha for _, sha in wanted})
    use(db, shas, now)
    uploaded: dict[str, int] = {}
    referred: dict[tuple[int, str], int] = {}
    for some in pieces(shas):
        uploaded.update(db.rows(
            f"SELECT b.sha, b.size FROM blobs b JOIN grants g ON g.sha = b.sha"  # noqa: S608 only question marks
            f" WHERE g.user_id = ? AND b.sha IN ({marks(some)})",
            user_id, *some,
        ))  # fmt: skip
    for number in {number for number, sha in wanted if sha not in uploaded}:
        mine = {sha for other, sha in wanted if other == number and sha not in uploaded}
        for some in pieces(mine):
            referred.update(((number, sha), size) for sha, size in db.rows(
                f"SELECT b.sha, b.size FROM blobs b JOIN blob_references r ON r.sha = b.sha"  # noqa: S608 the same
                f" WHERE r.number = ? AND b.sha IN ({marks(some)})",
                number, *some,
            ))  # fmt: skip
    return Sizes(uploaded, referred)


def refer(db: Connection, references: Iterable[tuple[int, str]], kind: str) -> None:
    """Record that tasks need (``input``) or made (``output``) blobs."""
    for some in pieces(sorted(set(references))):
        text, values = db.table([(number, sha, kind) for number, sha in some], ("BIGINT", "TEXT", "TEXT"))
        db.later(
            f"INSERT INTO blob_references (number, sha, kind) SELECT * FROM {text} AS v WHERE true"  # noqa: S608 marks
            " ON CONFLICT DO NOTHING",
            *values,
        )

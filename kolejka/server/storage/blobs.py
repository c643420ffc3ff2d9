"""Which blobs there are, and who may have them.

A caller may have what they uploaded, and what a task of theirs refers to; a node, what the tasks it runs refer to.
Knowing a hash gives nobody the bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from kolejka.server.storage.base import Connection, marks, pieces


def add(db: Connection, sha: str, size: int, user_id: int, now: float) -> bool:
    """Record a blob whose bytes are on disk and who uploaded it; whether this user did so for the first time."""
    db.run("INSERT INTO blobs (sha, size, created_at) VALUES (?, ?, ?) ON CONFLICT (sha) DO NOTHING", sha, size, now)
    return bool(db.run(
        "INSERT INTO grants (user_id, sha, created_at) VALUES (?, ?, ?) ON CONFLICT (user_id, sha) DO NOTHING",
        user_id, sha, now,
    ))  # fmt: skip


def size(db: Connection, sha: str) -> int | None:
    """A blob's size in bytes, ``None`` when there is no such blob."""
    row = db.row("SELECT size FROM blobs WHERE sha = ?", sha)
    return int(row[0]) if row else None


def readable(db: Connection, sha: str, user_id: int, *, node: bool) -> bool:
    """Whether this user may have the blob: as the ``node`` that runs a task with it, or else as a task's owner."""
    if db.row("SELECT 1 FROM grants WHERE user_id = ? AND sha = ?", user_id, sha):
        return True
    if node:
        return bool(db.row(
            "SELECT 1 FROM blob_references r JOIN leases l ON l.number = r.number JOIN nodes n ON n.name = l.node"
            " WHERE r.sha = ? AND n.user_id = ? LIMIT 1",
            sha, user_id,
        ))  # fmt: skip
    return bool(db.row(
        "SELECT 1 FROM blob_references r JOIN tasks t ON t.number = r.number"
        " WHERE r.sha = ? AND t.owner_id = ? LIMIT 1",
        sha, user_id,
    ))  # fmt: skip


def granted_sizes(db: Connection, shas: Collection[str], user_id: int, *, number: int | None = None) -> dict[str, int]:
    """Of these blobs, those that the user uploaded, or (with ``number``) that the task refers to, with their sizes."""
    found: dict[str, int] = {}
    for some in pieces(shas):
        found.update(db.rows(
            f"SELECT b.sha, b.size FROM blobs b JOIN grants g ON g.sha = b.sha"  # noqa: S608 only question marks
            f" WHERE g.user_id = ? AND b.sha IN ({marks(some)})",
            user_id, *some,
        ))  # fmt: skip
        if number is not None:
            found.update(db.rows(
                f"SELECT b.sha, b.size FROM blobs b JOIN blob_references r ON r.sha = b.sha"  # noqa: S608 the same
                f" WHERE r.number = ? AND b.sha IN ({marks(some)})",
                number, *some,
            ))  # fmt: skip
    return found


def refer(db: Connection, number: int, shas: Iterable[str], kind: str) -> None:
    """Record that a task needs (``input``) or made (``output``) these blobs."""
    for sha in shas:
        db.run(
            "INSERT INTO blob_references (number, sha, kind) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", number, sha, kind
        )

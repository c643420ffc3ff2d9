"""Where a blob's bytes lie and when it was last asked for; bytes to be removed; work that one server does for all."""

from __future__ import annotations

from typing import Any


def up(_migrator: Any, db: Any) -> None:
    """Blobs of the first schema lie under their hash."""
    for statement in (
        "ALTER TABLE blobs ADD COLUMN place TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE blobs ADD COLUMN used_at DOUBLE PRECISION NOT NULL DEFAULT 0",
        "UPDATE blobs SET place = substr(sha, 1, 2) || '/' || substr(sha, 3), used_at = created_at",
        "CREATE TABLE removals (place TEXT NOT NULL PRIMARY KEY)",
        "CREATE TABLE chores (name TEXT NOT NULL PRIMARY KEY, due_at DOUBLE PRECISION NOT NULL)",
        "INSERT INTO chores (name, due_at) VALUES ('sweep', 0)",
    ):
        db.execute_sql(statement)

"""What nodes tell of themselves and are asked for; machines that ask to be let in."""

from __future__ import annotations

from typing import Any


def up(_migrator: Any, db: Any) -> None:
    """Add the columns and tables. What a node says at length stands apart, so that heartbeats stay narrow."""
    for statement in (
        "ALTER TABLE nodes ADD COLUMN boot TEXT",
        "ALTER TABLE nodes ADD COLUMN image TEXT",
        "ALTER TABLE nodes ADD COLUMN reboot TEXT",
        "ALTER TABLE nodes ADD COLUMN log_number BIGINT",
        "ALTER TABLE nodes ADD COLUMN log_lines INTEGER",
        "CREATE TABLE node_words (node TEXT NOT NULL PRIMARY KEY, words TEXT NOT NULL)",
        (
            "CREATE TABLE node_logs (number BIGINT NOT NULL PRIMARY KEY, node TEXT NOT NULL,"
            " asked_at DOUBLE PRECISION NOT NULL, log TEXT)"
        ),
        (
            "CREATE TABLE enrolments (hash TEXT NOT NULL PRIMARY KEY, name TEXT NOT NULL, state TEXT NOT NULL,"
            " asked_at DOUBLE PRECISION NOT NULL, seen_at DOUBLE PRECISION NOT NULL, token_id INTEGER,"
            " told_at DOUBLE PRECISION)"
        ),
        "INSERT INTO chores (name, due_at) VALUES ('enrolments', 0)",
    ):
        db.execute_sql(statement)

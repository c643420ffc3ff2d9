"""What came under a token that is narrowed to queues: such a token reaches no other uploads of its user."""

from __future__ import annotations

from typing import Any


def up(_migrator: Any, db: Any) -> None:
    """Add the table. Uploads of before are reached through the tasks that refer to them, or come again."""
    for statement in (
        "CREATE TABLE token_grants (token_id INTEGER NOT NULL, sha TEXT NOT NULL, PRIMARY KEY (token_id, sha))",
        "CREATE INDEX token_grants_sha ON token_grants (sha)",
    ):
        db.execute_sql(statement)

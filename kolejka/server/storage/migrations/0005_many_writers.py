"""Many servers on one database: a clock, a node's newest claim, who committed what, room for heartbeats."""

from __future__ import annotations

from typing import Any

import peewee as p


def up(_migrator: Any, db: Any) -> None:
    """Make the clock, which goes on where the latest heartbeat was; leave room in pages whose rows change in place."""
    for statement in (
        "CREATE TABLE clock (id INTEGER NOT NULL PRIMARY KEY, steady DOUBLE PRECISION NOT NULL)",
        "INSERT INTO clock (id, steady) SELECT 1, COALESCE(MAX(heartbeat_at), 0) FROM leases",
        "ALTER TABLE nodes ADD COLUMN claim BIGINT NOT NULL DEFAULT 0",
    ):
        db.execute_sql(statement)
    if not isinstance(db, p.SqliteDatabase):
        db.execute_sql(
            "CREATE TABLE writers (writer TEXT NOT NULL PRIMARY KEY, number BIGINT NOT NULL, at TIMESTAMPTZ NOT NULL)"
        )
        for table in ("leases", "nodes", "writers"):
            db.execute_sql(f"ALTER TABLE {table} SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05)")

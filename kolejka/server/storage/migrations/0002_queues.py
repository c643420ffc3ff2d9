"""Queues become policies; leases, accounting and two narrow tables carry what fairness and reservations go by."""

from __future__ import annotations

from typing import Any

import peewee as p


def up(_migrator: Any, db: Any) -> None:
    """Add the columns and tables."""

    class Table(p.Model):
        class Meta:
            database = db
            legacy_table_names = False

    class OwnerUsage(Table):
        owner_id = p.IntegerField(primary_key=True)
        amount = p.DoubleField()
        at = p.DoubleField()

    class Reservations(Table):
        node = p.TextField(primary_key=True)
        number = p.BigIntegerField(unique=True)
        owner_id = p.IntegerField()
        cpus = p.DoubleField()

    for statement in (
        "ALTER TABLE queues ADD COLUMN members TEXT NOT NULL DEFAULT '[]'",
        "ALTER TABLE queues ADD COLUMN images TEXT NOT NULL DEFAULT '[]'",
        "ALTER TABLE queues ADD COLUMN runtimes TEXT NOT NULL DEFAULT '[]'",
        "ALTER TABLE queues ADD COLUMN defaults TEXT NOT NULL DEFAULT '{}'",
        "ALTER TABLE queues ADD COLUMN ceilings TEXT NOT NULL DEFAULT '{}'",
        "ALTER TABLE queues ADD COLUMN running INTEGER NULL",
        "ALTER TABLE queues ADD COLUMN running_per_owner INTEGER NULL",
        "ALTER TABLE queues ADD COLUMN retention_s DOUBLE PRECISION NULL",
        "ALTER TABLE leases ADD COLUMN queue TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE leases ADD COLUMN cpus DOUBLE PRECISION NOT NULL DEFAULT 1",
        "ALTER TABLE leases ADD COLUMN started_at DOUBLE PRECISION NOT NULL DEFAULT 0",
        "UPDATE leases SET started_at = heartbeat_at",
        "UPDATE leases SET queue = (SELECT t.queue FROM tasks t WHERE t.number = leases.number)",
        "ALTER TABLE accounting ADD COLUMN cpus DOUBLE PRECISION NULL",
        "ALTER TABLE accounting ADD COLUMN charged INTEGER NOT NULL DEFAULT 1",
        "CREATE INDEX accounting_uncharged ON accounting (lease) WHERE charged = 0",
    ):
        db.execute_sql(statement)
    db.create_tables([OwnerUsage, Reservations], safe=False)

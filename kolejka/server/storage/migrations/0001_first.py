"""The first schema."""

from __future__ import annotations

from typing import Any

import peewee as p
from playhouse.sqlite_ext import AutoIncrementField


def up(_migrator: Any, db: Any) -> None:
    """Make every table."""
    growing = AutoIncrementField if isinstance(db, p.SqliteDatabase) else p.BigAutoField

    class Table(p.Model):
        class Meta:
            database = db
            legacy_table_names = False

    class Users(Table):
        name = p.TextField(unique=True)
        role = p.TextField()
        created_at = p.DoubleField()

    class Tokens(Table):
        user_id = p.IntegerField(index=True)
        role = p.TextField()
        name = p.TextField()
        hash = p.TextField(unique=True)
        created_at = p.DoubleField()
        expires_at = p.DoubleField(null=True)

    class Queues(Table):
        name = p.TextField(primary_key=True)
        state = p.TextField()

    class Signatures(Table):
        id = p.BigIntegerField(primary_key=True)
        words = p.TextField()

    class Tasks(Table):
        number = p.BigAutoField() if growing is p.BigAutoField else p.AutoField()
        id = p.TextField(unique=True)
        owner_id = p.IntegerField()
        state = p.TextField()
        queue = p.TextField()
        signature_id = p.BigIntegerField()
        rank = p.IntegerField()
        created_at = p.DoubleField()
        started_at = p.DoubleField(null=True)
        finished_at = p.DoubleField(null=True)
        cancel_at = p.DoubleField(null=True)
        lease = p.BigIntegerField(null=True)
        node = p.TextField(null=True)
        outcome = p.TextField(null=True)
        verdict = p.TextField(null=True)
        exit_code = p.BigIntegerField(null=True)
        losses = p.IntegerField(constraints=[p.SQL("DEFAULT 0")])
        retries = p.IntegerField(constraints=[p.SQL("DEFAULT 0")])
        retry = p.TextField(null=True)
        idempotency_key = p.TextField(null=True)

    class Specs(Table):
        number = p.BigIntegerField(primary_key=True)
        spec = p.TextField()
        name = p.TextField(null=True)
        image = p.TextField(null=True)
        labels = p.TextField(null=True)

    class Labels(Table):
        key = p.TextField()
        value = p.TextField()
        number = p.BigIntegerField(index=True)

        class Meta:
            primary_key = p.CompositeKey("key", "value", "number")

    class Results(Table):
        number = p.BigIntegerField(primary_key=True)
        result = p.TextField()

    class Attempts(Table):
        lease = growing()
        number = p.BigIntegerField(index=True)
        node = p.TextField()
        state = p.TextField()
        started_at = p.DoubleField()
        finished_at = p.DoubleField(null=True)
        outcome = p.TextField(null=True)
        message = p.TextField(null=True)
        result_hash = p.TextField(null=True)
        task_state = p.TextField(null=True)

    class Leases(Table):
        lease = p.BigIntegerField(primary_key=True)
        number = p.BigIntegerField()
        owner_id = p.IntegerField(index=True)
        node = p.TextField(index=True)
        exclusive = p.IntegerField()
        heartbeat_at = p.DoubleField()
        deadline_at = p.DoubleField(null=True)

    class Nodes(Table):
        name = p.TextField(primary_key=True)
        user_id = p.IntegerField()
        state = p.TextField()
        tags = p.TextField()
        total = p.TextField()
        capacity = p.TextField()
        first_seen = p.DoubleField()
        last_seen = p.DoubleField()

    class Blobs(Table):
        sha = p.TextField(primary_key=True)
        size = p.BigIntegerField()
        created_at = p.DoubleField()

    class Grants(Table):
        user_id = p.IntegerField()
        sha = p.TextField(index=True)
        created_at = p.DoubleField()

        class Meta:
            primary_key = p.CompositeKey("user_id", "sha")

    class BlobReferences(Table):
        number = p.BigIntegerField()
        sha = p.TextField(index=True)
        kind = p.TextField()

        class Meta:
            primary_key = p.CompositeKey("number", "sha", "kind")

    class Accounting(Table):
        lease = p.BigIntegerField(primary_key=True)
        task_id = p.TextField()
        owner_id = p.IntegerField()
        queue = p.TextField()
        node = p.TextField()
        started_at = p.DoubleField()
        finished_at = p.DoubleField()
        outcome = p.TextField()
        cpu = p.DoubleField(null=True)
        wall = p.DoubleField(null=True)
        memory_peak = p.BigIntegerField(null=True)

        class Meta:
            indexes = ((("owner_id", "finished_at"), False),)

    db.create_tables(
        [Users, Tokens, Queues, Signatures, Tasks, Specs, Labels, Results, Attempts, Leases, Nodes, Blobs, Grants,
         BlobReferences, Accounting],
        safe=False,
    )  # fmt: skip
    for statement in (
        "CREATE INDEX tasks_waiting ON tasks (queue, signature_id, rank, owner_id, number) WHERE state = 'waiting'",
        "CREATE UNIQUE INDEX tasks_idempotency ON tasks (owner_id, idempotency_key) WHERE idempotency_key IS NOT NULL",
        "CREATE INDEX tasks_owner ON tasks (owner_id, number)",
        "CREATE INDEX specs_name ON specs (name) WHERE name IS NOT NULL",
        "INSERT INTO queues (name, state) VALUES ('default', 'open')",
    ):
        db.execute_sql(statement)

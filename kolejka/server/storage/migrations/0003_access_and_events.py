"""Who may do what in detail, what was done, and who is told: scopes, audit, events, callbacks, words to nodes."""

from __future__ import annotations

from typing import Any

import peewee as p
from playhouse.sqlite_ext import AutoIncrementField


def up(_migrator: Any, db: Any) -> None:
    """Make the new tables, and columns for a token's scope and for what a node is and should do."""
    growing = AutoIncrementField if isinstance(db, p.SqliteDatabase) else p.BigAutoField

    class Table(p.Model):
        class Meta:
            database = db
            legacy_table_names = False

    class Events(Table):
        id = growing()
        at = p.DoubleField()
        what = p.TextField()
        task_id = p.TextField()
        owner_id = p.IntegerField()
        queue = p.TextField()
        lease = p.BigIntegerField(null=True)
        node = p.TextField(null=True)
        outcome = p.TextField(null=True)

        class Meta:
            indexes = ((("owner_id", "id"), False),)

    class Audit(Table):
        id = growing()
        at = p.DoubleField()
        user = p.TextField()
        token_id = p.IntegerField()
        act = p.TextField()
        target = p.TextField()
        detail = p.TextField()

    class Callbacks(Table):
        number = p.BigIntegerField(primary_key=True)
        task_id = p.TextField()
        owner_id = p.IntegerField()
        url = p.TextField()
        lease = p.BigIntegerField(null=True)
        outcome = p.TextField(null=True)
        finished_at = p.DoubleField(null=True)
        tries = p.IntegerField()
        due_at = p.DoubleField(null=True)
        ended_at = p.DoubleField(null=True)
        answer = p.TextField(null=True)

    class CallbackSecrets(Table):
        user_id = p.IntegerField(primary_key=True)
        secret = p.TextField()
        created_at = p.DoubleField()

    db.create_tables([Events, Audit, Callbacks, CallbackSecrets], safe=False)
    for statement in (
        "CREATE INDEX callbacks_due ON callbacks (due_at) WHERE due_at IS NOT NULL",
        "ALTER TABLE tokens ADD COLUMN scope TEXT",
        "ALTER TABLE nodes ADD COLUMN instance TEXT",
        "ALTER TABLE nodes ADD COLUMN asked TEXT",
    ):
        db.execute_sql(statement)

"""The tables, as peewee models: what they hold and why they are cut so.

``tasks`` is hot and narrow: what claims and listings touch. ``specs`` and ``results`` are cold and wide. ``leases``
holds only what runs now: a heartbeat changes one narrow row, and no index. ``attempts`` gives the
lease numbers (``AUTOINCREMENT``: they only grow, even after deletion) and keeps the history. ``accounting``
outlives the task. Times are seconds since the epoch.

Keys, indexes and constraints stand in the migrations, which make the tables; a test compares the columns.
"""

from __future__ import annotations

from typing import Any

import peewee as p


class Table(p.Model):
    """Base of all tables. Unbound: an engine runs a query, a model does not."""

    class Meta:
        """peewee's own."""

        legacy_table_names = False


class Users(Table):
    """Who may call."""

    id = p.AutoField()
    name = p.TextField()
    role = p.TextField()
    created_at = p.FloatField()


class Tokens(Table):
    """What a caller shows: only its SHA-256 is kept."""

    id = p.AutoField()
    user_id = p.IntegerField()
    role = p.TextField()
    name = p.TextField()
    hash = p.TextField()
    created_at = p.FloatField()
    expires_at = p.FloatField(null=True)
    scope = p.TextField(null=True)


class Queues(Table):
    """Where tasks wait, and what is allowed there. Lists and limits are JSON; ``scheduling/queues.py`` says what."""

    name = p.TextField(primary_key=True)
    state = p.TextField()
    members = p.TextField()
    images = p.TextField()
    runtimes = p.TextField()
    defaults = p.TextField()
    ceilings = p.TextField()
    running = p.IntegerField(null=True)
    running_per_owner = p.IntegerField(null=True)
    retention_s = p.FloatField(null=True)


class Signatures(Table):
    """What a class of tasks asks of a node. ``id`` derives from ``words``: it is the same wherever it is computed."""

    id = p.BigIntegerField(primary_key=True)
    words = p.TextField()


class Tasks(Table):
    """Where each task is. ``number`` is the order of arrival; ``rank`` is the negated priority: less goes first."""

    number = p.AutoField()
    id = p.TextField()
    owner_id = p.IntegerField()
    state = p.TextField()
    queue = p.TextField()
    signature_id = p.BigIntegerField()
    rank = p.IntegerField()
    created_at = p.FloatField()
    started_at = p.FloatField(null=True)
    finished_at = p.FloatField(null=True)
    cancel_at = p.FloatField(null=True)
    lease = p.IntegerField(null=True)
    node = p.TextField(null=True)
    outcome = p.TextField(null=True)
    verdict = p.TextField(null=True)
    exit_code = p.BigIntegerField(null=True)
    losses = p.IntegerField(default=0)
    retries = p.IntegerField(default=0)
    retry = p.TextField(null=True)
    idempotency_key = p.TextField(null=True)


class Specs(Table):
    """What each task is: its JSON, and what listings show or filter by."""

    number = p.IntegerField(primary_key=True)
    spec = p.TextField()
    name = p.TextField(null=True)
    image = p.TextField(null=True)
    labels = p.TextField(null=True)


class Labels(Table):
    """The labels again, to filter by."""

    key = p.TextField()
    value = p.TextField()
    number = p.IntegerField()

    class Meta:
        """peewee's own."""

        primary_key = p.CompositeKey("key", "value", "number")


class Results(Table):
    """How each done task ended: its JSON."""

    number = p.IntegerField(primary_key=True)
    result = p.TextField()


class Attempts(Table):
    """Each try at a task. ``task_state`` and ``result_hash`` let a repeated result be answered the same."""

    lease = p.AutoField()
    number = p.IntegerField()
    node = p.TextField()
    state = p.TextField()
    started_at = p.FloatField()
    finished_at = p.FloatField(null=True)
    outcome = p.TextField(null=True)
    message = p.TextField(null=True)
    result_hash = p.TextField(null=True)
    task_state = p.TextField(null=True)


class Leases(Table):
    """The attempts that run now. ``cpus`` is what the attempt keeps from others, ``started_at`` is steady."""

    lease = p.IntegerField(primary_key=True)
    number = p.IntegerField()
    owner_id = p.IntegerField()
    node = p.TextField()
    exclusive = p.IntegerField()
    heartbeat_at = p.FloatField()
    deadline_at = p.FloatField(null=True)
    queue = p.TextField()
    cpus = p.FloatField()
    started_at = p.FloatField()


class Nodes(Table):
    """The machines. A name belongs to the user that claimed under it first.

    ``instance`` tells two foremen of one name apart; ``asked`` is what an admin wants of the node: drain, or nothing;
    ``claim`` is the number of its newest claim. ``boot`` is the kernel's id of this boot, ``image`` the version of the
    node image, ``reboot`` how an admin wants it to boot anew (cleared by another ``boot``), ``log_number`` the row of
    ``node_logs`` that it has not been told of yet.
    """

    name = p.TextField(primary_key=True)
    user_id = p.IntegerField()
    state = p.TextField()
    tags = p.TextField()
    total = p.TextField()
    capacity = p.TextField()
    first_seen = p.FloatField()
    last_seen = p.FloatField()
    instance = p.TextField(null=True)
    asked = p.TextField(null=True)
    claim = p.BigIntegerField(default=0)
    boot = p.TextField(null=True)
    image = p.TextField(null=True)
    reboot = p.TextField(null=True)
    log_number = p.BigIntegerField(null=True)
    log_lines = p.IntegerField(null=True)


class NodeWords(Table):
    """What each node says of itself at length, as JSON: written when it changes, so that heartbeats stay narrow."""

    node = p.TextField(primary_key=True)
    words = p.TextField()


class NodeLogs(Table):
    """Lines of logs that admins asked nodes for; each is gone when its admin has read it. ``number`` is random."""

    number = p.BigIntegerField(primary_key=True)
    node = p.TextField()
    asked_at = p.FloatField()
    log = p.TextField(null=True)


class Enrolments(Table):
    """Machines without a token that ask to be let in: the SHA-256 of the secret that each keeps.

    ``state`` is waiting, approved, refused or told; ``token_id`` is the token that a machine was told at ``told_at``.
    """

    hash = p.TextField(primary_key=True)
    name = p.TextField()
    state = p.TextField()
    asked_at = p.FloatField()
    seen_at = p.FloatField()
    token_id = p.IntegerField(null=True)
    told_at = p.FloatField(null=True)


class Clock(Table):
    """The clock that the servers share: its one row says how far it has come. Seconds."""

    id = p.IntegerField(primary_key=True)
    steady = p.FloatField()


class Blobs(Table):
    """The blobs whose bytes are durable at a place of the blob store."""

    sha = p.TextField(primary_key=True)
    size = p.BigIntegerField()
    created_at = p.FloatField()
    place = p.TextField()
    used_at = p.FloatField()


class Removals(Table):
    """Places whose bytes no blob is made of any more."""

    place = p.TextField(primary_key=True)


class Chores(Table):
    """Work that one server of several does at its time."""

    name = p.TextField(primary_key=True)
    due_at = p.FloatField()


class Grants(Table):
    """Who uploaded which blob, and so may have it."""

    user_id = p.IntegerField()
    sha = p.TextField()
    created_at = p.FloatField()

    class Meta:
        """peewee's own."""

        primary_key = p.CompositeKey("user_id", "sha")


class TokenGrants(Table):
    """Which blobs came under a token that is narrowed to queues: of its user's uploads it reaches no others."""

    token_id = p.IntegerField()
    sha = p.TextField()

    class Meta:
        """peewee's own."""

        primary_key = p.CompositeKey("token_id", "sha")


class BlobReferences(Table):
    """Which task needs (``input``) or made (``output``) which blob."""

    number = p.IntegerField()
    sha = p.TextField()
    kind = p.TextField()

    class Meta:
        """peewee's own."""

        primary_key = p.CompositeKey("number", "sha", "kind")


class Accounting(Table):
    """What each finished attempt used; kept when the task is deleted. Seconds and bytes.

    ``cpus`` is what it kept from others; ``charged`` = it is part of ``owner_usage``.
    """

    lease = p.IntegerField(primary_key=True)
    task_id = p.TextField()
    owner_id = p.IntegerField()
    queue = p.TextField()
    node = p.TextField()
    started_at = p.FloatField()
    finished_at = p.FloatField()
    outcome = p.TextField()
    cpu = p.FloatField(null=True)
    wall = p.FloatField(null=True)
    memory_peak = p.BigIntegerField(null=True)
    cpus = p.FloatField(null=True)
    charged = p.IntegerField()


class OwnerUsage(Table):
    """CPU seconds that an owner took, each halved again and again since; as of ``at``."""

    owner_id = p.IntegerField(primary_key=True)
    amount = p.FloatField()
    at = p.FloatField()


class Reservations(Table):
    """The nodes that are kept for a waiting task. A node has one, a task has one."""

    node = p.TextField(primary_key=True)
    number = p.IntegerField()
    owner_id = p.IntegerField()
    cpus = p.FloatField()


class Events(Table):
    """Each step of each task, for those who follow."""

    id = p.AutoField()
    at = p.FloatField()
    what = p.TextField()
    task_id = p.TextField()
    owner_id = p.IntegerField()
    queue = p.TextField()
    lease = p.BigIntegerField(null=True)
    node = p.TextField(null=True)
    outcome = p.TextField(null=True)


class Audit(Table):
    """What admins did. ``detail`` is JSON."""

    id = p.AutoField()
    at = p.FloatField()
    user = p.TextField()
    token_id = p.IntegerField()
    act = p.TextField()
    target = p.TextField()
    detail = p.TextField()


class Callbacks(Table):
    """Who is to be called when a task is done. ``due_at`` is set while a call is owed, ``ended_at`` when none is."""

    number = p.IntegerField(primary_key=True)
    task_id = p.TextField()
    owner_id = p.IntegerField()
    url = p.TextField()
    lease = p.BigIntegerField(null=True)
    outcome = p.TextField(null=True)
    finished_at = p.FloatField(null=True)
    tries = p.IntegerField(default=0)
    due_at = p.FloatField(null=True)
    ended_at = p.FloatField(null=True)
    answer = p.TextField(null=True)


class CallbackSecrets(Table):
    """What signs the callbacks of each user: a key that both sides hold, so it is kept as it is."""

    user_id = p.IntegerField(primary_key=True)
    secret = p.TextField()
    created_at = p.FloatField()


TABLES: tuple[Any, ...] = (
    Clock, Users, Tokens, Queues, Signatures, Tasks, Specs, Labels, Results, Attempts, Leases, Nodes, Blobs, Grants,
    BlobReferences, Accounting, OwnerUsage, Reservations, Events, Audit, Callbacks, CallbackSecrets, Removals, Chores,
    NodeWords, NodeLogs, Enrolments, TokenGrants,
)  # fmt: skip

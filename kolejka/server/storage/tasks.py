"""Tasks: their states, specs, results, labels. ``move`` is the one place where a task changes its state."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kolejka.common.errors import NotFound
from kolejka.common.result import Result
from kolejka.common.states import TASK_TRANSITIONS, TaskState
from kolejka.server.storage import blobs, callbacks, events
from kolejka.server.storage.base import Connection, TaskDone, TaskWaiting, marks, pieces
from kolejka.server.storage.leases import Held
from kolejka.server.storage.models import Labels, Specs, Tasks, Users


@dataclass(frozen=True)
class NewTask:
    """A task to be put."""

    id: str
    owner_id: int
    queue: str
    rank: int
    signature: int
    signature_words: str
    spec: str
    name: str | None
    image: str | None
    labels: Mapping[str, str]
    retry: str | None
    inputs: tuple[str, ...]
    idempotency_key: str | None
    callback_url: str | None = None


@dataclass(frozen=True)
class Found:
    """A task's state, as one who asks about it needs it."""

    number: int
    id: str
    owner_id: int
    state: TaskState
    queue: str
    signature: int
    rank: int
    cancelled: bool


@dataclass(frozen=True)
class Filters:
    """What a listing shows. ``after`` is the cursor of the page before."""

    state: str | None = None
    queue: str | None = None
    name: str | None = None
    owner: str | None = None
    owner_id: int | None = None
    queues: frozenset[str] | None = None
    labels: tuple[tuple[str, str], ...] = ()
    after: int | None = None
    limit: int = 100


def put(db: Connection, new: Sequence[NewTask], now: float) -> None:
    """New waiting tasks, in their order."""
    for some in pieces(new):
        _put(db, some, now)


def _put(db: Connection, new: Sequence[NewTask], now: float) -> None:
    text, values = db.table(sorted({(task.signature, task.signature_words) for task in new}), ("BIGINT", "TEXT"))
    db.later(
        f"INSERT INTO signatures (id, words) SELECT * FROM {text} AS v WHERE true ON CONFLICT (id) DO NOTHING", *values  # noqa: S608 marks
    )  # fmt: skip
    text, values = db.table(
        [
            (task.id, task.owner_id, "waiting", task.queue, task.signature, task.rank, now, task.retry,
             task.idempotency_key)
            for task in new
        ],
        ("TEXT", "INTEGER", "TEXT", "TEXT", "BIGINT", "INTEGER", "DOUBLE PRECISION", "TEXT", "TEXT"),
    )  # fmt: skip
    rows = db.soon(
        "INSERT INTO tasks (id, owner_id, state, queue, signature_id, rank, created_at, retry, idempotency_key)"  # noqa: S608 marks
        f" SELECT * FROM {text} AS v RETURNING id, number",
        *values,
    )  # fmt: skip
    text, values = db.table(
        [
            (task.id, task.spec, task.name, task.image, json.dumps(dict(task.labels)) if task.labels else None)
            for task in new
        ],
        ["TEXT"] * 5,
    )  # fmt: skip
    db.later(
        "INSERT INTO specs (number, spec, name, image, labels) SELECT t.number, v.column2, v.column3, v.column4,"  # noqa: S608 marks
        f" v.column5 FROM {text} AS v JOIN tasks t ON t.id = v.column1",
        *values,
    )  # fmt: skip
    events.record_new(db, [task.id for task in new], now)

    @functools.cache
    def number() -> dict[str, int]:
        return dict(rows())

    for some in pieces((key, value, number()[task.id]) for task in new for key, value in task.labels.items()):
        text, values = db.table(some, ("TEXT", "TEXT", "BIGINT"))
        db.later(f"INSERT INTO labels (key, value, number) SELECT * FROM {text} AS v", *values)  # noqa: S608 marks
    blobs.refer(db, [(number()[task.id], sha) for task in new for sha in task.inputs], "input")
    for task in new:
        if task.callback_url is not None:
            callbacks.order(db, number()[task.id], task.id, task.owner_id, task.callback_url)

    def told() -> list[TaskWaiting]:
        numbers: defaultdict[tuple[str, int, int, int], list[int]] = defaultdict(list)
        for task in new:
            numbers[task.queue, task.signature, task.rank, task.owner_id].append(number()[task.id])
        return [TaskWaiting(*name, min(some), len(some)) for name, some in numbers.items()]

    db.announce_then(told)


def _move(to: TaskState, columns: Iterable[str], more: str = "", source: str = "") -> str:
    """SQL that brings tasks to a state from those that allow it; which tasks, its caller adds.

    ``columns`` are set to values, ``more`` from the columns of a ``source`` named ``v``.
    """
    allowed = ", ".join(f"'{state}'" for state, targets in TASK_TRANSITIONS.items() if to in targets)
    changes = "".join(f", {name} = ?" for name in columns)
    where = f" FROM {source} AS v" if source else ""
    return f"UPDATE tasks SET state = '{to}'{changes}{more}{where} WHERE state IN ({allowed})"  # noqa: S608 names of ours


def move(db: Connection, number: int, to: TaskState, *, now: float, **columns: object) -> bool:
    """Bring a task to a state, other columns with it; False when its state does not allow that (another was faster)."""
    moved = bool(db.run(f"{_move(to, columns)} AND number = ?", *columns.values(), number))
    if moved:
        events.record(db, [number], to, now)
    return moved


def move_in_hand(db: Connection, number: int, to: TaskState, *, now: float, **columns: object) -> None:
    """The same for a task that is in hand and whose state is known to allow it."""
    db.later(f"{_move(to, columns)} AND number = ?", *columns.values(), number, rows=1)
    events.record(db, [number], to, now)


def run(db: Connection, begun: Mapping[int, int], node: str, now: float) -> None:
    """Tasks in hand that waited run on a node from now on: number → lease."""
    for some in pieces(begun.items()):
        text, values = db.table(some, ("BIGINT", "BIGINT"))
        db.later(
            f"{_move(TaskState.RUNNING, ('node', 'started_at'), ', lease = v.column2', text)} AND number = v.column1",
            node, now, *values, rows=len(some),
        )  # fmt: skip
    events.record(db, begun, TaskState.RUNNING, now)


@dataclass(frozen=True)
class Ended:
    """The end of a task: ``text`` is the JSON of its result."""

    number: int
    task_id: str
    result: Result
    text: str


def finish(db: Connection, ended: Sequence[Ended], now: float) -> None:
    """The end of tasks in hand: their results are stored, and those who wait for them are told."""
    for some in pieces(ended):
        words = [(one.number, one.result.outcome.value, one.result.limit, one.result.result) for one in some]
        text, values = db.table(words, ("BIGINT", "TEXT", "TEXT", "BIGINT"))
        columns = ", outcome = v.column2, verdict = v.column3, exit_code = v.column4"
        db.later(
            f"{_move(TaskState.DONE, ('finished_at',), columns, text)} AND number = v.column1",
            now, *values, rows=len(some),
        )  # fmt: skip
        text, values = db.table([(one.number, one.text) for one in some], ("BIGINT", "TEXT"))
        db.later(f"INSERT INTO results (number, result) SELECT * FROM {text} AS v", *values)  # noqa: S608 marks
    numbers = [one.number for one in ended]
    events.record(db, numbers, TaskState.DONE, now)
    callbacks.owe(db, numbers, now)
    for one in ended:
        db.announce(TaskDone(one.task_id))


def none_of(task_id: str) -> NotFound:
    """The error that there is no such task, or none for whoever asks."""
    return NotFound(f"there is no task {task_id[:128]!r}")


def find(db: Connection, task_id: str) -> Found | None:
    """A task by its id."""
    return find_many(db, [task_id]).get(task_id)


def find_many(db: Connection, task_ids: Collection[str]) -> dict[str, Found]:
    """Tasks by their ids (at most some hundreds), those that there are."""
    rows = db.rows(
        "SELECT number, id, owner_id, state, queue, signature_id, rank, cancel_at IS NOT NULL FROM tasks"  # noqa: S608 marks
        f" WHERE id IN ({marks(task_ids)})",
        *task_ids,
    )
    return {
        id_: Found(number, id_, owner_id, TaskState(state), queue, signature, rank, bool(cancelled))
        for number, id_, owner_id, state, queue, signature, rank, cancelled in rows
    }


def take_in_hand(db: Connection, number: int) -> Found | None:
    """A task as it is now; it changes only here until this transaction ends."""
    row = db.row("SELECT id FROM tasks WHERE number = ? FOR UPDATE", number)
    return find(db, row[0]) if row else None


@dataclass(frozen=True)
class Taken:
    """A task that is to be begun."""

    owner: str
    spec: dict[str, Any]


def take_waiting(db: Connection, number: int) -> bool:
    """Whether this task waits and nobody else has it in hand; then it changes only here from now on."""
    text = "SELECT 1 FROM tasks WHERE number = ? AND state = 'waiting' FOR UPDATE SKIP LOCKED"
    return db.row(text, number) is not None


def taken(db: Connection, numbers: Collection[int]) -> Callable[[], dict[int, Taken]]:
    """Ask for what is to be done in these tasks, by number."""
    asked = [
        db.soon(
            "SELECT t.number, u.name, s.spec FROM tasks t JOIN specs s ON s.number = t.number"  # noqa: S608 marks
            f" JOIN users u ON u.id = t.owner_id WHERE t.number IN ({marks(some)})",
            *some,
        )
        for some in pieces(numbers)
    ]  # fmt: skip
    return lambda: {number: Taken(owner, json.loads(spec)) for rows in asked for number, owner, spec in rows()}


def ids_by_keys(db: Connection, owner_id: int, keys: Collection[str]) -> Callable[[], dict[str, tuple[str, str]]]:
    """Ask for key → the task that this owner put under it and its queue, of these idempotency keys."""
    asked = [
        db.soon(
            f"SELECT idempotency_key, id, queue FROM tasks WHERE owner_id = ? AND idempotency_key IN ({marks(some)})",  # noqa: S608 marks
            owner_id, *some,
        )
        for some in pieces(keys)
    ]  # fmt: skip
    return lambda: {key: (task_id, queue) for rows in asked for key, task_id, queue in rows()}


def spec(db: Connection, number: int) -> dict[str, Any]:
    """A task's spec, limits final; empty when the task was deleted meanwhile."""
    row = db.row("SELECT spec FROM specs WHERE number = ?", number)
    found: dict[str, Any] = json.loads(row[0]) if row is not None else {}
    return found


def done_among(db: Connection, task_ids: Collection[str]) -> list[str]:
    """Those of these tasks that are done."""
    return [row[0] for some in pieces(task_ids) for row in db.rows(
        f"SELECT id FROM tasks WHERE state = 'done' AND id IN ({marks(some)})", *some  # noqa: S608 marks
    )]  # fmt: skip


def result(db: Connection, number: int) -> str:
    """A done task's result, as JSON."""
    return results(db, [number])[number]


def results(db: Connection, numbers: Collection[int], *, most: int = 0) -> dict[int, str]:
    """The results of done tasks, as JSON; no more once they have ``most`` characters (0 = all)."""
    found: dict[int, str] = {}
    size = 0
    for some in pieces(numbers, 16):
        found.update(db.rows(f"SELECT number, result FROM results WHERE number IN ({marks(some)})", *some))  # noqa: S608 marks
        size += sum(len(found[number]) for number in some)
        if most and size >= most:
            break
    return found


def signature_words(db: Connection, signature: int) -> str:
    """A signature's canonical text."""
    row = db.row("SELECT words FROM signatures WHERE id = ?", signature)
    assert row is not None  # made with the first task of its class, never deleted
    return str(row[0])


def signatures(db: Connection, numbers: Collection[int]) -> dict[int, str]:
    """The canonical texts of many signatures."""
    return {row[0]: row[1] for some in pieces(numbers) for row in db.rows(
        f"SELECT id, words FROM signatures WHERE id IN ({marks(some)})", *some  # noqa: S608 marks
    )}  # fmt: skip


def _next_class() -> str:
    """SQL for the oldest task of the class after ``h``: the nearest step that leads to one.

    Each step is one search in the index of the waiting; a comparison of rows, which says the same, would walk
    through all tasks of the class.
    """
    columns = ("queue", "signature_id", "rank", "owner_id")
    steps = []
    for place in range(len(columns) - 1, -1, -1):
        same = "".join(f" AND n.{column} = h.{column}" for column in columns[:place])
        steps.append(
            f"(SELECT n.number FROM tasks n WHERE n.state = 'waiting'{same} AND n.{columns[place]} > h.{columns[place]}"  # noqa: S608 constants
            " ORDER BY n.queue, n.signature_id, n.rank, n.owner_id, n.number LIMIT 1)"
        )
    return f"COALESCE({', '.join(steps)})"


_GROUPS = (
    "WITH RECURSIVE heads (queue, signature_id, rank, owner_id, number) AS ("  # noqa: S608 constants
    " SELECT * FROM (SELECT queue, signature_id, rank, owner_id, number FROM tasks WHERE state = 'waiting'"
    " ORDER BY queue, signature_id, rank, owner_id, number LIMIT 1) f"
    " UNION ALL SELECT t.queue, t.signature_id, t.rank, t.owner_id, t.number FROM heads h JOIN tasks t"
    f" ON t.number = {_next_class()})"
    " SELECT queue, signature_id, rank, owner_id, number FROM heads"
)


def waiting_groups(db: Connection) -> list[tuple[str, int, int, int, int]]:
    """Queue, signature, rank, owner and oldest number of each class of waiting tasks.

    A loose scan: a few searches in the index of the waiting for each class, however many tasks are in it.
    """
    return [tuple(row) for row in db.rows(_GROUPS)]


def created_at(db: Connection, number: int) -> float | None:
    """When a task was put; ``None`` when it was deleted meanwhile."""
    row = db.row("SELECT created_at FROM tasks WHERE number = ?", number)
    return float(row[0]) if row is not None else None


def oldest(
    db: Connection, name: tuple[str, int, int, int], *, first: int = 0, count: int, in_hand: bool = False
) -> list[int]:
    """Numbers of the oldest tasks of a class (queue, signature, rank, owner) from ``first`` on.

    ``in_hand``: of those that nobody else has in hand; from now on they change only here.

    The index still holds what waited there until a short while ago, so a bound saves a walk through all of that.
    """
    hand = " FOR UPDATE SKIP LOCKED" if in_hand else ""
    return [row[0] for row in db.rows(
        "SELECT number FROM tasks WHERE state = 'waiting' AND queue = ? AND signature_id = ? AND rank = ?"  # noqa: S608 constants
        f" AND owner_id = ? AND number >= ? ORDER BY number LIMIT ?{hand}",
        *name, first, count,
    )]  # fmt: skip


def ahead(db: Connection, task: Found) -> dict[int, int]:
    """How many waiting tasks of its owner and queue go before a task, of each signature."""
    return {row[0]: int(row[1]) for row in db.rows(
        "SELECT signature_id, COUNT(*) FROM tasks WHERE state = 'waiting' AND queue = ? AND owner_id = ?"
        " AND (rank < ? OR (rank = ? AND number < ?)) GROUP BY signature_id",
        task.queue, task.owner_id, task.rank, task.rank, task.number,
    )}  # fmt: skip


def ids(db: Connection, numbers: Collection[int]) -> dict[int, str]:
    """Number → id."""
    return {row[0]: row[1] for some in pieces(numbers) for row in db.rows(
        f"SELECT number, id FROM tasks WHERE number IN ({marks(some)})", *some  # noqa: S608 marks
    )}  # fmt: skip


def depth(db: Connection) -> list[tuple[str, str, int]]:
    """Queue, state and count of the tasks that wait or run; of queues in which none does, too."""
    waiting = db.rows("SELECT queue, 'waiting', COUNT(*) FROM tasks WHERE state = 'waiting' GROUP BY queue")
    running = db.rows(
        "SELECT t.queue, 'running', COUNT(*) FROM leases l JOIN tasks t ON t.number = l.number GROUP BY t.queue"
    )
    found = {(str(queue), str(state)): int(count) for queue, state, count in waiting + running}
    empty = {(str(row[0]), state): 0 for row in db.rows("SELECT name FROM queues") for state in ("waiting", "running")}
    return [(queue, state, count) for (queue, state), count in sorted({**empty, **found}.items())]


def _listed(**more: Any) -> Any:
    return (
        Tasks.select(
            Tasks.number, Tasks.id, Tasks.state, Users.name.alias("owner"), Tasks.queue, Tasks.rank,
            Specs.name.alias("name"), Specs.labels, Specs.image, Tasks.created_at, Tasks.started_at,
            Tasks.finished_at, Tasks.outcome, Tasks.verdict, Tasks.exit_code, Tasks.node, Tasks.lease, Tasks.cancel_at,
            *more.values(),
        )
        .join(Specs, on=Specs.number == Tasks.number)
        .join(Users, on=Users.id == Tasks.owner_id)
    )  # fmt: skip


_SHOW = (
    "SELECT t.number, t.id, t.state, u.name AS owner, t.queue, t.rank, s.name, s.labels, s.image, t.created_at,"
    " t.started_at, t.finished_at, t.outcome, t.verdict, t.exit_code, t.node, t.lease, t.cancel_at, s.spec"
    " FROM tasks t JOIN specs s ON s.number = t.number JOIN users u ON u.id = t.owner_id WHERE t.id = ?"
)
SHOWN = (
    "number", "id", "state", "owner", "queue", "rank", "name", "labels", "image", "created_at", "started_at",
    "finished_at", "outcome", "verdict", "exit_code", "node", "lease", "cancel_at", "spec",
)  # fmt: skip


def show(db: Connection, task_id: str) -> dict[str, Any]:
    """Everything a listing shows of one task, and its ``spec`` as text. NotFound when it was deleted meanwhile."""
    row = db.row(_SHOW, task_id)
    if row is None:
        raise none_of(task_id)
    return dict(zip(SHOWN, row, strict=True))


def listing(db: Connection, filters: Filters) -> list[dict[str, Any]]:
    """Tasks, newest first."""
    query = _listed()
    for column, value in (
        (Tasks.state, filters.state), (Tasks.queue, filters.queue), (Specs.name, filters.name),
        (Users.name, filters.owner), (Tasks.owner_id, filters.owner_id),
    ):  # fmt: skip
        if value is not None:
            query = query.where(column == value)
    if filters.queues is not None:
        query = query.where(Tasks.queue.in_(sorted(filters.queues)))
    if filters.after is not None:
        query = query.where(Tasks.number < filters.after)
    for key, value in filters.labels:
        with_label = Labels.select(Labels.number).where((Labels.key == key) & (Labels.value == value))
        query = query.where(Tasks.number.in_(with_label))
    return db.select(query.order_by(Tasks.number.desc()).limit(filters.limit))


def delete(db: Connection, numbers: Collection[int], now: float) -> set[int]:
    """Forget those of these tasks that are done, their results, and calls that are still owed; which they are.

    What is not done, or was forgotten by somebody else just now, is left alone. What a task used stays in the
    accounting.
    """
    deleted: set[int] = set()
    for some in pieces(sorted(numbers)):
        here = marks(some)
        db.rows(f"SELECT lease FROM attempts WHERE number IN ({here}) ORDER BY lease FOR UPDATE", *some)  # noqa: S608 marks
        done = [row[0] for row in db.rows(
            f"SELECT number FROM tasks WHERE state = 'done' AND number IN ({here}) ORDER BY number FOR UPDATE", *some  # noqa: S608 marks
        )]  # fmt: skip
        if not done:
            continue
        events.record(db, done, events.DELETED, now)
        for place in ("results", "specs", "labels", "blob_references", "attempts", "callbacks", "tasks"):
            db.later(f"DELETE FROM {place} WHERE number IN ({marks(done)})", *done)  # noqa: S608 constants
        deleted.update(done)
    return deleted


def retentions(db: Connection) -> list[tuple[str, float]]:
    """The queues that keep done tasks for a while only, and how long, in seconds."""
    return [
        (str(name), float(kept_s))
        for name, kept_s in db.rows("SELECT name, retention_s FROM queues WHERE retention_s IS NOT NULL")
    ]


def expired(db: Connection, queue: str, *, before: float, after: int, limit: int) -> tuple[list[int], int | None]:
    """Numbers of done tasks of a queue that ended before a moment, among the next ``limit`` tasks ``after`` a number.

    With them the number to go on after; ``None`` at the end.
    """
    rows = db.rows(
        "SELECT number, queue = ? AND state = 'done' AND finished_at < ? FROM tasks WHERE number > ?"
        " ORDER BY number LIMIT ?",
        queue, before, after, limit,
    )  # fmt: skip
    return [number for number, is_expired in rows if is_expired], int(rows[-1][0]) if len(rows) == limit else None


_ACCOUNTED = (
    "BIGINT", "TEXT", "INTEGER", *["TEXT"] * 2, *["DOUBLE PRECISION"] * 2, "TEXT", *["DOUBLE PRECISION"] * 2, "BIGINT",
    "DOUBLE PRECISION", "INTEGER",
)  # fmt: skip


def account(db: Connection, ended: Iterable[tuple[Held, Result]], now: float) -> None:
    """Record what attempts used, to be charged to their owners."""
    rows = [
        (held.lease, held.task_id, held.owner_id, held.queue, held.node, held.started_at, now, result.outcome.value,
         result.stats.cpu.usage, result.stats.time, result.stats.memory.max_usage, held.cpus, 0)
        for held, result in ended
    ]  # fmt: skip
    for some in pieces(rows):
        text, values = db.table(some, _ACCOUNTED)
        db.later(
            "INSERT INTO accounting (lease, task_id, owner_id, queue, node, started_at, finished_at, outcome, cpu,"  # noqa: S608 marks
            f" wall, memory_peak, cpus, charged) SELECT * FROM {text} AS v",
            *values,
        )

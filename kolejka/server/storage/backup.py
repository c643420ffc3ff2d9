"""Backups of a server that goes on, and what is made of them: the same form whatever the engine.

A backup is a folder: ``kolejka-backup.json`` (which schema, how many rows of each table and the hash of their file, how
far the growing numbers are), ``tables/NAME.jsonl`` (the columns, then a row on each line) and ``blobs/``. So what was
kept on one engine can be restored on the other. ``archive.py`` makes one file of it.

All tables are read in one transaction that sees one moment. Blobs never change, so those that are there are taken
before that moment and the rest after it: whatever a row of the backup names was there at the moment, and had either
been taken before, or was too young then to be swept. Where the file system allows it, a blob is taken by a second name
for the same bytes. ``kolejka-backup.json`` is written last: a folder without it is no backup.

Restoring looks at every blob first: that it is what its name says, and that none that a row names is missing. It makes
the schema that the backup had, fills it in one transaction in which the rows are counted, and takes the steps that this
version adds. Numbers of leases go on far behind those of the backup, since leases that were given after it may still be
shown.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from kolejka.common.errors import InputError, KolejkaError, NodeError
from kolejka.common.files import read_json, sync_folder, write_json
from kolejka.server.storage import schema
from kolejka.server.storage.base import Connection
from kolejka.server.storage.database import Database

WORDS: Final = "kolejka-backup.json"
FORM: Final = 1
APART: Final = 1 << 32
"""how far behind a backup's last lease the next one is: more than any server gives before it is restored"""
_NOT_KEPT: Final = frozenset({"schema_migration", "writers", "node_logs"})
_INCOMING: Final = "incoming"
_CHUNK: Final = 500


@dataclass(frozen=True)
class Kept:
    """What a backup holds, or what was restored from one."""

    steps: tuple[str, ...]
    rows: Mapping[str, int]
    numbers: Mapping[str, int]
    blobs: int
    sums: Mapping[str, str]
    """table → SHA-256 of its file; empty in backups of earlier versions"""


def _tables(db: Connection, *, embedded: bool) -> dict[str, list[str]]:
    """Table → columns, of all tables that are Kolejka's."""
    if embedded:
        rows = db.rows(
            "SELECT m.name, c.name FROM sqlite_master m JOIN pragma_table_info(m.name) c"
            " WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%' ORDER BY m.name, c.cid"
        )
    else:
        rows = db.rows(
            "SELECT table_name::text, column_name::text FROM information_schema.columns"
            " WHERE table_schema = current_schema() ORDER BY table_name, ordinal_position"
        )
    found: dict[str, list[str]] = {}
    for table, column in rows:
        if table not in _NOT_KEPT:
            found.setdefault(table, []).append(column)
    return found


_GROWING: Final = {
    "users": "id", "tokens": "id", "tasks": "number", "attempts": "lease", "events": "id", "audit": "id",
}  # fmt: skip
"""Table → the column that numbers its rows; numbers are not used again."""


def back_up(database: Database, blobs: Path, target: Path) -> Kept:
    """Keep everything that the server has accepted in the folder ``target``, which is empty or not there yet.

    InputError when it is neither, NodeError when the database or the disk does not take part.
    """
    _empty(target)
    taken, left = database.taken_and_left()
    if not taken:
        raise NodeError("there is no server's database to back up here", field=str(database.path.parent))
    if left:
        raise NodeError(f"the database lacks the steps {', '.join(left)}; run `kolejka-server migrate` first")
    try:
        (target / "tables").mkdir(parents=True)
        _link_blobs(blobs, target / "blobs")
        store = database.open()
        try:
            rows, numbers, sums = store.read(
                lambda db: _write_tables(db, target / "tables", embedded=not database.shared)
            ).result()
        finally:
            store.close()
        _link_blobs(blobs, target / "blobs")
        count = sum(1 for _ in _files(target / "blobs"))
        _sync_tree(target)
        write_json(
            target / WORDS,
            {"form": FORM, "steps": taken, "rows": rows, "numbers": numbers, "blobs": count, "sums": sums},
            durable=True,
        )
    except OSError as error:
        raise NodeError(f"the backup cannot be written: {error.strerror}", field=str(target)) from error
    return Kept(tuple(taken), rows, numbers, count, sums)


def restore(source: Path, database: Database, blobs: Path) -> Kept:
    """Make of a backup what it was made of, where there is no database's schema yet and no other blob.

    InputError when ``source`` is no backup, or is damaged; NodeError when there is something already where it should
    go, or a newer Kolejka made it. An embedded database that could not be filled is removed again.
    """
    kept = read_words(source)
    schema.refuse_unknown([step for step in kept.steps if step not in schema.known()], str(source))
    taken, _ = database.taken_and_left()
    if taken or any(not (source / "blobs" / path).exists() for path in _files(blobs)):
        raise NodeError(
            "there is a server's data already; restore where there is none", field=str(database.path.parent)
        )
    _check_tables(source / "tables", kept)
    _check_blobs(source / "blobs", kept)
    blobs.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        _link_blobs(source / "blobs", blobs)
        _sync_tree(blobs)
    except OSError as error:
        raise NodeError(f"the blobs cannot be restored: {error.strerror}", field=str(blobs)) from error
    try:
        database.migrate(kept.steps[-1])
        store = database.open()
        try:
            store.write(lambda db: _read_tables(db, source / "tables", kept, embedded=not database.shared)).result()
        finally:
            store.close()
        database.migrate()
    except KolejkaError:
        if not database.shared:
            for path in database.path.parent.glob(database.path.name + "*"):
                path.unlink()
        raise
    return kept


def read_words(source: Path) -> Kept:
    """What a backup says of itself. InputError when it is none."""
    if not (source / WORDS).is_file():
        raise InputError(f"this is no backup: there is no {WORDS} in it", field=str(source))
    try:
        words: dict[str, Any] = read_json(source / WORDS)
        if words["form"] != FORM:
            raise InputError(f"this backup has the form {words['form']}; this version reads {FORM}", field=str(source))
        return Kept(tuple(words["steps"]), dict(words["rows"]), dict(words["numbers"]), int(words["blobs"]),
                    dict(words.get("sums", {})))  # fmt: skip
    except (OSError, KeyError, TypeError, ValueError):
        raise InputError(f"this is no backup: its {WORDS} is damaged", field=str(source)) from None


def _empty(target: Path) -> None:
    try:
        if any(target.iterdir()):
            raise InputError("this folder is not empty; name one that is, or is not there yet", field=str(target))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise InputError("this is no folder; name one that is empty, or is not there yet", field=str(target)) from None


def _write_tables(
    db: Connection, folder: Path, *, embedded: bool
) -> tuple[dict[str, int], dict[str, int], dict[str, str]]:
    rows: dict[str, int] = {}
    sums: dict[str, str] = {}
    for table, columns in _tables(db, embedded=embedded).items():
        rows[table] = 0
        digest = hashlib.sha256()
        with open(folder / f"{table}.jsonl", "wb") as sink:

            def write(values: Any, sink: IO[bytes] = sink, digest: Any = digest) -> None:
                line = json.dumps(values).encode("ascii") + b"\n"
                digest.update(line)
                sink.write(line)

            write(columns)
            for row in db.each(f"SELECT {_listed(columns)} FROM {table}"):  # noqa: S608 names of the catalogue's
                write(row)
                rows[table] += 1
        sums[table] = digest.hexdigest()
    numbers = {table: db.last_number(table, column) for table, column in _GROWING.items() if table in rows}
    return rows, numbers, sums


def _listed(columns: Iterable[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)


def _read_tables(db: Connection, folder: Path, kept: Kept, *, embedded: bool) -> None:
    known = _tables(db, embedded=embedded)
    for table, count in kept.rows.items():
        db.run(f"DELETE FROM {_known(table, known)}")  # noqa: S608 a name of the catalogue's, with what came with it
        lines = _lines(folder / f"{table}.jsonl")
        columns = next(lines, None)
        if columns is None or set(columns) != set(known[table]):
            raise InputError("this file of the backup has other columns than its schema", field=f"{table}.jsonl")
        statement = f"INSERT INTO {table} ({_listed(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608 the same
        rows: list[list[Any]] = []
        done = 0
        for row in lines:
            rows.append(row)
            if len(rows) == _CHUNK:
                db.run_many(statement, rows)
                done, rows = done + len(rows), []
        if rows:
            db.run_many(statement, rows)
        done += len(rows)
        if done != count:
            raise InputError(f"this file of the backup has {done} rows, not {count}", field=f"{table}.jsonl")
    for table, number in kept.numbers.items():
        if table in _GROWING and table in known:
            db.set_last_number(table, _GROWING[table], number + (APART if table == "attempts" else 0))


def _known(table: str, known: Mapping[str, list[str]]) -> str:
    if table not in known:
        raise InputError("the backup has a table that its schema does not have", field=table)
    return table


def _lines(path: Path) -> Iterator[list[Any]]:
    try:
        with open(path, encoding="utf-8") as source:
            for line in source:
                values = json.loads(line)
                if not isinstance(values, list):
                    raise InputError("this file of the backup is damaged", field=path.name)
                yield values
    except (OSError, ValueError):
        raise InputError("this file of the backup is damaged, or is not there", field=path.name) from None


def _files(folder: Path) -> Iterator[Path]:
    """The blobs below a folder, as paths from there: those that are whole."""
    with suppress(FileNotFoundError):  # no blob was ever stored
        for shelf in sorted(folder.iterdir()):
            if shelf.name != _INCOMING and shelf.is_dir():
                yield from (path.relative_to(folder) for path in sorted(shelf.iterdir()))


def _link_blobs(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in _files(source):
        place = target / path
        if place.exists():
            continue
        place.parent.mkdir(exist_ok=True)
        try:
            os.link(source / path, place)
        except FileNotFoundError:  # swept since the folder was listed, so no row of this moment names it
            continue
        except OSError:  # another file system, or one without links
            part = place.with_name(place.name + ".part")
            shutil.copyfile(source / path, part)
            with open(part, "rb") as copied:
                os.fsync(copied.fileno())
            part.replace(place)


def _sync_tree(folder: Path) -> None:
    """Have names and tables on disk; blobs are already."""
    for path in sorted(folder.glob("tables/*")):
        with open(path, "rb") as source:
            os.fsync(source.fileno())
    for path in [folder, *(one for one in folder.rglob("*") if one.is_dir())]:
        sync_folder(path)


def _hash(path: Path) -> str:
    with open(path, "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def blob_name(place: str) -> str:
    """The hash that a blob's place below the folder of blobs says."""
    return re.sub(r"[/.]", "", place)[:64]


def _check_tables(folder: Path, kept: Kept) -> None:
    """InputError when a table is missing or is not what was written."""
    for table, sum_ in kept.sums.items():
        path = folder / f"{table}.jsonl"
        if table not in kept.rows or not path.is_file() or _hash(path) != sum_:
            raise InputError("this file of the backup is damaged, or is not there", field=path.name)


def _check_blobs(folder: Path, kept: Kept) -> None:
    """InputError when a blob is missing or is not what its name says."""
    count = 0
    for path in _files(folder):
        count += 1
        if _hash(folder / path) != blob_name(path.as_posix()):
            raise InputError("this blob of the backup is damaged", field=f"blobs/{path}")
    if count != kept.blobs:
        raise InputError(f"the backup has {count} blobs, not {kept.blobs}", field=str(folder))
    for path in _named(folder.parent / "tables" / "blobs.jsonl") if count else ():  # else they are kept elsewhere
        if not (folder / path).is_file():
            raise InputError("this blob is missing in the backup", field=f"blobs/{path}")


def _named(table: Path) -> Iterator[Path]:
    """Where the rows of the table of blobs say that the bytes are."""
    lines = _lines(table)
    columns = next(lines, [])
    for row in lines:
        words = dict(zip(columns, row, strict=True))
        yield Path(words.get("place") or f"{words['sha'][:2]}/{words['sha'][2:]}")

"""The command line ``kolejka-server``."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from kolejka.cli.doctor import report
from kolejka.cli.options import main, settings_options
from kolejka.common.checks import Check
from kolejka.common.settings import ServerSettings
from kolejka.common.units import parse_time, show_size

if TYPE_CHECKING:
    from kolejka.server.storage.backup import Kept


@click.group()
def command() -> None:
    """Keep tasks, give them to nodes, keep results."""


@command.command()
@settings_options(ServerSettings)
def runserver(server: ServerSettings) -> None:
    """Serve until told to stop (SIGTERM, Ctrl-C).

    The first start in an empty data folder makes the user `admin` and writes its token to admin.token there.
    """
    from kolejka.server.runserver import run_server

    run_server(server)


@command.command()
@click.option("--check", is_flag=True, help="only say what would be done; exit status 1 when that is anything")
@settings_options(ServerSettings)
def migrate(server: ServerSettings, check: bool) -> int:
    """Bring the database to this version's schema, and say what was done.

    `runserver` does the same at its start. The database of a newer Kolejka is left alone.
    """
    from kolejka.server.prepare import locked
    from kolejka.server.storage.database import Database

    database = Database.of(server)
    if check:
        _, left = database.taken_and_left()
        for step in left:
            click.echo(f"would take {step}")
        if not left:
            click.echo("nothing to do")
        return 1 if left else 0
    with locked(server):
        steps = database.migrate()
    for step in steps:
        click.echo(f"took {step}")
    if not steps:
        click.echo("nothing to do")
    return 0


@command.command()
@click.argument("target", type=click.Path(path_type=Path))
@settings_options(ServerSettings)
def backup(server: ServerSettings, target: Path) -> None:
    """Keep all that the server has accepted in TARGET. The server may run.

    TARGET is a folder, empty or not there yet: blobs are taken by a second name for the same bytes where the file
    system allows it. Or it is one file, whose name ends with .tar and is not there yet; - is the standard output. Every
    blob is hashed on its way into the file.
    """
    from kolejka.common.errors import InputError
    from kolejka.server.storage.archive import STREAM, is_archive, write_archive
    from kolejka.server.storage.backup import back_up
    from kolejka.server.storage.blob_store import folder_of
    from kolejka.server.storage.database import Database

    stream = sys.stdout.buffer if str(target) == STREAM else None
    if stream is not None and stream.isatty():
        raise InputError("an archive is nothing for a terminal; write > FILE behind it, or name a file")
    database, blobs = Database.of(server), folder_of(server)
    kept = write_archive(database, blobs, target, stream) if is_archive(target) else back_up(database, blobs, target)
    click.echo(_told(kept), err=stream is not None)


@command.command()
@click.argument("source", type=click.Path(path_type=Path))
@settings_options(ServerSettings)
def restore(server: ServerSettings, source: Path) -> None:
    """Make a server's data of the backup SOURCE, where there is none yet. Its tokens open what they opened.

    SOURCE is a folder or a file that `backup` made; - is the standard input.
    """
    from kolejka.server.prepare import locked
    from kolejka.server.storage.archive import STREAM, restore_archive
    from kolejka.server.storage.backup import restore as restore_backup
    from kolejka.server.storage.blob_store import folder_of
    from kolejka.server.storage.database import Database

    with locked(server):
        database, blobs = Database.of(server), folder_of(server)
        if str(source) == STREAM or source.is_file():
            stream = sys.stdin.buffer if str(source) == STREAM else None
            kept = restore_archive(source, database, blobs, stream)
        else:
            kept = restore_backup(source, database, blobs)
    click.echo(_told(kept))


def _told(kept: Kept) -> str:
    return f"{kept.rows['tasks']} tasks, {kept.rows['results']} results, {kept.blobs} blobs"


@command.command()
@click.option("--orphans", is_flag=True, help="also remove bytes of the blob store that no blob is made of")
@settings_options(ServerSettings)
def sweep(server: ServerSettings, orphans: bool) -> None:
    """Remove what is past its time, now. A server does so by itself, every --sweep-interval.

    On the embedded database this needs a server that does not run.

    Gone are done tasks past their queue's retention, blobs that no task needs, and uploads that were broken off.
    Only with --orphans is everything in the blob store compared with the database: what no blob of this database is
    made of and is older than a day is removed. Never say it on a store that another database uses as well.
    """
    from kolejka.server import sweep as sweeping
    from kolejka.server.prepare import prepare
    from kolejka.server.storage.blob_store import open_blob_store
    from kolejka.server.storage.database import Database

    prepared = prepare(server, patience_s=0)
    store = Database.of(server).open()
    try:
        swept = sweeping.sweep(store, open_blob_store(server), server, time.time(), orphans=orphans)
    finally:
        store.close()
        os.close(prepared.lock)
    click.echo(", ".join(f"{count} {name}" for name, count in vars(swept).items()))


@command.group()
def token() -> None:
    """Tokens, on the server's own machine."""


@token.command()
@click.argument("user")
@click.option("--role", default=None, help="client, node, inspector or admin; default: the user's own")
@click.option("--name", default="", help="what it is for")
@click.option("--expires", default=None, help="how long it is good, such as 30d; default: until it is revoked")
@settings_options(ServerSettings)
def create(server: ServerSettings, user: str, role: str | None, name: str, expires: str | None) -> None:
    """Make a token while the server does not run, for an existing USER, and print it.

    With a server that runs, use `kolejka-client token create`.
    """
    from kolejka.common.errors import InputError
    from kolejka.server.auth.roles import Role
    from kolejka.server.auth.tokens import issue
    from kolejka.server.prepare import offline, prepare

    if role is not None and role not in set(Role):
        raise InputError(f"{role!r} is not one of {', '.join(Role)}", field="--role")
    expires_s = parse_time(expires) if expires is not None else None
    prepared = prepare(server, patience_s=0)
    try:
        made = offline(
            server,
            lambda db: issue(
                db, user, role=Role(role) if role else None, name=name, now=time.time(), expires_s=expires_s
            ),
        )
    finally:
        os.close(prepared.lock)
    click.echo(made[1])


@command.command()
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@settings_options(ServerSettings)
def doctor(server: ServerSettings, as_json: bool) -> int:
    """Say what this machine lacks to be a server."""
    return report(checks(server), as_json=as_json)


def checks(settings: ServerSettings) -> list[Check]:
    """What a server needs."""
    return [_check_database(settings), _check_folder(settings), _check_port(settings)]


def _check_database(settings: ServerSettings) -> Check:
    from kolejka.common.errors import KolejkaError

    try:
        from kolejka.server.storage.database import Database
    except ImportError as error:
        return Check(
            "database", ok=False, message=f"{error.name} is not installed", cure="pip install 'kolejka[server]'"
        )
    try:
        database = Database.of(settings)
        if not database.shared:
            return _check_sqlite()
        _, left = database.taken_and_left()
    except KolejkaError as error:
        return Check("database", ok=False, message=error.message, cure="mend the setting server.database")
    return Check("database", ok=True, message=f"{database.engine}, {len(left)} steps to be taken at the next start")


def _check_sqlite() -> Check:
    try:
        from kolejka.server.storage.sqlite import is_safe, version
    except ImportError as error:
        return Check("sqlite", ok=False, message=f"{error.name} is not installed", cure="pip install 'kolejka[server]'")
    safe = is_safe()
    return Check("sqlite", ok=safe, message=f"SQLite {version()}", cure=None if safe else "pip install -U cysqlite")


def _check_folder(settings: ServerSettings) -> Check:
    from kolejka.server.api.health import NEEDED_BYTES

    path = Path(settings.data)
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        return Check(
            "data folder", ok=False, message=f"{there} cannot be written", cure="choose another: --data FOLDER"
        )
    disk = os.statvfs(there)
    free = disk.f_bavail * disk.f_frsize
    return Check(
        "data folder", ok=free > NEEDED_BYTES, message=f"{path}, {show_size(free)} free",
        cure=None if free > NEEDED_BYTES else "make room, or choose another: --data FOLDER",
    )  # fmt: skip


def _check_port(settings: ServerSettings) -> Check:
    from kolejka.server.prepare import running

    where = f"{settings.host}:{settings.port}"
    known = running(settings)
    if known is not None:
        return Check("server", ok=True, message=f"runs already: {known.get('url', 'it is starting')}")
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind((settings.host, settings.port))
        except OSError as error:
            return Check("server", ok=False, message=f"{where}: {error.strerror}", cure="choose another: --port PORT")
    return Check("server", ok=True, message=f"{where} is free")


def run() -> NoReturn:
    """The program's entry point."""
    main(command, "kolejka-server")

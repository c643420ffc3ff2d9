"""Making a data folder ready: the newest schema, an admin who can come in; one server at a time, unless it keeps its
database elsewhere.

All of this happens before the first request, in the process that starts the server, so that what is wrong is one line
on its standard error.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kolejka.common.errors import Conflict, InputError, NodeError
from kolejka.common.files import read_json, replacing, sync_folder, write_json
from kolejka.common.node_image import check_version
from kolejka.common.settings import ServerSettings
from kolejka.server.auth.roles import Role
from kolejka.server.auth.tokens import issue
from kolejka.server.calling import Hosts
from kolejka.server.storage import blobs, users
from kolejka.server.storage.base import Connection
from kolejka.server.storage.blob_store import open_blob_store
from kolejka.server.storage.database import Database

ADMIN: Final = "admin"
ADMIN_TOKEN: Final = "admin.token"
SERVER_FILE: Final = "server.json"
_LOCK: Final = "lock"
_LOCK_PATIENCE_S: Final = 15.0
"""A killed server's worker may need a moment to notice; then its lock is gone."""


@dataclass(frozen=True)
class Prepared:
    """A folder that is ready, and the lock on it: held while ``lock`` is open in any process."""

    lock: int
    steps: tuple[str, ...]
    new_admin: Path | None


def prepare(settings: ServerSettings, *, patience_s: float = _LOCK_PATIENCE_S) -> Prepared:
    """Lock the folder, migrate the database, and give an empty one its admin.

    NodeError when another server uses it and the database is an embedded one, or it cannot be used at all.
    """
    database = Database.of(settings)
    data = Path(settings.data)
    lock = _open_lock(data)
    _take(lock, data, 0 if database.shared else patience_s, shared=database.shared)
    steps = database.migrate()
    _check_blobs(settings)
    if database.shared:
        fcntl.flock(lock, fcntl.LOCK_SH)
    return Prepared(lock, tuple(steps), _first_admin(settings))


def _open_lock(data: Path) -> int:
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.open(data / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise NodeError(f"cannot be used as the server's folder: {error.strerror}", field=str(data)) from None


@contextmanager
def locked(settings: ServerSettings) -> Iterator[None]:
    """Have the folder to oneself. NodeError when a server uses it and the database is an embedded one."""
    data = Path(settings.data)
    lock = _open_lock(data)
    _take(lock, data, 0, shared=Database.of(settings).shared)
    try:
        yield
    finally:
        os.close(lock)


def _check_blobs(settings: ServerSettings) -> None:
    """Whether the blob store answers. What an earlier life left half uploaded there goes."""
    store = open_blob_store(settings)
    store.check()
    store.sweep_incoming(time.time() - settings.upload_grace)


def check_settings(settings: ServerSettings) -> None:
    """Whether a server could serve under these settings. InputError, NodeError when it could not."""
    _check_processes(settings)
    _check_tls(settings)
    _check_graces(settings)
    Hosts.parse(settings.callback_hosts)
    try:
        check_version(settings.minimum_image)
    except InputError as error:
        raise error.within("--minimum-image") from None
    _check_address(settings)


def _check_graces(settings: ServerSettings) -> None:
    if settings.blob_grace < blobs.LEAST_GRACE_S:
        raise InputError(
            f"a blob must have at least {blobs.LEAST_GRACE_S:g} s before a task refers to it; give more",
            field="--blob-grace",
        )


def _check_processes(settings: ServerSettings) -> None:
    if settings.processes < 1:
        raise InputError("a server has at least one process", field="--processes")
    if settings.processes > 1 and not Database.of(settings).shared:
        raise InputError(
            "the embedded database has one process; give server.database a PostgreSQL to have more",
            field="--processes",
        )


def _check_tls(settings: ServerSettings) -> None:
    if bool(settings.certificate) != bool(settings.key):
        raise InputError("TLS needs both a certificate and its key; give --certificate and --key")
    for name in ("certificate", "key"):
        path = getattr(settings, name)
        if path and not os.access(path, os.R_OK):
            raise InputError(f"{path} cannot be read", field=f"--{name}")
    if settings.certificate and settings.key:
        try:  # gunicorn would listen, and answer nobody
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                settings.certificate,
                settings.key,
                password=lambda: "",  # it would be asked for on the terminal
            )
        except OSError:
            raise InputError(
                f"{settings.certificate} and {settings.key} are no certificate and the key that belongs to it; both are"
                " PEM texts, and the key has no password", field="--certificate",
            ) from None  # fmt: skip


def _check_address(settings: ServerSettings) -> None:
    """InputError or NodeError when nobody can listen where the settings say: gunicorn would try again and again."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind((settings.host, settings.port))
        except OverflowError:
            raise InputError(f"{settings.port} is no port; the last is 65535", field="--port") from None
        except OSError as error:
            raise NodeError(
                f"cannot listen: {error.strerror or error}; choose another --host or --port",
                field=f"{settings.host}:{settings.port}",
            ) from None


def _take(lock: int, data: Path, patience_s: float, *, shared: bool) -> bool:
    """Take the lock for oneself; False when others have it and it may be ``shared``."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.1)  # flock(2) waits for ever or not at all
                continue
            if shared:
                fcntl.flock(lock, fcntl.LOCK_SH)
                return False
            os.close(lock)
            raise NodeError(
                "another server uses this folder; stop it, or give --data another", field=str(data)
            ) from None
        return True


def _first_admin(settings: ServerSettings) -> Path | None:
    """Where nobody is known, a user ``admin`` and the token that opens everything, for its owner's eyes only.

    The token is on disk before the database knows it: a crash between leaves a token that opens nothing, and the next
    start makes another.
    """
    path = Path(settings.data) / ADMIN_TOKEN

    def work(db: Connection) -> bool:
        if users.list_users(db):
            return False
        try:
            users.add_user(db, ADMIN, Role.ADMIN.value, time.time())
        except Conflict:  # another server on the same database was faster
            return False
        _, token, _ = issue(db, ADMIN, role=Role.ADMIN, name="made at the first start", now=time.time())
        with replacing(path, mode=0o600, durable=True) as sink:
            sink.write(token.encode() + b"\n")
        return True

    return path if offline(settings, work) else None


def offline(settings: ServerSettings, work: Callable[[Connection], Any]) -> Any:
    """Do one work on the database of a server that does not run (the caller holds its lock), or that others share."""
    store = Database.of(settings).open()
    try:
        return store.write(work).result()
    finally:
        store.close()


def announce(settings: ServerSettings, url: str, pid: int) -> None:
    """Say where the server is, for scripts: ``server.json`` exists while it is ready."""
    write_json(Path(settings.data) / SERVER_FILE, {"url": url, "pid": pid})


def retract(settings: ServerSettings, pid: int) -> None:
    """The server of this process id is no more."""
    path = Path(settings.data) / SERVER_FILE
    with suppress(InputError, AttributeError, FileNotFoundError):  # somebody else's, or none
        if read_json(path).get("pid") == pid:
            path.unlink()
            sync_folder(path.parent)


def running(settings: ServerSettings) -> dict[str, Any] | None:
    """What a server that runs on this folder announced; ``None`` when none does."""
    data = Path(settings.data)
    try:
        with open(data / _LOCK, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
    except FileNotFoundError:
        return None
    except BlockingIOError:
        with suppress(InputError, json.JSONDecodeError):  # it is about to start
            found: dict[str, Any] = read_json(data / SERVER_FILE)
            return found
        return {}

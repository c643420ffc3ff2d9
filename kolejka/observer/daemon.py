"""The observer as a daemon: gunicorn on a unix socket, one process that holds the registry, threads for requests.

The first process (gunicorn's arbiter) owns the socket and watches; its one worker process has the registry. When the
worker dies the arbiter starts another, which finds all sessions in the state folder; when the arbiter dies the kernel
ends the worker at once, so that a new observer never meets an old one. SIGTERM ends both: sessions stay, with
their limits held by the kernel, and the next start continues their deadlines.

Under systemd: ``Type=notify``, ``KillMode=process``, ``WatchdogSec`` at will, and on control groups of version 2 the
sessions in a unit of their own (``kolejka-sessions.service``; ``cgroups/v2.py`` tells why).
"""

from __future__ import annotations

import ctypes
import grp
import logging
import os
import signal
import socket
import stat
import struct
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import gunicorn.app.base
import gunicorn.arbiter
import gunicorn.glogging
import gunicorn.workers.gthread

from kolejka.common import systemd
from kolejka.common.errors import InputError, KolejkaError, NodeError
from kolejka.common.files import USUAL_UMASK
from kolejka.common.settings import ObserverSettings
from kolejka.observer.cgroups.choose import choose
from kolejka.observer.cgroups.interface import Owner
from kolejka.observer.cgroups.moves import favor
from kolejka.observer.packets import PacketServer, workers_door
from kolejka.observer.protocol import Protocol
from kolejka.observer.server import MAX_BODY, create_app
from kolejka.observer.sessions import Registry
from kolejka.observer.state import StateFolder

logger = logging.getLogger("kolejka.observer")

_THREADS: Final = 32
_CONNECTIONS: Final = 4096
_CONNECTIONS_PER_SESSION: Final = 16
"""Below the threads, so that what runs in one session cannot hold them all."""
_IDLE_S: Final = 86400
"""Earlier clients keep a connection for as long as their program runs, and do not try again."""
_STALL_S: Final = 5
"""How long a caller may take to send the rest of a request."""
_PR_SET_PDEATHSIG: Final = 1


def serve(settings: ObserverSettings) -> None:
    """Serve until SIGTERM or SIGINT. NodeError with the cure where this machine lacks something."""
    os.umask(USUAL_UMASK)
    group = _group(settings.group)
    owner = Owner(choose(settings.cgroup, base=settings.base), durable=True, number=StateFolder(settings.state).owner)
    owner.close()  # only to say what is wrong before anything starts
    if settings.favor_moves and (reason := favor()):
        logger.warning("moves into control groups stay slow", extra={"reason": reason})
    door = listen(settings.socket, group)
    workers = listen(Path(workers_door(settings.socket)), group, kind=socket.SOCK_SEQPACKET, mode=0o660)
    _Daemon(settings, group, door.detach(), workers).run()


def listen(
    path: Path, group: int | None, *, kind: socket.SocketKind = socket.SOCK_STREAM, mode: int = 0o666
) -> socket.socket:
    """A socket at ``path``: by default for everybody to connect to (who may do what is decided by who connects).

    A stale one is replaced. NodeError when a live observer serves there, or we may not make it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        _clear(path, kind)
        door = socket.socket(socket.AF_UNIX, kind)
        before = os.umask(0o777 & ~mode)
        try:
            door.bind(os.fspath(path))
        finally:
            os.umask(before)
        path.chmod(mode)
        if group is not None:
            os.chown(path, -1, group)
        door.listen(1024)
    except OSError as error:
        reason = error.strerror or str(error)
        raise NodeError(f"{path}: {reason}; name another socket with --socket") from None
    return door


def _clear(path: Path, kind: socket.SocketKind) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise NodeError(f"{path} exists and is no socket; remove it, or name another with --socket")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise NodeError(f"an observer serves at {path} already; stop it, or name another socket with --socket")


def _group(name: str) -> int | None:
    if not name:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise InputError(f"there is no group {name!r}; make it: groupadd --system {name}", field="--group") from None


class _Daemon(gunicorn.app.base.BaseApplication):
    """Gunicorn with our settings."""

    def __init__(self, settings: ObserverSettings, group: int | None, descriptor: int, workers: socket.socket) -> None:
        self._settings = settings
        self._group = group
        self._descriptor = descriptor
        self._workers = workers
        self._packets: PacketServer | None = None
        self._registry: Registry | None = None
        super().__init__()

    def load_config(self) -> None:
        values = {
            "bind": f"fd://{self._descriptor}",
            "workers": 1,
            "worker_class": Worker,
            "threads": _THREADS,
            "worker_connections": _CONNECTIONS,
            "keepalive": _IDLE_S,
            "graceful_timeout": 15,
            "timeout": 60,
            "proc_name": "kolejka-observer",
            "logger_class": _Log,
            "loglevel": "warning",
            "control_socket_disable": True,
            "limit_request_field_size": MAX_BODY,
            "post_fork": lambda _arbiter, _worker: _end_with_parent(),
            "worker_exit": lambda _arbiter, _worker: self._stop_registry(),
            "when_ready": lambda _arbiter: self._ready(),
        }
        for name, value in values.items():
            self.cfg.set(name, value)  # type: ignore[union-attr]  # it is made before this is called

    def load(self) -> Any:
        """The application, in the worker process."""
        settings = self._settings
        try:
            tree = choose(settings.cgroup, base=settings.base)
            self._registry = Registry(tree, state=settings.state, nested=settings.nested, remember=settings.remember)
        except KolejkaError as error:
            logger.critical("cannot keep sessions", extra={"reason": str(error)})
            raise SystemExit(gunicorn.arbiter.Arbiter.WORKER_BOOT_ERROR) from None
        Worker.registry = self._registry
        protocol = Protocol(self._registry, self._group)
        self._packets = PacketServer(self._workers, protocol)
        self._packets.start()
        return create_app(protocol)

    def run(self) -> None:
        """Until a signal ends us."""
        arbiter = os.getpid()
        try:
            Arbiter(self).run()
        finally:
            if os.getpid() == arbiter:  # the worker process, forked in the middle of this, passes here as well
                with suppress(FileNotFoundError):
                    os.unlink(workers_door(self._settings.socket))

    def _ready(self) -> None:
        systemd.notify("READY=1", f"STATUS=serving at {self._settings.socket}")
        logger.info("observer serves", extra={"socket": str(self._settings.socket), "pid": os.getpid()})

    def _stop_registry(self) -> None:
        if self._packets is not None:
            self._packets.stop()
        if self._registry is not None:
            self._registry.stop()


class Arbiter(gunicorn.arbiter.Arbiter):
    """The watching process. It has exactly one worker, and no reload: both would put two registries side by side."""

    _fed = 0.0

    def murder_workers(self) -> None:
        """End a worker that hangs; called every second."""
        super().murder_workers()
        due = systemd.watchdog_s()
        now = time.monotonic()
        if due is not None and now - self._fed >= due / 2:
            self._fed = now
            systemd.notify("WATCHDOG=1")

    def stop(self, graceful: bool = True) -> None:
        """End the worker, then ourselves."""
        systemd.notify("STOPPING=1")
        super().stop(graceful)

    def handle_hup(self) -> None:
        """No reload: restart instead; sessions survive it."""

    handle_usr2 = handle_ttin = handle_ttou = handle_hup


class _Log(gunicorn.glogging.Logger):
    """Gunicorn's own words go where ours go."""

    def setup(self, cfg: Any) -> None:
        """No handlers of its own."""
        self.cfg = cfg
        self.error_log.handlers.clear()
        self.error_log.propagate = True
        self.error_log.setLevel(logging.WARNING)

    def access(self, *_details: Any) -> None:
        """No access log: verbs that matter are logged as events."""

    def reopen_files(self) -> None:
        """There are none."""


class OneSend:
    """A socket that sends a response in one piece, for clients that read once."""

    def __init__(self, door: socket.socket) -> None:
        self._door = door
        self._pieces: list[bytes] = []

    def sendall(self, data: bytes) -> None:
        """Keep until ``flush``."""
        self._pieces.append(data)

    def flush(self) -> None:
        """Send all at once."""
        data, self._pieces = b"".join(self._pieces), []
        if data:
            self._door.sendall(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._door, name)


class Worker(gunicorn.workers.gthread.ThreadWorker):
    """The process with the registry."""

    registry: Registry | None = None

    def __init__(self, *details: Any, **more: Any) -> None:
        super().__init__(*details, **more)
        self._open_of: Counter[str] = Counter()

    def handle_request(self, req: Any, conn: Any) -> bool:
        """One request, answered in one piece."""
        door = conn.sock
        conn.sock = OneSend(door)
        try:
            keep = super().handle_request(req, conn)
            conn.sock.flush()
            return bool(keep)
        finally:
            conn.sock = door

    def enqueue_req(self, conn: Any) -> None:
        """A connection has something to say. One session has only so many of them."""
        if not conn.initialized and not hasattr(conn, "origin"):
            conn.origin = self._origin(conn.sock)
            if conn.origin is not None:
                self._open_of[conn.origin] += 1
                close = conn.close

                def counted(graceful: bool = False) -> None:
                    self._open_of[conn.origin] -= 1
                    self._open_of += Counter()  # drops those that are down to nothing
                    close(graceful)

                conn.close = counted
                if self._open_of[conn.origin] > _CONNECTIONS_PER_SESSION:
                    self.nr_conns -= 1
                    conn.close()
                    return
            limit = struct.pack("ll", _STALL_S, 0)
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        super().enqueue_req(conn)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM: finish what is being answered, and do not wait for idle clients."""
        super().handle_exit(sig, frame)
        self.method_queue.defer(lambda: self.murder_keepalived(force=True))

    def _origin(self, door: socket.socket) -> str | None:
        """The outermost session that the caller is in."""
        pid = struct.unpack("3i", door.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        with suppress(KolejkaError):  # it has gone: the request will be refused
            names = self.registry.tree.of_process(pid) if self.registry is not None and pid else ()
            return names[0] if names else None
        return None


def _end_with_parent() -> None:
    """In a fresh worker: die when the arbiter does."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it died before the kernel knew

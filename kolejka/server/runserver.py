"""The server as processes: gunicorn's arbiter, and workers of its ``asgi`` kind.

One worker where the database is embedded, since that has one writer; as many as the settings say on PostgreSQL. The
arbiter binds the socket (port 0: any free one), so the worker that the kernel or a bug kills is replaced behind the
same address. A worker dies with its arbiter, so a killed server never leaves half of itself behind.

Several workers have a socket each, all of one address, and the kernel spreads connections over them: on one socket the
worker that happens to be awake takes nearly all, and clients keep their connections. The sockets are the arbiter's, so
what waits in one while its worker is replaced is taken by the next.

Stopping (SIGTERM): who waits in a long poll is answered at once, who is being answered is answered to the end, then the
store is closed. gunicorn alone would wait for idle connections to leave, which clients keep open; so the worker here
goes when no *request* is left.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import itertools
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from gunicorn import glogging
from gunicorn.app.base import BaseApplication
from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.sock import TCP6Socket, TCPSocket
from gunicorn.workers import gasgi

from kolejka.common.settings import ServerSettings
from kolejka.server.app import Application, create_app
from kolejka.server.counts import Counts
from kolejka.server.deps import open_deps
from kolejka.server.prepare import announce, check_settings, prepare, retract

logger = logging.getLogger("kolejka.server")

GRACE_S: Final = 30
"""how long a stop waits for requests that are being answered"""
KEEPALIVE_S: Final = 75
STALL_S: Final = 120
"""an upload that brings nothing for so long is broken off, and a worker that stands still for so long is replaced"""
_PR_SET_PDEATHSIG: Final = 1  # prctl(2)
_HEADER: Final = 4096
"""bytes of a header; a Content-Length of more digits than Python reads (4300) would be a traceback of gunicorn's"""
_GARBAGE: Final = 10_000
"""objects that are made before the collector looks: a bulk put makes very many at once, and most end by themselves"""
_BACKLOG: Final = 2048
"""connections that may wait to be taken"""
_TELL_FULL_S: Final = 60
_SWITCH_S: Final = 0.001
"""the event loop takes over from the writing thread after this long, not after Python's 5 ms"""


class Connection(ASGIProtocol):
    """gunicorn's connection, whose first request has to come as soon as any later one: else whoever opens connections
    and says nothing would keep them for ever.

    One that comes when connections have most of the files that this process may open is closed: database and blobs need
    some too, and who is connected already goes on.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio's word for a connection that was accepted."""
        super().connection_made(transport)
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if self.worker.nr_conns > most * 3 // 4:
            self.worker.tell_full()
            transport.abort()  # type: ignore[attr-defined] # it is one of sockets
        else:
            self._arm_keepalive_timer()


class Worker(gasgi.ASGIWorker):
    """gunicorn's asgi worker, that stops when no request is left."""

    _main: asyncio.Task[None] | None = None
    seat = 0
    """which of the sockets is its own"""
    _told_full_at = 0.0

    def init_process(self) -> None:
        """Begin the process: it dies with its parent."""
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        sys.setswitchinterval(_SWITCH_S)
        gasgi.ASGIProtocol = Connection  # type: ignore[attr-defined] # gunicorn has no setting for it
        super().init_process()

    async def _serve(self) -> None:
        """Serve until told to stop; here gunicorn's loop sleeps between its looks at the signal."""
        self._main = asyncio.current_task()
        loop: Any = asyncio.get_running_loop()
        serve = loop.create_server

        async def listen(*words: Any, sock: socket.socket, **more: Any) -> asyncio.Server:
            server: asyncio.Server = await serve(*words, sock=sock, **more)
            sock.listen(_BACKLOG)  # asyncio has set its own 100, behind which a burst of callers waits for seconds
            return server

        loop.create_server = listen
        await super()._serve()

    def handle_exit_signal(self) -> None:
        """SIGTERM: take nothing new, answer those who wait."""
        if self.alive and self.servers and self._main is not None:
            self._main.cancel()  # gunicorn takes this for the end of its sleep
        super().handle_exit_signal()
        self.application.service.close_doors()

    def tell_full(self) -> None:
        """Connections are closed because there are too many: log it, now and then."""
        now = time.monotonic()
        if now - self._told_full_at > _TELL_FULL_S:
            self._told_full_at = now
            logger.warning("too many connections, no more are taken", extra={"connections": self.nr_conns})

    @property
    def application(self) -> Application:
        """The application that this worker serves."""
        app: Application = self.asgi
        return app

    async def _shutdown(self) -> None:
        """Gunicorn's own word for the end of serving."""
        for server in self.servers:
            server.close()
        if not self._quick_shutdown:
            await self.application.drain(GRACE_S - 5)  # the arbiter's patience is longer
        await self.application.service.stop()


class Logger(glogging.Logger):
    """gunicorn's words through our own log; it has no access log."""

    def setup(self, cfg: Any) -> None:
        """Hand everything to the root logger."""
        self.cfg = cfg
        self.error_log.handlers[:] = []
        self.error_log.propagate = True
        self.error_log.setLevel(logging.WARNING)
        self.access_log.handlers[:] = []
        self.access_log.propagate = False


class Server(BaseApplication):
    """gunicorn, told by our settings."""

    def __init__(self, settings: ServerSettings, ready: Callable[[str], None]) -> None:
        self._settings = settings
        self._ready = ready
        self._url = ""
        self._seated = 0
        """the seat of the worker that was forked last, which is the worker's own there"""
        self._tables = Counts.make(settings.processes)
        super().__init__()

    def load_config(self) -> None:
        """Hand our settings to gunicorn."""
        settings, config = self._settings, self.cfg
        assert config is not None  # the base class has made it
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        words: dict[str, Any] = {
            "bind": f"{host}:{settings.port}",
            "workers": settings.processes,
            "worker_class": Worker,
            "logger_class": Logger,
            "timeout": STALL_S,
            "graceful_timeout": GRACE_S,
            "keepalive": KEEPALIVE_S,
            "limit_request_field_size": _HEADER,
            "backlog": _BACKLOG,
            "asgi_lifespan": "on",
            "control_socket_disable": True,
            "proc_name": "kolejka-server",
            "certfile": settings.certificate or None,
            "keyfile": settings.key or None,
            "when_ready": self._bound,
            "on_starting": self._open,
            "pre_fork": self._seat,
            "post_worker_init": self._serving,
            "on_exit": self._left,
        }
        for name, value in words.items():
            config.set(name, value)

    def load(self) -> Application:
        """The application; called in the worker."""
        counts = Counts(self._tables, self._seated) if len(self._tables) > 1 else None
        return create_app(open_deps(self._settings, counts=counts))

    def _open(self, arbiter: Any) -> None:
        """Where there are several workers, a socket for each (in the arbiter, before gunicorn opens one for all)."""
        host, port, count = self._settings.host, self._settings.port, self._settings.processes
        if count == 1:
            return
        family, kind = (socket.AF_INET6, TCP6Socket) if ":" in host else (socket.AF_INET, TCPSocket)
        arbiter.LISTENERS = []
        for _ in range(count):
            raw = socket.socket(family)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            raw.bind((host, port))
            port = raw.getsockname()[1]  # the first finds a free one, where any will do
            arbiter.LISTENERS.append(kind((host, port), self.cfg, arbiter.log, fd=raw.detach()))

    def _bound(self, arbiter: Any) -> None:
        """The sockets are there (in the arbiter, before the workers)."""
        host, port = arbiter.LISTENERS[0].sock.getsockname()[:2]
        scheme = "https" if self._settings.certificate else "http"
        self._url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def _seat(self, arbiter: Any, worker: Worker) -> None:
        """Give a worker the socket that no other has (in the arbiter)."""
        taken = {other.seat for other in arbiter.WORKERS.values()}
        worker.seat = next(seat for seat in itertools.count() if seat not in taken) % len(arbiter.LISTENERS)
        self._seated = worker.seat
        worker.sockets = arbiter.LISTENERS[worker.seat : worker.seat + 1]

    def _serving(self, worker: Any) -> None:
        """The application is loaded (in the worker); what connects from now on is answered."""
        gc.collect()
        gc.freeze()  # what is there now stays: looking through it again and again finds nothing
        gc.set_threshold(_GARBAGE)
        announce(self._settings, self._url, worker.ppid)
        if worker.age == 1:  # once is enough, however many serve
            self._ready(self._url)

    def _left(self, _arbiter: Any) -> None:
        retract(self._settings, os.getpid())


def run_server(settings: ServerSettings) -> None:
    """Prepare the data folder and serve until told to stop. NodeError, InputError when it cannot begin."""
    check_settings(settings)
    prepared = prepare(settings)
    if prepared.steps:
        logger.info("database migrated", extra={"steps": ",".join(prepared.steps)})
    if prepared.new_admin is not None:
        logger.info("admin token written", extra={"file": str(prepared.new_admin)})

    def ready(url: str) -> None:
        print(f"kolejka-server: {url}", flush=True)  # noqa: T201 scripts read the address here
        logger.info("listening", extra={"url": url, "data": str(Path(settings.data))})

    os.set_inheritable(prepared.lock, False)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a shell gives 1024: everybody who waits keeps one
    Server(settings, ready).run()

"""The server as processes: gunicorn's arbiter, and workers of its ``asgi`` kind.

One worker where the database is embedded, since that has one writer; as many as the settings say on PostgreSQL. The
arbiter binds the socket (port 0: any free one), so the worker
that the kernel or a bug kills is replaced behind the same address. A worker dies with its arbiter, so a killed server
never leaves half of itself behind.

Stopping (SIGTERM): who waits in a long poll is answered at once, who is being answered is answered to the end, then the
store is closed. gunicorn alone would wait for idle connections to leave, which clients keep open; so the worker here
goes when no *request* is left.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from gunicorn import glogging
from gunicorn.app.base import BaseApplication
from gunicorn.workers.gasgi import ASGIWorker

from kolejka.common.settings import ServerSettings
from kolejka.server.app import Application, create_app
from kolejka.server.deps import open_deps
from kolejka.server.prepare import announce, check_settings, prepare, retract

logger = logging.getLogger("kolejka.server")

GRACE_S: Final = 30
"""how long a stop waits for requests that are being answered"""
KEEPALIVE_S: Final = 75
STALL_S: Final = 120
"""an upload that brings nothing for so long is broken off, and a worker that stands still for so long is replaced"""
_PR_SET_PDEATHSIG: Final = 1  # prctl(2)
_SWITCH_S: Final = 0.001
"""the event loop takes over from the writing thread after this long, not after Python's 5 ms"""


class Worker(ASGIWorker):
    """gunicorn's asgi worker, that stops when no request is left."""

    _main: asyncio.Task[None] | None = None

    def init_process(self) -> None:
        """Begin the process: it dies with its parent."""
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        sys.setswitchinterval(_SWITCH_S)
        super().init_process()

    async def _serve(self) -> None:
        """Serve until told to stop; here gunicorn's loop sleeps between its looks at the signal."""
        self._main = asyncio.current_task()
        await super()._serve()

    def handle_exit_signal(self) -> None:
        """SIGTERM: take nothing new, answer those who wait."""
        if self.alive and self.servers and self._main is not None:
            self._main.cancel()  # gunicorn takes this for the end of its sleep
        super().handle_exit_signal()
        self.application.service.close_doors()

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
            "backlog": 2048,
            "asgi_lifespan": "on",
            "control_socket_disable": True,
            "proc_name": "kolejka-server",
            "certfile": settings.certificate or None,
            "keyfile": settings.key or None,
            "when_ready": self._bound,
            "post_worker_init": self._serving,
            "on_exit": self._left,
        }
        for name, value in words.items():
            config.set(name, value)

    def load(self) -> Application:
        """The application; called in the worker."""
        return create_app(open_deps(self._settings))

    def _bound(self, arbiter: Any) -> None:
        """The sockets are there (in the arbiter, before the worker)."""
        host, port = arbiter.LISTENERS[0].sock.getsockname()[:2]
        scheme = "https" if self._settings.certificate else "http"
        self._url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def _serving(self, worker: Any) -> None:
        """The application is loaded (in the worker); what connects from now on is answered."""
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
    Server(settings, ready).run()

"""An nginx of a test's own, told by somebody's ``server`` block, on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

from tests.neighbours.needs import find
from tests.neighbours.processes import Program

_CONFIG = """\
user root;
worker_processes 1;
daemon off;
pid {folder}/pid;
error_log {folder}/error.log info;
events {{}}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{block}
}}
"""


class Nginx:
    """``block`` is what stands in ``http { … }``; it listens on ``port``."""

    def __init__(self, folder: Path, block: str, port: int) -> None:
        self.folder = folder
        self.port = port
        self._config = folder / "nginx.conf"
        self._config.write_text(_CONFIG.format(folder=folder, block=block), encoding="utf-8")
        self._command = [find("nginx") or "", "-e", f"{folder}/error.log", "-c", os.fspath(self._config)]
        self._program: Program | None = None

    def start(self) -> Nginx:
        """Have it look at its configuration, start it, and wait until it listens."""
        said = subprocess.run([*self._command, "-t"], capture_output=True, text=True, check=False)
        assert (said.returncode, "warn" in said.stderr) == (0, False), said.stderr
        self._program = Program("nginx", self._command, self.folder / "nginx.log")
        self._program.wait_ready(self._accepts)
        return self

    def _accepts(self) -> bool:
        with socket.socket() as door:
            return door.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """End it. Safe to call twice."""
        if self._program is not None:
            self._program.stop()

"""An image registry of the tests' own on loopback."""

from __future__ import annotations

import shutil
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

from tests.neighbours.docker import Docker
from tests.neighbours.needs import find
from tests.neighbours.processes import Program

_CONFIG = """\
version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}/data}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


class Registry:
    """Debian's docker-registry, without TLS. ``host`` stands before the names of its images."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="kolejka-test-"))
        with socket.socket() as door:
            door.bind(("127.0.0.1", 0))
            port = door.getsockname()[1]
        self.host = f"127.0.0.1:{port}"
        config = self.folder / "config.yml"
        config.write_text(_CONFIG.format(folder=self.folder, port=port), encoding="utf-8")
        self.home = self.folder / "home"
        """a home folder in which skopeo speaks plain HTTP to it"""
        trust = self.home / ".config/containers"
        trust.mkdir(parents=True)
        (trust / "registries.conf").write_text(
            f'[[registry]]\nlocation = "{self.host}"\ninsecure = true\n', encoding="utf-8"
        )
        (trust / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}', encoding="utf-8")
        self._program = Program(
            "registry", [find("docker-registry") or "", "serve", config], self.folder / "registry.log"
        )
        self._program.wait_ready(lambda: self._answers(port))

    def _answers(self, port: int) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):  # not yet
            return True
        return False

    def push(self, docker: Docker, image: str, name: str) -> str:
        """Have an image of an engine under this name here, and nowhere else; its full name."""
        full = f"{self.host}/{name}"
        repository, _, tag = full.rpartition(":")
        docker.call("POST", f"/images/{image}/tag?repo={repository}&tag={tag}")
        docker.call("POST", f"/images/{repository}/push?tag={tag}", b"", "text/plain", {"X-Registry-Auth": "e30="})
        docker.call("DELETE", f"/images/{full}")
        return full

    def stop(self) -> None:
        """End it."""
        self._program.stop()
        shutil.rmtree(self.folder)

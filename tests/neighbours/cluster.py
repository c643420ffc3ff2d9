"""A whole Kolejka beside the tests: server, observer and foreman as processes, each with a log file.

Everything is below one folder; the control group's name and the server's port are this cluster's own, so that several
clusters, and an installation of the machine's, do not meet.
"""

from __future__ import annotations

import functools
import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from kolejka.client import KolejkaClient
from kolejka.common.settings import ClientSettings
from tests.neighbours.processes import Program
from tests.support import wait_until

PROGRAMS = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """A port of the loopback that nobody serves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Cluster:
    """Server, observer and foreman. ``folder`` must be short and passable for other users (payloads are some)."""

    def __init__(self, folder: Path, settings: Mapping[str, str] = {}, *, log_level: str = "debug") -> None:
        self.folder = folder
        self._log_level = log_level
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.cgroup = f"kolejka-test-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.programs: dict[str, Program] = {}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("KOLEJKA_") or "TEST" in name}
        self.environment = {
            **kept,
            "PATH": f"{PROGRAMS}:{kept.get('PATH', os.defpath)}",
            "HOME": str(folder / "home"),
            "XDG_CONFIG_HOME": str(folder / "home/.config"),
            "KOLEJKA_SERVER_PORT": str(self.port),
            "KOLEJKA_SERVER_DATA": str(folder / "server"),
            "KOLEJKA_CLIENT_SERVER": self.url,
            "KOLEJKA_CLIENT_PATIENCE": "30s",
            "KOLEJKA_OBSERVER_SOCKET": str(folder / "observer.sock"),
            "KOLEJKA_OBSERVER_STATE": str(folder / "sessions"),
            "KOLEJKA_OBSERVER_CGROUP": self.cgroup,
            "KOLEJKA_WORKER_OBSERVER": str(folder / "observer.sock"),
            "KOLEJKA_WORKER_DATA": str(folder / "worker"),
            "KOLEJKA_FOREMAN_DATA": str(folder / "foreman"),
            "KOLEJKA_FOREMAN_NAME": "tests",
            **settings,
        }
        (folder / "home/.config").mkdir(parents=True)

    # Starting and ending

    def start(self) -> None:
        """Start the three programs, in the order in which they need each other, and wait until a node is there."""
        self.start_server()
        self.start_observer()
        self.start_foreman()
        self.programs["foreman"].wait_ready(lambda: self.admin.nodes(), 60)

    def start_server(self) -> None:
        """Start the server and wait until it is ready."""
        self._start("server", ["kolejka-server", "runserver"]).wait_ready(self._ready, 60)

    def start_observer(self) -> None:
        """Start the observer and wait until its socket is there."""
        socket_path = self.folder / "observer.sock"
        self._start("observer", ["kolejka-observer"]).wait_ready(lambda: _answers(socket_path), 60)

    def start_foreman(self) -> None:
        """Start the foreman with a node's token."""
        token_file = self.folder / "node.token"
        if not token_file.exists():
            self.admin.create_user("node", "node")
            token = self.admin.create_token("node", role="node")["token"]
            token_file.touch(mode=0o600)
            token_file.write_text(token + "\n", encoding="ascii")
        self._start("foreman", ["kolejka-foreman"], {"KOLEJKA_CLIENT_TOKEN_FILE": str(token_file)})

    def start_foreman_without_token(self) -> Program:
        """Start a foreman that has to ask to be let in."""
        return self._start("foreman", ["kolejka-foreman"])

    def _start(self, name: str, command: Sequence[str], more: Mapping[str, str] = {}) -> Program:
        program = Program(
            name, [*self._before(name), PROGRAMS / command[0], *command[1:]], self.folder / f"{name}.log",
            {**self.environment, "KOLEJKA_LOG_LEVEL": self._log_level, **more},
        )  # fmt: skip
        self.programs[name] = program
        return program

    def _before(self, name: str) -> list[str]:
        """What a program's command begins with: whoever puts it into a world of its own."""
        return []

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def check_alive(self) -> None:
        """AssertionError, with the last words, when a program has died."""
        for program in self.programs.values():
            assert program.alive, f"{program.name} ended with {program.process.returncode}:\n{program.tail()}"

    def check_quiet(self) -> None:
        """AssertionError when a program logged a traceback, or a token or a key."""
        for program in self.programs.values():
            text = program.log.read_text(encoding="utf-8", errors="replace")
            assert not re.search("(klj|kcs)_[A-Za-z0-9_-]{8}", text), f"{program.name} logged a secret"
            assert "Traceback" not in text, f"{program.name}:\n{program.tail(60)}"

    def stop(self) -> dict[str, int]:
        """End everything in reverse order; name → exit status. Safe to call twice."""
        if "admin" in vars(self):
            self.admin.close()
        return {name: self.programs[name].stop() for name in reversed(list(self.programs))}

    # Using it

    @functools.cached_property
    def admin(self) -> KolejkaClient:
        """A client with the admin's token."""
        token = (self.folder / "server/admin.token").read_text(encoding="ascii").strip()
        return KolejkaClient(ClientSettings(server=self.url, token=token, patience=30.0))

    def run(
        self,
        *words: str | os.PathLike[str],
        cwd: Path | None = None,
        env: Mapping[str, str] = {},
        timeout_s: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of the project as a person would: its exit status, output and error output."""
        command = [os.fspath(word) for word in words]
        return subprocess.run(
            [str(PROGRAMS / command[0]), *command[1:]], env={**self.environment, **env}, cwd=cwd or ROOT,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=timeout_s,
        )  # fmt: skip

    def is_empty(self) -> bool:
        """Whether no task waits or runs and no control group of a session is left."""
        unfinished = [task for state in ("waiting", "running") for task in self.admin.tasks(state=state)]
        return not unfinished and not self.sessions()

    def sessions(self) -> list[Path]:
        """Control groups of sessions."""
        root = Path("/sys/fs/cgroup")
        parents = [root / self.cgroup, *root.glob(f"*/{self.cgroup}")]
        return [child for parent in parents if parent.is_dir() for child in parent.iterdir() if child.is_dir()]

    def wait_empty(self) -> None:
        """Wait until ``is_empty``."""
        wait_until(self.is_empty, about="no task and no session is left")


def _answers(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            door.connect(os.fspath(path))
    except OSError:
        return False
    return True


def copy_examples(target: Path) -> Path:
    """The examples in a folder of the test's own, so that results can be laid among them."""
    return Path(shutil.copytree(ROOT / "examples", target, ignore=shutil.ignore_patterns("compiled")))

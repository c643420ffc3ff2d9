"""``Containerfile``: a server and a foreman in containers of engines of the tests' own, and a task through both."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kolejka.client import KolejkaClient
from kolejka.common.settings import ClientSettings
from tests.neighbours.cluster import PROGRAMS, free_port
from tests.neighbours.docker import Docker
from tests.neighbours.guest import PROJECT, built_root
from tests.neighbours.needs import find
from tests.neighbours.podman import Podman
from tests.support import wait_until

pytestmark = pytest.mark.needs("nspawn", "debhelper")

BASE = "kolejka/debian:latest"
_FOREMAN = (PROJECT / "docs/containers.md").read_text(encoding="utf-8").partition("## The foreman")[2]
PRIVILEGES = [word for option in re.findall(r"--(?:cap-add|security-opt) \S+", _FOREMAN) for word in option.split()]
"""what the page says that a foreman needs"""


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class Engine:
    """Commands of an engine's client, against the private daemon or storage; ``name`` is the command's."""

    def __init__(self, name: str, daemon: Docker) -> None:
        self.name = name
        self._environment = {**os.environ, **daemon.environment, "DOCKER_BUILDKIT": "0"}

    def run(self, *words: str | os.PathLike[str], status: int | None = 0) -> str:
        command = [find(self.name) or "", *(os.fspath(word) for word in words)]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)
        assert status is None or done.returncode == status, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
        return done.stdout

    @property
    def privileges(self) -> list[str]:
        """What the page says that a foreman needs, in this engine's words."""
        return [ENGINES[self.name].privileges.get(word, word) for word in PRIVILEGES]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A root file system of this Debian release, as an archive."""
    tar = tmp_path_factory.mktemp("base") / "base.tar"
    subprocess.run(["tar", "--numeric-owner", "-C", built_root(), "-cf", tar, "."], check=True)
    yield tar
    tar.unlink()


@dataclass(frozen=True)
class Kind:
    """An engine, and the commands that build the images of server and foreman for it."""

    daemon: type[Docker]
    builders: tuple[str, str]
    privileges: Mapping[str, str] = field(default_factory=dict)
    """other words than Docker's"""


ENGINES = {
    "docker": Kind(Docker, ("docker", "docker")),
    # One builder each, as both work on the same storage.
    "podman": Kind(Podman, ("podman", "buildah"), {"systempaths=unconfined": "unmask=ALL"}),
}
CASES = [pytest.param(name, marks=pytest.mark.needs(*{name, *kind.builders})) for name, kind in ENGINES.items()]


@pytest.fixture(scope="module", params=CASES)
def engine(request: pytest.FixtureRequest, base: Path, debs: Path) -> Iterator[Engine]:
    """An engine with the images of server and foreman."""
    kind = ENGINES[request.param]
    daemon = kind.daemon()
    try:
        daemon.start()
        daemon.import_image(base, BASE)
        for target, builder in zip(("server", "foreman"), kind.builders, strict=True):
            Engine(builder, daemon).run(
                "build", "--network", "none", "--build-arg", f"BASE={BASE}", "--file", PROJECT / "Containerfile",
                "--target", target, "--tag", f"kolejka-{target}", debs,
            )  # fmt: skip
        yield Engine(request.param, daemon)
    finally:
        assert daemon.stop() == [], "containers were left behind"


def test_a_task_goes_through_a_server_and_a_foreman_in_containers(engine: Engine, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    engine.run(
        "run", "--detach", "--name", "server", "--network", "host", "--cap-drop", "ALL", "--read-only",
        "--tmpfs", "/tmp", "--env", f"KOLEJKA_SERVER_PORT={port}", "--env", "KOLEJKA_SERVER_HOST=127.0.0.1",
        "--volume", "server:/var/lib/kolejka/server", "kolejka-server",
    )  # fmt: skip
    try:
        command = ["exec", "server", "cat", "/var/lib/kolejka/server/admin.token"]
        token = wait_until(lambda: engine.run(*command, status=None).strip(), 60, "the server has made its token")
        wait_until(lambda: answers(port), 60, "the server answers")
        admin = KolejkaClient(ClientSettings(server=url, token=token, patience=60.0))
        admin.create_user("lab-01", "node")
        secret = tmp_path / "token"
        secret.touch(mode=0o600)
        secret.write_text(admin.create_token("lab-01", role="node")["token"], encoding="ascii")
        engine.run(
            "run", "--detach", "--name", "foreman", "--network", "host", "--cgroupns", "private", *engine.privileges,
            "--env", f"KOLEJKA_CLIENT_SERVER={url}", "--env", "KOLEJKA_FOREMAN_NAME=lab-01",
            "--env", "KOLEJKA_CLIENT_TOKEN_FILE=/run/token", "--volume", f"{secret}:/run/token:ro",
            "--volume", "node:/var/lib/kolejka", "kolejka-foreman",
        )  # fmt: skip
        environment = {**os.environ, "KOLEJKA_CLIENT_SERVER": url, "KOLEJKA_CLIENT_TOKEN": token}

        def execute(name: str, *args: str) -> dict[str, object]:
            folder = tmp_path / name
            folder.mkdir()
            spec = {"args": args, "stdout": "out", "limits": {"memory": "32M", "time": "60s"}}
            (folder / "kolejka_task.json").write_text(json.dumps(spec), encoding="utf-8")
            words = [PROGRAMS / "kolejka-client", "execute", folder, tmp_path / f"{name}-result"]
            subprocess.run(words, env=environment, check=False, timeout=180, capture_output=True)
            result: dict[str, object] = json.loads((tmp_path / f"{name}-result/kolejka_result.json").read_text())
            return result

        assert execute("fine", "sh", "-c", "id -u; echo done")["outcome"] == "ok", engine.run("logs", "foreman")
        user, word = (tmp_path / "fine-result/out").read_text(encoding="utf-8").split()
        assert (int(user) > 0, word) == (True, "done")
        hog = execute("hog", "python3", "-c", "'x' * (1 << 28)")
        assert (hog["outcome"], hog["limit"]) == ("limit", "memory")
        admin.close()
    finally:
        for name in ("foreman", "server"):
            engine.run("stop", "--time", "20", name, status=None)
        engine.run("rm", "--force", "--volumes", "foreman", "server", status=None)

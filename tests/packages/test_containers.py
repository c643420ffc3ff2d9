"""``Containerfile``: a server and a foreman in containers of an engine of the tests' own, and a task through both."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kolejka.client import KolejkaClient
from kolejka.common.settings import ClientSettings
from tests.neighbours.cluster import PROGRAMS, free_port
from tests.neighbours.docker import Docker
from tests.neighbours.guest import PROJECT, built_root
from tests.neighbours.needs import find
from tests.support import wait_until

pytestmark = pytest.mark.needs("nspawn", "debhelper", "docker")

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
    """Commands of the engine's client, against the private daemon."""

    def __init__(self, daemon: Docker) -> None:
        self._daemon = daemon

    def run(self, *words: str | os.PathLike[str], status: int | None = 0) -> str:
        environment = {**os.environ, "DOCKER_HOST": self._daemon.url, "DOCKER_BUILDKIT": "0"}
        command = [find("docker") or "", *(os.fspath(word) for word in words)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert status is None or done.returncode == status, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def engine(debs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine with the images of server and foreman."""
    daemon = Docker()
    try:
        daemon.start()
        tar = tmp_path_factory.mktemp("base") / "base.tar"
        subprocess.run(["tar", "--numeric-owner", "-C", built_root(), "-cf", tar, "."], check=True)
        daemon.import_image(tar, BASE)
        tar.unlink()
        client = Engine(daemon)
        for target in ("server", "foreman"):
            client.run(
                "build", "--network", "none", "--build-arg", f"BASE={BASE}", "--file", PROJECT / "Containerfile",
                "--target", target, "--tag", f"kolejka-{target}", debs,
            )  # fmt: skip
        yield client
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
            "run", "--detach", "--name", "foreman", "--network", "host", "--cgroupns", "private", *PRIVILEGES,
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

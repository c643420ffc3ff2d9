"""``kolejka up`` with the real programs: one command, a task from end to end, and nothing left afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.neighbours.cluster import PROGRAMS, free_port
from tests.neighbours.processes import Program
from tests.support import wait_until

pytestmark = pytest.mark.needs("root", "cgroups", "bwrap")


class System:
    """``kolejka up`` in a folder of its own, and the environment of a person who uses it."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.log = folder / "up.log"
        self.port = free_port()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("KOLEJKA_") or "TEST" in name}
        self.environment = {
            **kept, "HOME": str(folder / "home"), "XDG_CONFIG_HOME": str(folder / "home/.config"),
            "KOLEJKA_OBSERVER_CGROUP": f"kolejka-test-{os.getpid()}-up", "KOLEJKA_FOREMAN_NAME": "here",
            "KOLEJKA_SERVER_HEARTBEAT": "5s",
        }  # fmt: skip
        (folder / "home").mkdir()
        self.program: Program | None = None

    def start(self) -> Program:
        begin = self.log.stat().st_size if self.log.exists() else 0
        words = [PROGRAMS / "kolejka", "up", "--data", self.data, "--port", str(self.port)]
        self.program = Program("up", words, self.log, self.environment)
        self.program.wait_ready(lambda: "kolejka execute" in self.log.read_text()[begin:], 90)
        return self.program

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        environment = {
            **self.environment, "KOLEJKA_CLIENT_SERVER": f"http://127.0.0.1:{self.port}",
            "KOLEJKA_CLIENT_TOKEN_FILE": f"{self.data}/server/admin.token",
        }  # fmt: skip
        return subprocess.run(
            [PROGRAMS / "kolejka", *words], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False, timeout=120,
        )  # fmt: skip


@pytest.fixture
def system() -> Iterator[System]:
    folder = Path(tempfile.mkdtemp(prefix="kolejka-test-"))
    folder.chmod(0o711)  # payloads, which are other users, pass through
    made = System(folder)
    yield made
    if made.program is not None:
        made.program.stop(60)
    said = {log.name: log.read_text() for log in (made.data / "logs").iterdir()}
    shutil.rmtree(folder)
    assert [(name, text[-4000:]) for name, text in said.items() if "Traceback" in text] == []


def make_task(folder: Path, **words: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "kolejka_task.json").write_text(json.dumps({"stdout": "stdout.txt", **words}))
    return folder


def test_one_command_runs_a_task_and_leaves_nothing_when_it_ends(system: System, tmp_path: Path) -> None:
    for turn in ("first", "second"):
        program = system.start()
        done = system.run("execute", make_task(tmp_path / turn, args=["uname"]), tmp_path / f"R-{turn}")
        assert (done.returncode, done.stderr) == (0, "")
        assert (tmp_path / f"R-{turn}" / "stdout.txt").read_text() == "Linux\n"
        assert [node["name"] for node in json.loads(system.run("node", "list", "--json").stdout)] == ["here"]
        assert program.stop(60) == 0
    assert len(json.loads(_tokens(system))) == 2, "the node's token is made once"


def _tokens(system: System) -> str:
    program = system.start()
    try:
        return system.run("token", "list", "--json").stdout
    finally:
        program.stop(60)


def test_a_second_up_and_a_port_in_use_are_one_line(system: System) -> None:
    program = system.start()
    again = system.run("up", "--data", system.data, "--port", "0")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert f"process {program.pid}" in again.stderr
    other = system.run("up", "--data", system.data.with_name("other"), "--port", str(system.port))
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "--port" in other.stderr
    assert program.alive


def test_a_task_that_runs_when_everything_stops_waits_for_the_next_start(system: System, tmp_path: Path) -> None:
    program = system.start()
    folder = make_task(tmp_path / "long", args=["sleep", "600"])
    task_id = system.run("task", "put", folder).stdout.strip()
    wait_until(lambda: json.loads(system.run("task", "show", task_id, "--json").stdout)["state"] == "running")
    assert program.stop(60) == 0
    system.start()
    shown = json.loads(system.run("task", "show", task_id, "--json").stdout)
    assert shown["state"] in {"waiting", "running"}, "given back, or claimed again"
    assert system.run("task", "cancel", task_id).returncode == 0
    assert system.run("result", "get", "--wait", task_id, tmp_path / "R").returncode == 130


def test_when_a_part_dies_the_rest_is_stopped(system: System) -> None:
    program = system.start()
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
    assert len(children) == 3
    commands = {Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[3].decode(): int(pid) for pid in children}
    os.kill(commands["kolejka.observer"], signal.SIGKILL)
    assert program.process.wait(60) == 125
    assert "the observer ended with status -9" in system.log.read_text()
    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []

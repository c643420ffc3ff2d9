"""The observer as the units that ship with it, under a systemd that delegates control groups of version 2."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import kolejka
from kolejka.observer.client import ObserverClient, ObserverError
from tests.support import wait_until

pytestmark = pytest.mark.needs("root", "cgroup2", "systemd")

SHIPPED = Path(kolejka.__file__).parent / "foreman" / "systemd"
UNITS = Path("/run/systemd/system")
PREFIX = f"kolejka-test-{os.getpid()}"
HERE = Path("/run") / PREFIX
PROGRAM = f"{sys.executable} -m kolejka.observer"


def systemctl(*words: str) -> str:
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"systemctl {' '.join(words)}: {done.stderr}"
    return done.stdout.strip()


class Unit:
    """A unit under a name of the tests' own."""

    def __init__(self, name: str, text: str) -> None:
        self.name = f"{PREFIX}-{name}.service"
        self.file = UNITS / self.name
        self.file.write_text(text.replace("kolejka-sessions", f"{PREFIX}-sessions"))
        systemctl("daemon-reload")

    def changed(self, text: str) -> Unit:
        folder = self.file.with_name(f"{self.name}.d")
        folder.mkdir()
        (folder / "test.conf").write_text(text)
        systemctl("daemon-reload")
        return self

    def start(self) -> None:
        done = subprocess.run(["systemctl", "start", self.name], capture_output=True, text=True, check=False)
        said = subprocess.run(
            ["journalctl", "-n", "20", "-u", self.name], capture_output=True, text=True, check=False
        ).stdout
        assert done.returncode == 0, done.stderr + said

    @property
    def main_pid(self) -> int:
        return int(systemctl("show", "--property=MainPID", "--value", self.name))

    def remove(self) -> None:
        systemctl("stop", self.name)
        subprocess.run(["systemctl", "reset-failed", self.name], capture_output=True, check=False)  # if it has failed
        for path in (self.file.with_name(f"{self.name}.d") / "test.conf", self.file):
            path.unlink(missing_ok=True)
        if (changes := self.file.with_name(f"{self.name}.d")).is_dir():
            changes.rmdir()
        systemctl("daemon-reload")


def shipped(name: str) -> str:
    return (SHIPPED / f"kolejka-{name}.service").read_text()


@pytest.fixture(scope="module")
def observer() -> Iterator[Unit]:
    """The shipped units; only where the program and its files are is changed."""
    with ExitStack() as stack:
        holder = Unit("sessions", shipped("sessions"))
        stack.callback(holder.remove)
        unit = Unit("observer", shipped("observer"))
        stack.callback(unit.remove)
        unit.changed(
            "[Service]\n"
            "ExecStart=\n"
            f"ExecStart={PROGRAM} --socket {HERE}/socket --state {HERE}/sessions --cgroup {PREFIX}\n"
            f"WorkingDirectory={Path.cwd()}\n"
            f"RuntimeDirectory=\nRuntimeDirectory={PREFIX}\nRuntimeDirectoryPreserve=restart\n"
            "ProtectHome=read-only\n"
        )
        unit.start()
        yield unit


def client() -> ObserverClient:
    return ObserverClient(f"{HERE}/socket")


def serves() -> bool:
    try:
        return client().ping()["status"] == "ok"
    except (OSError, ObserverError):
        return False


@pytest.fixture
def sleeper() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        processes.append(subprocess.Popen(["sleep", "1000"]))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_sessions_live_in_the_unit_that_holds_them(observer, sleeper) -> None:
    session = client().open({"memory": "64M", "pids": 5, "cpus": 1})
    process = sleeper()
    session.attach(process.pid)
    assert session.cgroup_parent == f"/system.slice/{PREFIX}-sessions.service/{PREFIX}/{session.id}"
    systemctl("daemon-reload")
    limit = Path(f"/sys/fs/cgroup{session.cgroup_parent}/memory.max")
    assert limit.read_text().strip() == str(64 << 20), "systemd leaves what it delegated alone"
    assert session.stats()["pids"]["usage"] == 1
    assert session.close()["processes_left"] == 1
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("how", ["killed", "restarted"])
def test_sessions_outlive_the_observer(observer, sleeper, how) -> None:
    session = client().open({"memory": "64M", "time": "1000s"})
    process = sleeper()
    session.attach(process.pid)
    before = observer.main_pid
    if how == "killed":
        systemctl("kill", "--kill-who=main", "--signal=KILL", observer.name)
    else:
        systemctl("restart", observer.name)
    wait_until(lambda: observer.main_pid not in {0, before} and serves(), about="the observer serves again")
    assert process.poll() is None
    other = client().open({"memory": "32M"})
    assert os.path.dirname(other.cgroup_parent) == os.path.dirname(session.cgroup_parent)
    other.close()
    assert client().session(session.id, session.secret).close()["processes_left"] == 1
    assert process.wait() == -signal.SIGKILL


def test_doctor_finds_all_it_needs_in_a_group_delegated_to_itself(tmp_path) -> None:
    answer = tmp_path / "answer"
    text = (
        "[Service]\nType=oneshot\nDelegate=yes\n"
        f"WorkingDirectory={Path.cwd()}\nStandardOutput=file:{answer}\n"
        f"ExecStart={PROGRAM} --cgroup {PREFIX} doctor --json\n"
    )
    unit = Unit("doctor", text)
    try:
        unit.start()
    finally:
        unit.remove()
    checks = {check["check"]: check for check in json.loads(answer.read_text())}
    assert unit.name in str(checks["control groups"])
    for name in ("control groups", "a session", *(f"controller {c}" for c in ("memory", "pids", "cpuset", "io"))):
        assert checks[name]["ok"], name

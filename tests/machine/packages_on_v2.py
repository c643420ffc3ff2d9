"""The Debian packages on control groups v2: installed, used and removed inside a machine of the tests.

Not collected by itself, since it changes the machine that it runs on: ``make test-deb-v2`` names it, in a machine whose
layer has the packages.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.support import wait_until

DEBS = Path("/opt/tests/debs")
UNITS = Path("/etc/systemd/system")
SESSIONS = Path("/sys/fs/cgroup/system.slice/kolejka-sessions.service")
SOCKET = Path("/run/kolejka/observer/socket")

pytestmark = pytest.mark.needs("cgroup2", "systemd", "root")


def run(*words: str, status: int = 0) -> str:
    # In a machine of the tests the environment is that of the tests.
    clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(words, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == status, f"{' '.join(words)}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def installed() -> None:
    """The packages of a node, in place of what the image brings of Kolejka."""
    assert DEBS.is_dir(), "only a machine of the tests is changed so"
    ours = {UNITS / "kolejka-test.service", UNITS / "multi-user.target.wants/kolejka-test.service"}
    for path in [*UNITS.glob("kolejka-*"), *UNITS.glob("*.wants/kolejka-*"), *Path("/usr/local/bin").glob("kolejka*")]:
        if path not in ours:
            run("rm", "-r", str(path))
    run("rm", "-r", "/usr/lib/kolejka", "/etc/kolejka")
    run("systemctl", "daemon-reload")
    run("dpkg", "--install", *(str(path) for path in sorted(DEBS.glob("*.deb")) if "server" not in path.name))


def execute(folder: Path, script: str, status: int = 0) -> dict[str, object]:
    """Run a task by the installed worker under the installed observer; its result."""
    task = folder / "task"
    task.mkdir()
    spec = {"args": ["sh", "-c", script], "stdout": "out", "limits": {"memory": "64M", "time": "300s"}}
    (task / "kolejka_task.json").write_text(json.dumps(spec), encoding="utf-8")
    run("kolejka-worker", "execute", "--observer", str(SOCKET), str(task), str(folder / "result"), status=status)
    result: dict[str, object] = json.loads((folder / "result/kolejka_result.json").read_text(encoding="utf-8"))
    return result


@pytest.mark.usefixtures("installed")
def test_the_observer_runs_and_keeps_sessions_in_their_unit() -> None:
    assert run("systemctl", "is-active", "kolejka-sessions", "kolejka-observer").split() == ["active", "active"]
    wait_until(SOCKET.is_socket, about="the observer serves")
    seen = run(
        "kolejka-observer", "run", "--observer", str(SOCKET), "--memory", "64M", "--", "cat", "/proc/self/cgroup"
    )
    assert seen.startswith(f"0::/{SESSIONS.relative_to('/sys/fs/cgroup')}/")


@pytest.mark.usefixtures("installed")
def test_a_task_is_run_measured_and_held(tmp_path: Path) -> None:
    for name in ("fine", "hog"):
        (tmp_path / name).mkdir()
    fine = execute(tmp_path / "fine", "echo $((6 * 7))")
    assert (fine["outcome"], (tmp_path / "fine/result/out").read_text()) == ("ok", "42\n")
    assert fine["stats"]["memory"]["max_usage"] > 0  # type: ignore[index]
    hog = execute(tmp_path / "hog", "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done", status=137)
    assert (hog["outcome"], hog["limit"]) == ("limit", "memory")


@pytest.mark.usefixtures("installed")
def test_nothing_is_left_when_they_are_removed() -> None:
    run("dpkg", "--purge", "kolejka-node", "kolejka-client", "kolejka-common")
    for place in (SESSIONS, SOCKET, Path("/usr/lib/kolejka"), Path("/etc/kolejka")):
        assert not place.exists()

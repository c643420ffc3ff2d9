"""The observer as a daemon, its client, and one command in a session."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kolejka.common.errors import InputError, NodeError, NotFound, Unavailable
from kolejka.common.limits import Limits
from kolejka.observer import access
from kolejka.observer.access import RemoteSessions, connect
from kolejka.observer.client import ObserverClient, ObserverError
from kolejka.observer.packets import MAX_PACKET, PacketClient, workers_door
from kolejka.observer.protocol import Caller
from kolejka.observer.run import run_command
from tests.support import wait_until

pytestmark = pytest.mark.needs("cgroups", "root")

ROOT = f"kolejka-test-daemon-{os.getpid()}"
CLIENT = Path(access.__file__).with_name("client.py")


def answers(door: Path) -> bool:
    try:
        return ObserverClient(str(door)).ping()["status"] == "ok"
    except OSError:
        return False


class Observer:
    """One daemon and its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.door = folder / "run" / "socket"
        self.state = folder / "state"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [*PROGRAM, "--socket", str(self.door), "--state", str(self.state), "--nested", "4"],
            stderr=(self.folder / "log").open("ab"),
        )
        wait_until(lambda: answers(self.door) or self.process.poll() is not None)

    @property
    def client(self) -> ObserverClient:
        return ObserverClient(str(self.door))

    @property
    def keeper(self) -> int:
        """The process with the registry."""
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])


PROGRAM = [sys.executable, "-m", "kolejka.observer", "--cgroup", ROOT]


@pytest.fixture
def observer(tmp_path):
    tmp_path.chmod(0o755)
    observer = Observer(tmp_path)
    yield observer
    if observer.process.poll() is None:
        observer.process.terminate()
        assert observer.process.wait(30) == 0, (tmp_path / "log").read_text()
    assert list(observer.door.parent.iterdir()) == []


@pytest.fixture
def sleeper():
    processes = []

    def start(*args):
        processes.append(subprocess.Popen(args or ("sleep", "1000")))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_a_session_through_the_client(observer, sleeper):
    with observer.client.open({"memory": "64M", "time": "200ms"}, cpuset=[0]) as session:
        process = sleeper()
        session.attach(process.pid)
        assert session.cgroup_parent.endswith(f"/{ROOT}/{session.id}")  # below our own group, where one was delegated
        assert process.wait() == -signal.SIGKILL
        assert session.stats()["limit"] == "time"
    assert session.stats()["status"] == "ok"


def test_the_socket_is_open_to_all_and_secrets_to_none(observer):
    assert stat.S_IMODE(observer.door.stat().st_mode) == 0o666
    assert stat.S_IMODE(observer.state.stat().st_mode) == 0o700


def test_errors_name_field_and_status(observer):
    with pytest.raises(ObserverError) as caught:
        observer.client.open({"memory": "lots"})
    assert (caught.value.status, caught.value.field) == (422, "limits: memory")
    with pytest.raises(ObserverError) as caught:
        observer.client.session("0" * 32, "x").stats()
    assert caught.value.status == 404


def as_nobody(code: str) -> subprocess.CompletedProcess[str]:
    nobody = pwd.getpwnam("nobody")
    return subprocess.run(
        ["/usr/bin/python3", "-I", "-c", code], capture_output=True, text=True, check=False,
        user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[],
    )  # fmt: skip


NEST = """
import runpy, sys, os
client = runpy.run_path({client!r})
observer = client["ObserverClient"]({door!r})
"""


def nest(observer) -> str:
    copy = observer.folder / "client.py"
    copy.write_text(CLIENT.read_text())
    copy.chmod(0o644)
    return NEST.format(client=str(copy), door=str(observer.door))


@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="no system Python for an unprivileged user")
def test_an_unprivileged_caller_outside_is_refused(observer):
    for folder in (observer.folder, *observer.folder.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH)
    said = as_nobody(nest(observer) + "observer.open()")
    assert "socket's group" in said.stderr


def test_a_caller_inside_opens_only_below_its_own_session(observer):
    outer = observer.client.open({"pids": 20})
    other = observer.client.open()
    code = nest(observer) + (
        "error = client['ObserverError']\n"
        "sys.stdin.readline()\n"
        "inner = observer.open({'pids': 5})\n"
        "assert inner.cgroup_parent.endswith('/' + sys.argv[1] + '/' + inner.id), inner.cgroup_parent\n"
        "def refused(work):\n"
        "    try: work()\n"
        "    except error as told: return told.status\n"
        "print(refused(lambda: observer.session(sys.argv[2], sys.argv[3]).attach()))\n"
        "print(refused(lambda: inner.attach(1)))\n"
        "inner.attach()\n"
        "print(refused(lambda: [observer.open() for _ in range(9)]))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, outer.id, other.id, other.secret],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        outer.attach(process.pid)
        said, _ = process.communicate("\n")
    assert said.split() == ["403", "403", "409"]
    outer.close()
    other.close()


def test_an_idle_connection_and_a_stalled_one_hold_nobody_up(observer):
    talks = []
    for _ in range(40):
        talk = socket.socket(socket.AF_UNIX)
        talk.connect(str(observer.door))
        talk.sendall(b"POST /open HTTP/1.1\r\nHost:")
        talks.append(talk)
    wait_until(lambda: answers(observer.door))
    for talk in talks:
        talk.close()


def test_one_session_has_only_so_many_connections(observer):
    session = observer.client.open()
    code = f"""
import socket, sys
sys.stdin.readline()
talks = [socket.socket(socket.AF_UNIX) for _ in range(30)]
closed = 0
for talk in talks:
    talk.settimeout(10)
    talk.connect({str(observer.door)!r})
    try:
        talk.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
        closed += not talk.recv(100)
    except OSError:
        closed += 1
print(closed)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        session.attach(process.pid)
        said, _ = process.communicate("\n")
    assert int(said) == 30 - 16
    session.close()


def test_many_callers_are_answered_at_once(observer):
    errors = []

    def one():
        try:
            client = observer.client
            for _ in range(5):
                session = client.open({"memory": "64M", "pids": 4})
                session.stats()
                session.close()
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert observer.client.ping()["sessions"] == 0


@pytest.mark.parametrize("victim", ["keeper", "whole"])
def test_a_killed_observer_forgets_nothing(observer, sleeper, victim):
    client = observer.client
    session = client.open({"time": "2s"})
    kept = client.open()
    closed = client.open()
    final = closed.close()
    process, other = sleeper(), sleeper()
    started = time.monotonic()
    session.attach(process.pid)
    kept.attach(other.pid)
    if victim == "keeper":
        keeper = observer.keeper
        os.kill(keeper, signal.SIGKILL)
        wait_until(lambda: answers(observer.door) and observer.keeper != keeper)
    else:
        observer.process.kill()
        observer.process.wait()
        observer.start()
    assert process.wait() == -signal.SIGKILL
    assert session.stats()["limit"] == "time", "the same client goes on"
    assert 2 <= session.close()["time"] <= time.monotonic() - started
    assert closed.stats() == final
    assert other.poll() is None
    assert kept.close()["processes_left"] == 1


def test_sigterm_keeps_sessions_for_the_next_start(observer, sleeper):
    session = observer.client.open({"time": "60s"})
    process = sleeper()
    session.attach(process.pid)
    observer.process.terminate()
    assert observer.process.wait(30) == 0
    assert process.poll() is None
    observer.start()
    assert observer.client.session(session.id, session.secret).close()["processes_left"] == 1


def test_a_second_observer_is_refused_in_one_line(observer, tmp_path):
    words = ["--socket", str(observer.door), "--state", str(tmp_path / "other")]
    said = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, check=False, timeout=60)
    assert said.returncode == 125
    assert "serves at" in said.stderr
    assert said.stderr.count("\n") == 1
    words = ["--socket", str(tmp_path / "another"), "--state", str(observer.state)]
    said = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, check=False, timeout=60)
    assert said.returncode == 125
    assert "same state folder" in said.stderr


def test_a_stale_socket_is_replaced_and_a_file_is_not(tmp_path):
    door = tmp_path / "run" / "socket"
    door.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(door))
    observer = Observer(tmp_path)
    assert answers(door)
    observer.process.terminate()
    observer.process.wait(30)
    door.write_text("")
    said = subprocess.run([*PROGRAM, "--socket", str(door)], capture_output=True, text=True, check=False, timeout=60)
    assert "is no socket" in said.stderr
    assert door.read_text() == ""


def test_the_service_manager_is_told(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        observer = Observer(tmp_path)
        said = b""
        while b"WATCHDOG=1" not in said:
            said += manager.recv(4096) + b"\n"
        assert b"READY=1" in said
        observer.process.terminate()
        while b"STOPPING=1" not in said:
            said += manager.recv(4096) + b"\n"
        observer.process.wait(30)


# the worker's access


@pytest.fixture(params=["workers' door", "http"])
def sessions_of(request):
    """How a worker reaches an observer: its own door, or HTTP where it may not use that."""

    def reach(observer):
        sessions = connect(str(observer.door))
        if request.param == "http":
            return RemoteSessions(observer.client)
        assert isinstance(sessions._client, PacketClient)
        return sessions

    return reach


def test_a_session_of_a_worker(observer, sleeper, sessions_of):
    sessions = sessions_of(observer)
    session = sessions.open(Limits.of(memory="64M", pids=4), cpuset=[0])
    process = sleeper()
    session.attach(process.pid)
    session.freeze()
    session.thaw()
    assert session.stats().stats.pids.usage == 1
    session.kill()
    assert process.wait() == -signal.SIGKILL
    report = session.close()
    assert (report.limit, report.processes_left) == (None, 0)
    assert session.close() == report
    with pytest.raises(InputError) as caught:
        sessions.open(Limits.of(storage=1))
    assert caught.value.field == "limits: storage"


def test_a_session_is_opened_around_a_process_or_not_at_all(observer, sleeper, sessions_of):
    sessions = sessions_of(observer)
    process = sleeper()
    session = sessions.enclose(process.pid, Limits.of(memory="64M", time="1h"), cpuset=[0])
    assert session.stats().stats.pids.usage == 1
    saved = json.loads((observer.state / f"{session.id}.json").read_text())
    assert (saved["limits"]["time"], saved["cpuset"]) == (3600.0, [0])
    assert saved["started"] is not None
    assert session.close().processes_left == 1
    process.wait()
    with pytest.raises(NotFound, match="no process"):
        sessions.enclose(process.pid, Limits())
    assert observer.client.ping()["sessions"] == 0


def test_a_worker_goes_on_with_its_sessions_after_a_restart(observer, sleeper, sessions_of):
    sessions = sessions_of(observer)
    process = sleeper()
    session = sessions.enclose(process.pid, Limits.of(memory="64M"))
    observer.process.kill()
    observer.process.wait()
    wait_until(lambda: not os.path.exists(f"/proc/{observer.process.pid}"))
    observer.start()
    assert session.close().processes_left == 1
    assert sessions.open(Limits()).close().processes_left == 0


def test_a_session_that_was_asked_for_again_after_a_restart_does_not_stay_beside_its_double(
    observer, sleeper, sessions_of
):
    process = sleeper()
    sessions_of(observer).enclose(process.pid, Limits())  # as if nobody had heard the answer
    observer.process.kill()
    observer.process.wait()
    observer.start()
    again = sessions_of(observer).enclose(process.pid, Limits())
    wait_until(lambda: observer.client.ping()["sessions"] == 1)
    assert again.close().processes_left == 1


def test_a_worker_waits_for_an_observer_that_died_and_not_for_ever(observer, sleeper, sessions_of, monkeypatch):
    sessions, process = sessions_of(observer), sleeper()
    session = sessions.enclose(process.pid, Limits())
    observer.process.kill()
    observer.process.wait()
    reports = []
    waiting = threading.Thread(target=lambda: reports.append(session.close()))
    waiting.start()
    with pytest.raises(Unavailable, match="no observer answers"):
        connect(str(observer.door))  # a first word is not patient: the address may be wrong
    observer.start()
    waiting.join(30)
    assert [report.processes_left for report in reports] == [1]
    observer.process.kill()
    observer.process.wait()
    monkeypatch.setattr(access, "PATIENCE_S", 0.2)
    with pytest.raises(Unavailable, match="does not answer"):
        sessions.open(Limits())
    observer.start()


def test_the_workers_door_is_closed_to_strangers_and_answers_nonsense_in_words(observer):
    door = workers_door(observer.door)
    assert stat.S_IMODE(os.stat(door).st_mode) == 0o660
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        line.connect(door)
        for packet, code in (
            (b"{", "malformed"), (b"[]", "malformed"), (b'["open", []]', "malformed"), (b'["jump", {}]', "invalid"),
            (b'["stats", {}]', "forbidden"), (b'["open", {"limits": {"memory": "1MM"}}]', "invalid"),
            (b" " * (MAX_PACKET + 1), "too_large"),
        ):  # fmt: skip
            line.send(packet)
            assert json.loads(line.recv(4096))["error"]["code"] == code
        line.send(b'["open", {}]')
        assert json.loads(line.recv(4096))["status"] == "ok"  # the line is as good as new


def test_what_connect_opened_ends_with_its_process(observer):
    code = f"""
import subprocess, sys
from kolejka.common.limits import Limits
from kolejka.observer.access import RemoteSessions, connect
session = connect({str(observer.door)!r}).open(Limits())
inside = subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL)
session.attach(inside.pid)
print(inside.pid, flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    pid = int(process.stdout.readline())
    process.kill()
    process.communicate()
    wait_until(lambda: observer.client.ping()["sessions"] == 0)
    wait_until(lambda: not Path(f"/proc/{pid}/exe").exists())


def test_a_named_observer_that_is_not_there_is_unavailable(tmp_path):
    with pytest.raises(Unavailable, match="kolejka-observer"):
        connect(str(tmp_path / "nothing"))


def test_without_any_right_the_cure_is_named():
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", sys.executable, "-c"]
    if subprocess.run([*nobody, "import kolejka.observer.sessions"], capture_output=True, check=False).returncode:
        pytest.skip("an unprivileged user cannot read this Python")
    code = (
        "from kolejka.observer.access import connect\nfrom kolejka.common.errors import NodeError\n"
        "try: connect()\nexcept NodeError as error: print(error)\nelse: print('it worked')"
    )
    said = subprocess.run([*nobody, code], capture_output=True, text=True, check=False)
    assert "kolejka-observer" in said.stdout, said.stderr


# one command


@pytest.fixture(params=["observer", "own"])
def sessions(request):
    if request.param == "observer":
        observer = request.getfixturevalue("observer")
        yield connect(str(observer.door))
    else:
        from kolejka.observer.sessions import Registry

        registry = Registry(cgroup=ROOT + "-own")
        yield registry
        registry.stop()


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["no-such-command"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_a_command_ends_as_itself(sessions, args, code):
    finished = run_command(sessions, args, Limits.of(memory="64M", time="30s"))
    assert finished.code == code
    assert (finished.message is not None) == (code in {126, 127})
    assert finished.report.limit is None


def test_what_a_command_leaves_running_is_ended(sessions):
    finished = run_command(sessions, ["sh", "-c", "setsid sleep 1000 & setsid sleep 1000 &"], Limits())
    assert finished.code == 0
    assert finished.report.processes_left == 2


def run(*words: str, **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, "run", *words], capture_output=True, text=True, check=False, timeout=120, **more)


def test_the_program_mirrors_exit_codes_and_writes_figures(tmp_path):
    figures = tmp_path / "figures.json"
    said = run("--memory", "64M", "--stats-file", str(figures), "--", "sh", "-c", "cat; exit 3", input="hello")
    assert (said.returncode, said.stdout) == (3, "hello")
    data = json.loads(figures.read_text())
    assert (data["result"], data["limit"]) == (3, None)
    assert data["memory"]["max_usage"] > 0


@pytest.mark.parametrize(
    ("limit", "code", "status"),
    [
        (("--time", "200ms"), "import time; time.sleep(1000)", 124),
        (("--cpu-time", "100ms"), "while True: pass", 124),
        (("--memory", "48M", "--swap", "0"), "x = bytearray(200 << 20)", 137),
    ],
)
def test_the_program_tells_limits_by_its_exit_status(limit, code, status):
    assert run(*limit, "--", sys.executable, "-c", code).returncode == status


def test_a_command_hears_the_signals_that_python_does_not():
    said = run("--", "grep", "SigIgn", "/proc/self/status")
    ignored = int(said.stdout.split()[1], 16)
    assert [number for number in (signal.SIGPIPE, signal.SIGXFSZ) if ignored & 1 << number - 1] == []


def test_wrong_words_are_one_line_and_status_2():
    said = run("--memory", "1MM", "--", "true")
    assert said.returncode == 2
    assert said.stderr.count("\n") == 1
    said = run("--storage", "1M", "--", "true")
    assert said.returncode == 2
    assert "storage" in said.stderr


def test_an_interrupted_supervisor_ends_its_session(tmp_path):
    mark = tmp_path / "pid"
    process = subprocess.Popen([*PROGRAM, "run", "--", "sh", "-c", f"echo $$ > {mark}; exec sleep 1000"])
    wait_until(lambda: mark.exists() and mark.read_text().strip())
    process.terminate()
    assert process.wait(30) == 143
    assert not Path(f"/proc/{int(mark.read_text())}").exists()


def test_the_command_gets_no_descriptor_but_the_three():
    said = run("--", "ls", "/proc/self/fd")
    assert said.stdout.split() == ["0", "1", "2", "3"], "3 is the folder that ls itself reads"


def test_doctor_tells_what_there_is(observer):
    said = subprocess.run(
        [*PROGRAM, "--socket", str(observer.door), "doctor", "--json"], capture_output=True, text=True, check=False
    )
    checks = {check["check"]: check for check in json.loads(said.stdout)}
    assert said.returncode == 0
    assert checks["a session"]["ok"]
    assert checks["observer"]["ok"]
    assert checks["control groups"]["ok"]


def test_the_client_needs_nothing_but_an_old_python():
    text = CLIENT.read_text()
    assert "kolejka." not in "".join(line for line in text.splitlines() if line.startswith(("import", "from")))
    compile(text, "client.py", "exec", flags=0, dont_inherit=True)
    import ast

    ast.parse(text, feature_version=(3, 6))


def test_a_folder_nobody_can_make_is_a_node_error():
    from kolejka.observer.daemon import listen

    with pytest.raises(NodeError, match="--socket"):
        listen(Path("/proc/nowhere/socket"), None)


def test_a_caller_is_known_by_all_groups_it_is_in(tmp_path: Path) -> None:
    path = str(tmp_path / "door")
    call = f"import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect({path!r}); s.recv(1)"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with subprocess.Popen([sys.executable, "-c", call], group=65534, extra_groups=[64001, 64002]):
            door, _ = listener.accept()
            with door:
                assert Caller.of(door).groups >= {65534, 64001, 64002}

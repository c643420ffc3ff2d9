"""Sessions on real control groups, with hostile programs inside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from kolejka.common.errors import Conflict, InputError, NodeError, NotAllowed, NotFound
from kolejka.common.limits import Limits
from kolejka.observer.session import Closed
from kolejka.observer.sessions import Registry
from tests.support import SLOWNESS, wait_until

pytestmark = pytest.mark.needs("cgroups")

ROOT = f"kolejka-test-sessions-{os.getpid()}"
OWN = Path("/proc/self/cgroup").read_text(encoding="utf-8").rpartition("0::")[2].strip()
"""our own group in the version-2 tree, before anything moved us"""


def tops() -> list[Path]:
    """Our folder in every hierarchy, or below the group that was delegated to these tests.

    Other people's folders come and go, so nobody looks into them.
    """
    mount = Path("/sys/fs/cgroup")
    own = mount / OWN.strip("/")
    places = dict.fromkeys([mount, *mount.iterdir(), own, *own.parents])
    return [place / ROOT for place in places if (place / ROOT).is_dir()]


def groups() -> set[str]:
    return {str(path) for top in tops() for path in top.iterdir() if path.is_dir()}


@pytest.fixture
def registry():
    registry = Registry(cgroup=ROOT)
    yield registry
    registry.stop()
    assert groups() == set()
    assert tops() == []


@pytest.fixture
def payload():
    """Starts Python code that is held until the session has it."""
    processes = []

    def start(session, code: str, **words) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", "import sys\nsys.stdin.readline()\n" + code],
            stdin=subprocess.PIPE,
            **words,
        )
        processes.append(process)
        session.attach(process.pid)
        process.stdin.write(b"\n")
        process.stdin.close()
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_a_program_is_measured_and_leaves_nothing(registry, payload):
    session = registry.open(Limits.of(memory="256M", pids=16))
    process = payload(session, "x = bytearray(32 << 20)\nfor i in range(3000000): pass")
    assert process.wait() == 0
    stats = session.stats().stats
    assert stats.cpu.usage > 0.005
    assert stats.memory.max_usage > 32 << 20
    report = session.close()
    assert (report.limit, report.processes_left) == (None, 0)
    assert report.stats.time == stats.time, "the clock stands still when nobody is inside"
    assert session.close() == report
    assert session.stats() == report


def test_the_clock_counts_from_the_first_process(registry, payload):
    session = registry.open(Limits())
    before = session.stats().stats.time
    wait_until(lambda: session.stats().stats.time >= before + 1)
    started = time.monotonic()
    process = payload(session, "")
    process.wait()
    assert session.stats().stats.time <= time.monotonic() - started


def test_what_sleeps_beyond_its_time_is_ended_in_time(registry, payload):
    session = registry.open(Limits.of(time="200ms"))
    process = payload(session, "import time\ntime.sleep(1000)")
    assert process.wait() == -signal.SIGKILL
    report = session.stats()
    assert report.limit == "time"
    assert report.stats.time >= 0.2
    with pytest.raises(Conflict, match="time"):
        session.attach(os.getpid())


def test_what_ends_before_its_time_has_no_verdict(registry, payload):
    session = registry.open(Limits.of(time="10s", cpu_time="10s", memory="64M"))
    assert payload(session, "").wait() == 0
    assert session.close().limit is None


def test_the_time_limit_counts_from_the_first_process_that_enters(registry, payload):
    session = registry.open(Limits.of(time="50ms"))
    wait_until(lambda: session.stats().stats.time > 0.1)
    assert session.stats().limit is None
    assert payload(session, "import time\ntime.sleep(60)").wait() == -signal.SIGKILL
    assert session.close().limit == "time"


def test_cpu_time_is_counted_over_all_processes(registry, payload):
    session = registry.open(Limits.of(cpu_time="300ms", time="30s"))
    process = payload(session, "import os\nos.fork()\nos.fork()\nwhile True: pass")
    assert process.wait() == -signal.SIGKILL
    wait_until(lambda: not session.inside())
    report = session.close()
    assert report.limit == "cpu_time"
    assert 0.3 <= report.stats.cpu.usage < 0.5


def test_what_ends_by_itself_beyond_its_cpu_time_is_that_limit(registry, payload):
    session = registry.open(Limits())
    payload(session, "for i in range(3000000): pass").wait()
    session.limits(Limits.of(cpu_time="1ms"))
    assert session.stats().limit == "cpu_time"


def test_sleeping_costs_no_cpu_time(registry, payload):
    session = registry.open(Limits())
    process = payload(session, "import os\nos.execlp('sleep', 'sleep', '1000')")
    wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().split()[1:3] == ["(sleep)", "S"])
    before = session.stats().stats
    session.limits(Limits.of(cpu_time=before.cpu.usage + 0.1))
    wait_until(lambda: session.stats().stats.time > before.time + 0.3)
    assert session.stats().limit is None
    assert process.poll() is None


def test_a_memory_hog_ends_with_its_whole_session(registry, payload):
    session = registry.open(Limits.of(memory="48M", swap=0, time="60s"))
    code = """
import os, time
pid = os.fork()
if pid == 0:
    x = bytearray(200 << 20)
    os._exit(0)
os.waitpid(pid, 0)
time.sleep(1000)
"""
    assert payload(session, code).wait() == -signal.SIGKILL, "the parent that survived is ended as well"
    report = session.close()
    assert report.limit == "memory"
    assert report.stats.memory.oom_kills >= 1
    assert report.stats.memory.max_usage <= 48 << 20


def test_a_memory_hog_alone_is_the_same(registry, payload):
    session = registry.open(Limits.of(memory="48M", swap=0))
    assert payload(session, "x = bytearray(200 << 20)").wait() == -signal.SIGKILL
    assert session.stats().limit == "memory"


def test_page_cache_that_fills_the_limit_is_no_verdict(registry, payload, tmp_path):
    session = registry.open(Limits.of(memory="32M", swap=0))
    code = f"f = open({str(tmp_path / 'big')!r}, 'wb')\nfor i in range(128): f.write(bytes(1 << 20))"
    assert payload(session, code).wait() == 0
    report = session.close()
    assert report.limit is None
    assert report.stats.memory.oom_kills == 0
    assert 31 << 20 <= report.stats.memory.max_usage <= 32 << 20, "the limit was met"


def test_exit_137_is_no_verdict(registry, payload):
    session = registry.open(Limits.of(memory="64M", time="60s"))
    assert payload(session, "sys.exit(137)").wait() == 137
    assert session.close().limit is None
    session = registry.open(Limits.of(memory="64M", time="60s"))
    assert payload(session, "import os\nos.kill(os.getpid(), 9)").wait() == -9
    assert session.close().limit is None


def test_the_first_cause_wins(registry, payload):
    session = registry.open(Limits.of(memory="48M", swap=0, time=1.0 * SLOWNESS))
    payload(session, "x = bytearray(200 << 20)").wait()
    assert session.stats().limit == "memory"
    subprocess.run(["sleep", str(1.1 * SLOWNESS)], check=True)
    assert session.close().limit == "memory"


def test_processes_are_capped(registry, payload, tmp_path):
    session = registry.open(Limits.of(pids=5, time="60s"))
    said = tmp_path / "said"
    code = f"""
import os, time
n = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(1000)
        n += 1
except OSError:
    open({str(said)!r}, "w").write(str(n))
time.sleep(1000)
"""
    process = payload(session, code)
    wait_until(lambda: said.exists() and said.read_text())
    assert said.read_text() == "4"
    report = session.close()
    assert report.processes_left == 5
    assert report.stats.pids.failures >= 1
    assert process.wait() == -signal.SIGKILL


HOSTILE = {
    "fork bomb": "import os\nwhile True:\n try: os.fork()\n except OSError: pass",
    "thread bomb": """
import _thread, time
while True:
    try: _thread.start_new_thread(time.sleep, (1000,))
    except RuntimeError: time.sleep(0.001)
""",
    "double fork with setsid": """
import os, time
for i in range(8):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            if os.fork(): os._exit(0)
            time.sleep(1000)
        os._exit(0)
time.sleep(1000)
""",
    "stopped children": """
import os, time
for i in range(8):
    if os.fork() == 0:
        os.kill(os.getpid(), 19)
        time.sleep(1000)
time.sleep(1000)
""",
    "ignored signals": """
import signal, time
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: time.sleep(1)
""",
    "forking on while it is killed": """
import os, time
def chain():
    while True:
        try:
            if os.fork(): os._exit(0)
        except OSError: pass
for i in range(8):
    try:
        if os.fork() == 0: chain()
    except OSError: pass
time.sleep(1000)
""",
}


CROWD = {
    "fork bomb": 32, "thread bomb": 32, "double fork with setsid": 9, "stopped children": 9, "ignored signals": 1,
    "forking on while it is killed": 5,
}  # fmt: skip
"""how many tasks each brings up at least"""


@pytest.mark.parametrize("name", HOSTILE)
def test_kill_is_complete(registry, payload, name):
    session = registry.open(Limits.of(pids=64, memory="512M", time="500ms"))
    process = payload(session, HOSTILE[name], stderr=subprocess.DEVNULL)
    assert process.wait() == -signal.SIGKILL
    wait_until(lambda: not session.inside())
    report = session.close()
    assert (report.limit, report.processes_left) == ("time", 0)


@pytest.mark.parametrize("name", HOSTILE)
def test_close_kills_what_is_left(registry, payload, name):
    session = registry.open(Limits.of(pids=64, memory="512M", time="60s"))
    process = payload(session, HOSTILE[name], stderr=subprocess.DEVNULL)
    wait_until(lambda: session.stats().stats.pids.usage >= CROWD[name])
    report = session.close()
    assert report.processes_left >= 1
    assert report.limit is None
    process.wait()


def test_a_frozen_session_is_killed_and_closed(registry, payload):
    session = registry.open(Limits.of(time="60s"))
    process = payload(session, "while True: pass")
    session.freeze()
    used = session.stats().stats.cpu.usage
    assert session.stats().stats.cpu.usage == used
    session.kill()
    assert process.wait() == -signal.SIGKILL
    assert session.stats().limit is None
    assert session.close().processes_left == 0


def test_a_deadline_strikes_in_a_frozen_session(registry, payload):
    session = registry.open(Limits.of(time="200ms"))
    process = payload(session, "while True: pass")
    session.freeze()
    assert process.wait() == -signal.SIGKILL
    assert session.close().limit == "time"


def test_thawed_processes_go_on(registry, payload):
    session = registry.open(Limits())
    process = payload(session, "import time\ntime.sleep(0.01)")
    session.freeze()
    session.thaw()
    assert process.wait() == 0


def test_nested_sessions_are_within_the_outer_limits(registry, payload):
    outer = registry.open(Limits.of(memory="64M", swap=0, pids=32))
    inner = registry.open(Limits.of(memory="512M", swap=0), parent=outer)
    process = payload(inner, "x = bytearray(200 << 20)")
    assert process.wait() == -signal.SIGKILL
    wait_until(lambda: outer.stats().limit == "memory")
    assert inner.stats().limit is None, "it is the outer limit that was met"
    assert inner.stats().stats.memory.oom_kills >= 1
    outer.close()
    assert inner.report is not None


def test_a_nested_session_that_meets_its_own_limit_ends_alone(registry, payload):
    outer = registry.open(Limits.of(memory="512M", swap=0))
    waiting = payload(outer, "import time\ntime.sleep(1000)")
    inner = registry.open(Limits.of(memory="48M", swap=0), parent=outer)
    assert payload(inner, "x = bytearray(200 << 20)").wait() == -signal.SIGKILL
    assert inner.close().limit == "memory"
    assert outer.stats().limit is None
    assert waiting.poll() is None
    assert outer.close().processes_left == 1


def test_one_session_holds_only_so_many(registry):
    few = Registry(cgroup=ROOT + "-few", nested=3)
    try:
        outer = few.open()
        inner = few.open(parent=outer)
        few.open(parent=inner)
        last = few.open(parent=outer)
        with pytest.raises(Conflict, match="at most 3"):
            few.open(parent=inner)
        last.close()
        few.open(parent=outer)
        few.open()
    finally:
        few.stop()
    with pytest.raises(Conflict):
        registry.open(parent=outer)


def test_sessions_side_by_side_get_different_cpus(registry, payload):
    cpus = registry.tree.cpus()
    if len(cpus) < 2:
        pytest.skip("this machine has one CPU")
    one, two = registry.open(Limits.of(cpus=1)), registry.open(Limits.of(cpus=1))
    assert one.cpuset != two.cpuset
    one.close()
    three = registry.open(Limits.of(cpus=1))
    assert three.cpuset != two.cpuset
    chosen = registry.open(Limits.of(cpus=1), cpuset=[max(cpus)])
    assert chosen.cpuset == {max(cpus)}
    with pytest.raises(InputError) as caught:
        registry.open(Limits(), cpuset=[4096])
    assert caught.value.field == "cpuset"


def test_unenforceable_limits_leave_nothing(registry):
    with pytest.raises(InputError) as caught:
        registry.open(Limits.of(storage="1M"))
    assert caught.value.field == "limits: storage"
    assert groups() == set()
    assert len(registry) == 0


def test_a_dead_process_is_not_attached(registry):
    session = registry.open()
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(NotFound):
        session.attach(process.pid)


def test_a_detached_process_is_back_where_it_was(registry, payload):
    session = registry.open()
    process = subprocess.Popen(["sleep", "1000"])
    try:
        before = Path(f"/proc/{process.pid}/cgroup").read_text()
        session.attach(process.pid)
        assert Path(f"/proc/{process.pid}/cgroup").read_text() != before
        session.detach(process.pid)
        assert Path(f"/proc/{process.pid}/cgroup").read_text() == before
        with pytest.raises(Conflict):
            session.detach(process.pid)
        assert session.close().processes_left == 0
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_sessions_are_found_by_id_and_secret_only(registry):
    session = registry.open()
    assert registry.find(session.id, session.secret) is session
    for name, secret, error in (
        (session.id, "x", NotAllowed),
        (session.id, None, NotAllowed),
        (session.id, "\udc80", NotAllowed),
        ("0" * 32, session.secret, NotFound),
    ):
        with pytest.raises(error):
            registry.find(name, secret)
    report = session.close()
    closed = registry.find(session.id, session.secret)
    assert isinstance(closed, Closed)
    assert closed.stats() == report


def test_closed_sessions_are_forgotten_after_their_time():
    registry = Registry(cgroup=ROOT, remember=0.05)
    try:
        session = registry.open()
        session.close()

        def forgotten():
            try:
                registry.find(session.id, session.secret)
            except NotFound:
                return True
            return False

        wait_until(forgotten)
    finally:
        registry.stop()


def test_a_dead_creators_session_goes_when_nobody_is_inside(registry, payload):
    creator = subprocess.Popen(["sleep", "1000"])
    empty = registry.open(creator=creator.pid)
    full = registry.open(creator=creator.pid)
    bound = registry.open(creator=creator.pid, bound=True)
    inside = payload(full, "sys.stdout.flush()\nimport time\ntime.sleep(1000)")
    bound_one = payload(bound, "import time\ntime.sleep(1000)")
    creator.kill()
    creator.wait()
    wait_until(lambda: empty.report is not None and bound.report is not None)
    assert bound_one.wait() == -signal.SIGKILL
    assert full.report is None
    inside.kill()
    wait_until(lambda: full.report is not None)
    wait_until(lambda: len(registry) == 0)


def test_many_callers_at_once(registry, payload):
    reports, errors = [], []

    def one(number):
        try:
            session = registry.open(Limits.of(memory="64M", pids=8, time="30s", cpus=1))
            process = subprocess.Popen(["true"], stdin=subprocess.DEVNULL)
            with suppress(NotFound):  # it was quicker
                session.attach(process.pid)
            process.wait()
            session.stats()
            reports.append(session.close())
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            errors.append(error)

    for _ in range(5):
        threads = [threading.Thread(target=one, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []
    assert len(reports) == 80
    assert groups() == set()


def test_what_a_dead_registry_left_is_ended_and_removed(registry, tmp_path):
    code = f"""
import subprocess, os, sys
from kolejka.observer.sessions import Registry
from kolejka.common.limits import Limits
registry = Registry(cgroup={ROOT!r})
session = registry.open(Limits.of(pids=5))
inside = subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL)
session.attach(inside.pid)
registry.open()
print(inside.pid, flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    pid = int(process.stdout.readline())
    assert len({path.rpartition("/")[2] for path in groups()}) == 2
    neighbour = Registry(cgroup=ROOT)
    assert len({path.rpartition("/")[2] for path in groups()}) == 2, "a live owner's groups are left alone"
    assert Path(f"/proc/{pid}").exists()
    process.kill()
    process.communicate()
    neighbour.stop()
    sweeper = Registry(cgroup=ROOT)
    assert groups() == set()
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])
    sweeper.stop()


def test_groups_of_other_names_are_left_alone(registry):
    session = registry.open()
    top = Path(os.fsdecode(next(iter(registry.tree.folders()))))
    foreign = top / "not-ours"
    foreign.mkdir()
    try:
        Registry(cgroup=ROOT).stop()
        assert foreign.is_dir()
    finally:
        foreign.rmdir()
    session.close()


def test_folders_that_others_made_under_our_name_go_with_the_session(registry):
    session = registry.open()
    strange = [Path(os.fsdecode(folder)) / session.id / "container" / "deeper" for folder in registry.tree.folders()]
    for folder in strange:
        folder.mkdir(parents=True, exist_ok=True)
    session.close()
    assert groups() == set()


class Keeper:
    """A registry with a state folder, in a process that can be killed."""

    def __init__(self, state: Path) -> None:
        code = f"""
import json, sys
from pathlib import Path
from kolejka.observer.sessions import Registry
from kolejka.common.limits import Limits
registry = Registry(cgroup={ROOT!r}, state=Path({str(state)!r}))
print(len(registry), flush=True)
for line in sys.stdin:
    words = json.loads(line)
    if words["verb"] == "open":
        session = registry.open(Limits.parse(words["limits"]))
    else:
        session = registry.find(words["id"], words["secret"])
        if words["verb"] == "attach":
            session.attach(words["pid"])
        elif words["verb"] == "close":
            session.close()
    report = session.stats()
    print(json.dumps([session.id, session.secret, report.to_json()]), flush=True)
"""
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.count = int(self.process.stdout.readline())

    def ask(self, **words):
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def keep(tmp_path):
    keepers = []

    def start():
        keepers.append(Keeper(tmp_path / "state"))
        return keepers[-1]

    yield start
    for keeper in keepers:
        if keeper.process.poll() is None:
            keeper.kill()
    last = Registry(cgroup=ROOT, state=tmp_path / "state")
    last.stop(close=True)
    assert groups() == set()


def test_deadlines_survive_a_killed_observer(keep):
    keeper = keep()
    started = time.monotonic()
    name, secret, _ = keeper.ask(verb="open", limits={"time": "1s"})
    with subprocess.Popen(["sleep", "1000"]) as process:
        keeper.ask(verb="attach", id=name, secret=secret, pid=process.pid)
        keeper.kill()
        again = keep()
        assert again.count == 1
        assert process.wait() == -signal.SIGKILL
    report = again.ask(verb="stats", id=name, secret=secret)[2]
    assert report["limit"] == "time"
    assert 1 <= report["time"] <= time.monotonic() - started


def test_a_deadline_that_passes_while_nobody_keeps_it_strikes_at_the_start(keep):
    keeper = keep()
    name, secret, _ = keeper.ask(verb="open", limits={"time": "100ms"})
    with subprocess.Popen(["sleep", "1000"]) as process:
        keeper.ask(verb="attach", id=name, secret=secret, pid=process.pid)
        keeper.kill()
        subprocess.run(["sleep", "0.2"], check=True)
        again = keep()
        process.kill() if again.count != 1 else None
        process.wait()
    assert again.ask(verb="stats", id=name, secret=secret)[2]["limit"] == "time"


def test_figures_and_verdicts_survive_a_killed_observer(keep):
    keeper = keep()
    name, secret, _ = keeper.ask(verb="open", limits={"memory": "48M", "swap": 0})
    code = "import sys\nsys.stdin.readline()\nx = bytearray(200 << 20)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        keeper.ask(verb="attach", id=name, secret=secret, pid=process.pid)
        keeper.kill()
        process.communicate(b"\n")
    again = keep()
    report = again.ask(verb="stats", id=name, secret=secret)[2]
    assert report["limit"] == "memory"
    final = again.ask(verb="close", id=name, secret=secret)[2]
    assert final["memory"]["oom_kills"] >= 1
    again.kill()
    assert keep().ask(verb="stats", id=name, secret=secret)[2] == final, "closed sessions answer after a restart"


def test_two_observers_never_keep_one_folder(keep, tmp_path):
    keep()
    with pytest.raises(NodeError, match="another observer"):
        Registry(cgroup=ROOT, state=tmp_path / "state")


def test_sessions_of_a_dead_observer_are_left_for_its_next_start(keep, registry):
    keeper = keep()
    name, secret, _ = keeper.ask(verb="open", limits={})
    with subprocess.Popen(["sleep", "1000"]) as process:
        keeper.ask(verb="attach", id=name, secret=secret, pid=process.pid)
        keeper.kill()
        Registry(cgroup=ROOT).stop()
        assert process.poll() is None
        assert keep().ask(verb="close", id=name, secret=secret)[2]["processes_left"] == 1
        assert process.wait() == -signal.SIGKILL

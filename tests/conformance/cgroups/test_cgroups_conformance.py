"""What every kind of control group must do, whatever its version."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kolejka.common.errors import KolejkaError, NotFound
from kolejka.common.limits import Limits
from kolejka.observer.cgroups.files import GroupGone
from kolejka.observer.cgroups.interface import Owner, Pin
from kolejka.observer.cgroups.v1 import V1Tree
from kolejka.observer.cgroups.v2 import V2Tree
from tests.conformance.cgroups import trees
from tests.neighbours.needs import v1_controllers
from tests.support import wait_until

REAL = pytest.mark.needs("cgroups")
KINDS = [
    pytest.param("machine", marks=REAL),
    pytest.param("freezer", marks=REAL),
    "v2-6.1",
    "v2-5.10",
]


@pytest.fixture(params=KINDS)
def tree(request, tmp_path):
    name = f"kolejka-test-conformance-{os.getpid()}"
    if request.param == "machine":
        tree = trees.real(name)
    elif request.param == "freezer":
        if not {"freezer", "cpuacct", "memory", "pids"} <= v1_controllers().keys():
            pytest.skip("this machine has no version-1 freezer")
        tree = trees.pure_v1(name)
    else:
        tree = trees.played(tmp_path, request.param)
    yield tree
    for leftover in tree.names():
        group = tree.group(None, leftover)
        group.kill()
        group.wait_until_empty()
        group.remove()
    tree.remove_if_empty()


def is_played(tree) -> bool:
    return isinstance(tree.door, trees.PlayedKernel)


@pytest.fixture
def group(tree):
    group = tree.group(None, "one")
    group.create()
    return group


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


def test_a_group_is_made_though_somebody_has_only_just_made_our_folder(tree):
    tree.prepare()
    for folder in tree.folders():
        if tree.door.remove(folder):
            tree.door.make(folder)
    group = tree.group(None, "first")
    group.create()
    group.apply(Limits.of(memory="64M", pids=3), None)
    assert list(tree.names()) == ["first"]


def test_a_group_is_made_and_removed_with_what_is_below(tree, group):
    assert group.exists()
    nested = tree.group(group, "two")
    nested.create()
    assert tree.names() == {"one"}
    group.remove()
    assert not group.exists()
    assert not nested.exists()
    group.remove()
    assert tree.names() == set()


def test_our_folder_comes_back_when_somebody_removed_it_as_empty(tree, group):
    group.remove()
    for folder in tree.folders():
        tree.door.remove(folder)
    group.create()
    group.apply(Limits.of(cpus=1, memory="1M"), Pin(frozenset({0}), frozenset({0})))
    assert group.exists()


def test_a_group_below_a_missing_one_is_refused(tree, group):
    nested = tree.group(tree.group(None, "absent"), "two")
    with pytest.raises(GroupGone):
        nested.create()
    assert tree.names() == {"one"}


def test_an_attached_process_is_inside_and_told_by_the_kernel(tree, group, sleeper):
    assert not group.populated()
    process = sleeper()
    group.attach(process.pid)
    assert group.populated()
    assert group.pids() == [process.pid]
    assert group.living() == 1
    if not is_played(tree):
        assert tree.of_process(process.pid) == ("one",)
        assert tree.of_process(os.getpid()) == ()


def test_a_process_that_is_gone_cannot_be_attached(group, sleeper):
    process = sleeper("true")
    process.wait()
    with pytest.raises(NotFound):
        group.attach(process.pid)


def test_nested_groups_hold_processes_beside_those_of_the_outer_one(tree, group, sleeper):
    outer, inner = sleeper(), sleeper()
    group.attach(outer.pid)
    nested = tree.group(group, "two")
    nested.create()
    nested.attach(inner.pid)
    assert set(group.pids()) == {outer.pid, inner.pid}
    assert nested.pids() == [inner.pid]
    if not is_played(tree):
        assert tree.of_process(inner.pid) == ("one", "two")
    group.kill()
    group.wait_until_empty()
    assert not nested.populated()


def test_kill_ends_stopped_and_frozen_processes(group, sleeper):
    stopped, frozen = sleeper(), sleeper()
    group.attach(stopped.pid)
    group.attach(frozen.pid)
    stopped.send_signal(signal.SIGSTOP)
    group.freeze()
    group.kill()
    group.wait_until_empty()
    assert stopped.wait(10) == frozen.wait(10) == -signal.SIGKILL
    assert group.living() == 0


_LEADERLESS = """
import ctypes, platform, threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
input()
ctypes.CDLL(None).syscall({"x86_64": 60}.get(platform.machine(), 93), 0)  # exit, of one thread
"""


def test_kill_ends_a_process_whose_first_thread_has_left(tree, group):
    if is_played(tree):
        return
    with subprocess.Popen([sys.executable, "-c", _LEADERLESS], stdin=subprocess.PIPE) as process:
        group.attach(process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()
        wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "Z", about="its leader left")
        assert group.living() == 1
        group.kill_until_empty()
        assert process.wait() == -signal.SIGKILL


def test_frozen_processes_stand_still_until_they_are_thawed(tree, group, sleeper, tmp_path):
    beat = tmp_path / "beat"
    code = f"import time\nwhile True:\n open({str(beat)!r}, 'a').write('x')\n time.sleep(0.001)"
    process = sleeper(sys.executable, "-c", code)
    wait_until(beat.exists)
    group.attach(process.pid)
    group.freeze()
    if is_played(tree):
        wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    size = beat.stat().st_size
    ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    sleeper("sleep", "0.05").wait()
    assert beat.stat().st_size == size
    assert Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13] == ticks
    group.thaw()
    wait_until(lambda: beat.stat().st_size > size)


def test_limits_reach_the_kernel_and_can_go_up_and_down(tree, group):
    for memory, swap in ((64 << 20, 0), (128 << 20, 1 << 20), (32 << 20, 0), (16 << 20, 8 << 20)):
        group.apply(Limits.of(memory=memory, swap=swap, pids=7), None)
        if isinstance(tree, V2Tree):
            files = group.folder
            assert tree.door.read(files + b"/memory.max") == str(memory)
            assert tree.door.read(files + b"/memory.swap.max") == str(swap)
            assert tree.door.read(files + b"/pids.max") == "7"
        else:
            assert tree.door.read(group.folders["memory"] + b"/memory.limit_in_bytes") == str(memory)
            if tree.counts_swap:
                together = tree.door.read(group.folders["memory"] + b"/memory.memsw.limit_in_bytes")
                assert together == str(memory + swap)
            assert tree.door.read(group.folders["pids"] + b"/pids.max") == "7"


def test_swap_is_limited_without_a_memory_limit_too(tree, group):
    group.apply(Limits.of(swap=0), None)
    if isinstance(tree, V1Tree) and tree.counts_swap:
        files = group.folders["memory"]
        both = tree.door.read(files + b"/memory.memsw.limit_in_bytes")
        assert both == tree.door.read(files + b"/memory.limit_in_bytes")
        assert int(both) < 1 << 62


_QUEUE = """
import socket
input()
door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
door.bind(("127.0.0.1", 0))
door.sendto(bytes(60000), door.getsockname())
print("queued", flush=True)
input()
"""


def test_what_waits_in_sockets_is_counted_below_a_limit_on_memory(tree, group):
    if not isinstance(tree, V1Tree) or not tree.counts_sockets:
        return  # version 2 counts it as memory
    group.apply(Limits.of(memory=64 << 20), None)
    inner = tree.group(group, "two")
    inner.create()
    inner.apply(Limits(), None)
    files = group.folders["memory"] + b"/memory.kmem.tcp."
    assert tree.door.read(files + b"limit_in_bytes") == str(64 << 20)
    command = [sys.executable, "-c", _QUEUE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        inner.attach(process.pid)
        process.stdin.write("\n")
        assert process.stdout.readline() == "queued\n"
        assert int(tree.door.read(files + b"usage_in_bytes")) >= 60000
        process.stdin.write("\n")


def test_cpus_are_pinned_for_those_inside_and_those_to_come(tree, group, sleeper):
    cpu = min(tree.cpus())
    early, late = sleeper(), sleeper()
    group.attach(early.pid)
    group.apply(Limits.of(cpus=1), Pin(frozenset({cpu}), tree.mems()))
    group.attach(late.pid)
    nested = tree.group(group, "two")
    nested.create()
    nested_one = sleeper()
    nested.attach(nested_one.pid)
    if is_played(tree):
        assert tree.door.read(group.folder + b"/cpuset.cpus") == str(cpu)
    else:
        for process in (early, late, nested_one):
            assert os.sched_getaffinity(process.pid) == {cpu}


def test_a_nested_group_can_be_pinned_alone(tree, group, sleeper):
    cpu = max(tree.cpus())
    nested = tree.group(group, "two")
    nested.create()
    nested.apply(Limits.of(cpus=1), Pin(frozenset({cpu}), tree.mems()))
    process = sleeper()
    nested.attach(process.pid)
    if not is_played(tree):
        assert os.sched_getaffinity(process.pid) == {cpu}


def test_figures_have_their_units(tree, group, sleeper):
    process = sleeper()
    group.attach(process.pid)
    stats = group.stats()
    assert stats.cpu.usage is not None
    assert stats.memory.oom_kills == 0
    assert stats.pids.failures == 0
    if not is_played(tree):
        assert stats.pids.usage == 1
        return
    assert (stats.cpu.usage, stats.cpu.user, stats.cpu.system) == (0.034816, 0.03012, 0.004696)
    assert (stats.memory.usage, stats.memory.anonymous, stats.memory.file) == (1589248, 1146880, 249856)
    assert (stats.io.read_bytes, stats.io.write_bytes, stats.io.reads, stats.io.writes) == (5120, 8192, 2, 2)
    assert (stats.pressure.cpu, stats.pressure.memory, stats.pressure.io) == (0.0015, 0.0025, 0.0035)
    has_peaks = tree.door.exists(group.folder + b"/memory.peak")
    assert stats.memory.max_usage == (2093056 if has_peaks else None), "what the kernel cannot tell is absent"
    assert stats.pids.max_usage == (3 if has_peaks else None)


def test_a_live_owner_is_known_and_a_dead_one_too(tree):
    tree.prepare()
    mine, other = Owner(tree, durable=False), Owner(tree, durable=True)
    try:
        assert not Owner.is_durable(mine.number)
        assert Owner.is_durable(other.number)
        assert not mine.is_dead(other.number)
        assert not mine.is_dead(mine.number)
        number = other.number
        with pytest.raises(KolejkaError, match="another observer"):
            Owner(tree, durable=True, number=number)
        other.close()
        assert mine.is_dead(number)
        Owner(tree, durable=True, number=number).close()
    finally:
        mine.close()


def test_version_2_keeps_processes_in_leaves_and_gives_controllers_down(tmp_path):
    tree = trees.played(tmp_path, "v2-6.1")
    group = tree.group(None, "one")
    group.create()
    given = {"cpu", "cpuset", "io", "memory", "pids"}
    for folder in (tree.base_folder, tree.top, group.folder):
        assert set(tree.door.read(folder + b"/cgroup.subtree_control").split()) == given
    assert tree.door.read(group.folder + b"/memory.oom.group") == "1"
    process = subprocess.Popen(["sleep", "1000"])
    try:
        group.attach(process.pid)
        assert tree.door.read(group.folder + b"/payload/cgroup.procs") == str(process.pid)
        assert tree.door.read(group.folder + b"/cgroup.procs") == ""
        nested = tree.group(group, "two")
        nested.create()
        nested.attach(process.pid)
        assert nested.folder == group.folder + b"/two"
    finally:
        process.kill()
        process.wait()


def test_version_2_moves_whoever_is_in_a_delegated_group_into_a_leaf(tmp_path):
    tree = trees.played(tmp_path, "v2-6.1")
    tree.door.write(os.fsencode(tmp_path) + b"/cgroup.subtree_control", "+cpu +cpuset +io +memory +pids")
    tree.door.make(os.fsencode(tmp_path / "unit"))
    process = subprocess.Popen(["sleep", "1000"])
    try:
        tree.door.write(os.fsencode(tmp_path / "unit" / "cgroup.procs"), str(process.pid))
        delegated = V2Tree(tree.mount, "kolejka", tree.door, base="/unit")
        with pytest.raises(KolejkaError, match="Delegate=yes"):
            delegated.group(None, "one").create()
        delegated.delegated = True
        delegated.group(None, "one").create()
        assert (tmp_path / "unit" / "observer" / "cgroup.procs").read_text().strip() == str(process.pid)
        assert delegated.path == "/unit/kolejka"
    finally:
        process.kill()
        process.wait()


def test_version_2_gives_memory_verdicts_only_for_its_own_limit(tmp_path):
    tree = trees.played(tmp_path, "v2-6.1")
    group = tree.group(None, "one")
    group.create()
    assert not group.killed_by_own_limit(alarmed=True)
    path = Path(os.fsdecode(group.folder))
    (path / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n")
    assert not group.killed_by_own_limit(alarmed=True), "a nested group met its own limit"
    (path / "memory.events.local").write_text("low 0\nhigh 0\nmax 9\noom 1\noom_kill 0\noom_group_kill 0\n")
    assert group.killed_by_own_limit(alarmed=True)
    stats = group.stats()
    assert (stats.memory.failures, stats.memory.oom_kills) == (9, 1)


def test_version_2_without_a_controller_refuses_the_limit_that_needs_it(tmp_path):
    tree = trees.played(tmp_path, "v2-6.1")
    (tmp_path / "cgroup.controllers").write_text("memory pids\n")
    group = tree.group(None, "one")
    group.create()
    group.apply(Limits.of(memory="1M", pids=1), None)
    with pytest.raises(KolejkaError, match="cpuset"):
        group.apply(Limits.of(cpus=1), Pin(frozenset({0}), frozenset({0})))
    with pytest.raises(KolejkaError, match="cpuset"):
        tree.cpus()


def test_a_missing_file_is_named_with_its_cure(tmp_path):
    tree = trees.played(tmp_path, "v2-6.1")
    group = tree.group(None, "one")
    group.create()
    Path(os.fsdecode(group.folder), "memory.current").unlink()
    with pytest.raises(KolejkaError, match=r"memory\.current is missing; boot with cgroup_enable=memory"):
        group.stats()

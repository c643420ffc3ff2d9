"""Where control groups are mounted."""

from __future__ import annotations

import os

import pytest

from kolejka.common.errors import NodeError, NotFound
from kolejka.observer.cgroups.choose import choose
from kolejka.observer.cgroups.mounts import Mount, Mounts, parse_mountinfo, process_paths

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:5 - cgroup cgroup rw,memory
99 31 0:32 /docker/abc /elsewhere rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw,relatime - cgroup2 cgroup2 rw,nsdelegate
"""


def test_controllers_are_found_by_their_mounts():
    mounts = parse_mountinfo(HYBRID)
    assert mounts.v1["cpuacct"] == mounts.v1["cpu"] == Mount("/sys/fs/cgroup/cpu,cpuacct")
    assert mounts.v1["memory"] == Mount("/sys/fs/cgroup/memory"), "the mount that shows more is taken"
    assert set(mounts.v1) == {"cpu", "cpuacct", "memory", "name=systemd"}
    assert mounts.v2 == Mount("/sys/fs/cgroup/uni fied")


def test_paths_are_seen_from_the_mount():
    mount = Mount("/sys/fs/cgroup", "/docker/abc")
    assert mount.folder("/docker/abc/x") == b"/sys/fs/cgroup/x"
    assert mount.folder("/docker/abc") == b"/sys/fs/cgroup"
    assert mount.folder("/docker/abcd") is None
    assert mount.folder("/../elsewhere") is None


def test_names_below_our_folder_are_told():
    mount = Mount("/sys/fs/cgroup")
    assert mount.below("/kolejka/one/two", "/kolejka") == ("one", "two")
    assert mount.below("/kolejka", "/kolejka") == ()
    assert mount.below("/kolejka2/one", "/kolejka") == ()


def test_a_process_that_is_gone_is_not_found():
    with pytest.raises(NotFound):
        process_paths(2**22 + 1)
    assert process_paths(os.getpid()) == process_paths("self")


def test_a_machine_without_control_groups_is_told_the_cure():
    with pytest.raises(NodeError, match="mount -t cgroup2"):
        choose("kolejka", mounts=Mounts({}, None))


def test_a_missing_controller_is_named():
    with pytest.raises(NodeError, match="pids"):
        choose("kolejka", mounts=Mounts({"memory": Mount("/nowhere")}, None))


def test_a_base_is_taken_where_it_is_and_named_with_its_cure_where_not(tmp_path):
    (tmp_path / "cgroup.controllers").write_text("cpuset memory pids\n")
    mounts = Mounts({}, Mount(str(tmp_path)))
    with pytest.raises(NodeError, match=r"base: there is no control group /some\.slice/unit\.service; start the unit"):
        choose("kolejka", base="some.slice/unit.service/", mounts=mounts)
    (tmp_path / "some.slice" / "unit.service").mkdir(parents=True)
    tree = choose("kolejka", base="/some.slice/unit.service", mounts=mounts)
    assert tree.path == "/some.slice/unit.service/kolejka"
    assert choose("kolejka", base="/", mounts=mounts).path == "/kolejka"

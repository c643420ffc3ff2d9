from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from kolejka.common.errors import InputError, NodeError
from kolejka.common.limits import Limits
from kolejka.common.settings import WorkerSettings
from kolejka.foreman.capacity import Machine, detect, offer, parse_cpu_list
from kolejka.foreman.doctor import working_runtimes
from kolejka.foreman.pack import Cpu
from kolejka.foreman.tags import all_tags, automatic_tags, plain
from kolejka.worker.gpus import Gpu

GIB = 1 << 30
H100 = Gpu("GPU-1", "NVIDIA H100 80GB HBM3", 80 * GIB, 0)
SMALL = Gpu("GPU-0", "Quadro P400", 2 * GIB, 1)
UNAME = os.uname_result(("Linux", "node-7", "6.1.0-13-amd64", "#1", "x86_64"))


@pytest.fixture
def machine_root(tmp_path: Path) -> Path:
    """Four threads on two cores of two memory nodes, 16 GiB."""
    root = tmp_path / "root"
    for number, (siblings, node) in enumerate([("0,2", 0), ("1,3", 1), ("0,2", 0), ("1,3", 1)]):
        folder = root / f"sys/devices/system/cpu/cpu{number}"
        (folder / "topology").mkdir(parents=True)
        (folder / "topology/thread_siblings_list").write_text(siblings + "\n")
        (folder / f"node{node}").mkdir()
    write(root, "proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 1 kB\nSwapTotal:       2097152 kB\n")
    write(root, "proc/sys/kernel/pid_max", "32768\n")
    write(root, "proc/sys/kernel/threads-max", "100000\n")
    write(root, "proc/cpuinfo", "processor\t: 0\nvendor_id\t: GenuineIntel\n"
          "model name\t: Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz\n")  # fmt: skip
    return root


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_a_recorded_machine_is_read_as_it_was(machine_root: Path, tmp_path: Path) -> None:
    machine = detect(tmp_path, [H100], root=machine_root, affinity=[0, 1, 2, 3])
    assert machine.cpus == (Cpu(0, 0, 0), Cpu(1, 1, 1), Cpu(2, 0, 0), Cpu(3, 1, 1))
    assert machine.gpus == (H100,)
    found = machine.limits.to_json()
    assert found["cpus"] == 4
    assert found["memory"] == 16 * GIB - 16 * GIB // 32
    assert found["swap"] == 2 * GIB
    assert found["pids"] == 16384
    assert found["gpus"] == 1
    assert found["workspace"] > found["storage"] > 0


def test_only_the_cpus_this_process_may_use_are_offered(machine_root: Path, tmp_path: Path) -> None:
    assert [cpu.number for cpu in detect(tmp_path, root=machine_root, affinity=[1, 3]).cpus] == [1, 3]


@pytest.mark.parametrize("name", ["sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"])
def test_a_containers_memory_bounds_the_node(machine_root: Path, tmp_path: Path, name: str) -> None:
    write(machine_root, name, f"{GIB}\n")
    assert detect(tmp_path, root=machine_root, affinity=[0]).limits.get("memory") == GIB - (256 << 20)


def test_a_container_without_bound_does_not_bound_the_node(machine_root: Path, tmp_path: Path) -> None:
    write(machine_root, "sys/fs/cgroup/memory.max", "max\n")
    write(machine_root, "sys/fs/cgroup/pids.max", "max\n")
    found = detect(tmp_path, root=machine_root, affinity=[0]).limits
    assert found.get("memory") == 16 * GIB - 16 * GIB // 32
    assert found.get("pids") == 16384


def test_a_machine_too_small_to_run_anything_says_so(machine_root: Path, tmp_path: Path) -> None:
    write(machine_root, "proc/meminfo", "MemTotal: 131072 kB\n")
    with pytest.raises(NodeError, match="nothing remains for tasks"):
        detect(tmp_path, root=machine_root, affinity=[0])


def test_this_very_machine_can_be_read(tmp_path: Path) -> None:
    machine = detect(tmp_path / "not" / "there" / "yet")
    assert len(machine.cpus) == len(os.sched_getaffinity(0))
    assert machine.limits.values["memory"] > 0


def machine(cpus: int = 4) -> Machine:
    limits = Limits.of(cpus=cpus, memory="16G", swap=0, pids=1000)
    return Machine(limits, tuple(Cpu(n, n // 2) for n in range(cpus)))


def test_settings_lower_the_offer_and_never_raise_it() -> None:
    found = offer(machine(), Limits.of(cpus=2, memory="64G", time="1h"), 0)
    assert found.total.to_json() == {"cpus": 2, "memory": 16 * GIB, "swap": 0, "pids": 1000, "time": 3600.0}
    assert [cpu.number for cpu in found.cpus] == [0, 1]
    assert found.slots == 2


@pytest.mark.parametrize(("slots", "expected"), [(0, 4), (3, 3), (100, 4)])
def test_there_are_no_more_slots_than_cpus(slots: int, expected: int) -> None:
    assert offer(machine(), Limits(), slots).slots == expected


def test_gpus_are_offered_by_name_with_the_memory_of_the_least() -> None:
    found = offer(replace(machine(), gpus=(SMALL, H100), limits=machine().limits.replace(gpus=2)), Limits(), 0)
    assert found.gpus == ("GPU-0", "GPU-1")
    assert (found.total.get("gpus"), found.total.get("gpu_memory")) == (2, 2 * GIB)


def test_a_node_that_offers_fewer_gpus_offers_the_largest() -> None:
    found = offer(replace(machine(), gpus=(SMALL, H100), limits=machine().limits.replace(gpus=2)), Limits.of(gpus=1), 0)
    assert found.gpus == ("GPU-1",)
    assert (found.total.get("gpus"), found.total.get("gpu_memory")) == (1, 80 * GIB)


def test_a_machine_without_gpus_states_no_memory_of_theirs() -> None:
    assert offer(machine(), Limits(), 0).total.get("gpu_memory") is None


def test_settings_that_leave_no_memory_are_refused() -> None:
    with pytest.raises(InputError, match=r"foreman\.capacity: memory"):
        offer(Machine(Limits.of(cpus=1, pids=10), (Cpu(0, 0),)), Limits(), 0)


@pytest.mark.parametrize(("text", "numbers"), [("0-2,8\n", (0, 1, 2, 8)), ("\n", ()), ("5", (5,)), ("0,2", (0, 2))])
def test_kernel_lists_are_read(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == numbers


def test_tags_say_what_the_machine_is(machine_root: Path, tmp_path: Path) -> None:
    found = detect(tmp_path, [H100, H100], root=machine_root, affinity=[0, 1])
    assert automatic_tags(found, ["sandbox"], root=machine_root, uname=UNAME) == (
        "cpu:intel", "cpu:intel-xeon-cpu-e5-2680-v4-2.40ghz", "cpus:2", "gpu:nvidia-h100-80gb-hbm3", "gpus:2",
        "hostname:node-7", "kernel:6.1.0-13-amd64", "arch:x86_64", "runtime:sandbox",
    )  # fmt: skip


def test_a_machine_without_cpuinfo_still_has_tags(tmp_path: Path) -> None:
    assert "arch:x86_64" in automatic_tags(machine(), root=tmp_path, uname=UNAME)


def test_configured_tags_follow_and_none_stands_twice() -> None:
    assert all_tags(("a", "b"), ("b", "lab")) == ("a", "b", "lab")


@pytest.mark.parametrize("tag", ["", "two\nlines", "x" * 257])
def test_a_tag_that_no_task_could_require_is_refused(tag: str) -> None:
    with pytest.raises(InputError, match=r"foreman\.tags"):
        all_tags((), (tag,))


def test_names_of_hardware_become_words() -> None:
    assert plain("AMD EPYC(TM) 7763  64-Core") == "amd-epyc-7763-64-core"


def test_a_node_that_has_one_runtime_by_its_settings_tells_of_no_other(tmp_path: Path) -> None:
    for name in ("sandbox", "docker"):
        assert set(working_runtimes(WorkerSettings(data=tmp_path, runtime=name))) <= {name}

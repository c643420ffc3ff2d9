"""GPUs as the driver's library tells them: who gets which, what is seen of their use, what happens without one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kolejka.common.errors import InputError, NodeError
from kolejka.common.stats import GpuStats, Stats
from kolejka.worker.gpus import Gpus, Meter, Taken
from tests.neighbours.nvml import MIB, Card, Driver

pytestmark = [pytest.mark.needs("gcc"), pytest.mark.needs("root")]
ONE, TWO = Card("GPU-1"), Card("GPU-2", memory=2048, busy=100, name="Stand-in 2")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    driver = Driver(tmp_path_factory.mktemp("driver"))
    driver.make_devices(2)
    return driver


@pytest.fixture
def driver(built: Driver) -> Driver:
    built.show(ONE, TWO)
    return built


@pytest.fixture
def comm() -> Iterator[Path]:
    """This process's name, by which it uses GPUs of the stand-in."""
    path = Path("/proc/self/comm")
    before = path.read_text()
    yield path
    path.write_text(before)


def test_the_library_tells_which_gpus_there_are(driver: Driver) -> None:
    found = driver.gpus().census()
    assert [(gpu.uuid, gpu.model, gpu.memory, gpu.minor) for gpu in found.gpus] == [
        ("GPU-1", "Stand-in 1", 1024 * MIB, 0), ("GPU-2", "Stand-in 2", 2048 * MIB, 1),
    ]  # fmt: skip
    assert (found.remark, found.broken) == (None, False)
    check = driver.gpus().check()
    assert (check.ok, check.message) == (True, "Stand-in 1 with 1G, Stand-in 2 with 2G")


def test_without_the_library_there_is_no_gpu_whatever_lies_in_dev(driver: Driver, tmp_path: Path) -> None:
    bare = Gpus("libno-such-library.so.1", tmp_path)
    assert (bare.census().gpus, bare.census().broken, bare.check().ok) == ((), False, True)
    half = Gpus("libno-such-library.so.1", driver.devices)
    assert half.census().gpus == ()
    assert not half.check().ok
    assert not half.check().required
    assert "nvidia0" in half.check().message
    with pytest.raises(InputError, match=r"limits\.gpus.*no GPU.*libno-such-library"):
        half.take(1)


def test_a_driver_that_does_not_work_is_no_gpu_and_a_warning(driver: Driver) -> None:
    driver.show(status=9)
    assert driver.gpus().census().gpus == ()
    check = driver.gpus().check()
    assert not check.ok
    assert "Driver Not Loaded" in check.message


def test_a_divided_gpu_is_not_handed_out(driver: Driver) -> None:
    driver.show(replace(ONE, mig=1), replace(TWO, mig=0))
    found = driver.gpus().census()
    assert [gpu.uuid for gpu in found.gpus] == ["GPU-2"]
    assert "GPU-1" in (found.remark or "")


def test_missing_device_files_are_told_with_the_cure(driver: Driver, tmp_path: Path) -> None:
    gpus = Gpus(str(driver.library), tmp_path)
    check = gpus.check()
    assert not check.ok
    assert "nvidia-modprobe" in (check.cure or "")
    with pytest.raises(NodeError, match="nvidia-modprobe"):
        gpus.take(1)


def test_one_gpu_is_never_taken_twice_and_comes_back(driver: Driver) -> None:
    first, second = driver.gpus().take(1), driver.gpus().take(1)
    assert {*first.uuids, *second.uuids} == {"GPU-1", "GPU-2"}
    with pytest.raises(NodeError, match="other tasks leave 0"):
        driver.gpus().take(1)
    with pytest.raises(NodeError, match="other tasks leave 0"):
        driver.gpus().take(1, chosen=first.uuids)
    first.close()
    first.close()
    with driver.gpus().take(1).locks:
        pass
    second.close()
    with driver.gpus().take(2).locks:
        pass


def test_what_cannot_be_had_here_is_an_error_of_input(driver: Driver) -> None:
    with pytest.raises(InputError, match=r"limits\.gpus.*3 GPUs.*2 GPUs"):
        driver.gpus().take(3)
    with pytest.raises(InputError, match=r"limits\.gpu_memory.*4G.*only 2G"):
        driver.gpus().take(1, memory=4 << 30)
    with pytest.raises(InputError, match=r"limits\.gpu_memory.*2G.*2 with only 1G"):
        driver.gpus().take(2, memory=2 << 30)


def test_the_memory_that_a_task_may_use_chooses_a_gpu_that_has_it(driver: Driver) -> None:
    taken = driver.gpus().take(1, memory=2 << 30)
    assert taken.uuids == ("GPU-2",)
    assert set(taken.devices) == {"nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"}
    taken.close()


def test_a_chosen_gpu_that_is_gone_is_the_nodes_fault(driver: Driver) -> None:
    with pytest.raises(NodeError, match=r"limits\.gpus.*GPU-3"):
        driver.gpus().take(1, chosen=["GPU-3"])


def test_neither_task_nor_image_chooses_gpus_by_its_variables() -> None:
    asked = {"NVIDIA_VISIBLE_DEVICES": "all", "CUDA_VISIBLE_DEVICES": "0,1", "OTHER": "x"}
    assert Taken((), {}).variables(asked) == {
        "NVIDIA_VISIBLE_DEVICES": "void", "CUDA_VISIBLE_DEVICES": "", "OTHER": "x",
    }  # fmt: skip
    assert Taken((), {}).variables({"OTHER": "x"}) == {"OTHER": "x"}


def test_the_variables_name_the_gpus_that_were_taken(driver: Driver) -> None:
    taken = driver.gpus().take(2)
    named = taken.variables({"NVIDIA_VISIBLE_DEVICES": "all"})
    assert named == {"NVIDIA_VISIBLE_DEVICES": "GPU-1,GPU-2", "CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"}
    taken.close()


def test_the_peak_is_the_largest_look_and_the_busy_part_their_mean(driver: Driver, comm: Path) -> None:
    taken = driver.gpus().take(2)
    meter = Meter(taken, os.getpid())
    comm.write_text("gpu1:300")
    assert meter.look() == 300 * MIB
    comm.write_text("gpu1:100")
    driver.show(ONE, replace(TWO, busy=50))
    assert meter.look() == 100 * MIB
    assert meter.stats() == {"GPU-1": GpuStats(0, 0.5), "GPU-2": GpuStats(300 * MIB, 0.75)}
    meter.close()
    taken.close()


def test_programs_outside_the_payloads_world_do_not_count(driver: Driver, comm: Path) -> None:
    taken = driver.gpus().take(1)
    comm.write_text("gpu0:300")
    worlds = {os.getpid(): 1}
    meter = Meter(taken, -5, world=lambda pid: worlds.get(pid, 2))
    assert meter.look() == 0
    vanished = Meter(taken, -5, world=lambda pid: None)
    assert vanished.look() == 0
    meter.close()
    taken.close()


def test_a_limit_that_the_driver_cannot_watch_is_refused(driver: Driver) -> None:
    driver.show(replace(ONE, tells=0))
    taken = driver.gpus().take(1, memory=512 * MIB)
    with pytest.raises(InputError, match=r"limits\.gpu_memory.*does not tell"):
        Meter(taken, os.getpid())
    taken.close()
    whole = driver.gpus().take(1, memory=1024 * MIB)  # the GPU has no more: it holds the limit by itself
    meter = Meter(whole, os.getpid())
    meter.look()
    assert meter.stats() == {"GPU-1": GpuStats(None, 0.5)}
    meter.close()
    whole.close()


def test_figures_that_the_driver_does_not_tell_are_absent_and_a_limit_on_them_ends_as_error(
    driver: Driver, comm: Path
) -> None:
    driver.show(replace(ONE, tells=1, busy=-1))
    comm.write_text("gpu0:300")
    free = driver.gpus().take(1)
    meter = Meter(free, os.getpid())
    meter.look()
    assert meter.stats() == {"GPU-1": GpuStats()}
    free.close()
    limited = driver.gpus().take(1, memory=512 * MIB)
    with pytest.raises(NodeError, match="cannot be held"):
        Meter(limited, os.getpid()).look()
    limited.close()


def test_a_gpu_that_fails_during_the_run_is_the_nodes_fault(driver: Driver) -> None:
    taken = driver.gpus().take(1)
    meter = Meter(taken, os.getpid())
    driver.show(ONE, TWO, status=15)
    with pytest.raises(NodeError, match="GPU is lost"):
        meter.look()
    taken.close()


def test_figures_of_gpus_survive_json() -> None:
    stats = Stats(gpus={"GPU-1": GpuStats(5, 0.5), "GPU-2": GpuStats()})
    assert stats.to_json()["gpus"] == {"GPU-1": {"max_usage": 5, "utilization": 0.5}, "GPU-2": {}}
    assert Stats.parse(stats.to_json()) == stats
    assert "gpus" not in Stats().to_json()
    with pytest.raises(InputError, match=r"gpus\.GPU-1\.max_usage"):
        Stats.parse({"gpus": {"GPU-1": {"max_usage": "much"}}})

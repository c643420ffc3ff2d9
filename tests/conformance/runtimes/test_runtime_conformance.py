"""What every runtime must do alike."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import struct
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from kolejka.common.errors import InputError, NodeError
from kolejka.common.limits import LIMITS, Limits
from kolejka.common.result import Outcome
from kolejka.common.stats import GpuStats
from kolejka.worker.gpus import Gpus
from kolejka.worker.perform import SESSION_ENFORCES, WORKER_ENFORCES, Tools
from kolejka.worker.runtimes import mounts
from kolejka.worker.runtimes.base import Run, RunningTask
from tests.conformance.runtimes.conftest import Execute, Subject
from tests.neighbours.nvml import MIB, Driver
from tests.neighbours.podman import Podman
from tests.support import wait_until

isolating = pytest.mark.isolating
SHA = hashlib.sha256(b"from a blob\n").hexdigest()


class Button:
    """Orders that a test gives."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_CLOEXEC)
        self._outcome: Outcome | None = None

    def press(self, outcome: Outcome = Outcome.CANCELLED) -> None:
        self._outcome = outcome
        os.eventfd_write(self._descriptor, 1)

    def fileno(self) -> int:
        return self._descriptor

    def read(self) -> Outcome | None:
        return self._outcome


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


@pytest.mark.parametrize("code", [0, 1, 3, 125, 126, 127, 137, 255])
def test_the_exit_code_is_the_programs_own(execute: Execute, code: int) -> None:
    done = execute(sh(f"exit {code}"))
    assert done.verdict == ("ok" if code == 0 else "failed", None, code)


@pytest.mark.parametrize(("name", "number"), [("KILL", 9), ("TERM", 15), ("SEGV", 11), ("USR1", 10)])
def test_a_signal_of_its_own_is_signaled(execute: Execute, name: str, number: int) -> None:
    done = execute(sh(f"kill -{name} $$; exit 1"))
    assert done.verdict == ("signaled", None, 128 + number)


def test_a_missing_program_failed_with_127_and_says_why(execute: Execute) -> None:
    done = execute(["no-such-program"])
    assert done.verdict == ("failed", None, 127)
    assert "no-such-program" in (done.result.message or "")
    assert "no such program" in (done.result.message or "")


@pytest.mark.parametrize(
    ("content", "executable", "words"),
    [
        ("#!/bin/sh\nexit 0\n", False, "permission"),
        ("#!/no/such/interpreter\n", True, "interpreter"),
        ("neither script nor program", True, "neither"),
    ],
)
def test_what_cannot_be_executed_failed_with_126_and_says_why(
    execute: Execute, content: str, executable: bool, words: str
) -> None:
    done = execute(["./program"], files={"program": {"content": content, "executable": executable}})
    assert done.verdict == ("failed", None, 126)
    assert words in (done.result.message or "")


def test_a_program_for_another_machine_failed_with_126_and_says_why(execute: Execute) -> None:
    foreign = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 243, 1, 0, 64, 0, 0, 64, 56, 0, 0, 0, 0)
    )
    done = execute(
        ["./program"], local={"program": foreign}, files={"program": {"path": "program", "executable": True}}
    )
    assert done.verdict == ("failed", None, 126)
    assert "machine" in (done.result.message or "")


def test_a_folder_is_no_program(execute: Execute) -> None:
    done = execute(["./folder"], files={"folder/file": {"content": ""}})
    assert done.verdict == ("failed", None, 126)
    assert "./folder" in (done.result.message or "")


@pytest.mark.parametrize(("ordered", "verdict"), [(True, "cancelled"), (False, "signaled")])
def test_killed_before_its_first_instruction(
    execute: Execute, subject: Subject, monkeypatch: pytest.MonkeyPatch, ordered: bool, verdict: str
) -> None:
    start, button = subject.runtime.start, Button()

    def start_and_kill(run: Run) -> RunningTask:
        held = start(run)
        button.press() if ordered else os.kill(held.pid, signal.SIGKILL)
        return held

    monkeypatch.setattr(subject.runtime, "start", start_and_kill)
    done = execute(sh("echo ran"), orders=button if ordered else None)
    assert done.verdict[:2] == (verdict, None)
    assert ordered or (done.verdict[2], done.stdout) == (137, "")


def test_a_program_of_the_task_runs_by_its_relative_path(execute: Execute) -> None:
    files = {"bin/program": {"content": "#!/bin/sh\necho here $1\n", "executable": True}}
    assert execute(["bin/program", "we are"], files=files).stdout == "here we are\n"


def test_stdout_and_stderr_go_to_their_files(execute: Execute) -> None:
    done = execute(sh("echo out; echo err >&2"), stdout="logs/out.txt", stderr="err.txt")
    assert (done.text("logs/out.txt"), done.text("err.txt")) == ("out\n", "err\n")
    assert set(done.result.files) == {"logs/out.txt", "err.txt"}


def test_the_streams_can_be_opened_by_their_names(execute: Execute) -> None:
    script = "echo 1 > /dev/stdout; echo 2 > /dev/stderr; echo 3 >> /proc/self/fd/1; cat /dev/stdin"
    done = execute(sh(script), files={"in": {"content": "4\n"}}, stdin="in")
    assert (done.stdout, done.text("stderr")) == ("1\n3\n4\n", "2\n")


def test_equal_names_merge_in_order(execute: Execute) -> None:
    done = execute(sh("echo 1; echo 2 >&2; echo 3"), stdout="all", stderr="all")
    assert done.text("all") == "1\n2\n3\n"


def test_outputs_without_a_name_are_dropped(execute: Execute) -> None:
    done = execute(sh("echo out; echo err >&2"), stdout=None, stderr=None)
    assert done.result.files == ()


def test_stdin_is_the_named_file_and_otherwise_empty(execute: Execute) -> None:
    assert execute(["cat"], files={"in": {"content": "to read\n"}}, stdin="in").stdout == "to read\n"
    assert execute(["cat"]).stdout == ""


def test_a_missing_stdin_is_an_error_of_input(execute: Execute, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="stdin"):
        execute(["cat"], stdin="absent")
    assert not (tmp_path / "result-0").exists()


def test_the_environment_is_clean_and_holds_what_the_task_sets(
    execute: Execute, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KOLEJKA_SECRET_OF_THE_NODE", "secret")
    environment = {"GREETING": "hej\n świat", "LD_PRELOAD": "/nowhere.so"}
    done = execute(sh("env"), environment=environment)
    assert "GREETING=hej\n świat\n" in done.stdout
    assert "SECRET" not in done.stdout
    names = {line.partition("=")[0] for line in done.stdout.splitlines() if "=" in line}
    added = {"PWD", "SHLVL", "OLDPWD", "_", "HOSTNAME"}
    if isinstance(subject.engine, Podman):  # which sets two in every container
        added |= {"TERM", "container"}
    assert names - added == {"PATH", "HOME", "LANG", "GREETING", "LD_PRELOAD"}


def test_arguments_arrive_untouched(execute: Execute) -> None:
    odd = ["", "a b", "'\"", "$HOME", "--help", "żółć", "line\nline"]
    done = execute([*sh('for a in "$@"; do printf "<%s>" "$a"; done'), "sh", *odd])
    assert done.stdout == "".join(f"<{a}>" for a in odd)


def test_files_come_in_all_forms_with_their_modes(execute: Execute, tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (blobs / SHA).write_bytes(b"from a blob\n")
    done = execute(
        sh("cat local renamed/deep inline blob; test -x inline && test ! -x blob && test -w inline"),
        local={"local": b"local\n"},
        files={
            "local": None,
            "renamed/deep": "local",
            "inline": {"content": "inline\n", "executable": True},
            "blob": {"reference": SHA},
        },
        blobs=blobs,
    )
    assert done.verdict == ("ok", None, 0)
    assert done.stdout == "local\nlocal\ninline\nfrom a blob\n"


def test_a_missing_blob_is_an_error_of_input(execute: Execute) -> None:
    with pytest.raises(InputError, match=r"files\.blob"):
        execute(["true"], files={"blob": {"reference": SHA}})


def test_collect_brings_what_its_rules_say(execute: Execute) -> None:
    done = execute(
        sh("mkdir -p a/b; echo 1 > a/b/one.txt; echo 2 > a/two.log; echo 3 > three.txt; chmod +x three.txt"),
        files={"input.txt": {"content": "in"}},
        collect=[
            {"glob": "**/*.txt", "exclude": ["input.txt"], "strip": 1, "prefix": "texts"},
            {"glob": "a"},
        ],
    )
    assert set(done.result.files) - {"stdout", "stderr"} == {
        "texts/b/one.txt", "texts/three.txt", "a/b/one.txt", "a/two.log",
    }  # fmt: skip
    assert done.text("texts/b/one.txt") == "1\n"
    assert done.result.manifest["texts/three.txt"].mode == "0755"
    assert done.result.manifest["a/two.log"].mode == "0644"
    assert done.result.manifest["a/two.log"].sha256 == hashlib.sha256(b"2\n").hexdigest()
    assert (done.folder / "texts/three.txt").stat().st_uid == os.geteuid()


def test_changed_brings_only_what_the_task_made_or_modified(execute: Execute) -> None:
    files = {name: {"content": "before"} for name in ("same", "grown", "rewritten")}
    done = execute(
        sh("echo x >> grown; echo -n BEFORE > rewritten; echo new > fresh"), files=files, collect=[{"changed": True}]
    )
    assert set(done.result.files) - {"stdout", "stderr"} == {"grown", "rewritten", "fresh"}


def test_hostile_leftovers_are_skipped_and_named(execute: Execute) -> None:
    done = execute(
        sh(
            "ln -s /etc/passwd link; ln -s / root; mkfifo fifo; mkdir -p closed/in; echo x > closed/in/file;"
            "chmod 0 closed/in/file; chmod 0 closed; echo forged > kolejka_result.json; echo x > stdout; echo ok > -rf;"
            'printf x > "$(printf "new\\nline")"; printf x > "$(printf "bad\\377byte")"'
        ),
        collect=[{"glob": "**"}],
    )
    assert done.result.outcome == "ok", done.result
    bad = os.fsdecode(b"bad\xffbyte")
    assert {"closed/in/file", "-rf", "new\nline", bad} <= set(done.result.files)
    assert set(done.result.skipped) == {"link", "root", "fifo", "kolejka_result.json", "stdout"}
    assert "symbolic link" in done.result.skipped["link"]
    assert "FIFO" in done.result.skipped["fifo"]
    assert "files_skipped" in done.result.flags
    assert not (done.folder / "link").exists()


def test_a_time_limit_keeps_partial_output_files_and_stats(execute: Execute) -> None:
    script = "echo partial; echo kept > kept; while :; do :; done"
    done = execute(sh(script), limits={"time": "300ms"}, collect=[{"glob": "kept"}])
    assert done.verdict == ("limit", "time", 137)
    assert done.stdout == "partial\n"
    assert done.text("kept") == "kept\n"
    assert done.result.stats.time is not None
    assert done.result.stats.time >= 0.3
    assert (done.result.stats.cpu.usage or 0) > 0.01


def test_a_cpu_time_limit_counts_children(execute: Execute) -> None:
    done = execute(
        sh("(while :; do :; done) & (while :; do :; done) & wait"), limits={"cpu_time": "300ms", "time": "30s"}
    )
    assert done.verdict[:2] == ("limit", "cpu_time")
    assert (done.result.stats.cpu.usage or 0) >= 0.3


def test_memory_beyond_the_limit_ends_as_memory(execute: Execute) -> None:
    script = "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done"
    done = execute(sh(script), limits={"memory": "24M", "time": "60s"})
    assert done.verdict[:2] == ("limit", "memory")
    assert (done.result.stats.memory.oom_kills or 0) >= 1


def test_an_out_of_memory_child_ends_the_task_though_its_parent_would_live(execute: Execute) -> None:
    script = "(x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done); echo survived; exit 0"
    done = execute(sh(script), limits={"memory": "24M", "time": "60s"})
    assert done.verdict[:2] == ("limit", "memory")


def test_pids_count_the_payload_and_nothing_else(execute: Execute) -> None:
    inside = execute(sh("sleep 0.1 & sleep 0.1 & sleep 0.1 & wait; echo done"), limits={"pids": 4})
    assert (inside.verdict, inside.stdout) == (("ok", None, 0), "done\n")
    assert inside.result.stats.pids.max_usage == 4
    beyond = execute(sh("sleep 0.1 & sleep 0.1 & sleep 0.1 & wait; echo done"), limits={"pids": 3})
    assert beyond.result.stats.pids.failures
    assert "pids_failures" in beyond.result.flags


def test_the_one_process_of_a_simple_program_fits_a_pids_limit_of_one(execute: Execute) -> None:
    done = execute(["uname"], limits={"pids": 1, "memory": "64M", "cpus": 1, "time": "10s"})
    assert (done.verdict, done.stdout) == (("ok", None, 0), "Linux\n")
    assert done.result.stats.pids.max_usage == 1


def test_cpus_are_those_of_the_set(execute: Execute) -> None:
    last = max(os.sched_getaffinity(0))
    done = execute(["cat", "/proc/self/status"], cpuset=(last,), limits={"cpus": 1})
    assert f"Cpus_allowed_list:\t{last}\n" in done.stdout


def test_output_beyond_the_limit_ends_the_run_and_is_truncated(execute: Execute) -> None:
    done = execute(["yes"], limits={"output": "10K", "time": "60s"})
    assert done.verdict[:2] == ("limit", "output")
    assert (done.folder / "stdout").stat().st_size == 10240
    assert "stdout_truncated" in done.result.flags


def test_output_counts_both_streams_and_those_nobody_keeps(execute: Execute) -> None:
    both = execute(sh("head -c 6000 /dev/zero; head -c 6000 /dev/zero >&2"), limits={"output": "10K"})
    assert both.verdict[:2] == ("limit", "output")
    dropped = execute(["yes"], stdout=None, stderr=None, limits={"output": "10K", "time": "60s"})
    assert dropped.verdict[:2] == ("limit", "output")


def test_output_of_just_the_limit_is_fine(execute: Execute) -> None:
    done = execute(sh("head -c 10240 /dev/zero"), limits={"output": "10K"})
    assert (done.verdict, done.result.flags) == (("ok", None, 0), ())


def test_a_full_workspace_ends_the_run(execute: Execute) -> None:
    done = execute(sh("cat /dev/zero > big"), limits={"workspace": "4M", "time": "60s"}, collect=[{"glob": "**"}])
    assert done.verdict[:2] == ("limit", "workspace")
    assert "big" in done.result.skipped


def test_a_sparse_file_counts_in_full(execute: Execute) -> None:
    done = execute(sh("dd if=/dev/zero of=hole bs=1 count=1 seek=1000000000 2>/dev/null"), limits={"workspace": "4M"})
    assert done.verdict[:2] == ("limit", "workspace")


def test_a_hole_that_no_disk_could_hold_is_not_collected_even_where_nothing_is_limited(execute: Execute) -> None:
    done = execute(
        sh("dd if=/dev/zero of=hole bs=1 count=1 seek=4000000000000 2>/dev/null; echo x > small"),
        collect=[{"glob": "**"}],
    )
    assert done.verdict == ("ok", None, 0)
    assert done.result.skipped == {"hole": "over the size limit"}
    assert "small" in done.result.files


def test_input_files_larger_than_the_workspace_are_an_error_of_input(execute: Execute) -> None:
    with pytest.raises(InputError, match=r"limits\.workspace"):
        execute(["true"], local={"big": b"x" * 100_000}, files=["big"], limits={"workspace": "20K"})


def test_what_is_written_outside_the_working_folder_counts_as_storage(execute: Execute, subject: Subject) -> None:
    if not subject.isolates:
        with pytest.raises(InputError, match=r"limits\.storage"):
            execute(["true"], limits={"storage": "4M"})
        return
    for place in ("/tmp", "/dev/shm"):
        script = f"cat /dev/zero > {place}/big"
        done = execute(sh(script), limits={"storage": "4M", "workspace": "4M", "time": "60s"})
        assert done.verdict[:2] == ("limit", "storage"), place
    fits = execute(sh("head -c 2000000 /dev/zero > /tmp/fits"), limits={"storage": "4M"})
    assert fits.verdict == ("ok", None, 0)


@pytest.mark.needs("gcc")
def test_every_declared_limit_is_held_or_refused(execute: Execute, subject: Subject, driver: Driver) -> None:
    values = {"cpus": 1, "memory": "64M", "swap": 0, "pids": 8, "time": "10s", "cpu_time": "10s", "network": False,
              "storage": "8M", "workspace": "8M", "output": "1M", "image": "1G", "gpus": 1,
              "gpu_memory": "1G"}  # fmt: skip
    assert set(values) == set(LIMITS)
    if isinstance(subject.engine, Podman):
        del values["gpus"]  # refused: tests/integration/test_podman.py
    held = SESSION_ENFORCES | WORKER_ENFORCES | subject.runtime.enforces
    for name, value in values.items():
        if name in held:
            done = execute(["true"], limits={name: value}, tools=with_gpus(subject, driver))
            assert done.result.limits.get(name) is not None
        else:
            with pytest.raises(InputError, match=f"limits.{name}.*{subject.name}"):
                execute(["true"], limits={name: value})


def with_gpus(subject: Subject, driver: Driver) -> Tools:
    """The subject's tools on a machine with GPUs."""
    return replace(subject.tools, find_gpus=lambda _: driver.gpus())


@isolating
def test_a_task_that_asks_for_gpus_is_refused_where_there_is_none(execute: Execute, subject: Subject) -> None:
    bare = replace(subject.tools, find_gpus=lambda _: Gpus("libno-such-library.so.1"))
    with pytest.raises(InputError, match=r"limits\.gpus.*no GPU"):
        execute(["true"], limits={"gpus": 1}, tools=bare)
    assert execute(["true"], limits={"gpu_memory": "1G"}, tools=bare).verdict == ("ok", None, 0)


@isolating
@pytest.mark.gpus
@pytest.mark.needs("gcc")
def test_a_task_has_its_gpus_and_no_others(
    execute: Execute, subject: Subject, driver: Driver, request: pytest.FixtureRequest
) -> None:
    script = "env | grep VISIBLE_DEVICES | sort; ls /dev | grep nvidia"
    tools, asked = with_gpus(subject, driver), {"NVIDIA_VISIBLE_DEVICES": "all"}
    hook_log = None
    if subject.name == "docker":
        hook_log = Path(request.getfixturevalue("docker_url").removeprefix("unix://")).parent / "gpu-hook.log"
        hook_log.unlink(missing_ok=True)
    one = execute(sh(script), limits={"gpus": 1}, gpus=("GPU-2",), tools=tools, environment=asked)
    variables = ["CUDA_VISIBLE_DEVICES=GPU-2", "NVIDIA_VISIBLE_DEVICES=GPU-2"]
    if subject.name == "docker":  # its devices are the driver's hook's affair, which is told by UUID
        assert one.stdout.splitlines() == variables
    else:
        assert one.stdout.splitlines() == [*variables, "nvidia-uvm", "nvidia-uvm-tools", "nvidia1", "nvidiactl"]
    none = execute(sh(script), limits={"gpus": 0}, tools=tools, environment=asked)
    assert none.stdout.splitlines() == ["NVIDIA_VISIBLE_DEVICES=void"]
    assert hook_log is None or hook_log.read_text() == "prestart\n", "of the one with GPUs, not of the other"
    assert list(one.result.stats.gpus) == ["GPU-2"]
    assert not none.result.stats.gpus


@isolating
@pytest.mark.gpus
@pytest.mark.needs("gcc")
def test_a_gpus_device_file_can_be_used(execute: Execute, subject: Subject, driver: Driver) -> None:
    if subject.name == "docker":
        return
    done = execute(sh("head -c 3 /dev/nvidia0 | od -An -tx1"), limits={"gpus": 1}, tools=with_gpus(subject, driver))
    assert done.stdout.split() == ["00"] * 3  # the stand-in for a GPU is /dev/zero


@isolating
@pytest.mark.gpus
@pytest.mark.needs("gcc")
def test_the_memory_of_gpus_is_measured_and_limited(execute: Execute, subject: Subject, driver: Driver) -> None:
    tools = with_gpus(subject, driver)
    # A process that calls itself so has so many MiB on the first GPU of the stand-in.
    # The shell does all by itself: a child would have the name too until it calls exec.
    name, turns = "echo gpu0:{} > /proc/self/comm;", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done"
    within = execute(sh(name.format(300) + turns), limits={"gpus": 1, "gpu_memory": "512M"}, tools=tools)
    assert (within.verdict, within.stdout) == (("ok", None, 0), "done\n")
    assert within.result.stats.gpus == {"GPU-1": GpuStats(300 * MIB, 0.5)}
    beyond = execute(
        sh(name.format(600) + "while :; do :; done"),
        limits={"gpus": 1, "gpu_memory": "512M", "time": "50s"},
        tools=tools,
    )
    assert beyond.verdict == ("limit", "gpu_memory", 137)
    assert beyond.result.stats.gpus["GPU-1"].max_usage == 600 * MIB


def test_no_gpus_asked_is_no_limit_to_refuse(execute: Execute) -> None:
    assert execute(["true"], limits={"gpus": 0}).verdict == ("ok", None, 0)


def test_ceilings_merge_by_minimum(execute: Execute) -> None:
    done = execute(["true"], limits={"time": "10s", "pids": 4}, ceilings=Limits.of(time="5s", pids=64))
    assert (done.result.limits.get("time"), done.result.limits.get("pids")) == (5.0, 4)
    assert (done.result.limits.get("network"), done.result.limits.get("swap")) == (False, 0)


def test_cancel_kills_at_once_and_keeps_what_was_there(execute: Execute, subject: Subject) -> None:
    button = Button()
    work = subject.tools.settings.data / "work"
    # The payload says by a file that it runs; then somebody cancels.
    presser = threading.Thread(target=lambda: (wait_until(lambda: list(work.glob("*/task/running"))), button.press()))
    presser.start()
    done = execute(sh("echo partial; touch running; sleep 1000"), orders=button, limits={"time": "100s"})
    presser.join()
    assert done.verdict[:2] == ("cancelled", None)
    assert done.stdout == "partial\n"
    assert (done.result.stats.time or 100) < 60


def test_a_daemon_that_holds_stdout_does_not_block(execute: Execute) -> None:
    done = execute(sh("(setsid sleep 1000 &) ; echo done"), limits={"time": "100s"})
    assert (done.verdict, done.stdout) == (("ok", None, 0), "done\n")
    assert "processes_left" in done.result.flags
    assert (done.result.stats.time or 100) < 60


def test_stats_tell_what_was_used(execute: Execute) -> None:
    stats = execute(sh("i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done; sleep 0.2")).result.stats
    assert stats.time is not None
    assert stats.time >= 0.2
    assert stats.cpu.usage
    assert stats.memory.max_usage
    assert stats.pids.max_usage
    assert stats.memory.oom_kills == 0


def test_a_payload_sees_three_descriptors_only(execute: Execute) -> None:
    done = execute(sh("ls /proc/self/fd | head -n 4 | tr '\\n' ' '"))
    assert done.stdout == "0 1 2 3 "  # the fourth is the folder that ls reads


def test_a_result_folder_that_holds_something_is_refused_untouched(execute: Execute, tmp_path: Path) -> None:
    (tmp_path / "result-0").mkdir()
    (tmp_path / "result-0" / "mine").write_text("mine")
    with pytest.raises(InputError, match="result-0"):
        execute(["true"])
    assert (tmp_path / "result-0" / "mine").read_text() == "mine"


# What only an isolating runtime can do.


@isolating
def test_the_payload_is_not_root_and_has_no_capability(execute: Execute, subject: Subject) -> None:
    done = execute(["cat", "/proc/self/status"], slot=3)
    fields = dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)
    uid = str(subject.tools.settings.first_uid + 3)
    assert fields["Uid"].split() == [uid] * 4
    assert fields["Gid"].split() == [uid] * 4
    assert {fields[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Amb")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"


@isolating
def test_every_namespace_is_its_own(execute: Execute, subject: Subject) -> None:
    names = ["pid", "ipc", "uts", "net", "mnt", "cgroup"]
    if subject.name == "sandbox":
        names.append("user")
    if isinstance(subject.engine, Podman) and not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        names.remove("cgroup")  # Podman makes one on version 2 only
    done = execute(sh(f"for n in {' '.join(names)}; do readlink /proc/self/ns/$n; done"))
    assert len(done.stdout.split()) == len(names)
    assert not set(done.stdout.split()) & {os.readlink(f"/proc/self/ns/{name}") for name in names}


@isolating
def test_dev_is_minimal_and_holds_no_disk(execute: Execute) -> None:
    done = execute(sh("ls /dev; find /dev -type b"))
    usual = {"console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
             "stdout", "tty", "urandom", "zero"}  # fmt: skip
    assert set(done.stdout.split()) <= usual


@isolating
def test_no_payload_takes_all_terminals_of_the_machine(execute: Execute, subject: Subject) -> None:
    (terminals,) = [line for line in execute(["cat", "/proc/self/mountinfo"]).stdout.splitlines() if " devpts " in line]
    assert (f"max={mounts.TERMINALS}" in terminals) == (subject.name == "sandbox"), "no engine offers it"


@isolating
def test_how_the_node_was_booted_is_not_told(execute: Execute) -> None:
    done = execute(sh("cat /proc/cmdline && ls /sys/firmware/ 2>/dev/null"))
    assert done.stdout == ""


@isolating
def test_nothing_below_proc_sys_can_be_written(execute: Execute) -> None:
    # Some belong to the payload's own namespaces. Opened, and nothing written.
    script = "find /proc/sys -type f 2>/dev/null | while read -r f; do (: >> $f) 2>/dev/null && echo $f; done; echo end"
    assert execute(sh(script)).stdout == "end\n"


@isolating
def test_no_process_of_the_host_is_seen_and_init_cannot_be_looked_into(execute: Execute) -> None:
    done = execute(sh("ls /proc | grep -c '^[0-9]'; ls /proc/1/fd; cat /proc/1/environ; kill -9 1; echo alive"))
    first, *rest = done.stdout.splitlines()
    assert int(first) <= 6
    assert rest == ["alive"]


@isolating
def test_there_is_no_network_unless_it_is_allowed(execute: Execute) -> None:
    off = execute(["cat", "/proc/net/dev"])
    devices = {line.split(":")[0].strip() for line in off.stdout.splitlines() if ":" in line}
    assert (
        devices - {"lo", "tunl0", "sit0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6tnl0", "ip6gre0"}
        == set()
    )
    routes = execute(["cat", "/proc/net/route"])
    assert len(routes.stdout.splitlines()) <= 1


@isolating
def test_files_of_the_host_are_not_seen(execute: Execute, tmp_path: Path, subject: Subject) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    places = [secret, Path("/etc/shadow"), Path("/home"), Path("/var/lib"), Path("/sys/fs/cgroup/memory"),
              Path("/run/kolejka/observer/socket"), Path("/var/run/docker.sock"),
              subject.tools.settings.data]  # fmt: skip
    listed = " ".join(f"'{place}'" for place in places)
    done = execute(sh(f"for p in {listed}; do cat $p 2>/dev/null; ls $p/* 2>/dev/null; done; true"))
    assert done.stdout.replace("/run/kolejka/observer/socket\n", "") == ""


@isolating
def test_the_observers_socket_is_there_for_those_who_ask_and_reachable(
    execute: Execute, subject: Subject, short_path: Path
) -> None:
    script = sh("test -S /run/kolejka/observer/socket && echo there; true")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(short_path / "socket"))
        settings = replace(subject.tools.settings, observer=str(short_path / "socket"))
        asked = execute(script, tools=replace(subject.tools, settings=settings), observer=True)
        silent = execute(script, tools=replace(subject.tools, settings=settings))
    assert (asked.stdout, silent.stdout) == ("there\n", "")
    (short_path / "socket").unlink()
    with pytest.raises(NodeError, match="kolejka-observer"):
        execute(script, tools=replace(subject.tools, settings=settings), observer=True, collect=[])


@isolating
def test_system_folders_cannot_be_written(execute: Execute) -> None:
    script = (
        "for p in / /bin /usr /etc /dev /proc/sys/kernel /run/kolejka; do echo x > $p/planted && echo $p; done; true"
    )
    assert execute(sh(script)).stdout == ""


@isolating
def test_one_task_leaves_no_trace_for_the_next(execute: Execute) -> None:
    execute(sh("echo x > /tmp/trace; echo x > /dev/shm/trace; echo x > trace"), limits={"storage": "8M"})
    done = execute(sh("ls -A /tmp /dev/shm /task | grep trace; true"), limits={"storage": "8M"})
    assert done.stdout == ""


@isolating
def test_the_working_folder_is_the_same_place_everywhere(execute: Execute) -> None:
    assert execute(["pwd"]).stdout == "/task\n"


@isolating
def test_no_namespace_can_be_made(execute: Execute) -> None:
    done = execute(sh("unshare -U true || echo refused; unshare -n true || echo refused"))
    assert done.stdout == "refused\nrefused\n"


@isolating
def test_a_device_in_an_image_leads_nowhere(
    execute: Execute, subject: Subject, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if subject.image is None:
        return
    tar = shutil.copy(request.getfixturevalue("busybox_root_tar"), tmp_path / "devices.tar")
    with tarfile.open(tar, "a") as archive:
        for name, minor in (("null", 3), ("kernel-log", 11)):
            device = tarfile.TarInfo(name)
            device.type, device.mode, device.devmajor, device.devminor = tarfile.CHRTYPE, 0o666, 1, minor
            archive.addfile(device)
    if subject.engine is not None:
        subject.engine.import_image(tar, "kolejka/devices:latest")
    else:
        subject.runtime.images.add("kolejka/devices:latest", tar)
    done = execute(sh("echo x > /dev/null && echo x > /kernel-log || echo refused"), image="kolejka/devices:latest")
    assert done.stdout == "refused\n"
    assert "/kernel-log" in done.text("stderr")


@isolating
def test_an_image_that_is_not_here_is_one_clear_line(execute: Execute, subject: Subject, tmp_path: Path) -> None:
    if subject.image is None:
        with pytest.raises(InputError, match=r"absent:tag.*image import"):
            execute(["true"], image="absent:tag")
        return
    from kolejka.common.task import Task
    from kolejka.worker.runtimes.choose import choose

    task = Task.parse({"args": ["true"], "image": "absent:tag"})
    with pytest.raises(InputError, match="absent:tag"):
        choose(subject.name, task, subject.tools.runtimes)
    assert replace(task, image=subject.image).image == subject.image


@isolating
def test_an_image_larger_than_its_limit_is_refused(execute: Execute, subject: Subject) -> None:
    if subject.image is None:
        assert execute(["true"], limits={"image": "1K"}).verdict == ("ok", None, 0)
    else:
        with pytest.raises(InputError, match=r"limits\.image"):
            execute(["true"], limits={"image": "1K"})

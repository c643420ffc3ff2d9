"""``kolejka-worker`` as people call it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import wait_until

pytestmark = pytest.mark.needs("cgroups", "root", "bwrap")


def worker(*args: object, before: Sequence[str] = (), umask: int = -1) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, "-m", "kolejka.worker", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, umask=umask)


def task(folder: Path, **fields: Any) -> Path:
    folder.mkdir()
    (folder / "kolejka_task.json").write_text(json.dumps(fields))
    return folder


def result(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "kolejka_result.json").read_text())
    return data


README = {"image": "ubuntu:xenial", "args": ["uname"], "stdout": "stdout.txt",
          "limits": {"memory": "64M", "cpus": "1", "pids": "16", "time": "1s"}}  # fmt: skip


@pytest.mark.needs("busybox")
def test_the_first_readmes_example_runs_in_the_sandbox(tmp_path: Path, busybox_root_tar: Path) -> None:
    data = ["--data", tmp_path / "data"]
    brought = worker("image", "import", "ubuntu:xenial", busybox_root_tar, *data)
    assert brought.returncode == 0, brought.stderr
    assert worker("image", "list", *data).stdout.startswith("ubuntu:xenial ")
    done = worker("execute", task(tmp_path / "task", **README), tmp_path / "result", *data)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "result" / "stdout.txt").read_text() == "Linux\n"
    assert result(tmp_path / "result")["node"]["runtime"] == "sandbox"
    assert worker("image", "drop", "ubuntu:xenial", *data).returncode == 0


@pytest.mark.needs("docker")
def test_the_first_readmes_example_runs_in_docker(tmp_path: Path, docker_url: str) -> None:
    where = ["--data", tmp_path / "data", "--docker", docker_url]
    done = worker("execute", task(tmp_path / "task", **README), tmp_path / "result", *where)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "result" / "stdout.txt").read_text() == "Linux\n"
    assert result(tmp_path / "result")["node"]["runtime"] == "docker"
    absent = worker("execute", task(tmp_path / "t2", image="absent:1", args=["x"]), tmp_path / "r2", *where)
    assert absent.returncode == 2
    assert "docker pull absent:1" in absent.stderr
    assert len(absent.stderr.splitlines()) == 1
    assert not (tmp_path / "r2").exists()


@pytest.mark.parametrize(
    ("fields", "options", "status"),
    [
        ({"args": ["sh", "-c", "exit 7"]}, [], 7),
        ({"args": ["sh", "-c", "kill -TERM $$"]}, [], 143),
        ({"args": ["sleep", "100"]}, ["--time", "200ms"], 124),
        ({"args": ["yes"]}, ["--output", "1K"], 153),
        ({"args": ["no-such-program"]}, [], 127),
    ],
)
def test_the_exit_status_is_the_tasks(tmp_path: Path, fields: dict[str, Any], options: list[str], status: int) -> None:
    done = worker("execute", task(tmp_path / "task", **fields), tmp_path / "r", "--data", tmp_path / "data", *options)
    assert (done.returncode, done.stderr) == (status, "")
    assert (tmp_path / "r" / "kolejka_result.json").exists()
    assert list((tmp_path / "data" / "work").iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "options", "words"),
    [
        ({"args": ["true"], "file": {}}, [], "file"),
        ({"args": ["true"], "limits": {"memory": "1MM"}}, [], "limits.memory"),
        ({"args": ["true"], "files": {"../x": {"content": ""}}}, [], "files"),
        ({"args": ["true"], "files": ["absent"]}, [], "files.absent"),
        ({"args": ["true"], "image": "absent:tag"}, ["--docker", "unix:///nowhere"], "absent:tag"),
        ({"args": ["true"], "limits": {"gpus": 2}}, [], "limits.gpus"),
        ({"args": ["true"], "stdin": "absent"}, [], "stdin"),
        ({"args": ["true"]}, ["--runtime", "docker", "--docker", "unix:///nowhere"], "image"),
        ({"args": ["true"]}, ["--time", "nan"], "time"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_result(
    tmp_path: Path, fields: dict[str, Any], options: list[str], words: str
) -> None:
    done = worker("execute", task(tmp_path / "task", **fields), tmp_path / "r", "--data", tmp_path / "data", *options)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "r").exists()


def test_an_engine_that_does_not_answer_is_the_nodes_fault(tmp_path: Path) -> None:
    folder = task(tmp_path / "task", args=["true"], image="x")
    options = ["--runtime", "docker", "--docker", f"unix://{tmp_path}/nowhere", "--data", tmp_path / "data"]
    done = worker("execute", folder, tmp_path / "r", *options)
    assert done.returncode == 125
    assert "no container engine answers" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_interrupt_cancels_and_still_gives_a_result(tmp_path: Path) -> None:
    folder = task(tmp_path / "task", args=["sh", "-c", "echo partial; touch here; sleep 1000"], stdout="out")
    command = [sys.executable, "-m", "kolejka.worker", "execute", folder, tmp_path / "r", "--data", tmp_path / "data"]
    process = subprocess.Popen(command)
    wait_until(lambda: list((tmp_path / "data").glob("work/*/task/here")))
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert result(tmp_path / "r")["outcome"] == "cancelled"
    assert (tmp_path / "r" / "out").read_text() == "partial\n"


def test_a_large_input_passes_in_constant_memory(tmp_path: Path) -> None:
    folder = task(tmp_path / "task", args=["cat", "big"], files=["big"], stdout="out", collect=[{"glob": "big"}])
    with open(folder / "big", "wb") as sink:
        sink.truncate(256 << 20)
    command = [sys.executable, "-c", (
        "import re, sys; from kolejka.worker.cli import command;"
        "status = command.main(args=sys.argv[1:], standalone_mode=False);"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]); sys.exit(status)"
    ), "execute", str(folder), str(tmp_path / "r"), "--data", str(tmp_path / "data")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r" / "out").stat().st_size == 256 << 20
    assert (tmp_path / "r" / "big").stat().st_size == 256 << 20
    assert int(done.stdout) < 150_000


def test_doctor_tells_what_is_here(tmp_path: Path) -> None:
    done = worker("doctor", "--json", "--data", tmp_path / "data")
    checks = {check["check"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 0
    assert checks["sandbox: bubblewrap"]["ok"]
    assert checks["sandbox: namespaces"]["ok"]
    assert checks["sessions"]["ok"]


@pytest.mark.needs("busybox")
def test_who_keeps_files_private_by_default_runs_tasks_all_the_same(tmp_path: Path, busybox_root_tar: Path) -> None:
    data = ["--data", tmp_path / "data"]
    assert worker("image", "import", "busybox", busybox_root_tar, *data, umask=0o077).returncode == 0
    for number, image in enumerate((None, "busybox")):
        for limits in ({}, {"storage": "1M"}):
            name = f"{number}{len(limits)}"
            fields = {"args": ["sh", "-c", "cat /etc/hosts && : > /tmp/x"], "limits": limits, "stdout": "out"}
            folder = task(tmp_path / f"task{name}", **fields, **({"image": image} if image else {}))
            done = worker("execute", folder, tmp_path / f"result{name}", *data, umask=0o077)
            assert (done.returncode, done.stderr) == (0, "")
            assert "localhost" in (tmp_path / f"result{name}" / "out").read_text()
            assert (tmp_path / f"result{name}").stat().st_mode & 0o777 == 0o700


def test_a_machine_that_keeps_a_worker_from_its_mounts_is_told_of_in_one_line(tmp_path: Path) -> None:
    folder = task(tmp_path / "task", args=["true"], limits={"storage": "1M"})
    read_only = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o ro none /run && exec "$@"', "sh"]
    done = worker("execute", folder, tmp_path / "result", "--data", tmp_path / "data", before=read_only)
    assert done.returncode != 0
    assert done.stderr.splitlines() == ["kolejka-worker: /run/kolejka: Read-only file system"]
    assert not (tmp_path / "result").exists()

"""The first process of every payload: what is shipped is what the source says, and it keeps its protocol."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kolejka.common.errors import NodeError
from kolejka.worker.runtimes import build_init, init
from kolejka.worker.runtimes.base import Held, candidates, control_socket
from tests.support import wait_until


def test_the_shipped_program_was_made_from_the_source_here() -> None:
    source = (build_init.HERE / "init.c").read_bytes()
    assert hashlib.sha256(source).hexdigest() == init.SOURCE, "run python -m kolejka.worker.runtimes.build_init"
    assert set(init.PROGRAMS) == set(build_init.COMPILERS)


class Started:
    def __init__(self, folder: Path) -> None:
        self.program = init.place(folder)
        self.processes: list[subprocess.Popen[bytes]] = []

    def __call__(self, *args: str, paths: list[str] | None = None, by: Sequence[str] = ()) -> Held:
        ours, theirs = control_socket()
        found = candidates(args, {}) if paths is None else paths
        command = [*by, str(self.program), str(theirs.fileno()), str(len(found)), *found, *args]
        with theirs:
            self.processes.append(subprocess.Popen(command, pass_fds=[theirs.fileno()]))
        held = Held(ours)
        held.await_ready(10)
        return held


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Started]:
    started = Started(tmp_path)
    yield started
    for process in started.processes:
        process.wait(10)


def finish(held: Held, output: Path) -> tuple[int | None, str]:
    with open(output, "w+b") as sink, open(os.devnull, "rb") as source:
        held.release(source.fileno(), sink.fileno(), sink.fileno())
        end = wait_until(held.read)
        assert held.wait_gone(10)
        held.channel.close()
        return end.status, output.read_text()


def test_the_payload_waits_until_it_is_released(start: Started, tmp_path: Path) -> None:
    held = start("sh", "-c", f"echo ran > {tmp_path}/ran")
    assert Path(f"/proc/{held.pid}/comm").read_text().startswith("init-")
    assert held.read() is None
    assert not (tmp_path / "ran").exists()
    status, _ = finish(held, tmp_path / "out")
    assert status == 0
    assert (tmp_path / "ran").exists()


def test_signals_and_codes_are_told_apart(start: Started, tmp_path: Path) -> None:
    assert finish(start("sh", "-c", "exit 137"), tmp_path / "out")[0] == 137 << 8
    assert finish(start("sh", "-c", "kill -9 $$"), tmp_path / "out")[0] == 9


def test_the_payload_hears_signals_that_whoever_started_it_does_not(start: Started, tmp_path: Path) -> None:
    deaf = ["sh", "-c", "trap '' HUP INT USR1 CHLD; exec \"$@\"", "sh"]
    status, output = finish(start("grep", "Sig[BI]", "/proc/self/status", by=deaf), tmp_path / "out")
    assert status == 0
    assert [line.split()[1] for line in output.splitlines()] == ["0" * 16] * 2


def test_orphans_are_adopted_and_reaped(start: Started, tmp_path: Path) -> None:
    status, output = finish(start("sh", "-c", "(sleep 0.05; echo orphan) & exit 3"), tmp_path / "out")
    assert (status, output) == (3 << 8, "orphan\n")


def test_the_first_candidate_that_can_be_executed_is(start: Started, tmp_path: Path) -> None:
    (tmp_path / "denied").write_text("#!/bin/sh\n")
    held = start("tool", "-c", "echo found", paths=["/nonexistent/tool", str(tmp_path / "denied"), "/bin/sh"])
    assert finish(held, tmp_path / "out") == (0, "found\n")


def test_a_start_that_fails_says_with_which_error(start: Started, tmp_path: Path) -> None:
    held = start("tool", paths=["/nonexistent/tool"])
    assert finish(held, tmp_path / "out")[0] == 127 << 8
    end = held.read()
    assert end is not None
    assert (end.error, end.exists) == (2, False)


def test_the_payload_has_three_descriptors_and_no_core_dumps(start: Started, tmp_path: Path) -> None:
    _, output = finish(start("sh", "-c", "ls /proc/$$/fd; ulimit -c"), tmp_path / "out")
    assert output.split() == ["0", "1", "2", "0"]


def test_a_world_that_dies_while_it_is_held_is_an_error(tmp_path: Path) -> None:
    ours, theirs = control_socket()
    theirs.close()
    with pytest.raises(NodeError):
        Held(ours).await_ready(5)
    ours.close()

"""What a foreman tells of itself: its last lines, its errors, its machine, its state file, the screen."""

from __future__ import annotations

import json
import logging
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from kolejka import __version__
from kolejka.foreman import lines as lines_module
from kolejka.foreman import screen
from kolejka.foreman.about import machine_words
from kolejka.foreman.lines import Lines, bounded, log_text
from kolejka.foreman.state import StateFile, write_state
from tests.support import wait_until

TOKEN = "klj_" + "A" * 43
KEPT: dict[str, str] = {}
JOURNAL = {"JOURNAL_STREAM": "8:1"}


@pytest.fixture
def lines() -> Lines:
    return Lines()


def log(lines: Lines, message: str, level: int = logging.INFO, **fields: object) -> None:
    record = logging.LogRecord("kolejka.foreman", level, "", 0, message, None, None)
    vars(record).update(fields)
    lines.handle(record)


# Lines and errors


def test_the_last_lines_are_those_that_were_logged_and_no_more(lines: Lines) -> None:
    for number in range(lines_module.MOST_LINES + 5):
        log(lines, "attempt started", lease=number)
    last = log_text(lines, 3, KEPT).splitlines()
    assert [line.rpartition(" ")[2] for line in last] == ["lease=2002", "lease=2003", "lease=2004"]
    assert len(lines.last(10_000)) == lines_module.MOST_LINES


def test_errors_are_the_last_warnings_and_worse_the_newest_first(lines: Lines) -> None:
    stirred: list[None] = []
    lines.stir = lambda: stirred.append(None)
    log(lines, "nothing special")
    for number in range(lines_module.MOST_ERRORS + 2):
        log(lines, "delivery waits", logging.WARNING, reason=f"no server {number}")
    errors = lines.errors()
    assert len(errors) == lines_module.MOST_ERRORS
    assert errors[0]["message"] == "delivery waits reason='no server 11'"
    assert errors[0]["at"].endswith("Z")
    assert len(stirred) == lines_module.MOST_ERRORS + 2


def test_no_secret_leaves_with_the_log(lines: Lines) -> None:
    secrets = [TOKEN, "kle_" + "B" * 43, "kcs_" + "C" * 43]
    for secret in secrets:
        log(lines, f"a fault put {secret} here", logging.ERROR)
    told = log_text(lines, 10, KEPT) + json.dumps(lines.errors())
    told += log_text(lines, 10, JOURNAL, lambda _: [f"token={secret}" for secret in secrets])
    assert not any(secret in told or secret[4:] in told for secret in secrets)
    assert "a fault put klj_… here" in told


def test_a_log_is_bounded_and_begins_with_a_whole_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "MOST_CHARACTERS", 20)
    assert bounded("first line\nsecond line\nthird line") == "third line"
    assert bounded("short") == "short"


def test_under_systemd_the_journal_is_asked_and_elsewhere_not(lines: Lines) -> None:
    log(lines, "own line")
    asked: list[int] = []

    def journal(count: int) -> list[str]:
        asked.append(count)
        return ["journal line"]

    assert "own line" in log_text(lines, 7, KEPT, journal)
    assert asked == []
    assert log_text(lines, 7, JOURNAL, journal) == "journal line"
    assert asked == [7]
    assert "own line" in log_text(lines, 7, JOURNAL, lambda _: []), "a journal that keeps nothing"


def test_a_journal_that_cannot_be_read_is_a_remark_and_not_the_end(
    lines: Lines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log(lines, "own line")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "own line" in log_text(lines, 7, JOURNAL)
    program = tmp_path / "journalctl"
    program.write_text("#!/bin/sh\nfor word; do echo $word; done\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert "--unit=kolejka-*" in log_text(lines, 7, JOURNAL).splitlines()


# The machine


def test_the_machine_says_boot_image_and_version(tmp_path: Path) -> None:
    boot = tmp_path / "proc/sys/kernel/random/boot_id"
    boot.parent.mkdir(parents=True)
    boot.write_text("0d4ec7b8-6a3c\n")

    def no_release() -> dict[str, str]:
        raise FileNotFoundError

    assert machine_words(tmp_path, no_release) == {"version": __version__, "boot": "0d4ec7b8-6a3c"}
    ours = {"ID": "debian", "IMAGE_ID": "kolejka-node", "IMAGE_VERSION": "1.4"}
    assert machine_words(tmp_path, lambda: ours)["image"] == {"id": "kolejka-node", "version": "1.4"}
    assert "image" not in machine_words(tmp_path, lambda: {"ID": "debian"})
    assert "boot" in machine_words()


# The state file


def test_the_state_is_written_when_it_changed_and_only_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kolejka.foreman.state.PAUSE_S", 0.0)
    state, stirred, asked = {"n": 0}, threading.Event(), [0]

    def snapshot() -> dict[str, Any]:
        asked[0] += 1
        return dict(state)

    file = StateFile(tmp_path, snapshot, stirred)
    thread = threading.Thread(target=file.loop, daemon=True)
    thread.start()
    for number in (1, 1, 2):
        before, state["n"] = asked[0], number
        stirred.set()
        wait_until(lambda before=before: asked[0] > before)  # type: ignore[misc] # before is a number
    wait_until(lambda: screen.read_state(tmp_path) == {"n": 2})
    assert file.written == 2
    assert stat.S_IMODE((tmp_path / "state.json").stat().st_mode) == 0o600
    state["n"] = 3
    file.close()
    thread.join(30)
    assert screen.read_state(tmp_path) == {"n": 3}, "the last word is written"


def test_many_changes_are_one_write(tmp_path: Path) -> None:
    asked: list[None] = []
    stirred = threading.Event()

    def snapshot() -> dict[str, Any]:
        asked.append(None)
        return {"n": len(asked)}

    file = StateFile(tmp_path, snapshot, stirred)
    thread = threading.Thread(target=file.loop, daemon=True)
    thread.start()
    for _ in range(10_000):
        stirred.set()
    wait_until((tmp_path / "state.json").exists)
    file.close()
    thread.join(30)
    assert file.written <= 3, "one for the first change, one for all that came during its pause, one at the end"


def test_a_disk_that_takes_no_state_keeps_nobody_from_working(small_disk: Path) -> None:
    (small_disk / "full").write_bytes(b"")
    with open(small_disk / "full", "wb") as sink:
        while True:
            try:
                sink.write(bytes(1 << 16))
                sink.flush()
            except OSError:
                break
    assert not write_state(small_disk, {"state": "x" * 100_000})


# The screen


STATE = {
    "node": "lab-01", "server": "https://kolejka.example", "state": "active", "version": "0.1",
    "image": {"id": "kolejka-node", "version": "1.4"}, "backlog": 2,
    "running": [{"task": f"t{number}", "since": "2026-01-01T12:00:00.000Z"} for number in range(20)],
    "errors": [{"at": "2026-01-01T12:00:00.000Z", "message": "delivery waits\x1b[2J reason='no server'"}],
}  # fmt: skip


def test_the_screen_shows_name_address_image_state_tasks_and_errors() -> None:
    text = "\n".join(screen.draw(STATE, running=True, at=["192.0.2.7"]))
    for words in ("lab-01", "192.0.2.7", "kolejka-node 1.4", "state     active", "20 tasks, 2 results", "t0  since",
                  "and 4 more", "delivery waits", "https://kolejka.example"):  # fmt: skip
        assert words in text
    assert "\x1b" not in text, "foreign words draw nothing"
    assert "fingerprint" not in text


def test_the_screen_of_a_machine_that_waits_says_what_an_admin_does() -> None:
    waiting = {**STATE, "fingerprint": "AAAA-BBBB", "then_run": "kolejka node approve lab-01", "running": []}
    text = "\n".join(screen.draw(waiting, running=True, at=[]))
    assert "AAAA-BBBB" in text
    assert "kolejka node approve lab-01" in text
    assert "is the network up?" in text


def test_the_screen_says_that_no_foreman_runs_and_fits_its_width() -> None:
    assert "the foreman does not run" in "\n".join(screen.draw(STATE, running=False, at=[]))
    assert max(map(len, screen.draw({**STATE, "reason": "x" * 500}, running=True, at=[], width=40))) == 40


def test_whether_a_foreman_runs_is_told_by_its_lock_without_taking_it(tmp_path: Path) -> None:
    assert not screen.is_running(tmp_path)
    holder = subprocess.Popen(
        [sys.executable, "-c", ("import sys; from pathlib import Path; from kolejka.foreman.leftovers import locked\n"
         "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"), str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    assert screen.is_running(tmp_path)
    holder.communicate(b"")
    assert not screen.is_running(tmp_path)


def test_the_screen_draws_again_only_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "addresses", lambda: ["192.0.2.7"])
    written: list[str] = []
    steps = iter([lambda: None, lambda: write_state(tmp_path, STATE), lambda: None])

    def pause(_seconds: float) -> bool:
        step = next(steps, None)
        if step is not None:
            step()
        return step is not None

    screen.show(tmp_path, written.append, pause, once=False)
    assert len(written) == 2
    assert "lab-01" in written[1]
    screen.show(tmp_path, written.append, pause, once=True)
    assert written[2].startswith("Kolejka node lab-01\n")

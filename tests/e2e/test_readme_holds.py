"""The README's commands, run in order by a newcomer who types what stands there and sees what stands there.

A fenced block ``console`` holds commands after ``$ ``, each followed by lines of a here-document and by what it prints.
It must print just that, where the README shows something. A block after ``<!-- not run by tests -->`` is left alone,
and so is one that calls make: the tests run inside of it. ``kolejka up`` runs beside the rest.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kolejka.common.files import read_json
from tests.neighbours.cluster import PROGRAMS, ROOT, free_port
from tests.neighbours.processes import Program


@dataclass(frozen=True)
class Step:
    """One command of the README, and what it shows after it."""

    command: str
    shown: str


def steps(text: str) -> Iterator[Step]:
    """All commands of a document, in order."""
    for before, block in re.findall(r"([^\n]*)\n+```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if before.strip() == "<!-- not run by tests -->":
            continue
        yield from _steps_of(block)


def _steps_of(block: str) -> Iterator[Step]:
    lines = block.splitlines()
    number = 0
    while number < len(lines):
        assert lines[number].startswith("$ "), f"not a command: {lines[number]}"
        command = [lines[number][2:]]
        number += 1
        ending = re.search(r"<<-?\s*'?(\w+)'?", command[0])
        while ending and command[-1].strip() != ending[1]:
            command.append(lines[number])
            number += 1
        while command[-1].endswith("\\"):
            command.append(lines[number].removeprefix("> "))
            number += 1
        shown = []
        while number < len(lines) and not lines[number].startswith("$ "):
            shown.append(lines[number])
            number += 1
        yield Step("\n".join(command), "\n".join(shown))


def test_the_reader_understands_documents() -> None:
    text = "x\n\n```console\n$ cat > a <<'END'\n{\nEND\n$ cat a\n{\n```\n\n"
    text += "<!-- not run by tests -->\n```console\n$ no\n```\n"
    assert list(steps(text)) == [Step("cat > a <<'END'\n{\nEND", ""), Step("cat a", "{")]


@pytest.fixture
def home() -> Iterator[Path]:
    """A newcomer's home with nothing in it."""
    folder = Path(tempfile.mkdtemp(prefix="kolejka-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.needs("root", "cgroups", "bwrap")
def test_a_newcomer_can_follow_the_readme(home: Path) -> None:
    port = free_port()
    environment = {
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}", "HOME": str(home), "TMPDIR": str(home), "LANG": "C.UTF-8",
        "KOLEJKA_TEST_SESSION": os.environ["KOLEJKA_TEST_SESSION"],
        # What a newcomer has on a machine of his own: here others have the usual places.
        "KOLEJKA_CLIENT_SERVER": f"http://127.0.0.1:{port}", "KOLEJKA_SERVER_PORT": str(port),
        "KOLEJKA_SERVER_DATA": str(home / "data/server"), "KOLEJKA_WORKER_DATA": str(home / "data/worker"),
        "KOLEJKA_OBSERVER_CGROUP": f"kolejka-test-{os.getpid()}-readme",
    }  # fmt: skip
    work = home / "work"
    work.mkdir()
    (work / ".venv").symlink_to(PROGRAMS.parent)
    system: Program | None = None
    done = 0
    try:
        for step in steps((ROOT / "README.md").read_text(encoding="utf-8")):
            if step.command.startswith("make "):
                continue
            if step.command.startswith("kolejka up"):
                words = [*step.command.split(), "--port", str(port), "--data", str(home / "data")]
                system = Program("kolejka up", [PROGRAMS / words[0], *words[1:]], home / "up.log", environment, work)
                log = system.log
                system.wait_ready(lambda log=log: str(port) in log.read_text(encoding="utf-8"), 60)
                continue
            run = subprocess.run(
                ["sh", "-c", step.command], env=environment, cwd=work, stdin=subprocess.DEVNULL, capture_output=True,
                text=True, check=False, timeout=120,
            )  # fmt: skip
            assert run.returncode == 0, f"$ {step.command}\n{run.stdout}{run.stderr}"
            if step.shown:
                assert run.stdout.strip() == step.shown.strip(), f"$ {step.command}"
            assert "Traceback" not in run.stderr
            done += 1
    finally:
        if system is not None:
            system.process.send_signal(signal.SIGTERM)
            system.stop(30)
    assert done >= 6, "the README shows a first task from its folder to its result"
    results = list(work.glob("*/kolejka_result.json"))
    assert results
    assert all(read_json(path)["outcome"] == "ok" for path in results)

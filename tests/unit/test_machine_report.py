"""What ``make test-v2`` says about its machines."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.image.node import keep_consoles
from tests.machine.boot import Machine, conclude

XML = """<?xml version="1.0"?><testsuites><testsuite name="pytest" errors="0" failures="1" skipped="1" tests="3">
<testcase classname="tests.hostile.test_x" name="test_fork"><failure message="it lives&#10;more">…</failure></testcase>
<testcase classname="tests.hostile.test_x" name="test_fine" time="1"/>
<testcase classname="tests.hostile.test_x" name="test_other" time="1"><skipped/></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    ended = subprocess.Popen(["true"], stdout=subprocess.PIPE)
    ended.wait()
    output = tmp_path / "output"
    output.mkdir()
    (output / "console.log").write_text("booting\nKernel panic - not syncing\n")
    with ended.stdout, (output / "console.log").open("rb") as log:  # type: ignore[union-attr]
        return Machine("[1]", ended, tmp_path / "report", output, log)


def write_report(machine: Machine, **files: str) -> None:
    with tarfile.open(machine.report, "w") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name.replace("_", "."))
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))


def test_failures_are_named_with_their_first_line(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(machine, junit_xml=XML, status="1\n", pytest_log="all of it\n")
    assert conclude(machine) == 1
    said = capsys.readouterr().out
    assert "[1] 3 tests, 1 failed, 1 skipped" in said
    assert "FAILED tests.hostile.test_x::test_fork it lives\n" in said


def test_a_session_that_failed_without_a_failing_test_shows_its_last_words(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    fine = XML.replace("<failure", "<system-out").replace("</failure", "</system-out")
    write_report(machine, junit_xml=fine, status="1\n", pytest_log="LEFT BEHIND by the tests\n")
    assert conclude(machine) == 1
    assert "LEFT BEHIND" in capsys.readouterr().out


@pytest.mark.parametrize("report", ["empty", "cut"])
def test_a_machine_without_a_report_shows_the_end_of_its_console(
    machine: Machine, capsys: pytest.CaptureFixture[str], report: str
) -> None:
    if report == "empty":
        machine.report.write_bytes(bytes(1 << 20))
    else:
        write_report(machine, pytest_log="half")
    assert conclude(machine) == 125
    assert "Kernel panic" in capsys.readouterr().out


def test_what_booted_nodes_said_is_kept_and_nothing_else_of_theirs(tmp_path: Path) -> None:
    place, kept = tmp_path / "place", tmp_path / "build/consoles"
    place.mkdir()
    (place / "alpha.console").write_text("Kernel panic")
    (place / "credential-kolejka.token").write_text("klj_secret")
    keep_consoles(place, kept)
    keep_consoles(place, kept)
    assert {path.name: path.read_text() for path in kept.iterdir()} == {"alpha.console": "Kernel panic"}

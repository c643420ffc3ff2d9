"""The tests' own machinery: what a machine lacks is counted, what was required fails, what is left behind is found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.xdist_group("machine")  # a session inside looks for what is left on the whole machine


@pytest.fixture
def session(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Run a test file of the test's own in a session of its own, where no gcc is to be found."""

    def run(text: str, **variables: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        (tmp_path / "test_sample.py").write_text(text, encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KOLEJKA_")}
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "tests.conftest", "--rootdir", tmp_path, "test_sample.py"],
            env={
                **environment, "PATH": "/nowhere", "PYTHONPATH": str(ROOT), "KOLEJKA_TEST_PATIENCE_S": "1", **variables
            },
            cwd=tmp_path,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


NEEDY = """
import pytest

@pytest.mark.needs("gcc")
def test_one(): raise AssertionError("should not run")

@pytest.mark.needs("gcc")
def test_two(): raise AssertionError("should not run")

def test_three(): pass
"""


def test_an_absent_need_skips_and_is_counted_by_name(session) -> None:  # type: ignore[no-untyped-def]
    run = session(NEEDY)
    assert run.returncode == 0, run.stdout
    assert "gcc: 2 skipped; apt-get install gcc libc6-dev" in run.stdout
    assert "1 passed, 2 skipped" in run.stdout


def test_an_absent_need_that_is_required_fails(session) -> None:  # type: ignore[no-untyped-def]
    run = session(NEEDY, KOLEJKA_TEST_REQUIRES="root,gcc")
    assert run.returncode == 1
    assert "needs gcc, which KOLEJKA_TEST_REQUIRES names" in run.stdout


def test_a_need_that_nobody_knows_is_an_error(session) -> None:  # type: ignore[no-untyped-def]
    run = session(NEEDY, KOLEJKA_TEST_REQUIRES="gccc")
    assert run.returncode == 4
    assert "gccc" in run.stderr
    run = session("import pytest\n\n@pytest.mark.needs('gccc')\ndef test_one(): pass\n")
    assert run.returncode != 0
    assert "gccc" in run.stdout + run.stderr


def test_a_process_left_behind_fails_the_session(session) -> None:  # type: ignore[no-untyped-def]
    run = session(
        "import subprocess\n\ndef test_one():\n    subprocess.Popen(['/bin/sleep', '13'], start_new_session=True)\n"
    )
    assert run.returncode == 1, run.stdout
    assert "LEFT BEHIND" in run.stdout
    assert "/bin/sleep 13" in run.stdout
    assert "1 passed" in run.stdout


def test_settings_of_the_person_who_tests_do_not_reach_the_tests(session) -> None:  # type: ignore[no-untyped-def]
    run = session(
        "import os\n\ndef test_one():\n    assert 'KOLEJKA_CLIENT_TOKEN' not in os.environ\n",
        KOLEJKA_CLIENT_TOKEN="klj_x",
    )
    assert run.returncode == 0, run.stdout

"""After many tasks of mixed fates nothing is left: no group, mount, process, descriptor or folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.soak.soak import soak_all

TASKS = 150


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A short folder that the payloads' users can pass."""
    folder = Path(tempfile.mkdtemp(prefix="kolejka-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.needs("root", "cgroups", "bwrap", "gcc")
def test_tasks_of_mixed_fates_leave_nothing_behind(open_folder: Path) -> None:
    report = soak_all(open_folder, TASKS, 3)
    print(report.show())
    assert report.tasks >= TASKS
    assert not report.wrong, report.show()
    assert not report.left, report.show()
    assert not report.grown, report.show()

"""The hostile programs, compiled once, and the runtimes of the conformance suite that isolate."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conformance.runtimes.conftest import execute, sessions, subject

__all__ = ["execute", "sessions", "subject"]

PROGRAMS = sorted((Path(__file__).parent / "programs").glob("*.c"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if not (item.path.parent == Path(__file__).parent and "[fake" in item.name)]


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every program, static, so that it runs in any image."""
    folder = tmp_path_factory.mktemp("programs")
    for source in PROGRAMS:
        command = ["gcc", "-O1", "-static", "-pthread", "-w", "-o", folder / source.stem, source]
        subprocess.run(command, check=True)
    return folder

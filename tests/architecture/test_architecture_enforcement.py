"""The page that says how limits are held names each limit, and says "refused" of just those that nobody holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from kolejka.common.limits import LIMITS
from kolejka.worker.perform import SESSION_ENFORCES, WORKER_ENFORCES
from kolejka.worker.runtimes.docker import Docker
from kolejka.worker.runtimes.sandbox import Sandbox

PAGE = Path(__file__).resolve().parents[2] / "docs" / "enforcement.md"
COLUMNS = ("v1", "v2", "sandbox", "docker", "meeting")


def rows() -> dict[str, dict[str, str]]:
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            found[cells[0].strip("`")] = dict(zip(COLUMNS, cells[1:], strict=True))
    return found


def test_every_limit_has_its_row_in_the_order_of_declaration() -> None:
    assert list(rows()) == list(LIMITS)


@pytest.mark.parametrize("runtime", [Sandbox, Docker])
@pytest.mark.parametrize("name", list(LIMITS))
def test_the_page_says_refused_of_just_what_nobody_holds(name: str, runtime: type[Sandbox | Docker]) -> None:
    held = name in SESSION_ENFORCES | WORKER_ENFORCES | runtime.enforces
    assert rows()[name][runtime.name].startswith("refused") is not held


@pytest.mark.parametrize("name", list(LIMITS))
def test_what_a_session_holds_says_by_which_file_on_both_versions(name: str) -> None:
    row = rows()[name]
    for version in ("v1", "v2"):
        assert (row[version] != "–") is (name in SESSION_ENFORCES)

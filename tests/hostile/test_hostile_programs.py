"""Hostile programs, each with its expected verdict in its header, on every runtime that takes strangers' programs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kolejka.common.limits import Limits
from tests.conformance.runtimes.conftest import Execute
from tests.hostile.conftest import PROGRAMS
from tests.support import SLOWNESS

pytestmark = pytest.mark.needs("gcc")


def header(source: Path) -> dict[str, str]:
    """``// key: value`` lines at the top of a program."""
    return dict(re.findall(r"^// (\w+): (.*)$", source.read_text(), re.MULTILINE))


def limits(words: dict[str, str]) -> Limits:
    """The limits of a program. One of time that is not its verdict is our patience with it."""
    asked = Limits.parse({"pids": 256, "memory": "512M", **json.loads(words["limits"])})
    if words["verdict"] != "limit time" and "time" in asked:
        return asked.replace(time=asked.values["time"] * SLOWNESS)
    return asked


@pytest.mark.parametrize("source", PROGRAMS, ids=lambda source: source.stem)
def test_a_hostile_program_gets_its_verdict(execute: Execute, compiled: Path, source: Path) -> None:
    words = header(source)
    rule = {"glob": words.get("collect"), "exclude": ["program"], "strip": int(words.get("strip", 0))}
    collect = [rule] if "collect" in words else None
    done = execute(
        ["./program"],
        local={"program": (compiled / source.stem).read_bytes()},
        files={"program": {"path": "program", "executable": True}},
        limits=limits(words).to_json(),
        collect=collect,
    )
    outcome, _, rest = words["verdict"].partition(" ")
    assert done.result.outcome == outcome, done.result
    if outcome == "limit":
        assert done.result.limit == rest
    elif rest:
        assert done.result.result == int(rest)
    for flag in words.get("flags", "").split():
        assert flag.endswith("?") or flag in done.result.flags
    assert done.result.stats.time is not None
    time_limit = done.result.limits.get("time")
    if outcome == "limit" and rest != "time" and time_limit is not None:
        assert done.result.stats.time < time_limit / 2, "it was ended by its limit, not left until its time was up"
    if "wanted" in words.get("collect", ""):
        assert "wanted" in done.result.files


def test_every_program_says_what_it_is_about_and_how_it_ends() -> None:
    for source in PROGRAMS:
        assert {"about", "verdict", "limits"} <= set(header(source)), source.name

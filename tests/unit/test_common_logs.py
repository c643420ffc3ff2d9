"""Log lines: constant message, data aside, for people and for programs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from kolejka.common import logs
from kolejka.common.settings import LogSettings


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The process's logging as it was before the test."""
    root, ours = logging.getLogger(), logging.getLogger("kolejka")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level, ours.level = before[0], before[1], before[2]


def test_a_line_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings())
    logging.getLogger("kolejka.test").info(
        "attempt %s", "started", extra={"task": "abc", "lease": 7, "why": "two words"}
    )
    line = capsys.readouterr().err
    stamp, rest = line.split(" ", 1)
    assert stamp.endswith("Z")
    assert rest == "info kolejka.test: attempt started task=abc lease=7 why='two words'\n"


def test_a_foreign_word_makes_no_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings())
    forged = "x\n2026-01-01T12:00:00.000Z\x1b[2J"
    logging.getLogger("kolejka.test").info("attempt given back", extra={"reason": forged, "path": KeyError(forged)})
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "\x1b" not in text


@pytest.mark.parametrize("form", ["text", "json"])
def test_every_line_within_says_what_it_is_about(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(format=form))
    logger = logging.getLogger("kolejka.test")
    with logs.about(task="abc", lease=7):
        logger.info("one")
        with logs.about(lease=8):
            logger.info("two", extra={"task": "other"})
    logger.info("three")
    one, two, three = capsys.readouterr().err.splitlines()
    if form == "text":
        assert [line.partition(": ")[2] for line in (one, two, three)] == [
            "one task=abc lease=7", "two task=other lease=8", "three",
        ]  # fmt: skip
    else:
        assert [[json.loads(line).get(name) for name in ("task", "lease")] for line in (one, two, three)] == [
            ["abc", 7], ["other", 8], [None, None],
        ]  # fmt: skip


def test_an_object_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(format="json"))
    logging.getLogger("kolejka.test").warning("line\nbreak", extra={"task": "abc", "path": object})
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    data = json.loads(text)
    assert data["level"] == "warning"
    assert data["logger"] == "kolejka.test"
    assert data["message"] == "line\nbreak"
    assert data["task"] == "abc"


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_traceback_follows_its_line(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(format=form))
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        logging.getLogger("kolejka.test").exception("it failed")
    assert "RuntimeError: broken" in capsys.readouterr().err


def test_the_level_holds_for_us_and_others_only_warn(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(level="debug"))
    logging.getLogger("kolejka.test").debug("seen")
    logging.getLogger("elsewhere").info("unseen")
    logging.getLogger("elsewhere").warning("heard")
    err = capsys.readouterr().err
    assert "seen" in err.replace("unseen", "")
    assert "unseen" not in err
    assert "heard" in err


def test_configuring_twice_does_not_double_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings())
    logs.configure(LogSettings())
    logging.getLogger("kolejka.test").info("once")
    assert capsys.readouterr().err.count("once") == 1

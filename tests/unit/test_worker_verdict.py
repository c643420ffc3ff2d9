"""The judgement on a run, as a table."""

from __future__ import annotations

import errno

import pytest

from kolejka.common.limits import Limits
from kolejka.common.result import Outcome
from kolejka.common.stats import CpuStats, Stats
from kolejka.worker.runtimes.base import End
from kolejka.worker.verdict import Seen, judge


def seen(status: int | None = 0, **words: object) -> Seen:
    end = words.pop("end", End(status, 1.0))
    defaults: dict[str, object] = {"stats": Stats(), "limits": Limits(), "args": ["./program"]}
    return Seen(end, **{**defaults, **words})  # type: ignore[arg-type]


def exited(code: int) -> int:
    return code << 8


@pytest.mark.parametrize(
    ("facts", "outcome", "result", "limit"),
    [
        (seen(0), "ok", 0, None),
        (seen(exited(3)), "failed", 3, None),
        (seen(exited(137)), "failed", 137, None),
        (seen(9), "signaled", 137, None),
        (seen(11 | 128), "signaled", 139, None),
        (seen(9, session_limit="memory"), "limit", 137, "memory"),
        (seen(0, session_limit="memory"), "limit", 0, "memory"),
        (seen(9, session_limit="time", cause="output"), "limit", 137, "output"),
        (seen(9, session_limit="memory", cause="time"), "limit", 137, "memory"),
        (seen(9, cause="workspace"), "limit", 137, "workspace"),
        (seen(9, ordered=Outcome.CANCELLED, session_limit="time"), "cancelled", 137, None),
        (seen(0, ordered=Outcome.CANCELLED), "cancelled", 0, None),
        (seen(exited(1), beyond="storage"), "limit", 1, "storage"),
        (seen(None), "error", None, None),
        (seen(None, session_limit="time"), "limit", None, "time"),
        (seen(end=None), "error", None, None),
        (seen(end=None, session_limit="time"), "error", None, None),
    ],
)
def test_the_first_cause_decides(facts: Seen, outcome: str, result: int | None, limit: str | None) -> None:
    verdict = judge(facts)
    assert (str(verdict.outcome), verdict.result, verdict.limit) == (outcome, result, limit)


def test_a_program_that_ended_by_itself_beyond_its_cpu_time_is_judged_by_the_limit() -> None:
    facts = seen(0, limits=Limits.of(cpu_time="1s"), stats=Stats(cpu=CpuStats(usage=1.2)))
    assert judge(facts).limit == "cpu_time"
    assert judge(facts).flags == ("finished",)
    within = seen(0, limits=Limits.of(cpu_time="1s"), stats=Stats(cpu=CpuStats(usage=0.9)))
    assert judge(within).outcome == "ok"


@pytest.mark.parametrize(
    ("error", "exists", "status", "words"),
    [
        (errno.ENOENT, False, 127, "no such program"),
        (errno.ENOENT, True, 126, "interpreter"),
        (errno.EACCES, True, 126, "permission"),
        (errno.ENOEXEC, True, 126, "neither"),
        (errno.E2BIG, True, 126, "Argument list too long"),
    ],
)
def test_a_program_that_could_not_start_failed_and_the_message_says_why(
    error: int, exists: bool, status: int, words: str
) -> None:
    verdict = judge(seen(end=End(exited(status), 1.0, error, exists)))
    assert (str(verdict.outcome), verdict.result) == ("failed", status)
    assert words in (verdict.message or "")
    assert "./program" in (verdict.message or "")


def test_a_payload_that_cannot_be_killed_is_flagged_for_the_foreman() -> None:
    assert judge(seen(end=None)).flags == ("unkillable",)

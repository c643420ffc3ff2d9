"""What becomes of a task when an attempt has ended, as tables."""

from __future__ import annotations

import pytest

from kolejka.common.result import Outcome
from kolejka.common.task import Retry
from kolejka.server.scheduling.rescue import Loss, Next, Watched, after_loss, after_result, loss

ONCE_MORE = Retry(1, ("failed", "limit"))


@pytest.mark.parametrize(
    ("heartbeat_at", "deadline_at", "expected"),
    [
        (1000.0, None, None),
        (940.0, None, None),
        (939.9, None, Loss.SILENT),
        (1000.0, 1000.0, None),
        (1000.0, 999.9, Loss.HUNG),
        (900.0, 900.0, Loss.SILENT),
    ],
)
def test_two_clocks_watch_an_attempt(heartbeat_at: float, deadline_at: float | None, expected: Loss | None) -> None:
    assert loss(Watched(heartbeat_at, deadline_at), now=1000.0, heartbeat_s=60.0) is expected


@pytest.mark.parametrize(
    ("losses", "retry", "cancelled", "expected"),
    [
        (1, Retry(), False, Next.WAIT),
        (4, Retry(), False, Next.WAIT),
        (5, Retry(), False, Next.ERROR),
        (6, Retry(), False, Next.ERROR),
        (1, Retry(3, ("error",)), False, Next.WAIT),
        (1, Retry(3, ()), False, Next.ERROR),
        (1, Retry(), True, Next.CANCELLED),
        (9, Retry(), True, Next.CANCELLED),
    ],
)
def test_a_lost_task_waits_again_until_the_cap(losses: int, retry: Retry, cancelled: bool, expected: Next) -> None:
    assert after_loss(losses=losses, cap=5, retry=retry, cancelled=cancelled) is expected


@pytest.mark.parametrize(
    ("outcome", "retries", "retry", "cancelled", "expected"),
    [
        (Outcome.OK, 0, Retry(9, ("failed",)), False, Next.DONE),
        (Outcome.FAILED, 0, Retry(), False, Next.DONE),
        (Outcome.FAILED, 0, ONCE_MORE, False, Next.WAIT),
        (Outcome.FAILED, 1, ONCE_MORE, False, Next.DONE),
        (Outcome.LIMIT, 0, ONCE_MORE, False, Next.WAIT),
        (Outcome.ERROR, 0, ONCE_MORE, False, Next.DONE),
        (Outcome.ERROR, 0, Retry(1), False, Next.WAIT),
        (Outcome.FAILED, 0, ONCE_MORE, True, Next.DONE),
        (Outcome.CANCELLED, 0, ONCE_MORE, False, Next.DONE),
    ],
)
def test_the_retry_policy_decides_after_a_result(
    outcome: Outcome, retries: int, retry: Retry, cancelled: bool, expected: Next
) -> None:
    assert after_result(outcome, retries=retries, retry=retry, cancelled=cancelled) is expected

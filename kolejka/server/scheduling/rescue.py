"""What becomes of a task when an attempt at it has ended.

Two clocks watch an attempt: a node that is silent for the heartbeat time has lost it; one that runs past its hard
deadline (time limit plus margin) is hung. Either way the attempt is lost and its lease overtaken. The task waits again,
until it has lost as many attempts as the server's cap: then it ends as ``error`` with its history. ``retry.max`` counts
further attempts after ends that a result reported and ``retry.on`` names; an empty ``retry.on`` asks never to be run
twice, and such a task ends at its first loss.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from kolejka.common.result import Outcome
from kolejka.common.task import Retry


class Next(enum.Enum):
    """Where the task goes."""

    WAIT = "wait"
    CANCELLED = "cancelled"
    ERROR = "error"
    DONE = "done"


class Loss(enum.StrEnum):
    """Why an attempt was lost."""

    SILENT = "the node fell silent"
    HUNG = "the attempt ran past its deadline"


@dataclass(frozen=True)
class Watched:
    """A running attempt as the clocks see it. Times in seconds since the epoch."""

    heartbeat_at: float
    deadline_at: float | None


def loss(attempt: Watched, *, now: float, heartbeat_s: float) -> Loss | None:
    """Whether a clock has run out on an attempt, and which."""
    if attempt.heartbeat_at < now - heartbeat_s:
        return Loss.SILENT
    if attempt.deadline_at is not None and attempt.deadline_at < now:
        return Loss.HUNG
    return None


def after_loss(*, losses: int, cap: int, retry: Retry, cancelled: bool) -> Next:
    """Where a task goes that has now lost ``losses`` attempts."""
    if cancelled:
        return Next.CANCELLED
    if losses >= cap or not retry.on:
        return Next.ERROR
    return Next.WAIT


def after_result(outcome: Outcome, *, retries: int, retry: Retry, cancelled: bool) -> Next:
    """Where a task goes whose attempt gave a result, after ``retries`` further attempts so far."""
    if not cancelled and outcome.value in retry.on and retries < retry.max:
        return Next.WAIT
    return Next.DONE

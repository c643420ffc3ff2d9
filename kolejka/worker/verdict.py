"""From what was seen to the one word that says how a task ended: pure, and tested as a table.

One reason, and the first cause wins; what happened beside it is a flag. A signal 9 that nobody of us sent and that no
out-of-memory kill explains is the program's own affair (``signaled``). A program that ended by itself beyond a limit
is judged by that limit, marked ``finished``.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from kolejka.common.limits import Limits
from kolejka.common.result import Outcome
from kolejka.common.stats import Stats
from kolejka.worker.runtimes.base import End, explain_start


@dataclass(frozen=True)
class Seen:
    """All facts about a run that is over."""

    end: End | None
    """how the payload ended; None = it could not be killed"""
    stats: Stats
    limits: Limits
    args: Sequence[str]
    ordered: Outcome | None = None
    """somebody cancelled"""
    cause: str | None = None
    """the limit for which the worker killed"""
    session_limit: str | None = None
    """the limit for which the session killed"""
    beyond: str | None = None
    """a limit on disk or output that was found exceeded after the end"""


@dataclass(frozen=True)
class Verdict:
    """The judgement on a run."""

    outcome: Outcome
    result: int | None = None
    limit: str | None = None
    message: str | None = None
    flags: tuple[str, ...] = ()


def judge(seen: Seen) -> Verdict:
    """The verdict."""
    if seen.end is None:
        return Verdict(
            Outcome.ERROR, message="the payload cannot be killed; this node needs care", flags=("unkillable",)
        )
    code = _exit_code(seen.end)
    if seen.ordered is not None:
        return Verdict(seen.ordered, code)
    # Nobody is killed for memory who is dead already, so that kill came before ours, however late we heard of it.
    limit = "memory" if seen.session_limit == "memory" else seen.cause or seen.session_limit
    if limit is not None:
        return Verdict(Outcome.LIMIT, code, limit)
    cpu_time, used = seen.limits.get("cpu_time"), seen.stats.cpu.usage
    beyond = "cpu_time" if cpu_time is not None and used is not None and used > cpu_time else seen.beyond
    if beyond is not None:
        by_itself = seen.end.status is not None and os.WIFEXITED(seen.end.status)
        return Verdict(Outcome.LIMIT, code, beyond, flags=("finished",) if by_itself else ())
    if seen.end.status is None:
        return Verdict(Outcome.ERROR, message="the payload's world vanished around it; somebody else ended it")
    if seen.end.error:
        return Verdict(Outcome.FAILED, code, message=explain_start(seen.end, seen.args))
    if os.WIFSIGNALED(seen.end.status):
        number = os.WTERMSIG(seen.end.status)
        return Verdict(Outcome.SIGNALED, code, message=f"ended by {_signal_name(number)}")
    return Verdict(Outcome.OK if code == 0 else Outcome.FAILED, code)


def _exit_code(end: End) -> int | None:
    if end.status is None:
        return None
    if os.WIFSIGNALED(end.status):
        return 128 + os.WTERMSIG(end.status)
    return os.WEXITSTATUS(end.status)


def _signal_name(number: int) -> str:
    try:
        return f"signal {number}, {signal.Signals(number).name}"
    except ValueError:  # real-time signals have no names
        return f"signal {number}"

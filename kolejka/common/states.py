"""The life of a task and of an attempt, drawn once.

::

    task:     put ──▶ WAITING ──claim──▶ RUNNING ──result──▶ DONE
                        ▲  │               │ │                ▲
                        │  └──cancel───────┼─┼────────────────┤
                        └───lost, retry────┘ └─too many lost──┘

    attempt:  claim ──▶ RUNNING ──▶ DONE  (its result was accepted)
                               └──▶ LOST  (its lease expired; whatever it still sends is refused)

Who takes a task out of a state stands beside the state, so none can be a trap.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from kolejka.common.errors import Conflict


class TaskState(enum.StrEnum):
    """Where a task is."""

    WAITING = "waiting"
    """left by a claim, or by its owner's cancel"""
    RUNNING = "running"
    """left by the attempt's result, or by the rescue when heartbeats stop or the deadline passes"""
    DONE = "done"
    """the end; a result exists. Left only by deletion"""


class AttemptState(enum.StrEnum):
    """Where an attempt is."""

    RUNNING = "running"
    """left by its result, or by the rescue"""
    DONE = "done"
    LOST = "lost"


TASK_TRANSITIONS: Final[Mapping[TaskState, frozenset[TaskState]]] = MappingProxyType(
    {
        TaskState.WAITING: frozenset({TaskState.RUNNING, TaskState.DONE}),
        TaskState.RUNNING: frozenset({TaskState.WAITING, TaskState.DONE}),
        TaskState.DONE: frozenset(),
    }
)


def check_move(state: TaskState, to: TaskState) -> None:
    """Raise Conflict unless a task may go from ``state`` to ``to``."""
    if to not in TASK_TRANSITIONS[state]:
        raise Conflict(f"a task that is {state} cannot become {to}")

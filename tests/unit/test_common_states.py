"""The life of a task: every move of the drawing, and no other."""

from __future__ import annotations

import itertools

import pytest

from kolejka.common.errors import Conflict
from kolejka.common.states import TASK_TRANSITIONS, TaskState, check_move

ALLOWED = {
    (TaskState.WAITING, TaskState.RUNNING),
    (TaskState.WAITING, TaskState.DONE),
    (TaskState.RUNNING, TaskState.WAITING),
    (TaskState.RUNNING, TaskState.DONE),
}


@pytest.mark.parametrize(("state", "to"), list(itertools.product(TaskState, TaskState)))
def test_only_the_drawn_moves_are_allowed(state: TaskState, to: TaskState) -> None:
    if (state, to) in ALLOWED:
        check_move(state, to)
    else:
        with pytest.raises(Conflict, match=f"a task that is {state} cannot become {to}"):
            check_move(state, to)


def test_every_state_is_in_the_table_and_done_is_the_only_end() -> None:
    assert set(TASK_TRANSITIONS) == set(TaskState)
    assert [state for state, moves in TASK_TRANSITIONS.items() if not moves] == [TaskState.DONE]

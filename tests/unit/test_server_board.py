"""The board of waiting classes against the plain truth, under every order of words."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kolejka.server.scheduling.board import Board, Class

A, B, C = (Class("default", signature, 0, 1) for signature in (1, 2, 3))


def shown(board: Board, kind: object = "all", possible: frozenset[Class] = frozenset({A, B, C})) -> list[Class]:
    return [entry.name for line in board.lines(kind, possible.__contains__).values() for entry in line]


def test_classes_stand_in_order_and_impossible_ones_do_not_come_up() -> None:
    board = Board()
    board.add([(B, 5), (A, 7), (C, 1)])
    assert shown(board) == [C, B, A]
    assert shown(board, "some", frozenset({A, B})) == [B, A]
    board.add([(A, 2)])
    assert shown(board, "some", frozenset({A, B})) == [A, B], "an older one waits again"


def test_impossible_classes_are_asked_about_once() -> None:
    board, asked = Board(), []

    def possible(name: Class) -> bool:
        asked.append(name)
        return False

    board.add((Class("default", signature, 0, 1), signature) for signature in range(1000))
    board.lines("node", possible)
    for _ in range(10):
        assert board.lines("node", possible) == {}
    assert len(asked) == 1000


def test_a_class_that_was_found_empty_is_struck_out_unless_word_came_meanwhile() -> None:
    board = Board()
    board.add([(A, 1)])
    since = board.serial
    board.add([(A, 9)])
    board.looked(A, None, since)
    assert shown(board) == [A], "somebody put a task after the look began"
    board.looked(A, None, board.serial)
    assert shown(board) == []
    board.add([(A, 10)])
    assert shown(board) == [A]


def test_what_was_heard_since_a_look_began_bounds_what_it_found() -> None:
    board = Board()

    def first() -> dict[Class, int]:
        return {entry.name: entry.first for line in board.lines("all", lambda _: True).values() for entry in line}

    board.add([(A, 1)])
    since = board.serial
    board.add([(A, 30), (A, 20)])
    board.looked(A, 17, since)
    assert first() == {A: 17}, "those are behind"
    board.looked(A, 25, since)
    assert first() == {A: 20}, "what the look has not seen"
    board.looked(A, None, since)
    assert first() == {A: 20}
    since = board.serial
    board.add((A, 100 - number) for number in range(99))
    board.looked(A, 200, since)
    assert first() == {A: 2}, "the lowest of many"
    board.looked(A, 200, board.serial)
    assert first() == {A: 200}


def test_lines_that_were_given_out_do_not_change() -> None:
    board = Board()
    board.add([(A, 1)])
    lines = board.lines("all", lambda _: True)
    board.add([(B, 2)])
    board.lines("all", lambda _: True)
    assert [entry.name for entry in lines[1, "default"]] == [A]


NAMES = st.builds(Class, st.sampled_from(["a", "b"]), st.integers(1, 5), st.integers(-1, 1), st.integers(1, 3))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["add", "empty", "raise", "look"]), NAMES, st.integers(1, 99)), max_size=60))
def test_every_view_shows_what_waits(steps: list[tuple[str, Class, int]]) -> None:
    board, truth = Board(), {}
    kinds = {"all": lambda _name: True, "odd": lambda name: name.signature % 2 == 1}
    for step, name, number in steps:
        if step == "add":
            board.add([(name, number)])
            truth[name] = min(number, truth.get(name, number))
        elif step == "empty":
            board.looked(name, None, board.serial)
            truth.pop(name, None)
        elif step == "raise" and name in truth:
            truth[name] += number
            board.looked(name, truth[name], board.serial)
        for kind, possible in kinds.items():
            if step == "look" or (kind == "all" and number % 3):
                lines = board.lines(kind, possible)
                found = {entry.name: entry.first for line in lines.values() for entry in line}
                assert found == {name: first for name, first in truth.items() if possible(name)}
                assert all(line == sorted(line) for line in lines.values())
                assert all((n.owner, n.queue) == place for place, line in lines.items() for _, _, n in line)

"""A lock for which nobody waits who may not."""

from __future__ import annotations

import threading

from kolejka.observer.turns import Turns


def test_work_is_done_at_once_where_nobody_holds_the_lock():
    done = []
    Turns().do_or_leave(lambda: done.append("now"))
    assert done == ["now"]


def elsewhere(work):
    """Do something in another thread, to its end."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def test_work_that_meets_a_holder_is_done_at_the_end_of_the_outermost_turn_in_order():
    turns, done = Turns(), []
    with turns:
        with turns:
            elsewhere(lambda: turns.do_or_leave(lambda: done.append(1)))
            elsewhere(lambda: turns.do_or_leave(lambda: done.append(2)))
        assert done == []
    assert done == [1, 2]


def test_work_may_leave_more_work():
    turns, done = Turns(), []
    with turns:
        elsewhere(lambda: turns.do_or_leave(lambda: turns.do_or_leave(lambda: done.append("inner"))))
    assert done == ["inner"]


def test_work_that_fails_is_logged_and_holds_nobody_up(caplog):
    turns, done = Turns(), []
    with turns:
        elsewhere(lambda: turns.do_or_leave(lambda: 1 / 0))
        elsewhere(lambda: turns.do_or_leave(lambda: done.append("next")))
    assert done == ["next"]
    assert "event handler failed" in caplog.text
    with turns:
        done.append("free")
    assert done == ["next", "free"]


def test_everything_left_by_many_is_done_exactly_once():
    turns, done = Turns(), []

    def leave(name):
        for number in range(500):
            turns.do_or_leave(lambda number=number: done.append((name, number)))

    threads = [threading.Thread(target=leave, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(500):
        with turns:
            done.append(("turn", 0))
    for thread in threads:
        thread.join()
    assert len(done) == 4 * 500 + 500
    for name in range(4):
        assert [entry for entry in done if entry[0] == name] == [(name, number) for number in range(500)]

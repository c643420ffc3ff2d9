"""The one thread that waits for everything."""

from __future__ import annotations

import os
import select
import threading
import time

import pytest

from kolejka.observer.events import Loop
from tests.support import wait_until


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.stop()


def test_timers_fire_in_their_order(loop):
    seen = []
    now = time.monotonic()
    loop.at(now + 0.04, lambda: seen.append("late"))
    loop.at(now + 0.02, lambda: seen.append("early"))
    loop.at(now - 1, lambda: seen.append("overdue"))
    wait_until(lambda: len(seen) == 3)
    assert seen == ["overdue", "early", "late"]


def test_a_cancelled_timer_does_not_fire(loop):
    seen = []
    now = time.monotonic()
    timer = loop.at(now + 0.01, lambda: seen.append("cancelled"))
    loop.at(now + 0.02, lambda: seen.append("kept"))
    timer.cancel()
    timer.cancel()
    wait_until(lambda: seen)
    assert seen == ["kept"]


def test_many_cancelled_timers_take_no_room(loop):
    keep = [loop.at(time.monotonic() + 1000, lambda: None) for _ in range(10)]
    for _ in range(1000):
        loop.at(time.monotonic() + 2000, lambda: None).cancel()
    assert len(loop._timers) < 200
    assert all(timer.callback is not None for timer in keep)


def test_a_watched_descriptor_calls_back_until_it_is_unwatched(loop):
    bell = os.eventfd(0, os.EFD_NONBLOCK)
    rung = []
    loop.watch(bell, select.EPOLLIN, lambda: rung.append(os.eventfd_read(bell)))
    os.eventfd_write(bell, 1)
    wait_until(lambda: len(rung) == 1)
    loop.unwatch(bell)
    loop.unwatch(bell)
    os.eventfd_write(bell, 1)
    done = threading.Event()
    loop.at(time.monotonic() + 0.02, done.set)
    assert done.wait(10)
    assert len(rung) == 1
    os.close(bell)


def test_one_failing_callback_ends_nothing(loop, caplog):
    done = threading.Event()
    loop.at(0, lambda: 1 / 0)
    loop.at(time.monotonic() + 0.01, done.set)
    assert done.wait(10)
    assert "event handler failed" in caplog.text


def test_stopping_twice_and_before_the_start_is_fine():
    loop = Loop()
    loop.stop()
    loop.stop()
    busy = Loop()
    busy.at(time.monotonic() + 1000, lambda: None)
    busy.stop()
    busy.stop()

"""One thread that waits for everything: files of the kernel, dying processes, points in time.

Callbacks run in that thread and must not wait for anything; what takes long goes to ``aside``, a few helper threads.
Times are seconds of the monotonic clock.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import select
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

logger = logging.getLogger("kolejka.observer")

Callback = Callable[[], object]
_HELPERS: Final = 8


class Timer:
    """One point in time; ``cancel`` it when it no longer matters."""

    __slots__ = ("_loop", "callback", "when")

    def __init__(self, loop: Loop, when: float, callback: Callback) -> None:
        self._loop = loop
        self.when = when
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """Forget it. Safe at any time, from any thread."""
        if self.callback is not None:
            self.callback = None
            self._loop.note_cancelled()


class Loop:
    """The thread. It starts with the first thing to wait for, and ends with ``stop``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._epoll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._bell, select.EPOLLIN)
        self._watched: dict[int, Callback] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._cancelled = 0
        self._thread: threading.Thread | None = None
        self._helpers: ThreadPoolExecutor | None = None
        self._stopping = False
        self._sleeps_until = float("inf")

    def watch(self, descriptor: int, mask: int, callback: Callback) -> None:
        """Call back once for each time that ``descriptor`` begins to poll with ``mask``, until ``unwatch``."""
        with self._lock:
            self._watched[descriptor] = callback
            self._epoll.register(descriptor, mask | select.EPOLLET)
            self._ensure_running()

    def unwatch(self, descriptor: int) -> None:
        """Stop watching. Called before the descriptor is closed; safe when it was not watched."""
        with self._lock:
            if self._watched.pop(descriptor, None) is not None and not self._stopping:
                self._epoll.unregister(descriptor)

    def at(self, when: float, callback: Callback) -> Timer:
        """Call back at ``when``, or as soon as can be when that has passed."""
        timer = Timer(self, when, callback)
        with self._lock:
            heapq.heappush(self._timers, (when, next(self._numbers), timer))
            self._ensure_running()
            if when < self._sleeps_until and threading.current_thread() is not self._thread:
                os.eventfd_write(self._bell, 1)
        return timer

    def aside(self, work: Callback) -> None:
        """Do something that may take a while in a helper thread. What it raises is logged."""
        with self._lock:
            if self._stopping:
                return
            if self._helpers is None:
                self._helpers = ThreadPoolExecutor(_HELPERS, thread_name_prefix="observer-helper")
            self._helpers.submit(_logged, work)

    def note_cancelled(self) -> None:
        """A timer was cancelled; when most are, the heap is built anew."""
        with self._lock:
            self._cancelled += 1
            if self._cancelled > 64 and self._cancelled * 2 > len(self._timers):
                self._timers = [entry for entry in self._timers if entry[2].callback is not None]
                heapq.heapify(self._timers)
                self._cancelled = 0

    def stop(self) -> None:
        """End the thread and the helpers. Safe twice."""
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
            os.eventfd_write(self._bell, 1)
            thread, helpers = self._thread, self._helpers
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        if helpers is not None:
            helpers.shutdown(wait=True)
        self._epoll.close()
        os.close(self._bell)

    def _ensure_running(self) -> None:
        if self._thread is None and not self._stopping:
            self._thread = threading.Thread(target=self._run, name="observer-events", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._stopping:
            due = self._take_due()
            for callback in due:
                _logged(callback)
            if due:
                continue
            with self._lock:
                self._sleeps_until = self._timers[0][0] if self._timers else float("inf")
                pause = None if not self._timers else max(0.0, self._sleeps_until - time.monotonic())
            events = self._epoll.poll(pause)
            with self._lock:
                self._sleeps_until = float("-inf")  # awake: nobody needs to ring
            for descriptor, _ in events:
                if descriptor == self._bell:
                    with suppress(BlockingIOError):  # rung once for several
                        os.eventfd_read(self._bell)
                    continue
                if (watcher := self._watched.get(descriptor)) is not None:
                    _logged(watcher)

    def _take_due(self) -> list[Callback]:
        now, due = time.monotonic(), []
        with self._lock:
            while self._timers and self._timers[0][0] <= now:
                timer = heapq.heappop(self._timers)[2]
                if timer.callback is None:
                    self._cancelled -= 1
                else:
                    due.append(timer.callback)
                    timer.callback = None
        return due


def _logged(work: Callback) -> None:
    try:
        work()
    except Exception:
        logger.exception("event handler failed")

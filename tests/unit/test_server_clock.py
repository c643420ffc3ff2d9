"""The clock that servers share, with ticks that the test gives."""

from __future__ import annotations

from dataclasses import dataclass

from kolejka.server.scheduling.clock import SharedClock


@dataclass
class Table:
    """What stands in the database."""

    steady: float = 100.0

    def look(self, *clocks: SharedClock) -> None:
        for clock in clocks:
            at, now = clock.tick(), clock.now()
            self.steady = max(self.steady, now)
            clock.looked(self.steady, at)


class Tick:
    """A monotonic clock."""

    def __init__(self, at: float) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


def test_a_server_that_starts_goes_on_where_the_others_are() -> None:
    table, tick = Table(), Tick(5_000)
    clock = SharedClock(tick, most_s=11)
    assert (clock.now(), clock.lost()) == (0, 0)
    table.look(clock)
    tick.at += 4
    assert clock.now() == 104
    table.look(clock)
    assert table.steady == 104


def test_time_in_which_no_server_looks_does_not_count() -> None:
    table, tick = Table(), Tick(0)
    clock = SharedClock(tick, most_s=11)
    table.look(clock)
    tick.at += 3600
    assert (clock.now(), clock.lost()) == (111, 3589)
    table.look(clock)
    assert table.steady == 111
    tick.at += 5
    assert (clock.now(), clock.lost()) == (116, 0)


def test_a_server_that_fell_behind_catches_up_and_holds_nobody_back() -> None:
    table, fast, slow = Table(), Tick(0), Tick(70)
    going, slept = SharedClock(fast, most_s=11), SharedClock(slow, most_s=11)
    table.look(going, slept)
    for _ in range(20):
        fast.at += 5
        table.look(going)
    slow.at += 1  # its machine slept
    assert slept.now() == 101
    table.look(slept)
    assert slept.now() == going.now() == 200


def test_a_clock_never_goes_back() -> None:
    tick = Tick(50)
    clock = SharedClock(tick, most_s=11)
    clock.looked(100, 50)
    tick.at = 40
    assert clock.now() == 100

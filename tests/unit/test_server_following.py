"""How far events are settled, where several transactions write at once."""

from __future__ import annotations

import pytest

from kolejka.server.following import PATIENCE_S, settle
from kolejka.server.rates import Rates


@pytest.mark.parametrize(
    ("horizon", "ids", "settled"),
    [(0, [], 0), (0, [1, 2, 3], 3), (5, [6, 7], 7), (0, [2, 3], 0), (3, [4, 6, 7], 4), (3, [5], 3)],
)
def test_a_fresh_gap_stops_the_horizon(horizon: int, ids: list[int], settled: int) -> None:
    assert settle(horizon, ids, {}, 100.0)[0] == settled


def test_what_was_late_is_told_in_its_place() -> None:
    horizon, noticed = settle(0, [1, 3], {}, 100.0)
    assert (horizon, noticed) == (1, {2: 100.0})
    assert settle(horizon, [2, 3], noticed, 101.0) == (3, {})


def test_a_number_that_nobody_uses_is_passed_over_in_the_end() -> None:
    horizon, noticed = settle(0, [1, 3, 5], {}, 100.0)
    assert horizon == 1
    horizon, noticed = settle(horizon, [3, 5, 8], noticed, 100.0 + PATIENCE_S)
    assert horizon == 5, "both gaps are old; the one before 8 is not"
    assert noticed == {6: 100.0 + PATIENCE_S}
    assert settle(horizon, [8], noticed, 100.0 + 2 * PATIENCE_S)[0] == 8


def test_a_bucket_fills_steadily_and_holds_ten_quiet_seconds() -> None:
    now = [0.0]
    rates = Rates(2, lambda: now[0])
    assert [rates.wait_s(1) for _ in range(21)] == [0.0] * 20 + [0.5]
    assert rates.wait_s(2) == 0.0, "another user's is another"
    now[0] = 0.5
    assert rates.wait_s(1) == 0.0
    assert rates.wait_s(1) > 0
    now[0] = 1000.0
    assert [rates.wait_s(1) for _ in range(21)][19:] == [0.0, 0.5], "it holds no more"
    assert Rates(0, lambda: 0.0).wait_s(1) == 0.0

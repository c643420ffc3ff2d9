"""The arithmetic of the report on accuracy: differences, medians, targets, the neighbour's influence."""

from __future__ import annotations

import pytest

from tests.bench.accuracy.figures import Line, Target, show_target, table


@pytest.mark.parametrize(
    ("target", "truth", "figure", "met"),
    [
        (Target.within(0.001), 0.5, 0.5009, True),
        (Target.within(0.001), 0.5, 0.5011, False),
        (Target.within(0.001), 0.5, 0.4989, False),
        (Target.within(0, 0.01), 1.0, 1.0099, True),
        (Target.within(0, 0.01), 1.0, 0.98, False),
        (Target(512, 0, 0.01), 100_000, 101_512, True),
        (Target(512, 0, 0.01), 100_000, 101_513, False),
        (Target(512, 0, 0.01), 100_000, 98_999, False),
        (Target(0.02, 0), 0.5, 0.4999, False),
        (Target(64, 0, 0.01), 32 << 20, 0, False),
    ],
)
def test_a_target_is_met_up_to_its_bounds(target: Target, truth: float, figure: float, met: bool) -> None:
    assert target.met(truth, figure) is met


def test_a_line_tells_the_median_round_and_the_worst_one() -> None:
    line = Line("x", "s", [(1.0, 1.1), (2.0, 2.0), (1.0, 0.7), (5.0, 5.05), (1.0, 1.01)], Target.within(0.02))
    assert line.middle == (1.0, 1.01)
    assert line.difference == pytest.approx(0.01)
    assert line.worst == pytest.approx(-0.3)
    assert line.met is True


def test_the_neighbour_is_judged_by_medians_of_figures() -> None:
    quiet, noisy = [(1.0, 1.0), (1.0, 9.0), (1.0, 1.0)], [(1.0, 1.05), (1.0, 1.05), (1.0, 1.0)]
    line = Line("x", "s", quiet, noisy=noisy, change_target=0.02)
    assert line.change == pytest.approx(0.05)
    assert line.change_met is False
    assert Line("x", "s", quiet, noisy=noisy, change_target=0.06).change_met is True
    assert Line("x", "s", quiet).change is None
    assert Line("x", "s", quiet).change_met is None


def test_a_figure_that_is_always_zero_is_not_divided_by() -> None:
    assert Line("x", "bytes", [(1, 0)], noisy=[(1, 0)]).change == 0
    assert Line("x", "bytes", [(1, 0)], noisy=[(1, 7)], change_target=0.02).change_met is False


def test_the_table_names_what_is_missed() -> None:
    text = table([
        Line("good", "s", [(1.0, 1.001)], Target.within(0, 0.01), [(1.0, 1.1)], 0.02),
        Line("bad", "bytes", [(1024, 4096)], Target(1024, 0)),
    ])  # fmt: skip
    good, bad = (" ".join(line.split()) for line in text.splitlines()[1:])
    assert good == "good 1000.000 ms 1001.000 ms +1.000 ms +1.000 ms ± 1% met +9.89% MISSED"
    assert bad == "bad 1 KiB 4 KiB +3 KiB +3 KiB ≤ +1 KiB MISSED - -"
    assert show_target(Line("x", "s", [])) == "-"


def test_everything_is_in_the_json() -> None:
    data = Line("x", "s", [(1.0, 1.5)], Target(0.1, 0.2, 0.3)).to_json()
    assert data["difference"] == 0.5
    assert data["target"] == {"above": 0.1, "below": 0.2, "share": 0.3}
    assert data["met"] is False
    assert data["pairs"] == [[1.0, 1.5]]

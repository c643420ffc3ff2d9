"""Stats: figures that are there are told, figures that are not are absent."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolejka.common.stats import CpuStats, IoStats, MemoryStats, PidsStats, PressureStats, Stats


def groups(kind: type, numbers: st.SearchStrategy[float]) -> st.SearchStrategy[object]:
    """Any group of figures, some absent."""
    return st.builds(kind, **{f.name: st.none() | numbers for f in dataclasses.fields(kind)})


WHOLE = st.integers(0, 1 << 50)
SECONDS = st.floats(0, 1e9)
STATS = st.builds(
    Stats, time=st.none() | SECONDS, cpu=groups(CpuStats, SECONDS), memory=groups(MemoryStats, WHOLE),
    pids=groups(PidsStats, WHOLE), io=groups(IoStats, WHOLE), pressure=groups(PressureStats, SECONDS),
)  # fmt: skip


@given(STATS)
def test_stats_survive_json(stats: Stats) -> None:
    assert Stats.parse(stats.to_json()) == stats


def test_absent_figures_have_no_key_and_zero_has_one() -> None:
    stats = Stats(time=0.0, cpu=CpuStats(usage=0.0), memory=MemoryStats(oom_kills=0))
    assert stats.to_json() == {"time": 0.0, "cpu": {"usage": 0.0}, "memory": {"oom_kills": 0}}
    assert Stats().to_json() == {}


def test_figures_of_a_newer_node_are_dropped_not_refused() -> None:
    stats = Stats.parse({"time": 1.0, "energy": {"joules": 3}, "cpu": {"usage": 1.0, "stolen": 0.5}})
    assert stats == Stats(time=1.0, cpu=CpuStats(usage=1.0))


def test_null_is_an_absent_figure() -> None:
    assert Stats.parse({"time": None, "memory": {"max_usage": None}, "pids": None}) == Stats()


def test_stats_do_not_change() -> None:
    stats = Stats(time=1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.time = 2.0  # type: ignore[misc]
    assert stats.replace(time=2.0).time == 2.0
    assert stats.time == 1.0

"""What the processes of one server count together."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import values

from kolejka.server.counts import Counts
from kolejka.server.metrics import Metrics


@pytest.fixture(autouse=True)
def _values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)


def read(metrics: Metrics) -> dict[str, float]:
    lines = metrics.text([("q", "waiting", 3)], []).decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_whoever_is_asked_tells_of_all_and_who_comes_after_one_that_died_counts_on() -> None:
    tables = Counts.make(2)
    one, two = Metrics(Counts(tables, 0)), Metrics(Counts(tables, 1))
    for metrics, count in ((one, 1), (two, 2)):
        metrics.put.inc(count)
        metrics.results.labels("ok").inc(count)
        metrics.wait_s.observe(0.02 * count)
        metrics.claims.inc(count)
    assert read(one) == read(two)
    told = read(one)
    assert told["kolejka_tasks_put_total"] == told['kolejka_results_total{outcome="ok"}'] == 3
    assert told["kolejka_task_wait_seconds_count"] == told['kolejka_task_wait_seconds_bucket{le="+Inf"}'] == 2
    assert [told[f'kolejka_task_wait_seconds_bucket{{le="{step}"}}'] for step in ("0.01", "0.03", "0.1")] == [0, 1, 2]
    assert told["kolejka_task_wait_seconds_sum"] == pytest.approx(0.06)
    assert (told["kolejka_claims_waiting"], told['kolejka_tasks{queue="q",state="waiting"}']) == (3, 3)
    successor = Metrics(Counts(tables, 1))
    successor.put.inc()
    assert read(one)["kolejka_tasks_put_total"] == 4
    assert read(one)["kolejka_claims_waiting"] == 1, "the claims of the one that died wait no more"


def test_every_metric_is_in_the_manual() -> None:
    page = Path(__file__).parents[2].joinpath("docs/production.md").read_text(encoding="utf-8")
    lines = Metrics().text([], []).decode().splitlines()
    names = {line.split()[2] for line in lines if line.startswith("# HELP") and "_created" not in line}
    assert len(names) > 10
    assert {name for name in names if name not in page} == set()


def test_what_is_counted_alone_and_together_is_told_alike() -> None:
    def kinds(metrics: Metrics) -> list[str]:
        metrics.requests.labels("GET", "/", "200").inc()
        metrics.lost.labels("silent").inc()
        text = metrics.text([], []).decode().splitlines()
        return sorted(line for line in text if line.startswith("#") and "_created" not in line)

    alone = kinds(Metrics())
    assert kinds(Metrics(Counts(Counts.make(1), 0))) == alone

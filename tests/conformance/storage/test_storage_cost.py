"""What a claim costs does not depend on how much waits. Counted in steps of the database, not in time."""

from __future__ import annotations

import cysqlite
import pytest

from kolejka.server.auth.tokens import Caller
from kolejka.server.storage.sqlite import SqliteConnection
from tests.conformance.storage.conftest import Cluster

pytestmark = pytest.mark.parametrize("make_store", ["sqlite"], indirect=True)  # only this engine counts its steps


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """SQLite's virtual machine reports every tenth of its steps here."""
    seen: list[str] = []
    rows = SqliteConnection.rows

    def counted(self: SqliteConnection, sql: str, *values: object) -> list[tuple[object, ...]]:
        raw: cysqlite.Connection = self._raw
        raw.progress(lambda: seen.append(sql) or 0, 10)  # type: ignore[func-returns-value]
        try:
            return rows(self, sql, *values)
        finally:
            raw.progress(None)

    monkeypatch.setattr(SqliteConnection, "rows", counted)
    return seen


def test_a_claim_takes_as_many_steps_with_twenty_thousand_waiting_as_with_two_hundred(
    cluster: Cluster, ala: Caller, smith: Caller, steps: list[str]
) -> None:
    ola = cluster.user("ola")
    counts = []
    for more in (200, 20_000):
        for caller in (ala, ola):
            cluster.put(caller, count=more)
            cluster.put(caller, count=more, requires=["gpu"], priority=3)
        steps.clear()
        given = cluster.claim(smith, slots=16).given
        counts.append(len(steps))
        assert len(given) == 16
        for one in given:
            cluster.finish(smith, one.lease)
    assert counts[1] <= counts[0] * 1.2, counts


def test_ten_thousand_kinds_of_impossible_tasks_cost_a_claim_nothing(
    cluster: Cluster, ala: Caller, smith: Caller, steps: list[str]
) -> None:
    counts = []
    for kinds in (0, 10_000):
        cluster.put_kinds(ala, [{"requires": [f"tag{kind}"], "priority": 9} for kind in range(kinds)])
        cluster.claim(smith, slots=1)  # the node's kind gets to know them, once
        cluster.put(ala, count=2)
        steps.clear()
        given = cluster.claim(smith, slots=2).given
        counts.append(len(steps))
        assert len(given) == 2
        for one in given:
            cluster.finish(smith, one.lease)
    assert counts[1] <= counts[0] * 1.2, counts


def test_a_thousand_kinds_of_possible_tasks_cost_a_claim_no_more_than_ten(
    cluster: Cluster, ala: Caller, smith: Caller, steps: list[str]
) -> None:
    counts = []
    for kinds in (10, 1000):
        cluster.put_kinds(ala, [{"limits": {"memory": 4096 * (kinds + kind)}} for kind in range(kinds)])
        steps.clear()
        given = cluster.claim(smith, slots=4).given
        counts.append(len(steps))
        assert len(given) == 4
        for one in given:
            cluster.finish(smith, one.lease)
    assert counts[1] <= counts[0] * 1.2, counts

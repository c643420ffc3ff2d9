"""The life of a node that asked to be let in, from its first start on."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from kolejka.common.result import Outcome
from tests.neighbours.cluster import Cluster
from tests.support import wait_until

pytestmark = pytest.mark.needs("root", "cgroups", "bwrap")


def kolejka(cluster: Cluster, *words: str, status: int = 0) -> str:
    """What a command of the admin prints."""
    token = (cluster.folder / "server/admin.token").read_text().strip()
    done = cluster.run("kolejka", *words, env={"KOLEJKA_CLIENT_TOKEN": token})
    assert done.returncode == status, done.stderr
    return done.stdout


def listed(cluster: Cluster) -> list[dict[str, Any]]:
    """The rows of the node list."""
    rows: list[dict[str, Any]] = json.loads(kolejka(cluster, "node", "list", "--json"))
    return rows


def test_the_life_of_a_node_that_asked_to_be_let_in(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(KOLEJKA_FOREMAN_ENROL="true", KOLEJKA_FOREMAN_SLOTS="1")
    cluster.start_server()
    cluster.start_observer()
    foreman = cluster.start_foreman_without_token()
    try:
        # it asks, and is shown to the admin as it shows itself
        (row,) = wait_until(lambda: listed(cluster))
        assert (row["name"], row["state"]) == ("tests", "unapproved")
        assert f"fingerprint={row['fingerprint']}" in foreman.log.read_text()
        assert row["remark"].endswith("kolejka node approve tests")
        # an admin lets it in, and it works
        kolejka(cluster, "node", "approve", "tests", "--fingerprint", row["fingerprint"])
        wait_until(lambda: [one["state"] for one in listed(cluster)] == ["active"], 60)
        task = str(cluster.admin.put_spec({"args": ["true"]})["id"])
        assert cluster.admin.wait(task, 60).outcome is Outcome.OK
        cluster.check_quiet()
    finally:
        cluster.stop()

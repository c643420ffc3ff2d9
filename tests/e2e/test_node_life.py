"""A node and its admin: cancels that reach a full node, draining, a second foreman, and what the logs say."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from kolejka.common.result import Outcome
from tests.neighbours.cluster import Cluster
from tests.support import wait_until

pytestmark = pytest.mark.needs("root", "cgroups", "bwrap")


def put(cluster: Cluster, **words: object) -> str:
    """Put a small task; its id."""
    return str(cluster.admin.put_spec({"args": ["true"], **words})["id"])


def state(cluster: Cluster, task: str) -> str:
    """The task's state now."""
    return str(cluster.admin.task(task)["state"])


def test_the_life_of_a_node(make_cluster: Callable[..., Cluster]) -> None:
    """One cluster for all of it. Heartbeats are minutes apart, so nothing here can have come by one."""
    cluster = make_cluster(KOLEJKA_SERVER_HEARTBEAT="30min", KOLEJKA_FOREMAN_SLOTS="1")
    cluster.start()
    try:
        # a cancel reaches a node that has nothing free
        task = put(cluster, args=["sleep", "300"], limits={"time": "10min"})
        wait_until(lambda: state(cluster, task) == "running")
        assert cluster.run("kolejka-client", "task", "cancel", task).returncode == 0
        assert cluster.admin.wait(task, 60).outcome is Outcome.CANCELLED
        seen = []
        for event in cluster.admin.events(after=0, task=task):
            seen.append(event["event"])
            if event["event"] == "done":
                break
        assert seen == ["waiting", "running", "cancelling", "done"]
        beats = cluster.programs["server"].log.read_text().count("attempt lost")
        assert beats == 0

        # a second foreman of the same name is told so, and goes
        second = cluster.run(
            "kolejka-foreman", "--data", str(cluster.folder / "second"),
            env={"KOLEJKA_CLIENT_TOKEN_FILE": str(cluster.folder / "node.token")},
        )  # fmt: skip
        assert second.returncode == 2
        assert "another foreman uses the node name 'tests'" in second.stderr
        assert "Traceback" not in second.stderr

        # a drained node takes nothing and keeps its foreman
        assert cluster.run("kolejka", "node", "drain", "tests", env=admin(cluster)).returncode == 0
        wait_until(lambda: "node takes no more tasks" in cluster.programs["foreman"].log.read_text())
        waiting = put(cluster)
        assert state(cluster, waiting) == "waiting"
        assert "draining" in str(cluster.admin.why(waiting)["why"])
        cluster.check_alive()

        # every line of a task's life names it and its lease
        for name in ("server", "foreman"):
            for line in cluster.programs[name].log.read_text().splitlines():
                life = (
                    r": (task (given|put|cancelled)|attempt|result (accepted|delivered|found))|kolejka.worker.perform:"
                )
                if re.search(life, line):
                    assert f"task={task}" in line or f"task={waiting}" in line, line
                    assert "lease=" in line or "task put" in line, line
        cluster.check_quiet()
    finally:
        cluster.stop()


def admin(cluster: Cluster) -> dict[str, str]:
    """The environment of the admin."""
    return {"KOLEJKA_CLIENT_TOKEN": (cluster.folder / "server/admin.token").read_text().strip()}

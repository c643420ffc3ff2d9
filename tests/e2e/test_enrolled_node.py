"""The life of a node that asked to be let in, from its first start on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kolejka import __version__
from kolejka.common.limits import LIMITS
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
    cluster = make_cluster(
        KOLEJKA_FOREMAN_ENROL="true",
        KOLEJKA_FOREMAN_SLOTS="1",
        KOLEJKA_SERVER_HEARTBEAT="6s",
        KOLEJKA_FOREMAN_PROVE="true",
    )
    rebooted = cluster.folder / "rebooted"
    cluster.environment["KOLEJKA_FOREMAN_REBOOT_COMMAND"] = f"touch {rebooted}"
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

        # it says what it is
        node = json.loads(kolejka(cluster, "node", "show", "tests", "--json"))
        assert node["boot"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        assert node["version"] == __version__
        # it proved its limits before it took the task
        assert node["proof"]["passed"], node["proof"]
        assert {check["limit"] for check in node["proof"]["checks"] if check["held"]} == set(LIMITS) - {"gpu_memory"}
        # its log is brought by its own answers, at once
        lines = json.loads(kolejka(cluster, "node", "log", "tests", "-n", "500", "--json"))["lines"]
        assert any("node was let in" in line for line in lines)
        assert any(f"payload ended task={task}" in line for line in lines)
        assert len(kolejka(cluster, "node", "log", "tests", "-n", "3").splitlines()) == 3
        # its screen says the same
        screen = cluster.run("kolejka-foreman", "screen", "--once")
        assert screen.returncode == 0, screen.stderr
        assert "state     active" in screen.stdout
        shown = json.loads(cluster.run("kolejka-foreman", "screen", "--json").stdout)
        assert (shown["alive"], shown["state"]) == (True, "active")
        # it reboots when what runs there has ended
        task = str(cluster.admin.put_spec({"args": ["cat", "wait"], "files": {"wait": {"content": ""}}})["id"])
        assert cluster.admin.wait(task, 60).outcome is Outcome.OK
        long = str(cluster.admin.put_spec({"args": ["sleep", "300"], "limits": {"time": "10min"}})["id"])
        wait_until(lambda: cluster.admin.task(long)["state"] == "running")
        kolejka(cluster, "node", "reboot", "tests", "--when-idle")
        wait_until(lambda: "node is to reboot" in foreman.log.read_text())
        assert not rebooted.exists()
        assert listed(cluster)[0]["asked"] == "reboot when idle"
        # an admin who will not wait has what runs given back first
        kolejka(cluster, "node", "reboot", "tests")
        wait_until(rebooted.exists)
        shown = cluster.admin.task(long)
        assert (shown["state"], shown["attempts"][0]["message"]) == ("waiting", "the node reboots")
        assert "draining" in str(cluster.admin.why(long)["why"])
        kolejka(cluster, "node", "resume", "tests")
        wait_until(lambda: cluster.admin.task(long)["state"] == "running")
        cluster.admin.cancel(long)
        assert cluster.admin.wait(long, 60).outcome is Outcome.CANCELLED
        cluster.check_quiet()
        # a revoked token ends it, and it says what to do
        (token,) = [one for one in cluster.admin.tokens() if one["user"] == "tests"]
        assert token["name"] == f"enrolment {row['fingerprint']}"
        cluster.admin.revoke_token(str(token["id"]))
        foreman.stop()
        refused = cluster.run("kolejka-foreman")
        assert refused.returncode == 2
        assert "an admin revoked what it got when it was let in; to ask anew, remove" in refused.stderr
        assert "revoked" in cluster.run("kolejka-foreman", "screen", "--once").stdout
    finally:
        cluster.stop()

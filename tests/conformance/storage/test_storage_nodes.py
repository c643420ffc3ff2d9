"""What nodes tell of themselves and are asked for, on every engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kolejka.common.errors import Conflict, NotAllowed, NotFound
from kolejka.server.auth.roles import Role
from kolejka.server.auth.tokens import Caller
from kolejka.server.scheduling import claims
from kolejka.server.storage import moments, nodes, usage
from kolejka.server.storage.nodes import LogWish, NodeWords
from tests.conformance.storage.conftest import Cluster

BOOT, LATER = "0d4ec7b8-6a3c", "5f0c9d17-11aa"


def beat(cluster: Cluster, smith: Caller, **words: Any) -> claims.Beat:
    said = NodeWords("anvil", "active", (), {}, {}, **{"boot": BOOT, "image": "", "about": {}, **words})
    return cluster.store.write(
        lambda db: claims.heartbeat(db, said, smith.user_id, [], cluster.now, rules=cluster.rules)
    ).result()


def ask(cluster: Cluster, asked: str | None, name: str = "anvil") -> None:
    cluster.store.write(lambda db: nodes.ask(db, name, asked)).result()


def shown(cluster: Cluster) -> dict[str, Any]:
    (node,) = cluster.store.read(lambda db: nodes.listing(db, "anvil")).result()
    return node


def test_what_a_node_says_of_itself_is_kept_until_it_says_otherwise(cluster: Cluster, smith: Caller) -> None:
    beat(cluster, smith, image="1.4", about={"version": "1", "errors": []})
    cluster.claim(smith)  # a claim says nothing of it
    assert (shown(cluster)["boot"], shown(cluster)["image_version"]) == (BOOT, "1.4")
    assert shown(cluster)["about"] == {"version": "1", "errors": []}
    beat(cluster, smith, about={"version": "2"})
    assert (shown(cluster)["image_version"], shown(cluster)["about"]) == ("", {"version": "2"})


@pytest.mark.parametrize("asked", [nodes.REBOOT, nodes.REBOOT_WHEN_IDLE])
def test_a_node_that_is_to_reboot_takes_nothing_until_another_boot_is_heard(
    cluster: Cluster, ala: Caller, smith: Caller, asked: str
) -> None:
    beat(cluster, smith)
    ask(cluster, asked)
    cluster.put(ala)
    claimed = cluster.claim(smith)
    assert (claimed.given, claimed.over, claimed.asked) == ((), True, asked)
    assert beat(cluster, smith).asked == asked, "the same boot has not rebooted"
    assert beat(cluster, smith, boot=LATER).asked is None
    assert len(cluster.claim(smith).given) == 1


def test_whoever_was_asked_to_drain_drains_after_the_reboot_too(cluster: Cluster, smith: Caller) -> None:
    beat(cluster, smith)
    ask(cluster, nodes.DRAIN)
    ask(cluster, nodes.REBOOT_WHEN_IDLE)
    assert beat(cluster, smith).asked == nodes.REBOOT_WHEN_IDLE
    assert beat(cluster, smith, boot=LATER).asked == nodes.DRAIN
    ask(cluster, nodes.REBOOT)
    ask(cluster, None)
    assert beat(cluster, smith, boot=LATER).asked is None, "resuming takes both back"


def test_who_cannot_reboot_is_not_asked(cluster: Cluster, smith: Caller) -> None:
    cluster.heartbeat(smith, [])  # an older foreman, which tells no boot
    with pytest.raises(Conflict, match="too old"):
        ask(cluster, nodes.REBOOT)
    assert cluster.heartbeat(smith, []).asked is None
    with pytest.raises(NotFound):
        ask(cluster, nodes.REBOOT, "nobody")


@pytest.mark.parametrize(
    ("image", "least", "takes"),
    [
        ("1.4", "1.4", True), ("1.3", "1.4", False), ("1.10", "1.4", True), ("1.4.0", "1.4", True),
        ("1", "1.4", False), ("1.3+dirty", "1.4", False), ("1.5-rc1", "1.4", True), ("", "1.4", True),
        ("nightly", "1.4", False), ("1.3", "", True),
    ],
)  # fmt: skip
def test_a_node_of_an_older_image_takes_no_tasks(
    cluster: Cluster, ala: Caller, image: str, least: str, takes: bool
) -> None:
    smith = cluster.user("smith", Role.NODE)
    cluster.rules = replace(cluster.rules, minimum_image=least)
    beat(cluster, smith, image=image)
    cluster.put(ala)
    claimed = cluster.claim(smith)
    assert (len(claimed.given), claimed.over) == ((1, False) if takes else (0, True))


def delete(cluster: Cluster) -> None:
    now = cluster.wall
    cluster.store.write(lambda db: nodes.delete(db, "anvil", now, silent_before=now - 60)).result()


def test_a_node_is_forgotten_when_it_is_silent_and_nothing_counts_as_running_there(
    cluster: Cluster, ala: Caller, smith: Caller
) -> None:
    beat(cluster, smith, about={"version": "1"})
    want(cluster, 7)
    cluster.put(ala)
    (given,) = cluster.claim(smith).given
    cluster.store.write(lambda db: usage.reserve(db, "anvil", 1, ala.user_id, 1.0)).result()
    with pytest.raises(Conflict, match=r"at work, heard 0 s ago; stop its foreman"):
        delete(cluster)
    cluster.sleep(61)
    with pytest.raises(Conflict, match="still count as running"):
        delete(cluster)
    assert [one.task_id for one in cluster.rescue()] == [given.task_id]
    delete(cluster)
    assert cluster.store.read(nodes.listing).result() == []
    for table in ("nodes", "node_words", "node_logs", "reservations"):
        assert cluster.store.read(lambda db, t=table: db.rows(f"SELECT * FROM {t}")).result() == [], table
    with pytest.raises(NotFound, match="no node 'anvil'"):
        delete(cluster)
    other = cluster.user("other", Role.NODE)
    beat(cluster, other)
    assert shown(cluster)["about"] == {}, "the name is free, and nothing of the old one is left"


def want(cluster: Cluster, number: int, name: str = "anvil") -> None:
    wish = LogWish(number, 50)
    cluster.store.write(
        lambda db: nodes.want_log(db, name, wish, cluster.wall, forgotten_before=cluster.wall - 300)
    ).result()


def keep(cluster: Cluster, number: int, text: str, user_id: int) -> None:
    cluster.store.write(lambda db: nodes.keep_log(db, "anvil", number, text, user_id)).result()


def found(cluster: Cluster, number: int) -> str | None:
    return cluster.store.read(lambda db: nodes.find_log(db, number)).result()


def test_a_node_is_told_once_that_its_log_is_wanted_and_goes_on_taking_tasks(
    cluster: Cluster, ala: Caller, smith: Caller
) -> None:
    beat(cluster, smith)
    want(cluster, 7)
    cluster.put(ala)
    claimed = cluster.claim(smith)
    assert (claimed.log, len(claimed.given)) == (LogWish(7, 50), 1)
    assert cluster.claim(smith).log is None
    assert beat(cluster, smith).log is None
    want(cluster, 7)  # whoever waits asks again
    assert beat(cluster, smith).log == LogWish(7, 50)
    keep(cluster, 7, "lines", smith.user_id)
    assert found(cluster, 7) == "lines"
    cluster.store.write(lambda db: nodes.drop_log(db, "anvil", 7)).result()
    assert found(cluster, 7) is None


def test_an_older_claim_takes_no_wish_along(cluster: Cluster, smith: Caller) -> None:
    beat(cluster, smith)
    first = cluster.claim(smith)
    cluster.claim(smith)
    want(cluster, 7)
    assert cluster.claim(smith, turn=first.turn).log is None
    assert beat(cluster, smith).log == LogWish(7, 50)


def test_only_the_node_itself_hands_in_its_log_and_only_what_is_waited_for(
    cluster: Cluster, ala: Caller, smith: Caller
) -> None:
    beat(cluster, smith)
    want(cluster, 7)
    for number, user_id in ((7, ala.user_id), (8, smith.user_id)):
        with pytest.raises(NotFound):
            keep(cluster, number, "forged", user_id)
    keep(cluster, 7, "true", smith.user_id)
    with pytest.raises(NotFound):
        keep(cluster, 7, "again", smith.user_id)
    assert found(cluster, 7) == "true"
    with pytest.raises(NotFound):
        want(cluster, 9, "nobody")


def test_a_log_that_nobody_came_to_read_is_forgotten(cluster: Cluster, smith: Caller) -> None:
    beat(cluster, smith)
    want(cluster, 7)
    keep(cluster, 7, "lines", smith.user_id)
    cluster.sleep(301)
    want(cluster, 8)
    assert found(cluster, 7) is None


def test_a_node_that_was_heard_while_the_clock_was_ahead_falls_silent_and_may_be_another_foreman(
    cluster: Cluster, smith: Caller
) -> None:
    store, true = cluster.store, cluster.wall
    cluster.wall += 7 * 86400
    beat(cluster, smith, instance="1" * 32)
    cluster.wall = true
    with pytest.raises(NotAllowed, match="another foreman"):
        beat(cluster, smith, instance="2" * 32)
    latest = true + moments.FAR_S
    assert store.read(lambda db: moments.is_any(db, latest)).result()
    assert store.write(lambda db: moments.pull_back(db, latest, true)).result() == 1
    assert not store.read(lambda db: moments.is_any(db, latest)).result()
    assert shown(cluster)["last_seen"] == true
    cluster.wall += cluster.rules.heartbeat_s + 1
    beat(cluster, smith, instance="2" * 32)

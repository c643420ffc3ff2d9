"""What a server knows of its nodes and asks of them, by HTTP: words, images, reboots, logs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.server_process import AMOUNTS, Caller, Server
from tests.integration.test_server_http import in_background, waiting_claims
from tests.support import wait_until

BOOT = "0d4ec7b8-6a3c-4d55-9df4-3a2ad5e4c5a1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), "--minimum-image", "1.4").start()
    yield server
    assert server.stop() == 0
    assert "Traceback" not in server.log()


@pytest.fixture(scope="module")
def admin(server: Server) -> Caller:
    return server.admin


@pytest.fixture(scope="module")
def ala(server: Server) -> Caller:
    return server.user("ala", "client")


@pytest.fixture(scope="module")
def smith(server: Server) -> Caller:
    return server.user("smith", "node")


def about(**words: Any) -> dict[str, Any]:
    return {"boot": BOOT, "version": "0.1", "errors": [{"at": "2026-01-01T12:00:00Z", "message": "task=x"}], **words}


def beat(caller: Caller, node: str, **words: Any) -> Any:
    body = {"node": node, "tags": [], "total": AMOUNTS, "capacity": AMOUNTS, "leases": [], "about": about(**words)}
    return caller.ask("POST", "/heartbeats", body, status=200).json


def image(version: str, name: str = "kolejka-node") -> dict[str, str]:
    return {"id": name, "version": version}


def test_a_node_is_shown_with_what_it_says_of_itself(admin: Caller, ala: Caller, smith: Caller) -> None:
    proof = {"passed": True, "at": "2026-01-01T12:00:00Z", "checks": [
        {"limit": "memory", "runtime": "sandbox", "held": True, "message": ""}]}  # fmt: skip
    beat(smith, "shown", image=image("1.5"), proof=proof, reason="none")
    shown = admin.ask("GET", "/nodes/shown").json
    assert (shown["boot"], shown["image"], shown["version"]) == (BOOT, image("1.5"), "0.1")
    assert (shown["proof"], shown["reason"]) == (proof, "none")
    assert shown["errors"] == about()["errors"]
    assert ala.ask("GET", "/nodes/shown").json["errors"] == [], "errors may name tasks of others"
    assert not [node["errors"] for node in ala.ask("GET", "/nodes").json if node["errors"]]


def test_a_task_of_a_queue_from_which_no_node_takes_any_says_so(admin: Caller, ala: Caller, smith: Caller) -> None:
    for name in ("exam", "night"):
        admin.ask("PUT", f"/queues/{name}", {}, status=201)
    day, exam, tagged = ala.put(requires=["q"]), ala.put(queue="exam", requires=["q"]), ala.put(requires=["q", "w"])

    def why(task_id: str) -> str:
        return str(ala.ask("GET", f"/tasks/{task_id}/why", status=200).json["why"])

    body = {"tags": ["q"], "total": AMOUNTS, "capacity": AMOUNTS, "leases": [], "node": "queued"}
    smith.ask("POST", "/heartbeats", {**body, "about": about(queues=["exam"], slots=0)}, status=200)
    assert why(exam) == "the nodes that fit it are busy: queued"
    assert why(day) == "the nodes that could run it take no tasks from the queue 'default': queued"
    assert ala.ask("GET", "/nodes/queued").json["queues"] == ["exam"]
    words = {"user": "smith", "scope": {"queues": ["night"]}}
    narrow = Caller(admin.server, admin.ask("POST", "/tokens", words, status=201).json["token"])
    narrow.ask("POST", "/heartbeats", {**body, "about": about()}, status=200)
    assert why(exam) == "the nodes that could run it take no tasks from the queue 'exam': queued", "nor does its token"
    smith.ask("POST", "/heartbeats", body, status=200)
    assert why(exam) == why(day) == "a node that fits it is about to take it"
    assert why(tagged) == "no active node has the tag 'w'"
    smith.ask("POST", "/heartbeats", {**body, "state": "draining"}, status=200)


def test_a_node_of_an_image_too_old_takes_nothing_and_everybody_says_why(
    admin: Caller, ala: Caller, smith: Caller
) -> None:
    beat(smith, "old", image=image("1.3"))
    task = ala.put(requires=["only-here"])
    body = {"node": "old", "tags": ["only-here"], "total": AMOUNTS, "capacity": AMOUNTS, "slots": 1, "wait": 20}
    assert smith.ask("POST", "/claims", body, status=200).json["attempts"] == []
    shown = admin.ask("GET", "/nodes/old").json
    assert shown["state"] == "outdated"
    assert "version 1.3, and this server demands 1.4" in shown["reason"]
    assert "old is outdated (its image is version 1.3" in ala.ask("GET", f"/tasks/{task}/why").json["why"]
    assert 'kolejka_nodes{state="outdated"} 1.0' in admin.ask("GET", "/metrics").data.decode()
    for other in (None, image("0.1", "another-system"), image("1.4")):
        beat(smith, "old", **({} if other is None else {"image": other}))
        assert admin.ask("GET", "/nodes/old").json["state"] == "active"
    assert len(smith.ask("POST", "/claims", body, status=200).json["attempts"]) == 1


def test_a_demand_that_is_no_version_is_one_line(tmp_path: Path, server: Server) -> None:
    refused = Server(tmp_path, "--minimum-image", "newest")
    with pytest.raises(AssertionError):
        refused.start()
    assert "--minimum-image: 'newest' is no version" in refused.log()
    assert "Traceback" not in refused.log()


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ({"boot": "x y"}, "about.boot"), ({"image": {"id": "a"}}, "about.image.version"), ({"more": 1}, "about.more"),
        ({"errors": [{"at": "", "message": "x"}] * 21}, "about.errors"), ({"reason": "x" * 1001}, "about.reason"),
        ({"proof": {"passed": True}}, "about.proof.at"),
    ],
)  # fmt: skip
def test_words_that_are_wrong_are_named(smith: Caller, words: dict[str, Any], field: str) -> None:
    body = {"node": "wrong", "tags": [], "total": {}, "capacity": {}, "leases": [], "about": words}
    assert smith.ask("POST", "/heartbeats", body, status=422).error == ("invalid", field)


def test_a_waiting_claim_hears_of_a_reboot_at_once(server: Server, admin: Caller, smith: Caller) -> None:
    beat(smith, "sleeper", image=image("1.4"))
    body = {"node": "sleeper", "total": AMOUNTS, "capacity": AMOUNTS, "slots": 1, "wait": 30, "queues": ["none"]}
    claim = in_background(lambda: smith.ask("POST", "/claims", body, status=200))
    wait_until(lambda: waiting_claims(admin) == 1)
    asked = admin.ask("POST", "/nodes/sleeper/reboot", {"when_idle": True}, status=200).json
    assert (asked["state"], asked["asked"]) == ("draining", "reboot when idle")
    assert claim.result(60).json["asked"] == "reboot when idle"
    (act,) = admin.ask("GET", "/audit?limit=1").json["acts"]
    assert (act["act"], act["target"], act["detail"]) == ("node.reboot", "sleeper", {"when_idle": True})
    beat(smith, "sleeper", boot="5f0c9d17-11aa")
    assert admin.ask("GET", "/nodes/sleeper").json["asked"] is None


def test_a_log_travels_from_the_waiting_claim_to_the_waiting_admin(
    server: Server, admin: Caller, ala: Caller, smith: Caller
) -> None:
    beat(smith, "logger", image=image("1.4"))
    body = {"node": "logger", "total": AMOUNTS, "capacity": AMOUNTS, "slots": 1, "wait": 30, "queues": ["none"]}
    claim = in_background(lambda: smith.ask("POST", "/claims", body, status=200))
    wait_until(lambda: waiting_claims(admin) == 1)
    wanted = in_background(lambda: admin.ask("POST", "/nodes/logger/log", {"lines": 3, "wait": 30}))
    wish = claim.result(60).json["log"]
    assert wish["lines"] == 3
    path = f"/nodes/logger/log/{wish['number']}"
    assert ala.ask("PUT", path, {"log": "forged"}).status == 403
    other = server.user("other", "node")
    assert other.ask("PUT", path, {"log": "forged"}).status == 404
    assert smith.ask("PUT", path, {"log": "x" * (1 << 20) + "x"}).error == ("invalid", "log")
    smith.ask("PUT", path, {"log": "one\ntwo\x00"}, status=204)
    assert wanted.result(60).json == {"node": "logger", "log": "one\ntwo?"}
    assert smith.ask("PUT", path, {"log": "late"}).status == 404
    assert ("node.log", "logger") in [
        (act["act"], act["target"]) for act in admin.ask("GET", "/audit?limit=5").json["acts"]
    ]
    assert "one" not in json.dumps(admin.ask("GET", "/audit").json)


def test_a_node_that_does_not_answer_is_not_waited_for_for_ever(admin: Caller, smith: Caller) -> None:
    beat(smith, "mute", image=image("1.4"))
    assert admin.ask("POST", "/nodes/mute/log", {"wait": 0}, status=202).json == {}
    assert beat(smith, "mute")["log"] is None, "nobody waits any more"
    assert admin.ask("POST", "/nodes/nobody/log", {}).status == 404


def test_a_node_at_work_is_not_forgotten(admin: Caller, smith: Caller) -> None:
    beat(smith, "busy", image=image("1.4"))
    refused = admin.ask("DELETE", "/nodes/busy", status=409)
    assert refused.error[0] == "conflict"
    assert admin.ask("DELETE", "/nodes/nobody", status=404).error[0] == "not_found"


def test_a_silent_node_is_not_asked_for_its_log_and_can_be_forgotten(tmp_path: Path) -> None:
    server = Server(tmp_path, "--heartbeat", "1ms").start()
    beat(server.user("smith", "node"), "gone")
    assert (
        server.admin.ask("POST", "/nodes/gone/log", {}, status=409)
        .json["error"]["message"]
        .startswith("the node 'gone' is silent since")
    )
    server.admin.ask("DELETE", "/nodes/gone", status=204)
    assert server.admin.ask("GET", "/nodes").json == []
    (act,) = server.admin.ask("GET", "/audit?limit=1").json["acts"]
    assert (act["act"], act["target"]) == ("node.delete", "gone")
    assert server.stop() == 0

"""The server over real HTTP, a real process: every route, and every way to be refused."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from kolejka.server.app import ROUTES
from tests.integration.server_process import AMOUNTS, Caller, Server
from tests.support import wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), "--max-blob", "64M", "--max-body", "256K").start()
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
def ola(server: Server) -> Caller:
    return server.user("ola", "client")


@pytest.fixture(scope="module")
def smith(server: Server) -> Caller:
    return server.user("smith", "node")


@pytest.fixture(scope="module")
def inspector(server: Server) -> Caller:
    return server.user("eye", "inspector")


@pytest.fixture(autouse=True)
def nothing_waits(admin: Caller) -> Iterator[None]:
    """Each test leaves no waiting task to the next."""
    yield
    for task in admin.ask("GET", "/tasks?state=waiting&limit=1000").json["tasks"]:
        admin.ask("POST", f"/tasks/{task['id']}/cancel", status=200)


def in_background(work: Any, *args: Any, **words: Any) -> concurrent.futures.Future[Any]:
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(work(*args, **words))
        except BaseException as error:  # noqa: BLE001 the test asks for the result and gets the error
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def waiting_claims(admin: Caller) -> float:
    text = admin.ask("GET", "/metrics", status=200).data.decode()
    match = re.search(r"^kolejka_claims_waiting (\S+)$", text, re.MULTILINE)
    assert match is not None
    return float(match[1])


# A whole life


def test_a_task_lives_from_put_to_result(ala: Caller, smith: Caller) -> None:
    data = b"input\n"
    sha = ala.upload(data)
    spec = {
        "args": ["cat", "in"], "files": {"in": {"reference": sha}, "note": {"content": "ż"}}, "stdout": "out",
        "name": "copy", "labels": {"exam": "1"}, "image": "ubuntu:xenial", "requires": ["fast"], "priority": 3,
        "limits": {"memory": "32M"},
    }  # fmt: skip
    put = ala.ask("POST", "/tasks", spec, status=201).json
    assert put["state"] == "waiting"
    assert re.fullmatch(r"[0-9a-z]{26}", put["id"])
    assert {name: put[name] for name in ("owner", "queue", "priority", "name", "labels", "image")} == {
        "owner": "ala", "queue": "default", "priority": 3, "name": "copy", "labels": {"exam": "1"},
        "image": "ubuntu:xenial",
    }  # fmt: skip
    assert put["spec"]["limits"]["memory"] == 32 << 20
    assert put["spec"]["limits"]["time"] == 3600, "the server's default"
    assert ala.ask("GET", f"/tasks/{put['id']}", status=200).json == put
    assert smith.claim()["attempts"] == [], "it lacks the tag"
    claimed = smith.claim(tags=["fast"])
    (given,) = claimed["attempts"]
    assert claimed["heartbeat_s"] == 60
    assert (given["task_id"], given["owner"], given["spec"]) == (put["id"], "ala", put["spec"])
    assert given["deadline_s"] == 3600 + 120
    running = ala.ask("GET", f"/tasks/{put['id']}", status=200).json
    assert (running["state"], running["node"], running["lease"]) == ("running", "anvil", given["lease"])
    assert [one["state"] for one in running["attempts"]] == ["running"]
    assert smith.ask("GET", f"/blobs/{sha}", status=200).data == data, "the node may have the input"
    assert smith.beat(given["lease"]) == {"lost": [], "cancel": [], "heartbeat_s": 60, "asked": None, "log": None}
    out = smith.upload(b"output\n")
    body = {
        "id": put["id"], "result": 0, "outcome": "ok", "files": ["out"],
        "manifest": {"out": {"size": 7, "mode": "0644", "sha256": out}}, "limits": {"memory": 32 << 20},
        "stats": {"time": 0.5}, "node": {"name": "anvil", "tags": ["fast"]}, "message": None,
    }  # fmt: skip
    for _ in range(2):
        answer = smith.ask("PUT", f"/attempts/{given['lease']}/result", body, status=200).json
        assert answer == {"task_id": put["id"], "state": "done"}
    assert ala.ask("GET", f"/tasks/{put['id']}/result", status=200).json == body
    assert ala.ask("GET", f"/blobs/{out}", status=200).data == b"output\n"
    done = ala.ask("GET", f"/tasks/{put['id']}", status=200).json
    assert (done["state"], done["outcome"], done["result"], done["limit"]) == ("done", "ok", 0, None)
    for name in ("created_at", "started_at", "finished_at"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", done[name])
    assert ala.ask("DELETE", f"/tasks/{put['id']}").status == 204
    assert ala.ask("GET", f"/tasks/{put['id']}").error[0] == "not_found"
    assert ala.ask("GET", f"/blobs/{out}").status == 404, "it came with the task and goes with it"
    assert ala.ask("GET", f"/blobs/{sha}").status == 200, "this one was uploaded"


# Waiting


def test_a_waiting_claim_is_answered_when_a_task_comes(admin: Caller, ala: Caller, smith: Caller) -> None:
    claim = in_background(smith.claim, wait=30)
    wait_until(lambda: waiting_claims(admin) == 1)
    task_id = ala.put()
    (given,) = claim.result(20)["attempts"]
    assert given["task_id"] == task_id
    smith.finish(given["lease"])


def test_a_waiting_claim_is_answered_when_something_of_its_node_is_cancelled(
    admin: Caller, ala: Caller, smith: Caller
) -> None:
    task_id = ala.put()
    (given,) = smith.claim()["attempts"]
    claim = in_background(smith.claim, wait=30, slots=0)
    wait_until(lambda: waiting_claims(admin) == 1)
    assert ala.ask("POST", f"/tasks/{task_id}/cancel", status=200).json["state"] == "running"
    assert claim.result(20) == {
        "attempts": [],
        "cancel": [given["lease"]],
        "heartbeat_s": 60,
        "asked": None,
        "log": None,
    }
    assert smith.beat(given["lease"])["cancel"] == [given["lease"]]
    smith.finish(given["lease"], outcome="cancelled", result=None)
    assert ala.ask("GET", f"/tasks/{task_id}/result", status=200).json["outcome"] == "cancelled"


def test_one_claim_gets_the_task_and_the_others_wait_on(admin: Caller, ala: Caller, smith: Caller) -> None:
    claims = [in_background(smith.claim, f"node{number}", wait=30, slots=1) for number in range(4)]
    wait_until(lambda: waiting_claims(admin) == 4)
    for expected in range(4):
        assert sum(claim.done() for claim in claims) == expected
        ala.put()
        wait_until(lambda expected=expected: sum(claim.done() for claim in claims) == expected + 1)
    for claim in claims:
        (given,) = claim.result()["attempts"]
        smith.finish(given["lease"])


def test_a_newer_claim_of_a_node_ends_its_older_one_with_nothing(admin: Caller, ala: Caller, smith: Caller) -> None:
    old = in_background(smith.claim, wait=30)
    wait_until(lambda: waiting_claims(admin) == 1)
    new = in_background(smith.claim, wait=30)
    assert old.result(20)["attempts"] == []
    task_id = ala.put()
    (given,) = new.result(20)["attempts"]
    assert given["task_id"] == task_id
    smith.finish(given["lease"])


@pytest.mark.parametrize("state", ["draining", "quarantined"])
def test_a_heartbeat_that_is_not_active_ends_the_claims_of_its_node(
    admin: Caller, ala: Caller, smith: Caller, state: str
) -> None:
    claim = in_background(smith.claim, "leaving", wait=30)
    wait_until(lambda: waiting_claims(admin) == 1)
    smith.beat(node="leaving", state=state)
    assert claim.result(20)["attempts"] == []
    task_id = ala.put()
    assert smith.claim("leaving", wait=30)["attempts"] == [], "a claim that the heartbeat overtook"
    assert ala.ask("GET", "/nodes/leaving").json["state"] == state
    smith.beat(node="leaving")
    (given,) = smith.claim("leaving")["attempts"]
    assert given["task_id"] == task_id
    smith.finish(given["lease"])


@pytest.mark.parametrize("end", ["result", "release"])
def test_a_claim_that_came_before_the_last_result_gets_the_exclusive_task_with_it(
    admin: Caller, ala: Caller, smith: Caller, end: str
) -> None:
    ala.put()
    (first,) = smith.claim("lone", slots=1)["attempts"]
    claim = in_background(smith.claim, "lone", wait=30, idle=True)
    wait_until(lambda: waiting_claims(admin) == 1)
    alone = ala.put(exclusive=True, priority=5)
    assert ala.state(alone) == "waiting"
    if end == "result":
        smith.finish(first["lease"])
    else:
        smith.ask("POST", f"/attempts/{first['lease']}/release", {"message": "no"}, status=200)
    (given,) = claim.result(20)["attempts"]
    assert given["task_id"] == alone
    smith.finish(given["lease"])


def test_a_task_goes_past_a_node_whose_figures_are_stale_to_one_that_can_take_it(
    admin: Caller, ala: Caller, smith: Caller
) -> None:
    ala.put()
    (first,) = smith.claim("stale", slots=1)["attempts"]
    claims = []
    for number, node in enumerate(("stale", "fresh")):
        claims.append(in_background(smith.claim, node, wait=30, idle=True))
        wait_until(lambda number=number: waiting_claims(admin) == number + 1)
    alone = ala.put(exclusive=True)
    (given,) = claims[1].result(20)["attempts"]
    assert given["task_id"] == alone
    smith.finish(given["lease"])
    ala.put()
    smith.finish(first["lease"])
    (given,) = claims[0].result(20)["attempts"]
    smith.finish(given["lease"])


def test_a_claim_whose_caller_left_takes_no_task(admin: Caller, ala: Caller, smith: Caller) -> None:
    connection = smith.connect()
    body = {"node": "gone", "tags": [], "total": AMOUNTS, "capacity": AMOUNTS, "slots": 1, "wait": 30}
    connection.request("POST", "/api/v1/claims", json.dumps(body), {"Authorization": f"Bearer {smith.token}"})
    wait_until(lambda: waiting_claims(admin) == 1)
    connection.close()
    wait_until(lambda: waiting_claims(admin) == 0)
    task_id = ala.put()
    assert ala.state(task_id) == "waiting"


def test_a_claim_gives_up_when_its_time_is_over(smith: Caller) -> None:
    assert smith.claim(wait=0.05)["attempts"] == []


def test_a_node_gets_tasks_ahead_of_room_for_them_but_none_too_large_for_it(ala: Caller, smith: Caller) -> None:
    total = {**AMOUNTS, "cpus": 2}
    ids = [ala.put(limits={"cpus": 1}) for _ in range(4)]
    ala.put(limits={"cpus": 3})
    ala.put(exclusive=True)
    words = {"total": total, "capacity": {**AMOUNTS, "cpus": 1}, "slots": 1, "idle": False}
    ahead = {"capacity": {"cpus": 8, "memory": 1 << 30}, "slots": 8}
    given = smith.claim("brisk", **words, ahead={**ahead, "slots": 2})["attempts"]
    assert [one["task_id"] for one in given] == ids[:3]
    given += smith.claim("brisk", **words, ahead=ahead, leases=[one["lease"] for one in given])["attempts"]
    assert [one["task_id"] for one in given] == ids
    assert ala.ask("GET", "/nodes/brisk", status=200).json["capacity"]["cpus"] == 1
    for one in given:
        smith.finish(one["lease"])


def test_a_result_is_waited_for(ala: Caller, smith: Caller) -> None:
    task_id = ala.put()
    assert ala.ask("GET", f"/tasks/{task_id}/result", status=202).json == {"state": "waiting"}
    assert ala.ask("GET", f"/tasks/{task_id}/result?wait=0.05", status=202).json == {"state": "waiting"}
    waiting = in_background(ala.ask, "GET", f"/tasks/{task_id}/result?wait=60")
    (given,) = smith.claim()["attempts"]
    assert ala.ask("GET", f"/tasks/{task_id}/result", status=202).json == {"state": "running"}
    smith.finish(given["lease"], outcome="failed", result=7)
    reply = waiting.result(20)
    assert (reply.status, reply.json["result"]) == (200, 7)


# Cancelling, deleting, listing, asking


def test_results_of_many_tasks_are_told_in_one_answer(ala: Caller, ola: Caller, smith: Caller) -> None:
    first, second, foreign = ala.put(), ala.put(), ola.put()
    of = f"/tasks/results?tasks={second},{foreign},{first},nothing"
    told = ala.ask("GET", of, status=200).json["results"]
    assert [one["id"] for one in told] == [second, foreign, first, "nothing"]
    assert [one.get("state") for one in told] == ["waiting", None, "waiting", None]
    assert [one.get("error", {}).get("code") for one in told] == [None, "not_found", None, "not_found"]

    leases = {one["task_id"]: one["lease"] for one in smith.claim()["attempts"]}
    smith.finish(leases[first], result=0, outcome="ok")
    told = ala.ask("GET", of + "&wait=60&enough=3", status=200).json["results"]  # three need no wait any more
    assert [(one.get("state"), (one.get("result") or {}).get("outcome")) for one in told] == [
        ("running", None), (None, None), ("done", "ok"), (None, None)
    ]  # fmt: skip
    waiting = in_background(ala.ask, "GET", of + "&wait=60&enough=1000", status=200)
    smith.finish(leases[second], result=1, outcome="failed")
    told = waiting.result(60).json["results"]
    assert told[0]["result"] == ala.ask("GET", f"/tasks/{second}/result", status=200).json
    smith.finish(leases[foreign], result=0, outcome="ok")

    assert ala.ask("GET", "/tasks/results", status=422).error == ("invalid", "tasks")
    assert ala.ask("GET", "/tasks/results?tasks=", status=422).error == ("invalid", "tasks")
    assert ala.ask("GET", "/tasks/results?tasks=" + ",".join("x" * 101), status=422).error == ("invalid", "tasks")
    assert ala.ask("GET", f"/tasks/results?tasks={first}&enough=-1", status=422).error == ("invalid", "enough")
    assert smith.ask("GET", f"/tasks/results?tasks={first}").status == 403


def test_a_waiting_task_is_cancelled_at_once_and_then_deleted(ala: Caller) -> None:
    task_id = ala.put()
    assert ala.ask("DELETE", f"/tasks/{task_id}", status=409).error[0] == "conflict"
    assert "cancel" in ala.ask("DELETE", f"/tasks/{task_id}").json["error"]["message"]
    cancelled = ala.ask("POST", f"/tasks/{task_id}/cancel", status=200).json
    assert (cancelled["state"], cancelled["outcome"]) == ("done", "cancelled")
    assert ala.ask("GET", f"/tasks/{task_id}/result", status=200).json["outcome"] == "cancelled"
    assert ala.ask("POST", f"/tasks/{task_id}/cancel", status=409).error[0] == "conflict"
    assert ala.ask("DELETE", f"/tasks/{task_id}").status == 204


def test_listing_pages_through_everything_once(ala: Caller) -> None:
    put = [ala.put(labels={"page": "yes"}) for _ in range(7)]
    seen: list[str] = []
    query = "label=page=yes&limit=3"
    while True:
        page = ala.ask("GET", f"/tasks?{query}", status=200).json
        assert len(page["tasks"]) <= 3
        assert all("spec" not in task and "attempts" not in task for task in page["tasks"])
        seen += [task["id"] for task in page["tasks"]]
        if page["next"] is None:
            break
        query = f"label=page=yes&limit=3&after={page['next']}"
    assert seen == list(reversed(put))


def test_an_idempotency_key_makes_a_repeated_put_harmless(ala: Caller) -> None:
    key = {"Idempotency-Key": "once"}
    first = ala.ask("POST", "/tasks", {"args": ["true"], "labels": {"a": "b"}}, headers=key, status=201).json
    assert ala.ask("POST", "/tasks", {"args": ["true"]}, headers=key, status=201).json == first
    refused = ala.ask("POST", "/tasks", {"args": ["true"]}, headers={"Idempotency-Key": "k" * 129}, status=422)
    assert refused.error == ("invalid", "Idempotency-Key")


def test_why_says_what_a_task_waits_for(ala: Caller, smith: Caller) -> None:
    smith.beat()
    tagged, big, plain = ala.put(requires=["moon"]), ala.put(limits={"cpus": 65}), ala.put()
    behind = ala.put(priority=-1)
    assert ala.ask("GET", f"/tasks/{tagged}/why").json["why"] == "no active node has the tag 'moon'"
    assert "cpus of 65" in ala.ask("GET", f"/tasks/{big}/why").json["why"]
    assert "about to take it" in ala.ask("GET", f"/tasks/{plain}/why").json["why"], "what cannot run delays nobody"
    assert ala.ask("GET", f"/tasks/{behind}/why").json["why"].startswith("1 task goes before it")
    (given,) = smith.claim(slots=1)["attempts"]
    assert "runs on anvil" in ala.ask("GET", f"/tasks/{plain}/why").json["why"]
    smith.finish(given["lease"])
    assert ala.ask("GET", f"/tasks/{plain}/why").json == {"why": "it is done", "reasons": ["it is done"]}


def test_an_attempt_is_given_back(ala: Caller, smith: Caller) -> None:
    task_id = ala.put()
    (given,) = smith.claim()["attempts"]
    answer = smith.ask("POST", f"/attempts/{given['lease']}/release", {"message": "draining"}, status=200).json
    assert answer == {"task_id": task_id, "state": "waiting"}
    smith.finish(given["lease"], status=409)


def test_nodes_and_queues_are_shown(ala: Caller, smith: Caller, inspector: Caller) -> None:
    smith.beat(node="hammer", state="draining", tags=["b", "a"])
    shown = ala.ask("GET", "/nodes/hammer", status=200).json
    assert (shown["state"], shown["tags"], shown["total"], shown["running"]) == ("draining", ["a", "b"], AMOUNTS, [])
    assert shown in inspector.ask("GET", "/nodes", status=200).json
    assert ala.ask("GET", "/nodes/unknown", status=404).error[0] == "not_found"
    shown = ala.ask("GET", "/queues", status=200).json
    assert [(queue["name"], queue["state"], queue["members"]) for queue in shown] == [("default", "open", [])]


# Who may what


def test_nobody_comes_in_without_a_token(server: Server, ala: Caller) -> None:
    for token in ("", "klj_" + "x" * 43, ala.token[:-1], ala.token.lower()):
        reply = Caller(server, token).ask("GET", "/whoami", status=401)
        assert reply.error[0] == "unauthorized"
        assert reply.headers["www-authenticate"] == "Bearer"
    reply = Caller(server, "").ask("GET", "/whoami", headers={"Authorization": f"Basic {ala.token}"}, status=401)
    assert ala.token not in reply.data.decode()


def test_every_role_meets_exactly_its_routes(
    admin: Caller, ala: Caller, smith: Caller, inspector: Caller, server: Server
) -> None:
    callers = {"admin": admin, "client": ala, "node": smith, "inspector": inspector}
    words = {
        "task_id": "none",
        "lease": "999999",
        "sha256": "0" * 64,
        "name": "none",
        "token_id": "999999",
        "number": "1",
    }
    for route in ROUTES:
        path = route.path.format(**words) + ("?task=none" if route.gives == "text/event-stream" else "")
        assert (Caller(server, "").ask(route.method, path).status == 401) == (route.roles is not None), path
        for role, caller in callers.items():
            status = caller.ask(route.method, path).status
            allowed = route.roles is None or role in {one.value for one in route.roles}
            assert (status != 403) == allowed, f"{role} {route.method} {path}: {status}"
            assert status < 500


def test_tasks_of_others_do_not_exist(ala: Caller, ola: Caller, inspector: Caller, admin: Caller) -> None:
    task_id = ala.put()
    for method, path in (
        ("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/result"), ("GET", "/result?wait=1"),
        ("GET", "/why"),
    ):  # fmt: skip
        theirs = ola.ask(method, f"/tasks/{task_id}{path}", status=404)
        none = ola.ask(method, f"/tasks/{'0' * 26}{path}", status=404)
        assert theirs.data.replace(task_id.encode(), b"") == none.data.replace(b"0" * 26, b"")
    assert task_id not in [task["id"] for task in ola.ask("GET", "/tasks?limit=1000").json["tasks"]]
    assert ola.ask("GET", "/tasks?owner=ala").json["tasks"] == []
    for caller in (inspector, admin):
        assert caller.ask("GET", f"/tasks/{task_id}").status == 200
        assert task_id in [task["id"] for task in caller.ask("GET", "/tasks?owner=ala").json["tasks"]]
    assert inspector.ask("POST", f"/tasks/{task_id}/cancel").status == 403
    assert admin.ask("POST", f"/tasks/{task_id}/cancel").status == 200


def test_a_hash_gives_nobody_the_bytes(ala: Caller, ola: Caller, smith: Caller, inspector: Caller) -> None:
    sha = ala.upload(b"secret of ala")
    for caller in (ola, smith):
        assert caller.ask("GET", f"/blobs/{sha}").status == 404
        assert caller.ask("HEAD", f"/blobs/{sha}").status == 404
    refused = ola.ask("POST", "/tasks", {"args": ["x"], "files": {"f": {"reference": sha}}}, status=422)
    assert refused.error == ("blob_missing", "files.f")
    assert inspector.ask("GET", f"/blobs/{sha}").status == 200
    assert ola.ask("PUT", f"/blobs/{sha}", data=b"secret of ala").status == 201, "who has the bytes may have the blob"
    assert ola.ask("PUT", f"/blobs/{sha}", data=b"secret of ala").status == 200
    assert ola.ask("GET", f"/blobs/{sha}").data == b"secret of ala"


def test_a_node_works_only_on_its_own_leases(server: Server, ala: Caller, smith: Caller) -> None:
    thief = server.user("thief", "node")
    ala.put()
    (given,) = smith.claim()["attempts"]
    assert thief.finish(given["lease"], status=404)
    assert thief.ask("POST", f"/attempts/{given['lease']}/release", {"message": ""}, status=404)
    body = {"node": "anvil", "tags": [], "total": {}, "capacity": {}, "leases": [given["lease"]]}
    assert thief.ask("POST", "/heartbeats", body, status=403).error == ("forbidden", "node")
    assert thief.ask("POST", "/heartbeats", {**body, "node": "thiefs"}, status=200).json["lost"] == [given["lease"]]
    smith.finish(given["lease"])


def test_users_and_tokens_are_an_admins_business(server: Server, admin: Caller) -> None:
    assert admin.ask("POST", "/users", {"name": "ewa", "role": "client"}, status=201).json["name"] == "ewa"
    assert admin.ask("POST", "/users", {"name": "ewa", "role": "client"}, status=409).error == ("conflict", "name")
    assert {"name": "ewa", "role": "client"}.items() <= admin.ask("GET", "/users").json[-1].items() or "ewa" in [
        user["name"] for user in admin.ask("GET", "/users").json
    ]
    made = admin.ask("POST", "/tokens", {"user": "ewa", "name": "laptop"}, status=201)
    assert made.headers["cache-control"] == "no-store"
    ewa = Caller(server, made.json["token"])
    who = ewa.ask("GET", "/whoami", status=200).json
    assert who == {"user": "ewa", "role": "client", "token": made.json["id"], "scope": None}
    listed = next(one for one in admin.ask("GET", "/tokens").json if one["id"] == made.json["id"])
    assert listed["name"] == "laptop"
    assert "token" not in listed
    assert "hash" not in listed
    assert admin.ask("DELETE", f"/tokens/{made.json['id']}").status == 204
    assert ewa.ask("GET", "/whoami", status=401).error[0] == "unauthorized", "at once"
    assert admin.ask("DELETE", f"/tokens/{made.json['id']}").status == 404
    more = admin.ask("POST", "/tokens", {"user": "ewa", "role": "admin"}, status=422)
    assert more.error == ("invalid", "role")
    assert admin.ask("POST", "/tokens", {"user": "nobody"}, status=404).error == ("not_found", "user")
    short = admin.ask("POST", "/tokens", {"user": "ewa", "expires_s": 0.001}, status=201).json["token"]
    wait_until(lambda: Caller(server, short).ask("GET", "/whoami").status == 401)


# Bad words


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({}, "args"), ({"args": []}, "args"), ({"args": ["x"], "arg": 1}, "arg"), ({"args": ["x"], "id": "a"}, "id"),
        ({"args": ["x"], "limits": {"memory": "1MM"}}, "limits.memory"),
        ({"args": ["x"], "limits": {"memory": -1}}, "limits.memory"),
        ({"args": ["x"], "limits": {"colour": 1}}, "limits.colour"),
        ({"args": ["x"], "files": {"../a": None}}, "files"), ({"args": ["x"], "files": {"/a": None}}, "files"),
        ({"args": ["x"], "files": {"a": {"path": "b"}}}, "files.a"), ({"args": ["x"], "files": ["a"]}, "files.a"),
        ({"args": ["x"], "files": {"a": {"reference": "0" * 64}}}, "files.a"),
        ({"args": ["x"], "queue": "nowhere"}, "queue"), ({"args": ["x"], "priority": 10**6}, "priority"),
        ({"args": ["x"], "name": "a\0b"}, "name"), ({"args": ["x"], "name": "\ud800"}, "name"),
        ({"args": ["x"], "labels": {"a": "\0"}}, "labels.a"),
        ({"args": ["x"], "labels": {"a": "\ud800"}}, "labels.a"), ([], None), ("x", None), (None, None),
    ],
)  # fmt: skip
def test_a_wrong_task_is_refused_by_the_name_of_its_field(ala: Caller, spec: Any, field: str | None) -> None:
    before = len(ala.ask("GET", "/tasks?limit=1000").json["tasks"])
    reply = ala.ask("POST", "/tasks", data=json.dumps(spec), status=422)
    assert reply.error[0] in {"invalid", "blob_missing"}
    assert (reply.error[1] or "").startswith(field or "")
    assert "\n" not in reply.json["error"]["message"]
    assert len(ala.ask("GET", "/tasks?limit=1000").json["tasks"]) == before


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "node"), ({"node": ""}, "node"), ({"node": "a/b"}, "node"), ({"node": "a", "slots": -1}, "slots"),
        ({"wait": 31}, "wait"), ({"wait": "long"}, "wait"), ({"total": {"colour": 1}}, "total.colour"),
        ({"ahead": {"slots": 1}}, "ahead.capacity"), ({"ahead": {"capacity": {}, "slots": 9999}}, "ahead.slots"),
        ({"capacity": {"cpus": -1}}, "capacity.cpus"), ({"capacity": {"cpus": 10**30}}, "capacity.cpus"),
        ({"tags": "x"}, "tags"), ({"tags": ["\ud800"]}, "tags"), ({"slot": 1}, "slot"),
        ({"queues": ["/"]}, "queues[0]"), ({"node": "\ud800"}, "node"),
    ],
)  # fmt: skip
def test_a_wrong_claim_is_refused_by_the_name_of_its_field(smith: Caller, body: dict[str, Any], field: str) -> None:
    good = {"node": "anvil", "tags": [], "total": {}, "capacity": {}, "slots": 1}
    said = {**good, **body} if body else {key: value for key, value in good.items() if key != "node"}
    assert smith.ask("POST", "/claims", said, status=422).error == ("invalid", field)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"outcome": "fine"}, "outcome"), ({"result": "0"}, "result"), ({"result": 10**30}, "result"),
        ({"stats": {"cpu": 5}}, "stats.cpu"), ({"stats": {"time": "x"}}, "stats.time"),
        ({"stats": {"memory": {"max_usage": 10**30}}}, "stats.memory.max_usage"), ({"id": "another"}, "id"),
        ({"files": ["a"]}, "manifest"), ({"outcome": "limit"}, "limit"), ({"surprise": 1}, "surprise"),
        ({"files": ["a"], "manifest": {"a": {"size": 1, "mode": "0644", "sha256": "0" * 64}}}, "manifest.a"),
        ({"files": ["../a"], "manifest": {"../a": {"size": 1, "mode": "0644", "sha256": "0" * 64}}}, "manifest"),
        ({"limits": {"cpus": "many"}}, "limits.cpus"),
    ],
)  # fmt: skip
def test_a_wrong_result_is_refused_and_ends_nothing(
    ala: Caller, smith: Caller, body: dict[str, Any], field: str
) -> None:
    task_id = ala.put()
    (given,) = smith.claim()["attempts"]
    assert smith.finish(given["lease"], status=422, **body).error[1] == field
    assert ala.state(task_id) == "running"
    smith.finish(given["lease"], message="half a \ud800 pair and a \0")
    assert ala.state(task_id) == "done"


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 400, "invalid_json"), (b"{", 400, "invalid_json"), (b"\xff\xfe", 400, "invalid_json"),
        (b'{"args": NaN}', 400, "invalid_json"), (b"[" * 50_000, 400, "invalid_json"),
        (b'{"args": ["x"], "args": ["y"]}', 400, "invalid_json"), (b" " * (300 << 10), 413, "too_large"),
    ],
)  # fmt: skip
def test_a_body_that_cannot_be_read_is_refused(ala: Caller, data: bytes, status: int, code: str) -> None:
    assert ala.ask("POST", "/tasks", data=data, status=status).error[0] == code


def test_a_body_of_unknown_length_is_bounded_too(ala: Caller) -> None:
    pieces = (b'{"args": ["x"], "name": "', *(b"y" * 10_000 for _ in range(40)), b'"}')
    reply = ala.ask("POST", "/tasks", data=iter(pieces))
    assert (reply.status, reply.error[0]) == (413, "too_large")


def test_unknown_query_parameters_paths_and_methods_are_refused(ala: Caller) -> None:
    assert ala.ask("GET", "/tasks?stat=done", status=422).error == ("invalid", "stat")
    assert ala.ask("GET", "/queues?x=1", status=422).error == ("invalid", "x")
    assert ala.ask("GET", "/tasks?limit=1001", status=422).error == ("invalid", "limit")
    assert ala.ask("GET", "/tasks?after=x", status=422).error == ("invalid", "after")
    assert ala.ask("GET", "/task", status=404).error[0] == "not_found"
    assert ala.ask("GET", "/tasks/", status=404).error[0] == "not_found"
    refused = ala.ask("PUT", "/tasks", status=405)
    assert refused.error[0] == "method_not_allowed"
    assert "POST" in refused.headers["allow"]
    for path in ("/whoami", "/tasks"):
        assert ala.ask("GET", path, {"a": 1}, status=422).error[0] == "invalid"
        chunks = ala.ask("GET", path, data=iter([b"{}"]), status=422)  # of a length that nobody told
        assert chunks.error[0] == "invalid"


def test_a_length_that_is_no_number_worth_reading_leaves_no_traceback(server: Server, ala: Caller) -> None:
    for length in ("9" * 4500, "9" * 30, "-1", "+2", "1e3", "0x10", "1,1"):
        with contextlib.closing(ala.connect()) as connection:
            connection.putrequest("POST", "/api/v1/tasks")
            connection.putheader("Authorization", f"Bearer {ala.token}")
            connection.putheader("Content-Length", length)
            connection.endheaders(b"{}")
            assert connection.getresponse().status in {400, 413, 431}, length
    assert "Traceback" not in server.log()


@pytest.mark.parametrize("lease", ["x", "-1", "1.0", "9" * 40, "%00", "1%2F2"])
def test_a_lease_that_is_no_number_is_nowhere(smith: Caller, lease: str) -> None:
    assert smith.ask("PUT", f"/attempts/{lease}/result", {"result": 0, "outcome": "ok", "files": []}).status == 404


def test_a_lease_of_nobody_is_a_conflict(smith: Caller) -> None:
    assert smith.finish(10**17, status=409).error[0] == "conflict"


@pytest.mark.parametrize("path", ["\0", "%00", "%ff", "a" * 5000, "..", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "é"])
def test_strange_ids_are_not_found(ala: Caller, path: str) -> None:
    quoted = path.encode("latin-1").decode("latin-1").replace("\0", "%00").replace("é", "%C3%A9")
    assert ala.ask("GET", f"/tasks/{quoted}").status in {404, 414, 400}


# Blobs


def blob_files(server: Server) -> set[str]:
    return {path.name for path in (server.data / "blobs").rglob("*") if path.is_file()}


def test_a_blob_comes_back_whole_and_in_parts(ala: Caller) -> None:
    data = bytes(range(256)) * 10_000
    sha = ala.upload(data)
    whole = ala.ask("GET", f"/blobs/{sha}", status=200)
    assert whole.data == data
    assert whole.headers["accept-ranges"] == "bytes"
    assert whole.headers["content-type"] == "application/octet-stream"
    head = ala.ask("HEAD", f"/blobs/{sha}", status=200)
    assert (head.headers["content-length"], head.data) == (str(len(data)), b"")
    part = ala.ask("GET", f"/blobs/{sha}", headers={"Range": "bytes=1000-1009"}, status=206)
    assert part.data == data[1000:1010]
    assert part.headers["content-range"] == f"bytes 1000-1009/{len(data)}"
    rest = ala.ask("GET", f"/blobs/{sha}", headers={"Range": f"bytes={len(data) - 5}-"}, status=206)
    assert rest.data == data[-5:]
    beyond = ala.ask("GET", f"/blobs/{sha}", headers={"Range": f"bytes={len(data)}-"}, status=416)
    assert beyond.error[0] == "range_not_satisfiable"


def test_an_empty_blob_is_a_blob(ala: Caller) -> None:
    sha = hashlib.sha256(b"").hexdigest()
    assert ala.ask("PUT", f"/blobs/{sha}", data=b"", headers={"Content-Length": "0"}).status == 201
    assert ala.ask("GET", f"/blobs/{sha}", status=200).data == b""


def test_bytes_with_another_hash_leave_nothing(server: Server, ala: Caller) -> None:
    before = blob_files(server)
    sha = hashlib.sha256(b"right").hexdigest()
    assert ala.ask("PUT", f"/blobs/{sha}", data=b"wrong", status=422).error == ("hash_mismatch", "sha256")
    assert ala.ask("HEAD", f"/blobs/{sha}").status == 404
    assert blob_files(server) == before


def test_an_upload_that_breaks_off_leaves_nothing(server: Server, ala: Caller) -> None:
    before = blob_files(server)
    data = b"x" * 3_000_000
    sha = hashlib.sha256(data).hexdigest()
    head = f"PUT /api/v1/blobs/{sha} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ala.token}\r\n"
    ala.raw(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data[:2_000_000], half_close=True)
    wait_until(lambda: blob_files(server) == before)
    assert ala.ask("HEAD", f"/blobs/{sha}").status == 404
    assert ala.upload(data) == sha


def test_an_upload_of_unknown_or_too_great_length_is_refused(server: Server, ala: Caller) -> None:
    before = blob_files(server)
    sha = hashlib.sha256(b"x").hexdigest()
    chunked = ala.ask("PUT", f"/blobs/{sha}", data=iter([b"x"]))
    assert (chunked.status, chunked.error[0]) == (411, "length_required")
    head = f"PUT /api/v1/blobs/{sha} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ala.token}\r\n"
    answer = ala.raw(f"{head}Content-Length: {65 << 20}\r\n\r\nthe first bytes".encode())
    assert b" 413 " in answer.split(b"\r\n")[0]
    assert blob_files(server) == before


@pytest.mark.parametrize(
    "name", ["x", "0" * 63, "0" * 65, "A" * 64, "..%2f..%2fkolejka.sqlite", "%2e%2e", "0" * 62 + "%00%00"]
)
def test_a_blobs_name_leads_nowhere_else(server: Server, ala: Caller, name: str) -> None:
    before = sorted(path for path in server.data.rglob("*") if "sqlite" not in path.name)
    for method in ("GET", "HEAD", "PUT"):
        assert ala.ask(method, f"/blobs/{name}", data=b"x" if method == "PUT" else None).status in {404, 422}
    assert sorted(path for path in server.data.rglob("*") if "sqlite" not in path.name) == before


def test_uploads_of_the_same_bytes_at_once_are_one_blob(ala: Caller, ola: Caller) -> None:
    data = b"together" * 200_000
    sha = hashlib.sha256(data).hexdigest()
    uploads = [in_background(caller.ask, "PUT", f"/blobs/{sha}", data=data) for caller in (ala, ola, ala, ola)]
    assert sorted(upload.result(30).status for upload in uploads) == [200, 200, 201, 201]
    assert ala.ask("GET", f"/blobs/{sha}").data == data


# What it says of itself


def test_health_readiness_version_and_schemas_are_open(server: Server) -> None:
    nobody = Caller(server, "")
    assert nobody.ask("GET", "/healthz", status=200).json == {"status": "ok"}
    assert nobody.ask("GET", "/readyz", status=200).json["checks"]["database"] == "ok"
    assert nobody.ask("GET", "/api/v1", status=200).json["version"]
    document = nobody.ask("GET", "/openapi.json", status=200).json
    assert document["openapi"] == "3.1.0"
    assert set(document["paths"]) == {route.path for route in ROUTES}
    assert nobody.ask("GET", "/schemas/task.json", status=200).json["properties"]["args"]
    assert nobody.ask("GET", "/schemas/result.json", status=200).json["properties"]["outcome"]


def test_metrics_count_tasks_claims_results_and_requests(inspector: Caller, ala: Caller, smith: Caller) -> None:
    def read() -> dict[str, float]:
        text = inspector.ask("GET", "/metrics", status=200).data.decode()
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    before = read()
    ala.put()
    assert read()['kolejka_tasks{queue="default",state="waiting"}'] == 1
    (given,) = smith.claim()["attempts"]
    assert read()['kolejka_tasks{queue="default",state="running"}'] == 1
    smith.finish(given["lease"], outcome="failed", result=1)
    smith.finish(given["lease"], outcome="failed", result=1)
    smith.finish(given["lease"], outcome="failed", result=2, status=409)
    after = read()
    grown = {
        "kolejka_tasks_put_total": 1, "kolejka_attempts_given_total": 1, "kolejka_results_refused_total": 1,
        'kolejka_results_total{outcome="failed"}': 1,
    }  # fmt: skip
    assert {name: after[name] - before.get(name, 0) for name in grown} == grown


def test_metrics_tell_how_long_tasks_and_claims_take_and_how_full_nodes_are(
    inspector: Caller, ala: Caller, smith: Caller
) -> None:
    def read() -> dict[str, float]:
        text = inspector.ask("GET", "/metrics", status=200).data.decode()
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    before = read()
    ala.put()
    (given,) = smith.claim("gauge")["attempts"]
    smith.beat(given["lease"], node="gauge", capacity={**AMOUNTS, "cpus": 48, "memory": 64 << 30})
    after = read()
    assert after["kolejka_task_wait_seconds_count"] == before["kolejka_task_wait_seconds_count"] + 1
    assert after["kolejka_claim_seconds_count"] > before["kolejka_claim_seconds_count"]
    assert after['kolejka_node_tasks{node="gauge"}'] == 1
    assert after['kolejka_node_used_ratio{node="gauge",resource="cpus"}'] == 0.25
    assert after['kolejka_node_used_ratio{node="gauge",resource="memory"}'] == 0
    smith.finish(given["lease"])


def test_every_line_of_a_tasks_life_names_it_and_no_line_a_token(server: Server, ala: Caller, smith: Caller) -> None:
    task_id = ala.put()
    (given,) = smith.claim()["attempts"]
    smith.finish(given["lease"])
    lines = [line for line in server.log().splitlines() if task_id in line]
    assert [line.split(": ")[1].split(" task=")[0] for line in lines] == ["task put", "task given", "result accepted"]
    assert all(f"lease={given['lease']}" in line for line in lines[1:])
    assert "klj_" not in server.log()


def test_queues_are_made_changed_and_deleted_by_admins(admin: Caller, ala: Caller) -> None:
    made = admin.ask("PUT", "/queues/exam", {"members": ["ala"], "ceilings": {"time": "10s"}}, status=201).json
    assert (made["name"], made["state"], made["ceilings"]) == ("exam", "open", {"time": 10.0})
    assert ala.ask("GET", "/queues/exam", status=200).json == made
    assert admin.ask("PATCH", "/queues/exam", {"running": 3}, status=200).json == {**made, "running": 3}
    assert admin.ask("PUT", "/queues/exam", {}, status=200).json["members"] == []
    for words, field in (({"members": ["nobody"]}, "members"), ({"colour": 1}, "colour"), ({"running": -1}, "running")):
        assert admin.ask("PATCH", "/queues/exam", words, status=422).error == ("invalid", field)
    for method in ("PUT", "PATCH"):
        assert ala.ask(method, "/queues/exam", {}, status=403).error[0] == "forbidden"
    assert ala.ask("DELETE", "/queues/exam", status=403).error[0] == "forbidden"
    assert admin.ask("PUT", "/queues/-x", {}, status=422).error == ("invalid", "name")
    assert admin.ask("PATCH", "/queues/unknown", {}, status=404).error[0] == "not_found"
    put = ala.ask("POST", "/tasks", {"args": ["x"], "queue": "exam"}, status=201).json
    assert admin.ask("DELETE", "/queues/exam", status=409).error == ("conflict", "queue")
    ala.ask("POST", f"/tasks/{put['id']}/cancel", status=200)
    admin.ask("DELETE", "/queues/exam", status=204)
    assert admin.ask("DELETE", "/queues/exam", status=404).error[0] == "not_found"


def test_a_queue_refuses_what_it_does_not_take_and_changes_nothing(admin: Caller, ala: Caller, smith: Caller) -> None:
    admin.ask("PUT", "/queues/strict", {"members": ["smith"], "images": ["ubuntu:*"]}, status=201)
    spec = {"args": ["x"], "queue": "strict", "image": "debian"}
    before = len(ala.ask("GET", "/tasks", status=200).json["tasks"])
    assert ala.ask("POST", "/tasks", spec, status=403).error == ("forbidden", "queue")
    admin.ask("PATCH", "/queues/strict", {"members": []}, status=200)
    assert ala.ask("POST", "/tasks", spec, status=403).error == ("forbidden", "image")
    admin.ask("PATCH", "/queues/strict", {"state": "draining", "images": []}, status=200)
    assert ala.ask("POST", "/tasks", spec, status=409).error == ("conflict", "queue")
    assert ala.ask("POST", "/tasks", {**spec, "queue": "nowhere"}, status=422).error == ("invalid", "queue")
    assert len(ala.ask("GET", "/tasks", status=200).json["tasks"]) == before
    admin.ask("PATCH", "/queues/strict", {"state": "open", "defaults": {"memory": "3M"}, "ceilings": {"time": 2}},
              status=200)  # fmt: skip
    shown = ala.ask("POST", "/tasks", spec, status=201).json
    assert (shown["spec"]["limits"]["memory"], shown["spec"]["limits"]["time"]) == (3 << 20, 2.0)
    ala.ask("POST", f"/tasks/{shown['id']}/cancel", status=200)


def test_a_paused_queue_takes_tasks_says_why_they_wait_and_gives_them_when_it_is_resumed(
    admin: Caller, ala: Caller, smith: Caller
) -> None:
    admin.ask("PUT", "/queues/night", {"state": "paused"}, status=201)
    task_id = ala.ask("POST", "/tasks", {"args": ["x"], "queue": "night"}, status=201).json["id"]
    smith.beat(node="owl")
    assert smith.claim(node="owl", queues=["night"])["attempts"] == []
    assert "the queue 'night' is paused" in ala.ask("GET", f"/tasks/{task_id}/why", status=200).json["why"]
    admin.ask("PATCH", "/queues/night", {"state": "open", "running": 0}, status=200)
    assert smith.claim(node="owl", queues=["night"])["attempts"] == []
    assert "as many tasks as it may (0)" in ala.ask("GET", f"/tasks/{task_id}/why", status=200).json["why"]
    admin.ask("PATCH", "/queues/night", {"running": None}, status=200)
    (given,) = smith.claim(node="owl", queues=["night"])["attempts"]
    assert given["task_id"] == task_id


def test_a_websocket_is_refused(admin: Caller) -> None:
    said = (
        b"GET /api/v1/events HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert admin.raw(said).startswith(b"HTTP/1.1 403 ")


def test_methods_that_callers_make_up_are_counted_as_one(admin: Caller) -> None:
    for method in ("BREW", "WHEN"):
        admin.ask(method, "/healthz", status=400)
    told = admin.ask("GET", "/metrics", status=200).data.decode()
    assert 'method="other"' in told
    assert "BREW" not in told


@pytest.mark.parametrize(
    "body", [b'{"\\ud800": 1}', b'{"args": ["x"], "queue": "\\udfff"}', b'{"a": 1, "\\ud800": 1, "\\ud800": 2}']
)
def test_half_a_surrogate_pair_in_what_is_wrong_is_told(ala: Caller, body: bytes) -> None:
    error = ala.ask("POST", "/tasks", data=body).json["error"]
    assert error["code"] in {"invalid", "invalid_json"}
    assert "\\ud" in f"{error['field']} {error['message']}"

"""Who may do what, and who is told: scopes, revocation, rates, audit, isolation, events, callbacks, bulk puts."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kolejka.server.app import ROUTES
from kolejka.server.calling import AT_ONCE
from tests.integration.server_process import AMOUNTS, Caller, Server, Stream
from tests.integration.test_server_http import in_background, waiting_claims
from tests.neighbours.postgres import Postgres
from tests.neighbours.receiver import Receiver, receiving
from tests.support import wait_until

CALLBACKS = (
    "--callback-hosts", "127.0.0.0/8", "--callback-pause", "0.05", "--callback-timeout", "5", "--callback-tries", "3",
)  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), "--rate", "50", *CALLBACKS).start()
    yield server
    assert server.stop() == 0
    assert "Traceback" not in server.log()
    assert "klj_" not in server.log()
    assert "kcs_" not in server.log()


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


@pytest.fixture(autouse=True)
def nothing_waits(server: Server) -> Iterator[None]:
    yield
    for task in server.admin.ask("GET", "/tasks?state=waiting&limit=100").json["tasks"]:
        if task["owner"] == "many":  # and all that are older: nobody ever takes them
            break
        server.admin.ask("POST", f"/tasks/{task['id']}/cancel", status=200)


def narrowed(server: Server, user: str, **words: Any) -> Caller:
    """A further token of a user."""
    return Caller(server, server.admin.ask("POST", "/tokens", {"user": user, **words}, status=201).json["token"])


# Many at once


def test_ten_thousand_tasks_are_put_in_one_call_and_in_order(server: Server) -> None:
    many = server.user("many", "client")
    specs = [{"args": ["true"], "name": f"n{number}", "requires": ["nobody"]} for number in range(10_000)]
    tasks = many.ask("POST", "/tasks/bulk", {"tasks": specs}, status=201).json["tasks"]
    assert [task["name"] for task in tasks] == [spec["name"] for spec in specs]
    assert {task["state"] for task in tasks} == {"waiting"}
    newest = many.ask("GET", "/tasks?limit=2").json["tasks"]
    assert newest == [tasks[-1], tasks[-2]]
    one_too_many = many.ask("POST", "/tasks/bulk", {"tasks": [specs[0]] * 10_001}, status=422)
    assert one_too_many.error == ("invalid", "tasks")


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({}, "tasks[2].args"), ({"args": ["x"], "queue": "nowhere"}, "tasks[2].queue"),
        ({"args": ["x"], "files": {"a": {"reference": "0" * 64}}}, "tasks[2].files.a"),
        ({"args": ["x"], "files": {"a": {"path": "b"}}}, "tasks[2].files.a"), (7, "tasks[2]"),
        ({"args": ["x"], "callback_url": "http://example.org/"}, "tasks[2].callback_url"),
    ],
)  # fmt: skip
def test_one_bad_task_of_many_is_named_and_none_is_put(ala: Caller, spec: Any, field: str) -> None:
    before = ala.ask("GET", "/tasks?limit=1000").json["tasks"]
    good = {"args": ["true"]}
    refused = ala.ask("POST", "/tasks/bulk", {"tasks": [good, good, spec, good]}, status=422)
    assert refused.error[1] == field
    assert ala.ask("GET", "/tasks?limit=1000").json["tasks"] == before


def test_a_repeated_bulk_put_under_one_key_is_the_same_tasks(ala: Caller) -> None:
    body = {"tasks": [{"args": ["true"], "labels": {"n": str(number)}} for number in range(5)]}
    first, second = (
        ala.ask("POST", "/tasks/bulk", body, headers={"Idempotency-Key": "together"}, status=201).json for _ in range(2)
    )
    assert first == second
    alone = ala.ask("POST", "/tasks", body["tasks"][0], headers={"Idempotency-Key": "together"}, status=201).json
    assert alone["id"] not in {task["id"] for task in first["tasks"]}, "a single put's key is another"


def test_an_empty_bulk_put_is_refused(ala: Caller) -> None:
    assert ala.ask("POST", "/tasks/bulk", {"tasks": []}, status=422).error == ("invalid", "tasks")


# Once more


def test_a_done_task_is_tried_once_more_as_a_new_one(ala: Caller, smith: Caller, admin: Caller) -> None:
    sha = ala.upload(b"for a second time")
    old = ala.put(files={"in": {"reference": sha}}, labels={"exam": "2"})
    assert ala.ask("POST", f"/tasks/{old}/retry", status=409).error[0] == "conflict", "it waits"
    (given,) = smith.claim()["attempts"]
    assert ala.ask("POST", f"/tasks/{old}/retry", status=409).error[0] == "conflict", "it runs"
    smith.finish(given["lease"], outcome="failed", result=1)
    before = ala.ask("GET", f"/tasks/{old}").json
    new = ala.ask("POST", f"/tasks/{old}/retry", status=201).json
    assert new["id"] != old
    assert new["labels"] == {"exam": "2", "retry_of": old}
    assert {**new["spec"], "id": old, "labels": before["spec"]["labels"]} == before["spec"]
    assert ala.ask("GET", f"/tasks/{old}").json == before, "the old one stays as it is"
    (given,) = smith.claim()["attempts"]
    assert given["task_id"] == new["id"]
    smith.finish(given["lease"])
    again = admin.ask("POST", f"/tasks/{new['id']}/retry", status=201).json
    assert (again["owner"], again["labels"]["retry_of"]) == ("ala", new["id"]), "the owner's, whoever asks"
    act = admin.ask("GET", "/audit?limit=1").json["acts"][0]
    assert (act["user"], act["act"], act["target"]) == ("admin", "task.retry", new["id"])


# Events


def test_the_steps_of_a_task_are_told_in_their_order(ala: Caller, ola: Caller, smith: Caller) -> None:
    stream, theirs = Stream(ala), Stream(ola)
    assert stream.hello is not None
    assert stream.hello.what == "hello"
    task_id = ala.put()
    (given,) = smith.claim()["attempts"]
    ala.ask("POST", f"/tasks/{task_id}/cancel", status=200)
    smith.finish(given["lease"], outcome="cancelled", result=None)
    ala.ask("DELETE", f"/tasks/{task_id}", status=204)
    told = [stream.next() for _ in range(5)]
    assert [event.what for event in told if event] == ["waiting", "running", "cancelling", "done", "deleted"]
    assert {event.data["task"] for event in told if event} == {task_id}
    assert [event.data["lease"] for event in told if event] == [None, *[given["lease"]] * 4]
    assert [event.data["outcome"] for event in told if event] == [None, None, None, "cancelled", "cancelled"]
    other = ola.put()
    event = theirs.next()
    assert event is not None
    assert event.data["task"] == other, "nothing of ala's was told to ola"
    stream.close()
    theirs.close()


def test_one_who_comes_back_misses_nothing(ala: Caller) -> None:
    stream = Stream(ala)
    first = ala.put()
    event = stream.next()
    assert event is not None
    stream.close()
    missed = [ala.put() for _ in range(3)]
    for back in (
        Stream(ala, headers={"Last-Event-ID": str(event.number)}), Stream(ala, f"/events?after={event.number}"),
        Stream(ala, "/events?after=0", headers={"Last-Event-ID": str(event.number)}),
    ):  # fmt: skip
        told = [back.next() for _ in range(3)]
        assert [one.data["task"] for one in told if one] == missed
        back.close()
    only = Stream(ala, f"/events?task={first}&after=0")
    one = only.next()
    assert one is not None
    if one.what == "gap":
        one = only.next()
    assert one is not None
    assert one.data["task"] == first
    only.close()


def test_one_who_comes_from_nowhere_is_told_of_a_gap(ala: Caller) -> None:
    stream = Stream(ala, headers={"Last-Event-ID": str(10**15)})
    gap = stream.next()
    assert gap is not None
    assert gap.what == "gap"
    task_id = ala.put()
    event = stream.next()
    assert event is not None
    assert event.data["task"] == task_id
    stream.close()


@pytest.mark.parametrize("number", ["x", "-1", "1" * 40, "٣"])
def test_an_event_that_has_no_number_is_refused(ala: Caller, number: str) -> None:
    headers = {"Last-Event-ID": number.encode()}
    assert ala.ask("GET", "/events", headers=headers, status=422).error == ("invalid", "Last-Event-ID")  # type: ignore[arg-type]


def test_a_user_follows_so_many_streams_and_no_more(server: Server) -> None:
    ewa = server.user("ewa", "client")
    streams = [Stream(ewa) for _ in range(16)]
    refused = ewa.ask("GET", "/events", status=429)
    assert int(refused.headers["retry-after"]) >= 1
    for stream in streams:
        stream.close()
    wait_until(lambda: ewa.ask("GET", "/events?after=x").status == 422)  # still there to be asked

    def free() -> bool:
        connection = ewa.connect()
        connection.request("GET", "/api/v1/events", headers={"Authorization": f"Bearer {ewa.token}"})
        status = connection.getresponse().status
        connection.close()
        return status == 200

    wait_until(free, about="those who left are counted no more")


# Tokens


def test_a_token_for_one_queue_opens_nothing_else(server: Server, ala: Caller) -> None:
    task_id = ala.put()
    only = narrowed(server, "ala", scope={"queues": ["elsewhere"]})
    assert only.ask("GET", "/whoami").json["scope"] == {"queues": ["elsewhere"]}
    assert only.ask("POST", "/tasks", {"args": ["x"]}, status=403).error == ("forbidden", "queue")
    assert only.ask("GET", f"/tasks/{task_id}").status == 404
    assert only.ask("POST", f"/tasks/{task_id}/cancel").status == 404
    assert only.ask("GET", "/tasks").json["tasks"] == []
    stream = Stream(narrowed(server, "ala", scope={"queues": ["default"]}))
    other = ala.put()
    event = stream.next()
    assert event is not None
    assert event.data["task"] == other
    stream.close()
    node = narrowed(server, "smith", scope={"queues": ["elsewhere"]})
    assert node.claim("narrow")["attempts"] == []
    body = {"node": "narrow", "total": AMOUNTS, "capacity": AMOUNTS, "slots": 1, "queues": ["default"]}
    assert node.ask("POST", "/claims", body, status=403).error == ("forbidden", "queues")


def test_a_token_for_one_queue_learns_no_other_task_by_its_key(server: Server, admin: Caller, ala: Caller) -> None:
    admin.ask("PUT", "/queues/narrow", {})
    only, key = narrowed(server, "ala", scope={"queues": ["narrow"]}), {"Idempotency-Key": "guessed"}
    ala.ask("POST", "/tasks", {"args": ["x"], "environment": {"PASSWORD": "x"}}, headers=key, status=201)
    ala.ask("POST", "/tasks/bulk", {"tasks": [{"args": ["x"]}]}, headers=key, status=201)
    mine = {"args": ["x"], "queue": "narrow"}
    refused = ("forbidden", "Idempotency-Key")
    assert only.ask("POST", "/tasks", mine, headers=key, status=403).error == refused
    code, field = only.ask("POST", "/tasks/bulk", {"tasks": [mine]}, headers=key, status=403).error
    assert (code, field) == ("forbidden", "tasks[0].Idempotency-Key")


def test_a_token_for_one_queue_reaches_no_other_blobs_of_its_user(server: Server, ala: Caller) -> None:
    mine, theirs = secrets.token_bytes(8), secrets.token_bytes(8)
    only, again = (narrowed(server, "ala", scope={"queues": ["default"]}) for _ in range(2))
    sha = ala.upload(mine)
    for call in (only.ask("GET", f"/blobs/{sha}"), only.ask("HEAD", f"/blobs/{sha}")):
        assert call.status == 404
    assert only.ask("POST", f"/blobs/{sha}/upload", {"size": 8}).json["state"] == "wanted"
    assert only.ask("POST", "/tasks", {"args": ["x"], "files": {"f": {"reference": sha}}}).error == (
        "blob_missing", "files.f",
    )  # fmt: skip
    assert only.ask("DELETE", f"/blobs/{sha}").status == 404
    own = only.upload(theirs)
    assert [blob["sha256"] for blob in only.ask("GET", "/blobs").json["blobs"]] == [own]
    assert only.ask("GET", f"/blobs/{own}").data == theirs
    assert again.ask("GET", f"/blobs/{own}").status == 404
    only.put(files={"f": {"reference": own}})
    assert again.ask("GET", f"/blobs/{own}").data == theirs, "it is a task's of its queue now"


def test_a_token_that_reads_changes_nothing(server: Server, ala: Caller) -> None:
    task_id = ala.put()
    reader = narrowed(server, "ala", scope={"read_only": True})
    assert reader.ask("GET", f"/tasks/{task_id}").status == 200
    for route in ROUTES:
        if route.method not in {"GET", "HEAD"} and route.roles is not None:
            words = {
                "task_id": task_id,
                "lease": "1",
                "sha256": "0" * 64,
                "name": "anvil",
                "token_id": "1",
                "number": "1",
            }
            assert reader.ask(route.method, route.path.format(**words), {}, status=403).error[0] == "forbidden"
    assert ala.state(task_id) == "waiting"


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ({"user": "admin", "scope": {"read_only": True}}, "scope"),
        ({"user": "smith", "scope": {"read_only": True}}, "scope.read_only"),
        ({"user": "ala", "scope": {"queues": []}}, "scope.queues"), ({"user": "ala", "scope": {"x": 1}}, "scope.x"),
        ({"user": "ala", "scope": {"queues": ["a", "a"]}}, "scope.queues"),
    ],
)  # fmt: skip
def test_a_scope_that_means_nothing_is_refused(admin: Caller, smith: Caller, words: Any, field: str) -> None:
    assert admin.ask("POST", "/tokens", words, status=422).error == ("invalid", field)


def test_a_revoked_token_ends_what_waits_under_it(server: Server, admin: Caller, ala: Caller, smith: Caller) -> None:
    task_id = ala.put(requires=["nobody-has-this"])
    doomed = admin.ask("POST", "/tokens", {"user": "ala"}, status=201).json
    node = admin.ask("POST", "/tokens", {"user": "smith"}, status=201).json
    caller, foreman = Caller(server, doomed["token"]), Caller(server, node["token"])
    stream = Stream(caller)
    result = in_background(caller.ask, "GET", f"/tasks/{task_id}/result?wait=60")
    body = {"node": "doomed", "total": AMOUNTS, "capacity": AMOUNTS, "slots": 1, "wait": 30}
    claim = in_background(foreman.ask, "POST", "/claims", body)
    wait_until(lambda: waiting_claims(admin) == 1)
    for token in (doomed, node):
        admin.ask("DELETE", f"/tokens/{token['id']}", status=204)
    assert result.result(20).status == 401
    assert claim.result(20).status == 401
    assert stream.next() is None


def test_a_revoked_token_ends_transfers_under_way(server: Server, admin: Caller, ala: Caller) -> None:
    doomed = admin.ask("POST", "/tokens", {"user": "ala"}, status=201).json
    said = {"Authorization": f"Bearer {doomed['token']}"}
    large, other = secrets.token_bytes(32 << 20), secrets.token_bytes(1 << 16)  # more than sockets hold
    down, up = ala.connect(), ala.connect()
    down.request("GET", f"/api/v1/blobs/{ala.upload(large)}", headers=said)
    answer = down.getresponse()
    assert answer.read(1) == large[:1]
    sha = hashlib.sha256(other).hexdigest()
    up.putrequest("PUT", f"/api/v1/blobs/{sha}")
    for name, value in {**said, "Content-Length": str(len(other))}.items():
        up.putheader(name, value)
    up.endheaders(other[:1000])
    incoming = server.data / "blobs" / "incoming"
    wait_until(lambda: any(incoming.iterdir()), about="the upload began")
    admin.ask("DELETE", f"/tokens/{doomed['id']}", status=204)
    with pytest.raises(http.client.IncompleteRead):
        answer.read()
    up.send(other[1000:])
    assert up.getresponse().status == 401
    assert ala.ask("GET", f"/blobs/{sha}").status == 404
    down.close()
    up.close()


def test_who_calls_too_often_is_told_when_to_come_again(tmp_path: Path) -> None:
    server = Server(tmp_path, "--rate", "1").start()
    try:
        eager = server.user("eager", "client")
        replies = [eager.ask("GET", "/whoami") for _ in range(200)]
        refused = [reply for reply in replies if reply.status == 429]
        assert refused
        assert refused[0].error[0] == "too_many_requests"
        assert int(refused[0].headers["retry-after"]) >= 1
        assert {reply.status for reply in replies} == {200, 429}
        assert server.admin.ask("GET", "/whoami").status == 200, "others are not held up"
    finally:
        server.stop()


def test_acts_of_admins_are_written_down(server: Server, admin: Caller, ala: Caller) -> None:
    zoe = server.user("zoe", "client")
    task_id = zoe.put()
    token = admin.ask("POST", "/tokens", {"user": "zoe", "name": "spare"}, status=201).json
    admin.ask("DELETE", f"/tokens/{token['id']}", status=204)
    admin.ask("POST", f"/tasks/{task_id}/cancel", status=200)
    admin.ask("DELETE", f"/tasks/{task_id}", status=204)
    acts = admin.ask("GET", "/audit?user=admin&limit=6", status=200).json["acts"]
    assert [(act["act"], act["target"]) for act in reversed(acts)] == [
        ("user.create", "zoe"), ("token.create", "zoe"), ("token.create", "zoe"), ("token.revoke", str(token["id"])),
        ("task.cancel", task_id), ("task.delete", task_id),
    ]  # fmt: skip
    assert acts[2]["id"] > acts[3]["id"]
    assert "klj_" not in json.dumps(acts)
    first = admin.ask("GET", "/audit?limit=2").json
    second = admin.ask("GET", f"/audit?limit=2&after={first['next']}").json
    assert [act["id"] for act in first["acts"] + second["acts"]] == sorted(
        (act["id"] for act in first["acts"] + second["acts"]), reverse=True
    )
    mine = ala.put()
    ala.ask("POST", f"/tasks/{mine}/cancel", status=200)
    assert mine not in json.dumps(admin.ask("GET", "/audit").json), "one's own tasks are one's own business"


def test_nothing_of_another_owner_exists(ala: Caller, ola: Caller, smith: Caller) -> None:
    task_id, sha = ala.put(), ala.upload(b"only ala's")
    (given,) = smith.claim("shared")["attempts"]
    words = {
        "task_id": task_id,
        "lease": str(given["lease"]),
        "sha256": sha,
        "name": "none",
        "token_id": "1",
        "number": "1",
    }
    for route in ROUTES:
        if "{" not in route.path or ("/blobs/" in route.path and route.method in {"PUT", "POST", "PATCH"}):
            continue  # an upload brings the bytes, and is the caller's own
        allowed = {role.value for role in route.roles or ()}
        status = ola.ask(route.method, route.path.format(**words)).status
        assert status == (404 if "client" in allowed else 403), f"{route.method} {route.path}: {status}"
    assert task_id not in json.dumps([ola.ask("GET", path).json for path in ("/tasks?limit=1000", "/nodes")])
    node = ola.ask("GET", "/nodes/shared").json
    assert (node["busy"], node["running"]) == (1, []), "that it is busy is no secret"
    assert ala.ask("GET", "/nodes/shared").json["running"] == [task_id]
    assert ola.ask("GET", f"/events?task={task_id}").status == 404
    smith.finish(given["lease"])


@pytest.mark.parametrize(
    "said", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin1"]
)
def test_a_body_that_is_said_to_be_something_else_is_refused(ala: Caller, said: str) -> None:
    refused = ala.ask("POST", "/tasks", {"args": ["x"]}, headers={"Content-Type": said}, status=415)
    assert refused.error == ("unsupported_media_type", "Content-Type")
    sha = hashlib.sha256(b"x").hexdigest()
    assert ala.ask("PUT", f"/blobs/{sha}", data=b"x", headers={"Content-Type": said}).status == 415
    for encoding in ("gzip", "br, gzip"):
        for path, data in (("/tasks", b'{"args": ["x"]}'), (f"/blobs/{sha}", b"x")):
            method = "POST" if path == "/tasks" else "PUT"
            refused = ala.ask(method, path, data=data, headers={"Content-Encoding": encoding}, status=415)
            assert refused.error == ("unsupported_media_type", "Content-Encoding")
    good = {"Content-Type": 'Application/JSON; charset="UTF-8"', "Content-Encoding": "identity"}
    assert ala.ask("POST", "/tasks", {"args": ["x"]}, headers=good).status == 201


# Nodes


def test_a_node_that_is_asked_to_drain_gets_nothing_until_it_is_asked_to_resume(
    admin: Caller, ala: Caller, smith: Caller
) -> None:
    claim = in_background(smith.claim, "tired", wait=30)
    wait_until(lambda: waiting_claims(admin) == 1)
    drained = admin.ask("POST", "/nodes/tired/drain", status=200).json
    assert (drained["state"], drained["asked"]) == ("draining", "drain")
    answer = claim.result(20)
    assert (answer["attempts"], answer["asked"]) == ([], "drain"), "it is told at once"
    assert smith.beat(node="tired")["asked"] == "drain"
    task_id = ala.put()
    assert smith.claim("tired", wait=30)["attempts"] == []
    resumed = admin.ask("POST", "/nodes/tired/resume", status=200).json
    assert (resumed["state"], resumed["asked"]) == ("active", None)
    assert smith.beat(node="tired")["asked"] is None
    (given,) = smith.claim("tired")["attempts"]
    assert given["task_id"] == task_id
    smith.finish(given["lease"])
    assert admin.ask("POST", "/nodes/nobody/drain", status=404).error[0] == "not_found"
    acts = [(act["act"], act["target"]) for act in admin.ask("GET", "/audit?limit=2").json["acts"]]
    assert acts == [("node.resume", "tired"), ("node.drain", "tired")]


def test_a_second_foreman_of_one_name_is_refused_while_the_first_is_heard(smith: Caller) -> None:
    first, second = "1" * 32, "2" * 32
    smith.beat(node="twin", instance=first)
    smith.claim("twin", instance=first)
    body = {"node": "twin", "tags": [], "total": {}, "capacity": {}, "leases": [], "instance": second}
    refused = smith.ask("POST", "/heartbeats", body, status=403)
    assert refused.error == ("forbidden", "node")
    assert "another foreman" in refused.json["error"]["message"]
    claim = {key: value for key, value in body.items() if key != "leases"} | {"slots": 1}
    assert smith.ask("POST", "/claims", claim, status=403).error == ("forbidden", "node")
    smith.beat(node="twin", instance=first)
    smith.beat(node="twin")


# Callbacks


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def key_of(caller: Caller) -> str:
    made = caller.ask("POST", "/callbacks/secret", status=201)
    assert made.headers["cache-control"] == "no-store"
    return str(made.json["secret"])


def test_who_asked_is_called_back_signed_and_once(ala: Caller, smith: Caller, receiver: Receiver) -> None:
    secret = key_of(ala)
    task_id = ala.put(callback_url=receiver.url)
    (given,) = smith.claim()["attempts"]
    assert receiver.heard == []
    smith.finish(given["lease"], outcome="failed", result=3)
    receiver.wait(1)
    path, headers, body = receiver.heard[0]
    assert path == "/done?x=1"
    words = json.loads(body)
    assert (words["task"], words["lease"], words["outcome"]) == (task_id, given["lease"], "failed")
    signed = hmac.new(secret.encode(), f"{headers['kolejka-timestamp']}.".encode() + body, hashlib.sha256).hexdigest()
    assert headers["kolejka-signature"] == f"sha256={signed}"
    wait_until(lambda: ala.ask("GET", f"/tasks/{task_id}").json["callback"]["ended_at"])
    shown = ala.ask("GET", f"/tasks/{task_id}").json["callback"]
    assert (shown["tries"], shown["answer"], shown["due_at"]) == (1, "204", None)
    other = ala.put(callback_url=receiver.url)
    ala.ask("POST", f"/tasks/{other}/cancel", status=200)
    receiver.wait(2)
    assert json.loads(receiver.heard[1][2])["outcome"] == "cancelled"
    assert len(receiver.heard) == 2


def test_a_receiver_that_never_answers_holds_up_nobody_elses_callbacks(
    ala: Caller, ola: Caller, receiver: Receiver
) -> None:
    key_of(ala)
    key_of(ola)
    receiver.hold.clear()
    specs = [{"args": ["x"], "callback_url": receiver.url}] * (2 * AT_ONCE)
    stuck = [task["id"] for task in ala.ask("POST", "/tasks/bulk", {"tasks": specs}, status=201).json["tasks"]]
    for task_id in stuck:
        ala.ask("POST", f"/tasks/{task_id}/cancel", status=200)
    receiver.wait(AT_ONCE // 2)
    with receiving() as quick:
        ola.ask("POST", f"/tasks/{ola.put(callback_url=quick.url)}/cancel", status=200)
        quick.wait(1)
    for task_id in stuck:
        assert ala.ask("GET", f"/tasks/{task_id}").json["callback"]["answer"] is None, "nobody waited for its time-out"


def test_a_callback_that_is_not_heard_is_tried_again_and_given_up(
    ala: Caller, smith: Caller, receiver: Receiver
) -> None:
    key_of(ala)
    receiver.answers[:] = [500, 307]
    task_id = ala.put(callback_url=receiver.url)
    ala.ask("POST", f"/tasks/{task_id}/cancel", status=200)
    receiver.wait(3)
    assert [path for path, _, _ in receiver.heard] == ["/done?x=1"] * 3, "a redirect is not followed"
    assert [headers["kolejka-try"] for _, headers, _ in receiver.heard] == ["1", "2", "3"]
    assert len({body for _, _, body in receiver.heard}) == 1
    receiver.answers[:] = [503] * 3
    lost = ala.put(callback_url=receiver.url)
    ala.ask("POST", f"/tasks/{lost}/cancel", status=200)
    wait_until(lambda: ala.ask("GET", f"/tasks/{lost}").json["callback"]["ended_at"])
    shown = ala.ask("GET", f"/tasks/{lost}").json["callback"]
    assert (shown["tries"], shown["answer"]) == (3, "answered 503")


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/", "http://10.0.0.1/", "http://localhost/", "http://u:p@127.0.0.1/", "http://127.0.0.1:99999/",
        "http://127.0.0.1/#x", "http://127.0.0.1/a b", "http://127.0.0.1/\r\nX: y", "http:///x", "http://2130706433/",
        "http://[::1]/", "https://127.0.0.1@example.org/",
    ],
)  # fmt: skip
def test_an_address_that_may_not_be_called_is_refused(ala: Caller, url: str) -> None:
    key_of(ala)
    assert ala.ask("POST", "/tasks", {"args": ["x"], "callback_url": url}, status=422).error[1] == "callback_url"


def test_callbacks_need_a_key(server: Server) -> None:
    keyless = server.user("keyless", "client")
    refused = keyless.ask("POST", "/tasks", {"args": ["x"], "callback_url": "http://127.0.0.1/"}, status=422)
    assert refused.error[1] == "callback_url"
    assert "kolejka callback secret" in refused.json["error"]["message"]
    assert keyless.ask("GET", "/tasks").json["tasks"] == []


@pytest.mark.parametrize("moment", ["before the call", "in the middle of it"])
def test_a_server_that_dies_between_result_and_callback_calls_back_all_the_same(
    tmp_path: Path, receiver: Receiver, moment: str
) -> None:
    server = Server(tmp_path, *CALLBACKS).start()
    try:
        ala, smith = server.user("ala", "client"), server.user("smith", "node")
        key_of(ala)
        if moment == "before the call":
            receiver.answers[:] = [503]
        else:
            receiver.hold.clear()
        task_id = ala.put(callback_url=receiver.url)
        (given,) = smith.claim()["attempts"]
        smith.finish(given["lease"])
        receiver.wait(1)
        server.crash()
        receiver.hold.set()
        heard = len(receiver.heard)
        server.start()
        receiver.wait(heard + 1)
        assert {json.loads(body)["task"] for _, _, body in receiver.heard} == {task_id}
        wait_until(lambda: ala.ask("GET", f"/tasks/{task_id}").json["callback"]["answer"] == "204")
    finally:
        server.stop()


def test_a_server_that_stops_ends_the_streams(tmp_path: Path) -> None:
    server = Server(tmp_path).start()
    stream = Stream(server.user("ala", "client"))
    stopped = in_background(server.stop)
    assert stream.next() is None
    assert stopped.result(30) == 0


@pytest.mark.needs("postgres")
def test_what_one_server_does_is_told_by_another_on_the_same_database(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    url = postgres.url(postgres.create())
    monkeypatch.setenv("KOLEJKA_SERVER_DATABASE", url)
    servers = [Server(tmp_path / name, *CALLBACKS) for name in ("one", "two")]
    for server in servers:
        server.folder.mkdir()
        server.start()
    one, two = servers
    try:
        ala, smith = one.user("ala", "client"), one.user("smith", "node")
        there, node = Caller(two, ala.token), Caller(two, smith.token)
        key_of(ala)
        stream = Stream(there)
        claim = in_background(node.claim, wait=30)
        task_id = ala.put(callback_url=receiver.url)
        (given,) = claim.result(30)["attempts"]
        smith.finish(given["lease"])
        told = [stream.next() for _ in range(3)]
        assert [(event.what, event.data["task"]) for event in told if event] == [
            ("waiting", task_id), ("running", task_id), ("done", task_id),
        ]  # fmt: skip
        wait_until(lambda: there.ask("GET", f"/tasks/{task_id}").json["callback"]["ended_at"])
        assert len(receiver.heard) == 1, "one of the two called"
        claim = in_background(node.claim, wait=30)
        one.admin.ask("POST", "/nodes/anvil/drain", status=200)
        assert claim.result(30)["asked"] == "drain"
        one.admin.ask("DELETE", f"/tokens/{there.ask('GET', '/whoami').json['token']}", status=204)
        assert stream.next() is None
        assert there.ask("GET", "/whoami").status == 401
    finally:
        for server in servers:
            server.stop()
        postgres.drop(url)

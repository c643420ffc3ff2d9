"""The node's side: what is said to the server, and what its answers mean."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kolejka.client import NodeClient
from kolejka.client.node import Attempt, Beat, Claimed
from kolejka.common.errors import Conflict, InputError, Unavailable
from kolejka.common.limits import Limits
from kolejka.common.result import Outcome, Result, ResultFile
from kolejka.common.settings import ClientSettings
from kolejka.common.task import Task
from tests.unit.client_stub import TOKEN, Stub, hang_up, serving, status


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serving(Stub()) as served:
        yield served


@pytest.fixture
def node(stub: Stub) -> Iterator[NodeClient]:
    with NodeClient(ClientSettings(server=stub.url, token=TOKEN, timeout=10.0, patience=10.0)) as opened:
        opened.transport.pause = lambda seconds: None  # type: ignore[method-assign]
        yield opened


def claim(node: NodeClient, **words: Any) -> Claimed:
    usual: dict[str, Any] = {"capacity": Limits.of(memory="1G"), "total": {"memory": 2 << 30}, "slots": 2}
    return node.claim("n1", **{**usual, **words})


def test_a_claim_says_all_and_reads_all(stub: Stub, node: NodeClient) -> None:
    attempt = {"lease": 7, "task_id": "t", "owner": "ann", "spec": {"args": ["x"]}, "deadline_s": 90}
    stub.fault("POST", "/claims", status(200, {"attempts": [attempt], "heartbeat_s": 5, "cancel": [3]}))
    claimed = claim(node, tags=["a"], queues=("q",), wait_s=1.5, idle=True)
    assert json.loads(stub.asked[-1].body) == {
        "node": "n1", "tags": ["a"], "capacity": {"memory": 1 << 30}, "total": {"memory": 2 << 30}, "slots": 2,
        "queues": ["q"], "wait": 1.5, "idle": True,
    }  # fmt: skip
    assert claimed == Claimed((Attempt(7, "t", "ann", {"args": ["x"]}, 90.0),), frozenset({3}), 5.0)
    assert claimed.attempts[0].task == Task(args=("x",))


def test_a_claim_tells_what_an_older_server_does_not_ask_for_until_it_says_so(stub: Stub, node: NodeClient) -> None:
    words: dict[str, Any] = {"leases": (4, 5), "ahead": {"cpus": 2}, "ahead_slots": 2}
    stub.fault("POST", "/claims", status(200, {"attempts": []}))
    claim(node, **words)
    told = json.loads(stub.asked[-1].body)
    assert (told["leases"], told["ahead"]) == ([4, 5], {"capacity": {"cpus": 2}, "slots": 2})
    for field in ("ahead", "leases"):
        refusal = {"error": {"code": "invalid", "message": "there is no such field", "field": field}}
        stub.fault("POST", "/claims", status(422, refusal))
    stub.fault("POST", "/claims", status(200, {"attempts": []}), times=2)
    for _ in range(2):
        assert claim(node, **words) == Claimed()
    told_then = [set(json.loads(asked.body)) & {"leases", "ahead"} for asked in stub.asked[-4:]]
    assert told_then == [{"leases", "ahead"}, {"leases"}, set(), set()]


def test_results_handed_in_together_are_answered_each(stub: Stub, node: NodeClient) -> None:
    refusals = [{"code": "conflict", "message": "overtaken"}, {"code": "blob_missing", "message": "x", "field": "f"}]
    told = [
        {"lease": 1, "task_id": "a", "state": "done"},
        *({"lease": n + 2, "error": e} for n, e in enumerate(refusals)),
    ]
    stub.fault("POST", "/attempts/results", status(200, {"results": told}))
    answers = node.put_results({lease: Result(Outcome.OK, result=0) for lease in (1, 2, 3)})
    assert [entry["lease"] for entry in json.loads(stub.asked[-1].body)["results"]] == [1, 2, 3]
    assert answers[1] is None
    assert isinstance(answers[2], Conflict)
    missing = answers[3]
    assert missing is not None
    assert (missing.code, missing.field) == ("blob_missing", "f")
    for nonsense in ({}, {"results": [{}]}, {"results": [{"lease": 1, "error": 5}]}, {"results": 3}):
        stub.fault("POST", "/attempts/results", status(200, nonsense))
        with pytest.raises(InputError, match="no Kolejka server"):
            node.put_results({1: Result(Outcome.OK)})


@pytest.mark.parametrize(
    "answer",
    [{}, {"attempts": 5}, {"attempts": [{}]}, {"attempts": [{"lease": "x", "task_id": "t", "spec": {}}]},
     {"attempts": [{"lease": 1, "task_id": "t", "spec": 3}]}, []],
)  # fmt: skip
def test_an_answer_that_is_none_is_an_error_with_a_name(stub: Stub, node: NodeClient, answer: object) -> None:
    stub.fault("POST", "/claims", status(200, answer))
    with pytest.raises(InputError, match="no Kolejka server"):
        claim(node)
    stub.fault("POST", "/heartbeats", status(200, answer))
    with pytest.raises(InputError, match="no Kolejka server"):
        node.heartbeat("n1", leases=[], capacity={}, total={})


def test_a_task_this_node_does_not_know_is_found_when_it_is_read(stub: Stub, node: NodeClient) -> None:
    attempt = {"lease": 7, "task_id": "t", "owner": "ann", "spec": {"args": ["x"], "from_the_future": 1}}
    stub.fault("POST", "/claims", status(200, {"attempts": [attempt]}))
    (claimed,) = claim(node).attempts
    with pytest.raises(InputError, match="from_the_future"):
        _ = claimed.task


def test_a_heartbeat_says_its_leases_and_hears_which_are_lost(stub: Stub, node: NodeClient) -> None:
    stub.fault("POST", "/heartbeats", status(200, {"lost": [1], "cancel": [2], "heartbeat_s": 9}))
    beat = node.heartbeat("n1", leases=[1, 2, 3], capacity={}, total={}, state="draining")
    assert beat == Beat(frozenset({1}), frozenset({2}), 9.0)
    assert json.loads(stub.asked[-1].body)["leases"] == [1, 2, 3]
    assert json.loads(stub.asked[-1].body)["state"] == "draining"


def test_a_heartbeat_waits_no_longer_than_it_is_told_nor_than_any_request(
    stub: Stub, node: NodeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.fault("POST", "/heartbeats", status(200, {"lost": []}), times=3)
    told: list[float] = []
    send = node.transport.request
    monkeypatch.setattr(
        node.transport, "request", lambda *words, **more: (told.append(more["timeout"]), send(*words, **more))[1]
    )
    for timeout_s in (None, 7.0, node.settings.timeout + 1):
        node.heartbeat("n1", leases=[], capacity={}, total={}, timeout_s=timeout_s)
    assert told == [node.settings.timeout, 7.0, node.settings.timeout]


def test_a_node_tells_its_instance_and_hears_what_is_asked(stub: Stub, node: NodeClient) -> None:
    node.instance = "a" * 32
    stub.fault("POST", "/heartbeats", status(200, {"lost": [], "asked": "drain"}))
    assert node.heartbeat("n1", leases=[], capacity={}, total={}).asked == "drain"
    assert json.loads(stub.asked[-1].body)["instance"] == "a" * 32
    stub.fault("POST", "/claims", status(200, {"attempts": [], "asked": "drain"}))
    assert claim(node).asked == "drain"
    assert json.loads(stub.asked[-1].body)["instance"] == "a" * 32


def test_claims_and_heartbeats_are_not_repeated(stub: Stub, node: NodeClient) -> None:
    node.whoami()
    for path in ("/claims", "/heartbeats"):
        stub.fault("POST", path, status(503, {"error": {"code": "unavailable", "message": "busy"}}), times=9)
    with pytest.raises(Unavailable):
        claim(node)
    with pytest.raises(Unavailable):
        node.heartbeat("n1", leases=[], capacity={}, total={})
    assert (stub.count("POST", "/claims"), stub.count("POST", "/heartbeats")) == (1, 1)


def make_result(folder: Path) -> Result:
    folder.mkdir()
    manifest = {}
    for name, data in {"a": b"A", "deep/b": b"B", "deep/a": b"A"}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
        manifest[name] = ResultFile(len(data), "0644", hashlib.sha256(data).hexdigest())
    result = Result(Outcome.OK, result=0, id="t", manifest=manifest)
    result.save(folder)
    return result


def test_a_result_goes_up_after_its_files_and_is_repeated_until_it_is_heard(
    stub: Stub, node: NodeClient, tmp_path: Path
) -> None:
    result = make_result(tmp_path / "R")
    node.whoami()
    stub.fault("PUT", "/attempts/7/result", hang_up)
    stub.fault("PUT", "/attempts/7/result", status(200, {"task_id": "t", "state": "done"}))
    assert node.upload_result(7, tmp_path / "R") == {"task_id": "t", "state": "done"}
    puts = [asked for asked in stub.asked if asked.method == "PUT"]
    assert len(puts) == 4, "two blobs, and the result twice"
    assert puts[-2].body == puts[-1].body
    assert Result.parse(json.loads(puts[-1].body)) == result
    assert sorted(stub.blobs.values()) == [b"A", b"B"]


def test_a_result_whose_files_changed_is_not_handed_in(stub: Stub, node: NodeClient, tmp_path: Path) -> None:
    make_result(tmp_path / "R")
    (tmp_path / "R" / "a").write_bytes(b"X")
    with pytest.raises(InputError, match="changed"):
        node.upload_result(7, tmp_path / "R")
    assert stub.count("PUT", "/attempts/.*") == 0


def test_an_overtaken_lease_is_a_conflict(stub: Stub, node: NodeClient) -> None:
    words = {"error": {"code": "conflict", "message": "lease 7 was overtaken", "field": "lease"}}
    stub.fault("PUT", "/attempts/7/result", status(409, words))
    stub.fault("POST", "/attempts/7/release", status(409, words))
    with pytest.raises(Conflict):
        node.put_result(7, Result(Outcome.OK, result=0))
    with pytest.raises(Conflict):
        node.release(7, "draining")


def test_inputs_come_once_each_by_their_hash(stub: Stub, node: NodeClient, tmp_path: Path) -> None:
    shas = []
    for data in (b"A", b"B"):
        shas.append(hashlib.sha256(data).hexdigest())
        stub.blobs[shas[-1]] = data
    (tmp_path / shas[1]).write_bytes(b"B")
    task = Task.parse(
        {"args": ["x"], "files": {"a": {"reference": shas[0]}, "b": {"reference": shas[1]},
                                  "c": {"reference": shas[0]}, "d": {"content": "inline"}}}
    )  # fmt: skip
    node.fetch_inputs(task, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {shas[0]: b"A", shas[1]: b"B"}
    assert stub.count("GET", "/blobs/.*") == 1
    missing = Task.parse({"args": ["x"], "files": {"gone": {"reference": "0" * 64}}})
    with pytest.raises(InputError, match=r"files\.gone"):
        node.fetch_inputs(missing, tmp_path)


HUGE = 10**300


@pytest.mark.parametrize(
    "odd",
    [{"asked": {"reboot": 1}}, {"heartbeat_s": HUGE}],
    ids=lambda odd: next(iter(odd)),
)
def test_an_odd_answer_holds_nothing_that_a_foreman_cannot_use(
    stub: Stub, node: NodeClient, odd: dict[str, Any]
) -> None:
    attempt = {"lease": 7, "task_id": "t", "spec": {"args": ["x"]}, "deadline_s": HUGE}
    stub.fault("POST", "/claims", status(200, {"attempts": [attempt], **odd}))
    stub.fault("POST", "/heartbeats", status(200, {"lost": [], **odd}))
    for answer in (claim(node), node.heartbeat("n1", leases=[], capacity={}, total={})):
        assert answer.asked is None or isinstance(answer.asked, str)
        assert answer.heartbeat_s <= threading.TIMEOUT_MAX
    assert (claim_of(stub, node, attempt).attempts[0].deadline_s or 0.0) <= threading.TIMEOUT_MAX


@pytest.mark.parametrize("lease", [HUGE, -1, 0, float("inf")], ids=["huge", "negative", "zero", "infinite"])
def test_what_is_no_lease_makes_an_answer_that_is_not_understood(stub: Stub, node: NodeClient, lease: Any) -> None:
    with pytest.raises(InputError, match="is no Kolejka server"):
        claim_of(stub, node, {"lease": lease, "task_id": "t", "spec": {"args": ["x"]}})


def claim_of(stub: Stub, node: NodeClient, attempt: dict[str, Any]) -> Claimed:
    stub.fault("POST", "/claims", status(200, {"attempts": [attempt]}))
    return claim(node)

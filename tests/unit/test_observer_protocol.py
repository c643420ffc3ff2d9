"""The protocol's words, without control groups."""

from __future__ import annotations

import json
from types import SimpleNamespace

import falcon.testing
import pytest

from kolejka.common.errors import Conflict, InputError, NodeError, NotAllowed
from kolejka.common.stats import CpuStats, Stats
from kolejka.observer import server
from kolejka.observer.protocol import Caller, Protocol, parse_limits
from kolejka.observer.reports import Report
from kolejka.observer.session import Closed, check_enforced


def test_limits_of_earlier_clients_are_read():
    limits = parse_limits(
        {"memory": "67108864b", "time": "1.0s", "cpus": 1, "cpus_offset": 0, "gpus": 0, "swap": "0b", "pids": None}
    )
    assert limits.to_json() == {"cpus": 1, "memory": 67108864, "swap": 0, "time": 1.0}
    check_enforced(limits)


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        ({"perf_cycles": 1}, "limits: perf_cycles"),
        ({"memory": "1MM"}, "limits: memory"),
        ({"cpus_offset": "x"}, "limits: cpus_offset"),
        ([], "limits"),
    ],
)
def test_unknown_and_absurd_limits_are_errors(limits, field):
    with pytest.raises(InputError) as caught:
        parse_limits(limits)
    assert caught.value.field == field


@pytest.mark.parametrize("name", ["network", "storage", "workspace", "output", "image", "gpus", "gpu_memory"])
def test_limits_that_no_session_enforces_are_refused(name):
    value = True if name == "network" else 1
    with pytest.raises(InputError, match="cannot enforce"):
        check_enforced(parse_limits({name: value}))


class FakeRegistry:
    """Enough of a registry to speak to."""

    def __init__(self):
        self.opened = []
        self.inside = {}
        self.closed = Closed("a" * 32, "s", Report(Stats(time=1.5, cpu=CpuStats(usage=0.5)), "time", 2), 0)

    def __len__(self):
        return 3

    def session_of(self, pid):
        return self.inside.get(pid, (False, None))

    def find(self, id, secret):
        if (id, secret) != (self.closed.id, self.closed.secret):
            raise NotAllowed("the secret is not that of the session", field="secret")
        return self.closed

    def open(self, limits, **words):
        self.opened.append((limits.to_json(), words))
        return SimpleNamespace(id="b" * 32, secret="t", cgroup_parent="/kolejka/" + "b" * 32)


ROOT = Caller(10, 0, frozenset({0}))
NOBODY = Caller(11, 1000, frozenset({1000}))


@pytest.fixture
def registry():
    return FakeRegistry()


@pytest.fixture
def protocol(registry):
    return Protocol(registry, group=77)


def test_root_and_the_group_open_sessions_and_nobody_else(protocol, registry):
    assert protocol.open(ROOT, {"limits": {"memory": "1M"}, "cpuset": [0]})["session_id"] == "b" * 32
    protocol.open(Caller(12, 1000, frozenset({1000, 77})), {})
    with pytest.raises(NotAllowed, match="socket's group"):
        protocol.open(NOBODY, {})
    assert registry.opened[0] == ({"memory": 1 << 20}, {"cpuset": [0], "parent": None, "creator": 10, "bound": False})
    assert len(registry.opened) == 2


def test_a_caller_inside_a_session_opens_below_it_only(protocol, registry):
    own = SimpleNamespace(id="own")
    registry.inside[11] = (True, own)
    registry.inside[12] = (True, None)
    protocol.open(NOBODY, {})
    assert registry.opened[0][1]["parent"] is own
    with pytest.raises(NotAllowed, match="somebody else"):
        protocol.open(Caller(12, 0, frozenset()), {})


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"memory": 1}, "memory"),
        ({"cpuset": "0"}, "cpuset"),
        ({"cpuset": [True]}, "cpuset"),
        ({"bound": 1}, "bound"),
    ],
)
def test_wrong_fields_are_named(protocol, fields, field):
    with pytest.raises(InputError) as caught:
        protocol.open(ROOT, fields)
    assert caught.value.field == field


def test_a_closed_session_still_answers_with_its_figures(protocol):
    shown = {"session_id": "a" * 32, "secret": "s"}
    expected = {"time": 1.5, "cpu": {"usage": 0.5}, "limit": "time", "processes_left": 2, "status": "ok"}
    assert protocol.stats(ROOT, shown) == expected
    assert protocol.close(ROOT, shown) == expected
    for verb in ("attach", "detach", "limits", "freeze", "thaw"):
        with pytest.raises(Conflict, match="closed"):
            protocol.verbs[verb](ROOT, shown)


@pytest.mark.parametrize("verb", ["detach", "limits", "stats", "freeze", "thaw", "kill", "close"])
def test_every_verb_wants_the_secret(protocol, verb):
    with pytest.raises(NotAllowed):
        protocol.verbs[verb](ROOT, {"session_id": "a" * 32, "secret": "wrong"})
    with pytest.raises(NotAllowed):
        protocol.verbs[verb](ROOT, {"session_id": "a" * 32})


def test_only_root_moves_processes_of_others(protocol, registry):
    with pytest.raises(NotAllowed, match="only root"):
        protocol.attach(Caller(11, 1000, frozenset({77})), {"pid": 1})
    registry.inside[11] = (True, SimpleNamespace(id="own", outer=lambda: ()))
    with pytest.raises(NotAllowed, match="inside"):
        protocol.attach(NOBODY, {"pid": 1})
    with pytest.raises(InputError, match="number"):
        protocol.attach(ROOT, {"pid": "1"})


@pytest.fixture
def http(protocol, monkeypatch):
    monkeypatch.setattr(server.Caller, "of", lambda door: ROOT)
    return falcon.testing.TestClient(server.create_app(protocol), headers={"Content-Type": server.CONTENT_TYPE})


def post(http, path, body, **words):
    return http.simulate_post(path, body=body, extras={"gunicorn.socket": None}, **words)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "malformed"),
        (b"[]", 400, "malformed"),
        (b"\xff", 400, "malformed"),
        (b"[" * 20000, 400, "malformed"),
        (b'{"a": "' + b"x" * 70000 + b'"}', 413, "too_large"),
        (b'{"wrong": 1}', 422, "invalid"),
        (b'{"limits": {"memory": "lots"}}', 422, "invalid"),
    ],
)
def test_bad_bodies_have_their_status(http, body, status, code):
    answer = post(http, "/open", body)
    assert answer.status_code == status
    assert answer.json["error"]["code"] == code


def test_a_body_of_another_type_is_refused(http):
    answer = post(http, "/open", b"limits=1", headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("error", "status"),
    [(NotAllowed("x"), 403), (Conflict("x"), 409), (NodeError("x"), 500), (ZeroDivisionError(), 500)],
)
def test_every_error_has_its_status(http, registry, monkeypatch, error, status):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(registry, "open", fail)
    assert post(http, "/open", b"{}").status_code == status


def test_health_is_told_to_everybody(http):
    assert http.simulate_get("/").json["sessions"] == 3
    assert http.simulate_head("/").status_code == 200
    assert http.simulate_get("/nowhere").status_code == 404
    assert http.simulate_get("/open").status_code == 405
    answer = post(http, "/open/", json.dumps({}).encode())
    assert answer.json["status"] == "ok"
    assert answer.headers["content-type"] == "application/json; charset=utf-8"

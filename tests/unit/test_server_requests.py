"""Reading requests: queries, bodies, ranges, ids; and what routes declare."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from kolejka.common import errors as common_errors
from kolejka.common.errors import InputError, KolejkaError
from kolejka.common.limits import Limits
from kolejka.common.task import Task
from kolejka.server import intake
from kolejka.server.api import errors, openapi
from kolejka.server.api.answers import ANSWERS
from kolejka.server.api.blobs import parse_range
from kolejka.server.api.routes import MAX_DEPTH, Query, decode, read_query, read_raw, whole
from kolejka.server.app import ROUTES
from kolejka.server.auth import tokens
from kolejka.server.auth.roles import Role, may_hold

QUERIES = (
    Query("state", "", choices=("waiting", "done")),
    Query("limit", "", kind="count", default=100, maximum=1000),
    Query("label", "", kind="pair", maximum=50),
    Query("wait", "", kind="seconds", default=0.0, maximum=60),
    Query("name", ""),
)


def test_queries_are_read_with_their_defaults() -> None:
    assert read_query(QUERIES, "") == {"state": None, "limit": 100, "label": [], "wait": 0.0, "name": None}
    read = read_query(QUERIES, "state=done&limit=5&label=a=b&label=c=&wait=1.5&name=%C5%BC%20x+y")
    assert read == {
        "state": "done", "limit": 5, "label": [("a", "b"), ("c", "")], "wait": 1.5, "name": "ż x y",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("stat=done", "stat"), ("state=gone", "state"), ("limit=1001", "limit"), ("limit=-1", "limit"),
        ("limit=x", "limit"), ("limit=٣", "limit"), ("limit=", "limit"), ("limit=" + "9" * 30, "limit"),
        ("label=a", "label"), ("label==b", "label"), ("wait=61", "wait"), ("wait=nan", "wait"), ("wait=-1", "wait"),
        ("limit=1&limit=2", "limit"), ("name=a%00b", "name"), ("name=%FF", None), ("&".join(["label=a=b"] * 101), None),
        ("&".join(["label=a=b"] * 51), "label"),
    ],
)  # fmt: skip
def test_a_wrong_query_names_the_parameter(text: str, field: str | None) -> None:
    with pytest.raises(InputError) as caught:
        read_query(QUERIES, text)
    assert caught.value.field == field
    assert caught.value.code == "invalid"


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"\xff", b"NaN", b'{"a": Infinity}', b'{"a": 1e999}', b"[-1e999]", b"[1] 2",
        b'{"a": 1, "a": 2}', b"[" * 100_000,
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1),
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused(raw: bytes) -> None:
    with pytest.raises(InputError) as caught:
        decode(raw)
    assert caught.value.code == "invalid_json"


def test_a_body_that_does_not_come_in_time_is_not_waited_for() -> None:
    class Slow:
        content_length = 100

        @property
        async def stream(self) -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.Event().wait()

    with pytest.raises(InputError, match="did not come within"):
        asyncio.run(read_raw(Slow(), 100, 0.01))  # type: ignore[arg-type] # all of a request that is looked at


def test_a_name_that_stands_twice_is_found_among_very_many() -> None:
    names = ",".join(f'"{number}": 0' for number in range(400_000))  # comparing each with all would take an hour
    with pytest.raises(InputError, match="last: this name stands twice"):
        decode(f'{{{names}, "last": 0, "last": 0}}'.encode())


def test_json_is_read_up_to_the_deepest_level() -> None:
    assert decode(b'{"a": [1, 2.5, null, "\\u017c"]}') == {"a": [1, 2.5, None, "ż"]}
    whole = decode(b"[5.0, 1e3, 5]")
    assert whole == [5, 1000, 5]
    assert all(isinstance(number, int) for number in whole), "a whole number is one however it is written"
    decode(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert decode(b"[" + b"{}," * 1000 + b"{}]") == [{}] * 1001, "wide is not deep"


@given(some.text(), some.integers(0, 100))
def test_any_range_is_a_part_of_the_blob_or_is_refused_or_ignored(text: str, size: int) -> None:
    try:
        piece = parse_range(f"bytes={text}", size)
    except InputError as error:
        if error.code == "range_not_satisfiable":
            return
        raise
    assert piece is None or 0 <= piece[0] < piece[1] <= size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None), ("bytes=0-0", (0, 1)), ("bytes=2-", (2, 10)), ("bytes=-3", (7, 10)), ("bytes=5-100", (5, 10)),
        ("bytes=-100", (0, 10)), ("bytes=5-2", None), ("bytes=0-1,3-4", None), ("lines=0-1", None), ("bytes=-", None),
    ],
)  # fmt: skip
def test_ranges(text: str | None, expected: tuple[int, int] | None) -> None:
    assert parse_range(text, 10) == expected


@pytest.mark.parametrize("text", ["bytes=10-", "bytes=10-20", "bytes=-0"])
def test_a_range_beyond_the_end_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_range(text, 10)
    assert errors.STATUS[caught.value.code] == 416


def test_numbers_in_paths() -> None:
    assert whole("12", "lease") == 12
    for text in ("", "-1", "x", "1.0", "٣", "9" * 40):
        with pytest.raises(InputError) as caught:
            whole(text, "lease")
        assert caught.value.code == "not_found"


def test_every_error_code_has_a_status() -> None:
    classes = {value for value in vars(common_errors).values() if isinstance(value, type)}
    codes = {cls.code for cls in classes if issubclass(cls, KolejkaError)} - {KolejkaError.code}
    assert codes <= set(errors.STATUS)


# Routes

CLIENT, NODE, INSPECTOR, ADMIN = "client", "node", "inspector", "admin"
PERMISSIONS = {
    "GET /healthz": None, "GET /readyz": None, "GET /metrics": {INSPECTOR, ADMIN}, "GET /api/v1": None,
    "GET /api/v1/openapi.json": None, "GET /api/v1/schemas/task.json": None, "GET /api/v1/schemas/result.json": None,
    "GET /api/v1/whoami": {CLIENT, NODE, INSPECTOR, ADMIN},
    "HEAD /api/v1/blobs/{sha256}": {CLIENT, NODE, INSPECTOR, ADMIN},
    "GET /api/v1/blobs/{sha256}": {CLIENT, NODE, INSPECTOR, ADMIN},
    "PUT /api/v1/blobs/{sha256}": {CLIENT, NODE, ADMIN},
    "DELETE /api/v1/blobs/{sha256}": {CLIENT, NODE, ADMIN},
    "POST /api/v1/blobs/{sha256}/upload": {CLIENT, NODE, ADMIN},
    "GET /api/v1/blobs": {CLIENT, NODE, ADMIN},
    "GET /api/v1/tasks": {CLIENT, INSPECTOR, ADMIN}, "POST /api/v1/tasks": {CLIENT, ADMIN},
    "GET /api/v1/tasks/{task_id}": {CLIENT, INSPECTOR, ADMIN}, "DELETE /api/v1/tasks/{task_id}": {CLIENT, ADMIN},
    "POST /api/v1/tasks/{task_id}/cancel": {CLIENT, ADMIN},
    "GET /api/v1/tasks/{task_id}/result": {CLIENT, INSPECTOR, ADMIN},
    "GET /api/v1/tasks/results": {CLIENT, INSPECTOR, ADMIN},
    "GET /api/v1/tasks/{task_id}/why": {CLIENT, INSPECTOR, ADMIN},
    "GET /api/v1/queues": {CLIENT, NODE, INSPECTOR, ADMIN},
    "GET /api/v1/queues/{name}": {CLIENT, NODE, INSPECTOR, ADMIN}, "PUT /api/v1/queues/{name}": {ADMIN},
    "PATCH /api/v1/queues/{name}": {ADMIN}, "DELETE /api/v1/queues/{name}": {ADMIN},
    "POST /api/v1/claims": {NODE, ADMIN}, "POST /api/v1/heartbeats": {NODE, ADMIN},
    "POST /api/v1/attempts/results": {NODE, ADMIN},
    "PUT /api/v1/attempts/{lease}/result": {NODE, ADMIN}, "POST /api/v1/attempts/{lease}/release": {NODE, ADMIN},
    "GET /api/v1/nodes": {CLIENT, INSPECTOR, ADMIN}, "GET /api/v1/nodes/{name}": {CLIENT, INSPECTOR, ADMIN},
    "POST /api/v1/tasks/bulk": {CLIENT, ADMIN}, "POST /api/v1/tasks/{task_id}/retry": {CLIENT, ADMIN},
    "GET /api/v1/events": {CLIENT, INSPECTOR, ADMIN}, "POST /api/v1/callbacks/secret": {CLIENT, ADMIN},
    "DELETE /api/v1/nodes/{name}": {ADMIN},
    "POST /api/v1/nodes/{name}/drain": {ADMIN}, "POST /api/v1/nodes/{name}/resume": {ADMIN},
    "POST /api/v1/nodes/{name}/reboot": {ADMIN}, "POST /api/v1/nodes/{name}/log": {ADMIN},
    "PUT /api/v1/nodes/{name}/log/{number}": {NODE, ADMIN},
    "GET /api/v1/enrolments": {INSPECTOR, ADMIN}, "POST /api/v1/enrolments": None,
    "POST /api/v1/enrolments/token": None, "POST /api/v1/enrolments/{name}/approve": {ADMIN},
    "POST /api/v1/enrolments/{name}/refuse": {ADMIN},
    "GET /api/v1/audit": {INSPECTOR, ADMIN},
    "GET /api/v1/users": {ADMIN}, "POST /api/v1/users": {ADMIN}, "GET /api/v1/tokens": {ADMIN},
    "POST /api/v1/tokens": {ADMIN}, "DELETE /api/v1/tokens/{token_id}": {ADMIN},
}  # fmt: skip


def test_who_may_do_what_is_what_was_decided() -> None:
    declared = {
        f"{route.method} {route.path}": None if route.roles is None else {role.value for role in route.roles}
        for route in ROUTES
    }
    assert declared == PERMISSIONS


def test_the_openapi_document_and_the_routes_say_the_same() -> None:
    document = openapi.document(ROUTES)
    described = {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert set(described) == {(route.method, route.path) for route in ROUTES}
    for route in ROUTES:
        operation: dict[str, Any] = described[route.method, route.path]
        parameters = {(entry["in"], entry["name"]) for entry in operation.get("parameters", [])}
        assert parameters == {("path", name) for name in re.findall(r"{(\w+)}", route.path)} | {
            ("query", query.name) for query in route.query
        }
        assert ("requestBody" in operation) == (route.body is not None or route.takes is not None)
        assert ("security" in operation) == (route.roles is not None)
        assert operation["summary"]
    handlers = {route.handler.__name__ for route in ROUTES}
    assert set(ANSWERS) <= handlers, "an answer of nobody"
    names = [operation["operationId"] for operation in described.values()]
    assert len(set(names)) == len(names)


# Tokens and intake


def test_tokens_are_long_random_and_kept_as_hashes() -> None:
    made = {tokens.new_token() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"klj_[A-Za-z0-9_-]{43}", token) for token in made)
    assert not any(token[4:] in tokens.digest(token) for token in made)


@pytest.mark.parametrize("user", Role)
@pytest.mark.parametrize("token", Role)
def test_a_token_has_no_more_rights_than_its_user(user: Role, token: Role) -> None:
    assert may_hold(user, token) is (user is Role.ADMIN or user is token)


def test_ids_sort_by_time_and_do_not_repeat() -> None:
    ids = [intake.new_id(1_700_000_000 + second) for second in range(100)]
    assert ids == sorted(ids)
    assert len({intake.new_id(1.0) for _ in range(1000)}) == 1000
    assert all(re.fullmatch(r"[0-9a-z]{26}", one) for one in ids)


def test_limits_are_what_the_task_says_then_the_defaults_and_never_above_the_ceilings() -> None:
    considered = intake.consider(
        Task.parse({"args": ["x"], "limits": {"memory": "8G", "time": "2s"}}),
        defaults=Limits.of(cpus=2, memory="1G", time="1h"),
        ceilings=Limits.of(memory="4G", cpus=1, gpus=0),
    )
    assert considered.task.limits == Limits.of(cpus=1, memory="4G", time="2s", gpus=0)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"id": "x"}, "id"),
        ({"files": {"a": None}}, "files.a"),
        ({"files": {"b": {"path": "x"}}}, "files.b"),
        ({"callback_url": "http://127.0.0.1/"}, "callback_url"),
    ],
)
def test_what_a_server_cannot_accept_is_named(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        intake.consider(Task.parse({"args": ["x"], **spec}), defaults=Limits(), ceilings=Limits())
    assert caught.value.field == field

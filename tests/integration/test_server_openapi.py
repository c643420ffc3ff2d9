"""The OpenAPI document is true to the routes: calls made up from it meet no 5xx, and answers that it describes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode, checks

from kolejka.server.app import ROUTES
from tests.integration.server_process import Server

HELD = (
    checks.not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
    checks.response_schema_conformance,
)  # fmt: skip
ENDLESS = ("GET", "/api/v1/events")
"""test_server_access follows it"""
ITSELF = ("GET", "/api/v1/openapi.json")
"""schemathesis leaves out what it reads"""
SAWING = ("DELETE", "/api/v1/tokens/{token_id}")
"""a small number is the token of this very test"""


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.needs("postgres"))])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """On each engine: what one keeps, the other may refuse."""
    url = request.getfixturevalue("postgres").migrated() if request.param == "postgres" else ""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("KOLEJKA_SERVER_DATABASE", url)
        server = Server(tmp_path_factory.mktemp("server"), "--callback-hosts", "192.0.2.1").start()
    admin = server.admin
    admin.ask("POST", "/callbacks/secret", status=201)
    admin.put()
    admin.put(requires=["nobody"])
    (given,) = admin.claim()["attempts"]
    admin.finish(given["lease"])  # so that listings have something to list
    yield server
    assert server.stop() == 0
    assert "Traceback" not in server.log()


@pytest.fixture(scope="module")
def operations(server: Server) -> dict[tuple[str, str], Any]:
    """What the document describes, by method and path."""
    document = schemathesis.openapi.from_url(f"{server.url}/api/v1/openapi.json")
    found = [result.ok() for result in document.get_all_operations()]
    return {(operation.method.upper(), operation.path): operation for operation in found}


def test_the_document_describes_every_route(operations: dict[tuple[str, str], Any]) -> None:
    assert set(operations) == {(route.method, route.path) for route in ROUTES} - {ITSELF}


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize(
    "route", [route for route in ROUTES if (route.method, route.path) not in {ENDLESS, ITSELF, SAWING}],
    ids=lambda route: f"{route.method} {route.path}",
)  # fmt: skip
def test_made_up_calls_meet_no_failure_of_the_server(
    server: Server, operations: dict[tuple[str, str], Any], route: Any, mode: GenerationMode
) -> None:
    operation, token = operations[route.method, route.path], server.admin.token
    if mode is GenerationMode.NEGATIVE and not (route.query or route.body):
        return  # there is nothing to be said wrongly

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=12, deadline=None, phases=[Phase.generate], derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def call(case: Any) -> None:
        for words in (case.query, case.body):
            if isinstance(words, dict):
                words.pop("wait", None)  # nobody has time
        if isinstance(case.body, dict) and route.body and "wait" in route.body.schema().get("properties", {}):
            case.body["wait"] = 0
        response = case.call(headers={"Authorization": f"Bearer {token}"}, timeout=30)
        if response.status_code != 414:  # too long for gunicorn, which answers in its own words
            case.validate_response(response, checks=HELD)

    before = answered(server)
    call()
    assert answered(server) > before, "calls were made"


def answered(server: Server) -> float:
    """Requests that the server has answered."""
    text = server.admin.ask("GET", "/metrics", status=200).data.decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("kolejka_requests_total{"))

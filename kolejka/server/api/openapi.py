"""The OpenAPI 3.1 document, derived from the routes' declarations."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from kolejka import __version__
from kolejka.server.api.answers import ANSWERS
from kolejka.server.api.errors import STATUS
from kolejka.server.api.routes import Query, Route

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "field"],
            "properties": {
                "code": {"enum": sorted(STATUS)},
                "message": {"type": "string"},
                "field": {"type": ["string", "null"]},
            },
        }
    },
}


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """The document that describes these routes."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Kolejka", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    parameters += [
        {"name": q.name, "in": "query", "description": q.help, "schema": q.schema, **_form(q)} for q in route.query
    ]
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": route.summary,
        "responses": {str(status): _response(route, status) for status in route.status},
    }
    operation["responses"]["default"] = {
        "description": "an error",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    if parameters:
        operation["parameters"] = parameters
    if route.roles is not None:
        operation["security"] = [{"token": []}]
        operation["x-roles"] = sorted(role.value for role in route.roles)
    if route.body is not None:
        schema = {key: value for key, value in route.body.schema().items() if key != "$schema"}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    elif route.takes is not None:
        operation["requestBody"] = {"required": True, "content": {route.takes: {}}}
    return operation


def _form(query: Query) -> dict[str, Any]:
    """How a parameter with several values is written, where that is not as usual."""
    return {"required": True, "style": "form", "explode": False} if query.kind == "list" else {}


def _response(route: Route, status: int) -> dict[str, Any]:
    meanings = {
        200: "done",
        201: "made",
        202: "not yet",
        204: "done",
        206: "a part",
        307: "get it there",
        503: "not ready",
    }
    response: dict[str, Any] = {"description": meanings[status]}
    if status != 204 and route.method != "HEAD":
        later = status == 202 and len(route.status) > 1
        answer = None if later else ANSWERS.get(route.handler.__name__)
        response["content"] = {route.gives: {"schema": answer} if answer is not None else {}}
    return response

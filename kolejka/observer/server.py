"""The observer's HTTP: parse, ask the protocol, answer. Every route stands in ``create_app``."""

from __future__ import annotations

import json
import logging
from typing import Any, Final

import falcon

from kolejka.common.errors import InputError, KolejkaError
from kolejka.observer.protocol import Caller, Protocol

logger = logging.getLogger("kolejka.observer")

MAX_BODY: Final = 64 << 10
CONTENT_TYPE: Final = "application/json; charset=utf-8"

_STATUSES: Final = {
    "malformed": falcon.HTTP_400,
    "forbidden": falcon.HTTP_403,
    "not_found": falcon.HTTP_404,
    "conflict": falcon.HTTP_409,
    "too_large": falcon.HTTP_413,
    "invalid": falcon.HTTP_422,
    "node": falcon.HTTP_500,
    "unavailable": falcon.HTTP_503,
}


class Verb:
    """One verb of the protocol."""

    def __init__(self, protocol: Protocol, name: str) -> None:
        self._act = protocol.verbs[name]

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Do it for whoever is at the other end."""
        caller = Caller.of(request.env["gunicorn.socket"])
        _answer(response, self._act(caller, _fields(request)))


class About:
    """Whether the observer lives."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def on_get(self, _request: falcon.Request, response: falcon.Response) -> None:
        """Its own word."""
        _answer(response, self._protocol.about())

    on_head = on_post = on_get


def create_app(protocol: Protocol) -> falcon.App[Any, Any]:
    """The WSGI application."""
    app = falcon.App(media_type=CONTENT_TYPE)
    app.req_options.strip_url_path_trailing_slash = True
    app.add_route("/", About(protocol))
    for name in protocol.verbs:
        app.add_route(f"/{name}", Verb(protocol, name))
    app.add_error_handler(Exception, _unexpected)
    app.add_error_handler(falcon.HTTPError, _refused)
    app.add_error_handler(KolejkaError, _known)
    return app


def _fields(request: falcon.Request) -> dict[str, Any]:
    length = request.content_length or 0
    if length > MAX_BODY:
        raise InputError(f"the body is larger than {MAX_BODY} bytes", code="too_large")
    if request.get_header("Transfer-Encoding") is not None:
        raise InputError("send the body with Content-Length", code="malformed")
    if not length:
        return {}
    if (request.content_type or "").partition(";")[0].strip().lower() != "application/json":
        raise InputError(f"the body must be of the type {CONTENT_TYPE}", code="malformed")
    try:
        fields = json.loads(request.bounded_stream.read(length))
    except (ValueError, RecursionError):
        raise InputError("the body is not JSON", code="malformed") from None
    if not isinstance(fields, dict):
        raise InputError("the body is not a JSON object", code="malformed")
    return fields


def _answer(response: falcon.Response, data: dict[str, Any]) -> None:
    response.content_type = CONTENT_TYPE
    response.data = json.dumps(data).encode("ascii")


def _known(_request: Any, response: falcon.Response, error: KolejkaError, _params: Any) -> None:
    response.status = _STATUSES.get(error.code, falcon.HTTP_500)
    _answer(response, {"error": {"code": error.code, "message": error.message, "field": error.field}})


def _refused(_request: Any, response: falcon.Response, error: falcon.HTTPError, _params: Any) -> None:
    response.status = error.status
    code = "not_found" if error.status_code == 404 else "invalid"
    _answer(response, {"error": {"code": code, "message": error.description or error.title or "", "field": None}})


def _unexpected(request: falcon.Request, response: falcon.Response, error: Exception, _params: Any) -> None:
    logger.error("request failed", exc_info=error, extra={"path": request.path})
    response.status = falcon.HTTP_500
    _answer(response, {"error": {"code": "error", "message": "the observer failed; see its log", "field": None}})

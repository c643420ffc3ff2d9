"""The one table from error codes to HTTP statuses, and the form in which errors are told."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Final

import falcon
import falcon.asgi

from kolejka.common.errors import InputError, KolejkaError

logger = logging.getLogger(__name__)

STATUS: Final[Mapping[str, int]] = {
    "invalid_json": 400,
    "truncated": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "length_required": 411,
    "too_large": 413,
    "unsupported_media_type": 415,
    "range_not_satisfiable": 416,
    "invalid": 422,
    "hash_mismatch": 422,
    "blob_missing": 422,
    "too_many_requests": 429,
    "internal": 500,
    "unavailable": 503,
    "node": 503,
}
"""Code → status. A code that is missing here is an ``internal`` error."""

_FALCON_CODES: Final = {404: "not_found", 405: "method_not_allowed", 411: "length_required", 413: "too_large"}


class InvalidJson(InputError):
    """The body is no JSON."""

    code = "invalid_json"


class TooLarge(InputError):
    """The body is larger than this server takes."""

    code = "too_large"


class WrongType(InputError):
    """The body is said to be something else than what this call takes."""

    code = "unsupported_media_type"


class TooMany(InputError):
    """This caller asks too often, or for too much at one time; ``again_s`` later it may."""

    code = "too_many_requests"

    def __init__(self, message: str, *, again_s: float = 1.0) -> None:
        super().__init__(message)
        self.again_s = again_s


def body(code: str, message: str, field: str | None = None) -> dict[str, Any]:
    """The form of every error. It may tell of what the caller said, which may hold half a surrogate pair."""
    return {"error": {"code": code, "message": _sayable(message), "field": None if field is None else _sayable(field)}}


def _sayable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _write(resp: falcon.asgi.Response, error: KolejkaError) -> None:
    status = STATUS.get(error.code)
    if status is None:
        logger.error("an error without a status", extra={"code": error.code, "error": str(error)})
        status = 500
    resp.status = status
    resp.media = body(error.code, error.message, error.field)
    if status == 401:
        resp.set_header("WWW-Authenticate", "Bearer")
    if status == 503:
        resp.set_header("Retry-After", "1")
    if isinstance(error, TooMany):
        resp.set_header("Retry-After", str(max(1, math.ceil(error.again_s))))


async def _known(
    req: falcon.asgi.Request, resp: falcon.asgi.Response, error: KolejkaError, _params: dict[str, Any]
) -> None:
    _write(resp, error)
    if resp.status == 503:  # a full disk or a database that is away: the caller tries again, an admin has to see it
        logger.warning("request not served", extra={"method": req.method, "path": req.path, "reason": str(error)})


async def _falcons(
    req: falcon.asgi.Request, resp: falcon.asgi.Response, error: falcon.HTTPError, _params: dict[str, Any]
) -> None:
    status = error.status_code
    code = _FALCON_CODES.get(status, "invalid" if status < 500 else "internal")
    message = {
        "not_found": "there is nothing under this address",
        "method_not_allowed": f"{req.method} means nothing here",
    }.get(code, error.description or error.title or "this request cannot be read")
    resp.status = status
    for name, value in dict(error.headers or {}).items():
        resp.set_header(name, value)
    resp.media = body(code, message)


async def _unknown(
    req: falcon.asgi.Request, resp: falcon.asgi.Response, error: Exception, _params: dict[str, Any]
) -> None:
    logger.error("request failed", extra={"method": req.method, "path": req.path}, exc_info=error)
    resp.status = 500
    resp.media = body("internal", "the server failed; its log says how")


def add_handlers(app: Any) -> None:
    """Tell every error in the one form."""
    app.add_error_handler(Exception, _unknown)
    app.add_error_handler(falcon.HTTPError, _falcons)
    app.add_error_handler(KolejkaError, _known)

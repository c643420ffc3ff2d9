"""What a route declares, and how a request becomes a call of its handler.

A ``Route`` names method, path, who may, query parameters and body. Checking callers, refusing unknown parameters and
fields, and the OpenAPI document derive from it; a handler gets a ``Call`` whose words are right in form.
"""

from __future__ import annotations

import asyncio
import functools
import json
import math
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn
from urllib.parse import parse_qsl

import falcon.asgi

from kolejka.common.errors import InputError, NotAllowed, NotFound
from kolejka.common.schema import Schema, check
from kolejka.common.units import parse_time
from kolejka.server.api.errors import InvalidJson, TooLarge, TooMany, WrongType
from kolejka.server.auth.roles import Role
from kolejka.server.auth.tokens import Caller
from kolejka.server.deps import Deps

PREFIX: Final = "/api/v1"
MAX_DEPTH: Final = 32
"""Lists and objects inside each other in a body."""
SMALL: Final = 1 << 14
"""Bytes of a body that takes no longer to be read than a thread to be woken for it, or not much. One that is larger is
read beside the event loop: to tell what is wrong with eight megabytes takes seconds."""
STRANGER_S: Final = 10.0
"""within so many seconds the body has to come of somebody who shows no token"""
_RECEIVE: Final = "kolejka.receive"
LEAVING: Final = "kolejka.leaving"
"""where a request's scope keeps the future that its caller's leaving makes done"""
_READING: Final = frozenset({"GET", "HEAD"})
_MANY: Final = frozenset({"pair", "list"})
_COUNTED: Final = frozenset({Role.CLIENT, Role.INSPECTOR})


@dataclass(frozen=True)
class Query:
    """A query parameter. ``kind``: text, count, seconds, list (words with commas between them, at most ``maximum``), or
    pair (``key=value``, may be repeated up to ``maximum`` times).
    """

    name: str
    help: str
    kind: str = "text"
    default: Any = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()

    def parse(self, text: str) -> Any:
        """The value. InputError names the parameter."""
        try:
            return self._parse(text)
        except InputError as error:
            raise error.within(self.name) from None

    def _parse(self, text: str) -> Any:
        if self.choices and text not in self.choices:
            raise InputError(f"{text!r} is not one of {', '.join(self.choices)}")
        if self.kind == "text":
            return plain(text)
        if self.kind == "list":
            words = plain(text).split(",") if text else []
            if self.maximum is not None and len(words) > self.maximum:
                raise InputError(f"{len(words)} are more than {self.maximum:g} in one call")
            return words
        if self.kind == "pair":
            key, equals, label = plain(text).partition("=")
            if not equals or not key:
                raise InputError(f"{text!r} should be written key=value")
            return key, label
        value: float
        if self.kind == "seconds":
            value = parse_time(text)
        elif text.isascii() and text.isdigit() and len(text) <= 18:
            value = int(text)
        else:
            raise InputError(f"{text!r} is not a whole number; write digits only")
        if self.maximum is not None and value > self.maximum:
            raise InputError(f"{text} is more than {self.maximum:g}")
        return value

    @property
    def schema(self) -> dict[str, Any]:
        """JSON Schema of the value."""
        kinds = {"text": "string", "pair": "array", "list": "array", "count": "integer", "seconds": "string"}
        schema: dict[str, Any] = {"type": kinds[self.kind]}
        if self.kind in _MANY:
            schema["items"] = {"type": "string"}
        if self.kind in _MANY and self.maximum is not None:
            schema["maxItems"] = int(self.maximum)
        if self.kind == "count":
            schema["minimum"] = 0
            if self.maximum is not None:
                schema["maximum"] = int(self.maximum)
        if self.choices:
            schema["enum"] = list(self.choices)
        if self.default is not None:
            schema["default"] = self.default
        return schema


@dataclass(frozen=True)
class Body:
    """A JSON body: its schema, and (where the schema alone does not say everything) what reads it."""

    schema: Callable[[], Schema]
    parse: Callable[[Any], Any] | None = None
    bulk: bool = False
    """it may have the setting max_bulk's size"""
    most: int | None = None
    """its size in bytes at most, where that is less than the setting max_body"""

    def read(self, data: Any) -> Any:
        """The body's value. InputError names the field."""
        if self.parse is not None:
            return self.parse(data)
        check(data, self.schema())
        return data

    def read_raw(self, raw: bytes) -> Any:
        """The value of a body as it came."""
        return self.read(decode(raw))


@dataclass(frozen=True)
class Call:
    """A request whose form is right."""

    request: falcon.asgi.Request
    path: Mapping[str, Any]
    query: Mapping[str, Any]
    body: Any
    _caller: Caller | None = None
    _again: Callable[[], Awaitable[Caller]] | None = None

    async def still(self) -> None:
        """For one who waits: whether the token is still good. NotKnown when it is not."""
        if self._again is not None:
            await self._again()

    @property
    def caller(self) -> Caller:
        """Who calls; only where the route asks for a role."""
        assert self._caller is not None  # routes without roles have no use for it
        return self._caller

    async def gone(self) -> None:
        """Return when the caller has left. For calls whose body was read.

        However often this is asked and broken off, the server below is asked once: gunicorn takes a question that is
        broken off for an answer.
        """
        scope = self.request.scope
        leaving = scope.get(LEAVING)
        if leaving is None:
            leaving = scope[LEAVING] = asyncio.ensure_future(_left(scope.get(_RECEIVE)))
        await asyncio.shield(leaving)


async def _left(receive: Callable[[], Awaitable[Mapping[str, Any]]] | None) -> None:
    if receive is None:
        await asyncio.Event().wait()  # for ever
        return
    while (await receive())["type"] != "http.disconnect":
        pass


@dataclass(frozen=True)
class Answer:
    """What a handler answers: JSON, bytes, a stream of ``length`` bytes (``None`` = nobody knows), or nothing."""

    status: int = 200
    json: Any = None
    data: bytes | None = None
    stream: AsyncIterator[bytes] | None = None
    length: int | None = 0
    type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def write(self, resp: falcon.asgi.Response) -> None:
        """Hand it to falcon."""
        resp.status = self.status
        if self.type is not None:
            resp.content_type = self.type
        for name, value in self.headers.items():
            resp.set_header(name, value)
        if self.stream is not None:
            if self.length is None:
                resp.stream = self.stream
            else:
                resp.set_stream(self.stream, self.length)
        elif self.data is not None:
            resp.data = self.data
        elif self.json is not None:
            resp.data = json.dumps(self.json).encode()


Handler = Callable[[Deps, Call], Awaitable[Answer]]


@dataclass(frozen=True)
class Route:
    """One method of one path. ``roles`` of ``None``: anybody, without a token."""

    method: str
    path: str
    handler: Handler
    roles: frozenset[Role] | None
    query: tuple[Query, ...] = ()
    body: Body | None = None
    status: tuple[int, ...] = (200,)
    takes: str | None = None
    """media type of a body that is no JSON and is read by the handler"""
    gives: str = "application/json"

    @property
    def summary(self) -> str:
        """The handler's own first line."""
        return (self.handler.__doc__ or "").strip().splitlines()[0].rstrip(".")


def plain(text: str) -> str:
    """A text that a database keeps: no NUL, no half of a surrogate pair. InputError otherwise."""
    if "\0" in text:
        raise InputError("this text holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("this text holds half a surrogate pair, which no text can") from None
    return text


def responder(route: Route, deps: Deps) -> Callable[..., Awaitable[None]]:
    """What falcon calls for a route."""

    async def respond(req: falcon.asgi.Request, resp: falcon.asgi.Response, **path: Any) -> None:
        caller = again = None
        if route.roles is not None:
            again = functools.partial(deps.doorkeeper.caller, req.get_header("Authorization"))
            caller = await again()
            _check_caller(route, caller, deps)
        query = read_query(route.query, req.query_string)
        body = None
        check_type(req.content_type, route, req.get_header("Content-Encoding"))
        if route.body is not None:
            most = deps.settings.max_bulk if route.body.bulk else deps.settings.max_body
            raw = await read_raw(req, min(most, route.body.most or most), None if caller else STRANGER_S)
            read = route.body.read_raw
            body = read(raw) if len(raw) <= SMALL else await asyncio.to_thread(read, raw)
        elif route.takes is None and (req.content_length or req.get_header("Transfer-Encoding")):
            raise InputError("this call takes no body")
        answer = await route.handler(deps, Call(req, path, query, body, caller, again))
        answer.write(resp)

    return respond


def _check_caller(route: Route, caller: Caller, deps: Deps) -> None:
    """NotAllowed when this token may not do this, TooMany when its user called too often."""
    if route.roles is not None and caller.role not in route.roles:
        raise NotAllowed(f"a token of the role {caller.role} may not do this; it takes {_either(route.roles)}")
    if caller.scope.read_only and route.method not in _READING:
        raise NotAllowed("this token may only read")
    if caller.role in _COUNTED:
        again_s = deps.rates.wait_s(caller.user_id)
        if again_s:
            raise TooMany(f"you call more than {deps.settings.rate} times a second; wait", again_s=again_s)


def check_type(said: str | None, route: Route, encoding: str | None = None) -> None:
    """WrongType when a body is said to be something else than what the route takes; who says nothing is believed."""
    if encoding is not None and encoding.strip().lower() not in {"", "identity"}:
        raise WrongType("bodies travel as they are; send it without an encoding", field="Content-Encoding")
    takes = "application/json" if route.body is not None else route.takes
    if not said or takes is None:
        return
    kind, _, more = said.partition(";")
    charset = re.fullmatch(r'\s*(charset\s*=\s*"?utf-?8"?\s*)?', more, re.IGNORECASE)
    if kind.strip().lower() != takes or not charset:
        raise WrongType(f"this call takes {takes}; say so in Content-Type", field="Content-Type")


def _either(roles: frozenset[Role]) -> str:
    return " or ".join(role.value for role in Role if role in roles)


def read_query(declared: tuple[Query, ...], text: str) -> dict[str, Any]:
    """The query parameters. InputError names one that is unknown, said twice or wrong."""
    values: dict[str, Any] = {q.name: [] if q.kind in _MANY else q.default for q in declared}
    if not text:
        return values
    known = {q.name: q for q in declared}
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=100)
    except ValueError as error:  # bytes that are no UTF-8, or too many fields
        raise InputError(f"the query cannot be read: {error}") from None
    seen = set()
    for name, value in pairs:
        if name not in known:
            hint = f"it takes {', '.join(known)}" if known else "this call takes none"
            raise InputError(f"there is no such query parameter; {hint}", field=name[:100])
        if known[name].kind == "pair":
            most = known[name].maximum
            if most is not None and len(values[name]) >= most:
                raise InputError(f"this is given more than {most:g} times", field=name)
            values[name].append(known[name].parse(value))
            continue
        if name in seen:
            raise InputError("this query parameter is given twice", field=name)
        seen.add(name)
        values[name] = known[name].parse(value)
    return values


async def read_raw(req: falcon.asgi.Request, most: int, within_s: float | None = None) -> bytes:
    """A request's whole body. TooLarge, or InputError when it breaks off, or takes longer than ``within_s`` seconds."""
    announced = req.content_length
    if announced is not None and announced > most:
        raise TooLarge(f"a body of {announced} bytes is more than the {most} that this server takes")
    raw = bytearray()
    try:
        async with asyncio.timeout(within_s):
            async for chunk in req.stream:
                raw += chunk
                if len(raw) > most:
                    raise TooLarge(f"this body is more than the {most} bytes that this server takes")
    except TimeoutError:
        raise InputError(f"the body did not come within {within_s:g} seconds", code="truncated") from None
    if announced is not None and len(raw) != announced:
        raise InputError(f"the body broke off after {len(raw)} of {announced} bytes", code="truncated")
    return bytes(raw)


def decode(raw: bytes) -> Any:
    """JSON from outside: UTF-8, no NaN, not too deep, no name twice. InvalidJson otherwise.

    A whole number is one however it is written: schemas take ``5.0`` for an integer, and so what reads it may.
    """
    if not raw:
        raise InvalidJson("the body is empty; it should be JSON")
    try:
        data = _DECODER.decode(raw.decode("utf-8"))
    except RecursionError:
        raise InvalidJson(f"this JSON nests deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise InvalidJson(f"the body is no JSON: {error}") from None
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:  # else it cannot be too deep
        _check_depth(data)
    return data


def _number(text: str) -> float | int:
    value = float(text)
    if math.isinf(value):
        raise InvalidJson(f"{text[:60]} is larger than any number can be here")
    return int(value) if value.is_integer() else value


def _no_constant(name: str) -> NoReturn:
    raise InvalidJson(f"{name} is no JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise InvalidJson("this name stands twice in one object", field=twice[:100])
    return data


_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant, parse_float=_number, object_pairs_hook=_once)


def _check_depth(data: Any) -> None:
    level = [data]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise InvalidJson(f"this JSON nests deeper than {MAX_DEPTH} levels")


def whole(text: str, what: str) -> int:
    """A number in a path. NotFound when it is none: nothing has such a name."""
    if text.isascii() and text.isdigit() and len(text) <= 18:
        return int(text)
    raise NotFound(f"there is no {what} {text[:40]!r}")

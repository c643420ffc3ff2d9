"""``GET /events``: what happens to tasks, as server-sent events (the HTML standard, section 9.2).

Each event has its number as ``id``, so one who lost the connection says ``Last-Event-ID`` and misses nothing. The
kinds: ``hello`` first of all, with the number from which on events follow; ``waiting``, ``running``, ``done``,
``cancelling``, ``deleted`` for the steps of tasks; ``gap`` when events between were forgotten, so that states have to
be asked for anew. A comment comes now and then, so that both sides see a connection that is no more. A server that
stops, and a token that is revoked, end the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, Final

from kolejka.common.errors import InputError, KolejkaError
from kolejka.server.api.errors import TooMany
from kolejka.server.api.routes import Answer, Call
from kolejka.server.api.tasks import find_task, stamp
from kolejka.server.deps import Deps
from kolejka.server.storage import events
from kolejka.server.storage.base import ask

STREAM: Final = "text/event-stream"
PING_S: Final = 15.0
PAGE: Final = 500
STREAMS: Final = 16
"""how many one user may follow at one time"""


async def follow_events(deps: Deps, call: Call) -> Answer:
    """Follow what happens to tasks, as server-sent events, from now on or from behind `Last-Event-ID`."""
    task_id, caller = call.query["task"], call.caller
    if task_id is not None:
        await ask(deps.store.read(lambda db: find_task(db, task_id, caller)))
    if deps.following.of(caller.user_id) >= STREAMS:
        raise TooMany(f"you follow {STREAMS} streams already; end one", again_s=PING_S)
    since = call.query["after"]
    header = call.request.get_header("Last-Event-ID")
    if header is not None:  # one who comes again, under the address with which it began, says where it is now
        if not (header.isascii() and header.isdigit() and len(header) <= 18):
            raise InputError("this is no number of an event", field="Last-Event-ID")
        since = int(header)
    stream = _Stream(deps, call, since, task_id)
    return Answer(
        stream=stream, length=None, type=STREAM, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )


def _event(what: str, data: dict[str, Any], number: int | None) -> str:
    head = "" if number is None else f"id: {number}\n"
    return f"{head}event: {what}\ndata: {json.dumps(data)}\n\n"


def _told(row: dict[str, Any]) -> str:
    data = {
        "task": row["task_id"], "at": stamp(row["at"]), "queue": row["queue"], "lease": row["lease"],
        "node": row["node"], "outcome": row["outcome"],
    }  # fmt: skip
    return _event(row["what"], data, row["id"])


class _Stream:
    """One caller's stream, piece by piece; falcon calls ``close`` however it ends."""

    def __init__(self, deps: Deps, call: Call, since: int | None, task_id: str | None) -> None:
        self._deps = deps
        self._call = call
        self._since = since
        self._task_id = task_id
        self._at: int | None = None
        self._stack = contextlib.ExitStack()
        self._waiter = self._stack.enter_context(deps.following.stream(call.caller.user_id))
        self._leaving: asyncio.Future[None] | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            text = await self._first() if self._at is None else await self._next()
        except KolejkaError:  # the token is no more, or the database: the caller comes again and is told
            raise StopAsyncIteration from None
        return text.encode()

    async def _first(self) -> str:
        horizon = await self._deps.following.horizon()
        oldest, _ = await ask(self._deps.store.read(events.bounds))
        since = horizon if self._since is None else self._since
        lost = since > horizon or since + 1 < oldest
        self._at = min(since, horizon) if not lost or since > horizon else oldest - 1
        text = "retry: 1000\n" + _event("hello", {"after": self._at}, self._at)
        return text + (_event("gap", {"after": self._at}, None) if lost else "")

    async def _next(self) -> str:
        deps, at = self._deps, self._at
        assert at is not None  # the first piece was sent
        while True:
            self._waiter.looked()
            await self._call.still()
            horizon = deps.following.settled(at)
            if horizon > at:
                rows = await self._page(at, horizon)
                self._at = at = rows[-1]["id"] if len(rows) == PAGE else horizon
                if rows:
                    return "".join(map(_told, rows))
            if deps.wakes.closing:
                raise StopAsyncIteration
            if not await self._woken():
                return ": ping\n\n"

    async def _page(self, at: int, horizon: int) -> list[dict[str, Any]]:
        caller = self._call.caller
        return await ask(self._deps.store.read(lambda db: events.page(
            db, above=at, up_to=horizon, most=PAGE, owner_id=None if caller.sees_all else caller.user_id,
            queues=caller.scope.queues, task_id=self._task_id,
        )))  # fmt: skip

    async def _woken(self) -> bool:
        """Wait for news: whether there are some before the next ping is due. StopAsyncIteration when nobody listens."""
        if self._leaving is None:
            self._leaving = asyncio.ensure_future(self._call.gone())
        waking = asyncio.ensure_future(self._waiter.woken.wait())
        both: set[asyncio.Future[Any]] = {waking, self._leaving}
        try:
            await asyncio.wait(both, timeout=PING_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waking.cancel()
        if self._leaving.done():
            raise StopAsyncIteration
        return self._waiter.woken.is_set()

    async def close(self) -> None:
        """Follow no more."""
        if self._leaving is not None:
            self._leaving.cancel()
        self._stack.close()

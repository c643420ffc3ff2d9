"""The server's HTTP application: every route on one screen."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import Any, Final

import falcon.asgi

from kolejka.common.result import Result, result_schema
from kolejka.common.states import TaskState
from kolejka.common.task import Task, task_schema
from kolejka.server.api import access, blobs, enrolments, errors, events, health, nodes, openapi, queues, tasks
from kolejka.server.api.routes import LEAVING, PREFIX, Answer, Body, Call, Query, Route, responder
from kolejka.server.auth.roles import ADMINS, BLOB_WRITERS, EVERYBODY, NODES, OWNERS, READERS, WATCHERS
from kolejka.server.deps import Deps
from kolejka.server.scheduling.queues import POLICY_SCHEMA
from kolejka.server.service import Service

_STATES: Final = tuple(state.value for state in TaskState)
_FILTERS: Final = (
    Query("state", "tasks in this state", choices=_STATES),
    Query("queue", "tasks of this queue"),
    Query("label", "tasks with this label, as key=value; repeated: with all of them", kind="pair", maximum=16),
    Query("name", "tasks of this name"),
    Query("owner", "tasks of this user"),
    Query("limit", "how many at most", kind="count", default=100, maximum=1000),
    Query("after", "where the page before ended: its `next`", kind="count"),
)
_WAIT: Final = (Query("wait", "how long to wait for it, in seconds", kind="seconds", default=0.0, maximum=60),)
_RESULTS_OF: Final = (
    Query("tasks", "the ids of at most 100 tasks, with commas between them", kind="list", maximum=tasks.MOST_IDS),
    Query("wait", "how long to wait for them, in seconds", kind="seconds", default=0.0, maximum=60),
    Query("enough", "how many must be done for an answer before that", kind="count", default=1),
)
_PAGE: Final = (
    Query("user", "acts of this user"),
    Query("limit", "how many at most", kind="count", default=100, maximum=1000),
    Query("after", "where the page before ended: its `next`", kind="count"),
)
_EVENTS: Final = (
    Query("task", "events of this task only"),
    Query("after", "events behind this number, as `Last-Event-ID` says it", kind="count"),
)
_BULK: Final = Body(lambda: tasks.BULK, tasks.parse_bulk, bulk=True)
_DIRECT: Final = (Query("direct", "the caller follows an address to the blob store", choices=("true", "false")),)
_MINE: Final = (
    Query("limit", "how many at most", kind="count", default=100, maximum=1000),
    Query("after", "where the page before ended: its `next`"),
)
_BYTES: Final = (200, 206, 307)
_UPLOAD: Final = Body(lambda: blobs.UPLOAD)
_TASK: Final = Body(task_schema, Task.parse)
_RESULT: Final = Body(result_schema, Result.parse)
_RESULTS: Final = Body(lambda: nodes.RESULTS, nodes.parse_results)
_CLAIM: Final = Body(lambda: nodes.CLAIM)
_HEARTBEAT: Final = Body(lambda: nodes.HEARTBEAT)
_RELEASE: Final = Body(lambda: nodes.RELEASE)
_ENROLMENT: Final = Body(lambda: enrolments.ASK, most=enrolments.MOST_BYTES)
_SECRET: Final = Body(lambda: enrolments.FETCH, most=enrolments.MOST_BYTES)
_WHICH: Final = Body(lambda: enrolments.WHICH)
_REBOOT: Final = Body(lambda: nodes.REBOOT)
_LOG: Final = Body(lambda: nodes.LOG)
_LOG_TEXT: Final = Body(lambda: nodes.LOG_TEXT)
_QUEUE: Final = Body(lambda: POLICY_SCHEMA)
_USER: Final = Body(lambda: access.USER)
_TOKEN: Final = Body(lambda: access.TOKEN)
_TEXT: Final = "text/plain"
_FLUSH_S: Final = 0.05
"""for the last answers' last bytes to leave the sockets' buffers"""


async def get_openapi(_deps: Deps, _call: Call) -> Answer:
    """Give this document."""
    return Answer(json=openapi.document(ROUTES))


ROUTES: Final = (
    Route("GET", "/healthz", health.healthz, None),
    Route("GET", "/readyz", health.readyz, None, status=(200, 503)),
    Route("GET", "/metrics", health.metrics, WATCHERS, gives=_TEXT),
    Route("GET", PREFIX, health.version, None),
    Route("GET", PREFIX + "/openapi.json", get_openapi, None),
    Route("GET", PREFIX + "/schemas/task.json", health.get_task_schema, None),
    Route("GET", PREFIX + "/schemas/result.json", health.get_result_schema, None),
    Route("GET", PREFIX + "/whoami", access.whoami, EVERYBODY),
    Route("HEAD", PREFIX + "/blobs/{sha256}", blobs.head_blob, EVERYBODY),
    Route("GET", PREFIX + "/blobs/{sha256}", blobs.get_blob, EVERYBODY, _DIRECT, status=_BYTES, gives=blobs.OCTETS),
    Route("PUT", PREFIX + "/blobs/{sha256}", blobs.put_blob, BLOB_WRITERS, status=(200, 201), takes=blobs.OCTETS),
    Route("DELETE", PREFIX + "/blobs/{sha256}", blobs.delete_blob, BLOB_WRITERS, status=(204,)),
    Route("POST", PREFIX + "/blobs/{sha256}/upload", blobs.begin_upload, BLOB_WRITERS, body=_UPLOAD),
    Route("GET", PREFIX + "/blobs", blobs.list_blobs, BLOB_WRITERS, _MINE),
    Route("GET", PREFIX + "/tasks", tasks.list_tasks, READERS, _FILTERS),
    Route("POST", PREFIX + "/tasks", tasks.put_task, OWNERS, body=_TASK, status=(201,)),
    Route("POST", PREFIX + "/tasks/bulk", tasks.put_tasks, OWNERS, body=_BULK, status=(201,)),
    Route("GET", PREFIX + "/tasks/results", tasks.get_results, READERS, _RESULTS_OF),
    Route("GET", PREFIX + "/tasks/{task_id}", tasks.show_task, READERS),
    Route("DELETE", PREFIX + "/tasks/{task_id}", tasks.delete_task, OWNERS, status=(204,)),
    Route("POST", PREFIX + "/tasks/{task_id}/cancel", tasks.cancel_task, OWNERS),
    Route("POST", PREFIX + "/tasks/{task_id}/retry", tasks.retry_task, OWNERS, status=(201,)),
    Route("GET", PREFIX + "/tasks/{task_id}/result", tasks.get_result, READERS, _WAIT, status=(200, 202)),
    Route("GET", PREFIX + "/tasks/{task_id}/why", tasks.why_task, READERS),
    Route("GET", PREFIX + "/queues", queues.list_queues, EVERYBODY),
    Route("GET", PREFIX + "/queues/{name}", queues.show_queue, EVERYBODY),
    Route("PUT", PREFIX + "/queues/{name}", queues.put_queue, ADMINS, body=_QUEUE, status=(200, 201)),
    Route("PATCH", PREFIX + "/queues/{name}", queues.change_queue, ADMINS, body=_QUEUE),
    Route("DELETE", PREFIX + "/queues/{name}", queues.delete_queue, ADMINS, status=(204,)),
    Route("GET", PREFIX + "/events", events.follow_events, READERS, _EVENTS, gives=events.STREAM),
    Route("POST", PREFIX + "/callbacks/secret", access.make_callback_secret, OWNERS, status=(201,)),
    Route("POST", PREFIX + "/claims", nodes.claim, NODES, body=_CLAIM),
    Route("POST", PREFIX + "/heartbeats", nodes.heartbeat, NODES, body=_HEARTBEAT),
    Route("PUT", PREFIX + "/attempts/{lease}/result", nodes.put_result, NODES, body=_RESULT),
    Route("POST", PREFIX + "/attempts/results", nodes.put_results, NODES, body=_RESULTS),
    Route("POST", PREFIX + "/attempts/{lease}/release", nodes.release, NODES, body=_RELEASE),
    Route("GET", PREFIX + "/nodes", nodes.list_nodes, READERS),
    Route("GET", PREFIX + "/nodes/{name}", nodes.show_node, READERS),
    Route("DELETE", PREFIX + "/nodes/{name}", nodes.delete_node, ADMINS, status=(204,)),
    Route("POST", PREFIX + "/nodes/{name}/drain", nodes.drain_node, ADMINS),
    Route("POST", PREFIX + "/nodes/{name}/resume", nodes.resume_node, ADMINS),
    Route("POST", PREFIX + "/nodes/{name}/reboot", nodes.reboot_node, ADMINS, body=_REBOOT),
    Route("POST", PREFIX + "/nodes/{name}/log", nodes.get_log, ADMINS, body=_LOG, status=(200, 202)),
    Route("PUT", PREFIX + "/nodes/{name}/log/{number}", nodes.put_log, NODES, body=_LOG_TEXT, status=(204,)),
    Route("GET", PREFIX + "/enrolments", enrolments.list_enrolments, WATCHERS),
    Route("POST", PREFIX + "/enrolments", enrolments.ask_in, None, body=_ENROLMENT, status=(202,)),
    Route("POST", PREFIX + "/enrolments/token", enrolments.fetch_token, None, body=_SECRET, status=(200, 202)),
    Route("POST", PREFIX + "/enrolments/{name}/approve", enrolments.approve, ADMINS, body=_WHICH),
    Route("POST", PREFIX + "/enrolments/{name}/refuse", enrolments.refuse, ADMINS, body=_WHICH),
    Route("GET", PREFIX + "/audit", access.list_audit, WATCHERS, _PAGE),
    Route("GET", PREFIX + "/users", access.list_users, ADMINS),
    Route("POST", PREFIX + "/users", access.add_user, ADMINS, body=_USER, status=(201,)),
    Route("GET", PREFIX + "/tokens", access.list_tokens, ADMINS),
    Route("POST", PREFIX + "/tokens", access.add_token, ADMINS, body=_TOKEN, status=(201,)),
    Route("DELETE", PREFIX + "/tokens/{token_id}", access.revoke_token, ADMINS, status=(204,)),
)


_METHODS: Final = frozenset(route.method for route in ROUTES)


class _Watch:
    """Counts what was answered, and starts and stops the service with the process."""

    def __init__(self, deps: Deps, service: Service) -> None:
        self._deps = deps
        self._service = service

    async def process_startup(self, _scope: Mapping[str, Any], _event: Mapping[str, Any]) -> None:
        """Falcon's word for the first moment of the event loop."""
        await self._service.start()

    async def process_shutdown(self, _scope: Mapping[str, Any], _event: Mapping[str, Any]) -> None:
        """Falcon's word for the last one."""
        await self._service.stop()

    async def process_response(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, _resource: object, _succeeded: bool
    ) -> None:
        """Count."""
        resp.set_header("X-Content-Type-Options", "nosniff")
        method = req.method if req.method in _METHODS else "other"  # callers make up as many as they like
        self._deps.metrics.requests.labels(method, req.uri_template or "none", str(resp.status_code)).inc()


Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Application:
    """The ASGI application."""

    def __init__(self, deps: Deps, service: Service) -> None:
        self.service = service
        self._busy = 0
        self._nothing_left = asyncio.Event()
        self._falcon: Any = falcon.asgi.App(middleware=[_Watch(deps, service)])
        errors.add_handlers(self._falcon)
        by_path: dict[str, dict[str, Any]] = {}
        for route in ROUTES:
            by_path.setdefault(route.path, {})[f"on_{route.method.lower()}"] = responder(route, deps)
        for path, responders in by_path.items():
            self._falcon.add_route(path, SimpleNamespace(**responders))

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request (or the lifespan)."""
        if scope["type"] == "websocket":  # no route is one
            await send({"type": "websocket.close"})
            return
        if scope["type"] != "http":
            await self._falcon(scope, receive, send)
            return
        scope["kolejka.receive"] = receive  # so that a handler that waits sees its caller leave
        self._busy += 1
        try:
            await self._falcon(scope, receive, send)
        finally:
            leaving = scope.get(LEAVING)
            if leaving is not None:
                leaving.cancel()
            self._busy -= 1
            if not self._busy:
                self._nothing_left.set()

    async def drain(self, timeout_s: float) -> None:
        """Wait until every request is answered, at most ``timeout_s`` seconds."""
        with contextlib.suppress(TimeoutError):  # the rest is cut off
            async with asyncio.timeout(timeout_s):
                while self._busy:
                    self._nothing_left.clear()
                    await self._nothing_left.wait()
        await asyncio.sleep(_FLUSH_S)


def create_app(deps: Deps) -> Application:
    """The application over these parts. It starts the service when the server's event loop starts."""
    return Application(deps, Service(deps))

"""How the server is, what it counts, and what it speaks."""

from __future__ import annotations

import asyncio
from typing import Final

from kolejka import __version__
from kolejka.common.errors import KolejkaError
from kolejka.common.result import result_schema
from kolejka.common.task import task_schema
from kolejka.server.api.routes import Answer, Call
from kolejka.server.api.tasks import node_state
from kolejka.server.deps import Deps
from kolejka.server.storage import nodes, tasks
from kolejka.server.storage.base import ask

NEEDED_BYTES: Final = 64 << 20
"""A disk with less room than this takes no work."""


async def healthz(_deps: Deps, _call: Call) -> Answer:
    """Say that the process answers."""
    return Answer(json={"status": "ok"})


async def readyz(deps: Deps, _call: Call) -> Answer:
    """Say whether work can be taken: database and blob store answer, the disk has room, the server does not stop."""
    checks = {"stopping": not deps.wakes.closing}
    try:
        await ask(deps.store.write(lambda db: db.row("SELECT 1")))
        checks["database"] = True
    except KolejkaError:
        checks["database"] = False
    try:
        await asyncio.to_thread(deps.blobs.check)
        checks["blobs"] = True
    except KolejkaError:
        checks["blobs"] = False
    checks["disk"] = await asyncio.to_thread(deps.blobs.free_bytes) > NEEDED_BYTES
    ready = all(checks.values())
    words = {name: "ok" if good else "failed" for name, good in checks.items()}
    return Answer(200 if ready else 503, {"status": "ok" if ready else "unavailable", "checks": words})


async def metrics(deps: Deps, _call: Call) -> Answer:
    """Give the counters in Prometheus' text form."""
    now = deps.clock()
    depth, known = await ask(deps.store.read(lambda db: (tasks.depth(db), nodes.listing(db))))
    told = [{**node, "state": node_state(node, now, deps.rules)} for node in known]
    text = deps.metrics.text(depth, told)
    return Answer(data=text, type="text/plain; version=0.0.4; charset=utf-8")


async def version(_deps: Deps, _call: Call) -> Answer:
    """Say which version this is."""
    return Answer(json={"version": __version__})


async def get_task_schema(_deps: Deps, _call: Call) -> Answer:
    """Give the JSON Schema of `kolejka_task.json`."""
    return Answer(json=task_schema())


async def get_result_schema(_deps: Deps, _call: Call) -> Answer:
    """Give the JSON Schema of `kolejka_result.json`."""
    return Answer(json=result_schema())

"""Queues: list, show, make, change, delete."""

from __future__ import annotations

import logging
from typing import Any

from kolejka.common.errors import InputError, NotFound
from kolejka.server.api.routes import Answer, Call, plain
from kolejka.server.api.tasks import record
from kolejka.server.deps import Deps
from kolejka.server.scheduling.queues import Queue
from kolejka.server.storage import queues
from kolejka.server.storage.base import Connection, QueuesChanged, ask

logger = logging.getLogger("kolejka.server")


def _name(call: Call) -> str:
    """The name in the path, where it names a queue that is there."""
    name: str = call.path["name"]
    if len(name) > 64:
        raise NotFound(f"there is no queue {name[:64]!r}")
    return plain(name)


async def list_queues(deps: Deps, _call: Call) -> Answer:
    """List the queues."""
    return Answer(json=[queue.to_json() for queue in await ask(deps.store.read(queues.listing))])


async def show_queue(deps: Deps, call: Call) -> Answer:
    """Show a queue."""
    name = _name(call)
    queue = await ask(deps.store.read(lambda db: queues.get(db, name)))
    return Answer(json=queue.to_json())


async def put_queue(deps: Deps, call: Call) -> Answer:
    """Make a queue, or give it another policy in place of the old one; what is left out is as in a new one."""
    queue, now = Queue.parse(_name(call), _plain(call.body)), deps.clock()

    def work(db: Connection) -> bool:
        new = queues.find(db, queue.name, in_hand=True) is None
        queues.save(db, queue)
        record(db, call.caller, "queue.put", queue.name, now, **queue.to_json())
        db.announce(QueuesChanged())
        return new

    new = await ask(deps.store.write(work))
    logger.info("queue made" if new else "queue changed", extra={"queue": queue.name, "by": call.caller.user})
    return Answer(201 if new else 200, queue.to_json())


async def change_queue(deps: Deps, call: Call) -> Answer:
    """Change some fields of a queue; the others stay."""
    name, changes, now = _name(call), _plain(call.body), deps.clock()

    def work(db: Connection) -> Queue:
        queue = queues.change(db, name, changes)
        record(db, call.caller, "queue.change", name, now, **changes)
        db.announce(QueuesChanged())
        return queue

    queue = await ask(deps.store.write(work))
    logger.info("queue changed", extra={"queue": name, "state": queue.state, "by": call.caller.user})
    return Answer(json=queue.to_json())


async def delete_queue(deps: Deps, call: Call) -> Answer:
    """Delete a queue in which no task waits or runs."""
    name, now = _name(call), deps.clock()

    def work(db: Connection) -> None:
        queues.delete(db, name)
        record(db, call.caller, "queue.delete", name, now)

    await ask(deps.store.write(work))
    logger.info("queue deleted", extra={"queue": name, "by": call.caller.user})
    return Answer(204)


def _plain(body: dict[str, Any]) -> dict[str, Any]:
    """The body, its texts fit for a database."""
    for place in ("members", "images"):
        for text in body.get(place, ()):
            try:
                plain(text)
            except InputError as error:
                raise error.within(place) from None
    return body

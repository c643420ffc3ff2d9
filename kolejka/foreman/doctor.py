"""What a machine must have to be a node: the checks of ``kolejka-foreman doctor``."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator

from kolejka.client.credentials import is_set_up
from kolejka.client.node import NodeClient
from kolejka.common.checks import Check
from kolejka.common.errors import KolejkaError, NodeError, Unavailable
from kolejka.common.limits import LIMITS
from kolejka.common.settings import ClientSettings, ForemanSettings, WorkerSettings
from kolejka.foreman import capacity, enrol, hardware, tags
from kolejka.foreman.leftovers import LOCKED, locked
from kolejka.worker.gpus import Gpu, Gpus

logger = logging.getLogger(__name__)


def checks(foreman: ForemanSettings, worker: WorkerSettings, client: ClientSettings) -> list[Check]:
    """Everything a foreman with these settings would meet when it starts. One that runs already is no fault."""
    return [
        _checked("data folder", lambda: _data(foreman), "run as root, or name a folder of your own with --data"),
        _checked("capacity", lambda: _capacity(foreman, worker), "mend [foreman] capacity, slots or tags"),
        _check_enrolled(foreman, client) if enrol.is_enrolled(foreman, client) else _check_server(client),
        Gpus(worker.nvml).check(),
        *_runtimes(worker),
        *hardware.checks(),
    ]


def _checked(name: str, ask: Callable[[], str], cure: str) -> Check:
    try:
        return Check(name, ok=True, message=ask())
    except KolejkaError as error:
        return Check(name, ok=False, message=str(error), cure=cure)


def _data(foreman: ForemanSettings) -> str:
    try:
        with locked(foreman.data):
            return f"{foreman.data} is writable and free"
    except NodeError as error:
        if error.code == LOCKED:
            return f"{foreman.data} is in use by a foreman that runs"
        raise


def _capacity(foreman: ForemanSettings, worker: WorkerSettings) -> str:
    machine = capacity.detect(worker.data, Gpus(worker.nvml).census().gpus)
    offer = capacity.offer(machine, foreman.capacity, foreman.slots)
    found = tags.all_tags(tags.automatic_tags(machine), foreman.tags)
    amounts = ", ".join(f"{LIMITS[name].show(value)} {name}" for name, value in offer.total.values.items())
    return f"{offer.slots} slots; {amounts}; tags {' '.join(found)}"


def _check_enrolled(foreman: ForemanSettings, client: ClientSettings) -> Check:
    """A machine that asks to be let in has a token of its own, or asks when its foreman starts."""
    path = enrol.token_file(foreman)
    if path.exists():
        return _check_server(enrol.with_token(foreman, client))
    try:
        enrol.check_name(foreman.name)
    except KolejkaError as error:
        return Check("server", ok=False, message=str(error), cure="give it another [foreman] name")
    return Check("server", ok=True, message=f"{client.server}: the foreman asks there to be let in", required=False)


def _check_server(client: ClientSettings) -> Check:
    cure = "name the server with --server, its token with --token-file"
    try:
        return Check("server", ok=True, message=_server(client))
    except KolejkaError as error:
        absent = isinstance(error, Unavailable) and not is_set_up(client)
        return Check("server", ok=False, message=str(error), cure=cure, absent=absent)


def _server(client: ClientSettings) -> str:
    with NodeClient(dataclasses.replace(client, patience=0.0)) as server:
        who = server.whoami()
        if who.get("role") not in {"node", "admin"}:
            raise KolejkaError(f"the token is for the role {who.get('role')}; a foreman needs one for the role node")
        return f"{server.server} knows this node as {who.get('user')} ({who.get('role')})"


def _runtimes(worker: WorkerSettings) -> Iterator[Check]:
    """What the runtimes say; one that works is enough."""
    from kolejka.worker.perform import Tools

    found = {runtime.name: list(runtime.check()) for runtime in Tools(worker).runtimes.values()}
    works = [name for name, asked in found.items() if all(check.ok or not check.required for check in asked)]
    for name, asked in found.items():
        for check in asked:
            yield dataclasses.replace(check, check=f"{name}: {check.check}", required=check.required and not works)


def usable_gpus(worker: WorkerSettings) -> tuple[Gpu, ...]:
    """The GPUs that tasks can have here. A driver that does not work is a line in the log and no GPU."""
    census = Gpus(worker.nvml).census()
    if census.broken:
        logger.warning("GPUs are not offered", extra={"reason": census.remark})
    return census.gpus


def working_runtimes(worker: WorkerSettings) -> tuple[str, ...]:
    """Names of the runtimes that this machine has all of and that its settings let tasks have."""
    from kolejka.worker.perform import Tools

    return tuple(
        runtime.name
        for runtime in Tools(worker).runtimes.values()
        if worker.runtime in {"auto", runtime.name} and all(check.ok or not check.required for check in runtime.check())
    )

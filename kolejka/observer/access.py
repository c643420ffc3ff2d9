"""Sessions for the worker: through the observer that serves on this machine, or kept by this process itself.

Sessions outlive the observer, and whoever keeps it (systemd) starts it again. So a worker that meets a dead one waits
for the next, instead of failing its task and all that come after it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from kolejka.common.errors import Conflict, InputError, KolejkaError, NodeError, NotAllowed, NotFound, Unavailable
from kolejka.common.limits import Limits
from kolejka.common.settings import ObserverSettings
from kolejka.observer.client import ObserverClient, ObserverError
from kolejka.observer.packets import PacketClient, workers_door
from kolejka.observer.reports import ENFORCED, Report

__all__ = ["ENFORCED", "PATIENCE_S", "Report", "Session", "Sessions", "connect"]

T = TypeVar("T")
PATIENCE_S: Final = 30.0
"""how long an observer that died is waited for"""
_PAUSE_S: Final = 0.1


class Session(Protocol):
    """One accounted, limited control group."""

    @property
    def id(self) -> str:
        """Its name."""

    @property
    def cgroup_parent(self) -> str:
        """The path to give a container engine, such as ``/kolejka/<id>``."""

    def attach(self, pid: int) -> None:
        """Move a process with all its threads in; the first one starts the clock."""

    def stats(self) -> Report:
        """What it used so far, and the verdict."""

    def freeze(self) -> None:
        """Stop every process."""

    def thaw(self) -> None:
        """Let every process go on."""

    def kill(self) -> None:
        """Kill every process and return when none is left."""

    def close(self) -> Report:
        """Kill what is left, wait until it is gone, read the final stats, remove the group. Safe twice."""


class Sessions(Protocol):
    """Who opens sessions. They end with this process: what it leaves open is killed and removed for it."""

    def open(self, limits: Limits, *, cpuset: Sequence[int] | None = None) -> Session:
        """Open a session with these limits, pinned to ``cpuset`` if that is given."""

    def enclose(self, pid: int, limits: Limits, *, cpuset: Sequence[int] | None = None) -> Session:
        """Open a session and move a process in, as one step: the cheapest way. NotFound when it is gone."""


def patiently(ask: Callable[[], T], patience_s: float | None = None) -> T:
    """The answer of an observer that may be dead at the moment. OSError when there is none in time."""
    deadline = time.monotonic() + (PATIENCE_S if patience_s is None else patience_s)
    while True:
        try:
            return ask()
        except (ConnectionError, FileNotFoundError):  # nobody listens, or whoever did died over our request
            if time.monotonic() + _PAUSE_S > deadline:
                raise
        time.sleep(_PAUSE_S)  # nobody tells when a socket is served again


def connect(socket: str = "", *, cgroup: str = "kolejka", patience_s: float = 0.0) -> Sessions:
    """Sessions through the observer at ``socket``; by default the usual one if it serves, else of our own.

    Unavailable when a named socket does not answer for ``patience_s``. NodeError, with the cure, when nothing serves
    and this process has no right to make control groups.
    """
    usual = os.fspath(ObserverSettings().socket)
    path = socket or usual
    client = ObserverClient(path)
    try:
        patiently(client.ping, patience_s if socket else 0.0)
    except (OSError, ObserverError) as error:
        if socket:
            reason = getattr(error, "strerror", None) or str(error)
            raise Unavailable(f"no observer answers at {socket}: {reason}; start one: kolejka-observer") from None
    else:
        return RemoteSessions(_nearest(client))
    from kolejka.observer.sessions import Registry

    try:
        return Registry(cgroup=cgroup, remember=0)
    except NodeError as error:
        raise NodeError(f"{error.message}; or start the observer as root: kolejka-observer") from None


def _nearest(client: ObserverClient) -> Speaks:
    """The workers' door of that observer where it has one that we may use, else the client itself."""
    packets = PacketClient(workers_door(client.socket_path))
    try:
        packets.connect()
    except OSError:
        return client
    client.close()
    return packets


_ERRORS: Final[Mapping[str, type[KolejkaError]]] = {
    error.code: error for error in (InputError, NotAllowed, NotFound, Conflict, NodeError, Unavailable)
}


class Speaks(Protocol):
    """A connection to an observer: over HTTP, or through the workers' door."""

    def post(self, path: str, fields: dict[str, Any]) -> dict[str, Any]:
        """One request. ObserverError when it is refused."""


class RemoteSessions:
    """Sessions kept by the observer behind a socket, bound to this process."""

    def __init__(self, client: Speaks) -> None:
        self._client = client

    def open(self, limits: Limits, *, cpuset: Sequence[int] | None = None) -> RemoteSession:
        """See ``Sessions``."""
        return self._create("/open", limits, cpuset)

    def enclose(self, pid: int, limits: Limits, *, cpuset: Sequence[int] | None = None) -> RemoteSession:
        """See ``Sessions``."""
        return self._create("/attach", limits, cpuset, pid=pid)

    def _create(self, path: str, limits: Limits, cpuset: Sequence[int] | None, **more: object) -> RemoteSession:
        fields: dict[str, Any] = {"limits": limits.to_json(), "bound": True, **more}
        if cpuset is not None:
            fields["cpuset"] = list(cpuset)
        with _translated():
            return RemoteSession(self._client, patiently(lambda: self._client.post(path, fields)))


class RemoteSession:
    """A session behind a socket."""

    def __init__(self, client: Speaks, answer: Mapping[str, Any]) -> None:
        self._client = client
        self.id = str(answer["session_id"])
        self._secret = str(answer["secret"])
        self.cgroup_parent = str(answer["cgroup_parent"])

    def _say(self, path: str, **fields: object) -> dict[str, Any]:
        words = {"session_id": self.id, "secret": self._secret, **fields}
        with _translated():
            return patiently(lambda: self._client.post(path, words))

    def attach(self, pid: int) -> None:
        """See ``Session``."""
        self._say("/attach", pid=pid)

    def stats(self) -> Report:
        """See ``Session``."""
        return Report.parse(self._say("/stats"))

    def freeze(self) -> None:
        """See ``Session``."""
        self._say("/freeze")

    def thaw(self) -> None:
        """See ``Session``."""
        self._say("/thaw")

    def kill(self) -> None:
        """See ``Session``."""
        self._say("/kill")

    def close(self) -> Report:
        """See ``Session``."""
        return Report.parse(self._say("/close"))


class _translated:  # noqa: N801 - reads as a statement: with _translated()
    """The client's errors as ours."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, ObserverError):
            raise _ERRORS.get(error.code, NodeError)(error.message, field=error.field, code=error.code) from None
        if isinstance(error, OSError):
            raise Unavailable(f"the observer does not answer: {error.strerror or error}") from None

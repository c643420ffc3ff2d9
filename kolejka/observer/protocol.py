"""The observer's protocol: which verbs there are, what they take, what they answer, and who may say them.

JSON over HTTP on a unix socket. ``POST /open /attach /detach /limits /stats /freeze /thaw /kill /close``, each with one
object; ``GET /`` tells that the observer lives. It is the protocol of the first Kolejka, whose programs speak it
unchanged; what is new is optional: ``limits``, ``cpuset`` and ``bound`` with a verb that creates, ``pid`` with attach.

Who may: a caller *inside* a session opens sessions only below that one, and attaches only to it or below it. Of the
callers outside of all sessions, root and the members of the socket's group open sessions of their own. Every other verb
takes whoever shows id and secret.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from kolejka import __version__
from kolejka.common.errors import Conflict, InputError, NotAllowed
from kolejka.common.limits import Limits
from kolejka.observer.session import Closed, Session
from kolejka.observer.sessions import Registry

_SO_PEERGROUPS: Final = 59  # Linux 4.13
_SO_PEERPIDFD: Final = 77  # Linux 6.5

_LEGACY_IGNORED: Final = frozenset({"cpus_offset", "gpus_offset"})
"""hints of earlier clients: the registry places sessions itself"""
_LEGACY_ZERO: Final = frozenset({"gpus", "gpu_memory"})
"""limits no session enforces, but zero of which every session keeps"""

_ECHOED: Final = frozenset({"session_id", "secret", "cgroup_parent", "status"})
"""fields of our own answers: earlier clients send the answer to ``open`` back as it is"""

Answer = dict[str, Any]


@dataclass(frozen=True)
class Caller:
    """The process at the other end of the socket, as the kernel knows it, in our PID namespace."""

    pid: int
    uid: int
    groups: frozenset[int]

    @classmethod
    def of(cls, door: socket.socket) -> Caller:
        """Whoever connected. NotAllowed when that process is gone, or of a PID namespace we cannot see."""
        pid, uid, gid = struct.unpack("3i", door.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if pid == 0:
            raise NotAllowed("the observer cannot see the caller's process; run it in the outer PID namespace")
        if _has_ended(door):  # somebody else may have the number by now
            raise NotAllowed("the process that connected has ended; every process connects for itself")
        return cls(pid, uid, frozenset({gid, *_peer_groups(door)}))


def _has_ended(door: socket.socket) -> bool:
    try:
        descriptor = struct.unpack("i", door.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4))[0]
    except OSError as error:
        return error.errno != errno.ENOPROTOOPT  # older kernels cannot tell; others refuse when it is gone
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))
    finally:
        os.close(descriptor)


def _peer_groups(door: socket.socket) -> tuple[int, ...]:
    with suppress(OSError):  # before kernel 4.13, and to those in more than 256, only the first group is told
        packed = door.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)  # Python asks for no more
        return struct.unpack(f"{len(packed) // 4}I", packed)
    return ()


class Protocol:
    """The verbs, for one registry. ``group``: members of this group may open sessions beside root."""

    def __init__(self, registry: Registry, group: int | None) -> None:
        self.registry = registry
        self.group = group
        self.verbs: Mapping[str, Callable[[Caller, Mapping[str, Any]], Answer]] = {
            "open": self.open, "attach": self.attach, "detach": self.detach, "limits": self.limits,
            "stats": self.stats, "freeze": self.freeze, "thaw": self.thaw, "kill": self.kill, "close": self.close,
        }  # fmt: skip

    def about(self) -> Answer:
        """The observer's word about itself."""
        return {"status": "ok", "sessions": len(self.registry), "version": __version__}

    def open(self, caller: Caller, fields: Mapping[str, Any]) -> Answer:
        """A new session."""
        _only(fields, "limits", "cpuset", "bound")
        return _created(self.registry.open(**self._wishes(caller, fields)))

    def attach(self, caller: Caller, fields: Mapping[str, Any]) -> Answer:
        """The caller, or ``pid``, moves into a session; into a new one where none is named."""
        _only(fields, "limits", "cpuset", "bound", "pid")
        pid = self._whom(caller, fields)
        if "session_id" in fields:
            for name in ("limits", "cpuset", "bound"):
                if name in fields:
                    raise InputError("belongs to a verb that creates a session", field=name)
            session = self._open_session(fields)
            inside, own = self.registry.session_of(caller.pid)
            if inside and (own is None or own not in (session, *session.outer())):
                raise NotAllowed("a process inside a session moves only within that session")
            session.attach(pid)
            return {"status": "ok"}
        return _created(self.registry.enclose(pid, **self._wishes(caller, fields)))

    def detach(self, caller: Caller, fields: Mapping[str, Any]) -> Answer:
        """The caller moves back to where it was."""
        self._open_session(_only(fields)).detach(caller.pid)
        return {"status": "ok"}

    def limits(self, caller: Caller, fields: Mapping[str, Any]) -> Answer:  # noqa: ARG002 - verbs look alike
        """New limits; those not named stay."""
        session = self._open_session(_only(fields, "limits", "cpuset"))
        session.limits(parse_limits(fields.get("limits")), cpuset=_cpuset(fields))
        return {"status": "ok"}

    def stats(self, caller: Caller, fields: Mapping[str, Any]) -> Answer:  # noqa: ARG002 - verbs look alike
        """What the session used, and what ended it."""
        return {**self._session(_only(fields)).stats().to_json(), "status": "ok"}

    def freeze(self, caller: Caller, fields: Mapping[str, Any]) -> Answer:  # noqa: ARG002 - verbs look alike
        """Every process stops."""
        self._open_session(_only(fields)).freeze()
        return {"status": "ok"}

    def thaw(self, caller: Caller, fields: Mapping[str, Any]) -> Answer:  # noqa: ARG002 - verbs look alike
        """Every process goes on."""
        self._open_session(_only(fields)).thaw()
        return {"status": "ok"}

    def kill(self, caller: Caller, fields: Mapping[str, Any]) -> Answer:  # noqa: ARG002 - verbs look alike
        """Every process is killed."""
        session = self._session(_only(fields))
        if isinstance(session, Session):
            session.kill()
        return {"status": "ok"}

    def close(self, caller: Caller, fields: Mapping[str, Any]) -> Answer:  # noqa: ARG002 - verbs look alike
        """The end, with the final stats."""
        return {**self._session(_only(fields)).close().to_json(), "status": "ok"}

    def _wishes(self, caller: Caller, fields: Mapping[str, Any]) -> dict[str, Any]:
        """What the registry is to make, if the caller may have it made."""
        inside, own = self.registry.session_of(caller.pid)
        if inside and own is None:
            raise NotAllowed("the caller is in a session of somebody else")
        if own is None and caller.uid != 0 and self.group not in caller.groups:
            raise NotAllowed("only root and members of the socket's group open sessions; join it, or ask root")
        bound = fields.get("bound", False)
        if not isinstance(bound, bool):
            raise InputError("true or false", field="bound")
        return {
            "limits": parse_limits(fields.get("limits")), "cpuset": _cpuset(fields), "parent": own,
            "creator": caller.pid, "bound": bound,
        }  # fmt: skip

    def _session(self, fields: Mapping[str, Any]) -> Session | Closed:
        return self.registry.find(fields.get("session_id"), fields.get("secret"))

    def _open_session(self, fields: Mapping[str, Any]) -> Session:
        session = self._session(fields)
        if isinstance(session, Closed):
            raise Conflict("the session is closed", field="session_id")
        return session

    def _whom(self, caller: Caller, fields: Mapping[str, Any]) -> int:
        pid = fields.get("pid", caller.pid)
        if not isinstance(pid, int) or isinstance(pid, bool) or pid <= 0:
            raise InputError("the number of a process", field="pid")
        if pid == caller.pid:
            return pid
        inside, own = self.registry.session_of(caller.pid)
        if inside:
            _, where = self.registry.session_of(pid)
            if own is None or where is None or own not in (where, *where.outer()):
                raise NotAllowed("a process inside a session moves only what is inside it too", field="pid")
        elif caller.uid != 0 and not (self.group in caller.groups and os.stat(f"/proc/{pid}").st_uid == caller.uid):
            raise NotAllowed("only root moves processes of others", field="pid")
        return pid


def parse_limits(data: object) -> Limits:
    """Limits as clients of any age send them. InputError names the limit that is wrong or cannot be enforced."""
    if data is None:
        return Limits()
    if isinstance(data, Mapping):
        data = {
            name: value
            for name, value in data.items()
            if not (name in _LEGACY_IGNORED and _is_count(value))
            and not (name in _LEGACY_ZERO and value in (0, "0", "0b", None))
        }
    try:
        return Limits.parse(data)
    except InputError as error:
        raise error.within("limits") from None


def _is_count(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)


def _cpuset(fields: Mapping[str, Any]) -> list[int] | None:
    cpuset = fields.get("cpuset")
    if cpuset is None:
        return None
    if not isinstance(cpuset, list) or not all(isinstance(c, int) and not isinstance(c, bool) for c in cpuset):
        raise InputError("a list of CPU numbers, such as [0, 1]", field="cpuset")
    return cpuset


def _only(fields: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    for name in fields:
        if name not in names and name not in _ECHOED:
            raise InputError("there is no such field for this verb", field=name)
    return fields


def _created(session: Session) -> Answer:
    return {
        "session_id": session.id, "secret": session.secret, "cgroup_parent": session.cgroup_parent, "status": "ok",
    }  # fmt: skip

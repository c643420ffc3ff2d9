"""The workers' door: the observer's protocol without HTTP, for those who open thousands of sessions a minute.

A SOCK_SEQPACKET socket stands beside the HTTP one, under its name with ``.workers`` appended. One packet is a request,
``[verb, fields]`` in JSON; one packet answers it, with the very object that HTTP would answer, errors included. Verbs
and rights are those of ``protocol.py``, and the caller is known the same way; only root and the socket's group can
connect at all, and it is never mounted into a task's world. A connection has a thread, which sleeps between
requests.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from kolejka.common.errors import InputError, KolejkaError
from kolejka.observer.client import ObserverError
from kolejka.observer.protocol import Caller, Protocol

logger = logging.getLogger("kolejka.observer")

SUFFIX: Final = ".workers"
MAX_PACKET: Final = 64 << 10
_CONNECTIONS: Final = 1024
"""More than a machine has workers; each costs a thread."""


def workers_door(path: str | Path) -> str:
    """The workers' door of the observer whose socket is at ``path``."""
    return os.fspath(path) + SUFFIX


class PacketServer:
    """Serves ``door``, a listening socket, until ``stop``, which is safe twice."""

    def __init__(self, door: socket.socket, protocol: Protocol) -> None:
        self._door = door
        self._protocol = protocol
        self._lock = threading.Lock()
        self._open: dict[socket.socket, threading.Thread] = {}
        self._stopping = False
        self._acceptor = threading.Thread(target=self._accept, name="observer-workers-door", daemon=True)

    def start(self) -> None:
        """Begin to accept."""
        self._acceptor.start()

    def stop(self) -> None:
        """Answer what was asked, then let go of everybody."""
        with self._lock:
            self._stopping = True
            connections = dict(self._open)
        with suppress(OSError):  # not connected, or closed by an earlier stop
            self._door.shutdown(socket.SHUT_RD)  # wakes the acceptor
        for connection, thread in connections.items():
            with suppress(OSError):  # the other end has left
                connection.shutdown(socket.SHUT_RD)
            thread.join()

    def _accept(self) -> None:
        while not self._stopping:
            try:
                connection, _ = self._door.accept()
            except OSError:  # shut down: we stop
                return
            with self._lock:
                if len(self._open) >= _CONNECTIONS:
                    connection.close()
                    continue
                thread = threading.Thread(target=self._serve, args=(connection,), name="observer-worker", daemon=True)
                self._open[connection] = thread
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                while packet := connection.recv(MAX_PACKET + 1):
                    connection.send(json.dumps(self._answer(connection, packet)).encode("ascii"))
        except OSError as error:
            logger.debug("a worker left in the middle", extra={"reason": str(error)})
        finally:
            with self._lock:
                self._open.pop(connection, None)

    def _answer(self, connection: socket.socket, packet: bytes) -> dict[str, Any]:
        try:
            verb, fields = _read(packet)
            act = self._protocol.verbs.get(verb)
            if act is None:
                raise InputError(f"there is no such verb; the verbs are {', '.join(self._protocol.verbs)}", field=verb)
            return act(Caller.of(connection), fields)
        except KolejkaError as error:
            return {"error": {"code": error.code, "message": error.message, "field": error.field}}
        except Exception:
            logger.exception("request failed")
            return {"error": {"code": "error", "message": "the observer failed; see its log", "field": None}}


def _read(packet: bytes) -> tuple[str, Mapping[str, Any]]:
    if len(packet) > MAX_PACKET:
        raise InputError(f"the packet is larger than {MAX_PACKET} bytes", code="too_large")
    try:
        request: object = json.loads(packet)
    except (ValueError, RecursionError):
        raise InputError("the packet is not JSON", code="malformed") from None
    match request:
        case [str(verb), dict(fields)]:
            return verb, fields
        case _:
            raise InputError("a request is a list of a verb and an object", code="malformed")


class PacketClient:
    """One connection to the workers' door; the observer's client speaks through it as through HTTP.

    It connects when it is first used, and once more when the observer was restarted. Safe from several threads, one
    request at a time. OSError when nobody answers.
    """

    def __init__(self, path: str, timeout_s: float = 60.0) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._connection: socket.socket | None = None
        self._lock = threading.Lock()

    def post(self, path: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """One request; ``path`` is ``/`` and the verb. ObserverError when it is refused."""
        packet = json.dumps([path[1:], fields]).encode("ascii")
        with self._lock:
            try:
                data = self._exchange(packet)
            except (BrokenPipeError, ConnectionResetError):  # the observer was restarted: sessions live on
                self._drop()
                data = self._exchange(packet)
            except OSError:
                self._drop()
                raise
        answer: dict[str, Any] = json.loads(data)
        told = answer.get("error")
        if told is not None:
            raise ObserverError(told["message"], code=told["code"], field=told["field"])
        return answer

    def connect(self) -> None:
        """Connect now. OSError when nobody serves there, or not us."""
        with self._lock:
            self._connected()

    def close(self) -> None:
        """Close the connection. Sessions stay."""
        with self._lock:
            self._drop()

    def _connected(self) -> socket.socket:
        if self._connection is None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            connection.settimeout(self._timeout_s)
            try:
                connection.connect(self._path)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _exchange(self, packet: bytes) -> bytes:
        connection = self._connected()
        connection.send(packet)
        data = connection.recv(1 << 18)
        if not data:
            raise ConnectionResetError("the observer closed the connection")
        return data

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

"""The warm worker process: one job at a time, over one socket, JSON lines.

::

    pool → worker   {"settings": {...}}   once, first
    worker → pool   {"ready": true}       imports are done, the left-overs of the dead are its pool's affair
    pool → worker   {"job": {...}}        → {"started": [run, session]} → {"result": {...}} or {"failed": "…"}
    pool → worker   {"cancel": "cancelled"}    while a job runs: its payload is killed at once

A pool that is gone (end of file) is an order to kill the payload and leave. Signals meant for the pool's terminal are
ignored here: the pool decides.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from kolejka.common import logs, schema
from kolejka.common.errors import KolejkaError
from kolejka.common.limits import Limits
from kolejka.common.result import Outcome, result_schema
from kolejka.common.settings import LogSettings, WorkerSettings
from kolejka.common.task import Task
from kolejka.observer import access
from kolejka.worker.job import Job
from kolejka.worker.perform import Tools, attempt


class Line:
    """The worker's end of the socket: whole JSON values in and out. It is also where cancels come from."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._pending = b""
        self._values: list[dict[str, Any]] = []
        self.closed = False

    def fileno(self) -> int:
        """Readable when ``read`` may have something to say."""
        return self._channel.fileno()

    def send(self, value: Mapping[str, Any]) -> None:
        """Tell the pool. A pool that is gone is no error here: ``closed`` will say so."""
        try:
            self._channel.sendall(json.dumps(value).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            self.closed = True

    def receive(self) -> dict[str, Any] | None:
        """The next value; None when the pool is gone. Blocks."""
        while not self._values and not self.closed:
            self._fill()
        return self._values.pop(0) if self._values else None

    def read(self) -> Outcome | None:
        """The order to end a running job, if one came. Never blocks."""
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        while not self.closed and poll.poll(0):
            self._fill()
        if self.closed:
            return Outcome.CANCELLED
        while self._values and "cancel" in self._values[0]:
            return Outcome(self._values.pop(0)["cancel"])
        return None

    def _fill(self) -> None:
        try:
            data = self._channel.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        if not data:
            self.closed = True
            return
        *lines, self._pending = (self._pending + data).split(b"\n")
        self._values += [json.loads(line) for line in lines]


def settings_of(data: Mapping[str, Any]) -> WorkerSettings:
    """The settings as the pool sent them."""
    return WorkerSettings(**{**data, "data": Path(data["data"])})


def warm(tools: Tools) -> None:
    """Do now what the first job would otherwise wait for."""
    Task.parse({"args": ["true"], "limits": {"memory": "1M"}})
    schema.check({"result": 0, "outcome": "ok", "files": []}, result_schema())
    Limits.of(memory="1M")
    for step in (tools.runtimes["sandbox"].prepare, lambda: tools.sessions):
        with suppress(KolejkaError):  # the job that needs it will say so, with the cure
            step()


def serve(channel: socket.socket) -> None:
    """Take jobs until the pool is gone."""
    line = Line(channel)
    first = line.receive()
    if first is None:
        return
    tools = Tools(settings_of(first["settings"]), orders=line, started=lambda *names: line.send({"started": names}))
    warm(tools)
    gc.collect()
    gc.freeze()  # what is loaded now stays: no job waits until it was all looked through again
    tools.connect = partial(access.connect, patience_s=access.PATIENCE_S)  # from now on there is a task to lose
    line.send({"ready": True})
    while (order := line.receive()) is not None:
        if "job" not in order:
            continue  # a cancel that came after the end of its job
        try:
            result = attempt(Job.parse(order["job"]), tools)
        except KolejkaError as error:
            line.send({"failed": str(error)})
        else:
            line.send({"result": result.to_json()})


def _nothing(_number: int, _frame: object) -> None:
    """The foreman decides when a worker ends."""


def main() -> None:
    """The process: its argument is the number of the inherited socket."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _nothing)  # not ignored: payloads would inherit that, and could not end their children
    logs.configure(LogSettings.load())
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    with socket.socket(fileno=descriptor) as channel:
        serve(channel)


if __name__ == "__main__":
    main()

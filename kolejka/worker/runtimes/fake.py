"""A runtime that isolates nothing: programs of this machine, run as ourselves in the workspace.

For tests of what stands above a runtime (pool, foreman), and the third subject of the conformance suite. Sessions,
output, workspace and verdicts are as real as with the others; world and user are the host's, so it is offered to no
task of a stranger: no setting can choose it.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from kolejka.common.checks import Check
from kolejka.common.errors import NodeError, NotFound
from kolejka.worker.runtimes import init
from kolejka.worker.runtimes.base import Held, Images, Run, Tell, candidates, control_socket, unheard


class FakeTask(Held):
    """A payload below an init that is no PID 1 but adopts orphans like one."""

    def start(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until the payload is held."""
        self._process: subprocess.Popen[bytes] | None = process
        try:
            self.await_ready()
        except NodeError:
            self.remove()
            raise

    def know_world(self) -> None:
        """Its world is the host's: whose the files are that its processes hold, nobody can tell."""

    def storage_used(self) -> int | None:
        """Nobody counts."""
        return None

    def kill(self) -> None:
        """Kill the payload itself; its children are the session's to kill."""
        if self._process is not None:
            with suppress(ProcessLookupError):  # gone already
                os.kill(self.pid or self._process.pid, signal.SIGKILL)

    def remove(self) -> None:
        """Wait for init, which leaves when nobody is left to reap."""
        if self._process is None:
            return
        if not self.wait_gone(5.0):
            self._process.kill()
        self._process.wait()
        self._process = None
        self.channel.close()


class FakeImages:
    """Images that exist by being named."""

    def __init__(self, images: Mapping[str, int]) -> None:
        self._images = dict(images)

    def has(self, image: str) -> bool:
        """Whether it was named."""
        return image in self._images

    def size(self, image: str) -> int:
        """The size it was named with."""
        if image not in self._images:
            raise NotFound(f"the fake has no image {image!r}", field="image")
        return self._images[image]

    def environment(self, image: str) -> Mapping[str, str]:
        """Nothing."""
        self.size(image)
        return {}

    def fetch(self, image: str, tell: Tell = unheard) -> None:  # noqa: ARG002 it takes no time
        """It exists from now on, empty."""
        self._images[image] = 0

    def drop(self, image: str) -> None:
        """It exists no more."""
        self.size(image)
        del self._images[image]


class Fake:
    """Programs of this machine, not isolated."""

    name: ClassVar[str] = "fake"
    enforces: ClassVar[frozenset[str]] = frozenset({"network"})
    """it has no network to give: whoever runs a program with it trusts the program"""

    def __init__(self, data: Path, images: Mapping[str, int] | None = None) -> None:
        self._data = data
        self.images: Images = FakeImages(images or {})

    def check(self) -> Sequence[Check]:
        """Nothing is needed."""
        return ()

    def prepare(self) -> None:
        """Put init in its place."""
        init.place(self._data / "programs")

    def start(self, run: Run) -> FakeTask:
        """Start init, which holds the payload."""
        ours, theirs = control_socket()
        paths = candidates(run.args, run.environment)
        command = [str(init.place(self._data / "programs")), str(theirs.fileno()), str(len(paths)), *paths, *run.args]
        with theirs:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()], env=dict(run.environment), cwd=run.workspace,
            )  # fmt: skip
        task = FakeTask(ours)
        task.start(process)
        return task

    def sweep(self, name: str) -> None:
        """Nothing outlives the worker but what the session kills."""

"""Tasks of mixed fates that are in flight while things break, and how each must end, whatever broke.

Every task has bytes of its own, so that a result that was mixed up with another, or only half there, is noticed.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kolejka.client import KolejkaClient
from kolejka.common.task import Task

LARGE = 96 << 10
"""bytes of an input that goes by reference"""
MOST = 100
_LIMITS = {
    "cpus": 1, "memory": "64M", "pids": 32, "time": "2min", "workspace": "4M", "storage": "4M", "output": "4M",
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One fate. ``script`` is given the bytes of its own in the file ``in``; ``output`` says what it must write.

    ``retried`` = it counts on being tried again where its node failed, so it ends as it must in any case.
    """

    name: str
    script: str
    outcome: str = "ok"
    output: Callable[[bytes], bytes] = lambda own: own
    attempts: int = 1
    """attempts with a result that it needs where nothing breaks"""
    retried: bool = False
    large: bool = False
    more: dict[str, Any] = field(default_factory=dict)


KINDS = (
    Kind("short", "cat in"),
    Kind("brings", "cat in in", output=lambda own: own + own, large=True),
    Kind("fails", "cat in; exit 3", "failed"),
    Kind("steady", "cat in", retried=True, more={"retry": {"max": MOST, "on": ["error", "lost"]}}),
    Kind("takes a while", "sleep 0.7; cat in"),
    Kind("fails twice", "cat in; exit 4", "failed", attempts=2, more={"retry": {"max": 1, "on": ["failed", "lost"]}}),
    Kind("is killed", "cat in; kill -9 $$", "signaled"),
    Kind("is late", "exec sleep 600", "limit", output=lambda own: b"", more={"limits": {**_LIMITS, "time": "300ms"}}),
)  # fmt: skip


@dataclass(frozen=True)
class Expected:
    """A task that the server accepted, and how it must end."""

    id: str
    kind: Kind
    output: str
    """SHA-256 of what it must write"""
    size: int


class Load:
    """What was put through one client, and what became of the putting."""

    def __init__(self, client: KolejkaClient) -> None:
        self._client = client
        self.accepted: list[Expected] = []

    def put(self, count: int, kinds: tuple[Kind, ...] = KINDS) -> None:
        """Put so many tasks, their files first; in one call, since some of them must wait while others run."""
        own = [uuid.uuid4().hex.encode() + b"\n" for _ in range(count)]
        chosen = [kinds[number % len(kinds)] for number in range(count)]
        tasks = [self._task(kind, word) for kind, word in zip(chosen, own, strict=True)]
        put = self._client.put_specs(tasks)
        assert len(put) == count
        for kind, word, task in zip(chosen, own, put, strict=True):
            output = kind.output(bytes_of(kind, word))
            self.accepted.append(Expected(task["id"], kind, hashlib.sha256(output).hexdigest(), len(output)))

    def _task(self, kind: Kind, word: bytes) -> Task:
        own = bytes_of(kind, word)
        file = {"reference": self._client.put_blob(own)} if kind.large else {"content": own.decode("ascii")}
        words: dict[str, Any] = {
            "args": ["sh", "-c", kind.script], "stdout": "out", "files": {"in": file}, "limits": _LIMITS, **kind.more,
        }  # fmt: skip
        return Task.parse(words)


def bytes_of(kind: Kind, word: bytes) -> bytes:
    """The bytes that a task of this kind has of its own."""
    return word * (LARGE // len(word)) if kind.large else word

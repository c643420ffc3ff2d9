"""The node's side of the server: claim, heartbeat, result, release. What a foreman speaks, and what tests play with.

A claim and a heartbeat are not repeated by themselves: their words (free capacity, leases) are stale after a pause, so
the foreman says them anew. Results and releases name a lease, which only grows, and so can be repeated safely.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from kolejka.client.base import ServerClient
from kolejka.client.transport import quoted, told_error
from kolejka.common.errors import InputError
from kolejka.common.limits import Limits
from kolejka.common.result import Result
from kolejka.common.task import Task

DRAIN: Final = "drain"
"""what an admin may ask of a node: to take no more tasks"""
REBOOT: Final = "reboot"
"""to give back what runs and boot anew"""
REBOOT_WHEN_IDLE: Final = "reboot when idle"
"""to take no more tasks, and boot anew when nothing runs any more"""

MOST_S: Final = 1e9
"""seconds: who is told to wait longer waits so long"""


@dataclass(frozen=True)
class LogWish:
    """An admin wants the last ``lines`` lines of the node's log; ``number`` names the wish."""

    number: int
    lines: int


@dataclass(frozen=True)
class Attempt:
    """The right to run one task once: ``lease`` is its number, ``deadline_s`` when the server takes it for hung."""

    lease: int
    task_id: str
    owner: str
    spec: Mapping[str, Any]
    deadline_s: float | None = None

    @cached_property
    def task(self) -> Task:
        """The task, limits final. InputError when the server speaks of what this node does not know."""
        return Task.parse(self.spec)


@dataclass(frozen=True)
class Claimed:
    """The answer to a claim."""

    attempts: tuple[Attempt, ...] = ()
    cancel: frozenset[int] = field(default_factory=frozenset)
    """leases whose tasks were cancelled: kill them and send their results"""
    heartbeat_s: float = 60.0
    """a node silent for so long has lost its attempts"""
    asked: str | None = None
    """what an admin asks of the node: DRAIN, REBOOT, REBOOT_WHEN_IDLE, or (as far as a claim tells) nothing"""
    log: LogWish | None = None


@dataclass(frozen=True)
class Beat:
    """The answer to a heartbeat."""

    lost: frozenset[int] = field(default_factory=frozenset)
    """leases that were overtaken: kill them and throw their results away"""
    cancel: frozenset[int] = field(default_factory=frozenset)
    heartbeat_s: float = 60.0
    asked: str | None = None
    """what an admin asks of the node: DRAIN, REBOOT, REBOOT_WHEN_IDLE or nothing"""
    log: LogWish | None = None


class NodeClient(ServerClient):
    """The node's side of one server. Safe to use from several threads.

    ``instance`` is 32 hexadecimal digits that tell this foreman from another of the same name; ``None`` = not told.
    """

    instance: str | None = None
    _untold: frozenset[str] = frozenset()
    """what this server does not ask for"""

    def _words(self, words: dict[str, Any]) -> dict[str, Any]:
        return words if self.instance is None else {**words, "instance": self.instance}

    def claim(
        self,
        node: str,
        *,
        capacity: Limits | Mapping[str, Any],
        total: Limits | Mapping[str, Any],
        slots: int,
        tags: Iterable[str] = (),
        queues: Iterable[str] = (),
        wait_s: float = 0.0,
        idle: bool = False,
        leases: Iterable[int] | None = None,
        ahead: Limits | Mapping[str, Any] | None = None,
        ahead_slots: int = 0,
    ) -> Claimed:
        """Ask for tasks that fit the free ``capacity`` and ``slots``; wait for them up to ``wait_s`` (at most 30 s).

        ``idle`` says that nothing runs here, so that an exclusive task may be given; ``leases`` are those that the
        figures know of, so that the server reckons with what is on its way here. ``ahead`` and ``ahead_slots`` are what
        may be given besides: short tasks make room for it in a moment. Unavailable when the server does
        not answer; an attempt it gave meanwhile comes back to the queue by the missing heartbeat.
        """
        words = {
            "node": node, "tags": list(tags), "capacity": _plain(capacity), "total": _plain(total), "slots": slots,
            "queues": list(queues), "wait": wait_s, "idle": idle,
        }  # fmt: skip
        words = self._words(words)
        if leases is not None:
            words["leases"] = list(leases)
        if ahead is not None:
            words["ahead"] = {"capacity": _plain(ahead), "slots": ahead_slots}
        answer = self._claim({name: word for name, word in words.items() if name not in self._untold}, wait_s)
        with self.transport.understanding():
            return Claimed(
                tuple(_attempt(data) for data in answer["attempts"]),
                frozenset(map(int, answer.get("cancel", []))),
                _seconds(answer.get("heartbeat_s", 60.0)),
                None if answer.get("asked") is None else str(answer["asked"]),
                _log_wish(answer.get("log")),
            )

    def _claim(self, words: dict[str, Any], wait_s: float) -> dict[str, Any]:
        timeout_s = wait_s + self.settings.timeout
        try:
            return self.transport.request("POST", "/claims", json=words, timeout=timeout_s, patience=0.0).object()
        except InputError as error:
            if error.field not in {"leases", "ahead"} or error.field not in words:
                raise
            self._untold |= {error.field}  # an older server does not ask for it
            del words[error.field]
            return self._claim(words, wait_s)

    def heartbeat(
        self,
        node: str,
        *,
        leases: Iterable[int],
        capacity: Limits | Mapping[str, Any],
        total: Limits | Mapping[str, Any],
        tags: Iterable[str] = (),
        state: str = "active",
        about: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> Beat:
        """Say that the node lives and which leases it holds. ``state``: active, draining or quarantined.

        ``about`` is what else it says of itself (``kolejka/foreman/about.py``).
        ``timeout_s``: how long to wait for the answer, where that is less than for other requests.
        """
        words = {
            "node": node, "tags": list(tags), "capacity": _plain(capacity), "total": _plain(total),
            "leases": list(leases), "state": state, **({} if about is None else {"about": dict(about)}),
        }  # fmt: skip
        most_s = self.settings.timeout if timeout_s is None else min(timeout_s, self.settings.timeout)
        answer = self.transport.request(
            "POST", "/heartbeats", json=self._words(words), timeout=most_s, patience=0.0
        ).object()
        with self.transport.understanding():
            return Beat(
                frozenset(map(int, answer["lost"])),
                frozenset(map(int, answer.get("cancel", []))),
                _seconds(answer.get("heartbeat_s", 60.0)),
                None if answer.get("asked") is None else str(answer["asked"]),
                _log_wish(answer.get("log")),
            )

    def put_log(self, node: str, number: int, log: str) -> None:
        """Hand in lines of this node's log. NotFound when nobody waits for them any more."""
        self.transport.request("PUT", f"/nodes/{quoted(node)}/log/{number}", json={"log": log})

    def put_result(self, lease: int, result: Result, *, patience_s: float | None = None) -> dict[str, Any]:
        """Hand in a result whose files were stored before. Conflict when the lease was overtaken: throw it away."""
        return self.transport.request(
            "PUT", f"/attempts/{quoted(str(lease))}/result", json=result.to_json(), patience=patience_s
        ).object()

    def put_results(
        self, results: Mapping[int, Result], *, patience_s: float | None = None
    ) -> dict[int, InputError | None]:
        """Hand in many results by their leases, in one request: each is taken (``None``) or refused by itself.

        NotFound when the server is older than this call, InputError when it takes less at a time.
        """
        words = {"results": [{"lease": lease, "result": result.to_json()} for lease, result in results.items()]}
        answer = self.transport.request("POST", "/attempts/results", json=words, patience=patience_s).object()
        with self.transport.understanding():
            return {
                int(one["lease"]): told_error(one["error"]) if "error" in one else None for one in answer["results"]
            }  # fmt: skip

    def upload_result(self, lease: int, folder: str | Path, *, patience_s: float | None = None) -> dict[str, Any]:
        """Store the files of a result's folder and hand it in. Errors as ``put_result`` and ``put_blob``."""
        result = Result.load(folder)
        sent: set[str] = set()
        for name, entry in result.manifest.items():
            if entry.sha256 not in sent:
                self.put_blob(Path(folder) / name, reference=entry.sha256)
                sent.add(entry.sha256)
        return self.put_result(lease, result, patience_s=patience_s)

    def fetch_inputs(self, task: Task, folder: str | Path) -> None:
        """Bring every blob that ``task`` refers to into ``folder``, each named by its SHA-256; those there stay."""
        for name, file in task.files.items():
            if file.reference is None or (Path(folder) / file.reference).exists():
                continue
            try:
                self.get_blob(file.reference, Path(folder) / file.reference)
            except InputError as error:
                raise error.within(f"files.{name}") from None

    def release(self, lease: int, message: str) -> dict[str, Any]:
        """Give an attempt back that was not started. Conflict when the lease was overtaken."""
        return self.transport.request(
            "POST", f"/attempts/{quoted(str(lease))}/release", json={"message": message}
        ).object()


def _attempt(data: Mapping[str, Any]) -> Attempt:
    deadline = data.get("deadline_s")
    return Attempt(
        lease=_lease(data["lease"]),
        task_id=str(data["task_id"]),
        owner=str(data.get("owner", "")),
        spec=dict(data["spec"]),
        deadline_s=None if deadline is None else _seconds(deadline),
    )


def _lease(said: Any) -> int:
    """The number of a lease. ValueError for what is none."""
    lease = int(said)
    if not 0 < lease < 1 << 63:
        raise ValueError(said)
    return lease


def _seconds(said: Any) -> float:
    """A time that the server told, no longer than anybody can wait. ValueError for what is none."""
    seconds = float(said)
    if math.isnan(seconds):
        raise ValueError(said)
    return min(seconds, MOST_S)


def _log_wish(data: Mapping[str, Any] | None) -> LogWish | None:
    return None if data is None else LogWish(int(data["number"]), int(data["lines"]))


def _plain(limits: Limits | Mapping[str, Any]) -> dict[str, Any]:
    return limits.to_json() if isinstance(limits, Limits) else dict(limits)

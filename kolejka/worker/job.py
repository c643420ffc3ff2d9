"""What a worker is asked to do, as a value that travels between processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kolejka.common.errors import InputError
from kolejka.common.limits import Limits
from kolejka.common.task import Task


@dataclass(frozen=True)
class Job:
    """One task to run once on this node."""

    task: Path | Task
    """folder with ``kolejka_task.json`` and the local files it names; or a task that names no local files"""
    result: Path
    """folder for the result; made here, and so absent or empty before"""
    blobs: Path | None = None
    """folder in which a file given by ``{"reference": sha}`` is found as ``sha``"""
    limits: Limits = field(default_factory=Limits)
    """ceilings, merged by minimum with the task's own limits"""
    runtime: str = "auto"
    slot: int = 0
    """the payload's user id on the host is ``first_uid + slot``"""
    cpuset: tuple[int, ...] | None = None
    """CPUs to pin the task to; ``None`` = the session picks as many as the limit ``cpus`` says"""
    gpus: tuple[str, ...] | None = None
    """GPUs of the task by UUID; ``None`` = the worker picks as many as the limit ``gpus`` says"""
    node: Mapping[str, Any] | None = None
    """goes into the result's ``node``, where the runtime is added"""
    about: Mapping[str, Any] = field(default_factory=dict)
    """fields of every log line while it runs: which task and lease it is"""

    def load(self) -> Task:
        """The task. InputError names what is wrong with it, file and field."""
        if isinstance(self.task, Path):
            return Task.load(self.task)
        for name, file in self.task.files.items():
            if file.path is not None:
                raise InputError(
                    "names a local file, and there is no folder; store it as a blob", field=f"files.{name}"
                )
        return self.task

    def to_json(self) -> dict[str, Any]:
        """Plain values, as they go to a worker process."""
        return {
            "task": str(self.task) if isinstance(self.task, Path) else self.task.to_json(),
            "result": str(self.result),
            "blobs": str(self.blobs) if self.blobs is not None else None,
            "limits": self.limits.to_json(),
            "runtime": self.runtime,
            "slot": self.slot,
            "cpuset": list(self.cpuset) if self.cpuset is not None else None,
            "gpus": list(self.gpus) if self.gpus is not None else None,
            "node": dict(self.node) if self.node is not None else None,
            "about": dict(self.about),
        }

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Job:
        """The inverse of ``to_json``."""
        return cls(
            task=Path(data["task"]) if isinstance(data["task"], str) else Task.parse(data["task"]),
            result=Path(data["result"]),
            blobs=Path(data["blobs"]) if data["blobs"] is not None else None,
            limits=Limits.parse(data["limits"]),
            runtime=data["runtime"],
            slot=data["slot"],
            cpuset=tuple(data["cpuset"]) if data["cpuset"] is not None else None,
            gpus=tuple(data["gpus"]) if data["gpus"] is not None else None,
            node=data["node"],
            about=data["about"],
        )

"""The ways in which tasks of the soak end, each with the outcome that it must have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kolejka.common.result import Result


@dataclass(frozen=True)
class Fate:
    """One way to end: what to run under which limits, and what must come of it."""

    name: str
    args: tuple[str, ...]
    outcome: str
    limit: str | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    """further fields of the task"""
    cancelled: bool = False
    flags: tuple[str, ...] = ()

    def write(self, folder: Path, program: Path) -> None:
        """Make the task's folder, ready to run."""
        folder.mkdir()
        limits = {"memory": "64M", "swap": 0, "pids": 32, "time": "20s", **self.limits}
        spec: dict[str, Any] = {"args": list(self.args), "stdout": "stdout.txt", "limits": limits, **self.more}
        if self.args[0] == "./fates":
            shutil.copy(program, folder / "fates")
            spec["files"] = {"fates": {"path": "fates", "executable": True}}
        (folder / "kolejka_task.json").write_text(json.dumps(spec), encoding="utf-8")

    def check(self, result: Result) -> None:
        """AssertionError unless it ended as it must."""
        said = (str(result.outcome), result.limit)
        assert said == (self.outcome, self.limit), (
            f"{self.name}: {said} instead of {self.outcome}, {self.limit}: {result}"
        )
        missing = set(self.flags) - set(result.flags)
        assert not missing, f"{self.name}: {missing} not in {result.flags}"


_FLOOD = "while :; do echo 0123456789abcdef0123456789abcdef; done"
OK = Fate("ok", ("true",), "ok")
FATES = (
    OK,
    Fate("collects", ("sh", "-c", "mkdir d; echo x > d/y; ln -s /etc z; mkfifo p"), "ok",
         more={"collect": [{"glob": "**"}]}, flags=("files_skipped",)),
    Fate("failed", ("sh", "-c", "exit 3"), "failed"),
    Fate("missing program", ("./absent",), "failed"),
    Fate("missing file", ("true",), "error", more={"files": {"x": {"reference": "0" * 64}}}),
    Fate("signaled", ("./fates", "signal"), "signaled"),
    Fate("memory", ("./fates", "memory"), "limit", "memory", {"memory": "8M"}),
    Fate("memory of a child", ("./fates", "memory_of_child"), "limit", "memory", {"memory": "8M"}),
    Fate("time", ("./fates", "wait"), "limit", "time", {"time": "30ms"}),
    Fate("cpu_time", ("./fates", "spin"), "limit", "cpu_time", {"cpu_time": "20ms"}),
    Fate("output", ("./fates", "flood"), "limit", "output", {"output": "64K"}),
    Fate("storage", ("sh", "-c", f"({_FLOOD}) > /tmp/x"), "limit", "storage", {"storage": "256K"}),
    Fate("workspace", ("sh", "-c", f"({_FLOOD}) > x"), "limit", "workspace", {"workspace": "256K"}),
    Fate("fork bomb", ("./fates", "fork_bomb"), "limit", "time", {"pids": 16, "time": "50ms"}),
    Fate("daemons", ("./fates", "daemons"), "ok", flags=("processes_left",)),
    Fate("stopped children", ("./fates", "stopped"), "ok", flags=("processes_left",)),
    Fate("cancelled", ("./fates", "wait"), "cancelled", cancelled=True),
    Fate("cancelled spin", ("./fates", "spin"), "cancelled", cancelled=True),
)  # fmt: skip

"""A result: how a task ended. ``kolejka_result.json`` and its one declaration."""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from kolejka.common.errors import InputError
from kolejka.common.files import check_name, check_reference, read_json, write_json
from kolejka.common.limits import Limits
from kolejka.common.schema import Field, check, object_schema
from kolejka.common.stats import Stats

RESULT_FILE: Final = "kolejka_result.json"


class Outcome(enum.StrEnum):
    """The one-word verdict of an attempt."""

    OK = "ok"
    FAILED = "failed"
    SIGNALED = "signaled"
    LIMIT = "limit"
    CANCELLED = "cancelled"
    ERROR = "error"


LIMIT_VERDICTS: Final = ("memory", "time", "cpu_time", "output", "storage", "workspace", "gpu_memory")
"""Limits that can end a task; the others only make a call of the program fail."""

_NUMBERS: Final = {"type": "object"}
FIELDS: Final = (
    Field("id", {"type": ["string", "null"], "maxLength": 128}, "key of the task"),
    Field(
        "result", {"type": ["integer", "null"]}, "exit code; 128 + N for signal N; `null` if it never started",
        required=True,
    ),
    Field(
        "outcome", {"enum": [str(o) for o in Outcome]},
        "the verdict: `ok`, `failed` (non-zero exit), `signaled`, `limit`, `cancelled`, `error` (not the task's fault)",
        required=True,
    ),
    Field("limit", {"enum": [*LIMIT_VERDICTS, None]}, "with outcome `limit`: which limit ended it"),
    Field("files", {"type": "array", "items": {"type": "string"}}, "names of the result's files", required=True),
    Field(
        "manifest",
        {
            "type": "object",
            "additionalProperties": object_schema(
                {
                    "size": {"type": "integer", "minimum": 0},
                    "mode": {"type": "string", "pattern": "^0[0-7]{3}$"},
                    "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
                },
                required=["size", "mode", "sha256"],
            ),
        },
        "name → size in bytes, mode and SHA-256 of each file",
    ),
    Field("limits", {"type": "object"}, "the limits it ran under: bytes, seconds, counts"),
    Field("stats", _NUMBERS, "what it used: bytes, seconds, counts; a figure the kernel cannot give is absent"),
    Field("node", {"type": ["object", "null"]}, "`name` and `tags` of the node that ran it, and the `runtime`"),
    Field("message", {"type": ["string", "null"]}, "what an `error` is about, or why a program could not start"),
    Field(
        "flags", {"type": "array", "items": {"type": "string"}},
        "facts beside the verdict, such as `stdout_truncated`, `processes_left`, `files_skipped`",
    ),
    Field("skipped", {"type": "object"}, "name → why it was not collected (a symlink, a FIFO, over a size limit)"),
)  # fmt: skip


@functools.cache
def result_schema() -> dict[str, Any]:
    """The JSON Schema of ``kolejka_result.json``."""
    return object_schema(FIELDS, title="Kolejka result")


@dataclass(frozen=True)
class ResultFile:
    """One file of a result: bytes, permission bits (``0644``), SHA-256."""

    size: int
    mode: str
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """The object form."""
        return dict(vars(self))


@dataclass(frozen=True)
class Result:
    """A parsed result. ``manifest`` knows every file, so ``files`` in JSON is derived from it."""

    outcome: Outcome
    result: int | None = None
    id: str | None = None
    limit: str | None = None
    manifest: Mapping[str, ResultFile] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    stats: Stats = field(default_factory=Stats)
    node: Mapping[str, Any] | None = None
    message: str | None = None
    flags: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files."""
        return tuple(self.manifest)

    @classmethod
    def parse(cls, data: object) -> Result:
        """Read a result's JSON. InputError names the field and the cure."""
        check(data, result_schema())
        assert isinstance(data, Mapping)  # the schema says so
        words = {key: value for key, value in data.items() if key != "files"}
        manifest: dict[str, ResultFile] = {}
        for name, entry in words.get("manifest", {}).items():
            try:
                check_name(name)
                check_reference(entry["sha256"])
            except InputError as error:
                raise error.within("manifest") from None
            manifest[name] = ResultFile(**entry)
        if list(manifest) != list(data["files"]):
            raise InputError("files and manifest name different files", field="manifest")
        if (data.get("limit") is not None) != (data["outcome"] == Outcome.LIMIT):
            raise InputError("the limit is named exactly when the outcome is 'limit'", field="limit")
        if data["outcome"] == Outcome.OK and data["result"] != 0:
            raise InputError("the outcome 'ok' goes with exit code 0 only", field="result")
        words["outcome"] = Outcome(words["outcome"])
        words["manifest"] = manifest
        try:
            words["limits"] = Limits.parse(words.get("limits", {}))
        except InputError as error:
            raise error.within("limits", ".") from None
        try:
            words["stats"] = Stats.parse(words.get("stats", {}))
        except InputError as error:
            raise error.within("stats", ".") from None
        words["flags"] = tuple(words.get("flags", ()))
        words["skipped"] = dict(words.get("skipped", {}))
        return cls(**words)

    @classmethod
    def load(cls, folder: str | Path) -> Result:
        """Read the result in a folder. InputError names the file, the field and the cure."""
        spec = Path(folder) / RESULT_FILE
        try:
            return cls.parse(read_json(spec))
        except InputError as error:
            raise error if error.field == str(spec) else error.within(str(spec)) from None

    def to_json(self) -> dict[str, Any]:
        """The spec, in the order of declaration."""
        data: dict[str, Any] = {
            "id": self.id,
            "result": self.result,
            "outcome": str(self.outcome),
            "limit": self.limit,
            "files": list(self.manifest),
            "manifest": {name: entry.to_json() for name, entry in self.manifest.items()},
            "limits": self.limits.to_json(),
            "stats": self.stats.to_json(),
            "node": dict(self.node) if self.node is not None else None,
            "message": self.message,
            "flags": list(self.flags),
            "skipped": dict(self.skipped),
        }
        always = {"result", "outcome", "files", "manifest", "limits", "stats", "node", "message"}
        return {key: value for key, value in data.items() if key in always or value not in (None, [], {})}

    def save(self, folder: str | Path) -> None:
        """Write ``kolejka_result.json`` into a folder that exists."""
        write_json(Path(folder) / RESULT_FILE, self.to_json())

    def replace(self, **words: Any) -> Result:
        """A copy with some fields set."""
        return replace(self, **words)

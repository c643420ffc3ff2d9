"""A task: what to run. ``kolejka_task.json`` and its one declaration.

``FIELDS`` declares every field once; the JSON Schema, validation, the reference page and the served schema
derive from it.
``Task`` is the parsed, immutable value. A field is added by a line in ``FIELDS`` and an attribute of ``Task``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from kolejka.common.errors import InputError
from kolejka.common.files import check_name, check_reference, read_json, write_json
from kolejka.common.image_names import check_image_name
from kolejka.common.limits import Limits, limits_schema
from kolejka.common.result import RESULT_FILE
from kolejka.common.schema import Field, check, object_schema

TASK_FILE: Final = "kolejka_task.json"
DEFAULT_QUEUE: Final = "default"
RETRY_REASONS: Final = ("lost", "error", "limit", "failed", "signaled")
LABEL_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}$"
QUEUE_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"

MAX_ARGUMENT: Final = 131071
"""Bytes of the longest argument or variable that Linux gives to a program (MAX_ARG_STRLEN, less the NUL)."""
MAX_WORDS: Final = 3 << 19
"""Bytes of all of them together: a quarter of the usual stack, less what a runtime adds."""
_POINTER: Final = 8
_TEXT: Final = {"type": "string", "minLength": 1, "maxLength": 4096}
_NAME: Final = {"type": "string", "minLength": 1, "maxLength": 4096, "format": "safe-name"}
_FILE: Final[dict[str, Any]] = {
    "description": 'a local path, null, {"path": …}, {"reference": …} or {"content": …}, "executable" beside them',
    "anyOf": [
        {"type": "null", "description": "the file of the same name in the task's folder"},
        {"type": "string", "minLength": 1, "description": "a local path inside the task's folder"},
        object_schema(
            {"path": {"type": "string", "minLength": 1}, "executable": {"type": "boolean"}}, required=["path"]
        ),
        object_schema(
            {"reference": {"type": "string", "pattern": "^[0-9a-f]{64}$"}, "executable": {"type": "boolean"}},
            required=["reference"],
        ),
        object_schema({"content": {"type": "string"}, "executable": {"type": "boolean"}}, required=["content"]),
    ],
}

FIELDS: Final = (
    Field("id", {**_TEXT, "maxLength": 128}, "key of the task; the server assigns it"),
    Field("name", {"type": "string", "maxLength": 256}, "a name for people"),
    Field(
        "labels",
        {
            "type": "object",
            "maxProperties": 64,
            "propertyNames": {"pattern": LABEL_PATTERN},
            "additionalProperties": {"type": "string", "maxLength": 256},
        },
        "key → value, for people and for filters",
    ),
    Field("image", {**_TEXT, "maxLength": 512}, "container image; absent = a plain executable of the node"),
    Field(
        "args",
        {"type": "array", "minItems": 1, "items": {"type": "string"}},
        "program and arguments, executed directly (no shell), in the task's working folder",
        required=True,
    ),
    Field(
        "files",
        {
            "anyOf": [
                {"type": "object", "propertyNames": _NAME, "additionalProperties": _FILE},
                {"type": "array", "items": _NAME, "uniqueItems": True},
            ]
        },
        'name in the working folder → `"local/path"`, `null` (same name), `{"path"}`, `{"reference": blob}` or '
        '`{"content": "inline text"}`; `"executable": true` beside them sets the mode. A list of names is accepted too',
    ),
    Field("stdin", _NAME, "file in the working folder to read as standard input; absent = empty"),
    Field("stdout", _NAME, "file in the result to write standard output to; absent = discarded"),
    Field("stderr", _NAME, "the same for standard error; equal to `stdout` = both merged in order"),
    Field(
        "environment",
        {
            "type": "object",
            "propertyNames": {"pattern": "^[^=\\x00]+$"},
            "additionalProperties": {"type": "string"},
        },
        "name → value of environment variables",
    ),
    Field(
        "collect",
        {
            "type": "array",
            "items": object_schema(
                {
                    "glob": {"type": "string", "minLength": 1},
                    "strip": {"type": "integer", "minimum": 0},
                    "prefix": _NAME,
                    "exclude": {"type": "array", "items": {"type": "string", "minLength": 1}},
                    "changed": {"type": "boolean"},
                },
            ),
        },
        "what to bring back from the working folder: `glob` (`**` crosses folders), `strip` leading folders, put below "
        '`prefix`, leave out `exclude` globs; `"changed": true` = only files the task created or modified',
    ),
    Field("limits", limits_schema(), "what the task may use; see the reference of limits"),
    Field("requires", {"type": "array", "items": _TEXT, "maxItems": 64}, "tags a node must have"),
    Field("exclusive", {"type": "boolean"}, "run alone on the node"),
    Field("observer", {"type": "boolean"}, "give the program the observer's socket, to open sessions of its own"),
    Field("queue", {"type": "string", "pattern": QUEUE_PATTERN}, "where it waits", default=DEFAULT_QUEUE),
    Field("priority", {"type": "integer", "minimum": -1000, "maximum": 1000}, "higher goes first", default=0),
    Field(
        "retry",
        object_schema(
            {
                "max": {"type": "integer", "minimum": 0, "maximum": 100},
                "on": {"type": "array", "items": {"enum": list(RETRY_REASONS)}},
            }
        ),
        'how often to try again, and after which ends: `{"max": n, "on": ["lost", "error"]}`',
    ),
    Field("callback_url", {**_TEXT, "pattern": "^https?://"}, "told when the result is in"),
)


_BYTES: Final = frozenset({"args", "files", "stdin", "stdout", "stderr", "environment", "collect"})
"""Fields that end as bytes at the kernel, so that file names which are not UTF-8 can stand in them."""


_DEFAULTS: Final = tuple((field.name, field.default) for field in FIELDS)


@functools.cache
def task_schema() -> dict[str, Any]:
    """The JSON Schema of ``kolejka_task.json``."""
    return object_schema(FIELDS, title="Kolejka task")


@dataclass(frozen=True)
class File:
    """Where one input file comes from: exactly one of ``path`` (in the task's folder), ``reference``, ``content``."""

    path: str | None = None
    reference: str | None = None
    content: str | None = None
    executable: bool | None = None
    """``None`` = as the local file is; not executable for blobs and inline text"""

    @classmethod
    def parse(cls, name: str, form: object) -> File:
        """One entry of ``files``, in any of its forms."""
        if form is None:
            return cls(path=name)
        if isinstance(form, str):
            form = {"path": form}
        if not isinstance(form, Mapping):
            raise InputError("a file is a path, null or an object", field=name)
        file = cls(**form)
        try:
            if file.path is not None:
                check_name(file.path)
            if file.reference is not None:
                check_reference(file.reference)
        except InputError as error:
            raise error.within(name) from None
        return file

    def to_json(self) -> dict[str, Any]:
        """The object form."""
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Collect:
    """One rule of what to bring back; see the field ``collect``."""

    glob: str = "**"
    strip: int = 0
    prefix: str | None = None
    exclude: tuple[str, ...] = ()
    changed: bool = False

    @classmethod
    def parse(cls, form: Mapping[str, Any]) -> Collect:
        """One entry of ``collect``. InputError on a glob that leaves the folder or a rule that selects nothing."""
        if "glob" not in form and not form.get("changed"):
            raise InputError('say what to collect: {"glob": "*.txt"} or {"changed": true}')
        rule = cls(**{**form, "exclude": tuple(form.get("exclude", ()))})
        for pattern in (rule.glob, *rule.exclude):
            if "\0" in pattern:
                raise InputError(f"{pattern!r} holds a NUL character, which no file name does")
            if pattern.startswith("/") or ".." in pattern.split("/"):
                raise InputError(f"{pattern!r} leaves the working folder; globs are relative and hold no '..'")
        return rule

    def to_json(self) -> dict[str, Any]:
        """The object form, defaults left out."""
        full = {**vars(self), "exclude": list(self.exclude)}
        return {key: value for key, value in full.items() if value or key == "glob"}


@dataclass(frozen=True)
class Retry:
    """How often a task is tried again (``max`` more attempts), and after which ends of an attempt."""

    max: int = 0
    on: tuple[str, ...] = ("lost", "error")

    def to_json(self) -> dict[str, Any]:
        """The object form."""
        return {"max": self.max, "on": list(self.on)}


@dataclass(frozen=True)
class Task:
    """A parsed task. ``parse`` is the only door for words from outside."""

    args: tuple[str, ...]
    id: str | None = None
    name: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    image: str | None = None
    files: Mapping[str, File] = field(default_factory=dict)
    stdin: str | None = None
    stdout: str | None = None
    stderr: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    collect: tuple[Collect, ...] = ()
    limits: Limits = field(default_factory=Limits)
    requires: tuple[str, ...] = ()
    exclusive: bool = False
    observer: bool = False
    queue: str = DEFAULT_QUEUE
    priority: int = 0
    retry: Retry = field(default_factory=Retry)
    callback_url: str | None = None

    @classmethod
    def parse(cls, data: object) -> Task:
        """Read a task's JSON. InputError names the field and the cure; nothing is ignored."""
        if isinstance(data, Mapping) and "limits" in data:
            try:
                limits = Limits.parse(data["limits"])
            except InputError as error:
                raise error.within("limits", ".") from None
        else:
            limits = Limits()
        check(data, task_schema())
        assert isinstance(data, Mapping)  # the schema says so
        for name, value in data.items():
            _check_characters(value, name, "surrogateescape" if name in _BYTES else "strict")
        words: dict[str, Any] = dict(data)
        words["args"] = tuple(words["args"])
        words["limits"] = limits
        words["files"] = _parse_files(words.get("files", {}))
        words["collect"] = _parse_collect(words.get("collect", []))
        if "requires" in words:
            words["requires"] = tuple(words["requires"])
        if "retry" in words:
            retry = words["retry"]
            words["retry"] = Retry(retry.get("max", Retry.max), tuple(retry.get("on", Retry.on)))
        for name in ("labels", "environment"):
            words[name] = dict(words.get(name, {}))
        task = cls(**words)
        task._check_names()
        return task

    def _check_names(self) -> None:
        for where in ("stdin", "stdout", "stderr"):
            name = getattr(self, where)
            if name is not None:
                try:
                    check_name(name)
                except InputError as error:
                    raise error.within(where) from None
        if self.image is not None:
            try:
                check_image_name(self.image)
            except InputError as error:
                raise error.within("image") from None
        if self.stdout is not None and self.stderr is not None:
            _check_no_file_is_a_folder((self.stdout, self.stderr), "stderr")
        for where in ("stdout", "stderr"):
            if (getattr(self, where) or "").split("/")[0] == RESULT_FILE:
                raise InputError(f"{RESULT_FILE} is the result's own; choose another name", field=where)
        for argument in self.args:
            if "\0" in argument:
                raise InputError("an argument holds a NUL character, which no program can be given", field="args")
            if len(os.fsencode(argument)) > MAX_ARGUMENT:
                raise InputError(f"an argument is longer than {MAX_ARGUMENT} bytes; pass it as a file", field="args")
        if not self.args[0]:
            raise InputError("the program's name is empty", field="args")
        for name, value in self.environment.items():
            if "\0" in value:
                raise InputError("the value holds a NUL character", field=f"environment.{name}")
            if len(os.fsencode(name)) + len(os.fsencode(value)) >= MAX_ARGUMENT:
                raise InputError(
                    f"this is longer than {MAX_ARGUMENT} bytes; pass it as a file", field=f"environment.{name}"
                )
        words = [*self.args, *(f"{name}={value}" for name, value in self.environment.items())]
        if sum(len(os.fsencode(word)) + 1 + _POINTER for word in words) > MAX_WORDS:
            raise InputError(
                f"with the environment these are more than {MAX_WORDS} bytes; pass them as a file", field="args"
            )
        _check_no_file_is_a_folder(self.files, "files")

    @classmethod
    def load(cls, folder: str | Path) -> Task:
        """Read the task in a folder and check that its local files are there, inside the folder.

        InputError names the file, the field and the cure.
        """
        folder = Path(folder)
        cls.check_folder(folder)
        spec = folder / TASK_FILE
        try:
            data = read_json(spec)
        except InputError as error:
            raise error if error.field == str(spec) else error.within(str(spec)) from None
        return cls.of_folder(data, folder)

    @staticmethod
    def check_folder(folder: Path) -> None:
        """InputError when there is no such folder."""
        if not folder.is_dir():
            raise InputError(f"there is no such folder; a task is a folder with a {TASK_FILE}", field=str(folder))

    @classmethod
    def of_folder(cls, data: object, folder: Path) -> Task:
        """Read a task's JSON whose local files lie in ``folder``, and check them. Errors as ``load``."""
        spec = folder / TASK_FILE
        try:
            task = cls.parse(data)
        except InputError as error:
            raise error.within(str(spec)) from None
        root = folder.resolve()
        for name, file in task.files.items():
            if file.path is None:
                continue
            place = f"{spec}: files.{name}"
            try:
                path = (folder / file.path).resolve()
            except (OSError, RuntimeError):  # RuntimeError: links in a circle, up to Python 3.12
                raise InputError(f"{file.path!r} cannot be followed; its links run in a circle", field=place) from None
            if not path.is_relative_to(root):
                raise InputError(f"{file.path!r} leads out of the task's folder; copy the file into it", field=place)
            if not path.exists():
                raise InputError(f"there is no file {file.path!r} in the task's folder", field=place)
            if not path.is_file():
                raise InputError(f"{file.path!r} is not a regular file; name each file of a folder", field=place)
        return task

    def to_json(self) -> dict[str, Any]:
        """The spec in its canonical form: what was set, in the order of declaration, limits in plain numbers."""
        full: dict[str, Any] = {
            **vars(self),
            "args": list(self.args),
            "labels": dict(self.labels),
            "environment": dict(self.environment),
            "files": {name: file.to_json() for name, file in self.files.items()},
            "collect": [rule.to_json() for rule in self.collect],
            "limits": self.limits.to_json(),
            "requires": list(self.requires),
            "retry": self.retry.to_json() if self.retry != Retry() else None,
        }
        return {
            name: value
            for name, default in _DEFAULTS
            if (value := full[name]) not in (None, {}, [], False) and value != default
        }

    def save(self, folder: str | Path) -> None:
        """Write ``kolejka_task.json`` into a folder that exists."""
        write_json(Path(folder) / TASK_FILE, self.to_json())

    def replace(self, **words: Any) -> Task:
        """A copy with some fields set."""
        return replace(self, **words)


def _check_characters(value: object, place: str, errors: str) -> None:
    """Refuse lone surrogates, which JSON can spell and UTF-8 cannot.

    With ``surrogateescape`` those are accepted that stand for the bytes of a file name or an argument.
    """
    if isinstance(value, str):
        try:
            value.encode("utf-8", errors)
        except UnicodeEncodeError:
            raise InputError(f"{value[:60]!a} holds a character that does not exist alone", field=place) from None
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            _check_characters(name, place, errors)
            _check_characters(inner, f"{place}.{name}", errors)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _check_characters(inner, f"{place}[{number}]", errors)


def _check_no_file_is_a_folder(names: Iterable[str], place: str) -> None:
    files = set(names)
    for name in files:
        parts = name.split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            if parent in files:
                raise InputError(f"{parent!a} is a file and a folder at once", field=place)


def _parse_files(data: Any) -> Mapping[str, File]:
    forms: Mapping[str, object] = data if isinstance(data, Mapping) else dict.fromkeys(data)
    files: dict[str, File] = {}
    for name, form in forms.items():
        try:
            files[check_name(name)] = File.parse(name, form)
        except InputError as error:
            raise error.within("files", ".") from None
    return files


def _parse_collect(data: list[Mapping[str, Any]]) -> tuple[Collect, ...]:
    rules = []
    for number, form in enumerate(data):
        try:
            if "prefix" in form:
                check_name(form["prefix"])
            rules.append(Collect.parse(form))
        except InputError as error:
            raise error.within(f"collect[{number}]") from None
    return tuple(rules)

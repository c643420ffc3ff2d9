"""Arrays: one task folder, many sets of parameters, a task for each.

A set gives texts to names. Wherever ``{name}`` stands in a text of the task's JSON, the set's text takes its place;
other braces stay as they are. All sets have the same names, and each name stands somewhere in the task: a parameter
that changes nothing is a mistake. Sets come from a file: CSV with a line of names, a JSON list of objects, or one
JSON object a line. CSV and lines are read as they are needed, so an array may be long.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from kolejka.common.errors import InputError
from kolejka.common.files import parse_json, read_json
from kolejka.common.task import TASK_FILE, Task

NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
Words = Mapping[str, str]


def read_sets(path: Path) -> Iterator[tuple[str, Words]]:
    """The sets of a file, each with its place in it. InputError names the place of one that is none."""
    if not path.is_file():
        raise InputError("there is no such file of parameters", field=str(path))
    readers = {".csv": _read_csv, ".json": _read_list, ".jsonl": _read_lines}
    if path.suffix.lower() not in readers:
        raise InputError("parameters come in a file that ends in .csv, .json or .jsonl", field=str(path))
    names: set[str] | None = None
    try:
        for place, form in readers[path.suffix.lower()](path):
            words = _checked(form, place)
            if names is not None and set(words) != names:
                odd = min(names ^ set(words))
                raise InputError(f"all sets have the same names, and {odd!r} is not in each", field=place)
            names = set(words)
            yield place, words
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read: {error}", field=str(path)) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", field=str(path)) from None
    if names is None:
        raise InputError("there are no parameters in it", field=str(path))


def _read_csv(path: Path) -> Iterator[tuple[str, Any]]:
    with open(path, encoding="utf-8-sig", newline="") as source:
        reader = csv.reader(source, strict=True)
        names = next(reader, [])
        if len(set(names)) != len(names):
            raise InputError("a name stands twice in the first line", field=str(path))
        for row in reader:
            place = f"{path}:{reader.line_num}"
            if not row:
                continue  # an empty line
            if len(row) != len(names):
                raise InputError(f"this line has {len(row)} values, and there are {len(names)} names", field=place)
            yield place, dict(zip(names, row, strict=True))


def _read_list(path: Path) -> Iterator[tuple[str, Any]]:
    data = read_json(path)
    if not isinstance(data, list):
        raise InputError("this should be a list of objects", field=str(path))
    for number, form in enumerate(data):
        yield f"{path}[{number}]", form


def _read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with open(path, encoding="utf-8") as source:
        for number, line in enumerate(source, 1):
            if not line.strip():
                continue
            yield f"{path}:{number}", parse_json(line, f"{path}:{number}")


def _checked(form: Any, place: str) -> Words:
    if not isinstance(form, Mapping) or not form:
        raise InputError("a set of parameters is an object of names and values", field=place)
    words = {}
    for name, value in form.items():
        if not NAME.fullmatch(name):
            raise InputError(f"{name!r} is no name of a parameter; write letters, digits and _", field=place)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise InputError("the value of a parameter is a text or a number", field=f"{place}: {name}")
        words[name] = value if isinstance(value, str) else json.dumps(value)
    return words


def fill(form: Any, words: Words) -> tuple[Any, set[str]]:
    """A JSON value with the parameters put in, in names too, and the parameters that stood somewhere in it.

    InputError when two names of one object become the same.
    """
    used: set[str] = set()
    pattern = re.compile(r"\{(" + "|".join(map(re.escape, words)) + r")\}")

    def put(match: re.Match[str]) -> str:
        used.add(match[1])
        return words[match[1]]

    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(put, value)
        if isinstance(value, list):
            return [walk(inner) for inner in value]
        if isinstance(value, dict):
            filled = {walk(key): walk(inner) for key, inner in value.items()}
            if len(filled) < len(value):
                raise InputError("two of its names are one name with these parameters", field=min(map(walk, value)))
            return filled
        return value

    return walk(form), used


def tasks(folder: Path, path: Path) -> Iterator[tuple[str, Task]]:
    """The tasks of an array, each with the place of its set. InputError names the place of one that is none."""
    spec = folder / TASK_FILE
    Task.check_folder(folder)
    template = read_json(spec)
    for place, words in read_sets(path):
        try:
            filled, used = fill(template, words)
        except InputError as error:
            raise error.within(place) from None
        unused = sorted(set(words) - used)
        if unused:
            raise InputError(f"nowhere in {spec} stands {{{unused[0]}}}; write it there, or leave it out", field=place)
        try:
            yield place, Task.of_folder(filled, folder)
        except InputError as error:
            raise error.within(place) from None

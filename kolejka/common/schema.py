"""Declared fields → JSON Schema → one clear line about what is wrong.

``Field`` declares a field of a format; ``object_schema`` derives the schema; ``check`` validates and turns the most
telling violation into an ``InputError`` with field, reason and cure.

Two libraries share the work. fastjsonschema compiles a schema and says in microseconds that data is right, which it
nearly always is; jsonschema, imported on first use, has the last word on all else and tells what is wrong. A test
holds them to agree.

Data comes from anybody, and jsonschema takes a thousand times as long. So of data with very many entries, which nobody
writes by hand, what is wrong is told in fastjsonschema's shorter words.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import fastjsonschema

from kolejka.common.errors import InputError

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
LARGE: Final = 10_000
"""entries of lists and objects, all together, of data that jsonschema is not asked about"""
_LONG_NAME: Final = 100
_LONG_MESSAGE: Final = 200
Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Field:
    """One field of a format: its name, the schema of its value, its meaning."""

    name: str
    schema: Schema
    help: str
    required: bool = False
    default: object = None


def object_schema(
    fields: Mapping[str, Any] | Iterable[Field], *, required: Iterable[str] = (), title: str | None = None
) -> dict[str, Any]:
    """The schema of an object with just these fields; any other is an error."""
    if isinstance(fields, Mapping):
        properties = dict(fields)
        needed = list(required)
    else:
        declared = tuple(fields)
        properties = {f.name: {**f.schema, "description": f.help} for f in declared}
        needed = [f.name for f in declared if f.required]
    schema: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": properties}
    if needed:
        schema["required"] = needed
    return {"$schema": DIALECT, "title": title, **schema} if title else schema


Accepts = Callable[[object], object]
"""Raises JsonSchemaValueException for data that may be wrong."""

_compiled: dict[int, tuple[Schema, Accepts]] = {}


def _accepts(schema: Schema) -> Accepts:
    entry = _compiled.get(id(schema))
    if entry is None or entry[0] is not schema:
        # formats are checked by our own words (``check_name``), defaults are filled in by those who read
        accepts = fastjsonschema.compile(dict(schema), use_formats=False, use_default=False, detailed_exceptions=False)
        entry = (schema, accepts)
        if len(_compiled) < 64:  # schemas are module constants; a caller that makes them on the fly is not remembered
            _compiled[id(schema)] = entry
    return entry[1]


def check(data: object, schema: Schema) -> None:
    """Raise InputError for the most telling way in which ``data`` breaks ``schema``; return if it does not."""
    try:
        _accepts(schema)(data)
    except fastjsonschema.JsonSchemaValueException as quick:
        if _is_large(data):
            place, _, reason = quick.message[:_LONG_MESSAGE].partition(" ")
            raise InputError(reason, field=place.removeprefix("data").removeprefix(".") or None) from None
        error = violation(data, schema)
        if error is not None:
            raise _explain(error) from None


def _is_large(data: object) -> bool:
    count, inside = 0, [data]
    while inside:
        one = inside.pop()
        if isinstance(one, dict | list):
            count += len(one)
            if count > LARGE:
                return True
            inside += one.values() if isinstance(one, dict) else one
    return False


def violation(data: object, schema: Schema) -> Any:
    """The most telling violation as jsonschema sees it, or ``None``."""
    from jsonschema.exceptions import best_match

    return best_match(_validator()(schema).iter_errors(data))


@functools.cache
def _validator() -> Any:
    """jsonschema's, with our own words for two of its keywords."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    own = {"pattern": _pattern, "uniqueItems": _unique_items}
    return extend(Draft202012Validator, own)  # type: ignore[no-untyped-call] # its stubs leave words out


def _pattern(_validator: Any, wanted: str, instance: object, _schema: Schema) -> Iterator[Any]:
    """``$`` is the end of the text (ECMA-262, as JSON Schema says), not the place before a last line break too."""
    from jsonschema import ValidationError

    if isinstance(instance, str) and not re.search(re.sub(r"(?<!\\)\$$", r"\\Z", wanted), instance):
        yield ValidationError("does not have the form")


def _unique_items(_validator: Any, wanted: bool, instance: object, _schema: Schema) -> Iterator[Any]:
    """Entries are told apart by their text: jsonschema compares each with all where they cannot be sorted."""
    from jsonschema import ValidationError

    if (
        wanted
        and isinstance(instance, list)
        and len({json.dumps(one, sort_keys=True) for one in instance}) < len(instance)
    ):
        yield ValidationError("names something twice")


def _place(path: Iterable[object]) -> str:
    place = ""
    for step in path:
        place += f"[{step}]" if isinstance(step, int) else f".{step}" if place else str(step)
    return place


def _explain(error: Any) -> InputError:
    """One violation in words: which field, what it should be."""
    place, keyword, wanted = _place(error.absolute_path), error.validator, error.validator_value
    if keyword == "additionalProperties" and isinstance(error.instance, Mapping):
        known = list(error.schema.get("properties", {}))
        unknown = str(next(name for name in error.instance if name not in known))[:_LONG_NAME]
        near = difflib.get_close_matches(unknown, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; the fields are {', '.join(known)}"
        return InputError(f"there is no such field{hint}", field=f"{place}.{unknown}" if place else unknown)
    if keyword == "required":
        missing = next(name for name in wanted if name not in error.instance)
        return InputError("this field is required", field=f"{place}.{missing}" if place else missing)
    return InputError(_reason(error, keyword, wanted), field=place or None)


def _reason(error: Any, keyword: str, wanted: Any) -> str:
    shown = json.dumps(error.instance)
    shown = shown if len(shown) <= 60 else shown[:57] + "…"
    about = error.schema.get("description", "") if isinstance(error.schema, Mapping) else ""
    if keyword == "type":
        names = {"array": "a list", "object": "an object", "string": "a text", "integer": "a whole number",
                 "number": "a number", "boolean": "true or false", "null": "null"}  # fmt: skip
        kinds = wanted if isinstance(wanted, list) else [wanted]
        return f"{shown} should be {' or '.join(names[kind] for kind in kinds)}"
    reasons = {
        "minItems": "this list is empty",
        "minLength": "this text is empty",
        "maxLength": f"this text is longer than {wanted} characters",
        "maxItems": f"this list has more than {wanted} entries",
        "maxProperties": f"this object has more than {wanted} entries",
        "minimum": f"{shown} is less than {wanted}",
        "maximum": f"{shown} is more than {wanted}",
        "enum": f"{shown} is not one of {', '.join(map(str, wanted)) if isinstance(wanted, list) else wanted}",
        "pattern": f"{shown} does not have the form {wanted}",
        "uniqueItems": f"{shown} names something twice",
        "anyOf": f"{shown} has none of the forms that this field can have",
    }
    reason = reasons.get(keyword, error.message)
    return f"{reason} ({about})" if about and keyword in {"pattern", "anyOf"} else reason

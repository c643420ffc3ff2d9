"""Violations of a schema in one clear line."""

from __future__ import annotations

from typing import Any

import pytest

from kolejka.common.errors import InputError
from kolejka.common.schema import Field, check, object_schema

SCHEMA = object_schema(
    [
        Field("args", {"type": "array", "minItems": 1, "items": {"type": "string"}}, "what to run", required=True),
        Field("count", {"type": "integer", "minimum": 0, "maximum": 5}, "how many"),
        Field("kind", {"enum": ["one", "two"]}, "which"),
        Field("tag", {"type": "string", "pattern": "^[a-z]+$", "maxLength": 8}, "lower-case letters"),
        Field("inner", object_schema({"deep": {"type": "object", "additionalProperties": {"type": "string"}}}), "more"),
    ],
    title="Test",
)


@pytest.mark.parametrize(
    ("data", "field", "message"),
    [
        ({}, "args", "required"),
        ({"args": ["a"], "cuont": 1}, "cuont", "did you mean 'count'"),
        ({"args": ["a"], "zzz": 1}, "zzz", "the fields are args, count"),
        ({"args": []}, "args", "empty"),
        ({"args": [3]}, "args[0]", "3 should be a text"),
        ({"args": "ls"}, "args", "should be a list"),
        ({"args": ["a"], "count": "3"}, "count", "should be a whole number"),
        ({"args": ["a"], "count": -1}, "count", "-1 is less than 0"),
        ({"args": ["a"], "count": 9}, "count", "9 is more than 5"),
        ({"args": ["a"], "kind": "three"}, "kind", "one of one, two"),
        ({"args": ["a"], "tag": "A"}, "tag", "lower-case letters"),
        ({"args": ["a"], "tag": "a" * 9}, "tag", "longer than 8"),
        ({"args": ["a"], "inner": {"deep": {"x": 1}}}, "inner.deep.x", "1 should be a text"),
        ({"args": ["a"], "inner": {"dep": {}}}, "inner.dep", "did you mean 'deep'"),
        ([], None, "should be an object"),
        (None, None, "null should be an object"),
    ],
)
def test_a_violation_names_field_and_reason(data: Any, field: str | None, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check(data, SCHEMA)
    assert caught.value.field == field
    assert message in caught.value.message
    assert "\n" not in str(caught.value)


def test_what_fits_passes() -> None:
    check({"args": ["a", "b"], "count": 5, "kind": "two", "tag": "abc", "inner": {"deep": {"x": "y"}}}, SCHEMA)


def test_a_long_value_is_shown_shortened() -> None:
    with pytest.raises(InputError) as caught:
        check({"args": ["a"], "count": "x" * 10_000}, SCHEMA)
    assert len(str(caught.value)) < 200


def test_a_schema_made_on_the_fly_is_not_taken_for_another() -> None:
    for wanted in ("string", "integer") * 200:
        schema = {"type": "object", "properties": {"x": {"type": wanted}}}
        good, bad = ("t", 3) if wanted == "string" else (3, "t")
        check({"x": good}, schema)
        with pytest.raises(InputError):
            check({"x": bad}, schema)

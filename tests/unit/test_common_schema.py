"""Violations of a schema in one clear line."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kolejka.common.errors import InputError
from kolejka.common.result import result_schema
from kolejka.common.schema import LARGE, Field, check, object_schema, violation
from kolejka.common.task import task_schema

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
        ({"args": ["a"], "tag": "a\n"}, "tag", "lower-case letters"),
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


class Counting(list[Any]):
    """A list that counts how often its entries are looked at."""

    looks = 0

    def __getitem__(self, place: Any) -> Any:
        self.looks += 1
        return super().__getitem__(place)

    def __mul__(self, times: Any) -> Counting:
        return Counting(super().__mul__(times))

    def __iter__(self) -> Iterator[Any]:
        return (self[place] for place in range(len(self)))


@pytest.mark.parametrize(
    ("data", "field", "message"),
    [
        ({"args": Counting([3]) * (LARGE + 1)}, "args[0]", "must be string"),
        ({"args": Counting(["x"]) * LARGE, "zzz": 1}, None, "zzz"),
        ({"args": Counting(["x"]) * (LARGE + 1), "inner": {"deep": {"x": 1}}}, "inner.deep.x", "must be string"),
        ({"args": ["x"], **{f"x{number}": 1 for number in range(LARGE)}}, None, "must not contain"),
    ],
)
def test_of_very_many_entries_not_all_are_looked_at_twice(data: Any, field: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        check(data, SCHEMA)
    assert caught.value.field == field
    assert len(str(caught.value)) <= 200
    assert getattr(data["args"], "looks", 0) <= LARGE + 1


def test_entries_are_not_compared_each_with_all() -> None:
    class Compared(str):
        __slots__ = ()
        count = 0
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            Compared.count += 1
            return super().__eq__(other)

    entries = [Compared(number) if number % 2 else number for number in range(1000)]  # cannot be sorted
    with pytest.raises(InputError, match="should be a text"):
        check({"args": ["x"], "files": entries}, task_schema())
    assert Compared.count < 10 * len(entries)


def test_the_name_of_an_unknown_field_is_shown_shortened() -> None:
    with pytest.raises(InputError) as caught:
        check({"args": ["a"], "x" * 10_000: 1}, SCHEMA)
    assert len(str(caught.value)) < 200


def test_a_schema_made_on_the_fly_is_not_taken_for_another() -> None:
    for wanted in ("string", "integer") * 200:
        schema = {"type": "object", "properties": {"x": {"type": wanted}}}
        good, bad = ("t", 3) if wanted == "string" else (3, "t")
        check({"x": good}, schema)
        with pytest.raises(InputError):
            check({"x": bad}, schema)


TASK = {
    "id": "a", "name": "b", "labels": {"course": "c"}, "image": "debian", "args": ["x", "y"], "stdin": "in",
    "files": {"in": None, "a": "b", "c": {"content": "d", "executable": True}, "e": {"reference": "0" * 64}},
    "stdout": "out", "stderr": "out", "environment": {"A": "b"}, "collect": [{"glob": "*", "exclude": ["x"]}],
    "limits": {"memory": "64M", "time": 1.5, "pids": 4, "network": False}, "requires": ["tag"], "exclusive": True,
    "observer": False, "queue": "q", "priority": 1, "retry": {"max": 1, "on": ["lost"]},
}  # fmt: skip
RESULT = {
    "id": None, "result": 0, "outcome": "limit", "limit": "time", "files": ["a"], "message": None, "flags": ["x"],
    "manifest": {"a": {"size": 1, "mode": "0644", "sha256": "0" * 64}}, "limits": {"time": 1}, "stats": {"time": 1},
    "node": {"name": "n"}, "skipped": {"b": "a FIFO"},
}  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))


@st.composite
def nearly(draw: Any, whole: dict[str, Any]) -> dict[str, Any]:
    """An object that is right but for a few places, somewhere inside."""
    data = copy.deepcopy(whole)
    for _ in range(draw(st.integers(0, 2))):
        place: Any = data
        while place:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if not isinstance(place[key], dict | list) or draw(st.booleans()):
                change = draw(st.sampled_from(["set", "set", "drop", "add"]))
                if change == "drop":
                    del place[key]
                elif change == "set":
                    place[key] = draw(VALUES)
                elif isinstance(place, dict):
                    place[draw(st.text(max_size=6))] = draw(VALUES)
                else:
                    place.append(draw(VALUES))
                break
            place = place[key]
    return data


def accepted(data: object, schema: Any) -> bool:
    try:
        check(data, schema)
    except InputError:
        return False
    return True


@settings(max_examples=300, deadline=None)
@given(st.one_of(nearly(TASK).map(lambda d: (d, task_schema())), nearly(RESULT).map(lambda d: (d, result_schema()))))
def test_the_quick_check_and_the_thorough_one_agree(case):
    data, schema = case
    assert accepted(data, schema) == (violation(data, schema) is None)


def test_what_is_right_needs_no_second_opinion(monkeypatch):
    monkeypatch.setattr("kolejka.common.schema.violation", lambda *_: pytest.fail("jsonschema was asked"))
    check(TASK, task_schema())
    check(RESULT, result_schema())

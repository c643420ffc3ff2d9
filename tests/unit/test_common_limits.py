"""Limits: one declaration, and what derives from it."""

from __future__ import annotations

import itertools

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolejka.common.errors import InputError
from kolejka.common.limits import LIMITS, Limits, Unit, limits_schema

SAMPLES = {Unit.SIZE: "64M", Unit.TIME: "1.5s", Unit.COUNT: "2", Unit.FLAG: True}


def values() -> st.SearchStrategy[Limits]:
    """Sets of limits with any sane values."""
    kinds = {
        Unit.SIZE: st.integers(4096, 1 << 40), Unit.TIME: st.floats(0.001, 1e6), Unit.COUNT: st.integers(1, 1024),
        Unit.FLAG: st.booleans(),
    }  # fmt: skip
    words = {name: kinds[limit.unit] for name, limit in LIMITS.items()}
    return st.fixed_dictionaries({}, optional=words).map(Limits.parse)


def test_the_limits_of_the_formats_are_all_declared() -> None:
    assert set(LIMITS) == {
        "cpus", "memory", "swap", "pids", "time", "cpu_time", "network", "storage", "workspace", "output", "image",
        "gpus", "gpu_memory",
    }  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_every_limit_reads_its_unit_and_shows_it_back(name: str) -> None:
    limit = LIMITS[name]
    value = limit.parse(SAMPLES[limit.unit])
    assert limit.parse(limit.show(value)) == value
    assert Limits.parse({name: SAMPLES[limit.unit]}).get(name) == value


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", ["1MM", "-3s", "nan", -1, [], {}, "", "1e400", "99999999999999999999"])
def test_nonsense_names_the_limit_and_the_text(name: str, value: object) -> None:
    with pytest.raises(InputError) as caught:
        Limits.parse({name: value})
    assert caught.value.field == name
    assert repr(value) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "cure"),
    [
        ("cpus", 0, "the least is 1"), ("memory", "1K", "the least is 4K"), ("pids", 0, "the least is 1"),
        ("pids", 2**40, "the most is 4194304"), ("time", 0, "the least is 1ms"),
        ("cpu_time", "0.1ms", "the least is 1ms"),
        ("time", "5000d", "longest time"), ("memory", "2048P", "largest size"), ("cpus", 10**9, "the most is 65536"),
    ],
)  # fmt: skip
def test_absurd_values_are_refused_with_the_bound(name: str, value: object, cure: str) -> None:
    with pytest.raises(InputError, match=cure) as caught:
        Limits.parse({name: value})
    assert caught.value.field == name


def test_an_unknown_limit_is_refused_and_the_known_ones_listed() -> None:
    with pytest.raises(InputError) as caught:
        Limits.parse({"memroy": "64M"})
    assert caught.value.field == "memroy"
    assert "memory" in caught.value.message


@pytest.mark.parametrize("data", [None, [], "64M", 3, True])
def test_limits_are_an_object(data: object) -> None:
    with pytest.raises(InputError, match="an object such as"):
        Limits.parse(data)


def test_null_is_a_limit_nobody_set() -> None:
    assert Limits.parse({"memory": None}) == Limits()
    assert not Limits.parse({"memory": None})


def test_asking_for_an_undeclared_limit_is_a_mistake_of_the_program() -> None:
    with pytest.raises(KeyError):
        Limits().get("memroy")


def test_the_order_is_that_of_the_declaration() -> None:
    names = list(Limits.of(time="1s", memory="64M", cpus=1))
    assert names == ["cpus", "memory", "time"]


@given(values(), values(), values())
def test_merging_is_the_minimum_in_any_order(one: Limits, two: Limits, three: Limits) -> None:
    merged = one.merge(two, three)
    for order in itertools.permutations((one, two, three)):
        assert order[0].merge(*order[1:]) == merged
    for name in LIMITS:
        given_values = [v for limits in (one, two, three) if (v := limits.get(name)) is not None]
        assert merged.get(name) == (min(given_values) if given_values else None)


@given(values())
def test_merging_with_itself_or_nothing_changes_nothing(limits: Limits) -> None:
    assert limits.merge() == limits.merge(limits) == limits.merge(Limits()) == limits


def test_network_is_merged_to_off_when_anybody_says_off() -> None:
    assert Limits.of(network=True).merge(Limits.of(network=False)).get("network") is False


@given(values())
def test_plain_numbers_read_back(limits: Limits) -> None:
    assert Limits.parse(limits.to_json()) == limits


def test_defaults_fill_only_what_nobody_set() -> None:
    limits = Limits.of(memory="2G").with_defaults(Limits.of(memory="1G", swap=0, pids=256))
    assert limits == Limits.of(memory="2G", swap=0, pids=256)
    assert limits.get("swap") == 0  # zero is a value, not an absence


def test_replace_and_only_make_copies() -> None:
    limits = Limits.of(memory="1G", pids=4)
    assert limits.replace(pids=None, cpus=2) == Limits.of(memory="1G", cpus=2)
    assert limits.only(["pids", "time"]) == Limits.of(pids=4)
    assert limits == Limits.of(memory="1G", pids=4)


def test_the_schema_is_a_schema_and_knows_every_limit() -> None:
    schema = limits_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert list(schema["properties"]) == list(LIMITS)
    for name, limit in LIMITS.items():
        assert schema["properties"][name]["description"] == limit.help
        jsonschema.validate({name: SAMPLES[limit.unit]}, schema)
    for wrong in ({"memory": "1MM"}, {"memory": -1}, {"pids": -1}, {"network": "on"}, {"memroy": 1}, {"time": "nan"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


@given(values())
def test_what_a_parser_reads_a_schema_accepts(limits: Limits) -> None:
    jsonschema.validate(limits.to_json(), limits_schema())

"""Errors: whose fault, which field, one line."""

from __future__ import annotations

import pytest

from kolejka.common import errors

ALL = [errors.InputError, errors.NotAllowed, errors.NotFound, errors.Conflict, errors.NodeError, errors.Unavailable]


def test_codes_are_stable_words_of_their_own() -> None:
    assert [kind.code for kind in (errors.KolejkaError, *ALL)] == [
        "error", "invalid", "forbidden", "not_found", "conflict", "node", "unavailable",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ALL)
def test_the_line_names_the_field_first(kind: type[errors.KolejkaError]) -> None:
    assert str(kind("too much")) == "too much"
    assert str(kind("too much", field="limits.memory")) == "limits.memory: too much"


@pytest.mark.parametrize("kind", ALL)
def test_seen_from_outside_an_error_keeps_its_kind_and_code(kind: type[errors.KolejkaError]) -> None:
    inner = kind("too much", field="memory", code="special")
    outer = inner.within("task.json").within("folder")
    assert type(outer) is kind
    assert str(outer) == "folder: task.json: memory: too much"
    assert outer.code == "special"
    assert str(inner) == "memory: too much"


def test_only_the_caller_is_blamed_by_input_errors() -> None:
    assert issubclass(errors.NotFound, errors.InputError)
    assert not issubclass(errors.NodeError, errors.InputError)
    assert not issubclass(errors.Unavailable, errors.InputError)

"""A result: every field read, contradictions refused, JSON and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolejka.common.errors import InputError
from kolejka.common.limits import Limits
from kolejka.common.result import (
    FIELDS,
    LIMIT_VERDICTS,
    RESULT_FILE,
    Outcome,
    Result,
    ResultFile,
    result_schema,
)
from kolejka.common.stats import CpuStats, Stats

SHA = "0" * 64
ENTRY = {"size": 3, "mode": "0644", "sha256": SHA}
FULL: dict[str, Any] = {
    "id": "abc", "result": 137, "outcome": "limit", "limit": "memory", "files": ["out", "a/b"],
    "manifest": {"out": ENTRY, "a/b": ENTRY}, "limits": {"memory": 67108864, "time": 1.0},
    "stats": {"time": 0.5, "cpu": {"usage": 0.25}}, "node": {"name": "n", "tags": ["t"]}, "message": "words",
    "flags": ["stdout_truncated"], "skipped": {"fifo": "a FIFO"},
}  # fmt: skip


def spec(**words: Any) -> dict[str, Any]:
    """The smallest result, with some words of the test."""
    return {"result": 0, "outcome": "ok", "files": [], **words}


def test_every_declared_field_is_read_and_written_back() -> None:
    assert [f.name for f in FIELDS] == list(FULL)
    result = Result.parse(FULL)
    assert {f.name for f in dataclasses.fields(Result)} == set(FULL) - {"files"}
    assert result.to_json() == FULL
    assert result.files == ("out", "a/b")
    assert result.limits == Limits.of(memory="64M", time="1s")
    assert result.stats == Stats(time=0.5, cpu=CpuStats(usage=0.25))


def test_the_smallest_result_keeps_the_fields_that_every_reader_expects() -> None:
    assert Result.parse(spec()).to_json() == {
        "result": 0, "outcome": "ok", "files": [], "manifest": {}, "limits": {}, "stats": {}, "node": None,
        "message": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "field", "message"),
    [
        ({"outcome": "fine"}, "outcome", "ok, failed"),
        ({"result": "0"}, "result", "whole number"),
        ({"verdict": 1}, "verdict", "no such field"),
        ({"limit": "memory"}, "limit", "exactly when"),
        ({"outcome": "limit"}, "limit", "exactly when"),
        ({"outcome": "limit", "limit": "cpus"}, "limit", "memory"),
        ({"files": ["a"]}, "manifest", "different files"),
        ({"manifest": {"a": ENTRY}}, "manifest", "different files"),
        ({"files": ["../a"], "manifest": {"../a": ENTRY}}, "manifest", "'..'"),
        ({"files": ["/a"], "manifest": {"/a": ENTRY}}, "manifest", "absolute"),
        ({"files": ["a"], "manifest": {"a": {**ENTRY, "sha256": "x"}}}, "manifest.a.sha256", "form"),
        ({"files": ["a"], "manifest": {"a": {**ENTRY, "size": -1}}}, "manifest.a.size", "less than 0"),
        ({"files": ["a"], "manifest": {"a": {**ENTRY, "mode": "04755"}}}, "manifest.a.mode", "form"),
        ({"files": ["a"], "manifest": {"a": {"size": 1}}}, "manifest.a.mode", "required"),
        ({"limits": {"memory": "lots"}}, "limits.memory", "'lots'"),
        ({"flags": "x"}, "flags", "list"),
        ({"node": "n"}, "node", "object"),
    ],
)
def test_a_wrong_result_is_refused_naming_field_and_reason(words: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Result.parse(spec(**words))
    assert caught.value.field == field
    assert message in caught.value.message


@pytest.mark.parametrize("missing", ["result", "outcome", "files"])
def test_required_fields_are_required(missing: str) -> None:
    data = spec()
    del data[missing]
    with pytest.raises(InputError, match="required") as caught:
        Result.parse(data)
    assert caught.value.field == missing


RESULTS = st.builds(
    Result, outcome=st.sampled_from([o for o in Outcome if o is not Outcome.LIMIT]),
    result=st.none() | st.integers(0, 255), id=st.none() | st.text(max_size=9),
    manifest=st.dictionaries(
        st.text("ab\udcff \n.-", min_size=1, max_size=9).filter(lambda name: name not in {".", ".."}),
        st.builds(
            ResultFile, size=st.integers(0, 1 << 50), mode=st.sampled_from(["0644", "0755"]), sha256=st.just(SHA)
        ),
    ),
    stats=st.builds(Stats, time=st.none() | st.floats(0, 1e9)), message=st.none() | st.text(),
    flags=st.lists(st.text(max_size=9)).map(tuple), skipped=st.dictionaries(st.text(max_size=9), st.text(max_size=9)),
).map(lambda result: result.replace(result=0) if result.outcome is Outcome.OK else result)  # fmt: skip


@given(RESULTS)
def test_a_result_survives_json_and_its_schema(result: Result) -> None:
    data = json.loads(json.dumps(result.to_json()))
    jsonschema.validate(data, result_schema())
    assert Result.parse(data) == result


@pytest.mark.parametrize("code", [1, None])
def test_nothing_is_ok_that_did_not_exit_with_0(code: int | None) -> None:
    with pytest.raises(InputError, match="result: the outcome 'ok' goes with exit code 0 only"):
        Result.parse(spec(outcome="ok", result=code, limit=None))


def test_a_folder_is_saved_and_loaded(tmp_path: Path) -> None:
    result = Result.parse(FULL)
    result.save(tmp_path)
    assert Result.load(tmp_path) == result
    (tmp_path / RESULT_FILE).write_text('{"outcome": "ok"}')
    with pytest.raises(InputError, match=r"kolejka_result\.json: (result|files): this field is required"):
        Result.load(tmp_path)
    (tmp_path / RESULT_FILE).unlink()
    with pytest.raises(InputError, match=r"kolejka_result\.json: there is no such file"):
        Result.load(tmp_path)


def test_every_verdict_of_a_limit_is_a_declared_limit() -> None:
    jsonschema.Draft202012Validator.check_schema(result_schema())
    for limit in LIMIT_VERDICTS:
        assert Result.parse(spec(outcome="limit", limit=limit)).limits.get(limit) is None

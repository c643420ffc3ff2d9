"""Arrays: sets of parameters are read, put into a task, and refused by their place."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from kolejka.client.arrays import fill, read_sets, tasks
from kolejka.common.errors import InputError


def make(folder: Path, **words: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "kolejka_task.json").write_text(json.dumps(words))
    return folder


def parameters(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.csv", "seed,who\n1,ann\n2,ż\n"), ("p.csv", "\ufeffseed,who\r\n1,ann\r\n\r\n2,ż\r\n"),
        ("p.json", '[{"seed": 1, "who": "ann"}, {"who": "ż", "seed": "2"}]'),
        ("p.jsonl", '{"seed": 1, "who": "ann"}\n\n{"seed": 2, "who": "ż"}\n'),
    ],
)  # fmt: skip
def test_sets_are_read_in_each_form(tmp_path: Path, name: str, text: str) -> None:
    assert [words for _, words in read_sets(parameters(tmp_path, name, text))] == [
        {"seed": "1", "who": "ann"}, {"seed": "2", "who": "ż"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("p.txt", "a", "p.txt"), ("p.csv", "", "p.csv"), ("p.csv", "a,a\n1,2\n", "p.csv"),
        ("p.csv", "a,b\n1,2\n1\n", "p.csv:3"), ("p.csv", "a b\n1\n", "p.csv:2"), ("p.json", "{}", "p.json"),
        ("p.json", "[", "p.json"), ("p.json", "[]", "p.json"), ("p.json", "[{}]", "p.json[0]"),
        ("p.json", '[{"a": 1}, {"b": 1}]', "p.json[1]"), ("p.json", '[{"a": true}]', "p.json[0]: a"),
        ("p.json", '[{"a": null}]', "p.json[0]: a"), ("p.jsonl", '{"a": 1}\n{', "p.jsonl:2"),
        ("p.jsonl", "[1]", "p.jsonl:1"), ("p.jsonl", '{"a": 1, "a": 2}', "p.jsonl:1"),
        ("p.jsonl", '{"a": NaN}', "p.jsonl:1"),
        ("p.json", '[{"a": 1, "a": 2}]', "p.json"),
    ],
)  # fmt: skip
def test_a_set_that_is_none_is_named_by_its_place(tmp_path: Path, name: str, text: str, place: str) -> None:
    with pytest.raises(InputError) as caught:
        list(read_sets(parameters(tmp_path, name, text)))
    assert (caught.value.field or "").startswith(str(tmp_path / place.partition(":")[0].partition("[")[0]))
    assert (caught.value.field or "").endswith(place)


def test_only_declared_names_are_put_in() -> None:
    form = {"args": ["awk", "{print $1} {a}{b}"], "limits": {"pids": 3}, "name": "{a}"}
    assert fill(form, {"a": "{b}", "b": "2"}) == (
        {"args": ["awk", "{print $1} {b}2"], "limits": {"pids": 3}, "name": "{b}"}, {"a", "b"},
    )  # fmt: skip


def test_names_are_filled_too_and_stay_apart() -> None:
    form = {"files": {"in-{a}.txt": {"content": "{b}"}}, "environment": {"{a}": "1", "X": "2"}}
    assert fill(form, {"a": "Y", "b": "2"})[0] == {
        "files": {"in-Y.txt": {"content": "2"}}, "environment": {"Y": "1", "X": "2"},
    }  # fmt: skip
    with pytest.raises(InputError, match="one name"):
        fill(form, {"a": "X", "b": "2"})


def test_an_array_is_a_task_for_each_set_with_files_of_its_own(tmp_path: Path) -> None:
    folder = make(tmp_path / "t", args=["sh", "{seed}"], files={"in": {"path": "in{seed}"}}, labels={"seed": "{seed}"})
    for seed in (1, 2):
        (folder / f"in{seed}").write_text("x")
    made = list(tasks(folder, parameters(tmp_path, "p.csv", "seed\n1\n2\n")))
    assert [(task.args[1], task.files["in"].path, task.labels["seed"]) for _, task in made] == [
        ("1", "in1", "1"), ("2", "in2", "2"),
    ]  # fmt: skip
    with pytest.raises(InputError, match="no file 'in3'") as caught:
        list(tasks(folder, parameters(tmp_path, "p.csv", "seed\n1\n3\n")))
    assert "p.csv:3" in str(caught.value)


def test_a_parameter_that_changes_nothing_is_a_mistake(tmp_path: Path) -> None:
    folder = make(tmp_path / "t", args=["sh", "{seed}"])
    with pytest.raises(InputError, match=r"\{sede\}"):
        list(tasks(folder, parameters(tmp_path, "p.csv", "seed,sede\n1,2\n")))


def test_a_long_array_is_read_as_it_is_needed(tmp_path: Path) -> None:
    folder = make(tmp_path / "t", args=["sh", "{seed}"])
    path = parameters(tmp_path, "p.csv", "seed\n" + "1\n" * 100_000 + "broken,line\n")
    assert len(list(itertools.islice(tasks(folder, path), 3))) == 3, "the end was not looked at"

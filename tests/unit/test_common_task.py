"""A task: every field read, everything else refused with field and cure."""

from __future__ import annotations

import dataclasses
import json
import os
import string
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolejka.common.errors import InputError
from kolejka.common.limits import Limits
from kolejka.common.task import FIELDS, TASK_FILE, Collect, File, Retry, Task, task_schema

SHA = "0" * 64
FIRST = {
    "image": "ubuntu:xenial", "args": ["uname"], "stdout": "stdout.txt",
    "limits": {"memory": "64M", "cpus": "1", "pids": "16", "time": "1s"},
}  # fmt: skip
FULL: dict[str, Any] = {
    "id": "abc", "name": "a name", "labels": {"course": "asd", "k8s.io/x": "y"}, "image": "ubuntu:xenial",
    "args": ["sh", "-c", "true"],
    "files": {
        "plain": None, "renamed": "local/x", "object": {"path": "y", "executable": True}, "blob": {"reference": SHA},
        "inline": {"content": "text"},
    },
    "stdin": "inline", "stdout": "out", "stderr": "err", "environment": {"A": "1"},
    "collect": [{"glob": "*.o", "strip": 1, "prefix": "objects", "exclude": ["x.o"]}, {"changed": True}],
    "limits": {"memory": "64M"}, "requires": ["cpu:amd"], "exclusive": True, "observer": True, "queue": "fast",
    "priority": -3, "retry": {"max": 2, "on": ["lost"]}, "callback_url": "https://example.org/x",
}  # fmt: skip


def spec(**words: Any) -> dict[str, Any]:
    """The smallest spec, with some words of the test."""
    return {"args": ["true"], **words}


def test_the_first_example_reads_as_it_always_did() -> None:
    task = Task.parse(FIRST)
    assert task.image == "ubuntu:xenial"
    assert task.args == ("uname",)
    assert task.stdout == "stdout.txt"
    assert task.limits == Limits.of(memory=67108864, cpus=1, pids=16, time=1.0)
    assert task.to_json()["limits"] == {"cpus": 1, "memory": 67108864, "pids": 16, "time": 1.0}


def test_every_declared_field_is_an_attribute_and_read() -> None:
    assert [f.name for f in FIELDS] == list(FULL)
    assert {f.name for f in dataclasses.fields(Task)} == set(FULL)
    task = Task.parse(FULL)
    untouched = {f.name for f in dataclasses.fields(Task) if getattr(task, f.name) == getattr(Task(("x",)), f.name)}
    assert not untouched


def test_the_canonical_form_reads_back_the_same() -> None:
    task = Task.parse(FULL)
    assert Task.parse(task.to_json()) == task
    assert Task.parse(json.loads(json.dumps(task.to_json()))) == task


def test_what_nobody_set_is_left_out() -> None:
    assert Task.parse(spec()).to_json() == {"args": ["true"]}
    assert Task.parse(spec(queue="default", priority=0, files={}, collect=[], exclusive=False)).to_json() == spec()


def test_a_false_limit_is_not_left_out() -> None:
    assert Task.parse(spec(limits={"network": False, "swap": 0})).to_json()["limits"] == {"swap": 0, "network": False}


def test_files_in_all_their_forms() -> None:
    assert Task.parse(FULL).files == {
        "plain": File(path="plain"), "renamed": File(path="local/x"), "object": File(path="y", executable=True),
        "blob": File(reference=SHA), "inline": File(content="text"),
    }  # fmt: skip
    assert Task.parse(spec(files=["a", "b/c"])).files == {"a": File(path="a"), "b/c": File(path="b/c")}
    assert Task.parse(spec(files={"empty": {"content": ""}})).to_json()["files"] == {"empty": {"content": ""}}


def test_collect_and_retry_have_defaults() -> None:
    task = Task.parse(spec(collect=[{"changed": True}], retry={"max": 1}))
    assert task.collect == (Collect(glob="**", changed=True),)
    assert task.retry == Retry(1, ("lost", "error"))


@pytest.mark.parametrize(
    ("words", "field", "message"),
    [
        ({"arguments": ["x"]}, "arguments", "no such field"),
        ({"stdot": "x"}, "stdot", "did you mean 'stdout'"),
        ({"args": []}, "args", "empty"),
        ({"args": [""]}, "args", "empty"),
        ({"args": "uname"}, "args", "list"),
        ({"args": ["a\0b"]}, "args", "NUL"),
        ({"args": ["\ud800"]}, "args", "character"),
        ({"limits": {"memory": "1MM"}}, "limits.memory", "'1MM'"),
        ({"limits": {"time": "-3s"}}, "limits.time", "'-3s'"),
        ({"limits": {"time": float("nan")}}, "limits.time", "nan"),
        ({"limits": {"memory": -5}}, "limits.memory", "-5"),
        ({"limits": {"pids": 10**12}}, "limits.pids", "the most is"),
        ({"limits": {"memroy": 5}}, "limits.memroy", "no such limit"),
        ({"limits": []}, "limits", "object"),
        ({"files": {"../x": None}}, "files", "'..'"),
        ({"files": {"/x": None}}, "files", "absolute"),
        ({"files": ["a/../b"]}, "files", "'..'"),
        ({"files": ["a", "a"]}, "files", "twice"),
        ({"files": {"x": "/etc/passwd"}}, "files.x", "absolute"),
        ({"files": {"x": {"path": "../y"}}}, "files.x", "'..'"),
        ({"files": {"x": {"reference": "abc"}}}, "files.x", ""),
        ({"files": {"x": {"reference": SHA, "content": "y"}}}, "files.x", ""),
        ({"files": {"x": {}}}, "files.x", ""),
        ({"files": {"x": 3}}, "files.x", ""),
        ({"files": {"a": None, "a/b": None}}, "files", "a file and a folder at once"),
        ({"stdin": "../x"}, "stdin", "'..'"),
        ({"stdout": "/x"}, "stdout", "absolute"),
        ({"stderr": "a//b"}, "stderr", "normalised"),
        ({"stdout": ""}, "stdout", "empty"),
        ({"stdout": TASK_FILE.replace("task", "result")}, "stdout", "kolejka_result.json"),
        ({"stdout": "a", "stderr": "a/b"}, "stderr", "a file and a folder at once"),
        ({"environment": {"A=B": "x"}}, "environment", ""),
        ({"environment": {"": "x"}}, "environment", ""),
        ({"environment": {"A": 3}}, "environment.A", "text"),
        ({"environment": {"A": "x\0"}}, "environment.A", "NUL"),
        ({"environment": {"A": "\ud800"}}, "environment.A", "character"),
        ({"collect": [{}]}, "collect[0]", "say what to collect"),
        ({"collect": [{"glob": "a\0"}]}, "collect[0]", "NUL"),
        ({"collect": [{"glob": "/etc/*"}]}, "collect[0]", "leaves the working folder"),
        ({"collect": [{"glob": "a/../../*"}]}, "collect[0]", "leaves the working folder"),
        ({"collect": [{"glob": "*"}, {"glob": "*", "prefix": "../x"}]}, "collect[1]", "'..'"),
        ({"collect": [{"glob": "*", "strip": -1}]}, "collect[0].strip", "less than 0"),
        ({"collect": [{"glob": "*", "globs": 1}]}, "collect[0].globs", "did you mean 'glob'"),
        ({"labels": {"bad key": "x"}}, "labels", ""),
        ({"labels": {"a": 3}}, "labels.a", "text"),
        ({"name": "\ud800"}, "name", "character"),
        ({"queue": "a/b"}, "queue", ""),
        ({"priority": 10**6}, "priority", "more than 1000"),
        ({"priority": "high"}, "priority", "whole number"),
        ({"exclusive": "yes"}, "exclusive", "true or false"),
        ({"retry": {"max": -1}}, "retry.max", "less than 0"),
        ({"retry": {"on": ["sometimes"]}}, "retry.on[0]", "lost"),
        ({"callback_url": "file:///etc/passwd"}, "callback_url", "https?"),
        ({"image": ""}, "image", "empty"),
        ({"image": 3}, "image", "text"),
        ({"image": "Ubuntu xenial"}, "image", "registry/path:tag"),
        ({"requires": "x"}, "requires", "list"),
    ],
)
def test_a_wrong_word_is_refused_naming_field_and_reason(words: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Task.parse(spec(**words))
    assert (caught.value.field or "").startswith(field), str(caught.value)
    assert message in caught.value.message
    assert "\n" not in str(caught.value)
    str(caught.value).encode()  # a terminal can show it


@pytest.mark.parametrize("data", [None, [], "uname", 3, {}, {"image": "x"}])
def test_what_is_no_task_is_refused(data: Any) -> None:
    with pytest.raises(InputError):
        Task.parse(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMED = st.dictionaries(st.sampled_from([f.name for f in FIELDS]), JSON, max_size=4)


@given(NAMED)
def test_any_json_is_read_or_refused_in_one_line(words: dict[str, Any]) -> None:
    refused = None
    try:
        task = Task.parse({"args": ["x"], **words})
    except InputError as error:
        refused = error
    if refused is None:
        assert Task.parse(json.loads(json.dumps(task.to_json()))) == task
    else:
        assert "\n" not in str(refused)
        assert refused.field


NAMES = st.text(string.ascii_letters + "._- \ną", min_size=1, max_size=9).filter(lambda name: name not in {".", ".."})
FILES = st.none() | NAMES | st.builds(lambda text: {"content": text}, st.text(max_size=9)) | st.just({"reference": SHA})


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1),
    st.dictionaries(NAMES, FILES),
)
def test_a_good_task_survives_its_canonical_form(args: list[str], forms: dict[str, Any]) -> None:
    task = Task.parse({"args": ["x", *args], "files": forms})
    jsonschema.validate(task.to_json(), task_schema())
    assert Task.parse(json.loads(json.dumps(task.to_json()))) == task


def write(folder: Path, data: Any) -> Path:
    """A task's folder with this spec."""
    folder.mkdir(exist_ok=True)
    (folder / TASK_FILE).write_text(data if isinstance(data, str) else json.dumps(data))
    return folder


def test_a_folder_is_loaded_and_saved(tmp_path: Path) -> None:
    folder = write(tmp_path / "task", spec(files={"x": "sub/y"}))
    (folder / "sub").mkdir()
    (folder / "sub/y").write_text("1")
    task = Task.load(folder)
    other = tmp_path / "other"
    other.mkdir()
    task.save(other)
    assert Task.parse(json.loads((other / TASK_FILE).read_text())) == task


def test_a_wrong_folder_names_file_and_field(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        Task.load(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty/kolejka_task\.json: there is no such file"):
        Task.load(tmp_path / "empty")
    with pytest.raises(InputError, match=r"kolejka_task\.json: this is not JSON"):
        Task.load(write(tmp_path / "broken", "{"))
    with pytest.raises(InputError, match=r"kolejka_task\.json: limits\.memory: '1MM'"):
        Task.load(write(tmp_path / "wrong", spec(limits={"memory": "1MM"})))


def test_local_files_must_be_regular_and_inside(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    folder = write(tmp_path / "task", spec(files={"x": "y"}))
    with pytest.raises(InputError, match=r"files\.x: there is no file 'y'"):
        Task.load(folder)
    (folder / "y").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match=r"files\.x: 'y' leads out"):
        Task.load(folder)
    (folder / "y").unlink()
    (folder / "y").mkdir()
    with pytest.raises(InputError, match=r"files\.x: 'y' is not a regular file"):
        Task.load(folder)
    (folder / "y").rmdir()
    os.mkfifo(folder / "y")
    with pytest.raises(InputError, match="not a regular file"):
        Task.load(folder)
    (folder / "y").unlink()
    (folder / "z").write_text("1")
    (folder / "y").symlink_to("z")
    assert Task.load(folder).files["x"].path == "y"


def test_the_schema_is_valid_and_accepts_what_is_read() -> None:
    jsonschema.Draft202012Validator.check_schema(task_schema())
    for good in (FIRST, FULL, spec()):
        jsonschema.validate(good, task_schema())
    assert all(f.help for f in FIELDS)


def test_a_task_does_not_change() -> None:
    task = Task.parse(spec())
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.args = ()  # type: ignore[misc]
    assert task.replace(id="x").id == "x"
    assert task.id is None


def test_links_in_a_circle_are_one_line_about_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("a")
    (tmp_path / "kolejka_task.json").write_text('{"args": ["true"], "files": ["a"]}')
    with pytest.raises(InputError, match=r"circle|no file") as caught:
        Task.load(tmp_path)
    assert "files.a" in str(caught.value)


def test_an_argument_that_no_program_can_be_given_is_refused() -> None:
    with pytest.raises(InputError, match="longer than 131071 bytes"):
        Task.parse({"args": ["x" * 131072]})
    assert Task.parse({"args": ["x" * 131071]})


def test_arguments_and_environment_together_are_what_linux_takes() -> None:
    many = ["x" * 100_000] * 10
    assert Task.parse({"args": many})
    with pytest.raises(InputError, match="args: with the environment"):
        Task.parse({"args": many, "environment": {f"V{number}": word for number, word in enumerate(many)}})
    with pytest.raises(InputError, match="args: with the environment"):
        Task.parse({"args": ["true"] + [""] * 200_000})

"""The folder in which sessions survive."""

from __future__ import annotations

import stat

import pytest

from kolejka.common.errors import NodeError
from kolejka.observer import state as state_module
from kolejka.observer.state import StateFolder


def test_what_is_saved_is_loaded(tmp_path):
    folder = StateFolder(tmp_path / "state")
    folder.save("abc", {"secret": "x"})
    folder.save("abc", {"secret": "y"})
    folder.owner = 7
    again = StateFolder(tmp_path / "state")
    assert list(again.load()) == [("abc", {"secret": "y"})]
    assert again.owner == 7


def test_nobody_else_reads_secrets(tmp_path):
    folder = StateFolder(tmp_path / "state")
    folder.save("abc", {})
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "state" / "abc.json").stat().st_mode) == 0o600


def test_what_was_half_written_or_of_another_boot_is_dropped(tmp_path, monkeypatch):
    folder = StateFolder(tmp_path)
    folder.save("mine", {})
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / ".draft").write_text("{")
    assert [name for name, _ in folder.load()] == ["mine"]
    monkeypatch.setattr(state_module, "boot_id", lambda: "another")
    assert list(StateFolder(tmp_path).load()) == []
    assert list(tmp_path.iterdir()) == []


def test_dropping_twice_is_fine(tmp_path):
    folder = StateFolder(tmp_path)
    folder.save("abc", {})
    folder.drop("abc")
    folder.drop("abc")
    assert list(folder.load()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NodeError, match="--state"):
        StateFolder(tmp_path / "file" / "state")

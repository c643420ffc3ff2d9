"""The token is found in the promised order, and kept where only its owner reads it."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from kolejka.client.client import KolejkaClient
from kolejka.client.credentials import credentials_file, find_token, load_credentials, store_credential
from kolejka.common.errors import InputError, NodeError, NotAllowed
from kolejka.common.settings import ClientSettings
from tests.unit.client_stub import TOKEN, Stub, serving

LOCAL = "http://127.0.0.1:8642"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("KOLEJKA_SERVER_DATA", str(tmp_path / "server"))
    return tmp_path


def test_each_place_is_asked_only_after_those_before_it(home: Path) -> None:
    (home / "server").mkdir()
    (home / "token").write_text("from-token-file\n")
    steps = [
        (ClientSettings(), None),
        (ClientSettings(), "from-local-server"),
        (ClientSettings(), "from-credentials"),
        (ClientSettings(token_file=str(home / "token")), "from-token-file"),
        (ClientSettings(token_file=str(home / "token"), token="from-settings"), "from-settings"),
    ]
    for settings, expected in steps:
        if expected == "from-local-server":
            (home / "server" / "admin.token").write_text("from-local-server\n")
        if expected == "from-credentials":
            store_credential(LOCAL, "from-credentials")
        assert find_token(settings).value == expected
    assert find_token(steps[-1][0], explicit="explicit").value == "explicit"


def test_the_token_of_one_server_is_not_shown_to_another(home: Path) -> None:
    (home / "server").mkdir()
    (home / "server" / "admin.token").write_text("admin\n")
    store_credential("https://one.example", "one")
    assert find_token(ClientSettings(server="https://one.example:443/")).value == "one"
    assert find_token(ClientSettings(server="https://two.example")).value is None
    assert find_token(ClientSettings(server="http://one.example")).value is None


def test_a_token_that_was_put_in_the_place_of_another_is_shown_from_then_on(home: Path) -> None:
    file = home / "token"
    file.write_text(TOKEN)
    with serving(Stub()) as stub, KolejkaClient(ClientSettings(server=stub.url, token_file=str(file))) as client:
        assert client.whoami()["user"] == "ann"
        stub.token = "klj_next"
        with pytest.raises(NotAllowed):
            client.whoami()
        file.write_text("")  # while somebody writes it
        with pytest.raises(NotAllowed):
            client.whoami()
        file.write_text("klj_next\n")
        assert client.whoami()["user"] == "ann"
        asked = len(stub.asked)
        assert client.whoami()["user"] == "ann"
        assert len(stub.asked) == asked + 1, "it is known from now on"


def test_stored_tokens_are_for_their_owners_eyes(home: Path) -> None:
    path = store_credential(LOCAL, "first")
    store_credential("https://one.example", "second")
    assert path == credentials_file() == home / "config" / "kolejka" / "credentials.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_credentials() == {LOCAL: "first", "https://one.example": "second"}
    store_credential(LOCAL, None)
    assert load_credentials() == {"https://one.example": "second"}


def test_credentials_that_others_can_read_are_refused_with_the_cure() -> None:
    path = store_credential(LOCAL, "secret")
    path.chmod(0o644)
    with pytest.raises(InputError, match=f"chmod 600 {path}") as caught:
        find_token(ClientSettings())
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "{", '{"a": 1}'])
def test_broken_credentials_are_named(text: str) -> None:
    path = store_credential(LOCAL, "secret")
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        find_token(ClientSettings())
    assert str(path) in str(caught.value)


def test_a_token_file_that_is_missing_or_empty_or_no_text_is_named(home: Path) -> None:
    for name, content in (("missing", None), ("empty", b"\n"), ("binary", b"\xff\x00"), ("folder", "dir")):
        path = home / name
        if content == "dir":
            path.mkdir()
        elif isinstance(content, bytes):
            path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            find_token(ClientSettings(token_file=str(path)))
        assert caught.value.field == str(path)


def test_tokens_do_not_print(home: Path) -> None:
    assert "secret" not in repr(find_token(ClientSettings(token="secret")))


def test_a_place_that_cannot_keep_tokens_is_this_machines_fault(home: Path) -> None:
    (home / "config").write_text("a file where a folder should be")
    with pytest.raises(NodeError, match="cannot be kept"):
        store_credential(LOCAL, "x")


def test_the_file_is_whole_at_any_time(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store_credential(LOCAL, "first")

    def crash(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(NodeError):
        store_credential(LOCAL, "second")
    assert json.loads(path.read_text()) == {LOCAL: "first"}
    assert list(path.parent.iterdir()) == [path]

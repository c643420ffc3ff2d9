"""Names that are safe, hashes, and writes that are whole or absent."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolejka.common import files
from kolejka.common.errors import InputError


@pytest.mark.parametrize(
    "name",
    ["a", "a/b/c.txt", ".hidden", "...", "a..b", "-rf", "with blank", "new\nline", "ąę/ü", "a\\b", "*", "\udcff\udcfe",
     "a" * 255, "/".join(["a" * 200] * 20)],
)  # fmt: skip
def test_any_relative_normalised_name_is_good(name: str) -> None:
    assert files.check_name(name) == name


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("/etc/passwd", "absolute"), ("..", r"'\.\.'"), ("a/../b", r"'\.\.'"), ("../x", r"'\.\.'"), ("a/..", r"'\.\.'"),
        ("a//b", "normalised"), ("./a", "normalised"), ("a/.", "normalised"), ("a/", "normalised"), (".", "normalised"),
        ("a\0b", "NUL"), ("", "non-empty"), (None, "non-empty"), (7, "non-empty"), ("a" * 256, "too long"),
        ("ą" * 128, "too long"), ("a/" * 3000 + "a", "too long"), ("\ud800", "no file name"),
    ],
)  # fmt: skip
def test_a_bad_name_is_refused_by_its_rule(name: object, rule: str) -> None:
    with pytest.raises(InputError, match=rule) as caught:
        files.check_name(name)
    str(caught.value).encode()  # what a terminal may choke on is escaped
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@given(st.text(max_size=40))
def test_a_good_name_stays_below_its_folder(name: str) -> None:
    try:
        files.check_name(name)
    except InputError:
        return
    joined = os.path.normpath(os.path.join("/folder", name))
    assert joined == f"/folder/{name}"
    assert "\0" not in joined


def test_a_reference_is_a_sha256_in_lower_case() -> None:
    digest = hashlib.sha256(b"x").hexdigest()
    assert files.check_reference(digest) == digest
    for wrong in (digest.upper(), digest[:-1], digest + "0", digest + "\n", "", None, 7, f"../{digest}"[:64]):
        with pytest.raises(InputError, match="64 hexadecimal digits"):
            files.check_reference(wrong)


def test_a_stream_is_hashed_and_passed_on_in_chunks() -> None:
    data = os.urandom(files.CHUNK * 2 + 7)
    chunks: list[bytes] = []
    assert files.hash_stream(io.BytesIO(data), chunks.append) == (hashlib.sha256(data).hexdigest(), len(data))
    assert b"".join(chunks) == data
    assert max(map(len, chunks)) <= files.CHUNK


def test_a_file_is_hashed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    assert files.hash_file(path) == (hashlib.sha256().hexdigest(), 0)


def test_a_replaced_file_has_content_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for text, mode in ((b"one", 0o600), (b"two", 0o755)):
        with files.replacing(path, mode=mode, durable=True) as sink:
            sink.write(text)
        assert path.read_bytes() == text
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert os.listdir(tmp_path) == ["file"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    sink = files.replacing(path)
    sink.__enter__().write(b"ne")
    assert not sink.__exit__(RuntimeError, RuntimeError("halfway"), None), "the error goes on"
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_half_written_file_is_never_seen(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with files.replacing(path) as sink:
        sink.write(b"half")
        sink.flush()
        assert not path.exists()
    assert path.read_bytes() == b"half"


def test_a_long_name_can_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    with files.replacing(path) as sink:
        sink.write(b"1")
    assert path.read_bytes() == b"1"


def test_json_is_written_in_ascii_and_read_back(tmp_path: Path) -> None:
    data = {"name": "\udcff", "text": "ą", "list": [1, 2.5, None, True]}
    files.write_json(tmp_path / "a.json", data)
    raw = (tmp_path / "a.json").read_bytes()
    assert raw.isascii()
    assert raw.endswith(b"\n")
    assert files.read_json(tmp_path / "a.json") == data
    assert json.loads(raw) == data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"), (b"", "not JSON"), (b"\xff\xfe", "not JSON"), (b"[" * 100_000, "nests too deeply"),
        (b"1" * 5000, "more than 4300 digits"),
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused_naming_the_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        files.read_json(path)
    assert caught.value.field == str(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_or_a_folder_is_refused_naming_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file") as caught:
        files.read_json(tmp_path / "absent")
    assert caught.value.field == str(tmp_path / "absent")
    with pytest.raises(InputError, match="cannot be read"):
        files.read_json(tmp_path)


def test_a_fifo_is_no_json_file_and_nobody_waits_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "spec.json")
    with pytest.raises(InputError, match="not a regular file"):
        files.read_json(tmp_path / "spec.json")


def test_a_device_without_end_is_no_json_file() -> None:
    with pytest.raises(InputError, match="not a regular file"):
        files.read_json("/dev/zero")


def test_a_json_file_beyond_all_measure_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "spec.json", "wb") as sink:
        sink.truncate(files.MAX_JSON + 1)
    with pytest.raises(InputError, match="larger than 64 MiB"):
        files.read_json(tmp_path / "spec.json")


@pytest.mark.parametrize(
    ("text", "about"), [('{"a": 1, "a": 2}', "'a' stands twice"), ('{"a": NaN}', "NaN is not JSON")]
)
def test_json_that_means_two_things_is_refused_with_its_place(tmp_path: Path, text: str, about: str) -> None:
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(InputError, match=about) as caught:
        files.read_json(tmp_path / "spec.json")
    assert caught.value.field == str(tmp_path / "spec.json")

"""Bytes on the server's disk: whole under their hash, or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from kolejka.common.errors import InputError, Unavailable
from kolejka.server.storage.blob_folder import BlobFolder

DATA = b"some bytes" * 1000
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> BlobFolder:
    return BlobFolder(tmp_path / "blobs")


def files(tmp_path: Path) -> list[Path]:
    return [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]


def test_an_upload_is_there_when_it_is_finished_and_not_before(folder: BlobFolder, tmp_path: Path) -> None:
    upload = folder.receive(SHA, len(DATA))
    upload.write(DATA[:5000])
    upload.write(bytearray(DATA[5000:]))
    assert not folder.path(SHA).exists()
    upload.finish()
    upload.abort()
    assert files(tmp_path) == [Path("blobs") / SHA[:2] / SHA[2:]]
    with folder.open(SHA) as source:
        assert source.read() == DATA


@pytest.mark.parametrize(
    ("size", "data", "code"),
    [
        (len(DATA), DATA[:-1], "truncated"),
        (len(DATA), b"", "truncated"),
        (len(DATA) - 1, DATA, "truncated"),
        (len(DATA), b"x" + DATA[1:], "hash_mismatch"),
    ],
)
def test_anything_else_leaves_nothing(folder: BlobFolder, tmp_path: Path, size: int, data: bytes, code: str) -> None:
    upload = folder.receive(SHA, size)

    def send() -> None:
        upload.write(data)
        upload.finish()

    with pytest.raises(InputError) as caught:
        send()
    upload.abort()
    upload.abort()
    assert caught.value.code == code
    assert files(tmp_path) == []


def test_a_second_upload_replaces_the_first(folder: BlobFolder, tmp_path: Path) -> None:
    for _ in range(2):
        upload = folder.receive(SHA, len(DATA))
        upload.write(DATA)
        upload.finish()
    assert len(files(tmp_path)) == 1


def test_only_a_hash_names_a_blob(folder: BlobFolder) -> None:
    for name in ("", "x", "../" * 21 + "a", SHA.upper(), SHA + "0"):
        with pytest.raises(InputError):
            folder.path(name)


def test_a_disk_that_takes_nothing_is_said(folder: BlobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = folder.receive(SHA, len(DATA))

    class Full:
        def write(self, _: object) -> int:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            return

    monkeypatch.setattr(upload, "_sink", Full())
    with pytest.raises(Unavailable, match="No space left on device"):
        upload.write(DATA)
    upload.abort()


def test_what_a_crash_left_is_swept(folder: BlobFolder, tmp_path: Path) -> None:
    upload = folder.receive(SHA, len(DATA))
    upload.write(DATA)
    assert folder.sweep() == 1
    assert files(tmp_path) == []
    upload.abort()

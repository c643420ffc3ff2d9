"""Backups of a server that goes on, and what is restored from them, on every engine and across engines."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kolejka.common.errors import InputError, NodeError
from kolejka.server.auth.roles import Role
from kolejka.server.storage import blobs, tasks, users
from kolejka.server.storage.archive import restore_archive, write_archive
from kolejka.server.storage.backup import WORDS, back_up, restore
from kolejka.server.storage.blob_folder import BlobFolder
from kolejka.server.storage.database import FILE, Database
from tests.conformance.storage.conftest import Cluster

ENGINES = ["sqlite", pytest.param("postgres", marks=pytest.mark.needs("postgres"))]


class Places:
    """Databases and blob folders of an engine."""

    def __init__(self, request: pytest.FixtureRequest, folder: Path, engine: str) -> None:
        self._request = request
        self._folder = folder
        self._engine = engine
        self._made: list[str] = []

    def new(self, engine: str | None = None) -> tuple[Database, Path]:
        folder = self._folder / f"place{len(list(self._folder.iterdir()))}"
        folder.mkdir()
        url = ""
        if (engine or self._engine) == "postgres":
            server = self._request.getfixturevalue("postgres")
            url = server.url(server.create())
            self._made.append(url)
        return Database(folder / FILE, url), folder / "blobs"

    def close(self) -> None:
        for url in self._made:
            self._request.getfixturevalue("postgres").drop(url)


@pytest.fixture(params=ENGINES)
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Places]:
    (tmp_path / "places").mkdir()
    places = Places(request, tmp_path / "places", request.param)
    yield places
    places.close()


def store_blob(folder: Path, cluster: Cluster, user_id: int, data: bytes) -> str:
    """As the API does: bytes first, then the row."""
    sha = hashlib.sha256(data).hexdigest()
    upload = BlobFolder(folder).receive(sha, len(data))
    upload.write(data)
    place = upload.finish()
    cluster.store.write(lambda db: blobs.add(db, sha, len(data), place, user_id=user_id, now=0.0)).result()
    return sha


def test_everything_accepted_before_a_backup_is_in_it_while_life_goes_on(places: Places, tmp_path: Path) -> None:
    database, folder = places.new()
    database.migrate()
    cluster = Cluster(database.open())
    ala, smith = cluster.user("ala"), cluster.user("smith", Role.NODE)
    accepted: list[str] = []
    stop, lived = threading.Event(), threading.Event()

    def live() -> None:
        for number in range(100_000):
            sha = store_blob(folder, cluster, ala.user_id, b"input %d" % number)
            (task_id,) = cluster.put(ala, files={"in": {"reference": sha}}, labels={"n": str(number)})
            accepted.append(task_id)
            if number % 3:
                for given in cluster.claim(smith, slots=2).given:
                    cluster.finish(smith, given.lease)
            if number == 10:
                lived.set()
            if stop.is_set():
                return

    life = threading.Thread(target=live)
    life.start()
    assert lived.wait(60)
    before = list(accepted)
    back_up(database, folder, tmp_path / "backup")
    stop.set()
    life.join()
    last = cluster.store.read(lambda db: db.row("SELECT MAX(lease) FROM attempts")).result()
    cluster.store.close()

    again, blobs_again = places.new()
    kept = restore(tmp_path / "backup", again, blobs_again)
    restored = Cluster(again.open())
    found = {
        row["id"]: row for row in restored.store.read(lambda db: tasks.listing(db, tasks.Filters(limit=10**6))).result()
    }
    assert set(before) <= set(found)
    assert len(found) == kept.rows["tasks"]
    for sha, size, place in restored.store.read(lambda db: db.rows("SELECT sha, size, place FROM blobs")).result():
        data = (blobs_again / place).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (size, sha)
    (task_id,) = restored.put(ala)
    given = restored.claim(smith, slots=1000).given
    assert task_id in {one.task_id for one in given}
    assert last is not None
    assert min(one.lease for one in given) > last[0], "no lease of the time after the backup is given again"
    restored.store.close()


@pytest.mark.needs("postgres")
def test_what_was_kept_on_one_engine_is_restored_on_the_other(places: Places, tmp_path: Path) -> None:
    database, folder = places.new("sqlite")
    database.migrate()
    cluster = Cluster(database.open())
    ala = cluster.user("ala")
    put = cluster.put(ala, count=3, name="ąć\u2028")
    cluster.store.close()
    back_up(database, folder, tmp_path / "one")
    for number, engine in enumerate(("postgres", "sqlite")):
        database, folder = places.new(engine)
        restore(tmp_path / ["one", "two"][number], database, folder)
        if engine == "postgres":
            back_up(database, folder, tmp_path / "two")
    words = [json.loads((tmp_path / name / WORDS).read_text()) for name in ("one", "two")]
    assert words[0]["rows"] == words[1]["rows"]
    store = database.open()
    assert {row["id"] for row in store.read(lambda db: tasks.listing(db, tasks.Filters())).result()} == set(put)
    assert [user["name"] for user in store.read(users.list_users).result()] == ["ala"]
    store.close()


@pytest.fixture
def kept(places: Places, tmp_path: Path) -> Path:
    """A small backup."""
    database, folder = places.new()
    database.migrate()
    cluster = Cluster(database.open())
    ala = cluster.user("ala")
    store_blob(folder, cluster, ala.user_id, b"bytes")
    cluster.put(ala)
    cluster.store.close()
    back_up(database, folder, tmp_path / "kept")
    return tmp_path / "kept"


def test_a_backup_goes_nowhere_but_into_an_empty_folder(places: Places, kept: Path) -> None:
    database, folder = places.new()
    with pytest.raises(NodeError, match="no server's database"):
        back_up(database, folder, kept.parent / "none")
    assert not (kept.parent / "none").exists()
    database.migrate()
    before = sorted(kept.rglob("*"))
    with pytest.raises(InputError, match="not empty"):
        back_up(database, folder, kept)
    assert sorted(kept.rglob("*")) == before


def test_nothing_is_restored_over_what_is_there(places: Places, kept: Path) -> None:
    database, folder = places.new()
    restore(kept, database, folder)
    with pytest.raises(NodeError, match="already"):
        restore(kept, database, folder)


def test_a_damaged_backup_is_refused_and_leaves_nothing(places: Places, kept: Path) -> None:
    blob = next(path for path in (kept / "blobs").rglob("*") if path.is_file())
    good = blob.read_bytes()
    for damage, match in (
        (lambda: blob.rename(blob.with_name("0" * 62)), "damaged"),
        (lambda: blob.with_name("0" * 62).unlink(), "0 blobs, not 1"),
    ):
        damage()
        database, folder = places.new()
        with pytest.raises(InputError, match=match):
            restore(kept, database, folder)
        assert database.taken_and_left()[0] == []
    blob.write_bytes(good)
    table = kept / "tables" / "tasks.jsonl"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    database, folder = places.new("sqlite")
    with pytest.raises(InputError, match=r"tasks\.jsonl: this file of the backup is damaged"):
        restore(kept, database, folder)
    words = json.loads((kept / WORDS).read_text())
    (kept / WORDS).write_text(json.dumps({**words, "sums": {}}))  # as earlier versions had it
    with pytest.raises(InputError, match="has 0 rows, not 1"):
        restore(kept, database, folder)
    assert not database.path.exists()
    (kept / WORDS).unlink()
    with pytest.raises(InputError, match="no backup"):
        restore(kept, database, folder)


def test_a_backup_of_a_newer_kolejka_is_left_alone(places: Places, kept: Path) -> None:
    words = json.loads((kept / WORDS).read_text())
    words["steps"].append("9999_future")
    (kept / WORDS).write_text(json.dumps(words))
    database, folder = places.new()
    with pytest.raises(NodeError, match="9999_future"):
        restore(kept, database, folder)
    assert database.taken_and_left()[0] == []


# As one file


@pytest.fixture
def archive(places: Places, tmp_path: Path) -> Path:
    """A small backup as one file."""
    database, folder = places.new()
    database.migrate()
    cluster = Cluster(database.open())
    ala = cluster.user("ala")
    for number in range(3):
        store_blob(folder, cluster, ala.user_id, b"bytes %d" % number * 1000)
    cluster.put(ala, count=2, name="in one file")
    cluster.store.close()
    kept = write_archive(database, folder, tmp_path / "kept.tar")
    assert (kept.rows["tasks"], kept.blobs) == (2, 3)
    assert sorted(path.name for path in folder.parent.glob("backup*")) == [], "nothing is left beside the blobs"
    return tmp_path / "kept.tar"


def test_one_file_holds_what_a_folder_does_and_unpacks_into_one(places: Places, archive: Path, tmp_path: Path) -> None:
    for number, engine in enumerate(("sqlite", None)):
        database, folder = places.new(engine)
        if number:  # the other way: unpacked by hand
            with tarfile.open(archive) as members:
                members.extractall(tmp_path / "unpacked", filter="data")
            kept = restore(tmp_path / "unpacked", database, folder)
        else:
            kept = restore_archive(archive, database, folder)
        assert (kept.rows["tasks"], kept.blobs) == (2, 3)
        store = database.open()
        assert [row["name"] for row in store.read(lambda db: tasks.listing(db, tasks.Filters())).result()] == [
            "in one file", "in one file",
        ]  # fmt: skip
        for sha, place in store.read(lambda db: db.rows("SELECT sha, place FROM blobs")).result():
            assert hashlib.sha256((folder / place).read_bytes()).hexdigest() == sha
        store.close()
        assert sorted(path.name for path in folder.parent.glob("backup*")) == []


def test_one_file_may_be_a_stream(places: Places, archive: Path) -> None:
    database, folder = places.new()
    restore_archive(Path("-"), database, folder, io.BytesIO(archive.read_bytes()))
    sink = io.BytesIO()
    write_archive(database, folder, Path("-"), sink)
    again, blobs_again = places.new()
    assert restore_archive(Path("-"), again, blobs_again, io.BytesIO(sink.getvalue())).blobs == 3


def parts_of(archive: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(archive) as members:
        return [(entry, members.extractfile(entry).read()) for entry in members]  # type: ignore[union-attr]


def pack(archive: Path, parts: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(archive, "w") as members:
        for entry, data in parts:
            entry.size = len(data)
            members.addfile(entry, io.BytesIO(data))


def changed(archive: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]) -> None:
    parts = parts_of(archive)
    change(parts)
    pack(archive, parts)


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


BROKEN = {
    "cut in the middle": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "not whole"),
    "cut between two members": (lambda path: changed(path, lambda parts: parts.pop()), "it has 2 blobs, not 3"),
    "without a table": (lambda path: changed(path, lambda parts: parts.pop(1)), "not whole: the table"),
    "a changed blob": (
        lambda path: changed(path, lambda parts: parts.append((parts.pop()[0], b"other bytes"))), "is damaged",
    ),
    "a changed table": (
        lambda path: changed(path, lambda parts: parts.insert(1, (parts[1][0], parts.pop(1)[1] + b"\n"))), "is damaged",
    ),
    "no words first": (lambda path: changed(path, lambda parts: parts.append(parts.pop(0))), "does not begin with"),
    "a way out": (lambda path: changed(path, lambda parts: parts.append((entry("blobs/../../x"), b"x"))), "it holds"),
    "a link": (
        lambda path: changed(path, lambda parts: parts.append((entry("blobs", tarfile.SYMTYPE, "/etc"), b""))),
        "it holds",
    ),
    "a file twice": (lambda path: changed(path, lambda parts: parts.append(parts[1])), "twice"),
    "something else": (lambda path: path.write_bytes(b"nonsense" * 1000), "damaged, or not whole"),
    "nothing": (lambda path: path.write_bytes(b""), "damaged, or not whole"),
}  # fmt: skip


def test_a_broken_archive_is_one_line_and_changes_nothing(places: Places, archive: Path) -> None:
    database, folder = places.new()
    before = sorted(folder.parent.rglob("*"))
    for how, (damage, match) in BROKEN.items():
        broken = Path(shutil.copy(archive, archive.with_name("broken.tar")))
        damage(broken)
        with pytest.raises(InputError, match=match) as caught:
            restore_archive(broken, database, folder)
        assert "\n" not in str(caught.value), how
        assert sorted(folder.parent.rglob("*")) == before, how
    assert database.taken_and_left()[0] == []


def test_a_damaged_blob_ends_the_backup_and_leaves_no_file(places: Places, archive: Path) -> None:
    database, folder = places.new()
    restore_archive(archive, database, folder)
    blob = next(path for path in folder.rglob("*") if path.is_file())
    blob.unlink()
    blob.write_bytes(b"rotten")
    target = archive.with_name("second.tar")
    with pytest.raises(NodeError, match="this blob is damaged"):
        write_archive(database, folder, target)
    with pytest.raises(InputError, match="there is such a file already"):
        write_archive(database, folder, archive)
    assert sorted(path.name for path in archive.parent.glob("*.tar*")) == [archive.name]
    assert sorted(path.name for path in archive.parent.glob(".*")) == []


def test_what_a_killed_backup_left_goes_with_the_next_one(places: Places, archive: Path) -> None:
    database, folder = places.new()
    left = folder.parent / "backup-killed"
    (left / "kept").mkdir(parents=True)
    restore_archive(archive, database, folder)
    assert not left.exists()
    shutil.rmtree(folder)

"""Backups of a server that goes on, and what is restored from them, on every engine and across engines."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kolejka.common.errors import InputError, NodeError
from kolejka.server.auth.roles import Role
from kolejka.server.storage import blobs, tasks, users
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

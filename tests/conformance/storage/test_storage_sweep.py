"""What goes with time, and what never goes: retention, references, grace, and sweeps that die or meet others."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from kolejka.common.errors import InputError, Unavailable
from kolejka.common.result import ResultFile
from kolejka.common.settings import ServerSettings
from kolejka.common.states import TaskState
from kolejka.server.auth.tokens import Caller
from kolejka.server.scheduling import claims
from kolejka.server.storage import blobs, tasks
from kolejka.server.storage.base import Store
from kolejka.server.storage.blob_folder import BlobFolder
from kolejka.server.sweep import Swept, is_due, sweep
from tests.conformance.storage.conftest import Cluster

GRACE_S = 3600.0


class Depot:
    """A cluster's blobs: uploads, sweeps, and a look at whether each blob has its bytes."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.bytes = BlobFolder(folder / "blobs")
        self.settings = ServerSettings(data=folder, blob_grace=GRACE_S)

    def upload(self, caller: Caller, data: bytes = b"hello", *, age_s: float = 0.0) -> str:
        sha = hashlib.sha256(data).hexdigest()
        upload = self.bytes.receive(sha, len(data))
        upload.write(data)
        place = upload.finish()
        added = self.cluster.store.write(
            lambda db: blobs.add(db, sha, len(data), place, user_id=caller.user_id, now=self.cluster.wall - age_s)
        ).result()
        if added.place != place:
            self.bytes.remove([place])
        return sha

    def sweep(self, *, orphans: bool = False) -> Swept:
        return sweep(self.cluster.store, self.bytes, self.settings, self.cluster.wall, orphans=orphans)

    def has(self, sha: str) -> bool:
        """Whether the blob exists. Its bytes are there exactly then, as far as any row says."""
        found = self.cluster.store.read(lambda db: blobs.find(db, sha)).result()
        if found is not None:
            self.bytes.open(found.place, 0, 1).close()
        return found is not None

    def kept(self) -> int:
        return len(list(self.bytes.places()))

    def delete(self, task_id: str) -> None:
        def work(db: object) -> None:
            found = tasks.find(db, task_id)  # type: ignore[arg-type]
            assert found is not None
            if found.state is TaskState.WAITING:
                claims.cancel(db, found, self.cluster.now)  # type: ignore[arg-type]
            assert tasks.delete(db, [found.number], self.cluster.wall)  # type: ignore[arg-type]

        self.cluster.store.write(work).result()


@pytest.fixture
def depot(cluster: Cluster, tmp_path: Path) -> Depot:
    return Depot(cluster, tmp_path)


def test_a_blob_that_no_task_needs_goes_after_the_grace(depot: Depot, ala: Caller) -> None:
    sha = depot.upload(ala)
    depot.cluster.sleep(GRACE_S - 1)
    assert not depot.sweep()
    assert depot.has(sha)
    depot.cluster.sleep(2)
    assert depot.sweep() == Swept(blobs=1)
    assert not depot.has(sha)
    assert depot.kept() == 0
    with pytest.raises(InputError, match="there is no blob"):
        depot.cluster.put(ala, files={"in": {"reference": sha}})


def test_an_input_and_an_output_stay_as_long_as_their_task_and_a_grace_longer(
    depot: Depot, ala: Caller, smith: Caller
) -> None:
    given, made = depot.upload(ala), depot.upload(smith, b"made!")
    (task_id,) = depot.cluster.put(ala, files={"in": {"reference": given}})
    (attempt,) = depot.cluster.claim(smith).given
    depot.cluster.finish(smith, attempt.lease, manifest={"out": ResultFile(5, "0644", made)})
    depot.cluster.sleep(100 * GRACE_S)
    assert not depot.sweep()
    assert depot.has(given)
    assert depot.has(made)
    depot.delete(task_id)
    depot.cluster.sleep(1)
    fresh = depot.upload(ala)
    assert depot.sweep() == Swept(blobs=1)
    assert not depot.has(made)
    assert depot.has(fresh), "uploaded again: the grace begins anew"
    depot.cluster.sleep(GRACE_S + 1)
    assert depot.sweep() == Swept(blobs=1)


def test_a_blob_of_two_tasks_stays_until_both_are_gone(depot: Depot, ala: Caller) -> None:
    sha = depot.upload(ala)
    first, second = depot.cluster.put(ala, files={"in": {"reference": sha}}, count=2)
    depot.delete(first)
    depot.cluster.sleep(2 * GRACE_S)
    assert not depot.sweep()
    depot.delete(second)
    assert depot.sweep() == Swept(blobs=1)


@pytest.mark.parametrize("when", ["before it looks", "before it takes", "before it removes bytes"])
def test_a_task_or_an_upload_that_comes_during_a_sweep_keeps_its_bytes(
    depot: Depot, ala: Caller, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    sha = depot.upload(ala)
    depot.cluster.sleep(2 * GRACE_S)
    accepted = []

    def meanwhile() -> None:
        try:
            depot.cluster.put(ala, files={"in": {"reference": sha}})
            accepted.append("the blob that was there")
        except InputError:
            depot.upload(ala)
            depot.cluster.put(ala, files={"in": {"reference": sha}})
            accepted.append("the blob uploaded again")

    before(monkeypatch, when, depot, meanwhile)
    depot.sweep()
    monkeypatch.undo()
    assert accepted == ["the blob uploaded again" if when == "before it removes bytes" else "the blob that was there"]
    assert depot.has(sha)
    depot.cluster.sleep(2 * GRACE_S)
    assert not depot.sweep()
    assert depot.has(sha)
    assert depot.kept() == 1


def before(monkeypatch: pytest.MonkeyPatch, when: str, depot: Depot, act: Callable[[], None]) -> None:
    """Have something happen in the middle of the next sweep."""
    owner, name = {
        "before it looks": (blobs, "unneeded"),
        "before it takes": (blobs, "take_out"),
        "before it removes bytes": (depot.bytes, "remove"),
    }[when]
    whole, begun = getattr(owner, name), []

    if when == "before it removes bytes":

        def remove(places: Iterable[str]) -> None:
            if not begun:
                begun.append(1)
                act()
            whole(places)

        monkeypatch.setattr(owner, name, remove)
        return

    store = depot.cluster.store
    kind = "read" if when == "before it looks" else "write"
    method = getattr(store, kind)
    skip = 1 if kind == "read" else 0  # the queues' retentions are read first

    def next_work(work: object) -> object:
        begun.append(1)
        if len(begun) == skip + 1:
            monkeypatch.setattr(store, kind, method)
            act()
        return method(work)

    monkeypatch.setattr(store, kind, next_work)


def test_a_sweep_that_dies_anywhere_loses_nothing_and_the_next_one_ends_it(
    depot: Depot, ala: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = [depot.upload(ala, b"needed%d" % n) for n in range(5)]
    depot.cluster.put(ala, files={str(n): {"reference": sha} for n, sha in enumerate(needed)})
    for n in range(5):
        depot.upload(ala, b"unneeded%d" % n)
    depot.cluster.sleep(2 * GRACE_S)
    unlink, left = Path.unlink, [0]

    def dying(path: Path, missing_ok: bool = False) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(5, "Input/output error")
        unlink(path, missing_ok=missing_ok)

    for removed in (2, 1, 0):
        left[0] = removed
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", dying)
            with pytest.raises(Unavailable, match="Input/output error"):
                depot.sweep()
        assert all(depot.has(sha) for sha in needed)
    assert depot.kept() > 5
    depot.sweep()
    assert depot.kept() == 5
    assert all(depot.has(sha) for sha in needed)


def test_sweeps_uploads_and_tasks_at_once_never_leave_a_row_without_bytes(depot: Depot, ala: Caller) -> None:
    names = [b"shared%d" % n for n in range(6)]
    old = 2 * GRACE_S  # every upload seems to be that old, so that a sweep takes it at once
    errors: list[BaseException] = []
    over = threading.Event()
    referred: set[str] = set()

    def sweeping() -> None:
        while not over.is_set():
            depot.sweep()

    def using(data: bytes) -> None:
        for _ in range(12):
            sha = depot.upload(ala, data, age_s=old)
            try:
                (task_id,) = depot.cluster.put(ala, files={"in": {"reference": sha}})
            except InputError:  # swept between the two: told, and nothing was put
                continue
            assert depot.has(sha)
            depot.delete(task_id)
        while sha not in referred:
            depot.upload(ala, data, age_s=old)
            try:
                depot.cluster.put(ala, files={"in": {"reference": sha}})
            except InputError:
                continue
            referred.add(sha)

    def guarded(act: Callable[[], None]) -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 told below
            errors.append(error)

    sweepers = [threading.Thread(target=guarded, args=(sweeping,)) for _ in range(2)]
    users = [threading.Thread(target=guarded, args=(lambda data=data: using(data),)) for data in names]
    for thread in (*sweepers, *users):
        thread.start()
    for thread in users:
        thread.join(60)
    over.set()
    for thread in sweepers:
        thread.join(60)
    assert errors == []
    depot.sweep()
    assert all(depot.has(hashlib.sha256(data).hexdigest()) for data in names)
    assert depot.kept() == len(names)


def test_orphans_go_only_when_an_admin_says_so_and_only_old_ones(depot: Depot, ala: Caller) -> None:
    sha = depot.upload(ala)
    depot.cluster.put(ala, files={"in": {"reference": sha}})
    for age_s in (10, 2 * 86400):
        upload = depot.bytes.receive(sha, 5)
        upload.write(b"hello")
        path = depot.bytes.path(upload.finish())
        os.utime(path, (depot.cluster.wall - age_s,) * 2)
    found = depot.cluster.store.read(lambda db: blobs.find(db, sha)).result()
    assert found is not None
    os.utime(depot.bytes.path(found.place), (0, 0))
    assert not depot.sweep()
    assert depot.sweep(orphans=True) == Swept(orphans=1)
    assert depot.kept() == 2
    assert depot.has(sha)


# Retention


def keep_for(store: Store, seconds: float | None, queue: str = "default") -> None:
    store.write(lambda db: db.run("UPDATE queues SET retention_s = ? WHERE name = ?", seconds, queue)).result()


def test_done_tasks_go_when_their_queue_says_so_and_what_they_used_stays(
    depot: Depot, ala: Caller, smith: Caller
) -> None:
    made = depot.upload(smith, b"made!")
    done, young, waiting = (depot.cluster.put(ala)[0] for _ in range(3))
    first, second = depot.cluster.claim(smith, slots=2).given
    assert (first.task_id, second.task_id) == (done, young)
    depot.cluster.finish(smith, first.lease, manifest={"out": ResultFile(5, "0644", made)})
    depot.cluster.sleep(2 * GRACE_S)
    depot.cluster.finish(smith, second.lease)
    depot.cluster.sleep(10)
    assert depot.sweep().tasks == 0, "no queue says so"
    keep_for(depot.cluster.store, GRACE_S)
    assert depot.sweep() == Swept(tasks=1, blobs=1)

    def look(db: object) -> list[bool]:
        return [tasks.find(db, task_id) is not None for task_id in (done, young, waiting)]  # type: ignore[arg-type]

    assert depot.cluster.store.read(look).result() == [False, True, True]
    rows = depot.cluster.store.read(lambda db: db.rows("SELECT task_id FROM accounting ORDER BY lease")).result()
    assert rows == [(done,), (young,)]
    depot.cluster.sleep(100 * GRACE_S)
    assert depot.sweep().tasks == 1, "what waits is never too old"


# Taking turns


def test_of_several_servers_one_sweeps_at_its_time(cluster: Cluster) -> None:
    def due() -> bool:
        return cluster.store.write(lambda db: is_due(db, cluster.wall, 60.0)).result()

    assert [due(), due()] == [True, False]
    cluster.sleep(59)
    assert not due()
    cluster.sleep(1)
    assert [due(), due()] == [True, False]
    cluster.wall -= 1_000_000  # the clock was wrong, and was set right
    assert [due(), due()] == [True, False]

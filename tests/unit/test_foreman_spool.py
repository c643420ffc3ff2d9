from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from kolejka.common.errors import NodeError, NotFound, Unavailable
from kolejka.common.files import hash_file
from kolejka.common.result import Outcome, Result, ResultFile
from kolejka.common.task import Task
from kolejka.foreman import leftovers, spool
from kolejka.foreman.blobs import BlobCache
from kolejka.foreman.slots import folder_name
from kolejka.foreman.spool import Spool
from kolejka.worker.workspace import Workspace


def make_result(folder: Path, name: str = "t1") -> Path:
    folder.mkdir(parents=True)
    (folder / "deep").mkdir()
    (folder / "deep/out.txt").write_text("hello")
    reference, size = hash_file(folder / "deep/out.txt")
    manifest = {"deep/out.txt": ResultFile(size, "0644", reference)}
    Result(Outcome.OK, result=0, id=name, manifest=manifest).save(folder)
    return folder


def opened(folder: Path) -> tuple[Spool, list[spool.Entry]]:
    one = Spool(folder)
    return one, one.open()


def test_a_result_survives_until_it_is_removed(tmp_path: Path) -> None:
    first, found = opened(tmp_path / "spool")
    assert found == []
    entry = first.add(7, "t1", make_result(tmp_path / "result"))
    assert not (tmp_path / "result").exists()
    second, found = opened(tmp_path / "spool")
    assert found == [entry]
    assert found[0].result().files == ("deep/out.txt",)
    assert (entry.folder / "deep/out.txt").read_text() == "hello"
    second.remove(entry)
    second.remove(entry)
    assert opened(tmp_path / "spool")[1] == []
    assert list((tmp_path / "spool").iterdir()) == []


def test_every_byte_is_on_disk_before_the_result_stands_in_the_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = opened(tmp_path / "spool")
    folder = make_result(tmp_path / "result")
    wanted = {path.stat().st_ino for path in [folder, *folder.rglob("*")]}
    events: list[tuple[str, int]] = []
    rename = os.rename
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(("sync", os.fstat(descriptor).st_ino)))
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append(("rename", 0)), rename(a, b)))
    one.add(1, "t1", folder)
    before = events[: events.index(("rename", 0))]
    assert {inode for _, inode in before} == wanted
    assert events[-1] == ("sync", (tmp_path / "spool").stat().st_ino)


def test_a_crash_before_the_rename_leaves_nothing_in_the_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = opened(tmp_path / "spool")
    folder = make_result(tmp_path / "result")

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            one.add(1, "t1", folder)
    assert opened(tmp_path / "spool")[1] == []
    assert folder.exists()


def test_a_crash_while_a_result_is_removed_is_finished_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = opened(tmp_path / "spool")
    entry = one.add(1, "t1", make_result(tmp_path / "result"))

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(spool.shutil, "rmtree", crash)
        with pytest.raises(KeyboardInterrupt):
            one.remove(entry)
    assert opened(tmp_path / "spool")[1] == []
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_damaged_result_is_dropped_and_the_others_are_kept(tmp_path: Path) -> None:
    one, _ = opened(tmp_path / "spool")
    damaged = one.add(1, "t1", make_result(tmp_path / "a"))
    whole = one.add(2, "t2", make_result(tmp_path / "b", "t2"))
    (damaged.folder / "kolejka_result.json").write_text("{")
    assert opened(tmp_path / "spool")[1] == [whole]
    assert not damaged.folder.exists()


def test_what_the_spool_did_not_make_is_left_alone(tmp_path: Path) -> None:
    names = ["notes", "lost+found", "\u00b2"]  # the last is a digit to Python, and no number
    for name in names:
        (tmp_path / "spool" / name).mkdir(parents=True)
    for name in ("7", ".gone-8"):
        (tmp_path / "spool" / name).touch()
    (tmp_path / "spool/9").symlink_to(tmp_path)
    assert opened(tmp_path / "spool")[1] == []
    assert sorted(os.listdir(tmp_path / "spool")) == sorted([*names, "7", ".gone-8", "9"])


def test_results_are_found_in_the_order_of_their_leases(tmp_path: Path) -> None:
    one, _ = opened(tmp_path / "spool")
    for lease in (10, 9, 100):
        one.add(lease, "t", make_result(tmp_path / f"r{lease}"))
    assert [entry.lease for entry in opened(tmp_path / "spool")[1]] == [9, 10, 100]


# The cache of input files.


class Source:
    """Blobs to download, and how often that was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.files: dict[str, bytes] = {}

    def add(self, data: bytes) -> str:
        path = self.folder / "x"
        path.write_bytes(data)
        reference, _ = hash_file(path)
        self.files[reference] = data
        return reference

    def __call__(self, reference: str, path: Path) -> None:
        self.asked.append(reference)
        if reference not in self.files:
            raise NotFound("no such blob")
        path.write_bytes(self.files[reference])


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path)


def cache_of(tmp_path: Path, bound: int = 1000) -> BlobCache:
    cache = BlobCache(tmp_path / "blobs", bound)
    cache.open()
    return cache


def test_a_blob_is_downloaded_once_and_cannot_be_written(tmp_path: Path, source: Source) -> None:
    cache, reference = cache_of(tmp_path), source.add(b"data")
    for _ in range(2):
        with cache.hold([reference, reference], source) as folder:
            assert (folder / reference).read_bytes() == b"data"
            assert (folder / reference).stat().st_mode & 0o777 == 0o444
    assert source.asked == [reference]


def test_a_cache_with_a_disk_of_its_own_begins(tmp_path: Path, source: Source) -> None:
    (tmp_path / "blobs/lost+found").mkdir(parents=True)
    (tmp_path / "blobs/.partial-x").touch()
    cache = BlobCache(tmp_path / "blobs", 1 << 20)
    cache.open()
    assert os.listdir(tmp_path / "blobs") == ["lost+found"]


def test_a_blob_survives_a_restart(tmp_path: Path, source: Source) -> None:
    reference = source.add(b"data")
    with cache_of(tmp_path).hold([reference], source):
        pass
    (tmp_path / "blobs/.partial-abc").write_text("half")
    cache = cache_of(tmp_path)
    with cache.hold([reference], source):
        assert len(source.asked) == 1
    assert cache.size == 4
    assert not (tmp_path / "blobs/.partial-abc").exists()


def test_bytes_with_another_hash_are_not_kept(tmp_path: Path, source: Source) -> None:
    cache, reference = cache_of(tmp_path), source.add(b"data")
    source.files[reference] = b"evil"
    with pytest.raises(Unavailable, match="hash"), cache.hold([reference], source):
        raise AssertionError("never reached")
    assert list((tmp_path / "blobs").iterdir()) == []
    source.files[reference] = b"data"
    with cache.hold([reference], source) as folder:
        assert (folder / reference).read_bytes() == b"data"


def test_the_least_recently_used_blob_goes_first(tmp_path: Path, source: Source) -> None:
    cache = cache_of(tmp_path, bound=10)
    old, middle, new = (source.add(letter * 4) for letter in (b"a", b"b", b"c"))
    for reference in (old, middle, old, new):
        with cache.hold([reference], source):
            pass
    assert {path.name for path in (tmp_path / "blobs").iterdir()} == {old, new}
    assert cache.size == 8


def test_a_blob_in_use_is_never_removed_even_beyond_the_bound(tmp_path: Path, source: Source) -> None:
    cache = cache_of(tmp_path, bound=5)
    one, two = source.add(b"aaaa"), source.add(b"bbbb")
    with cache.hold([one], source) as folder, cache.hold([two], source):
        assert (folder / one).exists()
        assert (folder / two).exists()
    assert cache.size == 4


def test_two_tasks_that_need_the_same_blob_at_once_download_it_once(tmp_path: Path, source: Source) -> None:
    cache, reference = cache_of(tmp_path), source.add(b"data")
    entered, go = threading.Event(), threading.Event()

    def slow(wanted: str, path: Path) -> None:
        entered.set()
        go.wait(30)
        source(wanted, path)

    done: list[bool] = []

    def use() -> None:
        with cache.hold([reference], slow) as folder:
            done.append((folder / reference).exists())

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert entered.wait(30)
    go.set()
    for thread in threads:
        thread.join(30)
    assert done == [True] * 3
    assert source.asked == [reference]


def test_a_blob_that_is_not_there_holds_nothing(tmp_path: Path, source: Source) -> None:
    cache = cache_of(tmp_path)
    with pytest.raises(NotFound), cache.hold(["0" * 64], source):
        raise AssertionError("never reached")
    assert list((tmp_path / "blobs").iterdir()) == []


# What an earlier life left.


def test_two_foremen_cannot_share_a_data_folder(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with leftovers.locked(tmp_path / "data"):
            os.write(writer, b"x")
            threading.Event().wait(60)
        os._exit(0)
    try:
        os.read(reader, 1)
        with (
            pytest.raises(NodeError, match=rf"another foreman \(process {child}\)"),
            leftovers.locked(tmp_path / "data"),
        ):
            pass
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    with leftovers.locked(tmp_path / "data"):
        assert (tmp_path / "data/lock").read_text() == f"{os.getpid()}\n"


def test_a_data_folder_that_cannot_be_made_gives_a_cure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NodeError, match="--data"), leftovers.locked(tmp_path / "file/data"):
        pass


def cut_short(data: Path, lease: int, name: str) -> None:
    (data / "running" / folder_name(lease, name)).mkdir(parents=True)


def test_attempts_that_were_cut_short_are_removed_and_named(tmp_path: Path) -> None:
    cut_short(tmp_path, 12, "b")
    cut_short(tmp_path, 3, "a")
    cut_short(tmp_path, 99, "../../stranger")
    (tmp_path / "running/notes").mkdir()
    found = leftovers.clean(tmp_path)
    assert [(one.lease, one.task, one.again) for one in found] == [(3, "a", False), (12, "b", False), (99, "", False)]
    assert [path.name for path in (tmp_path / "running").iterdir()] == ["notes"]


def test_a_task_with_which_the_foreman_died_again_and_again_is_left_to_run_out(tmp_path: Path) -> None:
    again = []
    for lease in range(4):
        cut_short(tmp_path, lease, "poison")
        again += [one.again for one in leftovers.clean(tmp_path)]
    assert again == [False, False, True, True]


def test_a_full_disk_keeps_no_foreman_from_its_start(small_disk: Path) -> None:
    (small_disk / "running/3-t").mkdir(parents=True)
    (small_disk / "lock").touch()
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "ballast").write_bytes(bytes(8 << 20))
    with leftovers.locked(small_disk):
        assert leftovers.clean(small_disk) == [leftovers.Leftover(3, "t", again=False)]
    assert list((small_disk / "running").iterdir()) == []


def test_a_damaged_count_of_deaths_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "deaths.json").write_text("nonsense")
    cut_short(tmp_path, 1, "a")
    assert [one.again for one in leftovers.clean(tmp_path)] == [False]


def test_a_blob_that_an_earlier_life_left_broken_is_fetched_anew(tmp_path: Path, source: Source) -> None:
    whole, broken, gone = (source.add(data) for data in (b"whole", b"broken", b"gone"))
    with cache_of(tmp_path).hold([whole, broken, gone], source) as folder:
        pass
    source.asked.clear()
    (folder / broken).chmod(0o644)
    (folder / broken).write_bytes(b"brokem")
    cache = cache_of(tmp_path)
    (folder / gone).unlink()
    for _ in range(2):
        with cache.hold([whole, broken, gone], source):
            assert (folder / broken).read_bytes() == b"broken"
            assert (folder / gone).read_bytes() == b"gone"
    assert source.asked == [broken, gone]
    assert cache.size == len(b"wholebrokengone")


def test_a_task_that_changes_its_input_changes_no_other_tasks(tmp_path: Path, source: Source) -> None:
    reference = source.add(b"data")
    spec = Task.parse({"args": ["x"], "files": {"in": {"reference": reference}}})
    with cache_of(tmp_path).hold([reference], source) as folder:
        workspaces = [Workspace(tmp_path, os.getuid()) for _ in range(2)]
        for workspace in workspaces:
            workspace.fill(spec, tmp_path, folder)
        first, second = (workspace.path / "in" for workspace in workspaces)
        with first.open("r+b") as file:
            file.write(b"evil")
        assert (second.read_bytes(), (folder / reference).read_bytes()) == (b"data", b"data")
        assert (folder / reference).stat().st_nlink == 1
        for workspace in workspaces:
            workspace.remove()


def test_a_full_disk_under_the_cache_is_said_and_leaves_nothing(small_disk: Path, source: Source) -> None:
    small, large = source.add(b"small"), source.add(bytes(6 << 20))
    cache = cache_of(small_disk, bound=100 << 20)
    with pytest.raises(OSError, match="No space left on device"), cache.hold([small, large], source):
        raise AssertionError("never reached")
    assert [path.name for path in (small_disk / "blobs").iterdir()] == [small]
    with cache.hold([small], source) as folder:
        assert (folder / small).read_bytes() == b"small"

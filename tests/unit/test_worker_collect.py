"""Bringing files back out of a folder that a stranger could write."""

from __future__ import annotations

import os
import resource
import socket
import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kolejka.common.errors import NodeError
from kolejka.common.files import hash_file
from kolejka.common.task import Collect
from kolejka.worker import collect as collecting
from kolejka.worker import trees
from kolejka.worker.collect import collect, pattern, result_name
from kolejka.worker.trees import INODE, MAX_DEPTH, TOO_MUCH, remove_tree, walk, weight


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


@pytest.fixture
def result(tmp_path: Path) -> Path:
    folder = tmp_path / "result"
    folder.mkdir()
    return folder


EVERYTHING = [Collect("**")]
EVERYBODY_OF_ONE_NAME = struct.pack("<I" + "HHI" * 5, 2, 1, 6, ~0 & 0xFFFFFFFF, 2, 7, 12345, 4, 0, ~0 & 0xFFFFFFFF,
                                    0x10, 7, ~0 & 0xFFFFFFFF, 0x20, 0, ~0 & 0xFFFFFFFF)  # fmt: skip
"""an access list that lets user 12345 do everything"""


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [
        ("*.txt", ["a.txt", ".txt"], ["a/b.txt", "a.txt2", "a.log"]),
        ("**/*.txt", ["a.txt", "a/b/c.txt"], ["a.log"]),
        ("**", ["a", "a/b", "-rf", "new\nline"], []),
        ("a", ["a", "a/b", "a/b/c"], ["ab", "b/a"]),
        ("a/", ["a/b"], ["ab"]),
        ("a/**/z", ["a/z", "a/b/c/z"], ["az", "b/z"]),
        ("a?c", ["abc"], ["a/c", "ac"]),
        ("[ab].c", ["a.c", "b.c"], ["c.c", "ab.c"]),
        ("[!ab]", ["c"], ["a", "/"]),
        ("a[", ["a["], ["a"]),
        ("a.c", ["a.c"], ["abc"]),
        ("[z-a]", ["[z-a]"], ["z"]),
    ],
)
def test_globs(glob: str, yes: list[str], no: list[str]) -> None:
    assert [name for name in yes if not pattern(glob).match(name)] == []
    assert [name for name in no if pattern(glob).match(name)] == []


def matches(glob: str, name: str) -> bool:
    """What globs mean, without regard to what that costs."""
    if not glob.rstrip("/"):
        return not name or name.startswith("/")
    if glob.startswith("**"):
        return any(matches(glob[2:], name[at:]) for at in range(len(name) + 1))
    if glob[0] == "*":
        return matches(glob[1:], name) or (name[:1] not in {"", "/"} and matches(glob, name[1:]))
    return (name[:1] == glob[0] or (glob[0] == "?" and name[:1] not in {"", "/"})) and matches(glob[1:], name[1:])


@given(
    st.lists(st.sampled_from(["a", "b", "/", "?", "*", "**"]), min_size=1, max_size=7).map("".join),
    st.text("ab/\n", min_size=1, max_size=10),
)
def test_a_glob_finds_what_trying_everything_finds(glob: str, name: str) -> None:
    assume("/**/" not in f"/{glob}")  # that one matches no folder as well
    assert bool(pattern(glob).match(name)) == matches(glob, name)


@pytest.mark.parametrize("glob", ["*a" * 30 + "b", "**a" * 30 + "b", "**/" * 30 + "*a" * 30 + "b", "[!b]*" * 30 + "b"])
def test_no_glob_takes_longer_than_its_name_is(glob: str) -> None:
    for name in ("a" * 255, "/".join(["a" * 255] * 15), "a/" * 2000):  # to try all ways would take for ever
        assert not pattern(glob).match(name)


@pytest.mark.parametrize(
    ("rule", "name", "expected"),
    [
        (Collect(strip=1), "a/b/c", "b/c"),
        (Collect(strip=9), "a/b/c", "c"),
        (Collect(prefix="p/q"), "a/b", "p/q/a/b"),
        (Collect(strip=1, prefix="p"), "a", "p/a"),
    ],
)
def test_strip_and_prefix(rule: Collect, name: str, expected: str) -> None:
    assert result_name(rule, name) == expected


def test_hash_size_and_mode_are_those_of_the_file(workspace: Path, result: Path) -> None:
    (workspace / "tool").write_bytes(b"#!")
    (workspace / "tool").chmod(0o6777)
    found = collect(workspace, EVERYTHING, result)
    digest, size = hash_file(result / "tool")
    assert found.manifest["tool"].to_json() == {"size": size, "mode": "0755", "sha256": digest}
    assert (result / "tool").stat().st_mode & 0o7777 == 0o755


def test_links_fifos_sockets_are_named_and_never_followed(workspace: Path, result: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    (workspace / "link").symlink_to(tmp_path / "outside" / "secret")
    (workspace / "folder").symlink_to(tmp_path / "outside")
    os.mkfifo(workspace / "fifo")
    before = os.getcwd()
    os.chdir(workspace)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind("socket")
    os.chdir(before)
    found = collect(workspace, EVERYTHING, result)
    assert found.manifest == {}
    assert set(found.skipped) == {"link", "folder", "fifo", "socket"}
    assert list(result.iterdir()) == []


def test_names_of_the_results_own_win(workspace: Path, result: Path) -> None:
    for name in ("out", "kolejka_result.json", "free"):
        (workspace / name).write_text("forged")
    (workspace / "sub").mkdir()
    (workspace / "sub" / "free").write_text("second")
    found = collect(workspace, [Collect("**", strip=1)], result, taken={"out": "standard output"})
    assert set(found.manifest) == {"free"}
    assert set(found.skipped) == {"out", "kolejka_result.json", "sub/free"}
    assert (result / "free").read_text() == "forged"


def test_a_file_below_the_name_of_a_file_is_skipped(workspace: Path, result: Path) -> None:
    (workspace / "out").mkdir()
    (workspace / "out" / "file").write_text("x")
    found = collect(workspace, EVERYTHING, result, taken={"out": "standard output"})
    assert set(found.skipped) == {"out/file"}


def test_a_file_by_the_name_of_a_folder_in_the_result_is_skipped(workspace: Path, result: Path) -> None:
    for name in ("x/a/b", "y/a", "z/logs"):
        (workspace / name).parent.mkdir(parents=True)
        (workspace / name).write_text("x")
    (result / "logs").mkdir()
    found = collect(workspace, [Collect("**", strip=1)], result, taken={"logs/out": "standard output"})
    assert set(found.manifest) == {"a/b"}
    assert set(found.skipped) == {"y/a", "z/logs"}


def test_a_path_that_could_not_be_kept_everywhere_is_skipped(workspace: Path, result: Path) -> None:
    folder = workspace
    for _ in range(13):
        folder = folder / ("ż" * 120)
        folder.mkdir()
        (folder / "file").write_text("x")
    found = collect(workspace, EVERYTHING, result)
    assert (len(found.manifest), len(found.skipped)) == (12, 1)


def test_one_file_may_be_brought_under_two_names(workspace: Path, result: Path) -> None:
    (workspace / "a").write_text("x")
    os.link(workspace / "a", workspace / "b")
    found = collect(workspace, [*EVERYTHING, Collect("a", prefix="again")], result)
    assert {name: (result / name).read_text() for name in found.manifest} == {"a": "x", "b": "x", "again/a": "x"}


def test_attributes_and_access_lists_stay_behind(workspace: Path, result: Path) -> None:
    (workspace / "file").write_text("x")
    for name, value in (("user.note", b"mine"), ("system.posix_acl_access", EVERYBODY_OF_ONE_NAME)):
        with suppress(OSError):  # this file system keeps none
            os.setxattr(workspace / "file", name, value)
    assert set(collect(workspace, EVERYTHING, result).manifest) == {"file"}
    assert [name for name in os.listxattr(result / "file") if name.startswith(("user.", "system."))] == []


def test_more_than_the_limit_is_not_brought(workspace: Path, result: Path) -> None:
    (workspace / "a").write_bytes(b"x" * 600)
    (workspace / "b").write_bytes(b"x" * 600)
    with open(workspace / "c", "wb") as sparse:
        sparse.truncate(1 << 40)
    found = collect(workspace, EVERYTHING, result, max_size=1000)
    assert set(found.manifest) == {"a"}
    assert set(found.skipped) == {"b", "c"}


def test_names_that_are_no_utf8_survive(workspace: Path, result: Path) -> None:
    name = os.fsdecode(b"\xff\xfe-\n")
    (workspace / name).write_text("x")
    assert set(collect(workspace, EVERYTHING, result).manifest) == {name}
    assert (result / name).read_text() == "x"


def test_only_so_many_skipped_names_are_listed(workspace: Path, result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "MAX_SKIPPED", 10)
    for number in range(25):
        (workspace / f"link{number}").symlink_to("x")
    found = collect(workspace, EVERYTHING, result)
    assert (len(found.skipped), found.skipped_more) == (10, 15)


def test_a_file_swapped_for_a_link_while_collecting_is_not_followed(
    workspace: Path, result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("secret")
    (workspace / "file").write_text("mine")
    original = collecting._objection

    def swap(*words: object) -> str | None:
        (workspace / "file").unlink()
        (workspace / "file").symlink_to(tmp_path / "secret")
        return original(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(collecting, "_objection", swap)
    found = collect(workspace, EVERYTHING, result)
    assert found.manifest == {}
    assert set(found.skipped) == {"file"}


def test_a_result_that_cannot_be_written_is_the_nodes_fault(workspace: Path, result: Path) -> None:
    (workspace / "a").write_text("x")
    (result / "a").mkdir()
    with pytest.raises(NodeError, match="a"):
        collect(workspace, EVERYTHING, result)


def _deep(folder: Path, depth: int) -> None:
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


def test_a_tree_deeper_than_any_path_is_reported_and_removed(workspace: Path, result: Path) -> None:
    _deep(workspace, 3000)
    found = collect(workspace, EVERYTHING, result)
    assert found.manifest == {}
    assert len(found.skipped) == 1
    remove_tree(workspace)
    assert not workspace.exists()


def test_removal_copes_with_names_that_it_would_use_itself(workspace: Path) -> None:
    for number in range(1, 6):
        (workspace / f".removed-{number}").mkdir()
        (workspace / f".removed-{number}" / "in").mkdir()
        (workspace / f".removed-{number}" / "in" / "file").write_text("x")
    remove_tree(workspace)
    assert not workspace.exists()
    remove_tree(workspace)


def test_removal_does_not_follow_links(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_text("x")
    (workspace / "link").symlink_to(tmp_path / "outside")
    remove_tree(workspace)
    assert (tmp_path / "outside" / "kept").exists()


def test_what_is_empty_weighs_something_where_inodes_count(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "empty").touch()
    (tmp_path / "second name").hardlink_to(tmp_path / "empty")
    assert weight(tmp_path, INODE) == 3 * INODE
    (tmp_path / "more").write_bytes(bytes(3 * INODE))
    assert weight(tmp_path, INODE) == 6 * INODE


def test_weight_counts_holes_and_each_file_once(workspace: Path) -> None:
    (workspace / "a").write_bytes(b"x" * 10_000)
    base = weight(workspace)
    assert base >= 10_000
    os.link(workspace / "a", workspace / "b")
    assert weight(workspace) == base
    with open(workspace / "sparse", "wb") as sparse:
        sparse.truncate(1 << 30)
    assert weight(workspace) >= 1 << 30


def make_deep(top: Path, depth: int) -> int:
    """Nested folders with a file of a MiB in the innermost, whose descriptor is returned."""
    here = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    with os.fdopen(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here), "wb") as file:
        file.write(bytes(1 << 20))
    return here


def test_weight_reaches_any_depth_with_few_descriptors(workspace: Path) -> None:
    os.close(make_deep(workspace, 1000))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + MAX_DEPTH + 8, hard))
    try:
        assert 1 << 20 <= weight(workspace) < 8 << 20
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        remove_tree(workspace)  # others cannot


def test_a_tree_that_moves_away_deep_down_weighs_too_much(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    innermost = make_deep(workspace, MAX_DEPTH + 2)
    os.mkdir("last", dir_fd=innermost)
    opened = trees.open_folder

    def open_and_move(name: str | Path, folder: int | None = None) -> int:
        descriptor = opened(name, folder)
        if name == "last":
            os.rename("last", workspace / "last", src_dir_fd=innermost)
        return descriptor

    monkeypatch.setattr(trees, "open_folder", open_and_move)
    assert weight(workspace) == TOO_MUCH
    os.close(innermost)


def test_a_walk_closes_what_it_opened_when_it_is_left_early(workspace: Path) -> None:
    (workspace / "a" / "b").mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))
    steps = walk(workspace)
    next(steps)
    next(steps)
    steps.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_result_lists_no_more_files_than_a_server_takes(tmp_path, monkeypatch):
    monkeypatch.setattr("kolejka.worker.collect.MAX_MANIFEST_BYTES", 1000)
    workspace, result = tmp_path / "workspace", tmp_path / "result"
    workspace.mkdir()
    result.mkdir()
    for number in range(100):
        (workspace / f"f{number}").write_bytes(b"")
    found = collect(workspace, [Collect("**")], result)
    assert 0 < len(found.manifest) < 20
    assert len(found.manifest) + len(found.skipped) == 100
    assert set(found.skipped.values()) == {"more files than a result can list"}


@pytest.mark.needs("root")
def test_a_hard_link_to_a_file_of_somebody_else_is_not_brought(workspace: Path, result: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    os.chown(workspace, 2_000_000, 2_000_000)
    os.link(secret, workspace / "planted")
    (workspace / "own").write_text("own")
    os.chown(workspace / "own", 2_000_000, 2_000_000)
    os.link(workspace / "own", workspace / "twin")
    found = collect(workspace, EVERYTHING, result)
    assert set(found.manifest) == {"own", "twin"}
    assert "hard link" in found.skipped["planted"]
    assert secret.stat().st_uid == 0

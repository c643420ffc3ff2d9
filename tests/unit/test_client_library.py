"""Tasks go up, results come down, and a hostile server gets nothing onto the disk."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kolejka.client
from kolejka.client import KolejkaClient
from kolejka.client.client import Progress
from kolejka.common.errors import Conflict, InputError, KolejkaError, NodeError, NotFound, Unavailable
from kolejka.common.limits import Limits
from kolejka.common.result import Outcome, Result
from kolejka.common.settings import ClientSettings
from tests.unit.client_stub import TOKEN, Handler, Stub, cut_body, hang_up, serving, status

BIG = os.urandom(3 << 20) + b"the end"


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serving(Stub()) as served:
        yield served


@pytest.fixture
def client(stub: Stub) -> Iterator[KolejkaClient]:
    settings = ClientSettings(server=stub.url, token=TOKEN, patience=20.0, timeout=10.0)
    with KolejkaClient(settings) as opened:
        opened.transport.pause = lambda seconds: None  # type: ignore[method-assign]
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_task(tmp_path / "task")


def make_task(folder: Path, **words: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "kolejka_task.json").write_text(json.dumps({"args": ["uname"], "stdout": "stdout.txt", **words}))
    return folder


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def nothing_new(tmp_path: Path, *known: str) -> None:
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(known)


def test_the_example_of_the_package_does_what_it_says(
    stub: Stub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kolejka.client.__doc__ is not None
    lines = kolejka.client.__doc__.partition("::\n\n")[2].splitlines()
    code = "\n".join(line[4:] for line in lines[: next(i for i, line in enumerate(lines) if line and line[0] != " ")])
    assert "put_task" in code
    (tmp_path / "examples").mkdir()
    folder.rename(tmp_path / "examples" / "uname")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KOLEJKA_CLIENT_SERVER", stub.url)
    monkeypatch.setenv("KOLEJKA_CLIENT_TOKEN", TOKEN)
    stub.runs = lambda s, task_id: s.finish(task_id, {"stats": {"cpu": {"usage": 0.25}}}, {"stdout.txt": b"Linux\n"})
    exec(code, {})
    assert capsys.readouterr().out == "ok 0.25\n"
    assert (tmp_path / "RESULT" / "stdout.txt").read_bytes() == b"Linux\n"


def test_a_task_with_files_arrives_with_references_and_modes(stub: Stub, client: KolejkaClient, tmp_path: Path) -> None:
    folder = make_task(
        tmp_path / "t",
        files={"a": None, "b/c": "a", "run": {"path": "run.sh"}, "plain": {"path": "run.sh", "executable": False},
               "text": {"content": "hello"}},
        limits={"memory": "64M", "time": "10s"},
    )  # fmt: skip
    (folder / "a").write_bytes(b"A")
    (folder / "run.sh").write_bytes(b"#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    task = client.put_task(folder, limits=Limits.of(memory="1G", time="2s", pids=5))
    spec = stub.tasks[task["id"]]["spec"]
    assert spec["files"] == {
        "a": {"reference": sha(b"A")},
        "b/c": {"reference": sha(b"A")},
        "run": {"reference": sha(b"#!/bin/sh\n"), "executable": True},
        "plain": {"reference": sha(b"#!/bin/sh\n")},
        "text": {"content": "hello"},
    }
    assert spec["limits"] == {"memory": 64 << 20, "time": 2.0, "pids": 5}
    assert set(stub.blobs) == {sha(b"A"), sha(b"#!/bin/sh\n")}


def test_a_big_file_that_the_server_has_is_not_sent_again(stub: Stub, client: KolejkaClient, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(BIG)
    assert client.put_blob(tmp_path / "big") == sha(BIG)
    assert stub.blobs[sha(BIG)] == BIG
    client.put_blob(tmp_path / "big")
    assert stub.count("PUT", "/blobs/.*") == 1


def test_an_empty_file_bytes_and_a_stream_are_blobs_too(stub: Stub, client: KolejkaClient, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert client.put_blob(tmp_path / "empty") == sha(b"")
    assert client.put_blob(b"words") == sha(b"words")
    assert client.put_blob(io.BytesIO(BIG)) == sha(BIG)
    assert stub.blobs == {sha(b""): b"", sha(b"words"): b"words", sha(BIG): BIG}


@pytest.mark.parametrize("change", ["grow", "shrink", "other"])
def test_a_file_that_changes_while_it_is_sent_is_an_error_and_leaves_nothing(
    stub: Stub, client: KolejkaClient, tmp_path: Path, change: str
) -> None:
    path = tmp_path / "big"
    path.write_bytes(BIG)

    def meanwhile(handler: Handler) -> None:
        if change == "grow":
            with path.open("ab") as file:
                file.write(b"more")
        elif change == "shrink":
            os.truncate(path, 2 << 20)
        else:
            with path.open("r+b") as file:
                file.write(b"other bytes")
        handler.json(200, {"state": "wanted", "offset": 0})

    stub.fault("POST", "/blobs/.*/upload", meanwhile)
    with pytest.raises(InputError, match="changed while it was read") as caught:
        client.put_blob(path)
    assert caught.value.field == str(path)
    assert stub.blobs == {}


def test_a_file_with_another_hash_than_announced_is_not_sent(stub: Stub, client: KolejkaClient, tmp_path: Path) -> None:
    for data in (b"small", BIG):
        (tmp_path / "f").write_bytes(data)
        with pytest.raises(InputError, match="changed"):
            client.put_blob(tmp_path / "f", reference="0" * 64)
    assert stub.count("PUT", "/blobs/.*") == 0


def test_a_fifo_a_folder_and_a_missing_file_are_no_blobs(stub: Stub, client: KolejkaClient, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "missing", "."):
        with pytest.raises(InputError) as caught:
            client.put_blob(tmp_path / name)
        assert str(tmp_path) in str(caught.value)
    assert stub.asked == []


def test_a_hash_mismatch_at_the_server_is_told_with_its_file(stub: Stub, client: KolejkaClient, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "t", files=["a"])
    (folder / "a").write_bytes(b"A")
    words = {"error": {"code": "hash_mismatch", "message": "the bytes have another hash", "field": None}}
    stub.fault("PUT", "/blobs/.*", status(422, words))
    with pytest.raises(InputError, match=r"files\.a: the bytes have another hash") as caught:
        client.put_task(folder)
    assert caught.value.code == "hash_mismatch"
    assert stub.tasks == {}


def test_a_download_that_breaks_is_taken_up_where_it_broke(stub: Stub, client: KolejkaClient, tmp_path: Path) -> None:
    stub.blobs[sha(BIG)] = BIG
    stub.fault("GET", "/blobs/.*", cut_body(BIG, 2_000_000))
    assert client.get_blob(sha(BIG), tmp_path / "big") == len(BIG)
    assert (tmp_path / "big").read_bytes() == BIG
    assert stub.asked[-1].headers["Range"] == "bytes=1048576-", "whole chunks are kept"


def test_a_server_without_ranges_starts_the_download_over(stub: Stub, client: KolejkaClient, tmp_path: Path) -> None:
    stub.blobs[sha(BIG)] = BIG
    stub.fault("GET", "/blobs/.*", cut_body(BIG, 2_000_000))
    stub.fault("GET", "/blobs/.*", lambda handler: handler.send(200, BIG))
    client.get_blob(sha(BIG), tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == BIG


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (lambda h: h.send(200, b"other bytes"), "hash_mismatch"),
        (lambda h: h.send(200, BIG + b"more"), "hash_mismatch"),
        (lambda h: h.send(200, b""), "hash_mismatch"),
        (cut_body(BIG, 1000), "broken"),
    ],
)
def test_wrong_and_truncated_bytes_leave_no_file(
    stub: Stub, client: KolejkaClient, tmp_path: Path, act: Callable[[Handler], None], code: str
) -> None:
    client.transport.patience_s = 0.0
    stub.fault("GET", "/blobs/.*", act, times=100)
    with pytest.raises(Unavailable) as caught:
        client.get_blob(sha(BIG), tmp_path / "big", size=len(BIG))
    assert caught.value.code == code
    nothing_new(tmp_path)


def test_a_blob_that_is_not_there_is_not_found(client: KolejkaClient, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        client.get_blob("0" * 64, tmp_path / "x")
    assert not client.has_blob("0" * 64)
    nothing_new(tmp_path)


def test_a_blob_that_cannot_be_written_is_this_machines_fault(
    stub: Stub, client: KolejkaClient, tmp_path: Path
) -> None:
    stub.blobs[sha(BIG)] = BIG
    with pytest.raises(NodeError, match="cannot be written"):
        client.get_blob(sha(BIG), tmp_path / "no" / "folder")


def test_a_result_comes_with_names_bytes_and_modes(stub: Stub, client: KolejkaClient, tmp_path: Path) -> None:
    task = client.put_spec({"args": ["x"]})
    stub.finish(task["id"], {}, {"stdout.txt": b"out", "deep/er/tool": b"#!", "again": b"out", "żółw\udcff": b"z"})
    stub.results[task["id"]]["manifest"]["deep/er/tool"]["mode"] = "0750"
    stub.results[task["id"]]["manifest"]["again"]["mode"] = "0400"
    result = client.get_result(task["id"], tmp_path / "R")
    folder = tmp_path / "R"
    assert (folder / "stdout.txt").read_bytes() == (folder / "again").read_bytes() == b"out"
    assert (folder / "żółw\udcff").read_bytes() == b"z"
    modes = {name: stat.S_IMODE((folder / name).stat().st_mode) for name in result.files}
    assert modes == {"stdout.txt": 0o644, "deep/er/tool": 0o750, "again": 0o400, "żółw\udcff": 0o644}
    assert Result.load(folder) == result
    assert stub.count("GET", f"/blobs/{sha(b'out')}") == 1, "equal files travel once"
    nothing_new(tmp_path, "R")


def test_an_empty_folder_may_become_the_result_and_a_link_to_one_too(
    stub: Stub, client: KolejkaClient, tmp_path: Path
) -> None:
    task = client.put_spec({"args": ["x"]})
    stub.finish(task["id"], {}, {"a": b"A"})
    (tmp_path / "empty").mkdir()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    client.get_result(task["id"], tmp_path / "empty")
    client.get_result(task["id"], tmp_path / "link")
    assert (tmp_path / "empty" / "a").exists()
    assert (tmp_path / "real" / "a").exists()
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("place", ["full", "file", "no/such/R", ".", "dangling"])
def test_a_place_that_cannot_take_the_result_is_refused_before_anything_is_put(
    stub: Stub, client: KolejkaClient, *, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere/at/all")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path if place != "." else tmp_path / "cwd")
    stub.runs = lambda s, task_id: s.finish(task_id, {})
    with pytest.raises(InputError) as caught:
        client.execute(folder, place)
    assert caught.value.field == place
    assert stub.asked == []


@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/evil", "a/../../evil", "a//b", "./a", "", "a/", "..", "x\0y", "kolejka_result.json",
     "kolejka_result.json/x"],
)  # fmt: skip
def test_a_hostile_name_in_a_result_reaches_no_disk(
    stub: Stub, client: KolejkaClient, tmp_path: Path, name: str
) -> None:
    task = client.put_spec({"args": ["x"]})
    stub.finish(task["id"], {}, {"good": b"G", name: b"E"})
    (tmp_path / "in").mkdir()
    with pytest.raises(Unavailable):
        client.get_result(task["id"], tmp_path / "in" / "R")
    nothing_new(tmp_path / "in")
    nothing_new(tmp_path, "in")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: r["manifest"]["a"].update(mode="4755"),
        lambda r: r["manifest"]["a"].update(mode="0999"),
        lambda r: r["manifest"]["a"].update(sha256="../../etc/passwd"),
        lambda r: r["manifest"]["a"].update(size=-1),
        lambda r: r["manifest"]["a"].update(size=0),
        lambda r: r["manifest"].update({"a/b": r["manifest"]["a"]}) or r["files"].append("a/b"),
        lambda r: r.update(files=["../a"]),
        lambda r: r.update(id="another"),
        lambda r: r.update(outcome="fine"),
        lambda r: r.update(extra=1),
        lambda r: r.update(limits={"memory": "much"}),
    ],
)
def test_a_spoiled_result_is_refused_whole(
    stub: Stub, client: KolejkaClient, tmp_path: Path, spoil: Callable[[dict[str, Any]], object]
) -> None:
    task = client.put_spec({"args": ["x"]})
    stub.finish(task["id"], {}, {"a": b"A"})
    spoil(stub.results[task["id"]])
    with pytest.raises(Unavailable):  # the server's fault, not the caller's, not this machine's
        client.get_result(task["id"], tmp_path / "R")
    nothing_new(tmp_path)


def test_a_result_whose_files_are_gone_is_not_blamed_on_the_caller(
    stub: Stub, client: KolejkaClient, tmp_path: Path
) -> None:
    task = client.put_spec({"args": ["x"]})
    stub.finish(task["id"], {}, {"a": b"A"})
    stub.blobs.clear()
    with pytest.raises(Unavailable, match="lost a file"):
        client.get_result(task["id"], tmp_path / "R")
    nothing_new(tmp_path)


def test_a_folder_that_fills_up_while_the_result_comes_is_left_as_it_is(
    stub: Stub, client: KolejkaClient, tmp_path: Path
) -> None:
    task = client.put_spec({"args": ["x"]})
    stub.finish(task["id"], {}, {"a": b"A"})

    def meanwhile(handler: Handler) -> None:
        (tmp_path / "R").mkdir()
        (tmp_path / "R" / "mine").write_text("mine")
        handler.send(200, b"A")

    stub.fault("GET", "/blobs/.*", meanwhile)
    with pytest.raises(NodeError):
        client.get_result(task["id"], tmp_path / "R")
    assert [p.name for p in (tmp_path / "R").iterdir()] == ["mine"]
    nothing_new(tmp_path, "R")


def test_a_result_that_is_not_there_yet_is_a_conflict_with_the_cure(client: KolejkaClient, tmp_path: Path) -> None:
    task = client.put_spec({"args": ["x"]})
    with pytest.raises(Conflict, match="--wait"):
        client.get_result(task["id"], tmp_path / "R")
    nothing_new(tmp_path)


def test_waiting_ends_after_its_time(client: KolejkaClient) -> None:
    task = client.put_spec({"args": ["x"]})
    with pytest.raises(Unavailable, match="still waiting after") as caught:
        client.wait(task["id"], 0.05)
    assert caught.value.code == "timeout"


def test_waiting_wakes_as_soon_as_the_result_is_in(stub: Stub, client: KolejkaClient) -> None:
    task = client.put_spec({"args": ["x"]})

    def not_yet(handler: Handler) -> None:
        handler.json(202, {"state": "running"})
        stub.finish(task["id"], {})

    stub.fault("GET", "/tasks/.*/result", not_yet)
    assert client.wait(task["id"]).outcome is Outcome.OK
    assert stub.count("GET", "/tasks/.*/result") == 2


def test_waiting_survives_a_restart_of_the_server(stub: Stub, client: KolejkaClient) -> None:
    task = client.put_spec({"args": ["x"]})
    for act in (hang_up, status(503, {"error": {"code": "unavailable", "message": "starting"}}), status(502, b"")):
        stub.fault("GET", "/tasks/.*/result", act)
    stub.finish(task["id"], {"outcome": "failed", "result": 3})
    assert client.wait(task["id"]).result == 3


def test_many_are_waited_for_also_at_a_server_that_tells_of_one_at_a_time(stub: Stub, client: KolejkaClient) -> None:
    ids = [client.put_spec({"args": ["x"]})["id"] for _ in range(3)]
    stub.finish(ids[1], {"outcome": "failed", "result": 3})
    told = dict(client.wait_many([*ids, "nothing"], 0.05))
    assert list(told) == [*ids, "nothing"]
    assert [type(one) for one in told.values()] == [Unavailable, Result, Unavailable, NotFound]
    assert getattr(told[ids[0]], "code", "") == "timeout"


def told_by(stub: Stub, *rounds: dict[str, dict[str, Any]]) -> list[dict[str, list[str]]]:
    """Have the server tell this of the tasks it is asked for, round by round; what it was asked."""
    asked: list[dict[str, list[str]]] = []

    def tell(told: dict[str, dict[str, Any]]) -> Callable[[Handler], None]:
        def act(handler: Handler) -> None:
            asked.append(stub.asked[-1].query)
            ids = stub.asked[-1].query["tasks"][0].split(",")
            handler.json(200, {"results": [{"id": one, **told.get(one, {"state": "running"})} for one in ids]})

        return act

    for told in rounds:
        stub.fault("GET", "/tasks/results", tell(told))
    return asked


def test_many_are_asked_for_together_and_those_that_are_told_not_again(stub: Stub, client: KolejkaClient) -> None:
    task = client.put_spec({"args": ["x"]})["id"]  # its result is too large to be told with others
    stub.finish(task, {})
    done = {"state": "done", "result": {"result": 0, "outcome": "ok", "files": [], "manifest": {}}}
    gone = {"error": {"code": "not_found", "message": "there is no such task", "field": None}}
    asked = told_by(
        stub,
        {"a": done, "gone": gone, task: {"state": "done", "result": None}},
        {"spoiled": {"state": "done", "result": {"outcome": "splendid"}}},
        {"b": done},
    )
    told = dict(client.wait_many(["a", "b", "gone", "spoiled", task]))
    assert [one["tasks"] for one in asked] == [[f"a,b,gone,spoiled,{task}"], ["b,spoiled"], ["b"]]
    assert {type(told["a"]), type(told["b"]), type(told[task])} == {Result}
    assert isinstance(told["gone"], NotFound)
    assert getattr(told["spoiled"], "code", "") == "broken_result"


def test_an_answer_that_leaves_out_a_task_is_no_answer(stub: Stub, client: KolejkaClient) -> None:
    stub.fault("GET", "/tasks/results", lambda handler: handler.json(200, {"results": []}))
    with pytest.raises(InputError, match="its answer is not what was asked for"):
        list(client.wait_many(["a"]))


def test_progress_tells_why_a_task_waits_and_where_it_runs(
    stub: Stub, client: KolejkaClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kolejka.client.client.SHORT_POLL_S", 0.01)
    task = client.put_spec({"args": ["x"]})
    told: list[Progress] = []

    def listen(progress: Progress) -> None:
        told.append(progress)
        if progress.state == "waiting":
            stub.tasks[task["id"]] |= {"state": "running", "node": "n1"}
        else:
            stub.finish(task["id"], {})

    client.wait(task["id"], progress=listen)
    assert told == [
        Progress(task["id"], "waiting", why="no node is connected"),
        Progress(task["id"], "running", node="n1"),
    ]


def test_execute_puts_waits_and_brings(stub: Stub, client: KolejkaClient, folder: Path, tmp_path: Path) -> None:
    stub.runs = lambda s, task_id: s.finish(task_id, {}, {"stdout.txt": b"Linux\n"})
    assert client.execute(folder, tmp_path / "R").outcome is Outcome.OK
    assert (tmp_path / "R" / "stdout.txt").read_bytes() == b"Linux\n"


def test_putting_twice_for_want_of_an_answer_puts_once(stub: Stub, client: KolejkaClient) -> None:
    client.whoami()

    def hear_and_hang_up(handler: Handler) -> None:
        stub.keys[stub.asked[-1].headers["Idempotency-Key"]] = "x"
        hang_up(handler)

    stub.fault("POST", "/tasks", hear_and_hang_up)
    stub.tasks["x"] = {"id": "x"}
    assert client.put_spec({"args": ["x"]})["id"] == "x"


def test_a_local_path_without_its_folder_is_refused(stub: Stub, client: KolejkaClient) -> None:
    with pytest.raises(InputError, match="put_task") as caught:
        client.put_spec({"args": ["x"], "files": {"a": "a"}})
    assert caught.value.field == "files.a"
    assert stub.asked == []


def test_a_listing_goes_through_all_pages(stub: Stub, client: KolejkaClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kolejka.client.client.PAGE", 3)
    ids = [client.put_spec({"args": ["x"]})["id"] for _ in range(8)]
    assert [task["id"] for task in client.tasks()] == ids[::-1]
    assert [task["id"] for task in client.tasks(limit=4)] == ids[::-1][:4]
    list(client.tasks(state="waiting", labels={"a": "b", "c": "d"}, limit=1))
    assert stub.asked[-1].query == {"state": ["waiting"], "label": ["a=b", "c=d"], "limit": ["1"]}


def test_a_hostile_listing_ends(stub: Stub, client: KolejkaClient) -> None:
    stub.fault("GET", "/tasks", status(200, {"tasks": [{"id": "x"}], "next": "same"}), times=100)
    assert len(list(client.tasks())) == 2
    stub.fault("GET", "/tasks", status(200, {"tasks": [], "next": "other"}), times=100)
    stub.faults.pop(0)
    assert list(client.tasks()) == []


def test_a_task_is_found_by_id_by_start_and_as_last(stub: Stub, client: KolejkaClient) -> None:
    ids = [client.put_spec({"args": ["x"]})["id"] for _ in range(12)]
    assert client.find(ids[3]) == ids[3]
    assert client.find("01k90007") == ids[7]
    assert client.find("last") == ids[-1]
    with pytest.raises(InputError, match="12 tasks start so"):
        client.find("01k9")
    with pytest.raises(NotFound):
        client.find("zzz")
    with pytest.raises(InputError):
        client.find("..")


def test_last_without_any_task_says_so(client: KolejkaClient) -> None:
    with pytest.raises(NotFound, match="no task yet"):
        client.find("last")


def test_a_foreign_id_cannot_reach_another_route(stub: Stub, client: KolejkaClient) -> None:
    with pytest.raises(NotFound):
        client.task("../whoami?x=y#z")
    assert re.fullmatch(r"/tasks/\.\.%2Fwhoami%3Fx%3Dy%23z", stub.asked[-1].path)


def test_the_token_does_not_print(client: KolejkaClient) -> None:
    assert TOKEN not in repr(client) + repr(client.settings) + repr(client.transport)


def test_one_client_serves_many_threads(stub: Stub, client: KolejkaClient) -> None:
    errors: list[Exception] = []

    def ask() -> None:
        try:
            for _ in range(5):
                assert client.whoami()["user"] == "ann"
        except (KolejkaError, AssertionError) as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []

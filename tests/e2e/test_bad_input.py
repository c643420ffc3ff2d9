"""Bad input through the real command lines: one clear line, a non-zero exit, and nothing half-made anywhere."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.neighbours.cluster import Cluster, free_port
from tests.support import wait_until

pytestmark = pytest.mark.needs("root", "cgroups", "bwrap")

WRONG_SPECS: list[tuple[str, dict[str, Any] | str, list[str]]] = [
    ("unknown field", {"args": ["true"], "stdot": "x"}, ["stdot", "stdout"]),
    ("no args", {"stdout": "x"}, ["args", "required"]),
    ("bad unit", {"args": ["true"], "limits": {"memory": "64MM"}}, ["limits.memory", "'64MM'", "64M"]),
    ("negative limit", {"args": ["true"], "limits": {"time": "-3s"}}, ["limits.time", "'-3s'"]),
    ("negative number", {"args": ["true"], "limits": {"pids": -1}}, ["limits.pids", "-1"]),
    ("absurd limit", {"args": ["true"], "limits": {"pids": 10**12}}, ["limits.pids", "4194304"]),
    ("unknown limit", {"args": ["true"], "limits": {"memroy": "1G"}}, ["limits.memroy", "memory"]),
    ("name with two dots", {"args": ["true"], "files": {"../x": {"content": ""}}}, ["files", "'..'"]),
    ("absolute name", {"args": ["true"], "files": {"/etc/x": {"content": ""}}}, ["files", "absolute"]),
    ("path with two dots", {"args": ["true"], "files": {"x": "../../etc/passwd"}}, ["files.x", "'..'"]),
    ("missing local file", {"args": ["true"], "files": ["absent.txt"]}, ["files.absent.txt", "no file"]),
    ("output outside", {"args": ["true"], "stdout": "../x"}, ["stdout", "'..'"]),
    ("not JSON", "{", ["kolejka_task.json", "not JSON"]),
    ("not an object", "[]", ["kolejka_task.json", "object"]),
]
PROGRAMS = ["kolejka-client", "kolejka-worker"]


def check_refused(run: subprocess.CompletedProcess[str], words: list[str], status: int = 2) -> None:
    """One line that holds the words, and the exit status."""
    assert run.returncode == status, run.stdout + run.stderr
    lines = [line for line in run.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, run.stderr
    assert not [word for word in words if word not in lines[0]], lines[0]
    assert "Traceback" not in run.stdout + run.stderr
    assert run.stdout == ""


def write_task(folder: Path, spec: dict[str, Any] | str) -> Path:
    """A task's folder."""
    folder.mkdir()
    (folder / "kolejka_task.json").write_text(spec if isinstance(spec, str) else json.dumps(spec), encoding="utf-8")
    return folder


def held(cluster: Cluster) -> tuple[set[str], set[str]]:
    """Ids of all tasks at the server, and all files it keeps beside its database."""
    tasks = {str(task["id"]) for task in cluster.admin.tasks()}
    root = cluster.folder / "server"
    files = {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and not path.name.endswith(("-wal", "-shm", "-journal"))
    }
    return tasks, files


@pytest.fixture
def unchanged(cluster: Cluster) -> Iterator[None]:
    """After the test the server holds the tasks and files that it held before, and the node runs nothing."""
    before = held(cluster)
    yield
    wait_until(lambda: held(cluster) == before, 10, "the server holds what it held before")
    cluster.wait_empty()


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(("spec", "words"), [pytest.param(*case[1:], id=case[0]) for case in WRONG_SPECS])
def test_a_wrong_task_is_refused_by_field(
    program: str, spec: dict[str, Any] | str, words: list[str], cluster: Cluster, tmp_path: Path
) -> None:
    task = write_task(tmp_path / "task", spec)
    run = cluster.run(program, "execute", task, tmp_path / "result")
    check_refused(run, [f"{program}: ", *words])
    assert sorted(os.listdir(tmp_path)) == ["task"]
    assert os.listdir(task) == ["kolejka_task.json"]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_wrong_option_is_refused_by_its_name(program: str, cluster: Cluster, tmp_path: Path) -> None:
    task = write_task(tmp_path / "task", {"args": ["true"]})
    check_refused(cluster.run(program, "execute", task, tmp_path / "result", "--memory", "1MM"), ["memory", "'1MM'"])
    check_refused(
        cluster.run(program, "execute", tmp_path / "absent", tmp_path / "result"), ["absent", "no such folder"]
    )
    assert sorted(os.listdir(tmp_path)) == ["task"]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_result_folder_that_holds_something_is_not_touched(program: str, cluster: Cluster, tmp_path: Path) -> None:
    task = write_task(tmp_path / "task", {"args": ["true"]})
    (tmp_path / "result").mkdir()
    (tmp_path / "result/precious").write_text("x")
    check_refused(cluster.run(program, "execute", task, tmp_path / "result"), [str(tmp_path / "result")])
    assert os.listdir(tmp_path / "result") == ["precious"]


@pytest.mark.usefixtures("unchanged")
def test_a_device_among_the_files_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    for number, program in enumerate(PROGRAMS):
        task = write_task(tmp_path / f"task{number}", {"args": ["true"], "files": ["pipe"]})
        os.mkfifo(task / "pipe")
        check_refused(cluster.run(program, "execute", task, tmp_path / "result"), ["files.pipe", "not a regular file"])
    assert not (tmp_path / "result").exists()


def test_an_unknown_image_ends_as_error_with_its_name(cluster: Cluster, tmp_path: Path) -> None:
    task = write_task(tmp_path / "task", {"image": "no/such:image", "args": ["true"]})
    for program in PROGRAMS:
        run = cluster.run(program, "execute", task, tmp_path / program)
        assert run.returncode != 0
        assert "no/such:image" in run.stderr
        assert "Traceback" not in run.stdout + run.stderr
    cluster.wait_empty()


def test_an_unreachable_server_is_named(cluster: Cluster, tmp_path: Path) -> None:
    task = write_task(tmp_path / "task", {"args": ["true"]})
    url = f"http://127.0.0.1:{free_port()}"
    env = {"KOLEJKA_CLIENT_SERVER": url, "KOLEJKA_CLIENT_TOKEN": "klj_x", "KOLEJKA_CLIENT_PATIENCE": "0s"}
    for words in (["execute", task, tmp_path / "result"], ["task", "list"]):
        run = cluster.run("kolejka-client", *words, env=env)
        assert run.returncode == 125
        assert url.removeprefix("http://") in run.stderr
        assert "Traceback" not in run.stderr
    assert not (tmp_path / "result").exists()


@pytest.mark.usefixtures("unchanged")
def test_a_wrong_token_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    task = write_task(tmp_path / "task", {"args": ["true"], "files": {"x": {"content": "never uploaded"}}})
    wrong = {"KOLEJKA_CLIENT_TOKEN": "klj_" + "x" * 43}
    check_refused(cluster.run("kolejka-client", "execute", task, tmp_path / "result", env=wrong), ["token"])
    assert not (tmp_path / "result").exists()


@pytest.fixture(scope="module")
def stranger(session_cluster: Cluster) -> dict[str, str]:
    """The environment of a user who owns nothing."""
    session_cluster.admin.create_user("stranger", "client")
    return {"KOLEJKA_CLIENT_TOKEN": session_cluster.admin.create_token("stranger")["token"]}


def test_a_foreign_tasks_key_opens_nothing(cluster: Cluster, stranger: dict[str, str], tmp_path: Path) -> None:
    task = write_task(tmp_path / "task", {"args": ["echo", "secret"], "stdout": "out"})
    assert cluster.run("kolejka-client", "execute", task, tmp_path / "mine").returncode == 0
    key = next(iter(cluster.admin.tasks()))["id"]
    for words in (
        ["task", "show", key], ["task", "cancel", key], ["task", "delete", key], ["task", "why", key],
        ["result", "get", key, tmp_path / "theirs"],
    ):  # fmt: skip
        run = cluster.run("kolejka-client", *words, env=stranger)
        check_refused(run, [key])
        assert "secret" not in run.stderr
    assert not (tmp_path / "theirs").exists()
    assert cluster.run("kolejka-client", "task", "list", "--json", env=stranger).stdout.count(key) == 0
    chosen = write_task(tmp_path / "chosen", {"id": key, "args": ["true"]})
    run = cluster.run("kolejka-client", "task", "put", chosen, env=stranger)
    assert run.returncode == 2
    assert "id" in run.stderr
    assert cluster.admin.task(key)["owner"] == "admin"


def put_blob(cluster: Cluster, reference: str, body: bytes, length: int) -> int | None:
    """Upload bytes by hand, telling a length; the answer's status, or nothing when we leave before the end."""
    connection = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=30)
    token = (cluster.folder / "server/admin.token").read_text(encoding="ascii").strip()
    connection.putrequest("PUT", f"/api/v1/blobs/{reference}")
    connection.putheader("Authorization", f"Bearer {token}")
    connection.putheader("Content-Length", str(length))
    connection.endheaders()
    connection.send(body)
    status = None if len(body) < length else connection.getresponse().status
    connection.close()
    return status


@pytest.mark.usefixtures("unchanged")
def test_a_truncated_upload_leaves_no_blob(cluster: Cluster) -> None:
    whole = os.urandom(1 << 20)
    reference = hashlib.sha256(whole).hexdigest()
    assert put_blob(cluster, reference, whole[: 1 << 19], len(whole)) is None
    wait_until(lambda: not cluster.admin.has_blob(reference))


@pytest.mark.usefixtures("unchanged")
def test_bytes_of_another_hash_leave_no_blob(cluster: Cluster) -> None:
    reference = hashlib.sha256(b"what was promised").hexdigest()
    assert put_blob(cluster, reference, b"something else", 14) == 422
    assert not cluster.admin.has_blob(reference)


@pytest.mark.usefixtures("unchanged")
def test_a_blob_that_nobody_uploaded_is_named(cluster: Cluster, tmp_path: Path) -> None:
    reference = "0" * 64
    task = write_task(tmp_path / "task", {"args": ["true"], "files": {"x": {"reference": reference}}})
    check_refused(cluster.run("kolejka-client", "execute", task, tmp_path / "result"), ["files.x"])
    check_refused(cluster.run("kolejka-client", "blob", "get", reference, tmp_path / "file"), [reference])
    assert sorted(os.listdir(tmp_path)) == ["task"]


def test_knowing_a_hash_gives_nobody_the_bytes(cluster: Cluster, stranger: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(1000))
    put = cluster.run("kolejka-client", "blob", "put", tmp_path / "file")
    reference = hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()
    assert reference in put.stdout
    check_refused(cluster.run("kolejka-client", "blob", "get", reference, tmp_path / "x", env=stranger), [reference])
    assert not (tmp_path / "x").exists()
    task = write_task(tmp_path / "task", {"args": ["cat", "x"], "files": {"x": {"reference": reference}}})
    check_refused(cluster.run("kolejka-client", "task", "put", task, env=stranger), ["files.x"])

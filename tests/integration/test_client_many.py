"""The command line with a real server: many tasks, arrays, retries, events, nodes, audit, scopes, callback keys."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kolejka.client import KolejkaClient
from kolejka.client.client import BULK
from kolejka.common.errors import InputError
from kolejka.common.settings import ClientSettings
from kolejka.common.task import Task
from tests.integration.server_process import Server
from tests.support import wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), "--rate", "0").start()
    yield server
    assert server.stop() == 0
    assert "Traceback" not in server.log()


@pytest.fixture(scope="module")
def ala(server: Server) -> Iterator[KolejkaClient]:
    token = server.user("ala", "client").token
    with KolejkaClient(ClientSettings(server=server.url, token=token)) as client:
        yield client


@pytest.fixture
def kolejka(server: Server, ala: KolejkaClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command as ala, or as the admin."""
    monkeypatch.setenv("KOLEJKA_CLIENT_SERVER", server.url)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))

    def run(*words: str | Path, admin: bool = False, status: int = 0) -> str:
        token = server.admin.token if admin else ala.transport._token
        monkeypatch.setenv("KOLEJKA_CLIENT_TOKEN", str(token))
        ended = subprocess.run(
            [sys.executable, "-m", "kolejka.client", *map(str, words)], capture_output=True, text=True, check=False
        )
        assert ended.returncode == status, ended.stderr
        assert "Traceback" not in ended.stderr
        return ended.stdout if status == 0 else ended.stderr

    return run


def make(folder: Path, **words: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "kolejka_task.json").write_text(json.dumps({"args": ["true"], "requires": ["nobody"], **words}))
    return folder


def test_folders_are_put_in_one_call_and_a_bad_one_is_named(kolejka: Any, ala: KolejkaClient, tmp_path: Path) -> None:
    folders = [make(tmp_path / f"t{number}", name=f"t{number}") for number in range(5)]
    ids = kolejka("task", "put", *folders).split()
    assert [ala.task(task_id)["name"] for task_id in ids] == [folder.name for folder in folders]
    before = [task["id"] for task in ala.tasks()]
    bad = make(tmp_path / "bad", queue="nowhere")
    said = kolejka("task", "put", *folders, bad, status=2)
    assert f"{bad}: queue" in said
    assert said.count("\n") == 1
    assert [task["id"] for task in ala.tasks()] == before, "none of them was put"


def test_more_than_one_call_takes_is_put_in_pieces(ala: KolejkaClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kolejka.client.client.BULK", 3)
    asked: list[int] = []
    real = ala.put_specs
    monkeypatch.setattr(ala, "put_specs", lambda tasks, **words: asked.append(len(tasks)) or real(tasks, **words))
    spec = Task.parse({"args": ["true"], "requires": ["nobody"]})
    tasks = list(ala.put_many((f"n{number}", spec) for number in range(7)))
    assert asked == [3, 3, 1]
    assert len({task["id"] for task in tasks}) == 7
    assert BULK == 10_000
    with pytest.raises(InputError) as caught:
        list(ala.put_many([("good", spec), ("the bad one", spec.replace(queue="nowhere"))]))
    assert caught.value.field == "the bad one: queue"


def test_an_array_is_put_from_one_folder(kolejka: Any, ala: KolejkaClient, tmp_path: Path) -> None:
    folder = make(
        tmp_path / "task", args=["./simulate", "{seed}"], name="seed {seed}", files={"data": {"path": "data"}}
    )
    (folder / "data").write_text("shared by all")
    (tmp_path / "seeds.csv").write_text("seed\n" + "".join(f"{number}\n" for number in range(20)))
    ids = kolejka("task", "put", "--array", tmp_path / "seeds.csv", folder).split()
    assert [ala.task(task_id)["spec"]["args"][1] for task_id in ids] == [str(number) for number in range(20)]
    assert "one folder" in kolejka("task", "put", "--array", tmp_path / "seeds.csv", folder, folder, status=2)


def test_show_is_a_page_for_people_and_retry_makes_a_new_task(kolejka: Any, ala: KolejkaClient, tmp_path: Path) -> None:
    task_id = kolejka("task", "put", make(tmp_path / "one", args=["echo", "a b"], name="one")).strip()
    assert "only what is done" in kolejka("task", "retry", task_id, status=2)
    kolejka("task", "cancel", task_id)
    page = kolejka("task", "show", task_id)
    assert "echo 'a b'" in page
    assert "memory=1" in page
    assert "{" not in page, "no JSON"
    assert json.loads(kolejka("task", "show", "--json", task_id)) == ala.task(task_id)
    new = kolejka("task", "retry", "-q", task_id).strip()
    assert ala.task(new)["labels"] == {"retry_of": task_id}
    assert kolejka("task", "list", "-q", "--label", f"retry_of={task_id}").strip() == new


def test_events_are_followed_through_a_restart_of_the_server(server: Server, ala: KolejkaClient) -> None:
    seen = []
    events = ala.events(after=0)
    ala.transport.pause = lambda seconds: None  # type: ignore[method-assign]
    first = ala.put_spec({"args": ["true"], "requires": ["nobody"]})["id"]
    for event in events:
        seen.append(event)
        if event.get("task") == first:
            break
    port = server.url.rpartition(":")[2]
    server.stop()
    server.options = (*server.options, "--port", port)
    server.start()
    second = ala.put_spec({"args": ["true"], "requires": ["nobody"]})["id"]
    for event in events:
        seen.append(event)
        if event.get("task") == second:
            break
    numbers = [event["id"] for event in seen if event["id"] is not None]
    assert numbers == sorted(set(numbers)), "none twice, none out of order"
    events.close()  # type: ignore[attr-defined]


def test_nodes_audit_tokens_and_keys_have_their_commands(server: Server, kolejka: Any) -> None:
    smith = server.user("smith", "node")
    smith.beat(node="anvil")
    assert "draining" in kolejka("node", "drain", "anvil", admin=True)
    assert smith.beat(node="anvil")["asked"] == "drain"
    assert "active" in kolejka("node", "resume", "anvil", admin=True)
    assert "may not do this" in kolejka("node", "drain", "anvil", status=2)
    table = kolejka("audit", "--limit", "2", admin=True)
    assert [line.split()[4] for line in table.splitlines()[1:]] == ["node.resume", "node.drain"]
    token = kolejka("token", "create", "--user", "ala", "--queue", "default", "--read-only", admin=True).strip()
    assert token.startswith("klj_")
    assert "default read-only" in kolejka("token", "list", admin=True)
    assert kolejka("callback", "secret").startswith("kcs_")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_execute_that_is_told_to_end_cancels_its_task(
    kolejka: Any, ala: KolejkaClient, tmp_path: Path, number: int, status: int
) -> None:
    folder = make(tmp_path / "long", name=f"ends by {status}")
    kolejka("whoami")
    running = subprocess.Popen(
        [sys.executable, "-m", "kolejka.client", "execute", str(folder), str(tmp_path / "result")],
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until(lambda: list(ala.tasks(name=f"ends by {status}", limit=1)))
    running.send_signal(number)
    assert running.wait(30) == status
    assert running.stderr is not None
    assert "is cancelled" in running.stderr.read()
    (task,) = ala.tasks(name=f"ends by {status}")
    assert (task["state"], task["outcome"]) == ("done", "cancelled")


def test_a_queue_from_its_making_to_its_end(kolejka: Any, tmp_path: Path) -> None:
    made = json.loads(kolejka(
        "queue", "create", "exam", "--member", "ala", "--ceiling", "time=1min", "--running", "8", "--retention", "30d",
        "--json", admin=True,
    ))  # fmt: skip
    assert made == json.loads(kolejka("queue", "show", "exam", "--json"))
    assert (made["state"], made["members"], made["ceilings"], made["running"]) == ("open", ["ala"], {"time": 60.0}, 8)
    assert "exam" in kolejka("queue", "list", "-q").split()
    folder = make(tmp_path / "t", queue="exam", limits={"time": "1h"})
    (task_id,) = kolejka("task", "put", folder, "-q").split()
    assert json.loads(kolejka("task", "show", task_id, "--json"))["spec"]["limits"]["time"] == 60.0
    kolejka("queue", "pause", "exam", admin=True)
    assert "paused" in kolejka("task", "why", task_id)
    kolejka("queue", "drain", "exam", admin=True)
    assert "exam" in kolejka("task", "put", folder, status=2)
    kolejka("queue", "resume", "exam", admin=True)
    changed = json.loads(
        kolejka("queue", "change", "exam", "--member", "none", "--running", "none", "--json", admin=True)
    )
    assert (changed["members"], changed["running"], changed["retention_s"]) == ([], None, 30 * 86400.0)
    for patterns, images in ((("ubuntu:*", "none"), ["ubuntu:*", "none"]), (("none",), ["none"]), (("any",), [])):
        words = [word for pattern in patterns for word in ("--image", pattern)]
        changed = json.loads(kolejka("queue", "change", "exam", *words, "--json", admin=True))
        assert changed["images"] == images
    assert "exam" in kolejka("queue", "delete", "exam", admin=True, status=2), "a task waits in it"
    kolejka("task", "cancel", task_id)
    kolejka("queue", "delete", "exam", admin=True)
    assert "exam" in kolejka("queue", "show", "exam", status=2)


def test_only_an_admin_makes_queues(kolejka: Any) -> None:
    said = kolejka("queue", "create", "mine", status=2)
    assert said.count("\n") == 1
    assert "mine" not in kolejka("queue", "list", "-q").split()


def test_a_blob_is_listed_with_its_uses_and_forgotten(kolejka: Any, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"blob of a command")
    reference = kolejka("blob", "put", tmp_path / "data").split()[0]
    make(tmp_path / "t", files={"data": {"reference": reference}})
    kolejka("task", "put", tmp_path / "t")
    (listed,) = [one for one in json.loads(kolejka("blob", "list", "--json")) if one["sha256"] == reference]
    assert (listed["size"], listed["references"]) == (17, 1)
    kolejka("blob", "delete", reference)
    assert reference not in kolejka("blob", "list", "-q").split()
    assert reference in kolejka("blob", "delete", reference, status=2)

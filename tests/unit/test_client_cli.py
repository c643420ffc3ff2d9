"""The commands: what they print, how they end, and that a mistake is one line and leaves nothing."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from kolejka.cli.exits import exit_status
from kolejka.client.cli.main import command, run
from kolejka.client.cli.output import Output
from kolejka.client.cli.progress import summary
from kolejka.client.client import KolejkaClient
from kolejka.client.credentials import credentials_file, load_credentials
from kolejka.common.result import Result
from tests.support import wait_until
from tests.unit.client_stub import TOKEN, Stub, serving, status


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setenv("KOLEJKA_SERVER_DATA", str(home / "server"))
    monkeypatch.setenv("KOLEJKA_CLIENT_TOKEN", TOKEN)
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    with serving(Stub()) as served:
        monkeypatch.setenv("KOLEJKA_CLIENT_SERVER", served.url)
        yield served


class Ended:
    """How a command ended."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def kolejka(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def call(*words: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["kolejka-client", *words])
        with pytest.raises(SystemExit) as left:
            run()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Ended(int(left.value.code or 0), said.out, said.err)

    return call


def make_task(folder: Path, **words: Any) -> str:
    folder.mkdir(parents=True)
    (folder / "kolejka_task.json").write_text(json.dumps({"args": ["uname"], "stdout": "stdout.txt", **words}))
    return str(folder)


def one_line(text: str) -> str:
    assert text.count("\n") == 1, text
    return text


def start(*words: str, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "kolejka.client", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, **{"stdin": subprocess.DEVNULL, **more},
    )  # fmt: skip


ENDS = [
    ({"outcome": "ok", "result": 0}, 0, ""),
    ({"outcome": "failed", "result": 7}, 7, "failed with exit code 7"),
    ({"outcome": "signaled", "result": 139}, 139, "ended by signal 11"),
    ({"outcome": "limit", "limit": "time", "result": 137}, 124, "ended by its limit of time"),
    ({"outcome": "limit", "limit": "memory", "result": 137}, 137, "ended by its limit of memory"),
    ({"outcome": "limit", "limit": "output", "result": None}, 153, "ended by its limit of output"),
    ({"outcome": "cancelled", "result": None}, 130, "cancelled"),
    ({"outcome": "error", "result": None, "message": "no such image"}, 125, "error: no such image"),
]


@pytest.mark.parametrize(("result", "code", "words"), ENDS)
def test_execute_ends_as_the_task_did(
    stub: Stub, kolejka: Any, home: Path, *, result: dict[str, Any], code: int, words: str
) -> None:
    stub.runs = lambda s, task_id: s.finish(task_id, result, {"stdout.txt": b"Linux\n"})
    ended = kolejka("execute", make_task(home / "t"), "R")
    assert ended.status == code
    assert ended.out == ""
    if words:
        assert words in one_line(ended.err)
    else:
        assert ended.err == ""
    assert (home / "R" / "stdout.txt").read_text() == "Linux\n"
    task_id = next(iter(stub.tasks))
    assert kolejka("result", "get", "--wait", "-q", task_id, "R2").status == code
    assert kolejka("result", "get", "-q", task_id, "R3").status == 0, "without --wait only the bringing counts"


def test_execute_lowers_limits_and_prints_json(stub: Stub, kolejka: Any, home: Path) -> None:
    stub.runs = lambda s, task_id: s.finish(task_id, {})
    folder = make_task(home / "t", limits={"memory": "1G", "time": "1s"})
    ended = kolejka("execute", "--memory", "64M", "--time", "1h", "--no-network", "--json", folder, "R")
    assert stub.tasks["01k90000zzzzzzzzzzzzzzzzzz"]["spec"]["limits"] == {
        "memory": 64 << 20, "time": 1.0, "network": False,
    }  # fmt: skip
    assert Result.parse(json.loads(ended.out)).outcome == "ok"


def test_the_summary_names_outcome_time_cpu_and_memory() -> None:
    result = Result.parse(
        {"outcome": "ok", "result": 0, "files": [],
         "stats": {"time": 1.5, "cpu": {"usage": 0.25}, "memory": {"max_usage": 1234567}}}
    )  # fmt: skip
    assert summary(result) == "ok, time 1.500 s, CPU 0.250 s, memory 1.2 MiB"
    assert exit_status(result) == 0


BAD = [
    (["execute", "missing", "R"], 2, ["missing", "there is no such folder"]),
    (["execute", "t", "full"], 2, ["full", "not empty"]),
    (["execute", "t", "no/R"], 2, ["no/R", "make that first"]),
    (["execute", "unknown-field", "R"], 2, ["kolejka_task.json: comand", "no such field"]),
    (["execute", "bad-unit", "R"], 2, ["limits.memory", "1MM"]),
    (["execute", "bad-name", "R"], 2, ["files", ".."]),
    (["execute", "no-file", "R"], 2, ["files.absent", "there is no file"]),
    (["execute", "--time", "soon", "t", "R"], 2, ["time", "soon"]),
    (["execute", "--server", "localhost:1", "t", "R"], 2, ["server", "http://HOST:PORT"]),
    (["execute", "--server", "http://127.0.0.1:1", "t", "R"], 125, ["http://127.0.0.1:1", "kolejka up"]),
    (["execute", "--token-file", "nowhere", "t", "R"], 2, ["nowhere", "no such file"]),
    (["execute", "--ca", "nowhere", "--server", "https://127.0.0.1:1", "t", "R"], 2, ["ca: nowhere"]),
    (["execute", "--config", "nowhere", "t", "R"], 2, ["nowhere"]),
    (["task", "put", "t", "bad-unit"], 2, ["bad-unit"]),
    (["task", "show", "nope"], 2, ["nope", "kolejka task list"]),
    (["task", "cancel", "nope"], 2, ["nope"]),
    (["task", "list", "--label", "novalue"], 2, ["--label", "KEY=VALUE"]),
    (["result", "get", "nope", "R"], 2, ["nope"]),
    (["result", "get", "last", "R"], 2, ["no task yet"]),
    (["result", "get", "--timeout", "soon", "x", "R"], 2, ["--timeout", "soon"]),
    (["blob", "put", "t/kolejka_task.json", "missing"], 2, ["missing", "no such file"]),
    (["blob", "put", "t"], 2, ["regular file"]),
    (["blob", "get", "xyz", "F"], 2, ["xyz", "64 hexadecimal"]),
    (["blob", "get", "0" * 64, "F"], 2, ["no such blob"]),
    (["blob", "get", "0" * 64, "t"], 2, ["folder"]),
    (["blob", "get", "0" * 64, "no/F"], 2, ["no/F"]),
    (["token", "create", "--user", "x", "--expires", "never"], 2, ["--expires", "never"]),
]


@pytest.mark.parametrize(
    ("words", "code", "said"), BAD, ids=lambda value: "_".join(value) if isinstance(value, list) else ""
)
def test_a_mistake_is_one_line_with_its_place_and_leaves_nothing(
    stub: Stub,
    kolejka: Any,
    home: Path,
    *,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    said: list[str],
) -> None:
    make_task(home / "t")
    make_task(home / "unknown-field", comand=["x"])
    make_task(home / "bad-unit", limits={"memory": "1MM"})
    make_task(home / "bad-name", files={"../x": {"content": ""}})
    make_task(home / "no-file", files=["absent"])
    (home / "full").mkdir()
    (home / "full" / "x").touch()
    if "--token-file" in words:
        monkeypatch.delenv("KOLEJKA_CLIENT_TOKEN")
    before = sorted(home.rglob("*"))
    stub.runs = lambda s, task_id: s.finish(task_id, {})
    ended = kolejka(*words)
    assert (ended.status, ended.out) == (code, "")
    line = one_line(ended.err)
    assert line.startswith("kolejka-client: ")
    assert [word for word in said if word not in line] == []
    assert sorted(home.rglob("*")) == before
    assert stub.tasks == {}
    assert stub.blobs == {}


def test_a_wrong_token_is_one_line_with_the_cure(stub: Stub, kolejka: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KOLEJKA_CLIENT_TOKEN", "klj_wrong")
    ended = kolejka("task", "list")
    assert ended.status == 2
    assert "kolejka login" in one_line(ended.err)
    assert "klj_wrong" not in ended.err


def test_put_prints_ids_and_checks_all_before_the_first(stub: Stub, kolejka: Any, home: Path) -> None:
    folders = [make_task(home / name) for name in ("a", "b")]
    ended = kolejka("task", "put", *folders)
    assert ended.out.split() == list(stub.tasks)
    assert len(stub.tasks) == 2


def test_listings_are_tables_keys_or_json(stub: Stub, kolejka: Any, home: Path) -> None:
    kolejka("task", "put", make_task(home / "a", name="first"), make_task(home / "b", name="evil\u001b[2Jname\n"))
    ids = list(stub.tasks)[::-1]
    table = kolejka("task", "list").out
    assert table.splitlines()[0].split() == ["ID", "STATE", "EXIT", "NAME", "QUEUE", "OWNER", "PUT", "NODE"]
    assert [line.split()[0] for line in table.splitlines()[1:]] == ids
    assert "\x1b" not in table
    assert "2026-01-01 12:00:00" in table
    assert kolejka("task", "list", "-q").out.split() == ids
    assert [task["id"] for task in json.loads(kolejka("task", "list", "--json").out)] == ids
    assert kolejka("task", "list", "--limit", "1", "-q").out.split() == ids[:1]


def test_every_listing_speaks_json(stub: Stub, kolejka: Any) -> None:
    stub.nodes = [{"name": "n1", "state": "active", "capacity": {"memory": 1 << 30, "cpus": 2}, "running": ["x"]}]
    stub.fault("GET", "/tokens", status(200, {"tokens": [{"id": "t1", "user": "ann"}]}), times=9)
    stub.fault("GET", "/users", status(200, [{"name": "ann", "role": "admin"}]), times=9)
    for words, key, value in (
        (("node", "list"), "name", "n1"), (("queue", "list"), "name", "default"),
        (("token", "list"), "id", "t1"), (("user", "list"), "name", "ann"),
    ):  # fmt: skip
        assert json.loads(kolejka(*words, "--json").out)[0][key] == value
        assert kolejka(*words, "--quiet").out == f"{value}\n"
        assert value in kolejka(*words).out.splitlines()[1]
    assert "memory=1.0 GiB cpus=2" in kolejka("node", "list").out


def test_machines_that_wait_to_be_let_in_stand_among_the_nodes_with_what_to_do(stub: Stub, kolejka: Any) -> None:
    stub.nodes = [{"name": "n1", "state": "active"}]
    asking = [
        {"name": name, "fingerprint": shown, "state": state, "asked_at": None, "seen_at": "2026-01-01T12:00:00.000Z"}
        for name, shown, state in (
            ("lathe", "AAAA", "waiting"), ("mill", "BBBB", "waiting"), ("mill", "CCCC", "waiting"),
            ("saw", "DDDD", "refused"), ("drill", "EEEE", "approved"),
        )
    ]  # fmt: skip
    stub.fault("GET", "/enrolments", status(200, asking), times=9)
    lines = kolejka("node", "list").out.splitlines()
    assert "let it in: kolejka node approve lathe" in lines[2]
    assert "AAAA" in lines[2]
    assert lines[3].endswith("kolejka node approve mill --fingerprint BBBB")
    assert lines[4].endswith("kolejka node approve mill --fingerprint CCCC")
    assert "approved" in lines[5]
    assert len(lines) == 6
    shown = json.loads(kolejka("node", "list", "--json").out)
    assert [(node["name"], node["state"]) for node in shown[:2]] == [("n1", "active"), ("lathe", "unapproved")]
    assert shown[1]["fingerprint"] == "AAAA"
    stub.faults.clear()
    stub.fault("GET", "/enrolments", status(403, {"error": {"code": "forbidden", "message": "no", "field": None}}))
    assert kolejka("node", "list", "-q").out == "n1\n", "a user who only puts tasks sees the nodes"


def test_machines_are_let_in_and_refused(stub: Stub, kolejka: Any) -> None:
    one = {"name": "lathe", "fingerprint": "AAAA", "state": "approved", "seen_at": None}
    stub.fault("POST", "/enrolments/lathe/approve", status(200, one), times=2)
    stub.fault("POST", "/enrolments/lathe/refuse", status(200, [{**one, "state": "refused"}]))
    assert "AAAA" in kolejka("node", "approve", "lathe").out
    assert json.loads(stub.asked[-1].body) == {}
    assert json.loads(kolejka("node", "approve", "lathe", "--fingerprint", "AAAA", "--json").out)[0] == one
    assert json.loads(stub.asked[-1].body) == {"fingerprint": "AAAA"}
    assert kolejka("node", "refuse", "lathe", "-q").out == "AAAA\n"


def test_a_node_is_shown_rebooted_and_asked_for_its_log(stub: Stub, kolejka: Any) -> None:
    node = {
        "name": "n1", "state": "quarantined", "image": {"id": "kolejka-node", "version": "1.4"}, "asked": None,
        "reason": "a limit did not hold", "errors": [{"at": "2026-01-01T12:00:00Z", "message": "no\x1b luck"}],
        "proof": {"passed": False, "at": "2026-01-01T12:00:00Z", "checks": [
            {"limit": "memory", "runtime": "sandbox", "held": False, "message": "it went on"},
            {"limit": "time", "runtime": "sandbox", "held": True, "message": ""},
        ]},
    }  # fmt: skip
    stub.fault("GET", "/nodes/n1", status(200, node), times=2)
    shown = kolejka("node", "show", "n1").out
    assert "FAILED" in shown
    assert "BROKEN     sandbox memory  it went on" in shown
    assert "sandbox time" not in shown, "what held is not listed beside what did not"
    assert "no  luck" in shown
    assert json.loads(kolejka("node", "show", "n1", "--json").out) == node
    stub.fault("POST", "/nodes/n1/reboot", status(200, {**node, "asked": "reboot when idle"}), times=2)
    assert "reboot when idle" in kolejka("node", "reboot", "n1", "--when-idle").out
    assert json.loads(stub.asked[-1].body) == {"when_idle": True}
    kolejka("node", "reboot", "n1")
    assert json.loads(stub.asked[-1].body) == {"when_idle": False}
    stub.fault("POST", "/nodes/n1/log", status(202, {}))  # it needs a moment
    stub.fault("POST", "/nodes/n1/log", status(200, {"node": "n1", "log": "one\ntwo\x1b[2J"}), times=2)
    assert kolejka("node", "log", "n1", "-n", "2").out == "one\ntwo [2J\n"
    assert json.loads(stub.asked[-1].body)["lines"] == 2
    assert json.loads(kolejka("node", "log", "n1", "--json").out)["lines"] == ["one", "two\x1b[2J"]
    assert kolejka("node", "log", "n1", "-n", "0").status == 2


def test_a_table_on_a_terminal_is_drawn_without_foreign_markup(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    Output().listing([{"name": "[red]x[/red]\x1b[2J"}], [("NAME", lambda item: item["name"])], key="name")
    out = capsys.readouterr().out
    assert "[red]x[/red]" in out
    assert "\x1b[2J" not in out


def test_show_why_cancel_and_delete(stub: Stub, kolejka: Any, home: Path) -> None:
    kolejka("task", "put", make_task(home / "a", name="first"))
    (task_id,) = stub.tasks
    assert "first" in kolejka("task", "show", "last").out
    assert json.loads(kolejka("task", "show", task_id[:8], "--json").out)["spec"]["args"] == ["uname"]
    assert kolejka("task", "why", task_id).out == "no node is connected\n"
    refused = kolejka("task", "delete", task_id)
    assert refused.status == 2
    assert "cancel it first" in one_line(refused.err)
    assert "cancelled" in kolejka("task", "cancel", task_id).out
    assert kolejka("task", "delete", task_id).status == 0
    assert stub.tasks == {}


def test_what_is_wrong_with_one_stops_no_other(stub: Stub, kolejka: Any, home: Path) -> None:
    ids = [kolejka("task", "put", make_task(home / name)).out.strip() for name in "abc"]
    kolejka("task", "cancel", ids[1])
    ended = kolejka("task", "cancel", "-q", *ids)
    assert (ended.status, ended.out.split()) == (2, [ids[0], ids[2]])
    assert ids[1] in one_line(ended.err)
    again = kolejka("task", "cancel", *ids)
    assert (again.status, again.out, again.err.count("\n")) == (2, "", 3)
    stub.fault("DELETE", f"/tasks/{ids[1]}", status(403, {"error": {"code": "forbidden", "message": "no"}}))
    barred = kolejka("task", "delete", "--json", *ids)
    assert (barred.status, json.loads(barred.out)) == (2, [{"id": ids[0], "deleted": True}]), "what was done is told"
    assert list(stub.tasks) == ids[1:]


def test_every_command_speaks_json(stub: Stub, kolejka: Any, home: Path) -> None:
    def walk(node: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
        if not isinstance(node, click.Group):
            yield path, node
        for name, child in getattr(node, "commands", {}).items():
            yield from walk(child, f"{path} {name}".strip())

    dumb = [path for path, node in walk(command, "") if "as_json" not in {p.name for p in node.params}]
    assert dumb == ["completion"], "a script is for a shell"
    (home / "f").write_bytes(b"bytes")
    ((stored,), sha) = json.loads(kolejka("blob", "put", "--json", "f").out), kolejka("blob", "put", "f").out.strip()
    assert stored == {"file": "f", "sha256": sha}
    assert json.loads(kolejka("blob", "get", "--json", sha, "copy").out) == {"file": "copy", "sha256": sha}
    stub.fault("DELETE", "/tokens/2", status(204, b""))
    assert json.loads(kolejka("token", "revoke", "--json", "2").out) == [{"id": "2", "revoked": True}]
    stub.fault("DELETE", "/queues/q", status(204, b""))
    assert json.loads(kolejka("queue", "delete", "--json", "q").out) == [{"name": "q", "deleted": True}]
    stub.fault("DELETE", "/nodes/lab-01", status(204, b""))
    assert json.loads(kolejka("node", "delete", "--json", "lab-01").out) == [{"name": "lab-01", "deleted": True}]
    stub.fault("POST", "/callbacks/secret", status(201, {"secret": "kcs_x"}))
    assert json.loads(kolejka("callback", "secret", "--json").out) == {"secret": "kcs_x"}
    stub.fault("DELETE", f"/blobs/{sha}", status(204, b""))
    assert json.loads(kolejka("blob", "delete", "--json", sha).out) == [{"sha256": sha, "deleted": True}]
    token_file = home / "token"
    token_file.write_text(TOKEN)
    kept = json.loads(kolejka("login", "--json", "--token-file", str(token_file)).out)
    assert (kept["user"], kept["kept"], TOKEN in json.dumps(kept)) == ("ann", True, False)
    assert json.loads(kolejka("login", "--json", "--forget").out)["kept"] is False


def test_blobs_go_in_and_come_out(stub: Stub, kolejka: Any, home: Path) -> None:
    (home / "f").write_bytes(b"bytes")
    sha = kolejka("blob", "put", "f").out.strip()
    assert kolejka("blob", "get", sha, "copy").status == 0
    assert (home / "copy").read_bytes() == b"bytes"
    refused = kolejka("blob", "get", sha, "f")
    assert "--force" in one_line(refused.err)
    assert kolejka("blob", "get", "--force", sha, "f").status == 0


def test_standard_input_is_a_blob_too(stub: Stub) -> None:
    process = start("blob", "put", "-", stdin=subprocess.PIPE)
    out, err = process.communicate("from a pipe")
    assert (process.returncode, err) == (0, "")
    assert stub.blobs[out.strip()] == b"from a pipe"


def test_a_result_that_is_not_there_in_time_is_a_failure_of_waiting(stub: Stub, kolejka: Any, home: Path) -> None:
    kolejka("task", "put", make_task(home / "a"))
    ended = kolejka("result", "get", "--timeout", "50ms", "last", "R")
    assert ended.status == 125
    assert "still waiting" in one_line(ended.err)
    refused = kolejka("result", "get", "last", "R")
    assert refused.status == 2
    assert "--wait" in one_line(refused.err)
    assert not (home / "R").exists()


def test_login_keeps_a_token_that_works_and_only_that(
    stub: Stub, kolejka: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KOLEJKA_CLIENT_TOKEN")
    wrong = start("login", stdin=subprocess.PIPE)
    _, err = wrong.communicate("klj_wrong\n")
    assert wrong.returncode == 2
    assert "does not accept" in one_line(err)
    assert not credentials_file().exists()
    right = start("login", stdin=subprocess.PIPE)
    out, err = right.communicate(TOKEN + "\n")
    assert (right.returncode, err) == (0, "")
    assert TOKEN not in out
    assert load_credentials() == {stub.url: TOKEN}
    assert json.loads(kolejka("whoami", "--json").out)["user"] == "ann"
    kolejka("login", "--forget")
    assert load_credentials() == {}


def test_login_without_a_token_says_where_tokens_come_from(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KOLEJKA_CLIENT_TOKEN")
    process = start("login")
    _, err = process.communicate()
    assert process.returncode == 2
    assert "kolejka token create" in one_line(err)


def test_tokens_and_users_are_made_and_revoked(stub: Stub, kolejka: Any) -> None:
    stub.fault("POST", "/tokens", status(201, {"id": "t2", "token": "klj_new"}))
    stub.fault("DELETE", "/tokens/t2", status(204, b""))
    stub.fault("POST", "/users", status(201, {"name": "bob", "role": "node"}))
    assert kolejka("token", "create", "--user", "bob", "--role", "node", "--expires", "1h").out == "klj_new\n"
    assert json.loads(stub.asked[-1].body) == {"user": "bob", "role": "node", "expires_s": 3600.0}
    assert kolejka("token", "revoke", "t2").status == 0
    assert "bob" in kolejka("user", "create", "bob", "--role", "node").out


def test_doctor_names_what_is_missing_and_the_cure(stub: Stub, kolejka: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    well = kolejka("doctor", "--json")
    assert well.status == 0
    assert {check["check"]: check["ok"] for check in json.loads(well.out)} == {
        "packages": True, "server": True, "token": True,
    }  # fmt: skip
    monkeypatch.setenv("KOLEJKA_CLIENT_TOKEN", "klj_wrong")
    ill = kolejka("doctor")
    assert ill.status == 1
    assert f"cure: kolejka login --server {stub.url}" in ill.out
    monkeypatch.setenv("KOLEJKA_CLIENT_SERVER", "http://127.0.0.1:1")
    assert json.loads(kolejka("doctor", "--json").out)[-1]["cure"] == "kolejka up"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_there_for_every_shell(kolejka: Any, shell: str) -> None:
    out = kolejka("completion", shell).out
    assert "_KOLEJKA_CLIENT_COMPLETE" in out
    environment = {**os.environ, "_KOLEJKA_CLIENT_COMPLETE": "bash_complete", "COMP_WORDS": "kolejka-client ta",
                   "COMP_CWORD": "1"}  # fmt: skip
    asked = subprocess.run(
        [Path(sys.executable).parent / "kolejka-client"], env=environment, capture_output=True, text=True, check=True
    )
    assert asked.stdout == "plain,task\n"


def test_every_command_explains_itself() -> None:
    def walk(node: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
        yield path, node
        for name, child in getattr(node, "commands", {}).items():
            yield from walk(child, f"{path} {name}")

    found = dict(walk(command, "kolejka-client"))
    assert {"kolejka-client execute", "kolejka-client task why", "kolejka-client token revoke"} <= set(found)
    for path, node in found.items():
        assert node.help, path
        assert "\\b" not in node.get_help(click.Context(node)), f"{path} keeps its examples' lines"
        for parameter in node.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{path} {parameter.name}"


def test_an_interrupt_without_a_terminal_cancels_the_task_and_ends_with_130(stub: Stub, home: Path) -> None:
    process = start("execute", make_task(home / "t"), "R")
    wait_until(lambda: stub.count("GET", "/tasks/.*/result"))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "is cancelled" in one_line(err)
    assert stub.count("POST", "/tasks/.*/cancel") == 1
    assert not (home / "R").exists()
    assert [p.name for p in home.iterdir()] == ["t"]


def is_asleep(pid: int) -> bool:
    """Whether the first thread of a process waits for something."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def test_many_tasks_are_put_under_a_bar_where_a_person_watches_and_ids_alone_go_on(stub: Stub, home: Path) -> None:
    folders = [make_task(home / name) for name in "abc"]
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "kolejka.client", "task", "put", *folders]
    watched = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, check=True, timeout=60)
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while got := os.read(controller, 4096):
            shown += got
    os.close(controller)
    assert b"putting tasks" in shown
    assert b"3/3" in shown
    piped = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert piped.stderr == b""
    assert [len(ended.stdout.split()) for ended in (watched, piped)] == [3, 3]
    assert b"putting" not in watched.stdout


@pytest.mark.parametrize(("answer", "cancels"), [(b"n\n", 0), (b"\n", 1), (b"\x03", 1)])
def test_an_interrupt_at_a_terminal_asks_once(stub: Stub, home: Path, answer: bytes, cancels: int) -> None:
    shown, keys = b"", pty.openpty()
    controller, terminal = keys
    seen = threading.Event()

    def read() -> None:
        nonlocal shown
        while True:
            try:
                got = os.read(controller, 4096)
            except OSError:  # the other end is closed
                return
            shown += got
            if b"[Y/n]" in shown:
                seen.set()

    code = "import os, fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(os.sys.executable, "
    code += "[os.sys.executable, '-P', '-m', 'kolejka.client', 'execute', 't', 'R'])"
    make_task(home / "t")
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        wait_until(lambda: b"waits: no node is connected" in shown, about="what a person is shown")
        os.write(controller, b"\x03")
        assert seen.wait(30), shown
        wait_until(lambda: is_asleep(process.pid), about="it listens for the answer")  # a signal just before would wait
        os.write(controller, answer)
        assert process.wait(30) == 130
        reader.join(30)
        assert stub.count("POST", "/tasks/.*/cancel") == cancels
        assert (b"is cancelled" in shown) == bool(cancels)
        assert (b"result get --wait" in shown) == (not cancels)
    finally:
        process.kill()
        process.wait()
        os.close(controller)


def test_a_reader_that_leaves_early_is_no_error(stub: Stub, home: Path) -> None:
    for _ in range(3):
        stub.tasks[str(len(stub.tasks))] = {"id": "x" * 40000}
    process = start("task", "list", "-q")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 1


def test_execute_that_is_interrupted_while_it_puts_leaves_no_task_behind(
    stub: Stub, kolejka: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = KolejkaClient.put_spec, []

    def interrupted(*args: Any, **words: Any) -> Any:
        calls.append(words)
        answer = real(*args, **words)
        if len(calls) == 1:
            raise KeyboardInterrupt  # the server has it, and nobody here knows its id
        return answer

    monkeypatch.setattr(KolejkaClient, "put_spec", interrupted)
    ended = kolejka("execute", make_task(home / "t"), str(home / "result"))
    assert ended.status == 130
    assert [task["outcome"] for task in stub.tasks.values()] == ["cancelled"]
    assert calls[0] == calls[1], "under one key"

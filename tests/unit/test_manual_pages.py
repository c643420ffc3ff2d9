"""Manual pages say what the programs take, and nothing in them is read as a request of troff's."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import click
import pytest

from kolejka.cli.options import SettingOption
from kolejka.common.settings import Section
from tools import manual

SCRIPTS = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return manual.pages()


def plain(page: str) -> str:
    """The page as a reader sees it, more or less."""
    for sequence, letter in (("\\-", "-"), ("\\(aq", "'"), ("\\(ha", "^"), ("\\(ti", "~"), ("\\`", "`"), ("\\e", "\\")):
        page = page.replace(sequence, letter)
    return re.sub(r"\\f[BR]", "", page)


def test_every_installed_program_has_one(pages: dict[str, str]) -> None:
    assert set(pages) == {f"{name}.1" for name in SCRIPTS} | {"kolejka.toml.5"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_names_every_command_and_option(pages: dict[str, str], name: str) -> None:
    text = plain(pages[f"{name}.1"])
    for context in manual.contexts(manual.programs()[name], name):
        assert f"{manual.usage(context)}" in text
        part = text.partition(f".SS {manual.usage(context)}\n")[2].partition(".SS ")[0] or text
        for parameter in context.command.params:
            if isinstance(parameter, click.Option):
                assert re.search(rf"(?m)[^\w-]{parameter.opts[-1]}\b", part), f"{context.command_path} {parameter.opts}"
            if isinstance(parameter, SettingOption):
                assert parameter.setting.variable in text


def test_the_page_of_settings_names_every_setting(pages: dict[str, str]) -> None:
    text = plain(pages["kolejka.toml.5"])
    for name, section in Section.SECTIONS.items():
        part = text.partition(f".SH [{name}]\n")[2].partition("\n.SH ")[0]
        for one in section.declared():
            assert f"\n{one.name} (" in part
            assert one.help.split()[0] in part


def test_only_the_requests_that_we_mean_are_there(pages: dict[str, str]) -> None:
    meant = {".TH", ".SH", ".SS", ".PP", ".TP", ".nf", ".fi", ".nh", ".ad"}
    for page in pages.values():
        assert {line.split()[0] for line in page.splitlines() if line.startswith((".", "'"))} <= meant


def test_a_help_text_is_text() -> None:
    text = "\\fB.x\nmore\n\n.so /etc/passwd\n\n\b\n'br kept\n  lines `-o`"
    assert list(manual.prose(text)) == [
        "\\efB.x more", ".PP", "\\&.so /etc/passwd", ".PP", ".nf", "\\(aqbr kept", "  lines \\fB\\-o\\fR", ".fi",
    ]  # fmt: skip


def test_the_same_declarations_give_the_same_page_on_every_machine(
    pages: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "some-other-host")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/somebody")
    manual.write(tmp_path, 86400)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        name: page.replace("@DATE@", "1970-01-02", 1) for name, page in pages.items()
    }

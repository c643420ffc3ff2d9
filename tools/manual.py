"""Manual pages, from the declarations that the programs read: ``python -m tools.manual FOLDER`` writes them there.

A page for each program, with all of its commands, and one for ``kolejka.toml``. ``make deb`` puts them into packages.
Options for settings stand once, under SETTINGS; each command names those that it takes. What the declarations say
becomes troff here and nowhere else, so that no help text can be read as a request.
"""

from __future__ import annotations

import inspect
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

import click

from kolejka import __version__
from kolejka.cli.options import SettingOption
from kolejka.common.settings import Section, Setting
from tools import reference

PLAIN: Final = {"kolejka-client", "kolejka-worker"}
"""programs with commands that end as the task did"""
_DATE: Final = "@DATE@"
ABOUT_FILES: Final = (
    ("/etc/kolejka/kolejka.toml", "settings of this machine, see kolejka.toml(5)"),
    ("~/.config/kolejka/kolejka.toml", "settings of one user, which go before those"),
)


def escaped(text: str) -> str:
    """The text as troff prints it, whatever stands in it."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\`").replace("^", "\\(ha")
    text = text.replace("~", "\\(ti")
    return "\n".join(f"\\&{line}" if line.startswith(".") else line for line in text.split("\n"))


def marked(text: str) -> str:
    """Prose, in which what stands between backticks is bold."""
    parts = re.split(r"`+([^`]+)`+", text)
    return "".join(f"\\fB{escaped(part)}\\fR" if odd % 2 else escaped(part) for odd, part in enumerate(parts))


def prose(text: str) -> Iterator[str]:
    """Paragraphs of a help text; one that begins with a backspace keeps its lines."""
    for number, paragraph in enumerate(re.split(r"\n\s*\n", inspect.cleandoc(text).strip("\n"))):
        lines = paragraph.split("\n")
        if number:
            yield ".PP"
        if lines[0].strip() == "\b":
            yield from (".nf", *(marked(line) for line in lines[1:]), ".fi")
        else:
            yield marked(" ".join(paragraph.split()))


def items(entries: Iterable[tuple[str, str]]) -> Iterator[str]:
    """A list of words and what they mean."""
    for word, meaning in entries:
        yield from (".TP", f"\\fB{escaped(word)}\\fR", marked(meaning))


def head(name: str, section: int, summary: str) -> Iterator[str]:
    """The first lines of a page."""
    yield from (
        f'.TH "{escaped(name.upper())}" "{section}" "{_DATE}" "kolejka {escaped(__version__)}" "Kolejka"',
        ".nh",
        ".ad l",
        ".SH NAME",
        f"{escaped(name)} \\- {marked(summary)}",
    )


def programs() -> dict[str, click.Command]:
    """Name → command line of every program that is installed."""
    found = {}
    for point in distribution("kolejka").entry_points.select(group="console_scripts"):
        module = sys.modules[point.load().__module__]
        found[point.name] = module.command
    return dict(sorted(found.items()))


def contexts(command: click.Command, name: str, above: click.Context | None = None) -> Iterator[click.Context]:
    """The command and everything below it, in the order in which help lists them."""
    context = click.Context(command, info_name=name, parent=above)
    yield context
    if isinstance(command, click.Group):
        for word in command.list_commands(context):
            below = command.get_command(context, word)
            if below is not None and not below.hidden:
                yield from contexts(below, word, context)


def options(context: click.Context) -> tuple[list[tuple[str, str]], list[SettingOption]]:
    """A command's own options with their meanings, and those for settings."""
    own, settings = [], []
    for parameter in context.command.get_params(context):
        if isinstance(parameter, SettingOption):
            settings.append(parameter)
        elif isinstance(parameter, click.Option) and "--help" not in parameter.opts:
            record = parameter.get_help_record(context)
            own += [record] if record is not None else []  # none: it is hidden
    return own, settings


def usage(context: click.Context) -> str:
    """The words of a command, as its help gives them."""
    return " ".join([context.command_path, *context.command.collect_usage_pieces(context)])


def described(one: Setting) -> str:
    """What a setting means, where else it can be set, and what it is otherwise."""
    choices = f": {', '.join(one.choices)}" if one.choices else ""
    return f"{one.help}{choices} [{one.variable}; default: {reference.default_of(one).replace('`', '')}]"


def summary_of(command: click.Command) -> str:
    """What a program does, in words that follow its name."""
    text = " ".join(inspect.cleandoc(command.help or "").split("\n\n")[0].split()).rstrip(".")
    text = text.removeprefix("Kolejka: ")
    return text[:1].lower() + text[1:]


def program_page(name: str, command: click.Command, others: Sequence[str]) -> str:
    """The page of a program."""
    lines = list(head(name, 1, summary_of(command)))
    every = list(contexts(command, name))
    seen: dict[str, SettingOption] = {}

    def both(context: click.Context) -> Iterator[str]:
        own, settings = options(context)
        yield from items(own)
        for option in settings:
            seen.setdefault(f"{option.opts[0]} {option.setting.variable}", option)
        if settings:
            words = ", ".join(f"`{option.opts[0]}`" for option in settings)
            yield from (".PP", f"Settings: {marked(words)}.")

    lines += [".SH SYNOPSIS", f"\\fB{escaped(usage(every[0]))}\\fR", ".SH DESCRIPTION", *prose(command.help or "")]
    own = list(both(every[0]))
    lines += [
        ".SH OPTIONS",
        *items([("-h, --help", "Show a command's help."), ("--version", "Show the version.")]),
        *own,
    ]
    if every[1:]:
        lines.append(".SH COMMANDS")
    for context in every[1:]:
        lines += [f".SS {escaped(usage(context))}", *prose(context.command.help or ""), *both(context)]
    if seen:
        lines += [".SH SETTINGS", *items((_word(one, every[0]), described(one.setting)) for one in seen.values())]
    if name in PLAIN:
        lines += [".SH EXIT STATUS", "A command that ran a task or brought its result ends as the task did:"]
        rows, rest = reference.exit_statuses()
        lines += [*items(rows), ".PP", *prose(rest)]
    lines += [".SH FILES", *items(ABOUT_FILES), ".SH SEE ALSO"]
    see = [f"\\fB{escaped(other)}\\fR(1)" for other in others if other != name]
    lines.append(", ".join([*see, "\\fBkolejka.toml\\fR(5)"]))
    return "\n".join(lines) + "\n"


def _word(option: SettingOption, context: click.Context) -> str:
    record = option.get_help_record(context)
    assert record is not None
    return record[0]


def settings_page(others: Sequence[str]) -> str:
    """The page of ``kolejka.toml``."""
    lines = [*head("kolejka.toml", 5, "settings of Kolejka's programs"), ".SH DESCRIPTION"]
    lines += prose(reference.SETTINGS_READ)
    for name, section in Section.SECTIONS.items():
        lines += [f".SH [{escaped(name)}]", *prose(section.__doc__ or "")]
        lines += items((f"{one.name} ({reference.KINDS[one.kind]})", described(one)) for one in section.declared())
    lines += [".SH NOTES", *prose(reference.SETTINGS_WRITTEN.replace("**", ""))]
    lines += [".SH FILES", *items(ABOUT_FILES), ".SH SEE ALSO"]
    lines.append(", ".join(f"\\fB{escaped(other)}\\fR(1)" for other in others))
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """File name → content of every page."""
    every = programs()
    found = {f"{name}.1": program_page(name, command, list(every)) for name, command in every.items()}
    found["kolejka.toml.5"] = settings_page(list(every))
    return found


def write(folder: Path, when: float) -> None:
    """Write every page into a folder, as of a time."""
    folder.mkdir(parents=True, exist_ok=True)
    date = datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d")
    for name, text in pages().items():
        (folder / name).write_text(text.replace(_DATE, date, 1), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]), time.time())

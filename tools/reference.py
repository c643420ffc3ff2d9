"""Write ``docs/reference`` from the declarations: what stands there is what the code reads.

``make docs`` writes the pages, a test compares them. Prose that no declaration holds (how a format is used, why)
belongs into the hand-written pages of ``docs``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kolejka.cli import exits
from kolejka.common import result, stats, task
from kolejka.common.limits import LIMITS, Share, Unit
from kolejka.common.schema import Field
from kolejka.common.settings import Section, Setting

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"

_NOTE = "<!-- Written by `make docs` from the declarations in {source}; change those, not this page. -->"
_UNITS = {
    Unit.SIZE: "size", Unit.TIME: "time", Unit.COUNT: "whole number", Unit.FLAG: "`true` or `false`",
}  # fmt: skip
_SHARES = {
    Share.SPLIT: "divided between the tasks that run side by side",
    Share.EACH: "each task may have all of it",
    Share.IMAGE: "shared by tasks of one image",
}
_TYPES = {
    "array": "list", "object": "object", "string": "text", "integer": "whole number", "number": "number",
    "boolean": "`true` or `false`", "null": "`null`",
}  # fmt: skip
KINDS = {
    "text": "text", "path": "path", "words": "words", "limits": "limits", "size": "size", "time": "time",
    "count": "whole number", "flag": "yes or no", "uid": "user id",
}  # fmt: skip
SETTINGS_READ = """
    Read in this order, later ones win: `/etc/kolejka/kolejka.toml`, `~/.config/kolejka/kolejka.toml` (or
    below `$XDG_CONFIG_HOME`), the file named by `--config`, environment variables, command-line options. A
    section here is a table of the file (`[server]`), a setting a key in it. An unknown key is an error with
    file and line, a misspelt variable one that says which was meant.
"""
SETTINGS_WRITTEN = """
    **Words** are a list, or in a variable separated by commas or blanks. **Limits** are a table (`defaults
    = {memory = "1G"}`), or in a variable `memory=1G,pids=64`. A command that reads two sections with a setting of
    the same name puts the section before the option of the second (`--worker-data`).
"""


def page(title: str, source: str, *parts: str) -> str:
    """A page with its title, a note on where it comes from, and its parts."""
    return "\n\n".join([_NOTE.format(source=f"`{source}`"), f"# {title}", *parts]) + "\n"


def prose(text: str) -> str:
    """A paragraph, in lines of the usual length whatever the declarations put into it."""
    return textwrap.fill(" ".join(text.split()), 118, break_long_words=False, break_on_hyphens=False)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a bar inside a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def limits_page() -> str:
    """Every limit: unit, bounds, how nodes share it."""
    rows = [
        [f"`{limit.name}`", limit.help, _UNITS[limit.unit], _bounds(limit.name), _SHARES[limit.share]]
        for limit in LIMITS.values()
    ]
    return page(
        "Limits",
        "kolejka/common/limits.py",
        prose("""
            What a task may use. A task sets them in `limits`, `kolejka-worker execute` by options of the same
            names (`--memory 64M`, `--cpu-time 10s`, `--network`), a server and a node by their settings. Where
            several set one, the smallest holds.
        """),
        table(["limit", "what it bounds", "written as", "bounds", "on a node"], rows),
        prose(f"""
            **Sizes** are bytes, or a number with `K`, `M`, `G`, `T` or `P`, all binary: `64M`, `64MB` and
            `64MiB` are {LIMITS["memory"].parse("64M")} bytes. **Times** are seconds, or a number with `ms`,
            `s`, `min`, `h` or `d`; of the older one-letter forms `M` is minutes and `m` is milliseconds. A
            result gives plain numbers: bytes and seconds.
        """),
        prose(f"""
            With outcome `limit`, a result names which limit ended the task: {_listed(result.LIMIT_VERDICTS)}.
            The others end nothing: a call of the program fails (no further process, no network), or they decide
            where it can run.
        """),
    )


def _bounds(name: str) -> str:
    limit = LIMITS[name]
    if limit.unit is Unit.FLAG:
        return ""
    most = limit.maximum if limit.maximum != float("inf") else float(1 << 60)
    return f"{limit.show(limit.minimum)} … {limit.show(most)}"


def settings_page() -> str:
    """Every setting of every program: key, variable, option, default."""
    parts = [prose(SETTINGS_READ)]
    for name, section in Section.SECTIONS.items():
        rows = [
            [
                f"`{s.name}`", s.help + (f": {_listed(s.choices)}" if s.choices else ""), KINDS[s.kind], default_of(s),
                f"`{s.variable}`", "none: it is a secret" if s.secret else f"`{s.option}`",
            ]
            for s in section.declared()
        ]  # fmt: skip
        head = ["setting", "meaning", "written as", "default", "variable", "option"]
        parts += [f"## [{name}]", (section.__doc__ or "").strip(), table(head, rows)]
    parts.append(prose(f"{SETTINGS_WRITTEN} Sizes and times are written as in the [reference of limits](limits.md)."))
    return page("Settings", "kolejka/common/settings.py", *parts)


_MACHINE_DEPENDENT = {
    ("server", "data"): "`/var/lib/kolejka/server`; below `~/.local/share` for others than root",
    ("worker", "data"): "`/var/lib/kolejka/worker`; below `~/.local/share` for others than root",
    ("foreman", "data"): "`/var/lib/kolejka/foreman`; below `~/.local/share` for others than root",
    ("foreman", "name"): "the host's name",
}


def default_of(s: Setting) -> str:
    """The default, the same on every machine."""
    if (s.section, s.name) in _MACHINE_DEPENDENT:
        return _MACHINE_DEPENDENT[s.section, s.name]
    words = s.shown_default.split(",") if s.kind in {"limits", "words"} else [s.shown_default]
    return _listed(word for word in words if word) or "none"


def _listed(words: Iterable[object]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def fields_table(fields: Iterable[Field]) -> str:
    """The fields of a format: name, type, meaning."""
    rows = []
    for f in fields:
        notes = ["**required**"] if f.required else []
        notes += [f"default `{json.dumps(f.default)}`"] if f.default is not None else []
        rows.append([f"`{f.name}`", _type(f.schema), f.help + (f" ({', '.join(notes)})" if notes else "")])
    return table(["field", "type", "meaning"], rows)


def _type(schema: Any) -> str:
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(inner) for inner in schema["anyOf"]))
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return " or ".join(_TYPES[kind] for kind in kinds)


def task_page() -> str:
    """Every field of ``kolejka_task.json``."""
    return page(
        "The task: kolejka_task.json",
        "kolejka/common/task.py",
        prose("""
            A task is a folder with this file and the local files that it names. An unknown field is an error.
            Names of files are relative and hold no `..`. The same as a JSON Schema:
            [task.schema.json](task.schema.json).
        """),
        fields_table(task.FIELDS),
        "The limits are listed in the [reference of limits](limits.md). Only `args` is required.",
    )


def result_page() -> str:
    """Every field of ``kolejka_result.json``, and every figure of its ``stats``."""
    return page(
        "The result: kolejka_result.json",
        "kolejka/common/result.py, kolejka/common/stats.py",
        prose("""
            A result is a folder with this file and the files that the task left. Figures are plain numbers:
            bytes and seconds. The same as a JSON Schema: [result.schema.json](result.schema.json).
        """),
        fields_table(result.FIELDS),
        "## stats",
        table(["figures", "meaning"], _figures()),
        "A figure that the node's kernel cannot give is absent.",
    )


def _figures() -> list[list[str]]:
    rows = [["`time`", "Wall-clock time, in seconds."]]
    for group in dataclasses.fields(stats.Stats):
        figures = group.metadata.get("figures")
        if figures is not None:
            names = [f"{group.name}.{f.name}" for f in dataclasses.fields(figures)]
            rows.append([_listed(names), (figures.__doc__ or "").strip().replace("``", "`")])
        each = group.metadata.get("each")
        if each is not None:
            names = [f"{group.name}.<name>.{f.name}" for f in dataclasses.fields(each)]
            rows.append([_listed(names), " ".join((each.__doc__ or "").replace("``", "`").split())])
    return rows


def exit_statuses() -> tuple[list[tuple[str, str]], str]:
    """The table in the module that decides them, and what stands below it."""
    lines = (exits.__doc__ or "").strip().replace("``", "`").splitlines()
    marks = [number for number, line in enumerate(lines) if line.startswith("===")]
    column = lines[marks[0]].rindex(" ") + 1
    rows = [(line[:column].strip(), line[column:].strip()) for line in lines[marks[1] + 1 : marks[2]]]
    return rows, " ".join(" ".join(lines[marks[2] + 1 :]).split())


def exit_status_page() -> str:
    """What a command ends with."""
    rows, others = exit_statuses()
    return page(
        "Exit statuses",
        "kolejka/cli/exits.py",
        "`kolejka-client execute`, `kolejka-client result get --wait` and `kolejka-worker execute` end as the task\n"
        "did (`result get` without `--wait` ends with 0 when it brought the result):",
        table(["the task", "exit status"], rows),
        prose(others),
    )


def pages() -> dict[str, str]:
    """File name → content of everything in ``docs/reference``."""
    return {
        "limits.md": limits_page(),
        "settings.md": settings_page(),
        "task.md": task_page(),
        "result.md": result_page(),
        "exit-status.md": exit_status_page(),
        "task.schema.json": json.dumps(task.task_schema(), indent=2) + "\n",
        "result.schema.json": json.dumps(result.result_schema(), indent=2) + "\n",
    }


def main() -> None:
    """Write every page, and remove those that no declaration has any more."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    wanted = pages()
    for path in FOLDER.iterdir():
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        sys.stdout.write(f"{(FOLDER / name).relative_to(FOLDER.parent.parent)}\n")


if __name__ == "__main__":
    main()

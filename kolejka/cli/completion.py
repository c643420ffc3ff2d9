"""``completion``: what makes a shell complete the commands of a program.

Shells ask a program by variables (click's way): ``_KOLEJKA_CLIENT_COMPLETE=bash_complete``, the words so far, and which
of them is being written. ``kolejka`` itself knows a few of its commands only, and hands the question on to the program
that the words mean, put as that program would be asked.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Final

import click
from click.shell_completion import get_completion_class, split_arg_string

from kolejka.cli.programs import PROGRAMS

SHELLS: Final = ("bash", "zsh", "fish")
_FIRST: Final = re.compile(r"\s*\S+")
_FIRST_TWO: Final = re.compile(r"\s*\S+\s+\S+")


def variable(program: str) -> str:
    """The variable by which a shell asks this program."""
    return f"_{program.replace('-', '_').upper()}_COMPLETE"


def completion_command(program: str) -> click.Command:
    """The command ``completion`` of a program."""

    @click.command("completion")
    @click.argument("shell", type=click.Choice(SHELLS))
    @click.pass_context
    def completion(context: click.Context, shell: str) -> None:
        kind = get_completion_class(shell)
        assert kind is not None  # the choices are click's own
        click.echo(kind(context.find_root().command, {}, program, variable(program)).source())

    completion.help = f"""Print a script that makes your shell complete these commands.

    \b
    bash:  {program} completion bash > ~/.local/share/bash-completion/completions/{program}
    zsh:   {program} completion zsh > ~/.zfunc/_{program}    (a folder in fpath)
    fish:  {program} completion fish > ~/.config/fish/completions/{program}.fish
    """
    return completion


def words_before(shell: str, environment: Mapping[str, str]) -> list[str]:
    """The words between the program's name and the one that is being written."""
    words, current = split_arg_string(environment.get("COMP_WORDS", "")), environment.get("COMP_CWORD", "")
    if shell != "fish":  # which tells a place
        return words[1 : int(current)] if current.isdigit() else []
    before = words[1:]
    if current and before and before[-1] == current:
        before.pop()
    return before


def asked_of(program: str, shell: str, environment: Mapping[str, str], *, shift: bool) -> dict[str, str]:
    """The environment in which ``program`` is asked what its umbrella was asked; ``shift`` = its name is a word."""
    place = environment.get("COMP_CWORD", "")
    if shift and shell != "fish":
        place = str(int(place) - 1)
    words = (_FIRST_TWO if shift else _FIRST).sub(program, environment.get("COMP_WORDS", ""), count=1)
    return {
        **environment, "COMP_WORDS": words, "COMP_CWORD": place, variable(program): f"{shell}_complete",
    }  # fmt: skip


def complete_umbrella(
    shell: str, own: Mapping[str, click.Command], shared: Collection[str], start: Callable[..., list[str]]
) -> int:
    """Answer a shell that asks the umbrella; the exit status.

    ``own`` are its commands, ``shared`` those of them that the client has too; ``start`` gives the words that start a
    program.
    """
    environment = dict(os.environ)
    before = words_before(shell, environment)
    first = before[0] if before else ""
    if not first:
        known = {name: one for name, one in own.items() if name not in shared}
        known |= {name: click.Command(name) for name in PROGRAMS}
    else:
        known = {name: one for name, one in own.items() if name == first}
    kind = get_completion_class(shell)
    if kind is None:
        return 1
    if known:
        found = kind(click.Group("kolejka", known), {}, "kolejka", variable("kolejka")).complete()
        click.echo(found, nl=bool(found))
        sys.stdout.flush()  # before what the client says
        if first:
            return 0
    name = first if first in PROGRAMS else "client"
    asked = asked_of(f"kolejka-{name}", shell, environment, shift=first in PROGRAMS)
    return subprocess.run(start(name), env=asked, check=False).returncode

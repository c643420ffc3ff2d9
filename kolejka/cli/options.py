"""Command-line options derived from declarations, and errors as one line.

``@settings_options(ServerSettings)`` gives a command every setting of the section as an option and hands it the loaded,
checked section; ``@limit_options`` does the same for limits. ``main(command, name)`` is every program's entry point.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

import click

from kolejka import __version__
from kolejka.cli.exits import INTERRUPTED, error_status
from kolejka.cli.programs import NOT_INSTALLED, install
from kolejka.common import logs
from kolejka.common.errors import InputError, KolejkaError, NodeError
from kolejka.common.limits import LIMITS, Limits, Unit
from kolejka.common.settings import LogSettings, Section, Setting

Command = Callable[..., Any]

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_DISK: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""What a disk says that our output goes to."""


class SettingOption(click.Option):
    """An option for a setting."""

    def __init__(self, *args: Any, setting: Setting, **words: Any) -> None:
        self.setting = setting
        text = f"{setting.help} [{setting.variable}; default: {setting.shown_default or 'none'}]"
        # A flag alone is a flag that is set.
        more: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if setting.kind == "flag" else {}
        super().__init__(*args, **{"default": None, "help": text, **more, **words})


def settings_options(*sections: type[Section], without: Sequence[str] = ()) -> Callable[[Command], Command]:
    """Options for every setting of ``sections`` and of the log, and ``--config``; the command gets each loaded section
    as a keyword argument named after it (``server=ServerSettings(…)``). Names in ``without`` get no option.

    Two sections that share a name (``data``) get options with the section in front (``--foreman-data``), except the
    first section, which keeps the plain name.
    """
    everything: tuple[type[Section], ...] = (*sections, LogSettings)

    def decorate(command: Command) -> Command:
        plan: list[tuple[type[Section], str, str]] = []
        taken: set[str] = set()

        @functools.wraps(command)
        def wrapped(*args: Any, config: str | None, **given: Any) -> Any:
            options: dict[type[Section], dict[str, Any]] = {section: {} for section in everything}
            for section, name, parameter in plan:
                options[section][name] = given.pop(parameter)
            if config is not None or any(options[LogSettings].values()):
                _log_so(LogSettings.load(config=config, options=options[LogSettings]))
            loaded = {s.section: s.load(config=config, options=options[s]) for s in sections}
            return command(*args, **loaded, **given)

        decorated: Command = wrapped
        entries: list[tuple[str, str, Setting]] = []
        for section in everything:
            for s in section.declared():
                if s.name in without or s.secret:  # secrets come by file or environment: a command line is public
                    continue
                plain = s.name not in taken and not s.flag
                parameter = s.name if plain else f"{section.section}_{s.name}"
                if s.flag:
                    parameter = s.flag.removeprefix("--").replace("-", "_")
                else:
                    taken.add(s.name)
                plan.append((section, s.name, parameter))
                entries.append(("--" + parameter.replace("_", "-"), parameter, s))
        for option, parameter, s in reversed(entries):
            decorated = click.option(option, parameter, cls=SettingOption, setting=s)(decorated)
        return click.option("--config", default=None, help="configuration file to read beside the usual ones")(
            decorated
        )

    return decorate


def _log_so(settings: LogSettings) -> None:
    """Log by these settings, here and in the processes that this one starts."""
    for s in LogSettings.declared():
        os.environ[s.variable] = getattr(settings, s.name)
    logs.configure(settings)


def limit_options(command: Command) -> Command:
    """One option for every limit; the command gets ``limits=Limits(…)`` with those that were given."""

    @functools.wraps(command)
    def wrapped(*args: Any, **given: Any) -> Any:
        words = {name: given.pop(f"limit_{name}") for name in LIMITS}
        return command(*args, limits=Limits.parse(words), **given)

    decorated: Command = wrapped
    for limit in reversed(list(LIMITS.values())):
        option = "--" + limit.name.replace("_", "-")
        if limit.unit is Unit.FLAG:
            option = f"{option}/--no-{limit.name.replace('_', '-')}"
        decorated = click.option(
            option, f"limit_{limit.name}", default=None, help=f"limit: {limit.help}",
            **({} if limit.unit is Unit.FLAG else {"metavar": limit.unit.value.upper()}),
        )(decorated)  # fmt: skip
    return decorated


def refuse_options_before(context: click.Context, *subcommands: str) -> None:
    """For a group that is a command as well: InputError when one of its options stands before a subcommand that would
    not see it.
    """
    if context.invoked_subcommand not in subcommands:
        return
    for parameter in context.command.params:
        if context.get_parameter_source(parameter.name or "") is click.core.ParameterSource.COMMANDLINE:
            word = context.invoked_subcommand
            raise InputError(f"write this option behind {word!r}, where it is heard", field=parameter.opts[0])


def fail(error: KolejkaError, program: str) -> NoReturn:
    """Say what is wrong in one line, whatever the names in it hold, and leave."""
    click.echo(f"{program}: {_CONTROL.sub(_escaped, str(error))}", err=True)
    sys.exit(error_status(error))


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def main(command: click.Command, program: str) -> NoReturn:
    """Run a program's command line. Every known error becomes one line on standard error and an exit status."""
    if sys.stdout is None:  # started with it closed (`>&-`)
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 as long as the process
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # an interrupt may wait since our start
        logs.configure(LogSettings.load())
        command = _with_version(command)
        command.context_settings = {
            "help_option_names": ["-h", "--help"], "max_content_width": 120, **command.context_settings,
        }  # fmt: skip
        status = command.main(prog_name=program, standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as leaving:
        sys.exit(leaving.exit_code)
    except click.Abort:
        sys.exit(INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KolejkaError as error:
        fail(error, program)
    except PermissionError as error:  # of a folder above a file that was named: even looking for it fails
        if error.filename is None:
            raise
        fail(InputError(f"cannot be used: {error.strerror}", field=os.fsdecode(error.filename)), program)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output left (`| head`)
        _drop_output()
        sys.exit(1)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "kolejka":
            raise
        cure = install(program.removeprefix("kolejka-"))
        fail(NodeError(f"{error.name} {NOT_INSTALLED}; run `{cure}`"), program)
    except OSError as error:
        if error.errno not in _DISK or error.filename is not None:
            raise
        _drop_output()
        fail(NodeError(f"cannot be written: {error.strerror}", field="output"), program)
    sys.exit(status if isinstance(status, int) else 0)


def _drop_output() -> None:
    """Let nothing more be written, not by the interpreter's end either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _with_version(command: click.Command) -> click.Command:
    if any(parameter.name == "version" for parameter in command.params):
        return command
    return click.version_option(__version__, prog_name="kolejka")(command)

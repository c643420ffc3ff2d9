"""Settings: declared once, then read from files, environment and command line, in that rising order.

A ``Section`` subclass declares the settings of one program: a field is a setting, with type, default, help. From it
derive the keys of ``kolejka.toml`` (table ``[server]``, key ``port``), the environment variables
(``KOLEJKA_SERVER_PORT``), the command-line options (``--port``) and the reference page. Files are read in this order,
later ones win: ``/etc/kolejka/kolejka.toml``, ``$XDG_CONFIG_HOME/kolejka/kolejka.toml``, then the one named by
``--config`` (which must exist). An unknown key is an error with file and line; so is a variable that is almost one of
ours. Other variables that begin like ours may be anybody's (Kubernetes makes ``KOLEJKA_SERVER_SERVICE_HOST`` for a
service of that name).
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import socket
import stat
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from kolejka.common.errors import InputError
from kolejka.common.limits import LIMITS, Limits
from kolejka.common.units import format_size, format_time, parse_count, parse_flag, parse_size, parse_time

CONFIG_NAME: Final = "kolejka.toml"
SYSTEM_CONFIG: Final = Path("/etc/kolejka") / CONFIG_NAME
LEAST_UID: Final = 65536
MOST_UID: Final = 2**32 - 65536
_ALMOST: Final = 0.93
"""How alike a variable is to one of ours (difflib's ratio) that is a slip of the pen: a letter or two of all."""


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise InputError(f"{value!r} should be a text")
    return value


def _path(value: object) -> Path:
    return Path(_text(value)).expanduser()


def _words(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(word for word in re.split(r"[,\s]+", value) if word)
    if isinstance(value, Iterable) and not isinstance(value, Mapping):
        return tuple(_text(word) for word in value)
    raise InputError(f"{value!r} should be a list of words")


def _limits(value: object) -> Limits:
    """A table ``{memory = "1G"}``, or words ``memory=1G,pids=64`` where there are no tables."""
    if isinstance(value, str):
        pairs = [word.partition("=") for word in _words(value)]
        if any(not equals for _, equals, _ in pairs):
            raise InputError(f"{value!r} should be written memory=1G,pids=64")
        value = {name: (text == "true" if text in {"true", "false"} else text) for name, _, text in pairs}
    return Limits.parse(value)


def _uid(value: object) -> int:
    """A user id for programs of others: no system user, and room for a few thousand slots above it."""
    uid = parse_count(value)
    if not LEAST_UID <= uid <= MOST_UID:
        raise InputError(f"{value!r} is no user id for payloads; choose one from {LEAST_UID} to {MOST_UID}")
    return uid


PARSERS: Final[Mapping[str, Callable[[object], Any]]] = {
    "text": _text, "path": _path, "words": _words, "limits": _limits,
    "size": parse_size, "time": parse_time, "count": parse_count, "flag": parse_flag, "uid": _uid,
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One declared setting, as ``Section.declared`` lists them."""

    section: str
    name: str
    kind: str
    default: Any
    help: str
    secret: bool
    choices: tuple[str, ...] = ()
    flag: str = ""
    """the option, where it is not the setting's own name"""

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"KOLEJKA_{self.section}_{self.name}".upper()

    @property
    def option(self) -> str:
        """The command-line option."""
        return self.flag or "--" + self.name.replace("_", "-")

    @property
    def shown_default(self) -> str:
        """The default as people write it; empty for none."""
        value = self.default() if callable(self.default) else self.default
        if isinstance(value, Limits):
            return ",".join(f"{name}={LIMITS[name].show(v)}" for name, v in value.values.items())
        if isinstance(value, tuple):
            return ",".join(value)
        if self.kind == "size":
            return format_size(value)
        if self.kind == "time":
            return format_time(value)
        return str(value).lower() if self.kind == "flag" else str(value)

    def parse(self, value: object, place: str) -> Any:
        """The value as people write it. InputError names the place."""
        try:
            parsed = PARSERS[self.kind](value)
            if self.choices and parsed not in self.choices:
                raise InputError(f"{value!r} is not one of {', '.join(self.choices)}")
        except InputError as error:
            raise error.within(place) from None
        return parsed


def setting(
    default: Any, help: str, *, kind: str, secret: bool = False, choices: tuple[str, ...] = (), flag: str = ""
) -> Any:
    """Declare a setting as a dataclass field. ``kind`` is a key of ``PARSERS``; a callable default is called anew.

    ``flag`` is its option, where the setting's own name would be another's.
    """
    metadata = {"help": help, "kind": kind, "secret": secret, "choices": choices, "flag": flag}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata, repr=not secret)
    return dataclasses.field(default=default, metadata=metadata, repr=not secret)


@dataclass(frozen=True)
class Section:
    """Base of all sections; ``SECTIONS`` knows every one, so that a file can be checked as a whole."""

    section: ClassVar[str] = ""
    SECTIONS: ClassVar[dict[str, type[Section]]] = {}

    def __init_subclass__(cls, section: str, **words: Any) -> None:
        super().__init_subclass__(**words)
        cls.section = section
        Section.SECTIONS[section] = cls

    @classmethod
    def declared(cls) -> tuple[Setting, ...]:
        """The settings of this section, in order."""
        return tuple(
            Setting(
                cls.section, f.name, f.metadata["kind"],
                f.default_factory if f.default is dataclasses.MISSING else f.default,
                f.metadata["help"], f.metadata["secret"], f.metadata["choices"],
                f.metadata["flag"],
            )
            for f in dataclasses.fields(cls)
        )  # fmt: skip

    @classmethod
    def load(
        cls,
        *,
        config: str | os.PathLike[str] | None = None,
        options: Mapping[str, object] = {},
        environment: Mapping[str, str] | None = None,
    ) -> Self:
        """Read files, environment and command-line ``options`` (a ``None`` there means *not given*).

        InputError names file and line, variable or option.
        """
        environment = os.environ if environment is None else environment
        by_name = {s.name: s for s in cls.declared()}
        values: dict[str, Any] = {}
        for path in config_files(config, environment):
            for name, (value, place) in _read_file(path).get(cls.section, {}).items():
                values[name] = by_name[name].parse(value, place)
        _check_variables(environment)
        for s in by_name.values():
            if s.variable in environment:
                values[s.name] = s.parse(environment[s.variable], s.variable)
        for name, value in options.items():
            if value is not None:
                values[name] = by_name[name].parse(value, by_name[name].option)
        return cls(**values)


def user_config(environment: Mapping[str, str] | None = None) -> Path:
    """The user's own ``kolejka.toml``, whether it exists or not."""
    environment = os.environ if environment is None else environment
    home = environment.get("XDG_CONFIG_HOME") or os.path.join(environment.get("HOME", "/"), ".config")
    return Path(home) / "kolejka" / CONFIG_NAME


def config_files(config: str | os.PathLike[str] | None, environment: Mapping[str, str]) -> list[Path]:
    """The files to read, in rising order. A file that was named must exist; the others may."""
    files = [path for path in (SYSTEM_CONFIG, user_config(environment)) if _is_there(path)]
    if config is not None:
        if not Path(config).is_file():
            wrong = "is not a regular file" if Path(config).exists() else "there is no such configuration file"
            raise InputError(wrong, field=os.fspath(config))
        files.append(Path(config))
    return files


def _is_there(path: Path) -> bool:
    """Whether there is such a file. InputError where the machine's may not be looked for: it might say anything.

    A user's may be another's whom ``HOME`` names still (``runuser -u``, ``sudo -u``): then it is not for us.
    """
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except PermissionError as error:
        if path == SYSTEM_CONFIG:
            raise InputError(f"cannot be read: {error.strerror}", field=str(path)) from None
        return False
    except OSError:  # absent, or below something that is no folder
        return False


def _check_variables(environment: Mapping[str, str]) -> None:
    """InputError on a misspelt variable, which would be ignored in silence."""
    known = {s.variable for section in Section.SECTIONS.values() for s in section.declared()}
    for name in environment:
        if name.startswith("KOLEJKA_") and name not in known:
            for meant in difflib.get_close_matches(name, known, 1, _ALMOST):
                raise InputError(f"there is no such setting; did you mean {meant}?", field=name)


def _read_file(path: Path) -> dict[str, dict[str, tuple[object, str]]]:
    """Section → key → (value, place), every key checked against the declarations."""
    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", field=str(path)) from None
    except ValueError as error:
        raise InputError(f"this is not TOML: {error}", field=str(path)) from None
    found: dict[str, dict[str, tuple[object, str]]] = {}
    for section, table in tables.items():
        place = f"{path}:{_line(text, section)}"
        if section not in Section.SECTIONS or not isinstance(table, dict):
            raise InputError(
                f"there is no section [{section}]; the sections are {', '.join(Section.SECTIONS)}", field=place
            )
        known = {s.name for s in Section.SECTIONS[section].declared()}
        for name, value in table.items():
            place = f"{path}:{_line(text, name, below=section)}"
            if name not in known:
                raise InputError(
                    f"there is no setting {name!r} in [{section}]; its settings are {', '.join(sorted(known))}",
                    field=place,
                )
            found.setdefault(section, {})[name] = (value, f"{place}: {name}")
    return found


def _line(text: str, word: str, below: str | None = None) -> int:
    """The line on which a key or a table stands (tomllib does not tell)."""
    inside = below is None
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[+\s*([\w.-]+)", line)
        if header:
            inside = below is None or header[1].split(".")[0] == below
            if word in header[1].split("."):
                return number
        elif inside and re.match(rf"\s*[\"']?{re.escape(word)}[\"']?\s*[=.]", line):
            return number
    return 1


def _data_home(name: str) -> Callable[[], Path]:
    def default() -> Path:
        for folder in os.environ.get("STATE_DIRECTORY", "").split(":"):  # of a unit of systemd's, systemd.exec(5)
            if os.path.basename(folder) == name:
                return Path(folder)
        if os.geteuid() == 0:
            return Path("/var/lib/kolejka") / name
        home = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
        return Path(home) / "kolejka" / name

    return default


@dataclass(frozen=True)
class LogSettings(Section, section="log"):
    """What every program writes to standard error."""

    level: str = setting(
        "info", "least severe messages to write", kind="text", choices=("debug", "info", "warning", "error"),
        flag="--log-level",
    )  # fmt: skip
    format: str = setting(
        "text", "a line for people, or a JSON object for programs", kind="text", choices=("text", "json"),
        flag="--log-format",
    )  # fmt: skip


@dataclass(frozen=True)
class ClientSettings(Section, section="client"):
    """How commands reach the server."""

    server: str = setting("http://127.0.0.1:8642", "the server's address", kind="text")
    token: str = setting(
        "", "the token to show; absent = the one that `login` or a local server stored", kind="text", secret=True
    )
    token_file: str = setting("", "file to read the token from, where it should stand in no environment", kind="text")
    ca: str = setting("", "file of certificates to trust, beside the system's", kind="text")
    timeout: float = setting(
        60.0, "how long one request may stay without an answer", kind="time", flag="--request-timeout"
    )
    patience: float = setting(600.0, "how long to keep trying when the server does not answer", kind="time")
    direct: bool = setting(True, "follow the server to a blob store of its own for large files", kind="flag")


@dataclass(frozen=True)
class ServerSettings(Section, section="server"):
    """The server."""

    host: str = setting("127.0.0.1", "address to listen on", kind="text")
    port: int = setting(8642, "port to listen on; 0 = any free one", kind="count")
    data: Path = setting(_data_home("server"), "folder of database, blobs and the admin's token", kind="path")
    database: str = setting(
        "", "address of the PostgreSQL database, such as postgresql://kolejka@localhost/kolejka; absent = an embedded "
        "one in the data folder", kind="text", secret=True,
    )  # fmt: skip
    processes: int = setting(1, "processes that serve; more than one only with a PostgreSQL database", kind="count")
    certificate: str = setting("", "file with the TLS certificate chain; absent = plain HTTP", kind="text")
    key: str = setting("", "file with the TLS certificate's key", kind="text")
    heartbeat: float = setting(60.0, "a node silent for so long has lost its attempts", kind="time")
    deadline_margin: float = setting(
        120.0, "added to a task's time limit before its attempt counts as hung", kind="time"
    )
    attempts: int = setting(5, "attempts that may be lost before the task ends as error", kind="count")
    minimum_image: str = setting(
        "", "version of the node image below which a node takes no tasks; absent = any will do", kind="text"
    )
    usage_half_life: float = setting(
        3600.0, "after so long, what an owner used counts half when the next task is chosen", kind="time"
    )
    reserve_after: float = setting(
        60.0, "a task that waited so long and finds its nodes too busy gets one reserved", kind="time"
    )
    running_per_owner: int = setting(0, "tasks of one owner that run at one time at most; 0 = any number", kind="count")
    defaults: Limits = setting(
        lambda: Limits.of(cpus=1, memory="1G", swap=0, pids=256, time="1h", network=False,
            output="64M", workspace="4G", storage="1G"),
        "limits a task gets where nobody set one", kind="limits",
    )  # fmt: skip
    ceilings: Limits = setting(Limits, "limits no task can exceed", kind="limits")
    max_blob: int = setting(64 << 30, "size of the largest blob", kind="size")
    blobs: str = setting(
        "",
        "where blobs lie: a folder, or s3://BUCKET/PREFIX; absent = the folder blobs in the data folder",
        kind="text",
    )
    s3_endpoint: str = setting("", "address of the S3-compatible store, for us and clients; absent = AWS", kind="text")
    s3_region: str = setting("us-east-1", "region of the bucket", kind="text")
    s3_key: str = setting(
        "", "access key of the store; absent = the one that AWS_… variables or the machine's role give", kind="text",
        secret=True,
    )  # fmt: skip
    s3_secret: str = setting("", "secret of the access key", kind="text", secret=True)
    direct: bool = setting(True, "let large blobs travel between clients and an S3 store directly", kind="flag")
    link_time: float = setting(3600.0, "how long an address for direct transfer is good", kind="time")
    blob_grace: float = setting(86400.0, "how long a blob that no task refers to is kept", kind="time")
    upload_grace: float = setting(86400.0, "how long a broken upload can be resumed", kind="time")
    sweep_interval: float = setting(
        3600.0, "how often old blobs, uploads and tasks are looked for; 0 = never", kind="time"
    )
    max_body: int = setting(8 << 20, "size of the largest JSON body", kind="size")
    max_bulk: int = setting(64 << 20, "size of the largest JSON body that puts many tasks", kind="size")
    rate: int = setting(
        200, "calls a second that a user's client and inspector tokens may make, on average; 0 = any number",
        kind="count",
    )  # fmt: skip
    enrolments: int = setting(
        200, "machines without a token that may wait to be let in as nodes; 0 = none may ask", kind="count"
    )
    keep_events: float = setting(86400.0, "how long those who follow events may be away", kind="time")
    callback_hosts: tuple[str, ...] = setting(
        (),
        "who may be called back: names, *.ends of names, and networks, which private addresses need; none = nobody",
        kind="words",
    )
    callback_timeout: float = setting(10.0, "how long one callback may take", kind="time")
    callback_pause: float = setting(
        5.0, "pause after the first callback that failed; each further one doubles it", kind="time"
    )
    callback_tries: int = setting(12, "callbacks that may fail before a task's is given up", kind="count")


@dataclass(frozen=True)
class ObserverSettings(Section, section="observer"):
    """The observer."""

    socket: Path = setting(lambda: Path("/run/kolejka/observer/socket"), "unix socket to serve", kind="path")
    group: str = setting("", "group that may open sessions beside root", kind="text")
    state: Path = setting(
        lambda: Path("/run/kolejka/observer/sessions"), "folder where sessions survive a restart", kind="path"
    )
    cgroup: str = setting("kolejka", "name of the control group below which all sessions live", kind="text")
    base: str = setting(
        "",
        "where control groups are of version 2: the group to make that one in, such as that of a unit with "
        "Delegate=yes; absent = the one delegated to the observer itself, else the top",
        kind="text",
    )
    nested: int = setting(64, "sessions that one session may hold open below it", kind="count")
    remember: float = setting(300.0, "how long the stats of a closed session can be asked for", kind="time")
    favor_moves: bool = setting(
        True,
        "have this machine's kernel move processes into control groups in microseconds instead of milliseconds "
        "(mount option favordynmods, kernel 6.0)",
        kind="flag",
    )


@dataclass(frozen=True)
class WorkerSettings(Section, section="worker"):
    """How one node runs tasks, whoever asks it to."""

    runtime: str = setting("auto", "how payloads are started", kind="text", choices=("auto", "sandbox", "docker"))
    observer: str = setting(
        "", "the observer's socket; absent = the usual one if it serves, else sessions of one's own", kind="text"
    )
    data: Path = setting(_data_home("worker"), "folder of workspaces and images", kind="path")
    docker: str = setting(
        "", "address of the container engine, such as unix:///run/docker.sock; absent = the environment's", kind="text"
    )
    nvml: str = setting(
        "libnvidia-ml.so.1", "NVIDIA's management library; where it cannot be loaded there are no GPUs", kind="text"
    )
    first_uid: int = setting(2_000_000, "host user ids of payloads start here; each slot has its own", kind="uid")


@dataclass(frozen=True)
class ForemanSettings(Section, section="foreman"):
    """The foreman of a node. It reaches the server by the settings of [client], runs tasks by those of [worker]."""

    name: str = setting(socket.gethostname, "the node's name", kind="text")
    tags: tuple[str, ...] = setting((), "tags beside the automatic ones", kind="words")
    queues: tuple[str, ...] = setting((), "queues to take tasks from; none = all", kind="words")
    capacity: Limits = setting(Limits, "what to offer, where that is not the whole machine", kind="limits")
    ceilings: Limits = setting(Limits, "limits no task on this node can exceed", kind="limits")
    enrol: bool = setting(False, "ask the server to be let in where there is no token; an admin approves", kind="flag")
    slots: int = setting(0, "tasks to run at one time; 0 = as many as the CPUs allow", kind="count")
    data: Path = setting(_data_home("foreman"), "folder of the spool and of running tasks", kind="path")
    prove: bool = setting(
        False, "try before any work to break each limit; a node where one does not hold takes no tasks", kind="flag"
    )
    reboot_command: str = setting(
        "systemctl reboot", "what reboots this machine when an admin asks for it", kind="text"
    )
    cache: int = setting(10 << 30, "size of the node's cache of input files", kind="size")
    images: int = setting(
        20 << 30, "size of the images that this node fetches for its tasks; 0 = it fetches none", kind="size"
    )
    wait: float = setting(30.0, "how long one request for tasks may wait at the server", kind="time")

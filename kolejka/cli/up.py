"""``kolejka up``: all of Kolejka on one machine, in one terminal.

Theory of operation. First everything that could go wrong is looked at while nothing runs: what the machine lacks, a
second ``up`` on the same data, a port in use. Then the parts start as processes, each with its log file: the server
and the observer side by side; when the server answers, ``kolejka-client token create`` makes a token for the node; then
the foreman. One loop watches the parts (by their pidfds) and the signals (by a wake-up pipe). However it ends, by
Ctrl-C, by SIGTERM, by the death of a part, the parts are stopped in the order in which they need each other: the
foreman first, which drains for a moment and then gives its tasks back; the server; the observer. No part outlives this
process when it is killed, either: the kernel sends a part SIGTERM when its parent dies.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import http.client
import os
import secrets
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

import click

from kolejka.cli import doctor_all
from kolejka.cli.exits import INFRASTRUCTURE
from kolejka.cli.programs import program
from kolejka.common import systemd
from kolejka.common.errors import InputError, KolejkaError, NodeError
from kolejka.common.settings import ForemanSettings, ObserverSettings, ServerSettings
from kolejka.common.units import parse_count

HOST: Final = "127.0.0.1"
READY_S: Final = 60.0
"""How long a part may take to get ready."""
DRAIN_S: Final = 8.0
"""How long running tasks may go on once everything is to stop."""
STOP_S: Final = 8.0
"""How long a part may take to end, before it is killed."""
LAST_LINES: Final = 20
_TURN_S: Final = 0.02
_PR_SET_PDEATHSIG: Final = 1
_SOCKET_PATH: Final = 100
"""Characters a unix socket's path may have; the kernel's sun_path holds 108 bytes."""


@dataclass(frozen=True)
class Places:
    """Where everything of one ``up`` stands."""

    home: Path
    server: Path
    socket: Path
    url: str
    environment: Mapping[str, str]

    @property
    def node_token(self) -> Path:
        """The token that the foreman shows."""
        return self.home / "up" / "node.token"

    @property
    def admin_token(self) -> Path:
        """The token that the server wrote for the people of this machine."""
        return self.server / "admin.token"


@dataclass
class Part:
    """One program that runs."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    begin: int
    """where in the log this run starts"""
    pidfd: int = field(init=False)

    def __post_init__(self) -> None:
        self.pidfd = os.pidfd_open(self.process.pid)

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def tell(self, number: int) -> None:
        """Send it a signal; a part that has just ended hears nothing."""
        self.process.send_signal(number)

    def last_words(self) -> list[str]:
        """The last lines it wrote in this run."""
        with open(self.log, "rb") as source:
            source.seek(max(self.begin, self.log.stat().st_size - 65536))
            return source.read().decode(errors="replace").splitlines()[-LAST_LINES:]


class _Stop(Exception):
    """Somebody wants everything to stop."""


class _Died(KolejkaError):
    """A part ended by itself."""

    def __init__(self, part: Part) -> None:
        super().__init__(f"the {part.name} ended with status {part.process.returncode}; its log is {part.log}")
        self.part = part


def up(*, data: str | None, port: str | None, node: bool) -> int:
    """Run everything until told to stop; the exit status. InputError and NodeError before anything is started."""
    wanted = _port(port)
    home = Path(data).expanduser().absolute() if data is not None else ServerSettings().data.parent
    if node and os.geteuid() != 0:
        raise NodeError(
            "a node runs tasks as other users and makes control groups: run `sudo kolejka up`, "
            "or start just the server with --no-node"
        )
    with ExitStack() as stack:
        stack.enter_context(_only_one(home))
        places = _places(home, _free_port(wanted), own=data is not None)
        _look(places, node=node)
        stack.enter_context(_told(home, places.url))
        wake = stack.enter_context(_signals())
        door, address = stack.enter_context(_listening())
        return Up(places, wake, door, address).run(node=node)


class Up:
    """The parts of one ``up``, from start to end."""

    def __init__(self, places: Places, wake: int, door: socket.socket, address: str) -> None:
        self._places = places
        self._wake = wake
        self._door = door
        self._address = address
        self._parts: list[Part] = []

    def run(self, *, node: bool) -> int:
        """Start, watch, stop; the exit status."""
        try:
            self._start(node=node)
            self._welcome()
            systemd.notify("READY=1")
            while True:
                self._turn(None)
                _heard(self._door)  # what nobody reads would make the foreman wait
        except _Stop:
            click.echo("stopping")
            return 0
        except _Died as died:
            for line in died.part.last_words():
                click.echo(f"  {line}", err=True)
            click.echo(f"kolejka: {died}", err=True)
            return INFRASTRUCTURE
        finally:
            systemd.notify("STOPPING=1")
            self._stop()

    def _start(self, *, node: bool) -> None:
        places = self._places
        _, _, port = places.url.rpartition(":")
        server = self._begin("server", "runserver", "--host", HOST, "--port", port)
        observer = self._begin("observer") if node else None
        self._await(server, lambda: _answers(http.client.HTTPConnection(HOST, int(port), timeout=5), "/readyz"))
        click.echo(f"server    {places.url}")
        if observer is None:
            return
        self._await(observer, lambda: _answers(_UnixConnection(places.socket), "/"))
        click.echo(f"observer  {places.socket}")
        self._make_token()
        foreman = self._begin("foreman", NOTIFY_SOCKET=self._address, KOLEJKA_CLIENT_TOKEN_FILE=str(places.node_token))
        self._await(foreman, lambda: b"READY=1" in _heard(self._door))
        click.echo(f"foreman   node {ForemanSettings.load().name}")

    def _begin(self, name: str, *words: str, **environment: str) -> Part:
        log = self._places.home / "logs" / f"{name}.log"
        with open(log, "ab") as sink:
            begin = sink.tell()
            process = subprocess.Popen(
                program(name, *words), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
                env={**self._places.environment, **environment}, start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  # this process has one thread, so the hook is safe
            )  # fmt: skip
        part = Part(name, process, log, begin)
        self._parts.append(part)
        return part

    def _await(self, part: Part, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_S
        while not ready():
            if time.monotonic() > deadline:
                part.process.kill()
                part.process.wait()
                click.echo(f"the {part.name} was not ready within {READY_S:g} s", err=True)
                raise _Died(part)
            self._turn(_TURN_S)

    def _turn(self, timeout_s: float | None) -> None:
        """Wait until something happens. _Stop when told so, _Died when a part ended by itself."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(self._door, select.POLLIN)
        for part in self._parts:
            poll.register(part.pidfd, select.POLLIN)
        poll.poll(None if timeout_s is None else timeout_s * 1000)
        for part in self._parts:
            if not part.alive:
                raise _Died(part)
        if _drained(self._wake):
            raise _Stop

    def _make_token(self) -> None:
        """Let the server make a token for the node, unless the one from the last time still works."""
        token = self._places.node_token
        if token.exists() and self._client("whoami", KOLEJKA_CLIENT_TOKEN_FILE=str(token)).returncode == 0:
            return
        words = {}
        if self._places.admin_token.exists():
            words = {"KOLEJKA_CLIENT_TOKEN_FILE": str(self._places.admin_token)}
        made = self._client("token", "create", "--user", "admin", "--role", "node", "--name", "kolejka up", **words)
        if made.returncode != 0:
            raise NodeError(f"no token for the node could be made: {made.stderr.strip()}")
        token.unlink(missing_ok=True)
        with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as sink:
            sink.write(made.stdout)

    def _client(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in self._places.environment.items() if name != "KOLEJKA_CLIENT_TOKEN"}
        if not environment:
            kept = dict(self._places.environment)
        return subprocess.run(
            program("client", *words), env={**kept, **environment}, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, check=False,
        )  # fmt: skip

    def _welcome(self) -> None:
        places = self._places
        click.echo(f"logs      {places.home / 'logs'}")
        hints = {}
        if places.url != f"http://{HOST}:{ServerSettings().port}":
            hints["KOLEJKA_CLIENT_SERVER"] = places.url
        if places.server != ServerSettings.load().data:
            hints["KOLEJKA_CLIENT_TOKEN_FILE"] = str(places.admin_token)
        click.echo("\nEverything is ready; Ctrl-C stops it. In another terminal, try:\n")
        for name, value in hints.items():
            click.echo(f"  export {name}={value}")
        click.echo("  kolejka execute examples/uname RESULT\n")

    def _stop(self) -> None:
        """End all parts: those that need others before those others."""
        order = ("foreman", "server", "observer")
        for part in sorted(self._parts, key=lambda part: order.index(part.name)):
            patience_s = DRAIN_S if part.name == "foreman" else STOP_S
            part.tell(signal.SIGTERM)
            if not self._gone(part, patience_s, hurry=part.name == "foreman"):
                part.tell(signal.SIGTERM)  # to a foreman: no more draining
                if not self._gone(part, STOP_S):
                    part.process.kill()
            part.process.wait()
            os.close(part.pidfd)

    def _gone(self, part: Part, timeout_s: float, *, hurry: bool = False) -> bool:
        """Whether the part ends in time; with ``hurry`` a second Ctrl-C ends the waiting."""
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(part.pidfd, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        poll.register(self._door, select.POLLIN)
        while part.alive and (left_s := deadline - time.monotonic()) > 0:
            poll.poll(left_s * 1000)
            _heard(self._door)
            if _drained(self._wake) and hurry:
                break
        return not part.alive


def _port(text: str | None) -> int:
    if text is None:
        return ServerSettings.load().port
    try:
        port = parse_count(text)
    except InputError as error:
        raise error.within("--port") from None
    if port > 65535:
        raise InputError("the largest port is 65535", field="--port")
    return port


def _free_port(wanted: int) -> int:
    """The wanted port, or any free one for 0. InputError when something else serves it."""
    with socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind((HOST, wanted))
            door.listen()
        except OSError as error:
            raise InputError(
                f"{HOST}:{wanted} cannot be used ({error.strerror}); stop what serves it, or give another port",
                field="--port",
            ) from None
        return int(door.getsockname()[1])


def _places(home: Path, port: int, *, own: bool) -> Places:
    """Where everything goes: with ``own``, all below ``home``; else each part has its usual or configured place."""
    environment = dict(os.environ)
    url = f"http://{HOST}:{port}"
    environment["KOLEJKA_CLIENT_SERVER"] = url
    server, door = ServerSettings.load().data, ObserverSettings.load().socket
    if own:
        mark = hashlib.sha256(os.fsencode(home)).hexdigest()[:8]
        server = home / "server"
        door = home / "observer" / "socket"
        if len(os.fsencode(door)) > _SOCKET_PATH:
            door = Path("/run/kolejka") / f"up-{mark}" / "socket"
        environment |= {
            "KOLEJKA_SERVER_DATA": str(server),
            "KOLEJKA_OBSERVER_SOCKET": str(door),
            "KOLEJKA_OBSERVER_STATE": str(home / "observer" / "sessions"),
            "KOLEJKA_WORKER_DATA": str(home / "worker"),
            "KOLEJKA_FOREMAN_DATA": str(home / "foreman"),
        }
        # two systems on one machine must not take each other's sessions for leftovers
        environment.setdefault("KOLEJKA_OBSERVER_CGROUP", f"kolejka-{mark}")
    environment["KOLEJKA_WORKER_OBSERVER"] = str(door)
    for name in ("KOLEJKA_SERVER_CERTIFICATE", "KOLEJKA_SERVER_KEY"):
        environment.pop(name, None)  # the loopback needs none
    return Places(home, server, door, url, environment)


@contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """Hold the data for this process, and make its folders. InputError when another ``up`` holds it."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        for name in ("logs", "up"):
            (home / name).mkdir(exist_ok=True, mode=0o700 if name == "up" else 0o755)
        descriptor = os.open(home / "up" / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InputError(f"cannot be used for data: {error.strerror}", field=f"--data: {home}") from None
    with open(descriptor, "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with suppress(OSError):  # the other one may just be starting or leaving
                raise InputError(
                    f"`kolejka up` runs on this data already ({(home / 'up' / 'running').read_text()}); "
                    "stop it, or give another --data",
                    field=str(home),
                ) from None
            raise InputError("another `kolejka up` starts on this data", field=str(home)) from None
        yield


@contextmanager
def _told(home: Path, url: str) -> Iterator[None]:
    """Leave a word for a second ``up`` on the same data."""
    note = home / "up" / "running"
    note.write_text(f"process {os.getpid()}, {url}")
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def _look(places: Places, *, node: bool) -> None:
    """NodeError when this machine lacks what the parts need."""
    names = ("server", "observer", "worker") if node else ("server",)
    # the observer that the worker will use is still to be started, so the worker looks at what the machine allows
    environment = {k: v for k, v in places.environment.items() if k != "KOLEJKA_WORKER_OBSERVER"}
    found = doctor_all.checks(names, environment)
    missing = [check for check in found if not check.ok and (check.required or check.check in names)]
    for check in missing:
        click.echo(f"{check.check}: {check.message}{f'; cure: {check.cure}' if check.cure else ''}", err=True)
    if missing:
        raise NodeError("this machine lacks the above, and nothing was started; `kolejka doctor` looks at everything")


@contextmanager
def _signals() -> Iterator[int]:
    """A descriptor that can be read when somebody wants everything to stop."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def nothing(number: int, frame: FrameType | None) -> None:
        """The byte in the pipe is all that a handler has to do."""

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, nothing) for number in wanted}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def _drained(wake: int) -> bool:
    """Whether a signal came since the last look."""
    try:
        return bool(os.read(wake, 64))
    except BlockingIOError:
        return False


def _die_with_parent() -> None:
    """In a part's process, before its program: SIGTERM when the parent is gone (prctl(2)), SIGINT as ever."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        self.sock.connect(os.fspath(self._path))


def _answers(connection: http.client.HTTPConnection, path: str) -> bool:
    """Whether somebody answers there, and well."""
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def _listening() -> Iterator[tuple[socket.socket, str]]:
    """A socket on which a service says ``READY=1`` and more (sd_notify(3)), and its address."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        # a name without a file (unix(7), abstract): nothing to remove, and gone with this process
        door.bind(f"\0kolejka-up-{os.getpid()}-{secrets.token_hex(8)}")
        door.setblocking(False)
        yield door, "@" + door.getsockname()[1:].decode("ascii")


def _heard(door: socket.socket) -> list[bytes]:
    """The words that came since the last look."""
    words: list[bytes] = []
    with suppress(BlockingIOError):  # all is read
        while True:
            words += door.recv(4096).split(b"\n")
    return words

"""A whole Kolejka in which everything can break: one world for all cells of the chaos matrix.

Server and foreman stand at the two ends of a network of the tests' own (``tests/neighbours/network.py``); blobs, the
database and the node's spool each have a small disk of their own (``disks.py``); all programs go by a wall clock that
can be set (``clock.py``). On PostgreSQL the database is a server of this world alone, which may be killed, and two
processes of the Kolejka server share it. The tests stand at the server's end.

``check`` is the one check. It reads the database itself, because what is to be shown is what the server kept.
"""

from __future__ import annotations

import http.client
import json
import os
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cysqlite
import psutil

from kolejka.client import KolejkaClient
from kolejka.common.files import hash_file
from tests.faults.load import KINDS, Expected, Load
from tests.neighbours.clock import Clock
from tests.neighbours.cluster import Cluster
from tests.neighbours.disks import Disk
from tests.neighbours.network import SERVER, Network
from tests.neighbours.postgres import NOBODY, Postgres
from tests.soak import census
from tests.support import wait_until

HEARTBEAT_S = 4
"""short enough to wait for leases that run out, long enough for a restart on a busy machine to lose few"""
PATIENCE_S = 120.0
FIRST_UID = 10_000_000 + os.getpid() % 100_000 * 64
"""of this session's own, so that what others run on this machine is not taken for ours"""
DISK = 128 << 20
"""a server is not ready without 64 MiB for blobs"""
FAILED = "the node failed"
LATER = KINDS[:4]
"""what is put when all is over, to see that it goes on"""
_AT_NODE = frozenset({"foreman", "observer"})


class World(Cluster):
    """Server, observer, foreman and all that they stand on. ``engine`` is ``sqlite`` or ``postgres``."""

    def __init__(self, folder: Path, engine: str, network: Network) -> None:
        self.engine = engine
        self.network = network
        self.clock = Clock(folder)
        super().__init__(folder, {
            "KOLEJKA_SERVER_HOST": "0.0.0.0",
            "KOLEJKA_SERVER_HEARTBEAT": f"{HEARTBEAT_S}s",
            "KOLEJKA_SERVER_ATTEMPTS": "1000",
            "KOLEJKA_SERVER_RATE": "0",
            "KOLEJKA_WORKER_FIRST_UID": str(FIRST_UID),
            "KOLEJKA_LOG_FORMAT": "json",
            "NO_PROXY": "*",
            **self.clock.environment,
        })  # fmt: skip
        self.disks: dict[str, Disk] = {}
        self.postgres: Postgres | None = None
        self.accepted = 0
        """tasks that were put since the world began"""
        self.whole = True
        """whether the last cell left it as it must be"""
        self._mounted: list[Disk] = []

    # Coming and going

    def build(self) -> None:
        """Start everything. Called at the server's end of the network."""
        for name, place in (("database", "server"), ("blobs", "server/blobs"), ("spool", "foreman")):
            self.disks[name] = self._disk(self.folder / place, mode="0711")
        if self.engine == "postgres":
            self.postgres = Postgres(short_log=True)
            self.disks["log"] = self._disk(self.postgres.folder / "wal", user=NOBODY, mode="0700")
            self.postgres.move_log(self.disks["log"].place)
            small = self.postgres.folder / "small"
            self.disks["database"] = self._disk(small, user=NOBODY, mode="0700")
            self.postgres.start()
            self.postgres.run(f"CREATE TABLESPACE small LOCATION '{small}'")
            self.postgres.run("CREATE DATABASE kolejka TABLESPACE small")
            self.environment["KOLEJKA_SERVER_DATABASE"] = self.postgres.url("kolejka")
            self.environment["KOLEJKA_SERVER_PROCESSES"] = "2"
        self.start()

    def _disk(self, place: Path, *, user: int = 0, mode: str) -> Disk:
        self._mounted.append(Disk(place, DISK, user=user, mode=mode))
        return self._mounted[-1]

    def raze(self) -> None:
        """End everything, and leave nothing."""
        self.stop()
        if self.postgres is not None:
            self.postgres.end()
        for disk in reversed(self._mounted):
            disk.remove()
        if self.postgres is not None:
            self.postgres.stop()

    def _before(self, name: str) -> list[str]:
        return self.network.at_node if name in _AT_NODE else []

    def start_foreman(self) -> None:
        """Start the foreman, which reaches the server by the cable."""
        self.environment["KOLEJKA_CLIENT_SERVER"] = f"http://{SERVER}:{self.port}"
        super().start_foreman()

    # What breaks

    def kill(self, *names: str) -> None:
        """SIGKILL programs, together."""
        for name in names:
            self.programs[name].process.kill()
        for name in names:
            self.programs[name].process.wait()

    def kill_database(self) -> None:
        """SIGKILL the postmaster, and wait until its backends have noticed."""
        assert self.postgres is not None
        pid = self.postgres.pid
        others = psutil.Process(pid).children(recursive=True)
        self.postgres.kill()
        psutil.wait_procs(others, timeout=30)

    def workers(self) -> list[psutil.Process]:
        """The foreman's worker processes, one for each slot."""
        return self._children("foreman", "kolejka.worker.process")

    def servers(self) -> list[psutil.Process]:
        """The processes that serve."""
        return self._children("server", "kolejka-server")

    def _children(self, name: str, word: str) -> list[psutil.Process]:
        found = []
        for child in psutil.Process(self.programs[name].pid).children():
            try:
                if any(word in part for part in child.cmdline()):
                    found.append(child)
            except psutil.Error:
                continue  # it ended while we looked
        return found

    # What is seen

    def ask(self, statement: str) -> list[tuple[Any, ...]]:
        """Rows of the server's database."""
        if self.postgres is not None:
            return self.postgres.run(statement, "kolejka")
        database = cysqlite.connect(str(self.folder / "server/kolejka.sqlite"), flags=cysqlite.SQLITE_OPEN_READONLY)
        try:
            return [tuple(row) for row in database.execute(statement)]
        finally:
            database.close()

    def done(self) -> int:
        """How many tasks have ended since the world began. AssertionError when a program died that nobody killed."""
        self.check_alive()
        return int(self.ask("SELECT COUNT(*) FROM tasks WHERE state = 'done'")[0][0])

    def wait_done(self, more: int) -> None:
        """Wait until so many more tasks have ended."""
        wanted = self.done() + more
        wait_until(lambda: self.done() >= wanted, PATIENCE_S, f"{more} more tasks are done")

    def listen(self, name: str) -> Callable[[str], int]:
        """A function that counts the lines with a text that the program logs from now on."""
        log = self.programs[name].log
        start = log.stat().st_size

        def count(text: str) -> int:
            with open(log, "rb") as source:
                source.seek(start)
                return source.read().count(text.encode())

        return count

    def wait_said(self, name: str, count: Callable[[str], int], *texts: str) -> None:
        """Wait until the program has logged one of these."""
        wait_until(lambda: any(count(text) for text in texts), PATIENCE_S, f"{name} says {' or '.join(texts)}")

    def refusal(self) -> tuple[int, str]:
        """Status and words with which the server answers one who asks for tasks."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        token = (self.folder / "server/admin.token").read_text(encoding="ascii").strip()
        try:
            connection.request("GET", "/api/v1/tasks", headers={"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            return answer.status, str(json.loads(answer.read()).get("error", {}).get("message", ""))
        finally:
            connection.close()

    # What must hold

    @contextmanager
    def watched(self, cell: str, excused: int = 0) -> Iterator[Load]:
        """The world while something breaks in it; afterwards nothing is lost, nothing is left, and it goes on.

        So many tasks are ``excused`` that end as ``error`` because their node failed and they asked for no further try.
        """
        self.whole = False
        ears = {name: self.listen(name) for name in self.programs}
        load = Load(self.admin)
        with self._feeding() as fed:
            yield load
        accepted = load.accepted + fed.accepted
        self.accepted += len(accepted)
        self.check_ends(accepted, excused)
        later = Load(self.admin)
        later.put(len(LATER), LATER)
        self.accepted += len(LATER)
        self.check_ends(later.accepted)
        self.check_nothing_left()
        self.check_alive()
        noisy = {name: self.programs[name].around("Traceback") for name, count in ears.items() if count("Traceback")}
        assert not noisy, f"{cell}: a traceback in the log of {', '.join(f'{a}: {b}' for a, b in noisy.items())}"
        self.whole = True

    @contextmanager
    def _feeding(self) -> Iterator[Load]:
        """Somebody who goes on putting tasks, one after the other, whatever breaks."""
        with KolejkaClient(self.admin.settings) as client:
            client.queues()  # it has met the server, so from now on it is patient
            load, over = Load(client), threading.Event()
            failures: list[BaseException] = []

            def feed() -> None:
                try:
                    while not over.wait(0.2):
                        load.put(1)
                except BaseException as error:
                    failures.append(error)
                    raise

            thread = threading.Thread(target=feed, name="feeder")
            thread.start()
            try:
                yield load
            finally:
                over.set()
                thread.join()
            assert not failures

    def check_ends(self, accepted: list[Expected], excused: int = 0) -> None:
        """Every accepted task has ended as it must, with one result, and is accounted for; there are no others."""
        wait_until(self._is_finished, PATIENCE_S, "every task is done")
        wrong = [f"{about}: {words}" for about, words in self._ends(accepted) if words != FAILED]
        failed = [about for about, words in self._ends(accepted) if words == FAILED]
        assert not wrong, "\n".join(wrong)
        assert len(failed) <= excused, "\n".join(failed)
        assert self.ask("SELECT COUNT(*) FROM tasks") == [(self.accepted,)]
        assert self.ask("SELECT COUNT(*) FROM leases") == [(0,)]

    def _is_finished(self) -> bool:
        self.check_alive()
        return self.ask("SELECT COUNT(*) FROM tasks WHERE state <> 'done'") == [(0,)]

    def _ends(self, accepted: list[Expected]) -> Iterator[tuple[str, str]]:
        """What is wrong with which task; ``FAILED`` for one that ended in good order, as an error of its node."""
        tasks = {row[1]: row for row in self.ask("SELECT number, id, outcome FROM tasks")}
        results = Counter(number for (number,) in self.ask("SELECT number FROM results"))
        accounts = Counter(lease for (lease,) in self.ask("SELECT lease FROM accounting"))
        attempts = defaultdict(list)
        for number, lease, state, outcome in self.ask(
            "SELECT number, lease, state, outcome FROM attempts ORDER BY lease"
        ):
            attempts[number].append((lease, state, outcome))
        for expected in accepted:
            kind = expected.kind
            if expected.id not in tasks:
                yield f"{kind.name} ({expected.id})", "it was accepted, and is not there"
                continue
            number, _, outcome = tasks[expected.id]
            tried = attempts[number]
            brought = [one for one in tried if one[1] == "done"]
            about = f"{kind.name} ({expected.id}): {outcome}, {results[number]} results, attempts {tried}"
            if results[number] != 1:
                yield about, "not one result"
            elif not brought or brought[-1] != tried[-1] or brought[-1][2] != outcome:
                yield about, "the last attempt is not the one that brought the result"
            elif {state for _, state, _ in tried} - {"done", "lost"}:
                yield about, "an attempt runs still"
            elif any(accounts[lease] != (state == "done") for lease, state, _ in tried):
                yield about, f"accounted {[accounts[lease] for lease, _, _ in tried]} times"
            elif outcome == "error" and not kind.retried:
                yield about, FAILED
            elif outcome != kind.outcome or (len(brought) != kind.attempts and not kind.retried):
                yield about, f"not {kind.outcome} after {kind.attempts} attempts with a result"
            elif words := self._wrong_bytes(expected):
                yield about, words

    def _wrong_bytes(self, expected: Expected) -> str:
        result = self.admin.result(expected.id)
        if result is None or result.outcome.value != expected.kind.outcome:
            return f"the server answers with the result {result}"
        found = result.manifest.get("out")
        if found is None or (found.sha256, found.size) != (expected.output, expected.size):
            return f"it brought {found}, not {expected.size} bytes of {expected.output}"
        ((place,),) = self.ask(f"SELECT place FROM blobs WHERE sha = '{found.sha256}'")
        stored = self.folder / "server/blobs" / place
        if hash_file(stored) != (expected.output, expected.size):
            return f"the server keeps other bytes in {stored}"
        return ""

    def check_nothing_left(self) -> None:
        """No session, process, mount or folder of a task is on the node, and no upload at the server."""
        left: list[str] = []

        def is_empty() -> bool:
            left[:] = self._left()
            return not left

        with suppress(AssertionError):  # what is still there is the answer
            wait_until(is_empty)
        assert not left, "\n".join(left)

    def _left(self) -> list[str]:
        folder = self.folder
        found = census.take(
            (), self.cgroup, range(FIRST_UID, FIRST_UID + 64), folder, folder / "worker/work",
            folder / "foreman/running", folder / "foreman/spool", folder / "server/blobs/incoming",
        ).left  # fmt: skip
        sessions = [path for path in census.entries(folder / "sessions") if _is_open(Path(path))]
        own = {str(disk.place) for disk in self._mounted}
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
        places = {line.split()[4] for line in lines}
        mounts = [f"mount {place}" for place in places - own if place.startswith(f"{folder}/")]
        return [*found, *sessions, *mounts]


def _is_open(state: Path) -> bool:
    """Whether the observer's file is that of a session, and not of one whose figures it remembers."""
    try:
        return state.name != "owner.json" and "closed" not in json.loads(state.read_text(encoding="utf-8"))
    except FileNotFoundError:  # forgotten while we looked
        return False

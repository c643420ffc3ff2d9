"""``kolejka up`` looks first, starts in order, says what to try, and stops everything however it ends.

The programs it starts are stand-ins (``fake_part.py``); the real ones run in the integration tests.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import wait_until

FAKE = Path(__file__).with_name("fake_part.py")
DRIVER = """
import os, sys
import kolejka.cli.programs as programs
programs.program = lambda name, *words: [sys.executable, "-S", {fake!r}, name, *words]
import kolejka.cli.umbrella as umbrella, kolejka.cli.up as up, kolejka.cli.doctor_all as doctor_all
os.geteuid = lambda: int(os.environ.get("FAKE_UID", "0"))
up.DRAIN_S = up.STOP_S = float(os.environ.get("FAKE_PATIENCE", "20"))
sys.argv[0] = "kolejka"
from kolejka.cli.options import main
main(umbrella.command, "kolejka")
"""


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


class System:
    """One ``kolejka up`` with stand-ins, in a folder of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.data = home / "data"
        self.notes = home / "notes"
        self.port = free_port()
        self.running: list[subprocess.Popen[str]] = []

    def start(
        self, *words: str, data: Path | None = None, port: int | None = None, **how: str
    ) -> subprocess.Popen[str]:
        environment = {
            **os.environ, "FAKE_NOTES": str(self.notes), "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            **{f"FAKE_{name.upper()}": word for name, word in how.items()},
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER.format(fake=str(FAKE)), "up", "--data", str(data or self.data),
             "--port", str(self.port if port is None else port), *words],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.running.append(process)
        return process

    def noted(self) -> list[str]:
        return self.notes.read_text().splitlines() if self.notes.exists() else []

    def wait_ready(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        said = ""
        while "kolejka execute" not in said:
            line = process.stdout.readline()
            assert line, said + (process.stderr.read() if process.stderr else "")
            said += line
        return said

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    made = System(tmp_path)
    yield made
    for process in made.running:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


def test_everything_starts_in_order_is_announced_and_stops_in_order(system: System) -> None:
    process = system.start()
    said = system.wait_ready(process)
    assert f"server    http://127.0.0.1:{system.port}" in said
    assert f"KOLEJKA_CLIENT_SERVER=http://127.0.0.1:{system.port}" in said
    assert f"KOLEJKA_CLIENT_TOKEN_FILE={system.data}/server/admin.token" in said
    wait_until(lambda: system.noted()[-2:] == ["client token with admin.token", "foreman started"])
    token = system.data / "up" / "node.token"
    assert token.read_text() == "klj_fake\n"
    assert token.stat().st_mode & 0o777 == 0o600
    process.send_signal(signal.SIGTERM)
    code, _, err = system.end(process)
    assert (code, err) == (0, "")
    assert system.noted()[-6:] == [
        "foreman heard SIGTERM", "foreman ended", "server heard SIGTERM", "server ended", "observer heard SIGTERM",
        "observer ended",
    ]  # fmt: skip
    assert {p.name for p in (system.data / "logs").iterdir()} == {"server.log", "observer.log", "foreman.log"}


def test_the_nodes_token_is_made_once_and_used_again(system: System) -> None:
    for _ in range(2):
        process = system.start()
        system.wait_ready(process)
        process.send_signal(signal.SIGINT)
        assert system.end(process)[0] == 0
    assert [line for line in system.noted() if line.startswith("client")] == [
        "client token with admin.token", "client whoami with node.token",
    ]  # fmt: skip


def test_without_a_node_there_is_a_server_only_and_no_root_is_needed(system: System) -> None:
    process = system.start("--no-node", uid="1000")
    system.wait_ready(process)
    process.send_signal(signal.SIGINT)
    assert system.end(process)[0] == 0
    assert {line.split()[0] for line in system.noted()} == {"server"}


@pytest.mark.parametrize("name", ["server", "observer", "foreman"])
def test_a_part_that_dies_takes_the_others_along_and_its_words_are_shown(system: System, name: str) -> None:
    process = system.start(**{name: "die-later"})
    system.wait_ready(process)
    Path(f"{system.notes}.die").touch()
    code, _, err = system.end(process)
    assert code == 125
    assert f"the {name} says why it dies" in err
    assert f"kolejka: the {name} ended with status 3; its log is {system.data}/logs/{name}.log" in err
    others = {"server", "observer", "foreman"} - {name}
    assert {f"{other} ended" for other in others} <= set(system.noted())


def test_a_part_that_dies_before_it_is_ready_is_told_as_well(system: System) -> None:
    process = system.start(observer="die")
    code, _, err = system.end(process)
    assert code == 125
    assert "the observer says why it dies" in err
    assert "foreman started" not in system.noted()


def test_only_the_words_of_this_run_are_shown(system: System) -> None:
    (system.data / "logs").mkdir(parents=True)
    (system.data / "logs" / "server.log").write_text("words of yesterday\n")
    code, _, err = system.end(system.start(server="die"))
    assert code == 125
    assert "says why it dies" in err
    assert "yesterday" not in err


def test_a_foreman_that_drains_too_long_is_told_again(system: System) -> None:
    process = system.start(foreman="stubborn", patience="0.2")
    system.wait_ready(process)
    process.send_signal(signal.SIGTERM)
    assert system.end(process)[0] == 0
    assert system.noted().count("foreman heard SIGTERM") == 2
    assert "foreman ended" in system.noted()


def test_a_foreman_that_tells_much_is_heard_to_the_end(system: System) -> None:
    process = system.start(foreman="talks")
    system.wait_ready(process)
    wait_until(lambda: "foreman talked" in system.noted())
    process.send_signal(signal.SIGTERM)
    assert system.end(process)[0] == 0
    assert "foreman ended" in system.noted()


def test_a_second_interrupt_ends_the_draining_at_once(system: System) -> None:
    process = system.start(foreman="stubborn")
    system.wait_ready(process)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: "foreman heard SIGTERM" in system.noted())
    process.send_signal(signal.SIGINT)
    assert system.end(process)[0] == 0
    assert system.noted().count("foreman heard SIGTERM") == 2


def test_a_part_that_does_not_listen_is_killed(system: System) -> None:
    process = system.start(server="deaf", patience="0.2")
    system.wait_ready(process)
    process.send_signal(signal.SIGTERM)
    assert system.end(process)[0] == 0
    assert "server heard SIGTERM" in system.noted()
    assert "server ended" not in system.noted()
    assert system.noted()[-1] == "observer ended"


def test_no_part_outlives_a_killed_up(system: System) -> None:
    process = system.start()
    system.wait_ready(process)
    process.kill()
    system.end(process)
    wait_until(lambda: {"server ended", "observer ended", "foreman ended"} <= set(system.noted()))


def test_a_port_in_use_is_one_line_and_nothing_is_started(system: System) -> None:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        door.listen()
        code, out, err = system.end(system.start(port=door.getsockname()[1]))
    assert (code, out) == (2, "")
    assert err.startswith("kolejka: --port: 127.0.0.1:")
    assert err.count("\n") == 1
    assert system.noted() == []


@pytest.mark.parametrize("port", ["99999", "http", "-1"])
def test_nonsense_for_a_port_is_one_line(system: System, port: str) -> None:
    code, out, err = system.end(system.start("--port", port))
    assert (code, out) == (2, "")
    assert "--port" in err
    assert err.count("\n") == 1


def test_a_second_up_on_the_same_data_is_one_line_that_names_the_first(system: System) -> None:
    first = system.start()
    system.wait_ready(first)
    code, out, err = system.end(system.start(port=0))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert f"process {first.pid}, http://127.0.0.1:{system.port}" in err
    assert first.poll() is None
    process = system.start(data=system.home / "other", port=0)
    system.wait_ready(process)


def test_what_the_machine_lacks_is_said_before_anything_starts(system: System) -> None:
    code, out, err = system.end(system.start(observer="lacks"))
    assert (code, out) == (125, "")
    assert "observer: thing: the thing is missing; cure: get it\n" in err
    assert "kolejka doctor" in err.splitlines()[-1]
    assert system.noted() == []


def test_a_node_without_root_is_refused_with_both_cures(system: System) -> None:
    code, _, err = system.end(system.start(uid="1000"))
    assert code == 125
    assert err.count("\n") == 1
    assert "sudo kolejka up" in err
    assert "--no-node" in err
    assert system.noted() == []
    assert not system.data.exists()


def test_data_that_cannot_be_made_is_one_line(system: System) -> None:
    system.data.write_text("a file")
    code, _, err = system.end(system.start())
    assert code == 2
    assert str(system.data) in err
    assert err.count("\n") == 1


def test_a_socket_path_too_long_for_the_kernel_finds_a_shorter_place(system: System) -> None:
    from kolejka.cli.up import _places

    deep = system.home / ("d" * 100)
    places = _places(deep, 1, own=True)
    assert len(str(places.socket)) < 100
    assert places.environment["KOLEJKA_WORKER_OBSERVER"] == str(places.socket)
    assert (
        _places(system.data, 1, own=True).environment["KOLEJKA_OBSERVER_CGROUP"]
        != (places.environment["KOLEJKA_OBSERVER_CGROUP"])
    )

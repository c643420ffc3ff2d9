"""The units that ship with Kolejka: systemd accepts them, and they keep what the programs count on."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

import kolejka
from tests.neighbours.cluster import PROGRAMS

SHIPPED = Path(kolejka.__file__).parent
UNITS = {path.stem: path for path in SHIPPED.glob("*/systemd/*.service")}
HOLDER = "kolejka-sessions"


def service(name: str) -> configparser.SectionProxy:
    unit = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str  # type: ignore[method-assign,assignment]
    unit.read(UNITS[name])
    return unit["Service"]


def test_every_unit_is_there_once() -> None:
    assert set(UNITS) == {"kolejka-foreman", "kolejka-observer", "kolejka-server", HOLDER}
    assert len(list(SHIPPED.glob("**/*.service"))) == len(UNITS)


@pytest.mark.needs("units")
def test_systemd_finds_nothing_to_say_about_them(tmp_path: Path) -> None:
    for path in UNITS.values():
        shutil.copy(path, tmp_path)
    files = sorted(str(path) for path in tmp_path.glob("*.service"))
    words = ["systemd-analyze", "verify", "--recursive-errors=no", "--man=no", *files]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if "kolejka" in line]
    assert (done.returncode, said) == (0, [])


@pytest.mark.parametrize("name", sorted(UNITS.keys() - {HOLDER}))
def test_a_unit_starts_the_program_of_its_name_and_waits_until_it_is_ready(name: str) -> None:
    unit = service(name)
    assert unit["Type"] == "notify"
    program = unit["ExecStart"].split()[1]
    assert program == name
    assert (PROGRAMS / program).exists()
    if name != "kolejka-server":
        assert int(unit["WatchdogSec"]) > 0


def test_sessions_are_held_by_a_unit_that_the_observer_needs() -> None:
    observer = configparser.ConfigParser(strict=True, interpolation=None)
    observer.read(UNITS["kolejka-observer"])
    assert f"{HOLDER}.service" in observer["Unit"]["Requires"]
    assert observer["Service"]["Environment"] == f"KOLEJKA_OBSERVER_BASE=/system.slice/{HOLDER}.service"
    assert service(HOLDER)["Delegate"] == "yes"


def test_the_foreman_keeps_what_its_tasks_need() -> None:
    foreman = service("kolejka-foreman")
    assert foreman["Delegate"] == "yes"
    assert not {"ProtectClock", "PrivateDevices", "DeviceAllow", "DevicePolicy"} & set(foreman), "tasks may have GPUs"
    forbidden = {"ProtectHostname", "ProtectSystem", "NoNewPrivileges", "RestrictNamespaces", "SystemCallFilter"}
    assert not forbidden & set(foreman), "sandboxes are made with these"


def test_the_server_runs_as_the_user_that_ships_with_it() -> None:
    server = service("kolejka-server")
    lines = UNITS["kolejka-server"].with_suffix(".sysusers").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("u ")]
    assert [server["User"]] == users
    assert "Environment" not in server, "a variable would override what the settings' file says"

"""Debian packages: what they bring, on a whole Debian with a systemd of its own, from installation to purge."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.neighbours.guest import Guest
from tests.packages.conftest import DEBS, build, install
from tests.support import wait_until

pytestmark = pytest.mark.needs("nspawn", "debhelper")

SERVICES = ("kolejka-server", "kolejka-sessions", "kolejka-observer")
SPEC = "kolejka_task.json"


def put(guest: Guest, name: str, spec: dict[str, object]) -> str:
    """Make a task's folder in the guest and put it on its server; its id."""
    guest.run("install", "-d", f"/root/{name}")
    guest.run("tee", f"/root/{name}/{SPEC}", input=json.dumps(spec))
    return str(json.loads(guest.run("kolejka", "task", "put", f"/root/{name}", "--json"))[0]["id"])


def task(guest: Guest, key: str) -> dict[str, object]:
    """What the server says of a task."""
    found: dict[str, object] = json.loads(guest.run("kolejka", "task", "show", key, "--json"))
    return found


def become_node(guest: Guest) -> None:
    """Give the foreman its token, as docs/nodes.md says, and have it work."""
    guest.run("kolejka", "user", "create", "lab-01", "--role", "node")
    token = guest.run("kolejka", "token", "create", "--user", "lab-01", "--role", "node").strip()
    guest.run("install", "-m", "600", "/dev/stdin", "/etc/kolejka/foreman.env", input=f"KOLEJKA_CLIENT_TOKEN={token}\n")
    guest.run("systemctl", "enable", "--now", "kolejka-foreman")


def pid_of(guest: Guest, unit: str) -> str:
    return guest.property(f"{unit}.service", "MainPID")


def running(guest: Guest, key: str, word: str) -> str:
    """The process id of a task's payload, once there is one; ``word`` is its command's first."""

    def pid() -> str:
        return guest.run("pgrep", "--exact", "--full", word, status=None).strip()

    return wait_until(pid, 60, f"{key} runs: {task(guest, key)}")


def left(guest: Guest) -> list[str]:
    """What is there of Kolejka; users and groups stay by Debian's custom."""
    places = ("/etc", "/usr", "/var", "/run", "/lib/systemd")
    words = ("find", *places, "-name", "*kolejka*", "-not", "-path", "/var/log/*")
    return guest.run(*words, status=None).splitlines()


def test_the_same_tree_gives_the_same_bytes(debs: Path, tmp_path: Path) -> None:
    again = build(tmp_path / "again")
    assert (again / "SHA256SUMS").read_text() == (debs / "SHA256SUMS").read_text()
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=debs, check=True)


@pytest.mark.needs("lintian")
def test_lintian_finds_nothing(debs: Path) -> None:
    command = ["lintian", "--fail-on", "error,warning", "--tag-display-limit", "0", *sorted(debs.glob("*.deb"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith(("E:", "W:"))]
    assert (found, done.returncode) == ([], 0)


def test_every_command_and_the_settings_file_have_their_manual_page(debs: Path) -> None:
    for path in debs.glob("*.deb"):
        listed = subprocess.run(["dpkg-deb", "--contents", path], capture_output=True, text=True, check=True).stdout
        files = {line.split()[5].removeprefix(".") for line in listed.splitlines()}
        commands = {name.rpartition("/")[2] for name in files if re.fullmatch("/usr/bin/[^/]+", name)}
        assert {name for name in files if name.startswith("/usr/share/man/man1/k")} == {
            f"/usr/share/man/man1/{name}.1.gz" for name in commands
        }
        assert ("/usr/share/man/man5/kolejka.toml.5.gz" in files) == ("/etc/kolejka/kolejka.toml" in files)
        assert not [name for name in files if "__pycache__" in name]


def test_they_install_where_no_systemd_runs(debs: Path) -> None:
    guest = Guest()
    try:
        for path in debs.glob("*.deb"):
            (guest.root / path.name).write_bytes(path.read_bytes())
        guest.chroot("sh", "-c", "apt-get install --yes --no-install-recommends /*.deb")
        assert "execute" in guest.chroot("kolejka-client", "--help")
        enabled = guest.root / "etc/systemd/system/multi-user.target.wants"
        assert {path.name for path in enabled.iterdir()} >= {"kolejka-server.service", "kolejka-observer.service"}
        guest.chroot("apt-get", "purge", "--yes", "kolejka-common")
        assert not (guest.root / "usr/lib/kolejka").exists()
    finally:
        guest.stop()


def test_a_client_brings_no_server(guest_with: Callable[..., Guest]) -> None:
    guest = guest_with()
    assert "kolejka-client" in guest.run("kolejka", "execute", "/nowhere", "/tmp/result", status=2)
    assert guest.run("sh", "-c", "command -v kolejka-server", status=127) == ""
    packages = guest.run("ls", "/usr/lib/kolejka/lib/python3.11/site-packages").split()
    assert "requests" in packages
    assert not {"peewee.py", "psycopg", "boto3", "docker"} & set(packages)


def test_from_installation_over_an_upgrade_to_purge(guest_with: Callable[..., Guest]) -> None:
    guest = guest_with("kolejka-server", "kolejka-node")

    # Installed: server and observer run, the foreman waits to be told its server.
    for name in SERVICES:
        assert guest.property(f"{name}.service", "ActiveState") == "active", guest.journal(name)
    assert guest.property("kolejka-foreman.service", "ActiveState") == "inactive"
    assert guest.property("kolejka-foreman.service", "UnitFileState") == "disabled"
    units = [f"{name}.service" for name in (*SERVICES, "kolejka-foreman")]
    said = guest.run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units)
    assert "kolejka" not in said
    stat = ["stat", "--format=%U:%G %a"]
    assert guest.run(*stat, "/var/lib/kolejka/server/admin.token").split() == ["kolejka-server:kolejka-server", "600"]
    assert guest.run(*stat, "/run/kolejka/observer/socket").split()[0] == "root:kolejka"
    assert "/etc/kolejka/kolejka.toml" in guest.run(
        "dpkg-query", "--show", "--showformat=${Conffiles}", "kolejka-common"
    )

    # What the store of blobs needs is there, and there is no such store.
    words = ["--data", "/tmp/other", "--port", "0", "--blobs", "s3://bucket/x", "--s3-endpoint", "http://127.0.0.1:1"]
    secrets = ["env", "KOLEJKA_SERVER_S3_KEY=key", "KOLEJKA_SERVER_S3_SECRET=word"]
    said = guest.run(*secrets, "kolejka-server", "runserver", *words, status=125).splitlines()
    assert len(said) == 1
    assert "the store of blobs fails: Could not connect" in said[0]

    # Who is in the group may open sessions, others may not.
    guest.run("useradd", "--groups", "kolejka", "judge")
    guest.run("useradd", "stranger")
    command = ["kolejka-observer", "run", "--observer", "/run/kolejka/observer/socket", "--memory", "64M", "--", "true"]
    guest.run("runuser", "-u", "judge", "--", *command)
    refused = guest.run("runuser", "-u", "stranger", "--", *command, status=None).splitlines()
    assert len(refused) == 1
    assert "only root and members of the socket's group" in refused[0]

    # It runs tasks, and holds them.
    become_node(guest)
    fine = put(guest, "fine", {"args": ["sh", "-c", "echo $((6 * 7))"], "stdout": "out", "limits": {"memory": "32M"}})
    guest.run("kolejka", "result", "get", fine, "/root/fine-result", "--wait")
    assert guest.run("cat", "/root/fine-result/out") == "42\n"
    hog = put(guest, "hog", {"args": ["python3", "-c", "'x' * (1 << 28)"], "limits": {"memory": "32M"}})
    guest.run("kolejka", "result", "get", hog, "/root/hog-result", "--wait", status=None)
    result = json.loads(guest.run("cat", "/root/hog-result/kolejka_result.json"))
    assert (result["outcome"], result["limit"]) == ("limit", "memory")

    # An upgrade leaves what runs alone: sessions stay, the task ends as it would have, settings stay the admin's.
    guest.run("sh", "-c", "echo '# mine' >> /etc/kolejka/kolejka.toml")
    long = put(guest, "long", {"args": ["sh", "-c", "sleep 987 & wait; echo finished"], "stdout": "out"})
    payload = running(guest, long, "sleep 987")
    before = {name: pid_of(guest, name) for name in (*SERVICES, "kolejka-foreman")}
    install(guest, "kolejka-server", "kolejka-node", folder=Path("/newer"))
    assert guest.run("dpkg-query", "--show", "--showformat=${Version}", "kolejka-node").endswith("+next")
    after = {name: pid_of(guest, name) for name in before}
    assert after["kolejka-sessions"] == before["kolejka-sessions"]
    assert after["kolejka-observer"] not in {before["kolejka-observer"], "0"}
    assert after["kolejka-server"] not in {before["kolejka-server"], "0"}
    assert running(guest, long, "sleep 987") == payload
    guest.run("kill", payload)
    guest.run("kolejka", "result", "get", long, "/root/long-result", "--wait")
    assert guest.run("cat", "/root/long-result/out") == "finished\n"
    assert len(task(guest, long)["attempts"]) == 1  # type: ignore[arg-type]
    wait_until(lambda: pid_of(guest, "kolejka-foreman") not in {before["kolejka-foreman"], "0"}, 60, "a new foreman")
    assert "# mine" in guest.run("cat", "/etc/kolejka/kolejka.toml")
    assert guest.property("kolejka-foreman.service", "UnitFileState") == "enabled"

    # A node that is removed gives its tasks back, and leaves nothing that runs; its data and settings stay.
    back = put(guest, "back", {"args": ["sleep", "986"]})
    running(guest, back, "sleep 986")
    guest.run("apt-get", "remove", "--yes", "kolejka-node")
    assert task(guest, back)["state"] == "waiting"
    assert guest.run("pgrep", "--full", "kolejka-(foreman|observer|worker)|sleep", status=1) == ""
    groups = "find /sys/fs/cgroup -mindepth 2 -path '*kolejka*' -type d -not -path '*kolejka-server*'"
    assert guest.run("sh", "-c", groups) == ""
    guest.run("test", "-e", "/var/lib/kolejka/foreman", "-a", "-e", "/etc/kolejka/foreman.env")
    guest.run("test", "!", "-e", "/run/kolejka/observer")

    # Installed again it goes on where it was; the task runs on it after all.
    install(guest, "kolejka-node", folder=Path("/newer"))
    guest.run("systemctl", "enable", "--now", "kolejka-foreman")
    running(guest, back, "sleep 986")
    guest.run("kolejka", "task", "cancel", back)

    # Purge removes state, each package its own, and only purge does.
    guest.run("apt-get", "purge", "--yes", "kolejka-node")
    guest.run("test", "!", "-e", "/var/lib/kolejka/foreman", "-a", "!", "-e", "/etc/kolejka/foreman.env")
    assert task(guest, fine)["state"] == "done"
    guest.run("apt-get", "remove", "--yes", "kolejka-server")
    guest.run("test", "-e", "/var/lib/kolejka/server/database.sqlite3", "-o", "-e", "/var/lib/kolejka/server/lock")
    guest.run("apt-get", "purge", "--yes", "kolejka-server", "kolejka-client", "kolejka-common")
    assert left(guest) == []
    assert guest.run("systemctl", "--failed", "--no-legend") == ""


def test_a_maintainer_script_may_run_again(guest_with: Callable[..., Guest]) -> None:
    guest = guest_with("kolejka-server", "kolejka-node")
    names = ("kolejka-common", "kolejka-client", "kolejka-server", "kolejka-node")
    held = pid_of(guest, "kolejka-sessions")
    guest.run("sh", "-c", f"apt-get install --yes --reinstall {' '.join(f'{DEBS}/{name}_*.deb' for name in names)}")
    for name in ("kolejka-server", "kolejka-node"):
        guest.run(f"/var/lib/dpkg/info/{name}.postinst", "configure", "")
    assert pid_of(guest, "kolejka-sessions") == held
    guest.run("apt-get", "purge", "--yes", "kolejka-server")
    guest.run("env", "DPKG_MAINTSCRIPT_PACKAGE=kolejka-server", "dpkg", "--purge", "kolejka-server", status=None)
    assert guest.property("kolejka-observer.service", "ActiveState") == "active"
    assert os.fspath(DEBS) == "/debs"

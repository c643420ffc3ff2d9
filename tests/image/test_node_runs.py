"""A machine that boots kernel and initrd runs tasks on control groups v2, keeps its limits, and loses none when it
dies."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from image.build import Image
from kolejka.common.result import Outcome
from tests.e2e.test_examples_hold import Readme, check_figures
from tests.image.node import BOOT_S, Node, check_container, credential, is_active, kernel_words
from tests.machine.qemu import drive, write_scratch
from tests.neighbours.cluster import Cluster, copy_examples
from tests.support import wait_until

pytestmark = pytest.mark.needs("root", "image")

Boot = Callable[..., Node]
EXAMPLES = ("uname", "stdin", "files", "python", "memory-bomb", "fork-bomb", "c-compile")


def media(image: Image, initrd: Path, folder: Path, name: str, token: str, *words: str) -> list[str]:
    """A whole node with a scratch disk; its secrets are credentials."""
    scratch = folder / f"{name}.ext4"
    write_scratch(scratch)
    return [
        *kernel_words(image, initrd, f"kolejka.name={name}", "kolejka.tags=room:1077,emulated", *words),
        *credential(folder, "kolejka.token", token),
        *credential(folder, "kolejka.ssh_keys", (folder / "id_ed25519.pub").read_text()),
        *drive(scratch, "cache=unsafe"),
    ]


@pytest.fixture(scope="module")
def alpha(
    boot: Boot, image: Image, initrd: Path, folder: Path, server: Cluster, secured: tuple[str, Path], token: str
) -> Node:
    """A node that the server has heard, by TLS."""
    word, authority = secured
    words = media(image, initrd, folder, "alpha", token, word, "kolejka.client.token=klj_wrong")
    node = boot("alpha", [*words, *credential(folder, "kolejka.ca", authority.read_text())])
    node.program.wait_ready(lambda: is_active(server, "alpha"), BOOT_S)
    node.wait_ssh()
    return node


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_ends_there_as_its_readme_says(name: str, alpha: Node, server: Cluster, tmp_path: Path) -> None:
    copy_examples(tmp_path / "examples")
    readme = Readme.read(name)
    token = (server.folder / "server/admin.token").read_text().strip()
    run = server.run(*readme.command, cwd=tmp_path, env={"KOLEJKA_CLIENT_TOKEN": token}, timeout_s=400)
    result = readme.check(run.returncode, run.stdout + run.stderr, tmp_path / readme.command[-1])
    check_figures(name, result)
    assert result.node is not None
    assert result.node["name"] == "alpha"
    assert {"room:1077", "emulated"} <= set(result.node["tags"])


def test_it_runs_by_the_units_that_we_ship_on_control_groups_of_version_2(alpha: Node) -> None:
    controllers = alpha.run("cat /sys/fs/cgroup/cgroup.controllers").split()
    assert {"cpu", "cpuset", "io", "memory", "pids"} <= set(controllers)
    assert alpha.run("systemctl is-active kolejka-sessions kolejka-observer kolejka-foreman").split() == ["active"] * 3
    assert alpha.run("systemctl --failed --no-legend --plain") == ""
    assert alpha.run("systemctl show -p Delegate --value kolejka-sessions") == "yes"
    for unit, least in (("kolejka-observer", 10), ("kolejka-foreman", 10)):
        words = alpha.run(f"systemctl show -p WatchdogUSec -p OOMScoreAdjust {unit}")
        assert "WatchdogUSec=0" not in words, least
        assert "OOMScoreAdjust=-9" in words


def test_it_is_kept_as_a_measuring_machine_should_be(alpha: Node) -> None:
    assert alpha.run("cat /proc/swaps").count("\n") == 0
    assert "some avg10" in alpha.run("cat /proc/pressure/memory")
    assert "systemd-timesyncd.service" in alpha.run(
        "systemctl list-units --no-legend --plain systemd-timesyncd.service"
    )
    assert alpha.run("ls /var/log/journal 2>/dev/null || echo none") == "none"
    assert "kolejka-node" in alpha.run("cat /etc/os-release")
    assert alpha.run("getent hosts $(hostname)").startswith("127.0.1.1"), "it knows its own name"


def test_its_engine_runs_containers_and_lays_its_layers_on_no_overlay(
    alpha: Node, server: Cluster, busybox_root_tar: Path
) -> None:
    check_container(alpha, server, "docker", busybox_root_tar, "emulated")
    assert alpha.run("docker info --format {{.Driver}}") == "overlay2"
    assert alpha.run("stat -f -c %T /var/lib/docker /var/lib/kolejka").split() == ["ext2/ext3"] * 2


def test_its_doctors_miss_nothing(alpha: Node) -> None:
    heard: list[dict[str, object]] = []

    def all_green() -> bool:
        """Once the machine, emulated on a busy one, is quick enough for the umbrella's patience with each doctor."""
        said = alpha.ssh("sudo kolejka doctor --json", timeout_s=600)
        heard[:] = json.loads(said.stdout)
        return said.returncode == 0

    wait_until(all_green, BOOT_S, "all doctors are content")
    wrong = [check for check in heard if not check["ok"]]
    assert [check["check"] for check in wrong if check["absent"]] == ["server"], "no node is one"
    assert not [check for check in wrong if not check["absent"]]
    names = {str(check["check"]).removeprefix("foreman: ") for check in heard}
    assert {f"timing: {name}" for name in ("SMT", "governor", "turbo", "ASLR", "swap")} <= names


def test_its_journal_stays_small_whatever_a_program_says(alpha: Node) -> None:
    # what has no pattern is kept as long as it is; lines are as long as the journal takes them
    alpha.run("head -c 60000000 /dev/urandom | base64 -w 40000 | systemd-cat -t flood", timeout_s=600)
    said = alpha.run("journalctl --disk-usage")
    (size,) = re.findall(r"take up ([0-9.]+)M", said)
    assert 40 <= float(size) <= 64 + 8, said
    assert "flood" in alpha.run("journalctl -n 1 -t flood -o short | cut -c 1-80")
    assert alpha.run("systemctl is-active systemd-journald") == "active"


def test_a_task_that_will_not_end_is_ended_and_the_next_one_runs(alpha: Node, server: Cluster) -> None:
    stubborn = "trap true HUP INT TERM; while true; do setsid sh -c 'kill -STOP $$' & sleep 0.1; done"
    result, _ = run_spec(server, {"args": ["sh", "-c", stubborn], "limits": {"time": "5s", "pids": 50}})
    assert (result.outcome, result.limit) == (Outcome.LIMIT, "time")
    result, _ = run_spec(server, {"args": ["true"]})
    assert result.outcome is Outcome.OK
    assert not [line for line in alpha.run("ps -eo stat,comm").splitlines() if line.startswith("T")]


def test_nobody_gets_in_but_the_deployer(alpha: Node, folder: Path) -> None:
    assert alpha.ssh("true", user="root").returncode == 255
    done = subprocess.run(
        ["ssh", "-q", "-p", str(alpha.ssh_port), "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes", "-o",
         "IdentitiesOnly=yes", "-o", "IdentityFile=/nonexistent", "-o", f"UserKnownHostsFile={folder / 'known_hosts'}",
         "admin@127.0.0.1", "true"], capture_output=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 255
    passwords = [line.split(":")[1] for line in alpha.run("cat /etc/shadow").splitlines()]
    assert all(word.startswith(("!", "*")) for word in passwords)


def test_its_secrets_are_roots_own_and_none_stood_on_the_command_line(alpha: Node, token: str, server: Cluster) -> None:
    assert (
        alpha.run("stat -L -c %a:%U /run/kolejka/node/kolejka.toml /run/kolejka/node/token").split() == ["600:root"] * 2
    )
    assert alpha.ssh("cat /run/kolejka/node/token").returncode != 0
    console = alpha.program.log.read_text(errors="replace")
    assert "kolejka.client.token: refused" in console
    assert token not in console
    assert "klj_wrong" not in console.partition("refused")[2]
    spec = {"args": ["cat", "/proc/cmdline"], "stdout": "words", "limits": {"time": "60s"}}
    result, folder = run_spec(server, spec)
    assert result.outcome is Outcome.OK
    assert (folder / "words").read_text() == ""


def run_spec(server: Cluster, spec: dict[str, object]):  # type: ignore[no-untyped-def]
    """Run a task without files; its result and where that lies."""
    task = str(server.admin.put_spec(spec)["id"])
    result = server.admin.wait(task, 300)
    target = server.folder / f"result-{task}"
    server.admin.get_result(task, target)
    return result, target


def test_a_drained_node_takes_nothing(alpha: Node, server: Cluster) -> None:
    server.admin.drain_node("alpha")
    wait_until(lambda: "node takes no more tasks" in alpha.run("journalctl -u kolejka-foreman -o cat"), 60)
    task = str(server.admin.put_spec({"args": ["true"]})["id"])
    assert server.admin.task(task)["state"] == "waiting"
    server.admin.resume_node("alpha")
    assert server.admin.wait(task, 300).outcome is Outcome.OK


def test_a_task_of_a_node_that_dies_is_finished_by_another(
    alpha: Node, boot: Boot, image: Image, initrd: Path, folder: Path, server: Cluster, server_word: str, token: str
) -> None:
    task = str(server.admin.put_spec({"args": ["sleep", "30"], "limits": {"time": "5min"}})["id"])
    wait_until(lambda: server.admin.task(task)["state"] == "running", 120)
    alpha.kill()
    beta = boot("beta", media(image, initrd, folder, "beta", token, server_word))
    beta.program.wait_ready(lambda: server.admin.task(task)["state"] == "done", BOOT_S * 2)
    result = server.admin.wait(task, 60)
    assert result.outcome is Outcome.OK
    assert result.node is not None
    assert result.node["name"] == "beta"
    attempts = server.admin.task(task)["attempts"]
    assert attempts == 2 or len(attempts) == 2

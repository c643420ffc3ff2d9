"""The life of a booted node: it asks to be let in, proves its limits, shows itself, sends its log, and boots anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from image.build import Image
from kolejka.common.limits import LIMITS
from tests.image.node import BOOT_S, Node, credential, kernel_words
from tests.image.test_node_runs import is_active
from tests.machine.qemu import drive, write_scratch
from tests.neighbours.cluster import Cluster
from tests.support import wait_until

pytestmark = pytest.mark.needs("root", "image")

Boot = Callable[[str, list[str]], Node]
NAME = "gamma"


def test_the_life_of_a_booted_node(
    boot: Boot, image: Image, initrd: Path, folder: Path, server: Cluster, server_word: str
) -> None:
    admin = {"KOLEJKA_CLIENT_TOKEN": (server.folder / "server/admin.token").read_text().strip()}

    def kolejka(*words: str) -> str:
        done = server.run("kolejka", "node", *words, env=admin, timeout_s=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def asking() -> list[dict[str, Any]]:
        return [one for one in server.admin.enrolments() if one["name"] == NAME]

    scratch = folder / "gamma.ext4"
    write_scratch(scratch)
    media = [
        *kernel_words(image, initrd, server_word, f"kolejka.name={NAME}", "kolejka.prove=1"),
        *credential(folder, "kolejka.ssh_keys", (folder / "id_ed25519.pub").read_text()),
        *drive(scratch, "cache=unsafe"),
    ]
    node = boot(NAME, media)

    # it asks, shows on its screen what it shows the admin, and is nobody until it is let in
    node.program.wait_ready(asking, BOOT_S)
    (request,) = asking()
    node.wait_ssh()
    screen = node.run("kolejka-foreman screen --once")
    assert request["fingerprint"] in screen
    assert f"node approve {NAME}" in screen
    assert node.run("systemctl is-active kolejka-screen@tty1 kolejka-screen@ttyS0").split() == ["active"] * 2
    assert not is_active(server, NAME)
    kolejka("approve", NAME, "--fingerprint", request["fingerprint"])

    # it broke each of its limits once before it took work
    node.program.wait_ready(lambda: is_active(server, NAME), BOOT_S)
    shown = wait_until(lambda: _with_proof(json.loads(kolejka("show", NAME, "--json"))), BOOT_S)
    assert shown["proof"]["passed"], shown["proof"]
    held = {check["limit"] for check in shown["proof"]["checks"] if check["held"]}
    assert {"memory", "pids", "time", "cpu_time", "output", "storage", "workspace", "network"} <= held <= set(LIMITS)
    assert (shown["image"]["id"], shown["image"]["version"]) == ("kolejka-node", "0.0.tests")

    # the journal of its units is read from afar
    lines = json.loads(kolejka("log", NAME, "-n", "500", "--json"))["lines"]
    assert any("observer serves" in line for line in lines)

    # it boots anew when nothing runs there, and is known again: its disk kept what it was let in by
    kolejka("reboot", NAME, "--when-idle")
    node.wait_gone()
    again = boot(NAME, media)
    again.program.wait_ready(
        lambda: json.loads(kolejka("show", NAME, "--json")).get("boot") not in {None, shown["boot"]}, BOOT_S
    )
    wait_until(lambda: is_active(server, NAME), BOOT_S)
    again.kill()


def _with_proof(node: dict[str, Any]) -> dict[str, Any] | None:
    return node if node.get("proof") else None

"""The life of a booted node: it asks to be let in, proves its limits, shows itself, sends its log, and boots anew into
a newer image. And a node whose limits do not hold."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from image.build import Image
from kolejka.common.limits import LIMITS
from kolejka.common.result import Outcome
from tests.image.node import BOOT_S, HOST, SMALL, Node, credential, is_active, kernel_words
from tests.machine.layer import pack_layer
from tests.machine.qemu import drive, write_scratch
from tests.neighbours.cluster import Cluster

pytestmark = pytest.mark.needs("root", "image")

Boot = Callable[..., Node]
NAME = "gamma"
NEWER = "0.1.tests"


class Server(Cluster):
    """A server that an admin asks by the command line, and that can be started anew with other settings."""

    def kolejka(self, *words: str) -> str:
        """What ``kolejka node …`` prints for an admin."""
        admin = {"KOLEJKA_CLIENT_TOKEN": (self.folder / "server/admin.token").read_text().strip()}
        done = self.run("kolejka", "node", *words, env=admin, timeout_s=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def show(self, name: str) -> dict[str, Any]:
        """What is known of a node; nothing where it is not known."""
        if not any(node["name"] == name for node in self.admin.nodes()):
            return {}
        shown: dict[str, Any] = json.loads(self.kolejka("show", name, "--json"))
        return shown

    def demand(self, version: str) -> None:
        """Start it anew, so that it demands this version of the image."""
        self.programs["server"].stop()
        self.environment["KOLEJKA_SERVER_MINIMUM_IMAGE"] = version
        self.start_server()


@pytest.fixture(scope="module")
def own(folder: Path) -> Iterator[Server]:
    """A server of this module's own, since its settings change."""
    cluster = Server(folder / "life", {"KOLEJKA_SERVER_HEARTBEAT": "45s"})
    cluster.start_server()
    yield cluster
    cluster.check_quiet()
    cluster.stop()


def newer_image(image: Image, folder: Path) -> Path:
    """A layer that makes the image one of a newer version."""
    release = "usr/lib/os-release"
    text = subprocess.run(["unsquashfs", "-cat", image.squashfs, release], capture_output=True, text=True, check=True)
    words, count = re.subn("(?m)^IMAGE_VERSION=.*$", f"IMAGE_VERSION={NEWER}", text.stdout)
    assert count == 1
    content = folder / "newer"
    (content / release).parent.mkdir(parents=True)
    (content / release).write_text(words)
    layer = folder / "newer.squashfs"
    pack_layer(content, layer, {})
    return layer


def test_the_life_of_a_booted_node(boot: Boot, image: Image, initrd: Path, folder: Path, own: Server) -> None:
    def asking() -> list[dict[str, Any]]:
        return [one for one in own.admin.enrolments() if one["name"] == NAME]

    def media(*words: str) -> list[str]:
        return [
            *kernel_words(image, initrd, f"kolejka.server=http://{HOST}:{own.port}", f"kolejka.name={NAME}", *words),
            *credential(folder, "kolejka.ssh_keys", (folder / "id_ed25519.pub").read_text()),
            *drive(scratch, "cache=unsafe"),
        ]

    scratch = folder / "gamma.ext4"
    write_scratch(scratch)
    node = boot(NAME, media("kolejka.prove=1"))

    # it asks, shows on its screen what it shows the admin, and is nobody until it is let in
    node.program.wait_ready(asking, BOOT_S)
    (request,) = asking()
    node.wait_ssh()
    screen = node.run("kolejka-foreman screen --once")
    assert request["fingerprint"] in screen
    assert f"node approve {NAME}" in screen
    assert node.run("systemctl is-active kolejka-screen@tty1 kolejka-screen@ttyS0").split() == ["active"] * 2
    assert not is_active(own, NAME)
    own.kolejka("approve", NAME, "--fingerprint", request["fingerprint"])

    # it broke each of its limits once before it took work
    node.program.wait_ready(lambda: own.show(NAME).get("proof"), BOOT_S)
    shown = own.show(NAME)
    assert shown["proof"]["passed"], shown["proof"]
    held = {check["limit"] for check in shown["proof"]["checks"] if check["held"]}
    assert {"memory", "pids", "time", "cpu_time", "output", "storage", "workspace", "network"} <= held <= set(LIMITS)
    assert (shown["image"]["id"], shown["image"]["version"]) == ("kolejka-node", "0.0.tests")

    # the journal of its units is read from afar
    lines = json.loads(own.kolejka("log", NAME, "-n", "500", "--json"))["lines"]
    assert any("observer serves" in line for line in lines)

    # the server demands a newer image: the node takes nothing, and what to do is said to whoever asks
    own.demand(NEWER)
    task = str(own.admin.put_spec({"args": ["true"], "limits": SMALL})["id"])
    node.program.wait_ready(lambda: own.show(NAME)["state"] == "outdated", 60)
    said = f"its image is version 0.0.tests, and this server demands {NEWER}; reboot it into"
    assert said in own.kolejka("show", NAME)
    assert said in str(own.admin.why(task)["reasons"])

    # it boots anew when nothing runs there, is known again since its disk kept what it was let in by, and works
    own.kolejka("reboot", NAME, "--when-idle")
    node.wait_gone()
    assert own.admin.task(task)["state"] == "waiting"
    newer = [*media("kolejka.layer=/dev/vdb"), *drive(newer_image(image, folder), "readonly=on")]
    again = boot(NAME, newer)
    again.program.wait_ready(lambda: own.admin.task(task)["state"] == "done", BOOT_S)
    assert own.admin.wait(task, 60).outcome is Outcome.OK
    fresh = own.show(NAME)
    assert fresh["image"]["version"] == NEWER
    assert fresh["boot"] not in {None, shown["boot"]}
    again.kill()


def test_a_node_whose_limits_do_not_hold_takes_no_tasks_and_says_why(
    boot: Boot, image: Image, initrd: Path, folder: Path, own: Server
) -> None:
    own.demand("")
    own.admin.create_user("broken", "node")
    token = str(own.admin.create_token("broken", role="node")["token"])
    words = [f"kolejka.server=http://{HOST}:{own.port}", "kolejka.name=delta", "kolejka.tags=boot:delta"]
    # a kernel that cannot pin a task to its CPUs
    media = kernel_words(image, initrd, *words, "kolejka.prove=1", "cgroup_disable=cpuset")
    node = boot("delta", [*media, *credential(folder, "kolejka.token", token)])
    task = str(own.admin.put_spec({"args": ["true"], "requires": ["boot:delta"], "limits": SMALL})["id"])
    node.program.wait_ready(lambda: own.show("delta").get("proof"), BOOT_S)
    shown = own.show("delta")
    assert not shown["proof"]["passed"]
    assert shown["state"] == "quarantined"
    assert "cpus on sandbox" in shown["reason"]
    text = own.kolejka("show", "delta")
    assert "FAILED" in text
    assert "these limits do not hold here: cpus on sandbox" in text
    assert own.admin.task(task)["state"] == "waiting"
    assert "quarantined" in str(own.admin.why(task)["reasons"])
    node.kill()

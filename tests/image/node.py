"""A booted node beside the tests: qemu as a program with its console in a file, reached by ssh and by the server only.

The guest reaches the host's loopback as 10.0.2.2, unless it stands on a network of the test's own. Success is what the
server or ssh says, never a string on the console; the console is kept for failures.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

from image.build import Image
from tests.machine.qemu import BARE, QUICK_WORDS, accelerator
from tests.neighbours.cluster import ROOT, Cluster, free_port
from tests.neighbours.processes import Program
from tests.support import wait_until

HOST: Final = "10.0.2.2"
MEMORY: Final = "3072"
BOOT_S: Final = 420.0
"""A boot takes one minute of a machine that does nothing else; allow for one that does."""
SMALL: Final = {"memory": "64M", "workspace": "16M", "storage": "16M"}
"""What a task may have of a machine without a disk, which keeps all of it in memory."""
TASKS_IMAGE: Final = "docker.io/kolejka/busybox:latest"
FIRMWARE: Final = Path("/usr/share/OVMF")


class Node:
    """One machine. ``media`` are qemu's words for what it boots from, ``network`` those for its cable, if that is not
    one to the host's loopback, and ``card`` what it is plugged into."""

    def __init__(
        self, name: str, image: Image, folder: Path, media: Sequence[str], *, memory: str = MEMORY,
        network: str | None = None, card: str = "virtio-net-pci",
    ) -> None:  # fmt: skip
        self.name = name
        self.folder = folder
        self.ssh_port = free_port()
        self.key = folder / "id_ed25519"
        if not self.key.exists():
            make_key(self.key)
        forward = f"hostfwd=tcp:127.0.0.1:{self.ssh_port}-:22"
        cable = network or f"user,id=net,hostname={name}-by-dhcp,{forward},tftp={folder},bootfile=boot.ipxe"
        command = [
            "qemu-system-x86_64", *accelerator(image.kernel), *BARE, "-m", memory,
            "-device", f"{card},netdev=net", "-netdev", cable, *media,
        ]  # fmt: skip
        self.program = Program(name, command, folder / f"{name}.console")

    def ssh(
        self, *words: str, user: str = "admin", timeout_s: float = 240, stdin: IO[bytes] | int = subprocess.DEVNULL
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the node."""
        return subprocess.run(
            ["ssh", "-q", "-i", self.key, "-p", str(self.ssh_port), "-o", "StrictHostKeyChecking=no", "-o",
             "BatchMode=yes",
             "-o", f"UserKnownHostsFile={self.folder / 'known_hosts'}", "-o", "ConnectTimeout=60",
             f"{user}@127.0.0.1", *words],
            stdin=stdin, capture_output=True, text=True, check=False, timeout=timeout_s,
        )  # fmt: skip

    def run(self, command: str, timeout_s: float = 240) -> str:
        """What a shell command prints there, as root. AssertionError when it fails."""
        done = self.ssh(f"sudo sh -c {shlex.quote(command)}", timeout_s=timeout_s)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}\n{self.program.tail(20)}"
        return done.stdout.strip()

    def wait_ssh(self) -> None:
        """Wait until it lets us in."""
        self.program.wait_ready(lambda: self.ssh("true", timeout_s=120).returncode == 0, BOOT_S)

    def wait_gone(self) -> None:
        """Wait until the machine is off (a reboot ends qemu here)."""
        wait_until(lambda: not self.program.alive, BOOT_S, f"{self.name} is off")

    def kill(self) -> None:
        """Pull the plug."""
        self.program.kill()


def keep_consoles(place: Path, kept: Path) -> None:
    """Keep what machines said, and no file that holds a secret: who looks into a failure begins there."""
    kept.mkdir(parents=True, exist_ok=True)
    for console in place.glob("*.console"):
        shutil.copy(console, kept)


def make_key(path: Path) -> None:
    """A key of the deployer's."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True, stdin=subprocess.DEVNULL)


def kernel_words(image: Image, initrd: Path, *words: str) -> list[str]:
    """qemu's words for a kernel and an initrd that has everything."""
    return [
        "-kernel",
        os.fspath(image.kernel),
        "-initrd",
        os.fspath(initrd),
        "-append",
        " ".join([QUICK_WORDS, *words]),
    ]


def credential(folder: Path, name: str, text: str) -> list[str]:
    """qemu's words for a credential, by a file so that it stands in no command line."""
    path = folder / f"credential-{name}"
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    return ["-fw_cfg", f"name=opt/io.systemd.credentials/{name},file={path}"]


def firmware(folder: Path, name: str) -> list[str]:
    """UEFI with variables of its own."""
    variables = folder / f"{name}.vars"
    shutil.copy(FIRMWARE / "OVMF_VARS_4M.fd", variables)
    return [
        "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={FIRMWARE / 'OVMF_CODE_4M.fd'}",
        "-drive", f"if=pflash,unit=1,format=raw,file={variables}",
    ]  # fmt: skip


def is_active(server: Cluster, name: str) -> bool:
    """Whether the server has heard the node."""
    return any(node["name"] == name and node["state"] == "active" for node in server.admin.nodes())


def check_in(node: Node, server: Cluster, tag: str | None = None) -> None:
    """Wait until the server has heard the node, and let it run one task, by the tag ``boot:NAME`` or another."""
    node.program.wait_ready(lambda: is_active(server, node.name), BOOT_S)
    words = {"args": ["true"], "requires": [tag or f"boot:{node.name}"], "limits": SMALL}
    result = server.admin.wait(str(server.admin.put_spec(words)["id"]), 300)
    assert result.node is not None
    assert (str(result.outcome), result.node["name"]) == ("ok", node.name)


def documented(begin: str) -> str:
    """The block of ``docs/nodes.md`` that begins so: what the tests do is what an administrator reads there."""
    text = (ROOT / "docs/nodes.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^( *)```\w*\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    found = [textwrap.dedent(block) for _, block in blocks if block.strip().startswith(begin)]
    assert len(found) == 1, f"{len(found)} blocks begin with {begin!r}"
    return found[0]


def configure_stick(disk: Path, *files: Path) -> None:
    """Lay files into the folder of the medium's configuration, as who mounts it would."""
    place = f"{disk}@@1M"
    subprocess.run(["mmd", "-D", "s", "-i", place, "::kolejka/config"], check=False, capture_output=True)  # or is there
    subprocess.run(["mcopy", "-o", "-i", place, *files, "::kolejka/config/"], check=True)


def check_container(node: Node, server: Cluster, engine: str, root: Path, tag: str) -> None:
    """Give the node's engine a root file system as an image, and run a task in it."""
    with root.open("rb") as tar:
        done = node.ssh(f"sudo {engine} import - {TASKS_IMAGE}", stdin=tar, timeout_s=600)
    assert done.returncode == 0, done.stderr
    words = {"args": ["sh", "-c", "cat /etc/os-release; id -u"], "image": TASKS_IMAGE, "stdout": "out",
             "requires": [tag], "limits": {**SMALL, "time": "60s"}}  # fmt: skip
    task = str(server.admin.put_spec(words)["id"])
    result = server.admin.wait(task, 600)
    target = server.folder / f"result-{task}"
    server.admin.get_result(task, target)
    assert str(result.outcome) == "ok", result
    assert result.node is not None
    assert result.node["runtime"] == "docker"
    out = (target / "out").read_text()
    assert "ID=kolejka-busybox" in out
    assert int(out.split()[-1]) >= 2_000_000

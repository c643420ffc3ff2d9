"""A booted node beside the tests: qemu as a program with its console in a file, reached by ssh and by the server only.

The guest reaches the host's loopback as 10.0.2.2. Success is what the server or ssh says, never a string on the
console; the console is kept for failures.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from image.build import Image
from tests.machine.qemu import BARE, QUICK_WORDS, accelerator
from tests.neighbours.cluster import free_port
from tests.neighbours.processes import Program
from tests.support import wait_until

HOST: Final = "10.0.2.2"
MEMORY: Final = "3072"
BOOT_S: Final = 420.0
"""A boot takes one minute of a machine that does nothing else; allow for one that does."""


class Node:
    """One machine. ``media`` are qemu's words for what it boots from."""

    def __init__(self, name: str, image: Image, folder: Path, media: Sequence[str], *, memory: str = MEMORY) -> None:
        self.name = name
        self.folder = folder
        self.ssh_port = free_port()
        self.key = folder / "id_ed25519"
        if not self.key.exists():
            make_key(self.key)
        forward = f"hostfwd=tcp:127.0.0.1:{self.ssh_port}-:22"
        command = [
            "qemu-system-x86_64", *accelerator(image.kernel), *BARE, "-m", memory,
            "-device", "virtio-net-pci,netdev=net", "-netdev",
            f"user,id=net,hostname={name}-by-dhcp,{forward},tftp={folder},bootfile=boot.ipxe", *media,
        ]  # fmt: skip
        self.program = Program(name, command, folder / f"{name}.console")

    def ssh(self, *words: str, user: str = "admin", timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        """Run a command on the node."""
        return subprocess.run(
            ["ssh", "-q", "-i", self.key, "-p", str(self.ssh_port), "-o", "StrictHostKeyChecking=no", "-o",
             "BatchMode=yes",
             "-o", f"UserKnownHostsFile={self.folder / 'known_hosts'}", "-o", "ConnectTimeout=60",
             f"{user}@127.0.0.1", *words],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=timeout_s,
        )  # fmt: skip

    def run(self, command: str) -> str:
        """What a shell command prints there, as root. AssertionError when it fails."""
        done = self.ssh(f"sudo sh -c '{command}'")
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

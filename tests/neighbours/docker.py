"""A Docker daemon of the tests' own: own socket, data folder, containerd and control group, gone afterwards.

It shares nothing with a daemon that may run on the machine: every path and the containerd it talks to stand in one
temporary folder; it makes no bridge and no firewall rule, and reads no configuration of the machine.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.neighbours.needs import find
from tests.neighbours.processes import Program
from tests.support import wait_until

IMAGES = ("ubuntu:xenial", "kolejka/busybox:latest")
"""Tags of the local images, all with the root file system of busybox."""

_CONTAINERD_CONFIG = """\
version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
address = "{address}"
[ttrpc]
address = "{address}.ttrpc"
"""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))


class Docker:
    """The private daemon. ``start`` raises AssertionError with its last log lines when it does not come up.

    ``driver``: who makes its control groups, the daemon itself (``cgroupfs``) or the machine's ``systemd``.
    """

    def __init__(self, driver: str = "cgroupfs") -> None:
        # Not below the tests' temporary folder: socket paths are at most 107 bytes long.
        self.folder = Path(tempfile.mkdtemp(prefix="kolejka-docker-"))
        self.socket = self.folder / "docker.sock"
        self.driver = driver
        self.cgroup = f"kolejka-test-docker-{os.getpid()}"
        if driver == "systemd":
            self.cgroup = f"kolejkatest{os.getpid()}.slice"  # a dash would be a slice within a slice
        self._containerd: Program | None = None
        self._dockerd: Program | None = None

    @property
    def url(self) -> str:
        """The daemon's address."""
        return f"unix://{self.socket}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which the engine's own commands work on it."""
        return {"DOCKER_HOST": self.url}

    def start(self) -> None:
        """Start containerd and the daemon, and wait until it answers."""
        (self.folder / "run").mkdir(mode=0o711)
        address = self.folder / "containerd.sock"
        config = self.folder / "containerd.toml"
        config.write_text(
            _CONTAINERD_CONFIG.format(root=self.folder / "containerd", state=self.folder / "run/c", address=address),
            encoding="utf-8",
        )
        (self.folder / "daemon.json").write_text("{}\n", encoding="utf-8")
        # The engine has GPUs to give when it finds this program of their driver, and runs it for containers that ask.
        hook = self.folder / "bin" / "nvidia-container-runtime-hook"
        hook.parent.mkdir()
        hook.write_text(
            f"#!/bin/sh\necho $1 >> {self.folder / 'gpu-hook.log'}\nexec cat >/dev/null\n", encoding="utf-8"
        )
        hook.chmod(0o755)
        environment = {
            "PATH": f"{hook.parent}:{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin",
            "KOLEJKA_TEST_SESSION": os.environ.get("KOLEJKA_TEST_SESSION", ""),
            "TMPDIR": os.fspath(self.folder),
        }
        self._containerd = Program(
            "containerd", [find("containerd") or "", "--config", config], self.folder / "containerd.log", environment
        )
        self._containerd.wait_ready(address.exists)
        self._dockerd = Program(
            "dockerd",
            [
                find("dockerd") or "", "--host", self.url, "--containerd", address,
                "--data-root", self.folder / "data", "--exec-root", self.folder / "run/d",
                "--pidfile", self.folder / "docker.pid", "--config-file", self.folder / "daemon.json",
                "--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
                "--exec-opt", f"native.cgroupdriver={self.driver}",
                "--cgroup-parent", self.cgroup if self.driver == "systemd" else f"/{self.cgroup}",
            ],
            self.folder / "dockerd.log", environment,
        )  # fmt: skip
        self._dockerd.wait_ready(self._answers, 60)

    def _answers(self) -> bool:
        if not self.socket.exists():
            return False
        try:
            return self.call("GET", "/_ping") == "OK"
        except (OSError, http.client.HTTPException):
            return False

    def call(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json",
        headers: Mapping[str, str] = {},
    ) -> Any:  # fmt: skip
        """One call of the engine's API; AssertionError unless it succeeds."""
        connection = _UnixConnection(self.socket)
        try:
            connection.request(
                method, path, body, {**({"Content-Type": content_type} if body is not None else {}), **headers}
            )
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        assert answer.status < 400, f"{method} {path}: {answer.status} {text}"
        is_json = answer.headers.get_content_type() == "application/json" and text and "\r\n" not in text.strip()
        return json.loads(text) if is_json else text  # several lines are the log of a push

    def import_image(self, tar: Path, tag: str) -> None:
        """Make an image from a root file system."""
        name, _, version = tag.rpartition(":")
        with open(tar, "rb") as source:
            self.call("POST", f"/images/create?fromSrc=-&repo={name}&tag={version}", source, "application/x-tar")

    def containers(self) -> list[str]:
        """Names of all containers, running or not."""
        return [entry["Names"][0].lstrip("/") for entry in self.call("GET", "/containers/json?all=1")]

    def stop(self) -> list[str]:
        """End the daemon with everything below it; names of the containers that somebody had left behind."""
        left: list[str] = []
        if self._dockerd is not None and self._dockerd.alive:
            left = self.containers()
            for name in left:
                self.call("DELETE", f"/containers/{name}?force=1")
        for program in (self._dockerd, self._containerd):
            if program is not None:
                program.stop()
        self._end_shims()
        wait_until(self._unmounted, about=f"nothing is mounted below {self.folder}")
        for place in _groups(self.cgroup):
            wait_until(lambda place=place: _remove_group(place), about=f"{place} is empty")
        shutil.rmtree(self.folder)
        return left

    def _end_shims(self) -> None:
        """Shims outlive containerd by design; each names our containerd's address on its command line."""
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(FileNotFoundError, ProcessLookupError):  # it ended while we looked
                if os.fsencode(self.folder) in entry.read_bytes():
                    os.kill(int(entry.parent.name), signal.SIGKILL)

    def _unmounted(self) -> bool:
        places = [
            line.split()[4]
            for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
            if line.split()[4].startswith(f"{self.folder}/")
        ]
        for place in reversed(places):
            subprocess.run(["umount", "--lazy", place], check=False, capture_output=True)
        return not places


def _groups(name: str) -> list[Path]:
    root = Path("/sys/fs/cgroup")
    return [place for place in (root / name, *root.glob(f"*/{name}")) if place.is_dir()]


def _remove_group(place: Path) -> bool:
    for child in sorted(place.glob("**/"), reverse=True):
        with suppress(OSError):  # busy until its last process is gone; the caller tries again
            child.rmdir()
    return not place.exists()

"""A Podman service of the tests' own: own socket, storage and configuration, gone afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from tests.neighbours.docker import Docker
from tests.neighbours.needs import find
from tests.neighbours.processes import Program
from tests.support import wait_until

_CONFIG = """\
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
tmp_dir = "{folder}/tmp"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
"""
_STORAGE = """\
[storage]
driver = "overlay"
runroot = "{folder}/run"
graphroot = "{folder}/data"
"""
_GROUP = "libpod_parent"
"""Podman's own control group, empty without containers."""


class Podman(Docker):
    """The private service, which speaks Docker's API. ``start`` raises AssertionError when it does not come up."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="kolejka-podman-"))
        self.socket = self.folder / "podman.sock"
        self._service: Program | None = None
        self._had_group = bool(_groups())

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which Podman's and Buildah's own commands work on its storage."""
        return {
            "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin",
            "KOLEJKA_TEST_SESSION": os.environ.get("KOLEJKA_TEST_SESSION", ""),
            "CONTAINERS_CONF": f"{self.folder}/containers.conf",
            "CONTAINERS_STORAGE_CONF": f"{self.folder}/storage.conf",
            "XDG_RUNTIME_DIR": f"{self.folder}/run",
            "HOME": f"{self.folder}",
        }

    def start(self) -> None:
        """Start the service and wait until it answers."""
        for name, text in (("containers.conf", _CONFIG), ("storage.conf", _STORAGE)):
            (self.folder / name).write_text(text.format(folder=self.folder), encoding="utf-8")
        for name in ("tmp", "run"):
            (self.folder / name).mkdir()
        command = [find("podman") or "", "--log-level=warn", "system", "service", "--time=0", self.url]
        self._service = Program("podman", command, self.folder / "podman.log", self.environment)
        self._service.wait_ready(self._answers, 60)

    def stop(self) -> list[str]:
        """End the service; names of the containers that somebody had left behind."""
        left: list[str] = []
        if self._service is not None and self._service.alive:
            left = self.containers()
            for name in left:
                self.call("DELETE", f"/containers/{name}?force=1")
        if self._service is not None:
            self._service.stop()
        if not self._had_group:
            for group in _groups():
                for child in sorted(group.glob("**/"), reverse=True):
                    with suppress(OSError):  # somebody else uses Podman too
                        child.rmdir()
        wait_until(self._removed, about=f"{self.folder} is gone")
        return left

    def _removed(self) -> bool:
        """Its last helpers still write and mount for a moment."""
        for place in reversed(_mounts(self.folder)):
            subprocess.run(["umount", "--lazy", place], check=False, capture_output=True)
        if _mounts(self.folder):
            return False
        shutil.rmtree(self.folder, ignore_errors=True)
        return not self.folder.exists()


def _groups() -> list[Path]:
    root = Path("/sys/fs/cgroup")
    return [place for place in (root / _GROUP, *root.glob(f"*/{_GROUP}")) if place.is_dir()]


def _mounts(folder: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return [line.split()[4] for line in lines if line.split()[4].startswith(f"{folder}/")]

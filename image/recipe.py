"""What goes into an image, as one frozen value; everything about a build derives from it and from the tree.

A recipe has two parts that are kept apart because one is slow: the *base* (Debian packages, as mmdebstrap's tar)
depends on suite, kernel, engine and packages only; the rest also on the code. Each is kept below ``build/image``
under the hash of what it is made of, so that nothing is built twice.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kolejka import __version__

PROJECT: Final = Path(__file__).resolve().parents[1]
HERE: Final = Path(__file__).resolve().parent

SUITES: Final = {(3, 11): "bookworm", (3, 13): "trixie"}
"""Debian's release by its Python: the image takes its Python packages from this environment."""
KERNELS: Final = {"generic": "linux-image-amd64", "cloud": "linux-image-cloud-amd64"}
"""``generic`` drives real hardware; ``cloud`` is a third of it and knows virtual machines only."""
ENGINES: Final = {
    "none": (),
    "docker": ("docker.io", "runc"),
    "podman": ("podman", "crun", "netavark", "aardvark-dns"),
}
ENGINE_SOCKETS: Final = {"podman": "unix:///run/podman/podman.sock"}
"""Where an engine answers, if not where Docker's does."""
HOOKS: Final = HERE / "hooks"
GPUS: Final = ("none", "nvidia")
"""``none``, or a file of ``HOOKS`` that brings a driver."""
PACKAGES: Final = (
    "systemd", "systemd-sysv", "systemd-resolved", "systemd-timesyncd", "udev", "dbus", "kmod", "procps", "iproute2",
    "ca-certificates", "openssh-server", "sudo", "python3", "busybox-static", "initramfs-tools", "zstd",
    "skopeo", "umoci", "systemd-boot-efi", "usr-is-merged",
)  # fmt: skip
EXCLUDED: Final = (
    *(f"/usr/share/{part}/*" for part in ("doc", "man", "locale", "info", "lintian", "bug", "doc-base")),
    *(f"{usr}/lib/modules/*/kernel/{part}/*" for usr in ("", "/usr") for part in (
        "sound", "net/bluetooth", "net/wireless", "net/mac80211", "drivers/media", "drivers/staging", "drivers/iio",
        "drivers/bluetooth", "drivers/isdn", "drivers/net/wireless", "drivers/comedi",
        *(f"drivers/gpu/drm/{card}" for card in ("amd", "i915", "nouveau", "radeon", "gma500", "xe")),
    )),
    "/usr/lib/cni/*", "/usr/lib/udev/hwdb.d/20-*", "/lib/udev/hwdb.d/20-*",
)  # fmt: skip
"""What no node needs: documents, sound, cameras, radio, and the drivers of graphics cards that draw on screens.
(Compute cards bring a driver of their own; a screen works by the firmware's frame buffer.)"""
KEPT: Final = ("/usr/share/doc/*/copyright",)
BASE_EPOCH: Final = 1_700_000_000
"""No file of the base is newer than this: packages only, whose dates mean nothing here."""
LEVEL: Final = 15


@dataclass(frozen=True)
class Recipe:
    """One flavour of the image."""

    suite: str
    kernel: str = "generic"
    engine: str = "none"
    gpu: str = "none"
    gpu_words: tuple[str, ...] = ()
    """what the hook of these GPUs is told, as ``NAME=value`` (``words_of_hook``)"""
    packages: tuple[str, ...] = ()
    """Debian packages beside ours: compilers for tasks, firmware, tools of the house."""
    level: int = LEVEL
    """of compression; 3 builds faster and is a tenth larger"""
    epoch: int = BASE_EPOCH
    """seconds since 1970 that count as the time of the build"""
    version: str = "0"

    @property
    def debian(self) -> tuple[str, ...]:
        """All Debian packages, by name."""
        return tuple(sorted({KERNELS[self.kernel], *PACKAGES, *ENGINES[self.engine], *self.packages}))

    @property
    def base_key(self) -> str:
        """The hash of what the base is made of."""
        return _digest(self.suite, *self.debian, *EXCLUDED, *KEPT)

    def key(self, contents: str) -> str:
        """The hash of all of it; ``contents`` is that of the tree (``contents_of``)."""
        return _digest(
            self.base_key, self.gpu, *self.gpu_words, str(self.level), str(self.epoch), self.version, contents
        )


def _digest(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def words_of_hook(gpu: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    """What the builder's environment says to the hook of these GPUs: ``KOLEJKA_NVIDIA_…`` to that of ``nvidia``."""
    return tuple(f"{name}={value}" for name, value in sorted(environment.items())
                 if name.startswith(f"KOLEJKA_{gpu.upper()}_"))  # fmt: skip


def suite() -> str | None:
    """The Debian release whose Python is this one, if there is one."""
    return SUITES.get(sys.version_info[:2])


def tree_files() -> list[Path]:
    """The files of this tree that an image is made of: tracked ones and new ones, whatever is committed."""
    names = subprocess.run(
        ["git", "-C", PROJECT, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--",
         "kolejka", "image", "pyproject.toml", "setup.py", "README.md", "LICENSE"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    return sorted(PROJECT / name for name in set(filter(None, names)) if (PROJECT / name).is_file())


def contents_of(files: list[Path], distributions: list[str]) -> str:
    """One hash of files (names, modes, bytes) and of Python packages by version."""
    digest = hashlib.sha256()
    for path in files:
        mode = "x" if path.stat().st_mode & 0o100 else "-"
        name = path.relative_to(PROJECT).as_posix()
        digest.update(f"{name} {mode} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    digest.update("\n".join(distributions).encode())
    return digest.hexdigest()


def commit_epoch() -> int:
    """The time of the last commit."""
    said = subprocess.run(
        ["git", "-C", PROJECT, "log", "-1", "--format=%ct"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    return int(said) if said else BASE_EPOCH


def version_of(epoch: int) -> str:
    """The image's version where nobody gives one: the package's, and when its tree was committed. It only grows."""
    moment = dt.datetime.fromtimestamp(epoch, dt.UTC)
    return f"{__version__}.{moment:%Y%m%d.%H%M%S}"

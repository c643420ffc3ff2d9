"""The node's image as the tests boot it: a flavour of the same recipe, and a layer with the tests laid over it.

The flavour has Docker and a compiler, and a kernel for virtual machines; it is compressed in haste. The layer is a
squashfs of its own that the image's boot script lays over the root (``kolejka.layer=``): the Python packages of the
tests, the tree, a unit that runs them, and masks for the daemons that would be running on a node.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from image import distributions
from image.build import PREFIX, BuildError, Image, build, check_tools, programs, site_of, write_program
from image.recipe import BASE_EPOCH, PROJECT, Recipe, suite

STORE: Final = PROJECT / "build" / "image"
TOOLS: Final = {
    "mmdebstrap": "mmdebstrap", "mksquashfs": "squashfs-tools", "mke2fs": "e2fsprogs",
    "qemu-system-x86_64": "qemu-system-x86",
}  # fmt: skip
SILENCED: Final = (
    "kolejka-configure.service", "kolejka-observer.service", "kolejka-foreman.service", "kolejka-sessions.service",
    "kolejka-screen@tty1.service", "kolejka-screen@ttyS0.service", "docker.service", "docker.socket",
    "containerd.service",
    "systemd-timesyncd.service", "systemd-networkd-wait-online.service",
)  # fmt: skip
UNIT: Final = """\
[Unit]
Description=Kolejka's tests
After=local-fs.target
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=oneshot
ExecStart=/bin/sh /opt/tests/run-tests
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
Delegate=yes
TasksMax=infinity
LimitNOFILE=65536
"""


def flavour() -> Recipe:
    """What the tests boot. BuildError when no Debian has this environment's Python."""
    release = suite()
    if release is None:
        raise BuildError("the image needs the environment to be of Python 3.11 or 3.13; make .venv with one of them")
    return Recipe(release, "cloud", "docker", packages=("gcc", "libc6-dev"), level=3, version="0.0.tests")


def built_image() -> Image:
    """The tests' image, from ``build/image`` or built now (about two minutes)."""
    check_tools(TOOLS)
    return build(flavour(), STORE)


def prepare_layer(content: Path) -> None:
    """Fill a folder with what every layer has; ``tree`` below ``/opt/tests`` is the tree under test, not yet
    compiled."""
    site = site_of(content)
    site.mkdir(parents=True)
    have = {each.metadata["Name"] for each in distributions.closure(distributions.NODE)}
    wanted = distributions.closure(["kolejka[all,test]"])
    distributions.lay([each for each in wanted if each.metadata["Name"] not in have], site)
    own = content / PREFIX / "bin"
    own.mkdir()
    write_program(own / "kolejka-server", programs()["kolejka-server"])
    tree = content / "opt/tests/tree"
    names = subprocess.run(
        ["git", "-C", PROJECT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, names):
        if (PROJECT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, tree / name)
    units = content / "etc/systemd/system"
    (units / "multi-user.target.wants").mkdir(parents=True)
    (units / "kolejka-test.service").write_text(UNIT, encoding="ascii")
    (units / "multi-user.target.wants/kolejka-test.service").symlink_to("../kolejka-test.service")
    for name in SILENCED:
        (units / name).symlink_to("/dev/null")


def pack_layer(content: Path, layer: Path, files: Mapping[str, str]) -> None:
    """Write the squashfs of ``content`` with these files below ``/opt/tests``."""
    for name, text in files.items():
        (content / "opt/tests" / name).write_text(text, encoding="utf-8")
    layer.unlink(missing_ok=True)
    subprocess.run(
        ["mksquashfs", content, layer, "-quiet", "-no-progress", "-comp", "zstd", "-Xcompression-level", "1",
         "-all-root",
         "-all-time", str(BASE_EPOCH)],
        check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip

"""The image that ``make image`` makes for real machines, and what can be asked of it: Podman, a house's own hook."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from image import media, recipe
from image.build import Image, build
from image.recipe import BASE_EPOCH
from tests.image.node import HOST, Node, check_container, check_in, configure_stick, firmware
from tests.machine.layer import STORE, flavour
from tests.neighbours.cluster import Cluster

pytestmark = pytest.mark.needs("root", "image", "busybox")

HOOK = """\
# stands in for a driver: nobody can be asked for one here
test -e /etc/resolv.conf
ls /boot/vmlinuz-*
echo "$KOLEJKA_NVIDIA_SOURCE" > /usr/lib/hooked
"""
WORD = "KOLEJKA_NVIDIA_SOURCE=deb a place of the house"


@pytest.fixture(scope="module")
def house() -> Iterator[Image]:
    """With the kernel for hardware, Podman, and a hook."""
    with pytest.MonkeyPatch.context() as patch:
        hooks = STORE / "hooks"
        hooks.mkdir(parents=True, exist_ok=True)
        (hooks / "nvidia").write_text(HOOK)
        patch.setattr("image.build.HOOKS", hooks)
        words = recipe.words_of_hook("nvidia", dict([WORD.split("=", 1)]))
        plain = dataclasses.replace(flavour(), packages=())
        yield build(dataclasses.replace(plain, kernel="generic", engine="podman", gpu="nvidia", gpu_words=words), STORE)


def test_a_desktop_with_disk_and_network_of_its_own_runs_containers_of_podman(
    boot: Callable[..., Node], house: Image, folder: Path, server: Cluster, token: str, busybox_root_tar: Path
) -> None:
    disk = folder / "house.img"
    media.write_disk(house, disk, version="0.0.tests", epoch=BASE_EPOCH)
    about = folder / "house"
    about.mkdir()
    settings = f'[client]\nserver = "http://{HOST}:{server.port}"\n[foreman]\nname = "house"\ntags = ["boot:house"]\n'
    (about / "kolejka.toml").write_text(settings)
    (about / "token").write_text(token)
    (about / "authorized_keys").write_bytes((folder / "id_ed25519.pub").read_bytes())
    configure_stick(disk, *about.iterdir())
    # what a desktop has, and what the kernel for virtual machines would not find
    sata = ["-drive", f"file={disk},if=none,id=disk,format=raw", "-device", "ide-hd,drive=disk,bus=ide.0"]
    node = boot("house", [*firmware(folder, "house"), *sata], card="e1000e")
    check_in(node, server)
    node.wait_ssh()
    assert "cloud" not in node.run("uname -r")
    assert node.run("cat /usr/lib/hooked") == WORD.partition("=")[2]
    assert node.run("ls -l /usr/lib/hooked").startswith("-rw-r--r-- 1 root")
    check_container(node, server, "podman", busybox_root_tar, "boot:house")
    assert node.run("podman ps --all --quiet") == ""
    node.kill()

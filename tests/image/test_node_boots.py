"""The same image from a UEFI disk, from a CD and by iPXE, configured in the way that each is meant for."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from image import media
from image.build import Image
from image.recipe import BASE_EPOCH
from tests.image.node import BOOT_S, HOST, Node
from tests.image.test_node_runs import is_active
from tests.image.tls import tls_before
from tests.machine.qemu import drive
from tests.neighbours.certificates import make_certificate
from tests.neighbours.cluster import Cluster

pytestmark = pytest.mark.needs("root", "image")

Boot = Callable[[str, list[str]], Node]
SMALL = {"memory": "64M", "workspace": "16M", "storage": "16M"}
"""A machine without a disk keeps all of a task in memory."""
FIRMWARE = Path("/usr/share/OVMF")


@pytest.fixture(scope="module")
def published(image: Image, folder: Path) -> Path:
    """What ``make image`` publishes."""
    place = folder / "published"
    media.write_media(image, place, version="0.0.tests", epoch=BASE_EPOCH)
    return place


def firmware(folder: Path, name: str) -> list[str]:
    """UEFI with variables of its own."""
    variables = folder / f"{name}.vars"
    shutil.copy(FIRMWARE / "OVMF_VARS_4M.fd", variables)
    return [
        "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={FIRMWARE / 'OVMF_CODE_4M.fd'}",
        "-drive", f"if=pflash,unit=1,format=raw,file={variables}",
    ]  # fmt: skip


def check_in(node: Node, server: Cluster) -> None:
    """Wait until the server has heard the node, and let it run one task."""
    node.program.wait_ready(lambda: is_active(server, node.name), BOOT_S)
    task = str(server.admin.put_spec({"args": ["true"], "requires": [f"boot:{node.name}"], "limits": SMALL})["id"])
    result = server.admin.wait(task, 300)
    assert result.node is not None
    assert (str(result.outcome), result.node["name"]) == ("ok", node.name)


def test_a_stick_is_configured_by_files_on_itself_and_trusts_the_authority_there(
    boot: Boot, published: Path, folder: Path, server: Cluster, token: str
) -> None:
    stick = folder / "stick.img"
    shutil.copy(published / "node.img", stick)
    certificate = make_certificate(folder, HOST)
    with tls_before(server.port, certificate) as port:
        settings = f'[client]\nserver = "https://{HOST}:{port}"\n[foreman]\nname = "stick"\ntags = ["boot:stick"]\n'
        (folder / "kolejka.toml").write_text(settings)
        (folder / "token").write_text(token)
        (folder / "ca.pem").write_bytes(certificate.authority.read_bytes())
        place = f"{stick}@@1M"
        subprocess.run(["mmd", "-i", place, "::kolejka/config"], check=True)
        files = [folder / name for name in ("kolejka.toml", "token", "ca.pem")]
        subprocess.run(["mcopy", "-i", place, *files, "::kolejka/config/"], check=True)
        node = boot("stick", [*firmware(folder, "stick"), *drive(stick)])
        check_in(node, server)
        node.kill()


def test_a_cd_takes_a_seed_and_its_secret_from_smbios(
    boot: Boot, published: Path, folder: Path, server: Cluster, token: str
) -> None:
    seed = folder / "seed.iso"
    tree = folder / "seed"
    tree.mkdir()
    settings = f"client: {{server: 'http://{HOST}:{server.port}'}}, foreman: {{tags: ['boot:disc']}}"
    (tree / "user-data").write_text(f"#cloud-config\nhostname: disc\nkolejka: {{{settings}}}\n")
    (tree / "meta-data").write_text("instance-id: 1\n")
    subprocess.run(["xorriso", "-as", "mkisofs", "-quiet", "-V", "cidata", "-r", "-o", seed, tree], check=True)
    secret = folder / "smbios"
    secret.write_text(f"io.systemd.credential:kolejka.token={token}")
    words = [
        *firmware(folder, "disc"), *drive(seed, "readonly=on"), "-smbios", f"type=11,path={secret}",
        "-device", "virtio-scsi-pci", "-drive", f"file={published / 'node.iso'},if=none,id=cd,format=raw,readonly=on",
        "-device", "scsi-cd,drive=cd",
    ]  # fmt: skip
    node = boot("disc", words)
    check_in(node, server)
    node.kill()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *words: object) -> None:
        """Say nothing."""


@pytest.fixture
def web(published: Path) -> Iterator[int]:
    """The published folder by HTTP; its port."""
    handler = functools.partial(_Quiet, directory=str(published))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield served.server_address[1]
        served.shutdown()
        thread.join()


def test_a_diskless_machine_boots_by_ipxe_and_asks_to_be_let_in(
    boot: Boot, published: Path, folder: Path, server: Cluster, web: int
) -> None:
    words = f"kolejka.server=http://{HOST}:{server.port} kolejka.tags=boot:diskless kolejka.name=diskless"
    script = f"#!ipxe\ndhcp\nset kolejka {words}\nset base http://{HOST}:{web}/\nchain ${{base}}boot.ipxe\n"
    (folder / "boot.ipxe").write_text(script)
    node = boot("diskless", ["-boot", "n"])
    node.program.wait_ready(lambda: any(one["name"] == "diskless" for one in server.admin.enrolments()), BOOT_S)
    assert not is_active(server, "diskless")
    admin = {"KOLEJKA_CLIENT_TOKEN": (server.folder / "server/admin.token").read_text().strip()}
    said = server.run("kolejka", "node", "approve", "diskless", env=admin)
    assert said.returncode == 0, said.stderr
    check_in(node, server)
    node.kill()


def test_two_builds_of_one_tree_are_the_same_bytes(image: Image, published: Path, folder: Path) -> None:
    from tests.machine.layer import STORE, flavour

    again = media_of_a_fresh_build(folder, STORE, flavour())
    assert (again / "SHA256SUMS").read_text() == (published / "SHA256SUMS").read_text()


def media_of_a_fresh_build(folder: Path, store: Path, recipe) -> Path:  # type: ignore[no-untyped-def]
    """Everything built anew, Debian's packages included, and published."""
    from image.build import build

    fresh = build(recipe, folder / "store", fresh=True)
    media.write_media(fresh, folder / "again", version="0.0.tests", epoch=BASE_EPOCH)
    return folder / "again"

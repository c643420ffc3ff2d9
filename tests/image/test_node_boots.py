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

from image import cpio
from image.recipe import BASE_EPOCH
from tests.image.conftest import Quiet
from tests.image.node import BOOT_S, HOST, Node, check_in, configure_stick, documented, firmware, is_active
from tests.image.tls import tls_before
from tests.machine.qemu import drive
from tests.neighbours.certificates import make_certificate
from tests.neighbours.cluster import Cluster

pytestmark = pytest.mark.needs("root", "image")

Boot = Callable[..., Node]
KEEP = "printf '"
"""The document's command that has a machine keep its token."""


def test_a_stick_is_configured_by_files_on_itself_and_the_machine_can_keep_the_token(
    boot: Boot, published: Path, folder: Path, server: Cluster, token: str
) -> None:
    stick = folder / "stick.img"
    shutil.copy(published / "node.img", stick)
    certificate = make_certificate(folder, HOST)
    (folder / "token").write_text(token)
    (folder / "ca.pem").write_bytes(certificate.authority.read_bytes())
    (folder / "authorized_keys").write_bytes((folder / "id_ed25519.pub").read_bytes())

    with tls_before(server.port, certificate) as port:

        def name_it(name: str) -> None:
            words = f'[client]\nserver = "https://{HOST}:{port}"\n[foreman]\nname = "{name}"\ntags = ["boot:{name}"]\n'
            (folder / "kolejka.toml").write_text(words)
            configure_stick(stick, folder / "kolejka.toml")

        name_it("stick")
        configure_stick(stick, *(folder / name for name in ("token", "ca.pem", "authorized_keys")))
        media = [*firmware(folder, "stick"), *drive(stick)]
        node = boot("stick", media)
        check_in(node, server)
        node.wait_ssh()
        node.run(f"cd /run/kolejka/node; {documented(KEEP)}")
        node.kill()
        # the machine has the token now, and the stick none
        subprocess.run(["mdel", "-i", f"{stick}@@1M", "::kolejka/config/token"], check=True)
        name_it("board")
        node = boot("board", media)
        check_in(node, server)
        node.kill()


def test_a_cd_takes_a_seed_and_its_secret_from_smbios(
    boot: Boot, published: Path, folder: Path, server: Cluster, token: str
) -> None:
    desk = folder / "cloud"
    desk.mkdir()
    settings = f"client: {{server: 'http://{HOST}:{server.port}'}}, foreman: {{tags: ['boot:disc']}}"
    (desk / "user-data").write_text(f"#cloud-config\nhostname: disc\nkolejka: {{{settings}}}\n")
    subprocess.run(["sh", "-eu", "-c", documented("mkdir seed")], cwd=desk, check=True)
    secret = folder / "smbios"
    secret.write_text(f"io.systemd.credential:kolejka.token={token}")
    words = [
        *firmware(folder, "disc"), *drive(desk / "seed.iso", "readonly=on"), "-smbios", f"type=11,path={secret}",
        "-device", "virtio-scsi-pci", "-drive", f"file={published / 'node.iso'},if=none,id=cd,format=raw,readonly=on",
        "-device", "scsi-cd,drive=cd",
    ]  # fmt: skip
    node = boot("disc", words)
    check_in(node, server)
    node.kill()


@pytest.fixture
def web(published: Path) -> Iterator[int]:
    """The published folder by HTTP; its port."""
    handler = functools.partial(Quiet, directory=str(published))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield served.server_address[1]
        served.shutdown()
        thread.join()


def test_a_diskless_machine_boots_by_ipxe_and_asks_to_be_let_in(
    boot: Boot, published: Path, folder: Path, server: Cluster, web: int
) -> None:
    with (published / "diskless.cpio").open("wb") as archive:
        cpio.write_archive(archive, {"kolejka/kolejka.toml": b'[foreman]\ntags = ["boot:diskless"]\n'}, BASE_EPOCH)
    (folder / "boot.ipxe").write_text(
        f"#!ipxe\ndhcp\nset kolejka kolejka.server=http://{HOST}:{server.port} kolejka.name=diskless\n"
        f"set base http://{HOST}:{web}/\nset files ${{base}}diskless.cpio\nchain ${{base}}boot.ipxe\n"
    )
    node = boot("diskless", ["-boot", "n"])
    node.program.wait_ready(lambda: any(one["name"] == "diskless" for one in server.admin.enrolments()), BOOT_S)
    assert not is_active(server, "diskless")
    admin = {"KOLEJKA_CLIENT_TOKEN": (server.folder / "server/admin.token").read_text().strip()}
    said = server.run("kolejka", "node", "approve", "diskless", env=admin)
    assert said.returncode == 0, said.stderr
    check_in(node, server)
    node.kill()

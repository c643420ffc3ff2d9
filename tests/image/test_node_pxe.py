"""Diskless machines on a network of their own, set up with the very words of ``docs/nodes.md``.

The network is a namespace with a machine's cable in it, where dnsmasq, a web server and the project's server stand at
10.0.0.1, the address of the document.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from image.build import Image
from tests.image.conftest import Quiet
from tests.image.node import Node, check_in, documented, firmware
from tests.image.tls import tls_before
from tests.neighbours.certificates import make_certificate
from tests.neighbours.cluster import Cluster
from tests.neighbours.needs import find
from tests.neighbours.network import Network
from tests.neighbours.processes import Program

pytestmark = pytest.mark.needs("root", "image", "netns")

HOST = "10.0.0.1"
SERVER = "kolejka.example.org"
CABLE = "node"


@pytest.fixture
def lan() -> Iterator[Network]:
    """A network with one cable for a machine; the test stands at its server's end."""
    network = Network()
    with network.inside():
        for words in (
            ("tuntap", "add", "dev", CABLE, "mode", "tap"), ("address", "add", f"{HOST}/24", "dev", CABLE),
            ("link", "set", CABLE, "up"),
        ):  # fmt: skip
            subprocess.run([find("ip") or "ip", *words], check=True)
        yield network
    network.remove()


@pytest.fixture
def dnsmasq(lan: Network, folder: Path) -> Iterator[Program]:
    """DHCP, TFTP and names as documented, and where the project's server is."""
    files = folder / "tftp"
    files.mkdir()
    for name in ("ipxe.efi", "undionly.kpxe"):
        shutil.copy(Path("/usr/lib/ipxe", name), files)
    words = documented("dhcp-range=").replace("/srv/tftp", str(files))
    configuration = folder / "dnsmasq.conf"
    configuration.write_text(f"{words}address=/{SERVER}/{HOST}\nno-resolv\nno-hosts\ninterface={CABLE}\n")
    command = [find("dnsmasq") or "dnsmasq", "--keep-in-foreground", "--user=root", "--log-facility=-", "--log-dhcp",
               f"--conf-file={configuration}", f"--dhcp-leasefile={folder / 'leases'}",
               f"--pid-file={folder / 'dnsmasq.pid'}"]  # fmt: skip
    program = Program("dnsmasq", command, folder / "dnsmasq.console")
    yield program
    program.stop()


@pytest.fixture
def cluster(lan: Network, folder: Path) -> Iterator[Cluster]:
    """A server of this network's own."""
    cluster = Cluster(folder / "pxe", {"KOLEJKA_SERVER_HEARTBEAT": "45s"})
    cluster.start_server()
    yield cluster
    cluster.check_quiet()
    cluster.stop()


@pytest.fixture
def www(lan: Network, folder: Path, published: Path) -> Iterator[Path]:
    """What port 80 serves."""
    place = folder / "www"
    place.mkdir()
    (place / "kolejka").symlink_to(published)
    with ThreadingHTTPServer((HOST, 80), partial(Quiet, directory=str(place))) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield place
        served.shutdown()
        thread.join()


@pytest.mark.parametrize("kind", ["uefi"])
def test_a_desktop_boots_as_the_document_says(
    kind: str, boot: Callable[..., Node], image: Image, folder: Path, www: Path, dnsmasq: Program, cluster: Cluster
) -> None:
    cluster.admin.create_user("lab", "node")
    token = str(cluster.admin.create_token("lab", role="node")["token"])
    certificate = make_certificate(folder, SERVER)
    here = folder / "desk"
    here.mkdir()
    (here / "token").write_text(token + "\n")
    shutil.copy(certificate.authority, here / "ca.pem")
    script = documented("mkdir -p node/kolejka").replace("/srv/www", str(www))
    subprocess.run(["sh", "-eu", "-c", script], cwd=here, check=True)
    with tls_before(cluster.port, certificate, HOST, 443):
        disk = firmware(folder, "desktop") if kind == "uefi" else []
        card = "virtio-net-pci,mac=52:54:00:00:00:01"
        cable = f"tap,id=net,ifname={CABLE},script=no,downscript=no"
        node = boot("node-525400000001", [*disk, "-boot", "n"], network=cable, card=card)
        check_in(node, cluster, "room:1077")
        node.kill()
    (about,) = cluster.admin.nodes()
    assert "room:1077" in about["tags"], "what option 224 says is heard"

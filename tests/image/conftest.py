"""One image, one server, one deployer's key for all tests of the booted image."""

from __future__ import annotations

import http.server
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from image import media
from image.build import Image, whole_initrd
from image.recipe import BASE_EPOCH
from tests.image.node import HOST, Node, keep_consoles, make_key
from tests.image.tls import tls_before
from tests.machine.layer import built_image
from tests.neighbours.certificates import make_certificate
from tests.neighbours.cluster import Cluster


@pytest.fixture(scope="session")
def image() -> Image:
    """The image in the tests' flavour."""
    return built_image()


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """Room for disks and consoles; consoles are kept in ``build/image/consoles``."""
    place = Path(tempfile.mkdtemp(prefix="kolejka-image-"))
    place.chmod(0o755)
    make_key(place / "id_ed25519")
    yield place
    keep_consoles(place, Path(__file__).parents[2] / "build/image/consoles")
    shutil.rmtree(place)


@pytest.fixture(scope="session")
def published(image: Image, folder: Path) -> Path:
    """What ``make image`` publishes."""
    place = folder / "published"
    media.write_media(image, place, version="0.0.tests", epoch=BASE_EPOCH)
    return place


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A web server's hand that writes no log."""

    def log_message(self, format: str, *words: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def server(folder: Path) -> Iterator[Cluster]:
    """A server of this tree on the loopback; no node of the host's."""
    cluster = Cluster(folder / "cluster", {"KOLEJKA_SERVER_HEARTBEAT": "45s"})
    cluster.start_server()
    cluster.admin.create_user("nodes", "node")
    yield cluster
    cluster.check_alive()
    cluster.check_quiet()
    cluster.stop()


@pytest.fixture(scope="session")
def token(server: Cluster) -> str:
    """A node's token."""
    return str(server.admin.create_token("nodes", role="node")["token"])


@pytest.fixture(scope="session")
def server_word(server: Cluster) -> str:
    """The kernel word that names the server."""
    return f"kolejka.server=http://{HOST}:{server.port}"


@pytest.fixture(scope="session")
def secured(server: Cluster, folder: Path) -> Iterator[tuple[str, Path]]:
    """The same server by TLS: the kernel word that names it, and the authority to trust."""
    place = folder / "secured"
    place.mkdir()
    certificate = make_certificate(place, HOST)
    with tls_before(server.port, certificate) as port:
        yield f"kolejka.server=https://{HOST}:{port}", certificate.authority


@pytest.fixture(scope="session")
def initrd(image: Image, folder: Path) -> Path:
    """Kernel and this are a whole node."""
    return whole_initrd(image, folder / "initrd-full")


@pytest.fixture(scope="module")
def boot(image: Image, folder: Path) -> Iterator[Callable[..., Node]]:
    """Boot a node from media, with words for ``Node``; the module's nodes are killed after it."""
    nodes: list[Node] = []

    def start(name: str, media: Sequence[str], **words: str) -> Node:
        nodes.append(Node(name, image, folder, media, **words))
        return nodes[-1]

    yield start
    for node in nodes:
        if node.program.alive:
            node.kill()

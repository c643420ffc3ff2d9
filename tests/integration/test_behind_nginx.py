"""A server behind nginx, told by the very words of docs/production.md."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kolejka.client import KolejkaClient
from kolejka.common.errors import InputError
from kolejka.common.settings import ClientSettings
from kolejka.server.api.events import PING_S
from tests.integration.server_process import Caller, Server, Stream
from tests.neighbours.certificates import Certificate, make_certificate
from tests.neighbours.cluster import free_port
from tests.neighbours.nginx import Nginx
from tests.support import wait_until

pytestmark = pytest.mark.needs("nginx")

PAGE = Path(__file__).parents[2] / "docs/production.md"
LONGEST_WAIT_S = 60
MOST = 40 << 20


def documented() -> str:
    """The one nginx configuration of the page."""
    (block,) = re.findall(r"```nginx\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return str(block)


def nothing_was_put_aside(proxy: Nginx) -> bool:
    return "buffered to a temporary file" not in (proxy.folder / "error.log").read_text(encoding="utf-8")


@dataclass
class Through(Caller):
    """One who calls a server through its proxy."""

    port: int = 0
    authority: Path = Path()

    def connect(self) -> http.client.HTTPConnection:
        context = ssl.create_default_context(cafile=os.fspath(self.authority))
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=60, context=context)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("behind"), "--port", str(free_port()), "--max-blob", str(MOST)).start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def proxy(server: Server, certificate: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """nginx with the page's words; only ports and files are this test's own."""
    port = free_port()
    block = documented()
    for theirs, ours in (
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("server_name kolejka.example.org;", "server_name 127.0.0.1;"),
        ("/etc/ssl/kolejka/chain.pem", str(certificate.chain)),
        ("/etc/ssl/kolejka/key.pem", str(certificate.key)),
        ("http://127.0.0.1:8642", server.url),
    ):
        assert block.count(theirs) == 1, theirs
        block = block.replace(theirs, ours)
    nginx = Nginx(tmp_path_factory.mktemp("nginx"), block, port)
    yield nginx.start()
    nginx.stop()


@pytest.fixture
def ala(server: Server, proxy: Nginx, certificate: Certificate) -> Through:
    admin = through(server.admin, proxy, certificate)
    name = f"ala{len(admin.ask('GET', '/users', status=200).json)}"
    admin.ask("POST", "/users", {"name": name, "role": "client"}, status=201)
    token = admin.ask("POST", "/tokens", {"user": name}, status=201).json["token"]
    return through(Caller(server, token), proxy, certificate)


def through(caller: Caller, proxy: Nginx, certificate: Certificate) -> Through:
    return Through(caller.server, caller.token, proxy.port, certificate.authority)


def client_of(caller: Through) -> KolejkaClient:
    return KolejkaClient(
        ClientSettings(
            server=f"https://127.0.0.1:{caller.port}", token=caller.token, ca=str(caller.authority), patience=60.0
        )
    )


def test_the_proxy_waits_longer_than_answers_and_events_do() -> None:
    (wait_s,) = re.findall(r"proxy_read_timeout (\d+)s;", documented())
    assert int(wait_s) > LONGEST_WAIT_S > PING_S


def test_who_waits_for_a_result_or_a_task_is_answered_when_it_is_there(server, proxy, certificate, ala) -> None:
    node = through(server.user("anvil", "node"), proxy, certificate)
    given: list[object] = []
    claim = threading.Thread(target=lambda: given.append(node.claim(wait=30)))
    claim.start()
    task = ala.put()
    claim.join()
    ((lease,),) = [[one["lease"] for one in answer["attempts"]] for answer in given]
    found: list[object] = []
    wait = threading.Thread(target=lambda: found.append(ala.ask("GET", f"/tasks/{task}/result?wait=30", status=200)))
    wait.start()
    node.finish(lease)
    wait.join()
    assert found[0].json["outcome"] == "ok"


def test_events_come_when_they_happen(ala: Through) -> None:
    stream = Stream(ala)
    try:
        for _ in range(3):  # each is here before the next one is made
            task = ala.put()
            event = stream.next()
            assert event is not None
            assert event.data["task"] == task
    finally:
        stream.close()


def test_an_upload_streams_and_can_be_resumed(server: Server, ala: Through) -> None:
    data = os.urandom(1 << 20) * 32
    sha = hashlib.sha256(data).hexdigest()
    half = len(data) // 2
    connection = ala.connect()
    connection.putrequest("PUT", f"/api/v1/blobs/{sha}")
    for name, word in (
        ("Authorization", f"Bearer {ala.token}"), ("Content-Length", str(len(data))),
        ("Content-Range", f"bytes 0-{len(data) - 1}/{len(data)}"),
    ):  # fmt: skip
        connection.putheader(name, word)
    connection.endheaders()
    connection.send(data[:half])
    incoming = server.data / "blobs/incoming"

    def arrived() -> int:
        return sum(path.stat().st_size for path in incoming.rglob("*") if path.is_file())

    wait_until(lambda: arrived() > half // 2, about="the server has the half that was sent")
    connection.close()

    def kept() -> int:
        reply = ala.ask("POST", f"/blobs/{sha}/upload", {"size": len(data)})
        return int(reply.json["offset"]) if reply.status == 200 else 0

    offset = wait_until(kept, about="the server knows that the upload broke off")
    words = {"Content-Range": f"bytes {offset}-{len(data) - 1}/{len(data)}"}
    assert ala.ask("PUT", f"/blobs/{sha}", data=data[offset:], headers=words).status in {200, 201}
    assert ala.ask("GET", f"/blobs/{sha}", status=200).data == data
    part = ala.ask("GET", f"/blobs/{sha}", headers={"Range": "bytes=1000000-1000099"}, status=206)
    assert (part.data, part.headers["content-range"]) == (data[1000000:1000100], f"bytes 1000000-1000099/{len(data)}")


def test_a_download_goes_as_fast_as_it_is_read_and_no_faster(proxy: Nginx, ala: Through) -> None:
    data = os.urandom(1 << 20) * 32
    sha = ala.upload(data)
    connection = ala.connect()
    connection.request("GET", f"/api/v1/blobs/{sha}", headers={"Authorization": f"Bearer {ala.token}"})
    answer = connection.getresponse()  # its first bytes are here; a proxy that buffers takes all the others meanwhile
    for _ in range(20):
        ala.ask("GET", "/healthz", status=200)
    assert answer.read() == data
    connection.close()
    assert nothing_was_put_aside(proxy)


def test_a_refused_upload_is_told_why_before_it_is_sent(ala: Through, tmp_path: Path) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate(MOST + 1)
    (tmp_path / "kolejka_task.json").write_text(json.dumps({"args": ["true"], "files": ["large"]}))
    client = client_of(ala)
    with pytest.raises(InputError, match="large"):
        client.put_task(tmp_path)
    client.close()


def test_who_waits_in_the_client_does_not_notice_a_restart_of_the_server(server, proxy, certificate, ala) -> None:
    node = through(server.user("bellows", "node"), proxy, certificate)
    task = ala.put()
    lease = next(one["lease"] for one in node.claim(node="bellows", wait=30)["attempts"] if one["spec"]["id"] == task)
    client = client_of(ala)
    assert client.task(task)["state"] == "running"
    found: list[object] = []
    waiting = threading.Thread(target=lambda: found.append(client.wait(task, 60.0)))
    waiting.start()
    assert server.stop() == 0
    refused = ala.ask("GET", "/healthz")
    assert refused.status == 502, "nobody is behind the proxy"
    server.start()
    node.beat(lease, node="bellows")
    node.finish(lease)
    waiting.join()
    assert found[0].outcome == "ok"
    client.close()

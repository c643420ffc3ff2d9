"""Blobs on their way between clients and servers: resumed, refused, directly to and from an S3 store."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from kolejka.client.client import KolejkaClient
from kolejka.common.errors import InputError, Unavailable
from kolejka.common.settings import ClientSettings
from tests.integration.server_process import Caller, Server
from tests.neighbours.s3 import S3
from tests.support import wait_until

DATA = bytes(range(256)) * 20_000
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("transfer")).start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def bucket_server(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose blobs lie in a bucket, told by a file as an administrator would."""
    folder = tmp_path_factory.mktemp("bucket")
    words = {"blobs": s3.bucket(), "s3_endpoint": s3.url, "s3_key": "test-key", "s3_secret": "test-secret-word"}
    config = folder / "kolejka.toml"
    config.write_text("[server]\n" + "".join(f"{name} = {json.dumps(word)}\n" for name, word in words.items()))
    server = Server(folder, "--config", str(config)).start()
    yield server
    assert "test-secret-word" not in server.log()
    assert "X-Amz-Signature" not in server.log()
    server.stop()


def names() -> Iterator[str]:
    number = 0
    while True:
        number += 1
        yield f"user{number}"


NAMES = names()


@pytest.fixture
def ala(server: Server) -> Caller:
    return server.user(next(NAMES), "client")


def client_of(caller: Caller, **words: object) -> KolejkaClient:
    settings = ClientSettings(server=caller.server.url, token=caller.token, patience=20.0, **words)  # type: ignore[arg-type]
    return KolejkaClient(settings)


def begin(caller: Caller, sha: str = SHA, size: int = len(DATA), **words: object) -> dict[str, object]:
    found = caller.ask("POST", f"/blobs/{sha}/upload", {"size": size, **words}, status=200).json
    assert isinstance(found, dict)
    return found


def arrived(caller: Caller, sha: str = SHA, size: int = len(DATA)) -> int | None:
    """How much of a broken upload the server has, once it knows that it is broken."""
    reply = caller.ask("POST", f"/blobs/{sha}/upload", {"size": size})
    return int(reply.json["offset"]) if reply.status == 200 else None


def cut(caller: Caller, data: bytes, *, keep: int) -> None:
    """Begin an upload that can be resumed, and hang up after ``keep`` bytes."""
    sha = hashlib.sha256(data).hexdigest()
    head = (
        f"PUT /api/v1/blobs/{sha} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {caller.token}\r\n"
        f"Content-Range: bytes 0-{len(data) - 1}/{len(data)}\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    caller.raw(head.encode() + data[:keep], half_close=True)


def rest_from(caller: Caller, data: bytes, first: int) -> bytes:
    """The answer to the announcement of the rest of an upload from some byte on."""
    sha = hashlib.sha256(data).hexdigest()
    head = (
        f"PUT /api/v1/blobs/{sha} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {caller.token}\r\n"
        f"Content-Range: bytes {first}-{len(data) - 1}/{len(data)}\r\nContent-Length: {len(data) - first}\r\n\r\n"
    )
    return caller.raw(head.encode() + b"the first bytes")


# Resumed


def test_a_broken_upload_goes_on_where_it_broke_even_after_the_server_died(server: Server, ala: Caller) -> None:
    assert begin(ala) == {"state": "wanted", "offset": 0}
    cut(ala, DATA, keep=3_000_000)
    wait_until(lambda: arrived(ala) == 3_000_000)
    assert ala.ask("HEAD", f"/blobs/{SHA}").status == 404, "half a blob is none"
    server.crash()
    server.start()
    assert begin(ala)["offset"] == 3_000_000
    rest = f"bytes 3000000-{len(DATA) - 1}/{len(DATA)}"
    ala.ask("PUT", f"/blobs/{SHA}", data=DATA[3_000_000:], headers={"Content-Range": rest}, status=201)
    assert ala.ask("GET", f"/blobs/{SHA}", status=200).data == DATA
    assert begin(ala)["state"] == "stored"


def test_the_rest_of_an_upload_starts_where_the_server_says(ala: Caller) -> None:
    data = DATA + b"2"
    sha = hashlib.sha256(data).hexdigest()
    cut(ala, data, keep=2_000_000)
    wait_until(lambda: arrived(ala, sha, len(data)) == 2_000_000)
    for first in (1, 2_000_001):
        assert b" 409 " in rest_from(ala, data, first).split(b"\r\n")[0]
    assert begin(ala, sha, len(data))["offset"] == 2_000_000


@pytest.mark.parametrize(
    "words",
    ["bytes 0-1/3", "bytes 1-2/3", "bytes 2-1/2", "items 0-2/3", "bytes */3", "bytes 0-2/*", "x", "bytes 0-9/3"],
)
def test_a_content_range_that_is_not_the_rest_of_the_blob_is_refused(ala: Caller, words: str) -> None:
    sha = hashlib.sha256(b"xyz").hexdigest()
    refused = ala.ask("PUT", f"/blobs/{sha}", data=b"xyz", headers={"Content-Range": words}, status=422)
    assert refused.error == ("invalid", "Content-Range")


def test_a_broken_upload_is_nobody_elses(server: Server, ala: Caller) -> None:
    data = DATA + b"3"
    sha = hashlib.sha256(data).hexdigest()
    cut(ala, data, keep=1_000_000)
    wait_until(lambda: arrived(ala, sha, len(data)) == 1_000_000)
    other = server.user(next(NAMES), "client")
    assert begin(other, sha, len(data))["offset"] == 0
    assert b" 409 " in rest_from(other, data, 1_000_000).split(b"\r\n")[0]


class Cutting:
    """A relay before a server that breaks the first ``cuts`` long connections in the middle."""

    def __init__(self, url: str, cuts: int, after: int) -> None:
        self._target = (url.split("//")[1].split(":", maxsplit=1)[0], int(url.rpartition(":")[2]))
        self._cuts, self._after = cuts, after
        self.sent = 0
        self._door = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._door.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._door.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            for source, sink, counts in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._carry, args=(source, sink, counts), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        here = 0
        with suppress(OSError):  # the other way was cut
            while chunk := source.recv(65536):
                here += len(chunk)
                self.sent += len(chunk) if counts else 0
                sink.sendall(chunk)
                if counts and here > self._after and self._cuts:
                    self._cuts -= 1
                    break
        for one in (source, sink):
            with suppress(OSError):  # it is gone
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._door.close()


def test_a_client_takes_a_broken_upload_up_and_sends_the_rest_only(ala: Caller, tmp_path: Path) -> None:
    path = tmp_path / "big"
    data = os.urandom(16 << 20)
    path.write_bytes(data)
    relay = Cutting(ala.server.url, cuts=3, after=5 << 20)
    settings = ClientSettings(server=relay.url, token=ala.token, patience=30.0)
    with KolejkaClient(settings) as client:
        sha = client.put_blob(path)
    relay.close()
    assert ala.ask("GET", f"/blobs/{sha}", status=200).data == data
    assert relay.sent < 1.5 * len(data), "what had arrived was not sent again"


# Whose it is


def test_what_one_uploaded_is_listed_page_by_page_and_can_be_disowned(server: Server, ala: Caller) -> None:
    shas = sorted(ala.upload(b"mine %d" % n) for n in range(5))
    ala.put(files={"in": {"reference": shas[0]}})
    first = ala.ask("GET", "/blobs?limit=3", status=200).json
    second = ala.ask("GET", f"/blobs?limit=3&after={first['next']}", status=200).json
    listed = first["blobs"] + second["blobs"]
    assert [blob["sha256"] for blob in listed] == shas
    assert [blob["references"] for blob in listed] == [1, 0, 0, 0, 0]
    assert second["next"] is None
    other = server.user(next(NAMES), "client")
    assert other.ask("GET", "/blobs", status=200).json["blobs"] == []
    other.ask("DELETE", f"/blobs/{shas[1]}", status=404)
    for sha in shas[:2]:
        ala.ask("DELETE", f"/blobs/{sha}", status=204)
        ala.ask("DELETE", f"/blobs/{sha}", status=404)
    assert ala.ask("GET", f"/blobs/{shas[0]}").status == 200, "a task of theirs refers to it"
    assert ala.ask("GET", f"/blobs/{shas[1]}").status == 404
    ala.ask("DELETE", "/blobs/x", status=422)


def test_a_hash_and_a_size_tell_a_stranger_nothing(server: Server, ala: Caller) -> None:
    sha = ala.upload(b"secret bytes")
    other = server.user(next(NAMES), "client")
    assert begin(other, sha, 12) == begin(other, "0" * 64, 12)
    assert other.ask("POST", f"/blobs/{sha}/upload", {"size": 12, "ticket": "0" * 32}, status=422).error[1] == "ticket"
    assert begin(ala, sha, 12.0)["state"] == "stored"  # type: ignore[arg-type]  # a whole number, to JSON
    assert ala.ask("POST", f"/blobs/{sha}/upload", {"size": 13}, status=422).error == ("invalid", "size")
    assert ala.ask("POST", f"/blobs/{sha}/upload", {"size": 65 << 30}, status=413).error[0] == "too_large"


def test_a_node_brings_the_bytes_of_its_results_even_those_it_may_read(server: Server, ala: Caller) -> None:
    smith = server.user(next(NAMES), "node")
    data = DATA + b"both an input and another task's output"
    sha = ala.upload(data)
    ala.put(files={"in": {"reference": sha}})
    ala.put()
    name = next(NAMES)
    leases = {given["spec"].get("files") is not None: given["lease"] for given in smith.claim(name)["attempts"]}
    assert smith.ask("GET", f"/blobs/{sha}").status == 200
    assert begin(smith, sha, len(data))["state"] == "wanted"
    assert smith.upload(data) == sha
    assert begin(smith, sha, len(data))["state"] == "stored"
    manifest = {"out": {"size": len(data), "mode": "0644", "sha256": sha}}
    for lease in leases.values():
        smith.finish(lease, manifest=manifest, files=["out"])


def test_a_blob_listed_and_deleted_from_the_command_line(server: Server, ala: Caller, tmp_path: Path) -> None:
    with client_of(ala) as client:
        (tmp_path / "f").write_bytes(b"by the library")
        sha = client.put_blob(tmp_path / "f")
        assert [blob["sha256"] for blob in client.blobs()] == [sha]
        client.delete_blob(sha)
        assert list(client.blobs()) == []


# Directly


@pytest.mark.needs("s3")
def test_large_files_bypass_the_server_both_ways(bucket_server: Server, tmp_path: Path) -> None:
    ala = bucket_server.user(next(NAMES), "client")
    path = tmp_path / "big"
    path.write_bytes(DATA)
    # A relay that breaks whatever carries more than a few words: the bytes must have gone another way.
    relay = Cutting(bucket_server.url, cuts=1000, after=1 << 20)
    settings = ClientSettings(server=relay.url, token=ala.token, patience=5.0)
    with KolejkaClient(settings) as client:
        assert client.put_blob(path) == SHA
        assert client.get_blob(SHA, tmp_path / "copy") == len(DATA)
    relay.close()
    assert relay.sent < 100_000
    assert (tmp_path / "copy").read_bytes() == DATA
    got = ala.ask("GET", f"/blobs/{SHA}", headers={"Range": "bytes=10-19"}, status=206)
    assert got.data == DATA[10:20], "who does not follow addresses gets the bytes from the server"


@pytest.mark.needs("s3")
def test_a_client_that_follows_nobody_sends_everything_to_the_server(bucket_server: Server, tmp_path: Path) -> None:
    ala = bucket_server.user(next(NAMES), "client")
    (tmp_path / "big").write_bytes(DATA + b"by the server")
    with client_of(ala, direct=False) as client:
        sha = client.put_blob(tmp_path / "big")
        client.get_blob(sha, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA + b"by the server"


@pytest.mark.needs("s3")
def test_the_server_takes_nothing_unverified_from_its_store(bucket_server: Server) -> None:
    ala, eve = (bucket_server.user(next(NAMES), "client") for _ in range(2))
    data = DATA + b"verified"
    sha = hashlib.sha256(data).hexdigest()
    invited = begin(eve, sha, len(data), direct=True)
    assert requests.put(str(invited["url"]), data=data[:-1] + b"!", timeout=30).status_code == 200
    said = {"size": len(data), "ticket": invited["ticket"]}
    assert ala.ask("POST", f"/blobs/{sha}/upload", said, status=400).error[0] == "truncated", "another's ticket"
    assert eve.ask("POST", f"/blobs/{sha}/upload", said, status=422).error == ("hash_mismatch", "sha256")
    assert eve.ask("HEAD", f"/blobs/{sha}").status == 404
    assert ala.upload(data) == sha
    assert ala.ask("GET", f"/blobs/{sha}", status=200).data == data
    assert eve.ask("GET", f"/blobs/{sha}?direct=true").status == 404


@pytest.mark.needs("s3")
def test_an_address_is_told_to_those_only_who_may_have_the_blob(bucket_server: Server) -> None:
    ala, eve = (bucket_server.user(next(NAMES), "client") for _ in range(2))
    sha = ala.upload(b"for ala")
    told = ala.ask("GET", f"/blobs/{sha}?direct=true", status=307)
    assert requests.get(told.headers["location"], timeout=30).content == b"for ala"
    assert told.headers["cache-control"] == "no-store"
    assert eve.ask("GET", f"/blobs/{sha}?direct=true", status=404).error[0] == "not_found"


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_store_that_fails_costs_a_client_only_the_detour(
    ala: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, in_parts: bool
) -> None:
    """A server says where to put and get bytes, and nobody is there: they go through the server after all."""
    path = tmp_path / "big"
    path.write_bytes(DATA + b"detour")
    with client_of(ala) as client:
        whole, invited = client.transport.request, []

        def request(method: str, where: str, **words: object) -> object:
            answer = whole(method, where, **words)  # type: ignore[arg-type]
            asked = words.get("json") or words.get("params") or {}
            if isinstance(asked, dict) and asked.get("direct") in {True, "true"}:
                invited.append(where)
                nowhere = "http://127.0.0.1:1/x"
                if method == "GET":
                    answer.close()
                    answer.status, answer.headers = 307, {"Location": nowhere}
                else:
                    plan = {**answer.object(), "url": nowhere, "ticket": "0" * 32}
                    if in_parts:
                        plan |= {"part_size": 1 << 20, "parts": [{"number": n, "url": nowhere} for n in (1, 2, 3)]}
                    answer.object = lambda: plan  # type: ignore[method-assign]
            return answer

        monkeypatch.setattr(client.transport, "request", request)
        sha = client.put_blob(path)
        client.get_blob(sha, tmp_path / "copy")
    assert len(invited) == 2
    assert (tmp_path / "copy").read_bytes() == DATA + b"detour"


# Directly, in parts


@pytest.fixture(scope="module")
def large() -> bytes:
    """More than goes in one piece."""
    return os.urandom(70 << 20)


class Store:
    """What a client puts into the blob store: how many bytes got there. The put of number ``breaks`` fails."""

    def __init__(self, client: KolejkaClient, monkeypatch: pytest.MonkeyPatch, breaks: int = 0) -> None:
        self.bytes = self.puts = 0
        whole, lock = client.transport.elsewhere, threading.Lock()

        def elsewhere(method: str, url: str, **words: Any) -> object:
            if method != "PUT":
                return whole(method, url, **words)
            with lock:
                self.puts += 1
                if self.puts == breaks:
                    raise Unavailable("the blob store fails", code="broken")
            answer = whole(method, url, **words)
            with lock:
                self.bytes += len(words["data"]())
            return answer

        monkeypatch.setattr(client.transport, "elsewhere", elsewhere)


@pytest.mark.needs("s3")
def test_a_large_file_goes_in_parts_past_the_server_and_on_where_it_broke(
    bucket_server: Server, large: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ala = bucket_server.user(next(NAMES), "client")
    path = tmp_path / "large"
    path.write_bytes(large)
    relay = Cutting(bucket_server.url, cuts=1000, after=1 << 20)
    settings = ClientSettings(server=relay.url, token=ala.token, patience=20.0)
    with KolejkaClient(settings) as client:
        store = Store(client, monkeypatch, breaks=2)
        sha = client.put_blob(path)
        assert client.get_blob(sha, tmp_path / "copy") == len(large)
    relay.close()
    assert (store.bytes, store.puts) == (len(large), 5 + 1)
    assert relay.sent < 100_000
    assert (tmp_path / "copy").read_bytes() == large


@pytest.mark.needs("s3")
def test_another_client_takes_an_upload_in_parts_up_after_the_server_died(
    bucket_server: Server, large: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ala = bucket_server.user(next(NAMES), "client")
    data = large + b"2"
    sha = hashlib.sha256(data).hexdigest()
    plan = begin(ala, sha, len(data), direct=True, parts=True)
    size = plan["part_size"]
    assert isinstance(size, int)
    for part in plan["parts"][:3]:  # type: ignore[index]
        start = (part["number"] - 1) * size
        assert requests.put(part["url"], data=data[start : start + size], timeout=30).status_code == 200
    bucket_server.crash()
    bucket_server.start()
    (tmp_path / "large").write_bytes(data)
    with client_of(ala) as client:
        store = Store(client, monkeypatch)
        assert client.put_blob(tmp_path / "large") == sha
    assert store.bytes == len(data) - 3 * size
    assert ala.ask("HEAD", f"/blobs/{sha}").status == 200


@pytest.mark.needs("s3")
def test_parts_of_other_bytes_are_forgotten_and_sent_anew(
    bucket_server: Server, large: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier upload under this name was of a file that changed under it."""
    ala = bucket_server.user(next(NAMES), "client")
    data = large + b"3"
    sha = hashlib.sha256(data).hexdigest()
    plan = begin(ala, sha, len(data), direct=True, parts=True)
    part = plan["parts"][0]  # type: ignore[index]
    requests.put(part["url"], data=bytes(plan["part_size"]), timeout=30)  # type: ignore[call-overload]
    (tmp_path / "large").write_bytes(data)
    with client_of(ala) as client:
        store = Store(client, monkeypatch)
        assert client.put_blob(tmp_path / "large") == sha
    assert store.bytes == 2 * len(data) - plan["part_size"]  # type: ignore[operator]


def test_a_server_that_knows_no_parts_is_asked_without_them(
    ala: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = ala.ask("POST", f"/blobs/{SHA}/upload", {"size": 1, "pieces": True}, status=422)
    assert unknown.error == ("invalid", "pieces"), "so does an older one speak of parts"
    (tmp_path / "big").write_bytes(DATA + b"older")
    with client_of(ala) as client:
        whole, asked = client.transport.request, []

        def request(method: str, where: str, **words: Any) -> object:
            asked.append(words.get("json") or {})
            if "parts" in asked[-1]:
                raise InputError("there is no such field", field="parts")
            return whole(method, where, **words)

        monkeypatch.setattr(client.transport, "request", request)
        client.put_blob(tmp_path / "big")
    assert ["parts" in words for words in asked] == [True, False, False]


@pytest.mark.needs("s3")
def test_what_a_server_gives_in_parts_and_to_whom(bucket_server: Server) -> None:
    ala = bucket_server.user(next(NAMES), "client")
    size = 6 << 30
    assert begin(ala, size=size, direct=True) == {"state": "wanted", "offset": 0}, "more than S3 takes in one piece"
    assert begin(ala, size=size, parts=True) == {"state": "wanted", "offset": 0}, "nobody asked for addresses"
    plan = begin(ala, size=size, direct=True, parts=True)
    assert (plan["state"], plan["part_size"], len(plan["parts"])) == ("wanted", 16 << 20, 64)  # type: ignore[arg-type]
    assert set(begin(ala, direct=True, parts=True)) == {"state", "offset", "url", "ticket"}, "it is small"


# A full disk


def test_a_full_disk_under_the_blobs_is_said_and_the_server_goes_on(small_disk: Path, tmp_path: Path) -> None:
    server = Server(tmp_path, "--blobs", str(small_disk)).start()
    try:
        ala = server.admin
        kept = ala.upload(b"kept" * 100_000)
        data = bytes(6 << 20)
        sha = hashlib.sha256(data).hexdigest()
        with client_of(ala) as client:
            client.transport.patience_s = 0.5
            (tmp_path / "big").write_bytes(data)
            with pytest.raises(Unavailable, match=r"No space left on device|broke"):
                client.put_blob(tmp_path / "big")
        wait_until(lambda: arrived(ala, sha, len(data)) == 0)
        assert list((small_disk / "incoming").iterdir()) == []
        assert ala.ask("GET", f"/blobs/{kept}", status=200).data == b"kept" * 100_000
        assert ala.ask("GET", "/readyz", status=503).json["checks"]["disk"] == "failed"
        assert f"/api/v1/blobs/{sha}" in server.log(), "the admin's log names what was not served"
        assert ala.upload(b"small"), "the room is free again"
    finally:
        server.stop()


# Settings


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--blobs", "gs://x"], "s3://BUCKET"),
        (["--blobs", "s3://bucket", "--s3-endpoint", "http://127.0.0.1:1"], "the store of blobs fails"),
        (["--blob-grace", "1s"], "60 s"),
    ],
)
def test_a_server_says_in_one_line_why_it_cannot_keep_blobs_so(tmp_path: Path, options: list[str], word: str) -> None:
    command = [
        sys.executable,
        "-m",
        "kolejka.server",
        "runserver",
        "--data",
        tmp_path / "data",
        "--port",
        "0",
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in {2, 125}
    assert done.stderr.count("\n") == 1
    assert word in done.stderr


def test_a_sweep_from_the_command_line_needs_a_server_that_does_not_run(server: Server, ala: Caller) -> None:
    sha = ala.upload(b"kept for the grace")
    command = [sys.executable, "-m", "kolejka.server", "sweep", "--orphans", "--data", server.data]
    running = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (running.returncode != 0, "another server" in running.stderr) == (True, True)
    server.stop()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("0 tasks, 0 blobs")
    server.start()
    assert ala.ask("GET", f"/blobs/{sha}", status=200).data == b"kept for the grace"

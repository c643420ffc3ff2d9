"""Who may be called back, and how."""

from __future__ import annotations

import asyncio
import ipaddress
from types import SimpleNamespace
from typing import Any

import pytest

from kolejka.common.errors import InputError
from kolejka.common.settings import ServerSettings
from kolejka.server.calling import (
    AT_ONCE,
    Calls,
    Due,
    Failed,
    Hosts,
    Room,
    Target,
    pause_s,
    request,
    room,
    signature,
)

HOSTS = Hosts.parse(["Example.org", "*.ci.example.org.", "10.1.0.0/16", "fd00::/8", "127.0.0.1"])


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://example.org", Target("example.org", 443, "/", True)),
        ("http://EXAMPLE.org.:8080/a/b?c=d", Target("example.org", 8080, "/a/b?c=d", False)),
        ("https://a.ci.example.org/x", Target("a.ci.example.org", 443, "/x", True)),
        ("http://10.1.2.3/x", Target("10.1.2.3", 80, "/x", False)),
        ("http://[fd00::1]:81/", Target("fd00::1", 81, "/", False)),
    ],
)
def test_an_allowed_address_is_taken_apart(url: str, target: Target) -> None:
    assert HOSTS.target(url) == target


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/", "https://evilexample.org/", "https://ci.example.org/", "http://10.2.0.1/",
        "http://[::1]/", "http://[::ffff:10.2.0.1]/", "ftp://example.org/", "https://a@example.org/",
        "https://example.org/#a", "https://example.org/ a", "https://example.org/é", "https://example.org:x/",
        "https://example.org:65536/", "https://", "http://127.1/", "http://0x7f000001/", "https://example.org\r\nA: b/",
    ],
)  # fmt: skip
def test_any_other_address_is_refused(url: str) -> None:
    with pytest.raises(InputError) as caught:
        HOSTS.target(url)
    assert caught.value.field == "callback_url"
    assert "\n" not in caught.value.message


def test_nobody_is_called_where_nobody_is_allowed() -> None:
    assert not Hosts()
    with pytest.raises(InputError, match="callback_hosts"):
        Hosts().target("https://example.org/")


@pytest.mark.parametrize("word", ["", "*", "*.", "a b", "10.0.0.0/33", "10.0.0.1/8", "http://a", "a/b", "1.2.3", "-a"])
def test_a_setting_that_names_no_host_is_refused(word: str) -> None:
    with pytest.raises(InputError) as caught:
        Hosts.parse([word])
    assert caught.value.field == "callback_hosts"


@pytest.mark.parametrize(
    ("address", "admitted"),
    [
        ("93.184.216.34", True), ("10.1.2.3", True), ("10.2.0.1", False), ("127.0.0.1", True), ("127.0.0.2", False),
        ("169.254.169.254", False), ("0.0.0.0", False), ("224.0.0.1", False), ("100.64.0.1", False),
        ("192.168.0.1", False), ("::1", False), ("fe80::1", False), ("fd00::5", True), ("::ffff:10.2.0.1", False),
        ("::ffff:10.1.0.1", True), ("64:ff9b::a02:1", False), ("2002:a02:1::1", False), ("2606:2800:220:1::1", True),
        ("ff02::1", False), ("fec0::1", False), ("::7f00:1", False), ("4000::1", False),
    ],
)  # fmt: skip
def test_a_name_may_lead_to_public_addresses_and_to_networks_that_are_named(address: str, admitted: bool) -> None:
    assert HOSTS.admits(ipaddress.ip_address(address)) is admitted


@pytest.mark.parametrize(
    ("running", "expected"),
    [
        ({}, Room(AT_ONCE // 2, frozenset())),
        ({1: AT_ONCE // 2}, Room(AT_ONCE // 4, frozenset({1}))),
        ({1: 32, 2: 16}, Room(8, frozenset({1, 2}))),
        ({1: 31, 2: 1}, Room(1, frozenset())),
        ({1: 5, 2: 1}, Room((AT_ONCE - 6 - 5) // 2, frozenset())),
        (dict.fromkeys(range(AT_ONCE - 1), 1), Room(1, frozenset(range(AT_ONCE - 1)))),
        ({1: AT_ONCE}, Room(0, frozenset({1}))),
    ],
)
def test_calls_of_one_owner_leave_room_for_those_of_others(running: dict[int, int], expected: Room) -> None:
    assert room(running) == expected


def test_pauses_grow_and_have_an_end() -> None:
    assert [pause_s(tries, 5.0) for tries in (1, 2, 3, 4, 11, 100)] == [5, 10, 20, 40, 3600, 3600]


def test_the_request_is_signed_over_time_and_body() -> None:
    due = Due(1, "task1", "https://example.org/x", 7, "ok", 1_700_000_000.5, 2, 1, "kcs_key")
    head, _, body = request(HOSTS.target(due.url), due, 1_700_000_009.9).partition(b"\r\n\r\n")
    assert body == b'{"task": "task1", "lease": 7, "outcome": "ok", "finished_at": 1700000000.5}'
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /x HTTP/1.1"
    assert {"Host: example.org", f"Content-Length: {len(body)}", "Kolejka-Try: 2"} <= set(lines)
    assert f"Kolejka-Signature: {signature('kcs_key', 1_700_000_009, body)}" in lines
    assert signature("kcs_key", 1, b"x") != signature("kcs_key", 2, b"x")


def test_a_name_that_leads_to_a_private_address_is_not_called() -> None:
    settings = ServerSettings(callback_hosts=("localhost",), callback_timeout=5.0)
    due = Due(1, "task1", "http://localhost:1/x", 7, "ok", 1.0, 1, 1, "kcs_key")

    async def call() -> str:
        deps: Any = SimpleNamespace(settings=settings, hosts=Hosts.parse(settings.callback_hosts), clock=lambda: 1.0)
        return await Calls(deps)._call(due)

    with pytest.raises(Failed, match="no public address"):
        asyncio.run(call())


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", "200"), (b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\nHTTP/1.0 204 x\r\n\r\n", "204"),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", "answered 302"), (b"SSH-2.0-x\r\n", "speaks no HTTP"),
        (b"", "speaks no HTTP"), (b"x" * 100_000, "speaks no HTTP"), (b"HTTP/1.1 2", "speaks no HTTP"),
    ],
)  # fmt: skip
def test_only_a_good_status_is_an_answer(answer: bytes, told: str) -> None:
    settings = ServerSettings(callback_hosts=("127.0.0.1",), callback_timeout=5.0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(answer)
        writer.close()

    async def call() -> str:
        deps: Any = SimpleNamespace(settings=settings, hosts=Hosts.parse(settings.callback_hosts), clock=lambda: 1.0)
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            due = Due(1, "task1", f"http://127.0.0.1:{port}/x", 7, "ok", 1.0, 1, 1, "kcs_key")
            try:
                return await Calls(deps)._call(due)
            except Failed as failed:
                return str(failed)

    assert asyncio.run(call()).startswith(told)


def test_one_who_never_answers_is_left_in_time() -> None:
    settings = ServerSettings(callback_hosts=("127.0.0.1",), callback_timeout=0.1)

    async def dribble(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 ")
        await asyncio.Event().wait()

    async def call() -> None:
        deps: Any = SimpleNamespace(settings=settings, hosts=Hosts.parse(settings.callback_hosts), clock=lambda: 1.0)
        server = await asyncio.start_server(dribble, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Failed, match="no answer within"):
            await Calls(deps)._call(Due(1, "t", f"http://127.0.0.1:{port}/", 7, "ok", 1.0, 1, 1, "kcs_key"))
        server.close()

    asyncio.run(call())

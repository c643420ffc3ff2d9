"""Connections, as gunicorn hands them to the server."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace

import pytest
from gunicorn.config import Config

from kolejka.server.runserver import Connection


@pytest.mark.parametrize("said", [b"", b"GET /healthz HTT"])
def test_a_connection_that_asks_nothing_is_not_kept(said: bytes) -> None:
    async def talk() -> bytes:
        loop = asyncio.get_running_loop()
        config = Config()
        config.set("keepalive", 1)  # the shortest there is
        worker = SimpleNamespace(cfg=config, log=SimpleNamespace(), asgi=None, loop=loop, nr_conns=0, alive=True)
        ours, theirs = socket.socketpair()
        await loop.connect_accepted_socket(lambda: Connection(worker), ours)
        reader, writer = await asyncio.open_connection(sock=theirs)
        writer.write(said)
        async with asyncio.timeout(30):
            answer = await reader.read()
        writer.close()
        return answer

    assert asyncio.run(talk()) == b""

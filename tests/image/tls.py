"""TLS in front of a server that speaks plain HTTP: what a proxy does, in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator

from tests.neighbours.certificates import Certificate


@contextlib.contextmanager
def tls_before(port: int, certificate: Certificate, host: str = "127.0.0.1", at: int = 0) -> Iterator[int]:
    """Serve the loopback's ``port`` by TLS on ``host``, port ``at``, or any; the port of that."""
    loop = asyncio.new_event_loop()
    words = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    words.load_cert_chain(certificate.chain, certificate.key)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_pass(reader, inner_writer), _pass(inner_reader, writer))

    served = loop.run_until_complete(asyncio.start_server(answer, host, at, ssl=words))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield served.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):  # as asked
                loop.run_until_complete(task)
        served.close()
        loop.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hand on what comes, then the end of it."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except (ConnectionError, ssl.SSLError):  # the other side sees its end
        return
    finally:
        writer.close()

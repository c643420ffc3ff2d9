"""Calling back: a POST to the address that a task named, after the task is done and never within a request.

What is owed stands in the database (``storage.callbacks``), so a server that dies between a result and its callback, or
in the middle of one, leaves it to the next. Receivers may therefore hear the same twice; task and lease tell.

An address comes from a user, and the server stands in a network that the user may not reach. So: the setting
``callback_hosts`` names who may be called, and nobody may where it is empty; a name is resolved once and the connection
goes to an address that was looked at; an address that is not a public one must lie in a network that the setting names;
no redirect is followed; of the answer only the status is read; and a call has one time-out for all of it. This is the
reason why the request is written here: a library resolves by itself, and reads on.

An address that never answers holds a call up for the whole of that time-out. So that those of one owner hold up nobody
else's, an owner has another call under way only while fewer of theirs are than could still be begun (``room``).

The body is signed with the user's own key: ``Kolejka-Signature: sha256=`` and the HMAC-SHA256 in hexadecimal digits of
``Kolejka-Timestamp``, a dot, and the body. A receiver compares both and refuses old timestamps.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import hmac
import ipaddress
import json
import logging
import re
import socket
import ssl
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from kolejka import __version__
from kolejka.common.errors import InputError, KolejkaError
from kolejka.server.storage import callbacks
from kolejka.server.storage.base import Connection, ask
from kolejka.server.storage.callbacks import Due
from kolejka.server.wakes import wait

if TYPE_CHECKING:
    from kolejka.server.deps import Deps

logger = logging.getLogger("kolejka.server")

AT_ONCE: Final = 64
LONGEST_PAUSE_S: Final = 3600.0
LOOK_S: Final = 1.0
"""how often a server looks for calls that nobody told it of: those of other servers, and of its own earlier lives"""
GATHER_S: Final = 0.05
_LINE: Final = 16 * 1024
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Target:
    """A checked address: what to connect to, and what to ask for there."""

    host: str
    port: int
    path: str
    tls: bool

    @property
    def place(self) -> str:
        """What the ``Host`` header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


@dataclass(frozen=True)
class Hosts:
    """Who may be called: names, ``.ends`` of names, and networks, private ones too."""

    names: frozenset[str] = frozenset()
    ends: tuple[str, ...] = ()
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()

    @classmethod
    def parse(cls, words: Iterable[str]) -> Hosts:
        """The setting: ``example.org``, ``*.example.org``, ``10.1.0.0/16``. InputError names a word that is none."""
        names, ends, networks = set(), [], []
        for word in words:
            try:
                networks.append(ipaddress.ip_network(word))
                continue
            except ValueError:
                text = word.lower().rstrip(".")
            if not re.fullmatch(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?", text) or re.fullmatch(r"[0-9./]+", text):
                raise InputError(
                    f"{word!r} is no host to call; write example.org, *.example.org or 10.1.0.0/16",
                    field="callback_hosts",
                )
            if text.startswith("*."):
                ends.append(text[1:])
            else:
                names.add(text)
        return cls(frozenset(names), tuple(ends), tuple(networks))

    def __bool__(self) -> bool:
        return bool(self.names or self.ends or self.networks)

    def target(self, url: str) -> Target:
        """The address in its parts. InputError when it is none, or its host may not be called."""
        if not self:
            raise InputError(
                "this server calls nobody back (its setting callback_hosts is empty); leave it out and wait for the "
                "result",
                field="callback_url",
            )
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise _no_address() from None
        if not re.fullmatch(r"[!-~]+", url) or not parts.hostname or parts.scheme not in _PORTS:
            raise _no_address()
        if parts.username is not None or parts.password is not None or parts.fragment:
            raise InputError("the address of a callback has no user, password or #part", field="callback_url")
        host = parts.hostname.rstrip(".")
        if not self._names(host):
            raise InputError(f"the server may not call {host[:255]}; an admin can allow it", field="callback_url")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return Target(host, port or _PORTS[parts.scheme], path, parts.scheme == "https")

    def _names(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return host in self.names or any(host.endswith(end) for end in self.ends)
        return self._in_networks(address)

    def _in_networks(self, address: Address) -> bool:
        return any(address in network for network in self.networks)

    def admits(self, address: Address) -> bool:
        """Whether a connection may go to this address, to which an allowed name leads."""
        inner = address
        if isinstance(address, ipaddress.IPv6Address):
            carried = int(address) & 0xFFFFFFFF if address in _NAT64 else None
            inner = address.ipv4_mapped or address.sixtofour or address
            inner = ipaddress.IPv4Address(carried) if carried is not None else inner
        public = inner.is_global and not (inner.is_multicast or inner.is_reserved or _is_site_local(inner))
        return public or self._in_networks(inner)


def _is_site_local(address: Address) -> bool:
    """What was private before ``fc00::/7`` was (RFC 3879), and still is in old networks."""
    return isinstance(address, ipaddress.IPv6Address) and address.is_site_local


def _no_address() -> InputError:
    return InputError("this is no address; write https://HOST/PATH in ASCII", field="callback_url")


_PORTS: Final = {"http": 80, "https": 443}


def pause_s(tries: int, first_s: float) -> float:
    """How long to wait after so many tries."""
    return float(min(LONGEST_PAUSE_S, first_s * 2 ** min(tries - 1, 30)))


def signature(secret: str, timestamp: int, body: bytes) -> str:
    """What the header ``Kolejka-Signature`` says."""
    return "sha256=" + hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()


def request(target: Target, due: Due, now: float) -> bytes:
    """The whole request."""
    words = {"task": due.task_id, "lease": due.lease, "outcome": due.outcome, "finished_at": round(due.finished_at, 3)}
    body, timestamp = json.dumps(words).encode(), int(now)
    head = (
        f"POST {target.path} HTTP/1.1\r\nHost: {target.place}\r\nUser-Agent: kolejka/{__version__}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
        f"Kolejka-Timestamp: {timestamp}\r\nKolejka-Try: {due.tries}\r\n"
        f"Kolejka-Signature: {signature(due.secret, timestamp, body)}\r\n\r\n"
    )
    return head.encode("ascii") + body


@dataclass(frozen=True)
class Room:
    """How many calls may be begun, and of which owners none."""

    most: int
    without: frozenset[int]


def room(running: Mapping[int, int]) -> Room:
    """The room beside calls that run: owner → how many.

    One owner alone comes to half of all places, a second one to half of the rest, and so on: whoever comes finds some.
    """
    free = AT_ONCE - sum(running.values())
    full = frozenset(owner for owner, count in running.items() if count >= free)
    busiest = max((count for owner, count in running.items() if owner not in full), default=0)
    return Room(min(free, max(1, (free - busiest) // 2)), full)


class Failed(Exception):
    """A call was not heard; the message says why, in a few words."""


class Calls:
    """The calls of one server process. ``start`` and ``stop`` run in the event loop; both may be called twice."""

    def __init__(self, deps: Deps, *, hosts: Hosts | None = None) -> None:
        self._deps = deps
        self._hosts = deps.hosts if hosts is None else hosts
        self._loop: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._owners: Counter[int] = Counter()
        self._names = ThreadPoolExecutor(4, "callback-names")  # names that take long hold up nothing else
        self._tls = ssl.create_default_context() if self._hosts else None

    def start(self) -> None:
        """Begin to call, where the settings let anybody be called."""
        if self._loop is None and self._hosts:
            self._loop = asyncio.create_task(self._serve())

    async def stop(self) -> None:
        """Break off what runs; it stays owed."""
        tasks = [*self._running, *([self._loop] if self._loop is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._loop = None
        self._names.shutdown(wait=False, cancel_futures=True)

    async def _serve(self) -> None:
        with self._deps.wakes.for_anything() as waiter:
            while True:
                waiter.looked()
                try:
                    rest_s = await self._round(waiter.woken)
                except KolejkaError as error:  # the database is away: the next round tries again
                    logger.warning("callbacks cannot be looked at", extra={"error": str(error)})
                    rest_s = LOOK_S
                await asyncio.sleep(GATHER_S)  # many tasks that end at once are one look
                await wait(waiter, rest_s, asyncio.Event().wait)

    async def _round(self, ended: asyncio.Event) -> float:
        """Begin what is due; how long to rest."""
        deps, may = self._deps, room(self._owners)
        due_at = await ask(deps.store.read(callbacks.next_due))
        now = deps.clock()
        if due_at is None or not may.most:
            return LOOK_S
        if due_at > now:
            return min(LOOK_S, due_at - now)
        settings = deps.settings
        until = now + settings.callback_timeout + settings.callback_pause
        taken = await ask(deps.store.write(lambda db: callbacks.take(db, now, until, may.most, without=may.without)))
        for due in taken:
            task = asyncio.create_task(self._settle(due))
            self._running.add(task)
            self._owners[due.owner_id] += 1
            task.add_done_callback(functools.partial(self._ended, due.owner_id, ended))
        return 0.0 if taken else LOOK_S

    def _ended(self, owner_id: int, ended: asyncio.Event, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._owners[owner_id] -= 1
        self._owners += Counter()  # without those that are at zero
        ended.set()

    async def _settle(self, due: Due) -> None:
        """Make one call and write down what came of it."""
        settings, about = self._deps.settings, {"task": due.task_id, "lease": due.lease, "try": due.tries}
        try:
            answer = await self._call(due)
        except (Failed, InputError) as error:
            answer, heard = str(error), False
        else:
            heard = True
        now = self._deps.clock()
        over = heard or due.tries >= settings.callback_tries
        again_s = pause_s(due.tries, settings.callback_pause)

        def work(db: Connection) -> None:
            if over:
                callbacks.end(db, due, now, answer)
            else:
                callbacks.put_off(db, due, now + again_s, answer)

        try:
            await ask(self._deps.store.write(work))
        except KolejkaError as error:  # it is tried again, as if this try had not been
            logger.warning("callback not recorded", extra={**about, "error": str(error)})
            return
        self._deps.metrics.callbacks.labels("heard" if heard else "given_up" if over else "failed").inc()
        if heard:
            logger.info("called back", extra={**about, "answer": answer})
        else:
            end = {} if over else {"next_try_s": again_s}
            logger.warning("callback given up" if over else "callback failed", extra={**about, "reason": answer, **end})

    async def _call(self, due: Due) -> str:
        """One call: what was answered. Failed when it was not heard, InputError when it may not be made any more."""
        target = self._hosts.target(due.url)
        try:
            async with asyncio.timeout(self._deps.settings.callback_timeout):
                address = await self._resolve(target)
                return await self._post(target, address, request(target, due, self._deps.clock()))
        except TimeoutError:
            raise Failed(f"no answer within {self._deps.settings.callback_timeout:g} s") from None
        except (OSError, ssl.SSLError) as error:
            raise Failed(f"cannot be reached: {getattr(error, 'strerror', None) or error}"[:200]) from None
        except (ValueError, EOFError, asyncio.LimitOverrunError) as error:  # a line too long, or none
            raise Failed(f"speaks no HTTP: {error}"[:200]) from None

    async def _resolve(self, target: Target) -> Address:
        """The one address to connect to. Failed when an admin did not allow it."""
        loop = asyncio.get_running_loop()
        found: list[Any] = await loop.run_in_executor(
            self._names, lambda: socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        )
        addresses = [ipaddress.ip_address(entry[4][0].partition("%")[0]) for entry in found]
        allowed = next((address for address in addresses if self._hosts.admits(address)), None)
        if allowed is None:
            raise Failed(f"{target.host} is at {addresses[0]}, which is no public address; an admin can allow it")
        return allowed

    async def _post(self, target: Target, address: Address, data: bytes) -> str:
        reader, writer = await asyncio.open_connection(
            str(address), target.port, ssl=self._tls if target.tls else None,
            server_hostname=target.host if target.tls else None, limit=_LINE,
        )  # fmt: skip
        try:
            writer.write(data)
            with contextlib.suppress(ConnectionError):  # it may have answered before it had read everything
                await writer.drain()
            status = 100
            while 100 <= status < 200:
                line = await reader.readuntil(b"\n")
                match = re.fullmatch(rb"HTTP/1\.[01] ([1-9][0-9]{2})( [^\r\n]*)?\r?\n", line)
                if match is None:
                    raise ValueError(ascii(line[:40]))
                status = int(match[1])
                while 100 <= status < 200 and await reader.readuntil(b"\n") not in {b"\r\n", b"\n"}:
                    pass
        finally:
            writer.transport.abort()  # nothing of the rest is wanted
        if not 200 <= status < 300:
            raise Failed(f"answered {status}")
        return str(status)

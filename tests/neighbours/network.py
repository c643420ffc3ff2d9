"""A network of the tests' own: two namespaces, joined by one cable that can be cut and made slow.

Who is ``inside`` stands at the server's end; a program whose command begins with ``at_node`` stands at the node's. Each
end has a loopback of its own, nothing leads anywhere else, and the machine's own network is not touched. ``nsenter``
and not ``ip netns exec`` leads there, since that would hide the control groups behind a new ``/sys``.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.neighbours.needs import find

SERVER = "10.231.0.1"
NODE = "10.231.0.2"
_CLONE_NEWNET = 0x40000000  # sched.h


class Network:
    """Two namespaces and the cable between them; ``remove`` takes them away."""

    def __init__(self) -> None:
        name = f"kolejka-test-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._server, self._node = f"{name}-server", f"{name}-node"
        for place in (self._server, self._node):
            _run("ip", "netns", "add", place)
            _run("ip", "-n", place, "link", "set", "lo", "up")
        _run("ip", "-n", self._server, "link", "add", "cable", "type", "veth", "peer", "cable", "netns", self._node)
        for place, address in ((self._server, SERVER), (self._node, NODE)):
            _run("ip", "-n", place, "address", "add", f"{address}/24", "dev", "cable")
            _run("ip", "-n", place, "link", "set", "cable", "up")

    @property
    def at_node(self) -> list[str]:
        """What a command begins with that runs at the node's end."""
        return [find("nsenter") or "", f"--net=/run/netns/{self._node}"]

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Be at the server's end: this thread, and the threads and programs that it starts."""
        back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            there = os.open(f"/run/netns/{self._server}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _enter(there)
            finally:
                os.close(there)
            try:
                yield
            finally:
                _enter(back)
        finally:
            os.close(back)

    def cut(self) -> None:
        """Let nothing through, and tell nobody: connections stay open at both ends."""
        _run("ip", "-n", self._server, "link", "set", "cable", "down")

    def mend(self) -> None:
        """Let everything through again."""
        _run("ip", "-n", self._server, "link", "set", "cable", "up")

    def slow(self, rate: str) -> None:
        """So many bits a second each way, such as ``1mbit``; what exceeds that waits, and is dropped in the end."""
        for place in (self._server, self._node):
            _run("tc", "-n", place, "qdisc", "add", "dev", "cable", "root",
                 "tbf", "rate", rate, "burst", "16kb", "latency", "400ms")  # fmt: skip

    def quicken(self) -> None:
        """As quick as it was."""
        for place in (self._server, self._node):
            _run("tc", "-n", place, "qdisc", "del", "dev", "cable", "root")

    def remove(self) -> None:
        """Take it away; the cable goes with its ends."""
        for place in (self._server, self._node):
            if Path("/run/netns", place).exists():
                _run("ip", "netns", "del", place)


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "no way into the network namespace")


def _run(program: str, *words: str) -> None:
    done = subprocess.run([find(program) or program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{program} {' '.join(words)}: {done.stderr}"

"""What this machine lacks for sessions, and how to get it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from kolejka.common.checks import Check
from kolejka.common.errors import KolejkaError
from kolejka.common.limits import Limits
from kolejka.common.settings import ObserverSettings
from kolejka.observer.cgroups.choose import choose
from kolejka.observer.cgroups.moves import are_favored
from kolejka.observer.client import ObserverClient, ObserverError
from kolejka.observer.sessions import Registry


def checks(settings: ObserverSettings) -> Iterable[Check]:
    """The checks, in the order in which to mend them."""
    try:
        tree = choose(settings.cgroup, base=settings.base)
    except KolejkaError as error:
        yield Check("control groups", False, error.message, "kolejka-observer must run as root, or with Delegate=yes")
    else:
        yield from tree.checks()
        yield _session(settings)
    yield _moves()
    yield _swap()
    yield _observer(settings)


def _session(settings: ObserverSettings) -> Check:
    try:
        registry = Registry(choose(f"{settings.cgroup}-doctor-{os.getpid()}", base=settings.base), remember=0)
        try:
            registry.open(Limits.of(memory="16M", pids=4)).close()
        finally:
            registry.stop()
    except (KolejkaError, OSError) as error:
        return Check("a session", False, f"cannot be made: {error}", "mend the lines above, or run as root")
    return Check("a session", True, "can be opened, limited, measured and closed")


def _moves() -> Check:
    return Check(
        "moves", bool(are_favored()), "a process enters a control group in microseconds" if are_favored()
        else "a process enters a control group in milliseconds; the observer changes that at its start (kernel 6.0)",
        "kolejka-observer", required=False,
    )  # fmt: skip


def _swap() -> Check:
    with suppress(OSError):  # no swap support at all
        on = len(Path("/proc/swaps").read_text(encoding="ascii").splitlines()) > 1
        return Check(
            "swap", not on, "on: measured times and peaks vary with it" if on else "off, as measuring wants it",
            "swapoff -a", required=False,
        )  # fmt: skip
    return Check("swap", True, "off, as measuring wants it", required=False)


def _observer(settings: ObserverSettings) -> Check:
    try:
        about = ObserverClient(os.fspath(settings.socket), timeout=5).ping()
    except (OSError, ObserverError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return Check("observer", False, f"none answers at {settings.socket}: {reason}", "kolejka-observer", False)
    return Check("observer", True, f"serves at {settings.socket}, {about.get('sessions')} sessions", required=False)

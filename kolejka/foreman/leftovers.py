"""What an earlier life of this foreman left behind when it was killed, and the lock that keeps two lives apart.

A folder below ``DATA/running`` is an attempt that was cut short: the pool has swept its session by now, so the folder
is removed and its lease given back, and the task does not wait for the missing heartbeat. A task that this happens to
again and again may be the reason why the foreman dies. So deaths are counted, and after ``FREE_DEATHS`` the lease is
left to run out instead, which the server counts as lost and stops when it happens too often.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kolejka.common.errors import NodeError
from kolejka.common.files import write_json
from kolejka.foreman.slots import read_folder_name, remove_tree

logger = logging.getLogger(__name__)

LOCKED: Final = "locked"
"""code of the error when another foreman has the folder"""
FREE_DEATHS: Final = 2
REMEMBERED: Final = 1000
"""tasks whose deaths are remembered; the oldest are forgotten first"""


@dataclass(frozen=True)
class Leftover:
    """An attempt that was cut short. ``again`` = so often that its lease is left to run out."""

    lease: int
    task: str
    again: bool


@contextmanager
def locked(data: Path) -> Iterator[None]:
    """Hold the data folder for this process alone; made if it is not there. NodeError when another foreman has it.

    A lock of the process (POSIX), not of the open file: workers that outlive a killed foreman do not inherit it.
    """
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o711)
        descriptor = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise NodeError(
            f"{data} cannot be used: {error.strerror}; name another folder with --data", field="foreman.data"
        ) from None
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            owner = os.read(descriptor, 32).decode("ascii", "replace").strip()
            raise NodeError(
                f"another foreman (process {owner or 'unknown'}) uses {data}; "
                "stop it, or name another folder with --data",
                field="foreman.data",
                code=LOCKED,
            ) from None
        with suppress(OSError):  # a full disk: the lock holds without our number in it
            os.truncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def instance(data: Path) -> str:
    """What tells the foreman of this data folder from any other: random at its first start, the same ever after."""
    path = data / "instance.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # the first start, or one that a crash cut short
        known = None
    if not isinstance(known, str) or not re.fullmatch("[0-9a-f]{32}", known):
        known = secrets.token_hex(16)
        try:
            write_json(path, known, durable=True)
        except OSError as error:
            raise NodeError(f"{path} cannot be written: {error.strerror}", field="foreman.data") from None
    return known


def clean(data: Path, finished: Collection[int] = ()) -> list[Leftover]:
    """Remove the attempts that were cut short, oldest first, and count them. Call after the pool's sweep.

    ``finished`` leases have their result in the spool: just their folder was still to be removed.
    """
    running = data / "running"
    running.mkdir(exist_ok=True, mode=0o711)
    found: list[tuple[int, str]] = []
    for folder in running.iterdir():
        named = read_folder_name(folder.name)
        if named is not None:
            if named[0] not in finished:
                found.append(named)
            remove_tree(folder)
    found.sort()
    deaths = _count(data / "deaths.json", [task for _, task in found])
    return [Leftover(lease, task, deaths.get(task, 0) > FREE_DEATHS) for lease, task in found]


def _count(path: Path, died: list[str]) -> dict[str, int]:
    try:
        deaths = {str(task): int(count) for task, count in json.loads(path.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:  # nobody died yet
        deaths = {}
    except (ValueError, AttributeError, TypeError) as error:
        logger.warning(
            "the count of deaths is damaged and starts anew", extra={"file": str(path), "reason": str(error)}
        )
        deaths = {}
    for task in died:
        deaths[task] = deaths.pop(task, 0) + 1
    if died:
        try:
            write_json(path, dict(list(deaths.items())[-REMEMBERED:]), durable=True)
        except OSError as error:  # results in the spool can leave a full disk, if only the foreman starts
            about = {"file": str(path), "reason": str(error)}
            logger.warning("the count of deaths cannot be written", extra=about)
    return deaths

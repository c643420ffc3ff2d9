"""Finished results, kept on this node's disk until the server has them.

::

    DATA/spool/<lease>/          a result's folder as the worker made it, whole and synced
    DATA/spool/.gone-<lease>/    one that is being removed

A result enters by one rename after all its bytes are on disk, so whatever stands under a number is whole, also after
a power failure. It leaves by a rename too, and only when the server has it or wants it no more.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kolejka.common.errors import InputError
from kolejka.common.files import sync_folder
from kolejka.common.result import Result

logger = logging.getLogger(__name__)

_GONE: Final = ".gone-"
_STAYS: Final = "a result cannot be removed from the spool yet"


@dataclass(frozen=True)
class Entry:
    """One result that waits for the server: ``task`` is the key of its task."""

    lease: int
    task: str
    folder: Path

    def result(self) -> Result:
        """The result's spec. InputError when the disk gave back something else than was written."""
        return Result.load(self.folder)


class Spool:
    """The spool below one folder. Calls for different leases may come from different threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self) -> list[Entry]:
        """What an earlier life left, oldest lease first; half-removed ones are removed. Creates the folder.

        An entry that cannot be read any more is dropped with a line in the log: its lease runs out at the server,
        and the task gets another attempt. What is no entry is left alone.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        found: list[Entry] = []
        for folder in self._folder.iterdir():
            if folder.is_symlink() or not folder.is_dir():
                continue
            if folder.name.startswith(_GONE):
                _remove(folder)
            elif folder.name.isascii() and folder.name.isdigit():
                try:
                    found.append(Entry(int(folder.name), Result.load(folder).id or "", folder))
                except InputError as error:
                    logger.error(  # noqa: TRY400  the message says all; no traceback for a damaged file
                        "a spooled result cannot be read and is dropped",
                        extra={"lease": folder.name, "reason": str(error)},
                    )
                    self._drop(folder, folder.name)
        return sorted(found, key=lambda entry: entry.lease)

    def add(self, lease: int, task: str, result_folder: Path) -> Entry:
        """Take a finished result's folder (on the same file system) over. On return it survives anything.

        OSError when the disk is full or broken: then the folder is where it was.
        """
        _sync_tree(result_folder)
        target = self._folder / str(lease)
        os.rename(result_folder, target)
        sync_folder(self._folder)
        return Entry(lease, task, target)

    def remove(self, entry: Entry) -> None:
        """Forget a result. One that is gone already is fine; one that the disk does not let go stays until the next
        start, which hands it in once more.
        """
        self._drop(entry.folder, str(entry.lease))

    def _drop(self, folder: Path, lease: str) -> None:
        gone = self._folder / f"{_GONE}{lease}"
        try:
            os.rename(folder, gone)
        except FileNotFoundError:  # removed before
            return
        except OSError as error:
            logger.warning(_STAYS, extra={"folder": str(folder), "reason": str(error)})
            return
        _remove(gone)


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        logger.warning(_STAYS, extra={"folder": str(folder), "reason": str(error)})


def _sync_tree(folder: Path) -> None:
    """Put every file and folder below ``folder`` on disk, never following a link out of it."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            descriptor = os.open(os.path.join(place, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(place)

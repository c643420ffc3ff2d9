"""Files that no folder names any more but that still take up the disk: unlinked, and open, mapped or run in a world.

Who weighs a folder does not see them, so a payload could hold as much of the disk as it likes in files that it unlinks
at once, or that never had a name (``O_TMPFILE``). The kernel tells of each in ``/proc``: a world's own ``/proc`` lists
just the processes of that world, and leads to their files whatever these were called. Each thread is asked: it may have
open files of its own, and go on when the first is gone. What is on its way through a socket, in nobody's hands, is not
seen; the limits on each file's size and on the number of open files bound it. Other ways to hold a file that nobody has
open (Landlock's rules) are closed by the system-call filter.

One look costs at most ``MOST`` questions, of files taken at random where there are more: what it finds is there, and
what it misses another look finds.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

MOST: Final = 4096
_PROC: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_LISTED: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

Belongs = Callable[[str, os.stat_result], bool]
"""whether a file without a name is wanted, by its former path in the world (empty = longer than any path) and itself"""


class World:
    """The processes of one world. ``pid`` is one of them, and must live while this is made."""

    def __init__(self, pid: int) -> None:
        self._proc = os.open(f"/proc/{pid}/root/proc", _PROC)
        try:
            self.root_device = os.stat(f"/proc/{pid}/root").st_dev
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Let go. Safe twice."""
        if self._proc >= 0:
            os.close(self._proc)
            self._proc = -1

    def weight(self, belongs: Belongs) -> int:
        """Bytes of the nameless files that ``belongs`` accepts."""
        found: dict[tuple[int, int], int] = {}
        for place, words in self._places():
            with suppress(OSError):  # closed, unmapped or ended meanwhile
                info = os.stat(place, dir_fd=self._proc)
                if info.st_nlink > 0 or not stat.S_ISREG(info.st_mode) or (info.st_dev, info.st_ino) in found:
                    continue
                if belongs(words if words is not None else self._path(place), info):
                    found[info.st_dev, info.st_ino] = max(info.st_size, info.st_blocks * 512)
        return sum(found.values())

    def _places(self) -> Iterator[tuple[str, str | None]]:
        """Where to look, below ``/proc``, and the path if it is known."""
        left = MOST
        for files in self._held():
            yield from files if len(files) <= left else random.sample(files, left)
            left -= len(files) + 1
            if left <= 0:
                return

    def _held(self) -> Iterator[list[tuple[str, str | None]]]:
        """What each thread has open, and what each process has mapped: processes and threads at random."""
        for name in self._list_numbers("."):
            asked = False
            with suppress(OSError):  # it ended meanwhile
                for thread in self._list_numbers(f"{name}/task"):
                    with suppress(OSError):  # this one ended, and others of its process may not have
                        yield [(f"{thread}/fd/{number}", None) for number in self._list(f"{thread}/fd")]
                        if not asked:
                            yield self._in_memory(thread)
                            asked = True

    def _list_numbers(self, name: str) -> list[str]:
        numbers = [number for number in self._list(name) if number.isdigit()]
        random.shuffle(numbers)
        return numbers

    def _in_memory(self, thread: str) -> list[tuple[str, str | None]]:
        """The program that a thread's process runs, and what that has mapped. OSError for a thread that has ended."""
        os.stat(f"{thread}/exe", dir_fd=self._proc)
        return [(f"{thread}/exe", None), *self._mapped(thread)]

    def _mapped(self, name: str) -> list[tuple[str, str | None]]:
        """The mapped files of a process that have no name."""
        descriptor = os.open(f"{name}/maps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
        found: list[tuple[str, str | None]] = []
        with os.fdopen(descriptor, "rb") as source:
            for line in source:
                if not line.endswith(b" (deleted)\n"):
                    continue
                addresses, _, _, _, _, path = line.split(None, 5)
                start, _, end = addresses.decode().partition("-")
                found.append((f"{name}/map_files/{int(start, 16):x}-{int(end, 16):x}", os.fsdecode(path)))
        return found

    def _path(self, place: str) -> str:
        try:
            return os.readlink(place, dir_fd=self._proc)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return ""
            raise

    def _list(self, name: str) -> list[str]:
        descriptor = os.open(name, _LISTED, dir_fd=self._proc)
        try:
            return os.listdir(descriptor)
        finally:
            os.close(descriptor)

"""The node's cache of input files: ``DATA/blobs/<sha256>``, each downloaded once, verified, bounded in size.

A task holds the blobs it needs while it runs; among those that nobody holds the least recently used go first when the
bound is reached. Held blobs may exceed the bound: a task that fits the node is never refused for the cache's sake.
Files are the foreman's own, mode 0444, so a payload (another user) can read what the worker links or copies for it but
never write. Recent use is kept as the file's access time, set by hand, so the order survives a restart. What an earlier
life left is hashed before its first use in this one: a machine that fell over may have kept other bytes than were
written, and disks rot. Broken entries are fetched anew.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from kolejka.common.errors import InputError, Unavailable
from kolejka.common.files import check_reference, hash_file, sync_folder

logger = logging.getLogger(__name__)

Fetch = Callable[[str, Path], object]
"""Writes the blob of a reference to a path, whole or not at all; Unavailable or NotFound when that fails."""

_PARTIAL: Final = ".partial-"


class BlobCache:
    """The cache below one folder, ``bound`` bytes large. Safe to use from several threads."""

    def __init__(self, folder: Path, bound: int) -> None:
        self.folder = folder
        self._bound = bound
        self._lock = threading.Lock()
        self._sizes: dict[str, int] = {}
        """reference → bytes, least recently used first"""
        self._total = 0
        self._held: Counter[str] = Counter()
        self._loading: dict[str, threading.Lock] = {}
        self._unverified: set[str] = set()
        """what an earlier life left and nobody has hashed since"""

    def open(self) -> None:
        """Find what an earlier life left; unfinished downloads are removed. Creates the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        found: list[tuple[float, str, int]] = []
        for path in self.folder.iterdir():
            if path.is_symlink() or not path.is_file():
                continue  # none of ours: a disk of its own has a lost+found
            try:
                check_reference(path.name)
            except InputError:  # a download that an earlier life did not finish
                path.unlink()
                continue
            status = path.stat()
            found.append((status.st_atime, path.name, status.st_size))
        with self._lock:
            self._sizes = {name: size for _, name, size in sorted(found)}
            self._total = sum(self._sizes.values())
            self._unverified = set(self._sizes)
            self._shrink()

    @property
    def size(self) -> int:
        """Bytes in the cache."""
        with self._lock:
            return self._total

    @contextmanager
    def hold(self, references: Iterable[str], fetch: Fetch) -> Iterator[Path]:
        """The folder with these blobs in it, which stay there until the block ends. Errors are those of ``fetch``."""
        wanted = tuple(dict.fromkeys(references))
        with self._lock:
            self._held.update(wanted)
        try:
            for reference in wanted:
                self._bring(reference, fetch)
            yield self.folder
        finally:
            with self._lock:
                self._held.subtract(wanted)
                self._held = +self._held  # drops those at zero
                self._shrink()

    def _bring(self, reference: str, fetch: Fetch) -> None:
        with self._lock:
            if reference not in self._unverified and self._touch(reference):
                return
            door = self._loading.setdefault(reference, threading.Lock())
        with door:  # whoever comes second finds the blob when the first is done
            self._verify(reference)
            with self._lock:
                if self._touch(reference):
                    self._loading.pop(reference, None)
                    return
            size = self._load(reference, fetch)
            with self._lock:
                self._sizes[reference] = size
                self._total += size
                self._loading.pop(reference, None)
                self._shrink()

    def _verify(self, reference: str) -> None:
        """Hash what an earlier life left; remove it if it is broken."""
        if reference not in self._unverified:
            return
        path = self.folder / reference
        try:
            is_whole = hash_file(path)[0] == reference
        except OSError:  # the disk does not give it back, or an administrator cleaned up
            is_whole = False
        with self._lock:
            self._unverified.discard(reference)
            if not is_whole and reference in self._sizes:
                logger.warning("a blob in the node's cache is broken and is fetched anew", extra={"blob": reference})
                path.unlink(missing_ok=True)
                self._total -= self._sizes.pop(reference)

    def _load(self, reference: str, fetch: Fetch) -> int:
        path, partial = self.folder / reference, self.folder / f"{_PARTIAL}{reference}"
        try:
            fetch(reference, partial)
            found, size = hash_file(partial)
            if found != reference:
                raise Unavailable(f"the bytes of blob {reference} came with the hash {found}", code="broken")
            partial.chmod(0o444)
            descriptor = os.open(partial, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(partial, path)
            sync_folder(self.folder)
        except BaseException:
            with suppress(FileNotFoundError):  # nothing came
                partial.unlink()
            raise
        return size

    def _touch(self, reference: str) -> bool:
        """Whether the blob is here; if so it becomes the most recently used. Call with the lock held."""
        if reference not in self._sizes:
            return False
        path = self.folder / reference
        try:
            os.utime(path)
        except FileNotFoundError:  # an administrator cleaned up
            self._total -= self._sizes.pop(reference)
            return False
        self._sizes[reference] = self._sizes.pop(reference)
        return True

    def _shrink(self) -> None:
        """Remove what was not used for longest until the bound is kept. Call with the lock held."""
        if self._total <= self._bound:
            return
        for reference in [name for name in self._sizes if not self._held[name]]:
            with suppress(FileNotFoundError):  # an administrator cleaned up
                (self.folder / reference).unlink()
            self._total -= self._sizes.pop(reference)
            if self._total <= self._bound:
                return

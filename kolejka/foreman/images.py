"""The node's cache of images: those that tasks name and nobody had brought here, fetched once, bounded in size.

Before a task starts, its image is looked for in every runtime; where none has it, the runtimes that can are asked in
turn to fetch it. What was fetched so is written down in ``DATA/images.json``, with its size and its last use; of that,
and of nothing else, the least recently used goes when all of it together is larger than the bound. An image that a
task holds stays. Images that an administrator brought are never listed, and so never removed.

A crash between a fetch and its line in the file leaves an image that counts as an administrator's: too much is kept,
never too much removed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from kolejka.common.errors import InputError, KolejkaError, NodeError, NotFound
from kolejka.common.files import read_json, write_json
from kolejka.worker.runtimes.base import Images

logger = logging.getLogger(__name__)

TELL_S: Final = 10.0
"""how often a fetch that goes on is logged"""


@dataclass(frozen=True)
class Fetched:
    """An image that this node fetched: its runtime, name, bytes, and when a task last began with it."""

    runtime: str
    image: str
    size: int
    used_at: float


class ImageCache:
    """The images of some runtimes, of which ``bound`` bytes may be fetched; 0 = nothing is. Safe in several threads."""

    def __init__(self, record: Path, runtimes: Mapping[str, Images], bound: int) -> None:
        self._record = record
        self._runtimes = dict(runtimes)
        self._bound = bound
        self._lock = threading.Lock()
        self._doors: dict[str, threading.Lock] = {}
        self._fetched: dict[tuple[str, str], Fetched] = {}
        self._held: Counter[str] = Counter()

    def open(self) -> None:
        """Read what an earlier life fetched. A record that cannot be read is begun anew: nothing of it is removed."""
        try:
            entries = [Fetched(**entry) for entry in read_json(self._record)] if self._record.exists() else []
        except (InputError, TypeError) as error:
            logger.warning("the record of fetched images cannot be read; they stay", extra={"reason": str(error)})
            entries = []
        with self._lock:
            self._fetched = {(one.runtime, one.image): one for one in entries if one.runtime in self._runtimes}

    @contextmanager
    def hold(self, image: str | None) -> Iterator[None]:
        """Have an image here until the block ends, fetched if need be. NodeError when nobody can fetch it."""
        if image is None or not self._bound:
            yield
            return
        with self._lock:
            self._held[image] += 1
            door = self._doors.setdefault(image, threading.Lock())
        try:
            with door:  # who comes second finds it here
                self._bring(image)
            yield
        finally:
            with self._lock:
                self._held[image] -= 1
                if not self._held[image]:
                    del self._held[image]
                    self._doors.pop(image, None)
            self._shrink()

    def _bring(self, image: str) -> None:
        reasons = []
        for name, images in self._runtimes.items():
            try:
                if images.has(image):
                    self._use(name, image)
                    return
            except KolejkaError as error:
                reasons.append(f"{name}: {error.message}")
        for name, images in self._runtimes.items():
            try:
                self._fetch(name, images, image)
                return
            except KolejkaError as error:
                reasons.append(f"{name}: {error.message}")
        raise NodeError(
            f"the image {image!r} is not on this node and cannot be fetched ({'; '.join(dict.fromkeys(reasons))})",
            field="image", code="no_image",
        )  # fmt: skip

    def _fetch(self, name: str, images: Images, image: str) -> None:
        about = {"image": image, "runtime": name}
        logger.info("image is fetched", extra=about)
        begun = told = time.monotonic()

        def tell(done: int, total: int) -> None:
            nonlocal told
            if time.monotonic() - told >= TELL_S:
                told = time.monotonic()
                logger.info("image is being fetched", extra={**about, "bytes": done, "of": total or None})

        images.fetch(image, tell)
        size = images.size(image)
        logger.info("image fetched", extra={**about, "bytes": size, "seconds": round(time.monotonic() - begun, 1)})
        with self._lock:
            self._fetched[name, image] = Fetched(name, image, size, time.time())
            self._save()

    def _use(self, name: str, image: str) -> None:
        with self._lock:
            known = self._fetched.get((name, image))
            if known is not None:
                self._fetched[name, image] = replace(known, used_at=time.time())
                self._save()

    def _shrink(self) -> None:
        """Drop what was not used for longest until the bound is kept."""
        with self._lock:
            total = sum(one.size for one in self._fetched.values())
            for one in sorted(self._fetched.values(), key=lambda one: one.used_at):
                if total <= self._bound:
                    break
                if not self._held[one.image] and self._drop(one):
                    total -= one.size
            self._held = +self._held  # looking made entries of zero

    def _drop(self, one: Fetched) -> bool:
        """Remove an image of ours. False when its runtime does not let it go now. Call with the lock held."""
        about = {"image": one.image, "runtime": one.runtime, "bytes": one.size}
        try:
            with suppress(NotFound):  # an administrator cleaned up
                self._runtimes[one.runtime].drop(one.image)
        except KolejkaError as error:
            logger.info("image cannot be dropped yet", extra={**about, "reason": str(error)})
            return False
        del self._fetched[one.runtime, one.image]
        self._save()
        logger.info("image dropped", extra=about)
        return True

    def _save(self) -> None:
        """Write the record. A full disk costs the record of this change only. Call with the lock held."""
        entries: list[dict[str, Any]] = [dict(vars(one)) for one in self._fetched.values()]
        try:
            write_json(self._record, entries)
        except OSError as error:
            logger.warning("the record of fetched images cannot be written", extra={"reason": str(error)})

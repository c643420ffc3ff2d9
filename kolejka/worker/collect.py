"""Bringing back what a payload left: only after it is dead, only regular files, never led astray.

The worker is root in a folder that a stranger could write. So nothing here follows a link: the tree is walked by
descriptors, a file is opened without following and checked to be the regular file on the workspace's own file system
that the walk saw. What is left out (links, FIFOs, sockets, devices, what exceeds a size limit, names that cannot stand
in a result) is reported by name with the reason.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from kolejka.common.errors import InputError, NodeError
from kolejka.common.files import CHUNK, check_name
from kolejka.common.result import RESULT_FILE, ResultFile
from kolejka.common.task import Collect
from kolejka.worker.trees import MAX_DEPTH, Entry, walk

MAX_PATH: Final = 3072
"""Bytes of the longest name in a result, so that it is a path wherever the result's folder may lie."""
MAX_SKIPPED: Final = 1000
MAX_SKIPPED_BYTES: Final = 1 << 19
MAX_MANIFEST_BYTES: Final = 6 << 20
"""A result's list of files passes through a server in one piece; more than about 40 000 files want an archive."""
_ENTRY_BYTES: Final = 130
"""what size, mode and hash of one file take in JSON"""
"""Names of left-out files that a result carries; the others are counted."""
_KINDS: Final = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass
class Collection:
    """What was brought back, and what was not and why."""

    manifest: dict[str, ResultFile] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    """those that hold a file of the result"""
    skipped: dict[str, str] = field(default_factory=dict)
    skipped_more: int = 0
    skipped_bytes: int = 0
    manifest_bytes: int = 0

    def skip(self, name: str, reason: str) -> None:
        """Note a file that is left out."""
        if name in self.skipped:
            return
        if len(self.skipped) < MAX_SKIPPED and self.skipped_bytes < MAX_SKIPPED_BYTES:
            self.skipped[name] = reason
            self.skipped_bytes += spelled(name)
        else:
            self.skipped_more += 1


def spelled(name: str) -> int:
    """Bytes that a name takes in JSON."""
    return len(name) if name.isascii() and name.isprintable() else 6 * len(name)


@cache
def pattern(glob: str) -> re.Pattern[str]:
    """A glob as a regular expression over whole names: ``*`` and ``?`` stay in a folder, ``**`` crosses folders.

    ``**/`` matches no folder as well; a glob that names a folder matches all below it.

    A name is matched in time that grows with its length alone, whatever the glob: of several wildcards each may end as
    early as what stands behind it allows, because the next can take what that leaves over, and so only the last of its
    kind is tried in more than one way. The others are atomic groups.
    """
    try:
        return re.compile(f"(?s:{_sequence(list(_tokens(glob)))}(?:/.*)?)\\Z")
    except re.error:
        return re.compile(f"(?s:{re.escape(glob)}(?:/.*)?)\\Z")


_ANY: Final = "[^/]*?"
_ACROSS: Final = (".*?", "(?:.*?/)??")


def _tokens(glob: str) -> Iterator[str]:
    """The wildcards of a glob and what stands between them, as regular expressions."""
    fixed, at = "", 0
    end = len(glob.rstrip("/"))
    while at < end:
        wildcard, length = "", 1
        if glob.startswith("**/", at) and (at == 0 or glob[at - 1] == "/"):
            wildcard, length = _ACROSS[1], 3
        elif glob.startswith("**", at):
            wildcard, length = _ACROSS[0], 2
        elif glob[at] == "*":
            wildcard = _ANY
        elif glob[at] == "?":
            fixed += "[^/]"
        elif glob[at] == "[" and (close := glob.find("]", at + 2)) > 0:
            inner = glob[at + 1 : close].replace("\\", "\\\\").replace("[", "\\[")
            inner = "^" + inner[1:] if inner[0] == "!" else inner
            fixed, length = f"{fixed}(?!/)[{inner}]", close + 1 - at
        else:
            fixed += re.escape(glob[at])
        if wildcard:
            yield fixed
            yield wildcard
            fixed = ""
        at += length
    yield fixed


def _sequence(tokens: Sequence[str]) -> str:
    """Tokens one after the other. All but the last ``**``, and all but the last ``*`` behind it, are atomic groups."""
    wildcards, fixed = tokens[1::2], tokens[2::2]
    last_across = max((at for at, wildcard in enumerate(wildcards) if wildcard in _ACROSS), default=-1)
    text, close = tokens[0], ""
    for at, (wildcard, behind) in enumerate(zip(wildcards, fixed, strict=True)):
        if wildcard in _ACROSS:
            text += close
            opening, close = ("(?>", ")") if at < last_across else ("", "")
            text += opening + wildcard + behind
        else:
            text += wildcard + behind if at == len(wildcards) - 1 else f"(?>{wildcard}{behind})"
    return text


def result_name(rule: Collect, name: str) -> str:
    """The name in the result: ``strip`` leading folders gone, below ``prefix``. The file's own name always stays."""
    parts = name.split("/")
    kept = parts[min(rule.strip, len(parts) - 1) :]
    return "/".join([*([rule.prefix] if rule.prefix else []), *kept])


def selected(rules: Sequence[Collect], name: str, changed: Callable[[], bool]) -> Iterator[str]:
    """The names under which a file of the workspace goes into the result."""
    for rule in rules:
        if not pattern(rule.glob).match(name) or any(pattern(glob).match(name) for glob in rule.exclude):
            continue
        if rule.changed and not changed():
            continue
        yield result_name(rule, name)


def collect(
    workspace: Path,
    rules: Sequence[Collect],
    result: Path,
    *,
    changed: Callable[[str, os.stat_result], bool] = lambda _name, _info: True,
    taken: Mapping[str, str] | None = None,
    max_size: int | None = None,
) -> Collection:
    """Bring the files that the rules select from ``workspace`` into ``result``.

    ``taken`` maps names that the result has already to what they are (standard output); they win. Files are moved by
    linking where both folders share a file system, else copied. More than ``max_size`` bytes are not brought.
    NodeError when the result's folder cannot be written.
    """
    found = Collection()
    if not rules:
        return found
    taken = {RESULT_FILE: "the result's own file", **(taken or {})}
    for name in taken:
        found.folders.update(_folders(name))
    folder = workspace.stat()
    left = max_size
    for entry in walk(workspace):
        info, name = entry.info, entry.name
        if stat.S_ISDIR(info.st_mode):
            if name.count("/") + 1 >= MAX_DEPTH and next(selected(rules, name + "/x", lambda: True), None):
                found.skip(name, f"folders deeper than {MAX_DEPTH} are not entered")
            continue
        for target in selected(rules, name, lambda info=info, name=name: changed(name, info)):  # type: ignore[misc]
            reason = _objection(info, target, folder, taken, found)
            if reason is None and left is not None and info.st_size > left:
                reason = "over the size limit"
            if reason is None and found.manifest_bytes > MAX_MANIFEST_BYTES:
                reason = "more files than a result can list"
            if reason is not None:
                found.skip(name, reason)
                continue
            found.folders.update(_folders(target))
            found.manifest_bytes += 2 * spelled(target) + _ENTRY_BYTES  # a name stands in files and in manifest
            try:
                found.manifest[target] = _bring(entry, result, target)
            except FileNotFoundError:
                found.skip(name, "vanished")
            except OSError as error:
                if error.errno in {errno.ELOOP, errno.ENXIO}:
                    found.skip(name, "no regular file any more")
                    continue
                raise NodeError(f"{result / target}: cannot be written: {error.strerror}") from error
            if left is not None:
                left -= info.st_size
    return found


def _objection(
    info: os.stat_result, target: str, workspace: os.stat_result, taken: Mapping[str, str], found: Collection
) -> str | None:
    """Why a file cannot go into the result under that name, or None."""
    for is_kind, words in _KINDS:
        if is_kind(info.st_mode):
            return f"{words}; only regular files are collected"
    if info.st_dev != workspace.st_dev:
        return "on another file system"
    if info.st_nlink > 1 and info.st_uid != workspace.st_uid:
        return "a hard link to a file that is not the task's"
    if target in taken:
        return f"its name {target!r} is taken by {taken[target]}"
    if target in found.manifest:
        return f"its name {target!r} is taken by another collected file"
    if any(folder in taken or folder in found.manifest for folder in _folders(target)):
        return f"its name {target!r} lies below a file"
    if target in found.folders:
        return f"its name {target!r} is that of a folder in the result"
    try:
        check_name(target)
    except InputError as error:
        return error.message
    if len(os.fsencode(target)) > MAX_PATH:
        return f"its path has more than {MAX_PATH} bytes"
    return None


def _folders(name: str) -> list[str]:
    """The folders that a file of this name lies in."""
    parts = name.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def _bring(entry: Entry, result: Path, target: str) -> ResultFile:
    """Move or copy one regular file; its size, mode and hash."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        source = os.open(entry.base, flags, dir_fd=entry.folder)
    except PermissionError:
        os.chmod(entry.base, 0o600, dir_fd=entry.folder)
        source = os.open(entry.base, flags, dir_fd=entry.folder)
    try:
        info = os.fstat(source)
        if (info.st_dev, info.st_ino) != (entry.info.st_dev, entry.info.st_ino) or not stat.S_ISREG(info.st_mode):
            raise FileNotFoundError(entry.name)
        mode = entry.info.st_mode & 0o755 | 0o600
        path = result / target
        path.parent.mkdir(parents=True, exist_ok=True)
        linked = info.st_nlink == 1 and not _is_marked(source) and _link(entry, path)
        if linked:
            os.fchown(source, os.geteuid(), os.getegid())
            os.fchmod(source, mode)
            digest = _digest(source, None)
        else:
            sink = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                digest = _digest(source, sink)
                os.fchmod(sink, mode)
            finally:
                os.close(sink)
        return ResultFile(info.st_size, f"{mode:04o}", digest)
    finally:
        os.close(source)


def _is_marked(source: int) -> bool:
    """Whether a file has attributes or access rights beyond its mode, which would come along with it."""
    try:
        return any(name.startswith(("user.", "system.")) for name in os.listxattr(source))
    except OSError:  # this file system knows none
        return False


def _link(entry: Entry, path: Path) -> bool:
    try:
        os.link(entry.base, path, src_dir_fd=entry.folder, follow_symlinks=False)
    except OSError as error:
        if error.errno in {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP}:
            return False
        raise
    return True


def _digest(source: int, sink: int | None) -> str:
    """The SHA-256 of what ``source`` holds, copied to ``sink`` on the way; holes stay holes."""
    digest = hashlib.sha256()
    size = 0
    while chunk := os.read(source, CHUNK):
        digest.update(chunk)
        size += len(chunk)
        if sink is None:
            continue
        if chunk.count(0) == len(chunk):
            os.lseek(sink, len(chunk), os.SEEK_CUR)
            continue
        view = memoryview(chunk)
        while view:
            view = view[os.write(sink, view) :]
    if sink is not None:
        os.ftruncate(sink, size)
    return digest.hexdigest()

"""Names that are safe, bytes that have a hash, writes that are whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, NoReturn

from kolejka.common.errors import InputError

CHUNK: Final = 1 << 20
"""Bytes handled at a time wherever bytes stream."""
MAX_JSON: Final = 64 << 20
"""Bytes of the largest JSON file that is read."""
MAX_NAME: Final = 4096
USUAL_UMASK: Final = 0o022
MAX_COMPONENT: Final = 255
_REFERENCE: Final = re.compile(r"[0-9a-f]{64}")


def check_name(name: object) -> str:
    """A name inside a task or a result: relative, normalised, no ``..``. InputError says which rule is broken.

    Names may hold any character a Linux file name may; bytes that are not UTF-8 stand as lone surrogates
    (``os.fsdecode``), which JSON escapes.
    """
    if not isinstance(name, str) or not name:
        raise InputError("a file name is a non-empty text")
    shown = ascii(name) if len(name) < 80 else ascii(name[:77]) + "…"
    if name.startswith("/"):
        raise InputError(f"{shown} is absolute; name files relative to the task's folder")
    if "\0" in name:
        raise InputError(f"{shown} holds a NUL character")
    parts = name.split("/")
    if ".." in parts:
        raise InputError(f"{shown} leaves the folder; a file name holds no '..'")
    if "." in parts or "" in parts:
        raise InputError(f"{shown} is not normalised; write it without '.', '//' and a trailing '/'")
    try:
        longest = max(len(os.fsencode(part)) for part in parts)
    except UnicodeEncodeError:
        raise InputError(f"{shown} holds a character that no file name can") from None
    if longest > MAX_COMPONENT or len(name) > MAX_NAME:
        raise InputError(f"{shown} is too long; a part has at most {MAX_COMPONENT} bytes")
    return name


def check_reference(reference: object) -> str:
    """A blob's name: 64 lower-case hexadecimal digits, the SHA-256 of its bytes. InputError otherwise."""
    if isinstance(reference, str) and _REFERENCE.fullmatch(reference):
        return reference
    raise InputError(f"{reference!r} names no blob; a blob is named by the 64 hexadecimal digits of its SHA-256")


def hash_stream(source: BinaryIO, sink: Callable[[bytes], object] | None = None) -> tuple[str, int]:
    """The SHA-256 and the size of all that ``source`` holds, read once, passed on to ``sink`` chunk by chunk."""
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        digest.update(chunk)
        size += len(chunk)
        if sink is not None:
            sink(chunk)
    return digest.hexdigest(), size


def hash_file(path: str | os.PathLike[str]) -> tuple[str, int]:
    """The SHA-256 and the size of a file."""
    with open(path, "rb") as source:
        return hash_stream(source)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make renames and removals in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def usual_modes() -> Iterator[None]:
    """Make files and folders that others may read, whatever the umask: a payload is another user, and must get to
    some. For processes of one thread; a daemon sets ``USUAL_UMASK`` for good.
    """
    before = os.umask(USUAL_UMASK)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def replacing(path: str | os.PathLike[str], *, mode: int = 0o644, durable: bool = False) -> Iterator[IO[bytes]]:
    """Write ``path`` as a whole or not at all: a temporary neighbour, renamed when the block ends well.

    ``durable`` syncs file and folder before returning.
    """
    target = Path(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name[:64]}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as sink:
            os.fchmod(sink.fileno(), mode)
            yield sink
            sink.flush()
            if durable:
                os.fsync(sink.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):  # renamed already
            os.unlink(temporary)
        raise
    if durable:
        sync_folder(target.parent)


def read_json(path: str | os.PathLike[str]) -> Any:
    """The JSON value in a file. InputError with the place when the file is missing, no regular file or no JSON."""
    try:
        text = _read_text(path)
    except InputError as error:
        raise InputError(error.message, field=os.fspath(path)) from None
    except FileNotFoundError:
        raise InputError("there is no such file", field=os.fspath(path)) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", field=os.fspath(path)) from None
    return parse_json(text, os.fspath(path))


def parse_json(text: str | bytes, place: str) -> Any:
    """The JSON value that a text is: no name twice in one object, no NaN. InputError with ``place`` otherwise."""
    try:
        shown = text if isinstance(text, str) else text.decode("utf-8")
        return json.loads(shown, object_pairs_hook=_once, parse_constant=_no_constant)
    except InputError as error:
        raise InputError(error.message, field=place) from None
    except RecursionError:
        raise InputError("this JSON nests too deeply", field=place) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"this is not JSON: {error}", field=place) from None
    except ValueError:  # all else that can be wrong: Python reads no number of more digits
        raise InputError(
            f"a number in this JSON has more than {sys.get_int_max_str_digits()} digits", field=place
        ) from None


def _read_text(path: str | os.PathLike[str]) -> bytes:
    # Non-blocking: a FIFO of that name would otherwise wait for a writer for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as source:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError("is not a regular file")
        text = source.read(MAX_JSON + 1)
    if len(text) > MAX_JSON:
        raise InputError(f"is larger than {MAX_JSON >> 20} MiB")
    return text


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{twice!a} stands twice in one object")
    return data


def _no_constant(name: str) -> NoReturn:
    raise InputError(f"{name} is not JSON")


def write_json(path: str | os.PathLike[str], data: Any, *, mode: int = 0o644, durable: bool = False) -> None:
    """Write a JSON value for people and programs to read, as a whole or not at all."""
    with replacing(path, mode=mode, durable=durable) as sink:
        sink.write(json.dumps(data, indent=2).encode("ascii") + b"\n")

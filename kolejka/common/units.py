"""Sizes and times as people write them, and as the formats promise them.

A size is a whole number of bytes; multiples are binary whatever the spelling: ``64M``, ``64MB``
and ``64MiB`` are all 67108864.
A time is a number of seconds. One-letter ``M`` (minutes) and ``m`` (milliseconds) are read as the first Kolejka wrote
them; everything else says what it means.
"""

from __future__ import annotations

import math
import re
from typing import Final

from kolejka.common.errors import InputError

Number = int | float

MAX_SIZE: Final = 2**60
"""The largest size that is not a slip of the pen: 1 EiB."""
MAX_TIME: Final = 3650.0 * 86400
"""The longest time that is not a slip of the pen: ten years, in seconds."""

_SIZE_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_TIME_UNITS: Final = {
    "": 1.0, "s": 1.0, "ms": 1e-3, "m": 1e-3, "us": 1e-6, "µs": 1e-6, "µ": 1e-6, "ns": 1e-9, "n": 1e-9,
    "min": 60.0, "M": 60.0, "h": 3600.0, "d": 86400.0,
}  # fmt: skip
_PLAIN: Final = (int, float)
_DECIMAL: Final = r"[0-9]+(?:\.[0-9]+)?"
SIZE_PATTERN: Final = rf"^{_DECIMAL} ?(?:[kKmMgGtTpP](?:[iI]?[bB])?|[bB])?$"
TIME_PATTERN: Final = rf"^{_DECIMAL} ?(?:ns|us|µs|ms|s|min|h|d|M|m|µ|n)?$"
_SIZE: Final = re.compile(SIZE_PATTERN)
_SIZE_PARTS: Final = re.compile(rf"({_DECIMAL}) ?([kmgtp]?)")
_TIME: Final = re.compile(TIME_PATTERN)
_TIME_PARTS: Final = re.compile(rf"({_DECIMAL}) ?(.*)$")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def parse_size(value: object) -> int:
    """Read ``64M``, ``1.5G``, ``512KiB``, ``67108864b`` or a bare number of bytes. InputError on anything else."""
    if type(value) is int and 0 <= value <= MAX_SIZE:  # as programs write it
        return value
    if _is_number(value):
        text = format(value, "f") if isinstance(value, float) and math.isfinite(value) else str(value)
    elif isinstance(value, str):
        text = value.strip()
    else:
        text = ""
    if not _SIZE.match(text):
        raise InputError(f"{value!r} is not a size; write a number with K, M, G or T, such as 64M or 1.5G")
    match = _SIZE_PARTS.match(text.lower())
    assert match is not None  # SIZE_PATTERN is a subset
    multiple: int = 1024 ** _SIZE_POWERS[match[2]]
    size = round(float(match[1]) * multiple) if "." in match[1] else int(match[1]) * multiple
    if size > MAX_SIZE:
        raise InputError(f"{value!r} is larger than any machine; the largest size is {format_size(MAX_SIZE)}")
    return size


def parse_time(value: object) -> float:
    """Read ``1s``, ``100ms``, ``2min``, ``1.5h``, ``1d`` or a bare number of seconds. InputError on anything else."""
    if type(value) in _PLAIN and 0 <= value <= MAX_TIME:  # type: ignore[operator] # it is one of these
        return float(format(value, ".9f"))
    if _is_number(value):
        text = format(value, ".9f") if isinstance(value, float) and math.isfinite(value) else str(value)
    elif isinstance(value, str):
        text = value.strip()
    else:
        text = ""
    if not _TIME.match(text):
        raise InputError(f"{value!r} is not a time; write a number with ms, s, min, h or d, such as 100ms or 1.5h")
    match = _TIME_PARTS.match(text)
    assert match is not None  # TIME_PATTERN is a subset
    seconds = float(match[1]) * _TIME_UNITS[match[2]]
    if seconds > MAX_TIME:
        raise InputError(f"{value!r} is longer than any task; the longest time is {format_time(MAX_TIME)}")
    return seconds


def parse_count(value: object) -> int:
    """Read a whole number, not negative, given as a number or as its digits. InputError on anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value.strip()):
        return int(value)
    raise InputError(f"{value!r} is not a whole number; write digits only, such as 4")


def parse_flag(value: object) -> bool:
    """Read a yes or no: true/false, yes/no, on/off, 1/0. InputError on anything else."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in {"true", "yes", "on", "1"}:
        return True
    if word in {"false", "no", "off", "0"}:
        return False
    raise InputError(f"{value!r} is neither true nor false")


def format_size(size: int) -> str:
    """The shortest exact spelling of a number of bytes: 67108864 -> ``64M``."""
    for letter in "PTGMK":
        unit = 1024 ** "BKMGTP".index(letter)
        if size >= unit and size % unit == 0:
            return f"{size // unit}{letter}"
    return str(size)


def show_size(size: float) -> str:
    """A size for a person's eye, rounded: 1234567 -> ``1.2 MiB``."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} PiB"


def format_time(seconds: float) -> str:
    """A readable spelling of a time that parses back: 90.0 -> ``90s``, 7200.0 -> ``2h``, 0.1 -> ``100ms``."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length and seconds % length == 0:
            return f"{seconds / length:.0f}{unit}"
    if 0 < seconds < 1:
        return f"{_decimal(seconds * 1000)}ms"
    return f"{_decimal(seconds)}s"


def _decimal(number: float) -> str:
    """Digits without an exponent, which no reader of times knows, to a billionth."""
    return f"{number:.9f}".rstrip("0").rstrip(".")

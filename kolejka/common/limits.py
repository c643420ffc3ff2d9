"""What a task may use: the one declaration of every limit.

Adding a limit means adding one line to ``LIMITS`` (and teaching a runtime to hold it). Parsing, the JSON Schema,
merging, command-line options, configuration keys, a node's arithmetic and the reference page all derive from here.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from kolejka.common import units
from kolejka.common.errors import InputError

Value = int | float | bool


class Unit(enum.Enum):
    """How a limit's value is written and what it counts."""

    SIZE = "size"
    TIME = "time"
    COUNT = "count"
    FLAG = "flag"


class Share(enum.Enum):
    """What a node with this much of it can give to tasks that run side by side."""

    SPLIT = "split"
    """The node's amount is divided: what one task gets, no other has."""
    EACH = "each"
    """Every task may have up to the node's amount, however many run."""
    IMAGE = "image"
    """Tasks with the same image share it."""


@dataclass(frozen=True)
class Limit:
    """One kind of limit. ``minimum`` and ``maximum`` bound sane values, in the limit's own unit."""

    name: str
    unit: Unit
    share: Share
    help: str
    minimum: float = 0
    maximum: float = float("inf")

    def parse(self, value: object) -> Value:
        """The value of this limit as people write it. InputError names the limit, the text and the cure."""
        try:
            parsed: Value = _PARSERS[self.unit](value)
            if parsed < self.minimum:
                raise InputError(f"{value!r} is too little; the least is {self.show(self.minimum)}")
            if parsed > self.maximum:
                raise InputError(f"{value!r} is too much; the most is {self.show(self.maximum)}")
        except InputError as error:
            raise error.within(self.name) from None
        return parsed

    def show(self, value: Value) -> str:
        """The value as people write it."""
        if self.unit is Unit.SIZE:
            return units.format_size(int(value))
        if self.unit is Unit.TIME:
            return units.format_time(float(value))
        if self.unit is Unit.FLAG:
            return "true" if value else "false"
        return str(int(value))

    @property
    def schema(self) -> dict[str, Any]:
        """JSON Schema of the value in a task. Bounds of worded values are checked by ``parse``."""
        numeric = {"minimum": self.minimum} if self.minimum else {"minimum": 0}
        schemas: dict[Unit, dict[str, Any]] = {
            Unit.SIZE: {"type": ["string", "integer"], "pattern": units.SIZE_PATTERN, **numeric},
            Unit.TIME: {"type": ["string", "number"], "pattern": units.TIME_PATTERN, **numeric},
            Unit.COUNT: {"type": ["string", "integer"], "pattern": "^[0-9]{1,18}$", **numeric},
            Unit.FLAG: {"type": "boolean"},
        }
        return {**schemas[self.unit], "description": self.help}


_PARSERS: Final[dict[Unit, Any]] = {
    Unit.SIZE: units.parse_size,
    Unit.TIME: units.parse_time,
    Unit.COUNT: units.parse_count,
    Unit.FLAG: units.parse_flag,
}

_PIDS_MAX: Final = 4194304  # the kernel's PID_MAX_LIMIT on 64-bit machines

LIMITS: Final[Mapping[str, Limit]] = MappingProxyType(
    {
        limit.name: limit
        for limit in (
            Limit("cpus", Unit.COUNT, Share.SPLIT, "CPUs the task is pinned to, shared with no other task", 1, 65536),
            Limit("memory", Unit.SIZE, Share.SPLIT, "memory of all processes together, page cache included", 4096),
            Limit("swap", Unit.SIZE, Share.SPLIT, "swap space on top of memory"),
            Limit("pids", Unit.COUNT, Share.SPLIT, "processes and threads alive at one time", 1, _PIDS_MAX),
            Limit("time", Unit.TIME, Share.EACH, "wall-clock time of the run", 0.001, units.MAX_TIME),
            Limit("cpu_time", Unit.TIME, Share.EACH, "CPU time of all processes together", 0.001, units.MAX_TIME),
            Limit("network", Unit.FLAG, Share.EACH, "whether the task may use the node's network"),
            Limit("storage", Unit.SIZE, Share.SPLIT, "bytes the task may write outside its working folder"),
            Limit(
                "workspace",
                Unit.SIZE,
                Share.SPLIT,
                "bytes in the working folder, input files included; an empty file counts as 4096",
            ),
            Limit("output", Unit.SIZE, Share.EACH, "bytes of standard output and standard error together"),
            Limit("image", Unit.SIZE, Share.IMAGE, "size of the container image"),
            Limit("gpus", Unit.COUNT, Share.SPLIT, "GPUs the task has for itself", 0, 1024),
            Limit(
                "gpu_memory",
                Unit.SIZE,
                Share.EACH,
                "memory the task may use on each of its GPUs; no GPU with less is given to it",
            ),
        )
    }
)


@dataclass(frozen=True)
class Limits:
    """A set of limits by name; an absent name is *not limited here* (another side may still limit it).

    Values are plain numbers: bytes, seconds, counts, booleans. Instances never change; ``merge`` and ``replace`` make
    new ones.
    """

    values: Mapping[str, Value] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: object) -> Limits:
        """Read the ``limits`` object of a task, a queue, a node. InputError names the field and the cure.

        >>> Limits.parse({"memory": "64M", "time": "1s"}).to_json()
        {'memory': 67108864, 'time': 1.0}
        """
        if not isinstance(data, Mapping):
            raise InputError('limits are an object such as {"memory": "64M"}')
        values: dict[str, Value] = {}
        for name, value in data.items():
            if name not in LIMITS:
                raise InputError(f"there is no such limit; the limits are {', '.join(LIMITS)}", field=str(name))
            if value is not None:
                values[name] = LIMITS[name].parse(value)
        return cls({name: values[name] for name in LIMITS if name in values})

    @classmethod
    def of(cls, **values: object) -> Limits:
        """The same as ``parse`` for values at hand: ``Limits.of(memory="64M", pids=16)``."""
        return cls.parse(values)

    def get(self, name: str) -> Value | None:
        """The limit's value, or ``None`` where it is not limited. KeyError where there is no such limit."""
        _ = LIMITS[name]
        return self.values.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def __bool__(self) -> bool:
        return bool(self.values)

    def merge(self, *others: Limits) -> Limits:
        """The strictest of all: the minimum of each limit over everybody who set it."""
        merged: dict[str, Value] = {}
        for limits in (self, *others):
            for name, value in limits.values.items():
                merged[name] = min(merged[name], value) if name in merged else value
        return Limits({name: merged[name] for name in LIMITS if name in merged})

    def with_defaults(self, defaults: Limits) -> Limits:
        """These limits, and ``defaults`` for what nobody set."""
        values = {**defaults.values, **self.values}
        return Limits({name: values[name] for name in LIMITS if name in values})

    def replace(self, **values: Value | None) -> Limits:
        """A copy with some limits set (or, with ``None``, lifted)."""
        kept = {**self.values, **values}
        return Limits({n: v for n in LIMITS if (v := kept.get(n)) is not None})

    def only(self, names: Iterable[str]) -> Limits:
        """Just the named ones, of those that are set."""
        wanted = set(names)
        return Limits({n: v for n, v in self.values.items() if n in wanted})

    def to_json(self) -> dict[str, Value]:
        """Plain numbers in the order of declaration: what a result carries."""
        return dict(self.values)


def limits_schema() -> dict[str, Any]:
    """JSON Schema of a ``limits`` object."""
    return {
        "type": "object",
        "description": "What the task may use. Merged with queue, server and node by minimum.",
        "additionalProperties": False,
        "properties": {limit.name: limit.schema for limit in LIMITS.values()},
    }

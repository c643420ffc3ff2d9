"""What a session tells about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from kolejka.common.stats import Stats

ENFORCED: Final = frozenset({"cpus", "memory", "swap", "pids", "time", "cpu_time"})
"""Names of the limits that a session enforces. Asking it for another one is an error."""


@dataclass(frozen=True)
class Report:
    """What a session used, and which limit ended it: ``memory``, ``time``, ``cpu_time`` or none.

    ``processes_left``: how many processes were alive when ``close`` killed them.
    """

    stats: Stats = field(default_factory=Stats)
    limit: str | None = None
    processes_left: int = 0

    def to_json(self) -> dict[str, Any]:
        """The form on the wire: the figures at top level."""
        return {**self.stats.to_json(), "limit": self.limit, "processes_left": self.processes_left}

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Report:
        """From the form on the wire."""
        return cls(Stats.parse(data), data.get("limit"), int(data.get("processes_left", 0)))

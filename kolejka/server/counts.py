"""Counts that several processes of one server keep together, so that whichever of them is asked tells of all.

Each worker counts in a table of its own, in memory that the arbiter made before it forked (memfd_create(2)): no worker
waits for another, and no disk can be full. Its successor at the same seat goes on in the same table, so that counts
only grow when a worker dies. Whoever tells adds the tables up.

The tables are prometheus-client's (``MmapedDict``), which its own mode for several processes keeps in files of a folder
that somebody has to clean, and that kill a worker (SIGBUS) when their disk is full.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final

from prometheus_client import values
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_LE: Final = "le"
_Table: Any = MmapedDict  # which says nothing of its types


@dataclass(frozen=True)
class Counts:
    """The tables of all seats, as paths; ``seat`` is this process's own."""

    tables: tuple[str, ...]
    seat: int

    @classmethod
    def make(cls, seats: int) -> tuple[str, ...]:
        """Make the tables, in the process whose children use them."""
        made = [os.memfd_create(f"kolejka-counts-{seat}") for seat in range(seats)]
        return tuple(f"/proc/self/fd/{number}" for number in made)

    def install(self) -> None:
        """Have all metrics that this process makes from now on count in its table."""
        values.ValueClass = _value_class(_Table(self.tables[self.seat]))

    def collect(self, known: Collector) -> list[Metric]:
        """What was counted at all seats. ``known`` says which metrics there are, and of which kind."""
        totals: defaultdict[str, float] = defaultdict(float)
        for table in self.tables:
            if os.path.getsize(table):
                for key, value, *_ in _Table.read_all_values_from_file(table):
                    totals[key] += value
        families = {one.name: Metric(one.name, one.documentation, one.type) for one in known.collect()}
        steps: defaultdict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
        for key, total in totals.items():
            family, sample, labels, _ = json.loads(key)
            if _LE in labels:
                step = float(labels.pop(_LE))
                steps[family, sample, json.dumps(labels, sort_keys=True)].append((step, total))
            else:
                families[family].add_sample(sample, labels, total)
        for (family, sample, text), found in steps.items():
            labels, so_far = json.loads(text), 0.0
            for step, total in sorted(found):
                so_far += total
                shown = str(floatToGoString(step))  # type: ignore[no-untyped-call] # of the library
                families[family].add_sample(sample, {**labels, _LE: shown}, so_far)
            families[family].add_sample(sample.removesuffix("_bucket") + "_count", labels, so_far)
        return list(families.values())


def _value_class(table: Any) -> type:
    """The class of values that are kept in this table (a ``MmapedDict``); ``prometheus_client.values`` says what one
    has to be.
    """
    lock = Lock()

    class Value:
        _multiprocess = False

        def __init__(
            self, _kind: str, metric: str, name: str, labels: Sequence[str], values: Sequence[str], help_text: str,
            **_words: Any,
        ) -> None:  # fmt: skip
            self._key = mmap_key(metric, name, list(labels), list(values), help_text)
            with lock:
                self._value: float = table.read_value(self._key)[0]

        def inc(self, amount: float) -> None:
            with lock:
                self._value += amount
                table.write_value(self._key, self._value, 0.0)

        def set(self, value: float, timestamp: float | None = None) -> None:
            with lock:
                self._value = value
                table.write_value(self._key, value, timestamp or 0.0)

        def get(self) -> float:
            return self._value

        def set_exemplar(self, exemplar: object) -> None:
            """Exemplars are of one process only, and not told."""

        def get_exemplar(self) -> None:
            return None

    return Value

"""The arithmetic of the report: truth against figure, many times, against a target. Pure; tested by a unit test."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """How far a figure may be from the truth: ``above`` and ``below``, in the figure's unit, plus a share of it."""

    above: float
    below: float
    share: float = 0.0

    @classmethod
    def within(cls, absolute: float, share: float = 0.0) -> Target:
        """The same on both sides."""
        return cls(absolute, absolute, share)

    def met(self, truth: float, figure: float) -> bool:
        """Whether the figure is near enough."""
        slack = abs(truth) * self.share
        return -(self.below + slack) <= figure - truth <= self.above + slack


@dataclass(frozen=True)
class Line:
    """One thing that was measured several times: pairs of truth and figure, in ``unit`` (``s`` or ``bytes``)."""

    name: str
    unit: str
    pairs: Sequence[tuple[float, float]]
    target: Target | None = None
    noisy: Sequence[tuple[float, float]] = ()
    """the same beside a noisy neighbour"""
    change_target: float | None = None
    """share by which the neighbour may change the figure"""

    @property
    def middle(self) -> tuple[float, float]:
        """The pair whose difference is the median (the lower one of two)."""
        return _middle(self.pairs)

    @property
    def difference(self) -> float:
        """The median of figure - truth."""
        truth, figure = self.middle
        return figure - truth

    @property
    def worst(self) -> float:
        """The difference farthest from 0."""
        return max((figure - truth for truth, figure in self.pairs), key=abs)

    @property
    def met(self) -> bool | None:
        """Whether the median keeps the target; None where none is set."""
        return None if self.target is None else self.target.met(*self.middle)

    @property
    def change(self) -> float | None:
        """The share by which the neighbour changed the median of the figures; None where that was not measured."""
        if not self.noisy:
            return None
        quiet = statistics.median(figure for _, figure in self.pairs)
        noisy = statistics.median(figure for _, figure in self.noisy)
        if not quiet:
            return 0.0 if not noisy else 1.0
        return (noisy - quiet) / quiet

    @property
    def change_met(self) -> bool | None:
        """Whether that keeps its target."""
        change = self.change
        return None if change is None or self.change_target is None else abs(change) < self.change_target

    def to_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        truth, figure = self.middle
        data: dict[str, Any] = {
            "name": self.name, "unit": self.unit, "truth": truth, "figure": figure, "difference": self.difference,
            "worst": self.worst, "met": self.met, "change": self.change, "change_met": self.change_met,
            "pairs": [list(pair) for pair in self.pairs], "noisy": [list(pair) for pair in self.noisy],
        }  # fmt: skip
        if self.target is not None:
            data["target"] = {"above": self.target.above, "below": self.target.below, "share": self.target.share}
        return data


def _middle(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    ordered = sorted(pairs, key=lambda pair: pair[1] - pair[0])
    return ordered[(len(ordered) - 1) // 2]


def show(value: float, unit: str, *, sign: bool = False) -> str:
    """A value as people read it."""
    plus = "+" if sign else ""
    if unit == "s":
        return f"{value * 1000:{plus}.3f} ms"
    if unit == "bytes":
        return f"{value / 1024:{plus}.0f} KiB"
    return f"{value:{plus}g} {unit}"


def show_target(line: Line) -> str:
    """A target as people read it."""
    if line.target is None:
        return "-"
    target = line.target
    words = [f"{target.share:.0%}"] if target.share else []
    if target.above:
        words.append(show(target.above, line.unit))
    return ("≤ +" if target.above != target.below else "± ") + " + ".join(words)


def _word(met: bool | None) -> str:
    return {True: "met", False: "MISSED", None: "-"}[met]


def table(lines: Iterable[Line]) -> str:
    """The table for people."""
    head = ("what", "truth", "figure", "difference", "worst", "target", "", "neighbour", "")
    rows = [head]
    for line in lines:
        truth, figure = line.middle
        change = line.change
        rows.append((
            line.name, show(truth, line.unit), show(figure, line.unit), show(line.difference, line.unit, sign=True),
            show(line.worst, line.unit, sign=True), show_target(line), _word(line.met),
            "-" if change is None else f"{change:+.2%}", _word(line.change_met),
        ))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                  for column, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    )  # fmt: skip

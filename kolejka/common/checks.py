"""What a machine must have: the answer of every program's ``doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """One thing a machine has or lacks. ``cure`` is the command or the step that gives it."""

    check: str
    ok: bool
    message: str
    cure: str | None = None
    required: bool = True
    """False = something works without it, and ``message`` says what does not"""
    absent: bool = False
    """nobody set this up here: the program that needs it misses it, a machine with other duties does not"""

    def to_json(self) -> dict[str, Any]:
        """The object form."""
        return dict(vars(self))

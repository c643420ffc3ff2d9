"""The programs of Kolejka and how this interpreter starts them; ``-P`` keeps the folder in which somebody happens to
stand off the import path.
"""

from __future__ import annotations

import sys
from typing import Final

PROGRAMS: Final = ("client", "server", "foreman", "observer", "worker")


def program(name: str, *words: str) -> list[str]:
    """The words that start ``kolejka-<name>``."""
    return [sys.executable, "-P", "-m", f"kolejka.{name}", *words]


NOT_INSTALLED: Final = "is not installed, which this needs"
"""What a program says of a module that it lacks, and doctors recognise."""


def install(name: str) -> str:
    """The command that installs what ``kolejka-<name>`` imports."""
    extra = {"client": "client", "server": "server", "kolejka": "all"}.get(name, "node")
    return f"pip install 'kolejka[{extra}]'"

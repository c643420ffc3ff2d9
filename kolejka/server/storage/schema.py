"""Which steps a database has taken, and the taking of those that are left: the same for every engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from playhouse.migrations import Runner

from kolejka.common.errors import NodeError
from kolejka.server.storage import migrations

_FOLDER: Final = str(Path(migrations.__path__[0]))


def taken_and_left(database: Any, place: str) -> tuple[list[str], list[str]]:
    """The steps that an open database has taken and those that are left. NodeError when a newer Kolejka wrote it."""
    steps = Runner(database, _FOLDER).status()
    refuse_unknown([step.name for step in steps if step.path is None], place)
    return [step.name for step in steps if step.applied], [step.name for step in steps if not step.applied]


def refuse_unknown(names: list[str], place: str) -> None:
    """NodeError when there are such steps."""
    if names:
        raise NodeError(
            f"a newer Kolejka wrote this database (it knows {', '.join(names)}); install that version or later",
            field=place,
        )


def known() -> list[str]:
    """The steps that this version knows, in order."""
    return sorted(path.stem for path in Path(_FOLDER).glob("[0-9]*.py"))


def take(database: Any, place: str, last: str | None = None) -> list[str]:
    """Take the steps that are left, until ``last`` where that is given; which they were."""
    taken_and_left(database, place)
    done: list[str] = Runner(database, _FOLDER).up(last)
    return done

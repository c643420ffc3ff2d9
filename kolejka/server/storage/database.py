"""Which database a server's settings name, and what can be done with it: the one place that chooses an engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from kolejka.common.errors import InputError, NodeError
from kolejka.common.settings import ServerSettings
from kolejka.server.storage import sqlite
from kolejka.server.storage.base import Listener, Store

FILE: Final = "kolejka.sqlite"
_SCHEMES: Final = ("postgresql://", "postgres://")


@dataclass(frozen=True)
class Database:
    """The embedded database at ``path``, or the PostgreSQL at ``url``."""

    path: Path
    url: str = ""

    @classmethod
    def of(cls, settings: ServerSettings) -> Database:
        """What the settings name. InputError when it is neither."""
        if settings.database and not settings.database.startswith(_SCHEMES):
            raise InputError(
                "this is no address of a PostgreSQL database; write postgresql://USER@HOST/NAME, or leave it out",
                field="server.database",
            )
        return cls(Path(settings.data) / FILE, settings.database)

    @property
    def shared(self) -> bool:
        """Whether several processes may serve from it."""
        return bool(self.url)

    @property
    def engine(self) -> str:
        """Its name, for people."""
        return "PostgreSQL" if self.url else "SQLite"

    def _module(self) -> tuple[ModuleType, Any]:
        if not self.url:
            return sqlite, self.path
        try:
            from kolejka.server.storage import postgres
        except ImportError as error:
            raise NodeError(f"PostgreSQL needs {error.name}; run `pip install 'kolejka[postgres]'`") from None
        return postgres, self.url

    def migrate(self, last: str | None = None) -> list[str]:
        """Bring it to this version's schema, or until the step ``last``; the steps that were taken. NodeError."""
        module, place = self._module()
        done: list[str] = module.migrate(place, last)
        if not self.url:
            self.path.chmod(0o600)
        return done

    def taken_and_left(self) -> tuple[list[str], list[str]]:
        """The steps that it has taken, and those that are left. NodeError when a newer Kolejka wrote it."""
        module, place = self._module()
        steps: tuple[list[str], list[str]] = module.taken_and_left(place)
        return steps

    def open(self, listener: Listener = lambda _: None) -> Store:
        """Its store, after ``migrate``."""
        module, place = self._module()
        store: Store = module.PostgresStore(place, listener) if self.url else module.SqliteStore(place, listener)
        return store

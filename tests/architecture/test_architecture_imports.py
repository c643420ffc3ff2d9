"""Who may import whom, and which file may know which library."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "kolejka"

ONLY = {
    "requests": ["client/transport.py"],
    "docker": ["worker/runtimes/docker.py"],
    "peewee": ["server/storage/"],
    "playhouse": ["server/storage/"],
    "cysqlite": ["server/storage/"],
    "sqlite3": ["server/storage/"],
    "psycopg": ["server/storage/postgres.py", "server/storage/pipeline.py"],
    "falcon": ["server/app.py", "server/api/", "server/web/", "observer/app.py", "observer/server.py"],
    "gunicorn": ["server/", "observer/"],
    "cgroupspy": ["observer/cgroups/"],
    "prometheus_client": ["server/"],
    "rich": ["client/", "cli/", "server/cli.py", "foreman/cli.py", "worker/cli.py", "observer/cli.py"],
}
"""Library → the files and folders that may import it."""

ENTRIES = ("cli", "cli.py", "__main__.py")


@functools.cache
def modules() -> tuple[Path, ...]:
    """Every module of the package."""
    return tuple(sorted(PACKAGE.rglob("*.py")))


@functools.cache
def imports(path: Path) -> tuple[tuple[int, str], ...]:
    """Line and full name of everything that a module imports, inside functions too."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    package = ".".join(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{name.name}") for name in node.names)


def inside(path: Path) -> str:
    """The module's path inside the package."""
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("library", sorted(ONLY))
def test_a_library_is_known_only_where_it_belongs(library: str) -> None:
    strangers = [
        f"{inside(path)}:{line} imports {name}"
        for path in modules()
        if not any(
            inside(path) == place or (place.endswith("/") and inside(path).startswith(place)) for place in ONLY[library]
        )
        for line, name in imports(path)
        if name.split(".")[0] == library
    ]
    assert not strangers


def is_entry(path: str) -> bool:
    """Whether a file belongs to a command line."""
    return any(part in ENTRIES for part in path.split("/"))


def test_command_lines_are_imported_by_command_lines_only() -> None:
    strangers = [
        f"{inside(path)}:{line} imports {name}"
        for path in modules()
        if not is_entry(inside(path))
        for line, name in imports(path)
        if name.split(".")[0] == "kolejka" and "cli" in name.split(".")
    ]
    assert not strangers


def test_a_command_line_imports_no_other_packages_command_line() -> None:
    strangers = [
        f"{inside(path)}:{line} imports {name}"
        for path in modules()
        for line, name in imports(path)
        if name.split(".")[0] == "kolejka"
        and "cli" in name.split(".")
        and name.split(".")[1] not in {"cli", inside(path).split("/")[0]}
    ]
    assert not strangers


def test_the_observers_client_is_the_standard_library_alone() -> None:
    path = PACKAGE / "observer/client.py"
    strangers = [
        name for _, name in imports(path) if name.split(".")[0] not in {*sys.stdlib_module_names, "__future__"}
    ]
    assert not strangers
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 6))
    newer = [name for _, name in imports(path) if name.startswith(("__future__.annotations", "dataclasses"))]
    assert not newer, "Python 3.6 knows none of these"


def test_the_contracts_of_import_linter_hold() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    if not program.exists():
        pytest.fail("import-linter is missing; make setup")
    linter = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert linter.returncode == 0, linter.stdout + linter.stderr


def test_no_module_is_named_like_one_of_the_standard_library() -> None:
    allowed = {"__init__", "__main__", "types", "logging"} & {"__init__", "__main__"}
    clashes = [inside(path) for path in modules() if path.stem in sys.stdlib_module_names and path.stem not in allowed]
    assert not clashes


@pytest.mark.parametrize("word", ["utils", "util", "helpers", "misc", "common_utils"])
def test_no_module_is_named_for_nothing(word: str) -> None:
    assert not [inside(path) for path in modules() if path.stem == word]

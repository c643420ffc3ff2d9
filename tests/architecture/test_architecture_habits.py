"""Habits that a linter does not know: nothing swallowed, nothing slept, nothing left to do later."""

from __future__ import annotations

import ast
import functools
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = sorted(path for folder in ("kolejka", "image", "tests", "tools") for path in (ROOT / folder).rglob("*.py"))
OURS = [path for path in CODE if path.is_relative_to(ROOT / "kolejka")]
TESTS = [path for path in CODE if path.is_relative_to(ROOT / "tests")]


def name_of(path: Path) -> str:
    """The path from the root."""
    return path.relative_to(ROOT).as_posix()


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """The module, parsed."""
    return ast.parse(path.read_text(encoding="utf-8"))


def swallowing(tree: ast.AST) -> Iterator[int]:
    """Lines of handlers that catch and do nothing at all."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            silent = all(
                isinstance(step, ast.Pass) or (isinstance(step, ast.Expr) and isinstance(step.value, ast.Constant))
                for step in node.body
            )
            if node.type is None or silent:
                yield node.lineno


def too_wide(tree: ast.AST) -> Iterator[int]:
    """Lines of ``suppress`` over everything."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            names = {argument.id for argument in node.args if isinstance(argument, ast.Name)}
            if called == "suppress" and names & {"Exception", "BaseException"}:
                yield node.lineno


def test_no_error_is_swallowed() -> None:
    found = [
        f"{name_of(path)}:{line}" for path in CODE for line in [*swallowing(tree_of(path)), *too_wide(tree_of(path))]
    ]
    assert not found, "say why it is fine: `with suppress(ProcessLookupError):  # already gone`"


def comments(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every comment."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


BROAD = r"(Exception|OSError|IOError|ValueError|TypeError|KeyError|AttributeError|RuntimeError|KolejkaError|NodeError)"


def test_a_broad_suppressed_error_has_its_reason_beside_it() -> None:
    found = []
    for path in OURS:
        lines = path.read_text(encoding="utf-8").splitlines()
        found += [
            f"{name_of(path)}:{number}"
            for number, line in enumerate(lines, 1)
            if re.search(rf"\bsuppress\([^)]*\b{BROAD}\b", line)
            and "#" not in line and not lines[number - 2].lstrip().startswith("#")
            and not (number < len(lines) and lines[number].lstrip().startswith("#"))
        ]  # fmt: skip
    assert not found


def test_a_silenced_linter_has_its_reason_beside_it() -> None:
    reason = re.compile(r"noqa: [A-Z]+[0-9]+(, ?[A-Z]+[0-9]+)*\s+[^\s#]|noqa.*#\s*\w|#\s*\w.*# noqa")
    found = [
        f"{name_of(path)}:{line} {text}"
        for path in CODE
        for line, text in comments(path)
        if "# noqa" in text and not reason.search(text)
    ]
    assert not found


def test_nothing_is_left_for_later() -> None:
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    found = [f"{name_of(path)}:{line} {text}" for path in CODE for line, text in comments(path) if words.search(text)]
    assert not found


def test_tests_never_sleep() -> None:
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in TESTS
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        and (
            (isinstance(node.func, ast.Attribute) and node.func.attr == "sleep"
             and isinstance(node.func.value, ast.Name) and node.func.value.id in {"time", "asyncio"})
            or (isinstance(node.func, ast.Name) and node.func.id == "sleep")
        )
    ]  # fmt: skip
    assert not found, "wait_until(condition) of tests/support.py"


def test_every_module_opens_with_what_it_is_about() -> None:
    found = [name_of(path) for path in CODE if path not in TESTS and not ast.get_docstring(tree_of(path))]
    assert not found


def test_libraries_never_leave_the_process() -> None:
    entries = re.compile(r"(^|/)(cli/|cli\.py|__main__\.py)")
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in OURS
        if not entries.search(name_of(path))
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "exit"
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "sys"
    ]
    assert not found


def test_programs_of_the_project_are_executable() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-s", ".ci", "tools"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    modes = {line.split("\t")[1]: line.split()[0] for line in listed.stdout.splitlines()}
    for name in (".ci/run", "tools/packages", "tools/virtualenv"):
        assert modes[name] == "100755"

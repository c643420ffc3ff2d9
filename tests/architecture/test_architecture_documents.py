"""Documents that say what the code does: generated pages, targets, commands, links."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from kolejka.common.limits import LIMITS
from kolejka.common.result import result_schema
from kolejka.common.settings import Section
from kolejka.common.task import task_schema

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs/reference"
DOCUMENTS = sorted(path for pattern in ("*.md", "docs/**/*.md", "examples/*/README.md") for path in ROOT.glob(pattern))


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """``tools/reference.py`` as a module."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "tools/reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_pages_are_those_of_the_declarations(generator: ModuleType) -> None:
    wanted = generator.pages()
    assert {path.name for path in PAGES.iterdir()} == set(wanted)
    stale = [name for name, text in wanted.items() if (PAGES / name).read_text(encoding="utf-8") != text]
    assert not stale, "make docs"


def test_the_schemas_are_those_that_validate() -> None:
    assert json.loads((PAGES / "task.schema.json").read_text(encoding="utf-8")) == task_schema()
    assert json.loads((PAGES / "result.schema.json").read_text(encoding="utf-8")) == result_schema()


def test_every_limit_and_every_setting_is_documented() -> None:
    limits = (PAGES / "limits.md").read_text(encoding="utf-8")
    settings = (PAGES / "settings.md").read_text(encoding="utf-8")
    assert not [name for name in LIMITS if f"| `{name}` |" not in limits]
    declared = [s for section in Section.SECTIONS.values() for s in section.declared()]
    assert not [s.variable for s in declared if f"`{s.variable}`" not in settings]


def test_every_target_has_a_word_in_the_help() -> None:
    text = subprocess.run(["make", "-C", ROOT, "help"], capture_output=True, text=True, check=True).stdout
    listed = set(re.findall(r"^\s+make (\S+)", text, re.MULTILINE))
    assert {"help", "demo", "test", "check", "bench", "format", "docs", "setup", "clean"} <= listed


def test_every_make_target_that_a_document_names_exists() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", text, re.MULTILINE))
    unknown = [
        f"{path.relative_to(ROOT)}: make {target}"
        for path in DOCUMENTS
        for target in re.findall(r"(?:`|\$ |^)make ([a-z][a-z0-9-]*)", path.read_text(encoding="utf-8"), re.MULTILINE)
        if target not in targets
    ]
    assert not unknown


def test_links_between_documents_lead_somewhere() -> None:
    broken = [
        f"{path.relative_to(ROOT)}: {link}"
        for path in DOCUMENTS
        for link in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
        if not (path.parent / link).exists()
    ]
    assert not broken


def test_ci_calls_the_targets_of_the_desk_and_nothing_else() -> None:
    lines = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    commands = [line.split("#")[0].strip() for line in lines]
    steps = [c for c in commands if c and not re.match(r"(set|cd|export|exec|#)", c)]
    assert {"make demo", "make test"} <= set(steps)
    assert all(step.startswith("make ") for step in steps)


def test_what_ci_requires_are_needs_that_tests_know() -> None:
    from tests.neighbours.needs import NEEDS

    text = (ROOT / ".ci/run").read_text(encoding="utf-8")
    match = re.search(r"KOLEJKA_TEST_REQUIRES-([^}]*)}", text)
    assert match is not None
    words = set(match[1].split())
    assert words <= set(NEEDS)
    assert {"cgroups", "docker", "root", "bwrap"} <= words


def test_every_program_that_is_installed_has_its_entry_point() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    for name, target in scripts.items():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), name


def test_every_example_has_a_task_and_a_readme() -> None:
    folders = [path for path in (ROOT / "examples").iterdir() if path.is_dir()]
    assert {
        "uname", "uname-image", "files", "stdin", "c-compile", "c-run", "python",
        "memory-bomb", "fork-bomb", "time-bomb",
    } <= {path.name for path in folders}  # fmt: skip
    for folder in folders:
        assert (folder / "kolejka_task.json").is_file()
        assert (folder / "README.md").is_file()


def test_arch_and_changelog_keep_their_promises() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines()) < 200
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for name in ("README.md", "CONTRIBUTING.md", "LICENSE"):
        assert (ROOT / name).stat().st_size > 500

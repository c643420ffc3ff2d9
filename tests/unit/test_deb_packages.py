"""What goes into which Debian package, and what the packages are called: ``tools/deb.py``."""

from __future__ import annotations

import importlib.util
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from kolejka.common.settings import Section

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def deb() -> ModuleType:
    """``tools/deb.py`` as a module."""
    spec = importlib.util.spec_from_file_location("deb", ROOT / "tools/deb.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_several_need_lies_where_all_of_them_find_it(deb: ModuleType) -> None:
    wanted = {
        "kolejka-common": {"click"},
        "kolejka-client": {"click", "requests"},
        "kolejka-server": {"click", "falcon", "peewee"},
        "kolejka-node": {"click", "falcon", "requests", "docker"},
    }
    assert deb.placed(wanted) == {
        "kolejka-common": ["click", "falcon"],
        "kolejka-client": ["requests"],
        "kolejka-server": ["peewee"],
        "kolejka-node": ["docker"],
    }


def test_a_client_needs_less_than_a_server_and_all_extras_are_packaged(deb: ModuleType) -> None:
    needs = {package: deb.needs(extras) for package, extras in deb.EXTRAS.items()}
    assert "peewee" in needs["kolejka-server"]
    assert not {"peewee", "falcon", "docker"} & set(needs["kolejka-client"])
    assert "kolejka" not in needs["kolejka-common"]
    packaged = {name for names in needs.values() for name in names}
    assert packaged == set(deb.needs(("all",)))


def test_the_packages_are_those_of_debians_control_file(deb: ModuleType) -> None:
    stanzas = (ROOT / "debian/control").read_text(encoding="utf-8").split("\n\n")
    depends = {}
    for stanza in stanzas:
        if match := re.search(r"^Package: (\S+)", stanza, re.MULTILINE):
            said = re.search(r"^Depends: (.*)", stanza, re.MULTILINE)
            assert said is not None
            depends[match[1]] = re.findall(r"kolejka-\w+", said[1])
    assert list(depends) == list(deb.PACKAGES)
    for package, names in depends.items():
        reached = {name for one in names for name in (one, *deb.PACKAGES[one])}
        assert reached == set(deb.PACKAGES[package])


def test_every_program_is_packaged() -> None:
    rules = (ROOT / "debian/rules").read_text(encoding="utf-8")
    programs = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    placed = re.findall(r"(kolejka[a-z-]*):(?:client|server|node)\b", rules)
    assert sorted(placed) == sorted(programs)


def test_versions_grow_with_time_and_stay_below_the_next_debian(deb: ModuleType) -> None:
    rising = [
        deb.version_of("0.1.0", "", "deb12"),
        deb.version_of("0.1.0", "", "deb13"),
        deb.version_of("0.1.0", "20260101000000-deadbeef", "deb12"),
        deb.version_of("0.1.0", "20260101000000-deadbeef-dirty", "deb12"),
        deb.version_of("0.1.0", "20260101000001-00000000", "deb12"),
        deb.version_of("0.1.1", "", "deb12"),
    ]
    assert rising[2] == "0.1.0+git20260101000000.deadbeef~deb12"
    for lower, higher in itertools.pairwise(rising):
        assert subprocess.run(["dpkg", "--compare-versions", lower, "lt", higher], check=False).returncode == 0


def test_the_settings_file_of_the_packages_names_settings_that_there_are() -> None:
    text = (ROOT / "debian/kolejka.toml").read_text(encoding="utf-8")
    uncommented = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)
    tables = tomllib.loads(uncommented)
    for section, table in tables.items():
        declared = {one.name: one for one in Section.SECTIONS[section].declared()}
        for name, value in table.items():
            assert declared[name].parse(value, name) is not None
            assert not declared[name].secret or name == "database"
    assert tomllib.loads(text)["observer"] == {"group": "kolejka"}


def test_what_is_missing_is_one_line(deb: ModuleType, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tools.deb", tmp_path / "out"]
    done = subprocess.run(words, env={"PATH": "/nowhere"}, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("tools/deb.py: dh, dpkg-buildpackage, git missing; run: apt-get install")
    assert not (tmp_path / "out").exists()

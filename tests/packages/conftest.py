"""Debian packages built of this tree, and guests that have them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.neighbours.guest import PROJECT, Guest

DEBS = Path("/debs")


def build(folder: Path) -> Path:
    """Build the packages into a folder, as ``make deb`` does."""
    words = [sys.executable, "-m", "tools.deb", folder]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd=PROJECT)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def debs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages."""
    return build(tmp_path_factory.mktemp("debs"))


@pytest.fixture(scope="session")
def newer(debs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same packages as the next version."""
    folder = tmp_path_factory.mktemp("newer")
    for path in debs.glob("*.deb"):
        tree = folder / path.stem
        subprocess.run(["dpkg-deb", "--raw-extract", path, tree], check=True)
        control = tree / "DEBIAN/control"
        version = path.name.split("_")[1]
        control.write_text(control.read_text().replace(version, f"{version}+next"))
        words = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, folder / path.name]
        subprocess.run(words, check=True, capture_output=True)
    return folder


def install(guest: Guest, *names: str, folder: Path = DEBS) -> str:
    """Install packages of a folder by their names."""
    files = [f"{folder}/{name}_*.deb" for name in ("kolejka-common", "kolejka-client", *names)]
    return guest.run("sh", "-c", f"apt-get install --yes --no-install-recommends {' '.join(files)}")


@pytest.fixture
def guest_with(debs: Path, newer: Path) -> Iterator[Callable[..., Guest]]:
    """A booted guest with packages of these names (beside common and client)."""
    made: list[Guest] = []

    def make(*names: str) -> Guest:
        made.append(Guest({os.fspath(DEBS): debs, "/newer": newer}))
        install(made[-1].boot(), *names)
        return made[-1]

    yield make
    for guest in made:
        guest.stop()

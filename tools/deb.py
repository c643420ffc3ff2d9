"""Debian packages of this tree: ``python -m tools.deb FOLDER`` leaves them there, with ``SHA256SUMS``.

They bring their Python packages along (docs/decisions/0016): wheels of exactly the versions that this environment
has and its tests have seen. Which of Debian's packages holds which of them is derived from pyproject.toml: an extra
names what a part needs, and what several parts need goes to the nearest package that all of them depend on.

The tree is built as git has it, tracked and new files alike, in a folder of its own; ``debian/rules`` does the rest
with debhelper. The time in everything is that of the commit, so that the same tree gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from packaging.utils import canonicalize_name

from image.distributions import closure
from tools import manual

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "kolejka-common": (),
    "kolejka-client": ("kolejka-common",),
    "kolejka-server": ("kolejka-common",),
    "kolejka-node": ("kolejka-common", "kolejka-client"),
}
"""Package → those that it depends on, all of them; an order in which each comes after them."""
EXTRAS: Final[Mapping[str, tuple[str, ...]]] = {
    "kolejka-common": (),
    "kolejka-client": ("client",),
    "kolejka-server": ("server", "postgres", "s3"),
    "kolejka-node": ("node",),
}
"""Package → the extras of pyproject.toml whose needs it brings."""
CHANGELOG: Final = """\
kolejka ({version}) unstable; urgency=medium

  * Built from the tree of this version; CHANGELOG.md there says what is new.

 -- Kolejka developers <kolejka@kolejka.invalid>  {date}
"""


class DebError(Exception):
    """The packages cannot be built; the message says why and what helps."""


def needs(extras: Iterable[str]) -> dict[str, str]:
    """Name → version of what Kolejka needs for these extras, Kolejka itself left out, as it is installed here."""
    try:
        found = closure([f"kolejka[{','.join(extras)}]"])
    except ImportError as error:
        raise DebError(f"{error.name} is not installed here; run: make setup") from None
    return {canonicalize_name(each.metadata["Name"]): each.version for each in found}


def placed(wanted: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Package → what lies in it, where ``wanted`` says what each needs: everything lies once, and where it is wanted.

    That is the last package that all who want it depend on, or are.
    """
    lies: dict[str, list[str]] = {package: [] for package in PACKAGES}
    for name in sorted({name for names in wanted.values() for name in names}):
        users = [package for package, names in wanted.items() if name in names]
        common = [one for one in PACKAGES if all(one == user or one in PACKAGES[user] for user in users)]
        lies[common[-1]].append(name)
    return lies


def version_of(released: str, described: str, suite: str) -> str:
    """The packages' version: that of the release, or one behind it that grows with each commit's time.

    ``described`` is the commit's time and short hash, with ``-dirty`` where files have changed since; empty for a tree
    that is exactly the release. ``suite`` sorts packages of a Debian release before those of the next one.
    """
    middle = "+git" + described.replace("-", ".") if described else ""
    return f"{released}{middle}~{suite}"


def run(*command: str | os.PathLike[str], cwd: Path = ROOT, env: Mapping[str, str] = {}) -> str:
    """Run a tool and return what it printed. DebError with its last words when it fails."""
    done = subprocess.run(
        [os.fspath(word) for word in command], cwd=cwd, env={**os.environ, **env}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-20:])
        raise DebError(f"{os.fspath(command[0])} ended with {done.returncode}:\n{last}")
    return done.stdout


def epoch() -> int:
    """The time that everything gets: ``SOURCE_DATE_EPOCH``, or that of the commit."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        return int(given or run("git", "log", "-1", "--format=%ct"))
    except ValueError:
        raise DebError(f"SOURCE_DATE_EPOCH={given!r} is no number of seconds") from None


def version() -> str:
    """The version of the packages of this tree."""
    text = (ROOT / "kolejka/__init__.py").read_text(encoding="utf-8")
    match = re.search(r'__version__ = "([^"]+)"', text)
    assert match is not None
    dirty = "-dirty" if run("git", "status", "--porcelain").strip() else ""
    tagged = f"v{match[1]}" in run("git", "tag", "--points-at", "HEAD").split()
    described = run("git", "log", "-1", "--date=format-local:%Y%m%d%H%M%S", "--format=%cd-%h", "--abbrev=8").strip()
    words = platform.freedesktop_os_release()
    suite = f"{words['ID'][:3]}{words.get('VERSION_ID', '0')}"
    return version_of(match[1], "" if tagged and not dirty else described + dirty, suite)


def check_tools() -> None:
    """DebError with the cure when something is missing, or the wheels would not fit Debian's Python."""
    missing = [tool for tool in ("dh", "dpkg-buildpackage", "git") if not shutil.which(tool)]
    if missing:
        raise DebError(f"{', '.join(missing)} missing; run: apt-get install --no-install-recommends debhelper git")
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    debian = run("/usr/bin/python3", "-c", ask).strip()
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if debian != here:
        raise DebError(f"/usr/bin/python3 is {debian}, .venv is {here}; run: make clean deb PYTHON=/usr/bin/python3")


def collect(wheels: Path, lies: Mapping[str, Iterable[str]], versions: Mapping[str, str]) -> None:
    """Wheels of everything into ``wheels``, those that are there already left out, and a list for each package."""
    wheels.mkdir(parents=True, exist_ok=True)
    there = {(canonicalize_name(path.name.split("-")[0]), path.name.split("-")[1]) for path in wheels.glob("*.whl")}
    lacking = [f"{name}=={number}" for name, number in versions.items() if (name, number) not in there]
    if lacking:
        run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, *lacking)
    for package, names in lies.items():
        lines = [f"{name}=={versions[name]}" for name in names]
        (wheels / f"{package}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def export(tree: Path) -> None:
    """The project's files, as git knows them, into the folder ``tree``."""
    for name in run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if name and (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)


def build(target: Path) -> list[Path]:
    """Build the packages into ``target``; what an earlier build left there goes."""
    check_tools()
    wanted = {package: needs(extras) for package, extras in EXTRAS.items()}
    versions = {name: number for names in wanted.values() for name, number in names.items()}
    lies = placed(wanted)
    wheels = ROOT / "build/deb/wheels"
    collect(wheels, lies, versions)
    number, time = version(), epoch()
    environment = {
        "SOURCE_DATE_EPOCH": str(time), "TZ": "UTC", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0",
        "DEB_BUILD_OPTIONS": "nocheck",
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="kolejka-deb-") as scratch:
        tree = Path(scratch) / "kolejka"
        export(tree)
        shutil.copytree(wheels, tree / "wheels")
        own = Path(scratch) / "own"
        run(
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--wheel-dir",
            own,
            ".",
            cwd=tree,
            env=environment,
        )
        shutil.rmtree(tree / "build", ignore_errors=True)
        shutil.copy(next(own.iterdir()), tree / "wheels")
        with open(tree / "wheels/kolejka-common.txt", "a", encoding="utf-8") as names:
            names.write("kolejka\n")
        date = datetime.fromtimestamp(time, UTC).strftime("%a, %d %b %Y %H:%M:%S +0000")
        (tree / "debian/changelog").write_text(CHANGELOG.format(version=number, date=date), encoding="utf-8")
        manual.write(tree / "debian/man", time)
        pip = {"PIP": f"{sys.executable} -m pip", "WHEELS": "wheels"}
        # -d: what is there was looked for above; debhelper's own list names compilers, which nothing here needs.
        run("dpkg-buildpackage", "--build=binary", "-us", "-uc", "-d", cwd=tree, env={**environment, **pip})
        target.mkdir(parents=True, exist_ok=True)
        for old in target.glob("*.deb"):
            old.unlink()
        built = sorted(Path(shutil.copy(path, target)) for path in Path(scratch).glob("*.deb"))
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in built)
    (target / "SHA256SUMS").write_text(sums, encoding="ascii")
    return built


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Build Debian packages of this tree.")
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "dist/deb")
    target = parser.parse_args().folder
    try:
        built = build(target)
    except DebError as error:
        sys.stderr.write(f"tools/deb.py: {error}\n")
        return 1
    for path in built:
        sys.stdout.write(f"{path}  {path.stat().st_size / 2**20:.1f} MiB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

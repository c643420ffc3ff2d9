"""The image's Python packages are the ones of this environment, file by file: what was tested is what is shipped.

Nothing is fetched. An image whose Debian has another Python than the environment cannot be made (``recipe.suite``).
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NODE: Final = ("kolejka[node]", "pyyaml")
"""What a node runs; the second reads the seeds of clouds."""
LOCAL: Final = frozenset({"INSTALLER", "REQUESTED", "direct_url.json"})
"""Notes of an installation about itself."""


def closure(wanted: Iterable[str]) -> list[importlib.metadata.Distribution]:
    """The distributions that these requirements need here, themselves included, by name. Kolejka itself is not among
    them: its code comes from the tree. ImportError for one that is not installed.
    """
    found: dict[str, importlib.metadata.Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(word) for word in wanted]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *sorted(requirement.extras)):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            distribution = importlib.metadata.distribution(name)
            found[name] = distribution
            for line in distribution.requires or []:
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    waiting.append(needed)
    found.pop("kolejka", None)
    return [found[name] for name in sorted(found)]


def versions(distributions: Iterable[importlib.metadata.Distribution]) -> list[str]:
    """``name==version``, as people write it."""
    return [f"{canonicalize_name(each.metadata['Name'])}=={each.version}" for each in distributions]


def lay(distributions: Iterable[importlib.metadata.Distribution], site: Path) -> None:
    """Copy the packages' files below ``site``: no programs, nothing compiled, nothing that says where they came
    from.
    """
    for distribution in distributions:
        for name in distribution.files or []:
            if name.name in LOCAL or name.parts[0] == ".." or "__pycache__" in name.parts:
                continue
            source, target = Path(os.fspath(distribution.locate_file(name))), site / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            target.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)

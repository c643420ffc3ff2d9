"""``make soak``: 10 000 tasks of mixed fates, then a count of what they left behind. Ends with 1 when anything is."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.neighbours import needs
from tests.soak.soak import say, soak_all

GROWTH = 16 << 20
"""Bytes that no program may grow by, however many tasks there were."""
FLAT = 1.5


def main() -> int:
    """Run, show, judge."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000, help="how many (default %(default)s)")
    parser.add_argument("--slots", type=int, default=4, help="how many at a time (default %(default)s)")
    words = parser.parse_args()
    for name in ("root", "cgroups", "bwrap", "gcc"):
        if needs.lacking(name):
            say(f"soak: {needs.lacking(name)}; {needs.NEEDS[name].cure}")
            return 2
    folder = Path(tempfile.mkdtemp(prefix="kolejka-soak-"))
    folder.chmod(0o711)
    try:
        report = soak_all(folder, words.tasks, words.slots, say=say)
    finally:
        shutil.rmtree(folder)
    say(report.show())
    grown = any(after - before > GROWTH for before, after in report.resident.values())
    return 1 if report.wrong or report.left or report.grown or grown or report.least_flatness > FLAT else 0


if __name__ == "__main__":
    sys.exit(main())

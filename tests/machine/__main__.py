"""``python -m tests.machine [PYTEST ARGUMENT…]``: run tests inside a small virtual machine with unified cgroup v2.

The machine is Debian with its own kernel, booted by qemu; without usable KVM it is emulated in software. Its root file
system is built once from Debian packages and the wheels of this environment and kept below ``build/machine`` under the
hash of what went in (``root.py``); the tree under test travels on a second disk at every run (``boot.py``). The report
comes back on a third one. The exit status is pytest's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.machine.boot import run_in_machine
from tests.machine.root import MachineError, built_root

PROJECT = Path(__file__).parents[2]
DEFAULT_TESTS = (
    "tests/conformance/cgroups",
    "tests/conformance/runtimes",
    "tests/hostile",
    "tests/integration/test_observer_sessions.py",
    "tests/integration/test_observer_daemon.py",
    "tests/integration/test_worker_execute.py",
    "tests/integration/test_worker_pool.py",
)


def main() -> int:
    """Build what is missing, boot, run, report."""
    parser = argparse.ArgumentParser(prog="python -m tests.machine", description=__doc__)
    parser.add_argument("--timeout", type=float, default=3000.0, help="seconds after which the machine is given up")
    parser.add_argument(
        "--requires", default="cgroups,root,bwrap,docker", help="needs whose absence inside is a failure"
    )
    parser.add_argument(
        "--output", type=Path, default=PROJECT / "build" / "machine" / "last", help="folder for log and report"
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=f"for pytest; default: {' '.join(DEFAULT_TESTS)}")
    options = parser.parse_args()
    try:
        root = built_root(PROJECT)
        return run_in_machine(
            PROJECT,
            root,
            options.arguments or list(DEFAULT_TESTS),
            requires=options.requires,
            output=options.output,
            timeout_s=options.timeout,
        )
    except MachineError as error:
        print(f"tests.machine: {error}", file=sys.stderr)
        return 125


sys.exit(main())

"""``python -m tests.machine [PYTEST ARGUMENT…]``: run tests inside small virtual machines with unified cgroup v2.

A machine is the node's own image (``image/``) in a flavour with Docker and a compiler, booted by qemu; without usable
KVM it is emulated in software. The image is kept below ``build/image`` under the hash of what went in; the tests are
a layer over it, made at every run (``layer.py``), and the report comes back on a disk (``boot.py``).

Without arguments everything that touches control groups runs, shared out to machines side by side. With arguments one
machine runs what they name. Nothing may be skipped there for want of a neighbour. The exit status is pytest's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Final

from image.build import BuildError
from tests.machine.boot import MachineError, run_in_machines
from tests.machine.layer import built_image

PROJECT: Final = Path(__file__).parents[2]
SHARES: Final = (
    (
        "tests/conformance/cgroups", "tests/integration/test_observer_sessions.py",
        "tests/integration/test_observer_daemon.py", "tests/integration/test_observer_devices.py",
        "tests/integration/test_observer_moves.py", "tests/integration/test_observer_unit.py",
        "tests/integration/test_worker_execute.py", "tests/integration/test_worker_pool.py",
        "tests/integration/test_docker_by_systemd.py", "tests/hostile",
        "-k", "not (test_hostile_programs and docker)",
    ),
    ("tests/conformance/runtimes", "tests/hostile", "-k", "test_runtime_conformance or docker"),
)  # fmt: skip
"""What each machine runs, in pytest's words; they should take about equally long."""
REQUIRES: Final = "root,cgroups,cgroup2,systemd,bwrap,gcc,runc,busybox,docker"


def main() -> int:
    """Build what is missing, boot, run, report."""
    parser = argparse.ArgumentParser(prog="python -m tests.machine", description=__doc__)
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds after which the tests are ended")
    parser.add_argument("--requires", default=REQUIRES, help="needs whose absence inside is a failure")
    parser.add_argument(
        "--output", type=Path, default=PROJECT / "build" / "machine" / "last", help="folder for logs and reports"
    )
    parser.add_argument("--debs", type=Path, help="folder with Debian packages, for the machine's /opt/tests/debs")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="for pytest in one machine; default: see above")
    options = parser.parse_args()
    try:
        image = built_image()
        with tempfile.TemporaryDirectory(prefix="kolejka-machine-") as scratch:
            return run_in_machines(
                image,
                [options.arguments] if options.arguments else SHARES,
                requires=options.requires,
                output=options.output,
                scratch=Path(scratch),
                timeout_s=options.timeout,
                debs=options.debs,
            )
    except (BuildError, MachineError) as error:
        print(f"tests.machine: {error}", file=sys.stderr)
        return 125


sys.exit(main())

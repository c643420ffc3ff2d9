"""Running tests inside machines: four disks each (image, tests, report, scratch), a serial console, one exit status.

The image is the node's own, in the flavour of ``layer.py``; the tests are a layer over it. What is written lies on a
scratch disk of the machine's own. The tree is brought ready to run, compiled on the host, because everything is some
twenty times slower inside an emulated machine. Several machines run side by side; emulation uses one processor of the
host for each.

A machine is done when it has written its report (a tar file on the third disk: pytest's status, its XML, its log) and
powered off. One that ends without it, or does not end in time, is a ``MachineError`` that shows its console's last
lines.
"""

from __future__ import annotations

import os
import selectors
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from image.build import Image
from tests.machine.layer import pack_layer, prepare_layer
from tests.machine.qemu import BARE, EMULATED, EMULATED_SLOWNESS, QUICK_WORDS, accelerator, drive, write_scratch

REPORT_SIZE: Final = 16 << 20
MEMORY: Final = "3072"
TAIL_LINES: Final = 60
GRACE_S: Final = 60.0
"""What a machine may take beyond the time of its tests: to boot, to write the report."""

RUN_TESTS: Final = """\
# Run the tests of this layer, and write the report onto the third disk.
set -u
mkdir -p /report /var/lib/kolejka/tmp
# engines lay overlays below /tmp, and the root is one: it must be another file system
mount --bind /var/lib/kolejka/tmp /tmp
chmod 1777 /tmp
cd /opt/tests/tree
. /opt/tests/environment
{
    eval "timeout --signal=INT --kill-after=20 $SECONDS_ALLOWED \
        python -m pytest -p no:cacheprovider --color=no --tb=short --durations=15 -o faulthandler_timeout=240 \
        --junitxml=/report/junit.xml $ARGUMENTS"
    echo $? > /report/status
} 2>&1 | tee /report/pytest.log
tar -C /report -cf /dev/vdc .
sync
"""


class MachineError(Exception):
    """The machine cannot be built or booted; the message says why and what helps."""


@dataclass
class Machine:
    """One booted machine and where its words go."""

    name: str
    process: subprocess.Popen[bytes]
    report: Path
    output: Path
    log: IO[bytes]
    line: bytes = b""
    started: float = field(default_factory=time.monotonic)

    def hear(self) -> bool:
        """Take what the console says: into the log, whole lines to the terminal. False when it is at its end."""
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), 65536)
        self.log.write(data)
        self.log.flush()
        *lines, self.line = (self.line + data).split(b"\n")
        if not data and self.line:
            lines, self.line = [self.line], b""
        for line in lines:
            text = line.decode(errors="replace").replace("\r", "")
            print(f"{self.name} {time.monotonic() - self.started:4.0f} s | {text}", flush=True)
        return bool(data)


@dataclass(frozen=True)
class Report:
    """What one machine said about its tests."""

    status: int
    tests: int
    skipped: int
    failures: tuple[str, ...]


def _compile(tree: Path, arguments: Sequence[str]) -> None:
    """Have pytest compile the tests in the form it wants, and complain here about what it cannot collect."""
    kept = {name: value for name, value in os.environ.items() if name != "KOLEJKA_TEST_REQUIRES"}
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only", *arguments]
    said = subprocess.run(words, cwd=tree, env=kept, capture_output=True, text=True, check=False)
    if said.returncode:
        last = "\n".join((said.stdout + said.stderr).strip().splitlines()[-20:])
        raise MachineError(f"pytest cannot collect {shlex.join(arguments)}:\n{last}")


def _compile_all(content: Path) -> None:
    """Compile everything else, by content: the layer's files have dates of their own."""
    words = [
        "-m",
        "compileall",
        "-q",
        "-j",
        "0",
        "--invalidation-mode",
        "unchecked-hash",
        "opt/kolejka",
        "opt/tests/tree/kolejka",
    ]
    subprocess.run([sys.executable, *words], cwd=content, stdin=subprocess.DEVNULL, capture_output=True, check=False)


def _environment(words: Mapping[str, str]) -> str:
    """What the tests find in their environment, as a shell reads it."""
    # plugins that only come along with libraries cost half a minute of an emulated start
    words = {**words, "CI": "true", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in words.items()]
    return "".join([*lines, "export PATH=/opt/kolejka/bin:$PATH HOME=/root\n"])


def _boot(name: str, words: Sequence[str], image: Image, layer: Path, output: Path) -> Machine:
    report, scratch = layer.with_suffix(".report"), layer.with_suffix(".ext4")
    with report.open("wb") as empty:
        empty.truncate(REPORT_SIZE)
    write_scratch(scratch)
    command = [
        "qemu-system-x86_64", *words, *BARE, "-m", MEMORY,
        "-kernel", os.fspath(image.kernel), "-initrd", os.fspath(image.initrd),
        "-append", f"{QUICK_WORDS} kolejka.image=/dev/vda kolejka.layer=/dev/vdb kolejka.scratch=disk",
        *drive(image.squashfs, "readonly=on"), *drive(layer, "readonly=on"), *drive(report, "cache=unsafe"),
        *drive(scratch, "cache=unsafe"),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return Machine(name, process, report, output, (output / "console.log").open("wb"))


def run_in_machines(
    image: Image,
    shares: Sequence[Sequence[str]],
    *,
    requires: str,
    output: Path,
    scratch: Path,
    timeout_s: float,
    debs: Path | None = None,
) -> int:
    """Run pytest once for each of ``shares``, its arguments, in machines side by side; 0 when all went well.

    Consoles and reports go to ``output``. MachineError when a machine ended without a report.
    """
    content = scratch / "content"
    prepare_layer(content)
    if debs is not None:
        shutil.copytree(debs, content / "opt/tests/debs")
    for share in shares:
        _compile(content / "opt/tests/tree", share)
    _compile_all(content)
    words = accelerator(image.kernel)
    print(f"tests.machine: {len(shares)} × qemu with {words[1]}", flush=True)
    tests = {
        "KOLEJKA_TEST_REQUIRES": requires,
        "KOLEJKA_TEST_SLOWNESS": str(EMULATED_SLOWNESS if words == EMULATED else 1),
        "SECONDS_ALLOWED": f"{timeout_s:.0f}",
    }
    machines: list[Machine] = []
    try:
        for number, share in enumerate(shares, 1):
            place = output / str(number)
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            layer = scratch / f"tests-{number}.squashfs"
            environment = _environment({**tests, "ARGUMENTS": shlex.join(share)})
            pack_layer(content, layer, {"run-tests": RUN_TESTS, "environment": environment})
            machines.append(_boot(f"[{number}]", words, image, layer, place))
        _listen(machines, timeout_s + GRACE_S)
    finally:
        for machine in machines:
            machine.process.kill()
            machine.process.wait()
            machine.log.close()
    return max([conclude(machine) for machine in machines])


def _listen(machines: Sequence[Machine], timeout_s: float) -> None:
    """Show the consoles until all machines have ended or their time is over."""
    deadline = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        for machine in machines:
            selector.register(machine.process.stdout, selectors.EVENT_READ, machine)  # type: ignore[arg-type]
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if not key.data.hear():
                    selector.unregister(key.fileobj)
        for key in selector.get_map().values():
            print(f"tests.machine: {key.data.name} given up after {timeout_s:.0f} s", flush=True)


def conclude(machine: Machine) -> int:
    """Say how the tests of one machine went; pytest's status, or 125 where there is none."""
    took = time.monotonic() - machine.started
    try:
        with tarfile.open(machine.report) as archive:
            archive.extractall(machine.output, filter="data")
        report = read_report(machine.output / "junit.xml")
    except (tarfile.TarError, OSError, ET.ParseError, ValueError) as error:
        print(f"tests.machine: {machine.name} ended without a report ({error}); the last lines of its console:")
        print("\n".join(_tail(machine.output / "console.log")), flush=True)
        return 125
    print(
        f"tests.machine: {machine.name} {report.tests} tests, {len(report.failures)} failed, {report.skipped} skipped, "
        f"in {took:.0f} s; log and report in {machine.output}"
    )
    for failure in report.failures:
        print(f"tests.machine: {machine.name} FAILED {failure}")
    if report.status and not report.failures:  # something was left behind, or nothing was collected
        print("\n".join(_tail(machine.output / "pytest.log")), flush=True)
    return report.status


def read_report(path: Path) -> Report:
    """Read pytest's XML."""
    suite = ET.parse(path).getroot().find("testsuite")
    assert suite is not None, f"{path} has no testsuite"
    failures = tuple(_failures(suite))
    status = int(path.with_name("status").read_text(encoding="ascii"))
    return Report(status, int(suite.get("tests", 0)), int(suite.get("skipped", 0)), failures)


def _failures(suite: ET.Element) -> Iterator[str]:
    for case in suite.iter("testcase"):
        for kind in ("failure", "error"):
            for found in case.findall(kind):
                words = (found.get("message") or "").strip().splitlines()[:1]
                yield " ".join([f"{case.get('classname')}::{case.get('name')}", *words])


def _tail(path: Path) -> list[str]:
    with suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
    return []

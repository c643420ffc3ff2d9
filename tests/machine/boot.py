"""Booting machines: three disks each (root, tree under test, report), a serial console, one exit status.

The root file system is shared and never changed: each machine writes into a throw-away layer of its own. The tree is
brought ready to run, compiled and installed on the host, because everything is some twenty times slower inside an
emulated machine. Several machines run side by side; emulation uses one processor of the host for each.

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

from tests.machine.root import MachineError, Root, run

REPORT_SIZE: Final = 16 << 20
MEMORY: Final = "3072"
TAIL_LINES: Final = 60
GRACE_S: Final = 60.0
"""What a machine may take beyond the time of its tests: to boot, to write the report."""
TRIAL_S: Final = 30.0

RUN_TESTS: Final = """\
# Run the tests of this disk, and write the report onto the third one.
set -u
mkdir -p /report
cd /mnt/tree
. /mnt/environment
cp -a /mnt/prefix/. /opt/venv/
{
    eval "timeout --signal=INT --kill-after=20 $SECONDS_ALLOWED \
        python -m pytest -p no:cacheprovider --color=no --tb=short --durations=15 -o faulthandler_timeout=240 \
        --junitxml=/report/junit.xml $ARGUMENTS"
    echo $? > /report/status
} 2>&1 | tee /report/pytest.log
tar -C /report -cf /dev/vdc .
sync
"""
KERNEL_WORDS: Final = (
    "root=/dev/vda rw console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off selinux=0 apparmor=0 audit=0 "
    "rcupdate.rcu_expedited=1 systemd.show_status=false"
)
EMULATED: Final = ("-accel", "tcg,thread=single", "-cpu", "qemu64,-cx16", "-smp", "2")
"""Multi-threaded emulation crashes guests now and then; one thread with a plain processor model does not."""
EMULATED_SLOWNESS: Final = 6
"""How many times longer tests may take in an emulated machine; they do take some twenty times longer, waits do not."""
VIRTUAL: Final = ("-accel", "kvm", "-cpu", "host", "-smp", "2")
BARE: Final = (
    "-machine", "q35", "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
)  # fmt: skip


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


def accelerator(kernel: Path) -> tuple[str, ...]:
    """Words for qemu: KVM where a kernel comes up with it, else emulation.

    The device file alone tells nothing: it opens on machines where every guest hangs.
    """
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    if {"vmx", "svm"}.isdisjoint(flags) or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return EMULATED
    return VIRTUAL if comes_up(kernel, VIRTUAL) else EMULATED


def comes_up(kernel: Path, words: Sequence[str]) -> bool:
    """Whether a kernel without any root file system gets as far as missing it."""
    command = ["qemu-system-x86_64", *words, *BARE, "-m", "256", "-kernel", os.fspath(kernel)]
    command += ["-append", "console=ttyS0 panic=-1"]
    try:
        said = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=TRIAL_S)
    except subprocess.TimeoutExpired:
        return False
    return b"Kernel panic" in said.stdout


def _prepare_content(project: Path, content: Path) -> None:
    """What every machine gets: the project's tracked and new files, and the package as an installation, compiled."""
    tree, prefix = content / "tree", content / "prefix"
    names = run("git", "-C", project, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, names):
        source = project / name
        if source.is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, tree / name)
    with_build = tree.with_name("build")
    shutil.copytree(tree, with_build)
    run(
        sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-warn-script-location", "--ignore-installed",
        "--prefix", prefix, with_build,
    )  # fmt: skip
    shutil.rmtree(with_build)
    for script in (prefix / "bin").iterdir():
        _, _, rest = script.read_text(encoding="utf-8").partition("\n")
        script.write_text(f"#!/opt/venv/bin/python\n{rest}", encoding="utf-8")
    (content / "run-tests").write_text(RUN_TESTS, encoding="utf-8")


def _compile(content: Path, arguments: Sequence[str]) -> None:
    """Have pytest compile the tests in the form it wants, and complain here about what it cannot collect."""
    tree = content / "tree"
    kept = {name: value for name, value in os.environ.items() if name != "KOLEJKA_TEST_REQUIRES"}
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only", *arguments]
    said = subprocess.run(words, cwd=tree, env=kept, capture_output=True, text=True, check=False)
    if said.returncode:
        last = "\n".join((said.stdout + said.stderr).strip().splitlines()[-20:])
        raise MachineError(f"pytest cannot collect {shlex.join(arguments)}:\n{last}")
    run(sys.executable, "-m", "compileall", "-q", tree / "kolejka")


def _make_disk(content: Path, disk: Path, words: Mapping[str, str]) -> None:
    """Pack the content with the environment of its tests."""
    # plugins that only come along with libraries cost half a minute of an emulated start
    words = {**words, "CI": "true", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in words.items()]
    (content / "environment").write_text("".join([*lines, "export PATH=/opt/venv/bin:$PATH HOME=/root\n"]))
    run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", content, disk, "256M")


def _boot(name: str, words: Sequence[str], root: Root, tree: Path, output: Path) -> Machine:
    report = tree.with_suffix(".report")
    with report.open("wb") as empty:
        empty.truncate(REPORT_SIZE)
    command = [
        "qemu-system-x86_64", *words, *BARE, "-m", MEMORY,
        "-kernel", os.fspath(root.kernel), "-initrd", os.fspath(root.initrd), "-append", KERNEL_WORDS,
        "-drive", f"file={root.image},if=virtio,format=raw,snapshot=on",
        "-drive", f"file={tree},if=virtio,format=raw,snapshot=on",
        "-drive", f"file={report},if=virtio,format=raw,cache=unsafe",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return Machine(name, process, report, output, (output / "console.log").open("wb"))


def run_in_machines(
    project: Path,
    root: Root,
    shares: Sequence[Sequence[str]],
    *,
    requires: str,
    output: Path,
    scratch: Path,
    timeout_s: float,
) -> int:
    """Run pytest once for each of ``shares``, its arguments, in machines side by side; 0 when all went well.

    Consoles and reports go to ``output``. MachineError when a machine ended without a report.
    """
    content = scratch / "content"
    _prepare_content(project, content)
    for share in shares:
        _compile(content, share)
    words = accelerator(root.kernel)
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
            disk = scratch / f"tree-{number}.ext4"
            _make_disk(content, disk, {**tests, "ARGUMENTS": shlex.join(share)})
            machines.append(_boot(f"[{number}]", words, root, disk, place))
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

"""Booting the machine: three disks (root, tree under test, report), a serial console that is shown, one exit status."""

from __future__ import annotations

import os
import selectors
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import IO, Final

from tests.machine.root import MachineError, Root, run

REPORT_SIZE: Final = 64 << 20
RUN_TESTS: Final = """\
# Run the tests on this disk, write the report onto the third.
mkdir -p /report
cp -a /mnt/tree /srv/tree
cd /srv/tree
. /mnt/environment
pip install -q --no-index --no-deps /mnt/*.whl
eval "python -m pytest -p no:cacheprovider --color=no --junitxml=/report/junit.xml $ARGUMENTS"
echo $? > /report/status
tar -C /report -cf /dev/vdc .
sync
"""
KERNEL_WORDS: Final = (
    "root=/dev/vda rw console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off apparmor=0 systemd.show_status=false"
)


def _accelerator() -> list[str]:
    """KVM where the processor announces it and the device is there; a wrong guess shows at once as a dead machine.

    Multi-threaded emulation crashes guests now and then; one thread with a plain processor model does not.
    """
    flags = Path("/proc/cpuinfo").read_text()
    if os.access("/dev/kvm", os.W_OK) and (" vmx" in flags or " svm" in flags):
        return ["-accel", "kvm", "-cpu", "host", "-smp", "2"]
    return ["-accel", "tcg,thread=single", "-cpu", "qemu64,-cx16", "-smp", "2"]


def _tree_disk(project: Path, scratch: Path, arguments: list[str], requires: str) -> Path:
    """A disk with the tracked and new files of the project, its wheel and the words for pytest."""
    content, tree = scratch / "content", scratch / "content" / "tree"
    names = run("git", "-C", project, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, names):
        source = project / name
        if source.is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, tree / name)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", content, tree)
    shutil.rmtree(tree / "build", ignore_errors=True)
    shutil.rmtree(tree / "kolejka.egg-info", ignore_errors=True)
    (content / "run-tests").write_text(RUN_TESTS)
    words = {
        "ARGUMENTS": shlex.join(arguments),
        "KOLEJKA_TEST_REQUIRES": requires,
        "KOLEJKA_TEST_MACHINE": "v2",
        "CI": "true",
    }
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in words.items()]
    (content / "environment").write_text("".join([*lines, "export PATH=/opt/venv/bin:$PATH HOME=/root\n"]))
    disk = scratch / "tree.ext4"
    run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", content, disk, "256M")
    return disk


def run_in_machine(
    project: Path, root: Root, arguments: list[str], *, requires: str, output: Path, timeout_s: float
) -> int:
    """Boot, run pytest with ``arguments`` inside, copy log and report to ``output``; pytest's exit status.

    MachineError when the machine ended without a report.
    """
    output.mkdir(parents=True, exist_ok=True)
    console = output / "console.log"
    with tempfile.TemporaryDirectory(prefix="kolejka-machine-") as name:
        scratch = Path(name)
        tree = _tree_disk(project, scratch, arguments, requires)
        report = scratch / "report.tar"
        with report.open("wb") as empty:
            empty.truncate(REPORT_SIZE)
        command = [
            "qemu-system-x86_64", *_accelerator(), "-machine", "q35", "-m", "4096",
            "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
            "-kernel", os.fspath(root.kernel), "-initrd", os.fspath(root.initrd), "-append", KERNEL_WORDS,
            "-drive", f"file={root.image},if=virtio,format=raw,snapshot=on",
            "-drive", f"file={tree},if=virtio,format=raw,readonly=on",
            "-drive", f"file={report},if=virtio,format=raw",
        ]  # fmt: skip
        with console.open("wb") as log:
            machine = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            try:
                _show(machine, log, timeout_s)
            finally:
                machine.kill()
                machine.wait()
        try:
            with tarfile.open(report) as archive:
                archive.extractall(output, filter="data")
            return int((output / "status").read_text())
        except (tarfile.TarError, OSError, ValueError):
            raise MachineError(f"the machine ended without a report; its console is in {console}") from None


def _show(machine: subprocess.Popen[bytes], log: IO[bytes], timeout_s: float) -> None:
    """Copy the console to the terminal and the log until the machine ends or its time is over."""
    assert machine.stdout is not None
    deadline = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        selector.register(machine.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(left):
                continue
            data = os.read(machine.stdout.fileno(), 65536)
            if not data:
                return
            log.write(data)
            sys.stdout.write(data.decode(errors="replace").replace("\r\n", "\n"))
            sys.stdout.flush()
    print(f"tests.machine: given up after {timeout_s} s", file=sys.stderr)

"""Compile one submission and run it against tests, each run in a session of its own with its own limits.

    python3 judge.py          in a folder with submission.c, limits.json and tests/NAME.in, tests/NAME.out

The report goes to standard output as JSON, one line per test to standard error. The submission runs under the same
user as this script, so everything it must not see is taken away before its first instruction, and before the
compiler's, which is as hostile (`#include "tests/1.out"`):

* the tests are read and their files deleted; what the submission gets is its standard input, nothing else;
* this process is not dumpable, so its memory and descriptors are closed to others of its user;
* the report is written to this process's own standard output, which the submission cannot open.

A run's process moves itself into its session between fork and exec. So nothing of it happens outside of the limits, and
it works inside a container, whose process numbers the observer does not know: the socket tells it who is calling.
"""

import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from observer_client import ObserverClient, ObserverError  # noqa: E402

# From here on no import may look where the submission could put a module.
del sys.path[0]

SOCKET = os.environ.get("KOLEJKA_OBSERVER_SOCKET", "/run/kolejka/observer/socket")
PR_SET_DUMPABLE = 4
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/tmp", "TMPDIR": "/tmp"}


class Run:
    """How one program ended: exit status, the limit that ended it, stats, output (cut at the limit of output)."""

    def __init__(self, status, stats, output, words):
        self.status = status
        self.limit = stats.get("limit")
        self.stats = stats
        self.output = output
        self.words = words


def read_tests(folder):
    """Name, input, answer of each test. The files are gone afterwards."""
    tests = []
    for question in sorted(folder.glob("*.in")):
        answer = question.with_suffix(".out")
        tests.append((question.stem, question.read_bytes(), answer.read_bytes()))
    shutil.rmtree(str(folder))
    return tests


def run_limited(observer, args, limits, folder, question=b""):
    """Run a program in a fresh session. OSError when it cannot be started."""
    limits = dict(limits)
    most = limits.pop("output", 1 << 20)
    session = observer.open(limits)

    def enter():
        # Between fork and exec; safe, because this process has one thread. The child connects for itself, and neither
        # the socket nor the secret outlives exec.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        own = ObserverClient(SOCKET)
        own.session(session.id, session.secret).attach()
        own.close()

    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        stdin.write(question)
        stdin.seek(0)
        try:
            process = subprocess.Popen(
                args, stdin=stdin, stdout=stdout, stderr=stderr, cwd=str(folder), env=ENVIRONMENT,
                preexec_fn=enter, start_new_session=True,
            )
            status = process.wait()
        except subprocess.SubprocessError:
            status = None  # its limits ended it before it was a program
        finally:
            # Whoever is left is dead after this, so what is read below is what will ever be there.
            stats = session.close()
        stdout.seek(0)
        stderr.seek(0)
        return Run(status, stats, stdout.read(most), stderr.read(4096))


def verdict_of(run, answer):
    """One word on one run."""
    if run.limit in ("time", "cpu_time"):
        return "TLE"
    if run.limit == "memory":
        return "MLE"
    if run.status != 0:
        return "RTE"
    return "OK" if run.output.split() == answer.split() else "WA"


def describe(run):
    """What the report tells of a run."""
    entry = {"status": run.status, "limit": run.limit}
    for name in ("time", "cpu", "memory", "pids", "processes_left"):
        if name in run.stats:
            entry[name] = run.stats[name]
    if run.status is not None and run.status < 0:
        entry["signal"] = signal.Signals(-run.status).name
    return entry


def judge(observer, limits, tests):
    """The report."""
    place = Path(tempfile.mkdtemp(prefix="compile-"))
    shutil.copy("submission.c", str(place))
    command = ["gcc", "-O2", "-std=gnu11", "-w", "-o", "program", "submission.c", "-lm"]
    compiled = run_limited(observer, command, limits["compile"], place)
    report = {"compile": describe(compiled), "tests": []}
    if compiled.status != 0 or compiled.limit is not None or not (place / "program").is_file():
        report["verdict"] = "CE"
        report["compile"]["words"] = compiled.words.decode("utf-8", "replace")
        return report
    program = (place / "program").read_bytes()  # each run gets it fresh: the one before may have changed its own
    shutil.rmtree(str(place))
    for name, question, answer in tests:
        place = Path(tempfile.mkdtemp(prefix="run-"))
        (place / "program").write_bytes(program)
        (place / "program").chmod(0o755)
        run = run_limited(observer, ["./program"], limits["run"], place, question)
        shutil.rmtree(str(place), ignore_errors=True)
        entry = {"name": name, "verdict": verdict_of(run, answer)}
        entry.update(describe(run))
        entry["output"] = run.output[:200].decode("utf-8", "replace")
        report["tests"].append(entry)
        print(name, entry["verdict"], file=sys.stderr, flush=True)
    report["verdict"] = next((test["verdict"] for test in report["tests"] if test["verdict"] != "OK"), "OK")
    return report


def main():
    """Judge the submission in the working folder."""
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    tests = read_tests(Path("tests"))
    limits = json.loads(Path("limits.json").read_text())
    try:
        report = judge(ObserverClient(SOCKET), limits, tests)
    except (OSError, ObserverError) as error:
        sys.exit("judge: %s" % error)
    print("verdict", report["verdict"], file=sys.stderr)
    json.dump(report, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()

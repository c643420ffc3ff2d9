"""What all tests share: needs, neighbours, and a look at what was left behind.

``@pytest.mark.needs("docker")`` names what a test needs of the machine (``tests/neighbours/needs.py``). Absent at a
desk, it is skipped and counted by name in the last lines; named in ``KOLEJKA_TEST_REQUIRES``, its absence fails. The
session ends with a failure when a process, control group, mount or container that the tests made is still there.

``-n 2 --dist loadgroup`` shares the tests out to two processes: those whose needs touch the machine (``_MACHINE``) stay
together in one of them, one at a time, and the files of the others are dealt to whoever is free.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings

from tests.neighbours import leaks, needs
from tests.neighbours.docker import IMAGES, Docker
from tests.neighbours.podman import Podman
from tests.neighbours.postgres import Postgres
from tests.neighbours.rootfs import write_busybox_tar
from tests.neighbours.s3 import S3

# A machine that is busy with other things is slow, not wrong.
settings.register_profile("kolejka", deadline=None, max_examples=60)
settings.load_profile("kolejka")

_MACHINE = {"cgroups", "cgroup2", "systemd", "docker", "podman", "netns", "bwrap"}
"""needs of tests that measure, limit or count what the whole machine has: they do not run beside each other"""
_SKIP = re.compile(r"Skipped: needs (\w+): ")
_BEFORE = pytest.StashKey[leaks.Traces]()
_LEFT = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, check what is required, and look at the machine before the first test."""
    config.addinivalue_line("markers", f"needs(*names): what the test needs of the machine: {', '.join(needs.NEEDS)}")
    config.addinivalue_line("markers", "xdist_group(name): tests of one name run in one process")
    try:
        needs.required()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[_LEFT] = []
    # A shell that runs tests in the background has them ignore interrupts, and every program that they start as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Every process of ours inherits this word, so that one that outlives the session is known for ours.
    if not _is_worker(config):
        os.environ[leaks.MARK] = uuid.uuid4().hex
    for variable in [
        name for name in os.environ if name.startswith("KOLEJKA_") and not name.startswith("KOLEJKA_TEST_")
    ]:
        del os.environ[variable]  # settings of the person who runs the tests are none of the tests' business
    config.stash[_BEFORE] = leaks.look()


def _is_worker(config: pytest.Config) -> bool:
    """Whether this process runs what another one shares out."""
    return hasattr(config, "workerinput")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over from a worker process: what it found left behind, and that what is named after it is ours."""
    output = getattr(node, "workeroutput", {})
    node.config.stash[_LEFT] += output.get("left", [])
    leaks.OURS.update(output.get("pids", []))


def _lack(name: str, reason: str) -> None:
    cure = needs.NEEDS[name].cure
    if name in needs.required():
        pytest.fail(f"needs {name}, which KOLEJKA_TEST_REQUIRES names: {reason}; {cure}", pytrace=False)
    pytest.skip(f"needs {name}: {reason}; {cure}")


@pytest.hookimpl(tryfirst=True)  # whoever shares out reads the groups after us
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a marker with a name that no need has, before anything runs; say which tests stay together."""
    for item in items:
        named = set(getattr(item, "fixturenames", ()))
        for marker in item.iter_markers("needs"):
            unknown = [name for name in marker.args if name not in needs.NEEDS]
            if unknown or not marker.args:
                raise pytest.UsageError(
                    f"{item.nodeid} needs {unknown or 'nothing'}; the needs: {', '.join(needs.NEEDS)}"
                )
            named.update(marker.args)
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group("machine" if named & _MACHINE else item.path.stem))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to share out tests whose groups nobody sees: pytest-xdist names them by a suffix of the tests' names."""
    if _is_worker(session.config) and not all("@" in item.nodeid for item in session.items):
        raise pytest.UsageError("this pytest-xdist does not keep groups together with this pytest; see pyproject.toml")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail a test whose needs are absent."""
    for marker in item.iter_markers("needs"):
        for name in marker.args:
            reason = needs.lacking(name)
            if reason:
                _lack(name, reason)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a session that left something behind."""
    left = session.config.stash[_LEFT]
    if _is_worker(session.config):
        session.config.workeroutput.update(left=left, pids=[os.getpid()])
        return
    left += leaks.left_behind(session.config.stash[_BEFORE])
    if left and session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which needs were absent, how many tests that cost, and what was left behind."""
    reasons = (report.longrepr[2] for report in terminalreporter.getreports("skipped"))
    skipped = Counter(match[1] for match in map(_SKIP.match, reasons) if match)
    if skipped:
        terminalreporter.section("skipped for what this machine lacks")
        for name, count in sorted(skipped.items()):
            terminalreporter.line(f"{name}: {count} skipped; {needs.NEEDS[name].cure}")
    left = config.stash[_LEFT]
    if left:
        terminalreporter.section("LEFT BEHIND by the tests", red=True)
        for line in left:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def busybox_root_tar(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar file with a root file system: busybox in ``/bin`` (sh, uname, cat, …)."""
    reason = needs.lacking("busybox")
    if reason:
        _lack("busybox", reason)
    return write_busybox_tar(tmp_path_factory.mktemp("rootfs") / "busybox.tar")


E = TypeVar("E", Docker, Podman)


def _engine(request: pytest.FixtureRequest, name: str, kind: type[E]) -> Iterator[E]:
    """A private container engine with the local images ``tests.neighbours.docker.IMAGES``."""
    reason = needs.lacking(name)
    if reason:
        _lack(name, reason)
    tar = request.getfixturevalue("busybox_root_tar")
    engine = kind()
    try:
        engine.start()
        for tag in IMAGES:
            engine.import_image(tar, tag)
        yield engine
    finally:
        request.config.stash[_LEFT] += [f"container {name}" for name in engine.stop()]


@pytest.fixture(scope="session")
def docker(request: pytest.FixtureRequest) -> Iterator[Docker]:
    """A private Docker daemon."""
    yield from _engine(request, "docker", Docker)


@pytest.fixture(scope="session")
def podman(request: pytest.FixtureRequest) -> Iterator[Podman]:
    """A private Podman service."""
    yield from _engine(request, "podman", Podman)


@pytest.fixture(scope="session")
def s3(request: pytest.FixtureRequest) -> Iterator[S3]:
    """A server on loopback that speaks S3."""
    reason = needs.lacking("s3")
    if reason:
        _lack("s3", reason)
    server = S3()
    yield server
    server.stop()


@pytest.fixture
def small_disk(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of 4 MiB."""
    reason = needs.lacking("mounts")
    if reason:
        _lack("mounts", reason)
    folder = Path(tempfile.mkdtemp(prefix="kolejka-test-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "kolejka-test", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)
    folder.rmdir()


@pytest.fixture(scope="session")
def docker_url(docker: Docker) -> str:
    """The address of the private Docker daemon, as settings and ``DOCKER_HOST`` have it."""
    return docker.url


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """A PostgreSQL for everybody; a test makes a database of its own in it, and does not stop it."""
    reason = needs.lacking("postgres")
    if reason:
        _lack("postgres", reason)
    server = Postgres()
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A temporary folder with a short path: a unix socket's path has at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="kolejka-test-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def cgroup_name() -> str:
    """The name of a control group that no other test and no installation uses."""
    return f"kolejka-test-{os.getpid()}-{uuid.uuid4().hex[:8]}"

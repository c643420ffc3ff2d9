"""A cluster for the end-to-end tests: server, observer and foreman as processes, shared by all tests of the session."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.neighbours import needs
from tests.neighbours.cluster import Cluster


@pytest.fixture(scope="session")
def make_cluster(request: pytest.FixtureRequest) -> Iterator[Callable[..., Cluster]]:
    """Make clusters of a test's own (started by the test, ended here), with settings by variable."""
    made: list[Cluster] = []

    def make(**settings: str) -> Cluster:
        folder = Path(tempfile.mkdtemp(prefix="kolejka-test-"))
        folder.chmod(0o711)
        cluster = Cluster(folder, settings)
        made.append(cluster)
        return cluster

    yield make
    for cluster in made:
        cluster.stop()
        shutil.rmtree(cluster.folder)


@pytest.fixture(scope="session")
def session_cluster(request: pytest.FixtureRequest, make_cluster: Callable[..., Cluster]) -> Cluster:
    """The cluster of the session; with the private Docker daemon where there can be one."""
    settings = {}
    if not needs.lacking("docker"):
        settings["KOLEJKA_WORKER_DOCKER"] = request.getfixturevalue("docker_url")
    cluster = make_cluster(**settings)
    cluster.start()
    return cluster


@pytest.fixture
def cluster(session_cluster: Cluster) -> Iterator[Cluster]:
    """The running cluster; after the test every program still lives, and none has logged a traceback."""
    yield session_cluster
    session_cluster.check_alive()
    session_cluster.check_quiet()


@pytest.fixture(scope="session")
def alone(request: pytest.FixtureRequest, make_cluster: Callable[..., Cluster]) -> Cluster:
    """The programs with nothing running: what a worker does by itself, sessions included."""
    settings = {"KOLEJKA_WORKER_OBSERVER": ""}
    if not needs.lacking("docker"):
        settings["KOLEJKA_WORKER_DOCKER"] = request.getfixturevalue("docker_url")
    return make_cluster(**settings)


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A temporary folder that other users can pass: what tasks and results of local runs are below."""
    folder = Path(tempfile.mkdtemp(prefix="kolejka-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)

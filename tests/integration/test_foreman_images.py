"""Images from a real registry: into a real engine, and into the sandbox's store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kolejka.common.errors import NodeError
from kolejka.foreman.images import ImageCache
from kolejka.worker.runtimes.base import Images
from kolejka.worker.runtimes.docker import Docker as DockerRuntime
from kolejka.worker.runtimes.images import Store
from tests.neighbours.docker import Docker
from tests.neighbours.registry import Registry

pytestmark = pytest.mark.needs("docker", "registry")


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    made = Registry()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def names(docker: Docker, registry: Registry) -> list[str]:
    """Images that are in the registry only."""
    return [registry.push(docker, "kolejka/busybox:latest", f"some/image{number}:1.0") for number in range(3)]


@pytest.fixture(params=["docker", "sandbox"])
def images(
    request: pytest.FixtureRequest, docker: Docker, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Images:
    monkeypatch.setenv("HOME", str(registry.home))
    if request.param == "docker":
        return DockerRuntime(tmp_path, docker.url).images
    return Store(tmp_path / "images")


def test_images_are_fetched_and_the_least_recently_used_of_them_dropped(
    images: Images, names: list[str], tmp_path: Path
) -> None:
    first, second, third = names
    told: list[int] = []
    images.fetch(first, lambda done, total: told.append(done))
    size = images.size(first)
    images.drop(first)
    cache = ImageCache(tmp_path / "images.json", {"here": images}, bound=2 * size)
    cache.open()
    for name in (first, second, first):
        with cache.hold(name):
            assert images.has(name)
    with cache.hold(third):
        assert [images.has(name) for name in names] == [True, True, True], "room is made when a task lets go"
    assert [images.has(name) for name in names] == [True, False, True]
    for name in (first, third):
        images.drop(name)


def test_an_image_that_no_registry_has_is_said_and_leaves_nothing(
    images: Images, registry: Registry, tmp_path: Path
) -> None:
    cache = ImageCache(tmp_path / "images.json", {"here": images}, bound=1 << 30)
    cache.open()
    name = f"{registry.host}/no/such:image"
    with pytest.raises(NodeError, match="is not on this node and cannot be fetched") as caught, cache.hold(name):
        raise AssertionError("never reached")
    assert "\n" not in str(caught.value)
    assert not images.has(name)
    assert not (tmp_path / "images.json").exists()

"""The node's images: fetched when a task names them; dropped when there is no room, but only what was fetched."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from kolejka.common.errors import NodeError
from kolejka.foreman import images as images_module
from kolejka.foreman.images import ImageCache
from kolejka.worker.runtimes.base import Tell, unheard
from kolejka.worker.runtimes.fake import FakeImages
from tests.support import wait_until


class Registry(FakeImages):
    """A runtime's images, and what its registry has."""

    def __init__(self, here: dict[str, int], there: dict[str, int]) -> None:
        super().__init__(here)
        self.there = there
        self.asked: list[str] = []
        self.dropped: list[str] = []
        self.in_use: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()

    def fetch(self, image: str, tell: Tell = unheard) -> None:
        self.asked.append(image)
        assert self.gate.wait(30)
        if image not in self.there:
            raise NodeError(f"{image}: the registry has no such image")
        tell(self.there[image] // 2, self.there[image])
        self._images[image] = self.there[image]

    def drop(self, image: str) -> None:
        if image in self.in_use:
            raise NodeError("a container uses it")
        super().drop(image)
        self.dropped.append(image)


@pytest.fixture
def registry() -> Registry:
    return Registry({"brought": 50}, {"a": 40, "b": 40, "c": 40})


def cache_of(tmp_path: Path, *runtimes: Registry, bound: int = 100) -> ImageCache:
    cache = ImageCache(tmp_path / "images.json", {f"r{n}": one for n, one in enumerate(runtimes)}, bound)
    cache.open()
    return cache


def use(cache: ImageCache, *images: str) -> None:
    for image in images:
        with cache.hold(image):
            pass


def test_an_image_that_is_not_here_is_fetched_once(tmp_path: Path, registry: Registry) -> None:
    cache = cache_of(tmp_path, registry)
    use(cache, "a", "a", "brought")
    assert registry.asked == ["a"]
    with cache.hold(None):
        assert registry.has("a")


def test_the_least_recently_used_of_those_that_were_fetched_goes(tmp_path: Path, registry: Registry) -> None:
    cache = cache_of(tmp_path, registry)
    use(cache, "a", "b", "a", "c")
    assert registry.dropped == ["b"]
    use(cache_of(tmp_path, registry), "b"), "the record outlives the foreman"
    assert registry.dropped == ["b", "a"]


def test_what_an_administrator_brought_is_never_dropped(tmp_path: Path, registry: Registry) -> None:
    cache = cache_of(tmp_path, registry, bound=1)
    use(cache, "brought", "a", "brought", "b")
    assert registry.dropped == ["a", "b"]
    assert registry.has("brought")


def test_an_image_that_a_task_holds_stays_and_goes_when_it_is_let_go(tmp_path: Path, registry: Registry) -> None:
    cache = cache_of(tmp_path, registry)
    with cache.hold("a"):
        use(cache, "b", "c")
        assert registry.has("a")
        assert registry.dropped == ["b"]
    registry.in_use = {"a"}
    use(cache, "b")
    assert registry.dropped == ["b", "c"], "a container still uses a: another goes, and a with the next chance"


def test_two_tasks_of_one_image_fetch_it_once(tmp_path: Path, registry: Registry) -> None:
    cache = cache_of(tmp_path, registry)
    registry.gate.clear()
    threads = [threading.Thread(target=use, args=(cache, "a")) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: cache._held["a"] == 4)
    registry.gate.set()
    for thread in threads:
        thread.join(30)
    assert registry.asked == ["a"]


def test_the_next_runtime_is_asked_and_the_reasons_of_all_are_told(tmp_path: Path, registry: Registry) -> None:
    other = Registry({}, {"x": 1})
    cache = cache_of(tmp_path, other, registry)
    use(cache, "b")
    assert registry.has("b")
    with pytest.raises(NodeError) as caught:
        use(cache, "nowhere")
    assert (caught.value.code, caught.value.field) == ("no_image", "image")
    assert "r0: nowhere: the registry has no such image; r1:" in caught.value.message


def test_a_bound_of_nothing_fetches_nothing(tmp_path: Path, registry: Registry) -> None:
    use(cache_of(tmp_path, registry, bound=0), "a")
    assert registry.asked == []


@pytest.mark.parametrize("words", ["", "{", "[1]", '[{"image": "brought"}]', '{"a": 1}'])
def test_a_record_that_cannot_be_read_costs_no_image(tmp_path: Path, registry: Registry, words: str) -> None:
    (tmp_path / "images.json").write_text(words)
    cache = cache_of(tmp_path, registry, bound=1)
    use(cache, "brought", "a")
    assert registry.has("brought")


def test_a_fetch_tells_how_far_it_is(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(images_module, "TELL_S", 0.0)
    with caplog.at_level("INFO"):
        use(cache_of(tmp_path, registry), "a")
    told = [(record.msg, getattr(record, "bytes", None)) for record in caplog.records]
    assert told == [("image is fetched", None), ("image is being fetched", 20), ("image fetched", 40)]

"""Containers that stop while they are removed: what an engine says in that moment is no failure. Engines of no use."""

from __future__ import annotations

from pathlib import Path

import pytest
from docker.errors import APIError, NotFound

from kolejka.common.errors import NodeError
from kolejka.worker.runtimes.base import Run
from kolejka.worker.runtimes.docker import Docker, remove_container


class Engine:
    """Answers each removal with the next of ``answers``."""

    def __init__(self, *answers: Exception | None) -> None:
        self.answers = list(answers)

    def remove_container(self, name: str, *, force: bool, v: bool) -> None:
        assert (name, force, v) == ("one", True, True)
        answer = self.answers.pop(0)
        if answer is not None:
            raise answer


@pytest.mark.parametrize(
    "words",
    [
        "Could not kill running container b34a, cannot remove - Container b34a is not running",
        "cannot remove container b34a: container state improper",
    ],
)
@pytest.mark.parametrize("then", [None, NotFound("no such container")])
def test_one_that_stops_by_itself_at_that_moment_is_removed_again(words: str, then: Exception | None) -> None:
    engine = Engine(APIError(words), then)
    remove_container(engine, "one")  # type: ignore[arg-type]
    assert engine.answers == []


def test_one_that_stays_is_an_error_at_once_or_in_the_end() -> None:
    with pytest.raises(NodeError, match="device or resource busy"):
        remove_container(Engine(APIError("device or resource busy")), "one")  # type: ignore[arg-type]
    with pytest.raises(NodeError, match="is not running"):
        remove_container(Engine(*[APIError("it is not running")] * 4), "one")  # type: ignore[arg-type]


class Rootless:
    """An engine that an ordinary user runs."""

    def version(self) -> dict[str, object]:
        return {"Version": "4.3.1", "Components": [{"Name": "Podman Engine"}]}

    def info(self) -> dict[str, object]:
        return {"SecurityOptions": ["name=seccomp,profile=default", "name=rootless"]}


def test_an_engine_without_root_is_refused_in_one_line(tmp_path: Path) -> None:
    runtime = Docker(tmp_path)
    runtime.client = Rootless()  # type: ignore[assignment]
    (check,) = runtime.check()
    assert (check.ok, check.message) == (False, "it runs without root, and so has no users to give to payloads")
    run = Run("one", ("true",), tmp_path, tmp_path, uid=70000)
    with pytest.raises(NodeError, match="runs without root"):
        runtime.start(run)
    assert list(tmp_path.iterdir()) == []

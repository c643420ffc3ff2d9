"""Which runtime a task's own tags allow."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kolejka.common.errors import InputError
from kolejka.common.task import Task
from kolejka.worker.runtimes.choose import choose

HAVE: Any = SimpleNamespace(has=lambda _image: True)
RUNTIMES: Any = {name: SimpleNamespace(name=name, images=HAVE) for name in ("sandbox", "docker")}


def chosen(name: str, *tags: str) -> str:
    runtime, _ = choose(name, Task(("x",), image="ubuntu", requires=tags), RUNTIMES)
    return runtime.name


def test_a_tag_of_a_runtime_decides_what_auto_takes() -> None:
    assert chosen("auto") == "sandbox"
    assert chosen("auto", "runtime:docker", "gpu") == "docker"
    assert chosen("docker", "runtime:docker") == "docker"


@pytest.mark.parametrize(("name", "tags"), [("sandbox", ["runtime:docker"]),
                                            ("auto", ["runtime:docker", "runtime:sandbox"])])  # fmt: skip
def test_another_runtime_than_the_tag_names_is_never_used(name: str, tags: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        chosen(name, *tags)
    assert caught.value.field == "requires"

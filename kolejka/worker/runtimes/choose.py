"""Which runtime runs a task here: the one that was asked for, or with ``auto`` the first that can, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kolejka.common.errors import InputError, KolejkaError
from kolejka.common.task import Task
from kolejka.worker.runtimes.base import Runtime

TAG: Final = "runtime:"
"""In front of a runtime's name: the tag of a node on which it works."""


def choose(name: str, task: Task, runtimes: Mapping[str, Runtime]) -> tuple[Runtime, str]:
    """The runtime and the reason in words. InputError names the field that no runtime here can serve.

    A task that requires the tag of one runtime gets that one or none.
    """
    wanted = {tag.removeprefix(TAG) for tag in task.requires if tag.startswith(TAG)}
    if wanted:
        if len(wanted) > 1 or (name != "auto" and name not in wanted):
            raise InputError(f"it requires the runtime {' and '.join(sorted(wanted))}, and {name} is used here",
                             field="requires")  # fmt: skip
        (name,) = wanted
    if name != "auto":
        if name not in runtimes:
            raise InputError(f"there is no runtime {name!r}; the runtimes are {', '.join(runtimes)}", field="runtime")
        runtime = runtimes[name]
        if task.image is None and name == "docker":
            raise InputError(
                "the docker runtime needs an image; name one, or run with --runtime sandbox", field="image"
            )
        if task.image is not None and not runtime.images.has(task.image):
            raise missing_image(task.image, [name])
        return runtime, "asked for"
    if task.image is None:
        return runtimes["sandbox"], "the task names no image"
    problem: KolejkaError | None = None
    for candidate, runtime in runtimes.items():
        try:
            if runtime.images.has(task.image):
                return runtime, f"{candidate} has the image {task.image}"
        except KolejkaError as error:
            problem = error
    missing = missing_image(task.image, list(runtimes))
    if problem is not None:
        missing = InputError(f"{missing.message} (and {problem})", field="image", code=missing.code)
    raise missing


def missing_image(image: str, runtimes: list[str]) -> InputError:
    """The error for an image that is not here, with the ways to get it."""
    cures = {
        "sandbox": f"`kolejka-worker image import {image} ARCHIVE`",
        "docker": f"`docker pull {image}`",
    }
    ways = " or ".join(cures[name] for name in runtimes if name in cures) or "another image"
    return InputError(f"there is no image {image!r} on this node; get it with {ways}", field="image", code="no_image")

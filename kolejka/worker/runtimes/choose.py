"""Which runtime runs a task here: the one that was asked for, or with ``auto`` the first that can, and why."""

from __future__ import annotations

from collections.abc import Mapping

from kolejka.common.errors import InputError, KolejkaError
from kolejka.common.task import Task
from kolejka.worker.runtimes.base import Runtime


def choose(name: str, task: Task, runtimes: Mapping[str, Runtime]) -> tuple[Runtime, str]:
    """The runtime and the reason in words. InputError names the field that no runtime here can serve."""
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

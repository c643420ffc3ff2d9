"""``queue``: list, show, create, change, delete; pause, resume, drain."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from kolejka.client.cli.connection import connected, seconds
from kolejka.client.cli.each import each
from kolejka.client.cli.output import JSON, Output, field, printed
from kolejka.client.client import KolejkaClient
from kolejka.common.errors import InputError
from kolejka.common.limits import LIMITS, Limits

COLUMNS = (
    ("NAME", field("name")),
    ("STATE", field("state")),
    ("MEMBERS", lambda queue: " ".join(map(str, queue.get("members") or [])) or "everybody"),
    ("RUNNING", lambda queue: _at_most(queue.get("running"))),
    ("EACH", lambda queue: _at_most(queue.get("running_per_owner"))),
)
NOTHING = "none"
ANY_IMAGE = "any"
"""What empties the list of images, where ``none`` stands for tasks without one."""
Command = Callable[..., Any]


def _at_most(ceiling: Any) -> str:
    return "any number" if ceiling is None else f"at most {ceiling}"


@click.group()
def queue() -> None:
    """See the queues in which tasks wait, and set what is allowed there (for admins).

    An open queue takes tasks and gives them to nodes; a paused one takes tasks and gives none; a draining one gives
    what it has and takes none.
    """


def _policy_options(command: Command) -> Command:
    """Options for a queue's policy; the command gets ``policy`` with those that were given."""

    @functools.wraps(command)
    def wrapped(
        *args: Any, members: Sequence[str], images: Sequence[str], runtimes: Sequence[str], defaults: Sequence[str],
        ceilings: Sequence[str], running: str | None, running_per_owner: str | None, retention: str | None,
        **words: Any,
    ) -> Any:  # fmt: skip
        policy: dict[str, Any] = {
            "members": _names(members), "images": _names(images, ANY_IMAGE), "runtimes": _names(runtimes),
            "defaults": _limits("--default", defaults), "ceilings": _limits("--ceiling", ceilings),
        }  # fmt: skip
        for name, text in (("running", running), ("running_per_owner", running_per_owner)):
            policy[name] = _number("--" + name.replace("_", "-"), text)
        policy["retention_s"] = "" if retention == NOTHING else seconds("--retention", retention)
        given = {name: value for name, value in policy.items() if value is not None}
        return command(*args, policy={name: None if value == "" else value for name, value in given.items()}, **words)

    for option, metavar, text in reversed((
        ("--member", "USER", "who may put tasks (repeatable; none = everybody)"),
        ("--image", "PATTERN", "images of tasks, such as 'ubuntu:*', none = no image (repeatable; any = any)"),
        ("--runtime", "NAME", "runtimes that may run tasks: sandbox or docker (repeatable; none = any)"),
        ("--default", "LIMIT=VALUE", "limit of tasks that set none of their own (repeatable; none = no default)"),
        ("--ceiling", "LIMIT=VALUE", "limit that no task exceeds (repeatable; none = no ceiling)"),
    )):  # fmt: skip
        wrapped = click.option(option, option[2:] + "s", metavar=metavar, multiple=True, help=text)(wrapped)
    for option, metavar, text in reversed((
        ("--running", "N", "tasks that run at one time at most (none = any number)"),
        ("--running-per-owner", "N", "tasks of one owner that run in it at one time at most (none = any number)"),
        ("--retention", "TIME", "how long done tasks are kept, such as 30d (none = until they are deleted)"),
    )):  # fmt: skip
        wrapped = click.option(option, metavar=metavar, help=text)(wrapped)
    return wrapped


def _names(given: Sequence[str], nothing: str = NOTHING) -> list[str] | None:
    if not given:
        return None
    return [] if list(given) == [nothing] else list(given)


def _number(option: str, text: str | None) -> int | str | None:
    if text is None:
        return None
    if text == NOTHING:
        return ""
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise InputError(f"{text!r} is not a whole number; write digits only, or {NOTHING}", field=option)
    return int(text)


def _limits(option: str, given: Sequence[str]) -> Mapping[str, Any] | None:
    if not given:
        return None
    if list(given) == [NOTHING]:
        return {}
    pairs = [text.partition("=") for text in given]
    for text, (name, equals, _) in zip(given, pairs, strict=True):
        if not equals or name not in LIMITS:
            raise InputError(f"{text!r} is no limit; write LIMIT=VALUE, such as memory=1G", field=option)
    try:
        return Limits.parse({name: value for name, _, value in pairs}).to_json()
    except InputError as error:
        raise error.within(option) from None


@queue.command("list")
@printed
@connected
def list_queues(client: KolejkaClient, output: Output) -> None:
    """List the queues: their state, who may put tasks, how many may run."""
    output.listing(client.queues(), COLUMNS, key="name")


@queue.command("show")
@click.argument("name")
@printed
@connected
def show(client: KolejkaClient, name: str, output: Output) -> None:
    """Show a queue: everything that is set for it."""
    output.thing(client.queue(name), key="name")


@queue.command("create")
@click.argument("name")
@_policy_options
@printed
@connected
def create(client: KolejkaClient, name: str, policy: Mapping[str, Any], output: Output) -> None:
    """Make a queue (for admins).

    \b
    Examples:
      kolejka-client queue create exam --member ala --member ola --ceiling time=1min --running 8
      kolejka-client queue create night --image 'ubuntu:*' --default memory=4G --retention 30d
    """
    output.thing(client.create_queue(name, policy), key="name")


@queue.command("change")
@click.argument("name")
@_policy_options
@printed
@connected
def change(client: KolejkaClient, name: str, policy: Mapping[str, Any], output: Output) -> None:
    """Change what is given, and leave the rest of a queue as it is (for admins).

    An option that may be repeated replaces the whole list; the word none empties it, for images the word any.
    Tasks that wait already keep the limits that they have.

    \b
    Example:
      kolejka-client queue change exam --running 16 --member none
    """
    if not policy:
        raise InputError("say what to change; `kolejka queue change --help` lists the options")
    output.thing(client.change_queue(name, policy), key="name")


@queue.command("delete")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@JSON
@connected
def delete(client: KolejkaClient, names: Sequence[str], *, as_json: bool) -> int:
    """Delete queues in which no task waits or runs (for admins)."""

    def forget(name: str) -> dict[str, Any]:
        client.delete_queue(name)
        return {"name": name, "deleted": True}

    return each(names, forget, Output(as_json).notes)


def _state_command(word: str, state: str, text: str) -> None:
    @queue.command(word, help=text)
    @click.argument("names", metavar="NAME...", nargs=-1, required=True)
    @printed
    @connected
    def move(client: KolejkaClient, names: Sequence[str], output: Output) -> int:
        return each(
            names, lambda name: client.change_queue(name, {"state": state}),
            lambda queues: output.listing(queues, COLUMNS, key="name"),
        )  # fmt: skip


_state_command("pause", "paused", "Have queues take tasks and give none (for admins). What runs goes on.")
_state_command("resume", "open", "Have queues take tasks and give them again (for admins).")
_state_command("drain", "draining", "Have queues give what they have and take no more tasks (for admins).")

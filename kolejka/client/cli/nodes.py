"""``node``: list, show, approve, refuse, drain, resume, reboot, delete, log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import click

from kolejka.client.cli.connection import connected
from kolejka.client.cli.each import each
from kolejka.client.cli.output import JSON, Output, field, limits_in_words, moment, printed
from kolejka.client.client import KolejkaClient
from kolejka.client.transport import printable
from kolejka.common.enrolment import approval
from kolejka.common.errors import NotAllowed, NotFound

UNAPPROVED: Final = "unapproved"
COLUMNS = (
    ("NAME", field("name")),
    ("STATE", field("state")),
    ("RUNNING", field("busy")),
    ("FREE", lambda node: limits_in_words(node.get("capacity") or {})),
    ("SEEN", moment("last_seen")),
    ("IMAGE", lambda node: (node.get("image") or {}).get("version")),
    ("REMARK", lambda node: node.get("remark") or node.get("asked") or node.get("reason")),
)
ENROLMENT_COLUMNS = (
    ("NAME", field("name")), ("FINGERPRINT", field("fingerprint")), ("STATE", field("state")),
    ("SEEN", moment("seen_at")),
)  # fmt: skip
FINGERPRINT = click.option("--fingerprint", metavar="F", help="the machine with this fingerprint on its screen")


def unapproved(client: KolejkaClient) -> list[dict[str, Any]]:
    """The machines that wait to be let in, as rows beside the nodes; none for who may not see them."""
    try:
        found = [one for one in client.enrolments() if one.get("state") != "refused"]
    except (NotAllowed, NotFound):  # a user who only puts tasks, or a server of before
        return []
    asking = Counter(one.get("name") for one in found if one.get("state") == "waiting")
    return [_row(one, alone=asking[one.get("name")] == 1) for one in found]


def _row(one: dict[str, Any], *, alone: bool) -> dict[str, Any]:
    name, shown = str(one.get("name")), str(one.get("fingerprint"))
    remark = f"fingerprint {shown}; let it in: {approval(name, '' if alone else shown)}"
    if one.get("state") == "approved":
        remark = f"fingerprint {shown}; approved, it fetches its token"
    return {
        "name": name, "state": UNAPPROVED, "tags": [], "total": {}, "capacity": {}, "first_seen": one.get("asked_at"),
        "last_seen": one.get("seen_at"), "asked": None, "busy": 0, "running": [], "fingerprint": shown,
        "remark": remark,
    }  # fmt: skip


@click.group()
def node() -> None:
    """See the nodes that run tasks, let them in, let them rest."""


@node.command("list")
@printed
@connected
def list_nodes(client: KolejkaClient, output: Output) -> None:
    """List the nodes: their state, how many tasks they run, what they have free.

    Machines that ask to be let in are shown (to admins and inspectors) with their fingerprint and what to do.
    """
    output.listing([*client.nodes(), *unapproved(client)], COLUMNS, key="name")


@node.command("show")
@click.argument("name")
@printed
@connected
def show(client: KolejkaClient, name: str, output: Output) -> None:
    """Show a node: its state, tags and capacity, the tasks it runs, its image, its last errors, what it proved."""
    node = client.node(name)
    if output.as_json or output.quiet:
        output.thing(node, key="name")
        return
    proof, errors = node.pop("proof", None), node.pop("errors", None) or []
    output.thing(node, key="name")
    if proof:
        checks = list(proof.get("checks") or [])
        broken = [check for check in checks if check.get("held") is False]
        click.echo(f"\nproof of {printable(proof.get('at'))[:19]}: {'passed' if proof.get('passed') else 'FAILED'}")
        for check in broken or checks:
            held = {True: "held", False: "BROKEN"}.get(check.get("held"), "not tried")
            words = " ".join(str(check.get(name) or "") for name in ("runtime", "limit"))
            click.echo(f"  {held:<9}  {printable(words)}  {printable(check.get('message') or '')}".rstrip())
    if errors:
        click.echo("\nlast errors")
        for error in errors:
            click.echo(f"  {printable(error.get('at'))[:19]}  {printable(error.get('message'))}")


@node.command("approve")
@click.argument("name")
@FINGERPRINT
@printed
@connected
def approve(client: KolejkaClient, name: str, *, fingerprint: str | None, output: Output) -> None:
    """Let a machine in that asks to be a node (for admins). It gets a token of its own.

    Compare the fingerprint with the one on the machine's screen first. It must be given where several machines ask
    under the name, or a node of the name is at work.
    """
    output.listing([client.approve_node(name, fingerprint)], ENROLMENT_COLUMNS, key="name")


@node.command("refuse")
@click.argument("name")
@FINGERPRINT
@printed
@connected
def refuse(client: KolejkaClient, name: str, *, fingerprint: str | None, output: Output) -> None:
    """Refuse all machines that ask under a name, or the one with the fingerprint (for admins)."""
    output.listing(client.refuse_node(name, fingerprint), ENROLMENT_COLUMNS, key="fingerprint")


@node.command("drain")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@printed
@connected
def drain(client: KolejkaClient, names: Sequence[str], output: Output) -> int:
    """Ask nodes to take no more tasks (for admins). What runs there ends by itself.

    The foreman stays and says so; `node resume` lets it go on. A node that is quarantined could not kill a payload:
    its administrator looks, and restarts its foreman.
    """
    return each(names, client.drain_node, lambda nodes: output.listing(nodes, COLUMNS, key="name"))


@node.command("reboot")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--when-idle", is_flag=True, help="let what runs there end first")
@printed
@connected
def reboot(client: KolejkaClient, names: Sequence[str], *, when_idle: bool, output: Output) -> int:
    """Ask nodes to boot anew (for admins), into a new image say.

    They take no more tasks, give back what runs (with --when-idle they let it end), bring their results to the server,
    and reboot. `node resume` takes the word back. Whoever was asked to drain drains after the reboot, too.
    """
    return each(
        names, lambda name: client.reboot_node(name, when_idle=when_idle),
        lambda nodes: output.listing(nodes, COLUMNS, key="name"),
    )  # fmt: skip


@node.command("delete")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@JSON
@connected
def delete(client: KolejkaClient, names: Sequence[str], *, as_json: bool) -> int:
    """Forget nodes that are silent and will not come back (for admins).

    Their tokens stay; `token revoke` ends them. A node that is heard again is in the list again.
    """

    def forget(name: str) -> dict[str, Any]:
        client.delete_node(name)
        return {"name": name, "deleted": True}

    return each(names, forget, Output(as_json).notes)


@node.command("log")
@click.argument("name")
@click.option("-n", "--lines", type=click.IntRange(1, 10_000), default=200, show_default=True, help="how many lines")
@JSON
@connected
def log(client: KolejkaClient, name: str, *, lines: int, as_json: bool) -> None:
    """Print the last lines of a node's log (for admins): the journal's of its Kolejka units, or its foreman's own."""
    text = client.node_log(name, lines=lines)
    if as_json:
        Output(as_json=True).thing({"node": name, "lines": text.splitlines()}, key="node")
        return
    for line in text.splitlines():
        click.echo(printable(line, 4000))


@node.command("resume")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@printed
@connected
def resume(client: KolejkaClient, names: Sequence[str], output: Output) -> int:
    """Ask nodes that drain or wait for a reboot to take tasks again (for admins)."""
    return each(names, client.resume_node, lambda nodes: output.listing(nodes, COLUMNS, key="name"))

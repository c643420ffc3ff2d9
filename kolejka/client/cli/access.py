"""``login``, ``whoami``, ``token``, ``user``, ``audit``, ``callback``: who may do what, and who did."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from kolejka.cli.options import settings_options
from kolejka.client.cli.connection import connected, seconds
from kolejka.client.cli.each import each
from kolejka.client.cli.output import JSON, Output, field, moment, printed
from kolejka.client.client import KolejkaClient
from kolejka.client.credentials import find_token, store_credential
from kolejka.client.transport import printable, server_url
from kolejka.common.errors import InputError
from kolejka.common.settings import ClientSettings

ROLES = ("client", "node", "inspector", "admin")
ROLE = click.Choice(ROLES)
TOKEN_COLUMNS = (
    ("ID", field("id")), ("USER", field("user")), ("ROLE", field("role")), ("NAME", field("name")),
    ("MADE", moment("created_at")), ("EXPIRES", moment("expires_at")), ("SCOPE", lambda token: _scope(token)),
)  # fmt: skip
AUDIT_COLUMNS = (
    ("AT", moment("at")), ("USER", field("user")), ("TOKEN", field("token")), ("ACT", field("act")),
    ("TARGET", field("target")),
    ("DETAIL", lambda act: " ".join(f"{key}={value}" for key, value in dict(act.get("detail") or {}).items())),
)  # fmt: skip
USER_COLUMNS = (("NAME", field("name")), ("ROLE", field("role")))


def _scope(token: Mapping[str, Any]) -> str:
    scope = dict(token.get("scope") or {})
    return " ".join([*scope.get("queues", []), *(["read-only"] if scope.get("read_only") else [])])


@click.command()
@click.option("--forget", is_flag=True, help="forget the token that is kept for the server")
@JSON
@settings_options(ClientSettings, without=("patience", "direct"))
def login(client: ClientSettings, *, forget: bool, as_json: bool) -> None:
    """Keep a token for a server, so that all further commands find it.

    Asks for the token, or reads it from standard input or --token-file; it never stands on the command line, where
    others could see it. The token is tried before it is kept, in a file that only you can read.

    \b
    Examples:
      kolejka-client login --server https://kolejka.example
      kolejka-client login --server https://kolejka.example < token.txt
    """
    server = server_url(client.server)
    output = Output(as_json)
    if forget:
        path = store_credential(server, None)
        if as_json:
            output.thing({"server": server, "file": str(path), "kept": False}, key="server")
        else:
            click.echo(f"no token for {server} in {path} any more")
        return
    if client.token_file:
        token = find_token(client).value or ""
    elif sys.stdin.isatty():
        token = str(click.prompt(f"token for {server}", hide_input=True, err=True)).strip()
    else:
        token = sys.stdin.readline(4096).strip()
    if not token:
        raise InputError("no token was given; an admin makes one with `kolejka token create`", field="token")
    with KolejkaClient(client, token=token) as opened:
        me = opened.whoami()
    path = store_credential(server, token)
    if as_json:
        output.thing({**me, "server": server, "file": str(path), "kept": True}, key="server")
    else:
        click.echo(f"you are {printable(me.get('user'))} ({printable(me.get('role'))}) at {server}; kept in {path}")


@click.command()
@printed
@connected
def whoami(client: KolejkaClient, output: Output) -> None:
    """Show who your token speaks for, and with which role."""
    output.thing({**client.whoami(), "server": client.server}, key="user")


@click.group()
def token() -> None:
    """Make and revoke tokens (for admins)."""


@token.command("create")
@click.option("--user", required=True, metavar="NAME", help="whom the token speaks for")
@click.option("--role", type=ROLE, help="what it may do; at most what the user may [default: the user's role]")
@click.option("--name", metavar="TEXT", help="what it is for, to know it again in the list")
@click.option("--expires", metavar="TIME", help="after how long it ends, such as 12h or 90d [default: never]")
@click.option("--queue", "queues", metavar="NAME", multiple=True, help="narrow it to tasks of this queue (repeatable)")
@click.option("--read-only", is_flag=True, help="narrow it to reading")
@JSON
@connected
def create_token(
    client: KolejkaClient, *, user: str, role: str | None, name: str | None, expires: str | None,
    queues: Sequence[str], read_only: bool, as_json: bool,
) -> None:  # fmt: skip
    """Make a token and print it. It is shown this once and cannot be shown again.

    \b
    Examples: a token for the foreman of a node; one for a page that shows the tasks of one queue
      kolejka-client token create --user node1 --role node > node.token
      kolejka-client token create --user web --queue exams --read-only --expires 90d
    """
    made = client.create_token(
        user, role=role, name=name, expires_s=seconds("--expires", expires), queues=queues, read_only=read_only
    )
    if as_json:
        Output(as_json=True).thing(made, key="token")
    else:
        click.echo(printable(made.get("token", "")))


@token.command("list")
@printed
@connected
def list_tokens(client: KolejkaClient, output: Output) -> None:
    """List all tokens, without their secrets."""
    output.listing(client.tokens(), TOKEN_COLUMNS, key="id")


@token.command("revoke")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@JSON
@connected
def revoke(client: KolejkaClient, ids: Sequence[str], *, as_json: bool) -> int:
    """End tokens at once. `token list` shows the ids."""

    def end(token_id: str) -> dict[str, Any]:
        client.revoke_token(token_id)
        return {"id": token_id, "revoked": True}

    return each(ids, end, Output(as_json).notes)


@click.group()
def user() -> None:
    """Make and list users (for admins)."""


@user.command("create")
@click.argument("name")
@click.option("--role", type=ROLE, default="client", show_default=True, help="what the user may do")
@printed
@connected
def create_user(client: KolejkaClient, name: str, *, role: str, output: Output) -> None:
    """Make a user. `token create --user NAME` then makes the token to hand out."""
    output.thing(client.create_user(name, role), key="name")


@user.command("list")
@printed
@connected
def list_users(client: KolejkaClient, output: Output) -> None:
    """List all users."""
    output.listing(client.users(), USER_COLUMNS, key="name")


@click.command()
@click.option("--user", metavar="NAME", help="only what this user did")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="how many at most")
@printed
@connected
def audit(client: KolejkaClient, *, user: str | None, limit: int, output: Output) -> None:
    """List what admins did, newest first (for admins and inspectors)."""
    output.listing(client.audit(user=user, limit=limit), AUDIT_COLUMNS, key="id")


@click.group()
def callback() -> None:
    """Be called back when a task is done: its "callback_url" names the address."""


@callback.command("secret")
@JSON
@connected
def secret(client: KolejkaClient, *, as_json: bool) -> None:
    """Make the key that signs your callbacks and print it; any earlier one ends. It is shown this once.

    Each callback has the headers Kolejka-Timestamp and Kolejka-Signature. The signature is `sha256=` and the
    HMAC-SHA256, under this key, of the timestamp, a dot and the body.
    """
    made = client.make_callback_secret()
    if as_json:
        Output(as_json).thing({"secret": made}, key="secret")
    else:
        click.echo(printable(made))

"""``blob``: put, get, list, delete."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from kolejka.client.cli.connection import connected
from kolejka.client.cli.each import each
from kolejka.client.cli.output import JSON, Output, field, moment, printed
from kolejka.client.client import KolejkaClient
from kolejka.common.errors import InputError
from kolejka.common.files import check_reference
from kolejka.common.units import show_size

COLUMNS = (
    ("SHA256", field("sha256")), ("SIZE", lambda blob: show_size(int(blob["size"]))),
    ("TASKS", field("references")), ("UPLOADED", moment("created_at")),
)  # fmt: skip


@click.group()
def blob() -> None:
    """Store and fetch bytes named by their SHA-256.

    A task can refer to a stored blob instead of a local file: "files": {"input": {"reference": "…64 digits…"}}.
    """


@blob.command("put")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@JSON
@connected
def put(client: KolejkaClient, files: Sequence[str], *, as_json: bool) -> None:
    """Store files (`-` is standard input) and print their SHA-256, one a line. What the server has is not sent again.

    \b
    Examples:
      kolejka-client blob put data.tar
      tar c data | kolejka-client blob put -
    """
    for file in files:
        if file != "-" and not Path(file).is_file():
            what = "this is not a regular file" if os.path.lexists(file) else "there is no such file"
            raise InputError(what, field=file)
    stored = []
    for file in files:
        reference = client.put_blob(sys.stdin.buffer if file == "-" else file)
        stored.append({"file": file, "sha256": reference})
        if not as_json:
            click.echo(reference)
    Output(as_json).notes(stored)


@blob.command("get")
@click.argument("reference", metavar="SHA256")
@click.argument("file", metavar="FILE")
@click.option("--force", is_flag=True, help="replace FILE if it exists")
@JSON
@connected
def get(client: KolejkaClient, reference: str, file: str, *, force: bool, as_json: bool) -> None:
    """Write the blob SHA256 to FILE, whole or not at all."""
    check_reference(reference)
    if os.path.isdir(file):
        raise InputError("this is a folder; name a file in it", field=file)
    if os.path.lexists(file) and not force:
        raise InputError("this exists; add --force to replace it", field=file)
    if not Path(file).absolute().parent.is_dir():
        raise InputError("there is no folder to write it in; make that first", field=file)
    client.get_blob(reference, file)
    if as_json:
        Output(as_json).thing({"file": file, "sha256": reference}, key="sha256")


@blob.command("list")
@printed
@connected
def list_blobs(client: KolejkaClient, output: Output) -> None:
    """List the blobs that you uploaded, and how many of your tasks refer to each."""
    output.listing(client.blobs(), COLUMNS, key="sha256")


@blob.command("delete")
@click.argument("references", metavar="SHA256...", nargs=-1, required=True)
@JSON
@connected
def delete(client: KolejkaClient, references: Sequence[str], *, as_json: bool) -> int:
    """Forget that you uploaded blobs. Tasks that refer to them keep them.

    The server removes bytes that nobody needs any more by itself, after a grace; see its setting blob_grace.
    """
    for reference in references:
        check_reference(reference)

    def forget(reference: str) -> dict[str, Any]:
        client.delete_blob(reference)
        return {"sha256": reference, "deleted": True}

    return each(references, forget, Output(as_json).notes)

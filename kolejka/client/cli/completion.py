"""``completion``: what makes a shell complete the commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that makes your shell complete these commands.

    \b
    bash:  kolejka-client completion bash > ~/.local/share/bash-completion/completions/kolejka-client
    zsh:   kolejka-client completion zsh > ~/.zfunc/_kolejka-client    (a folder in fpath)
    fish:  kolejka-client completion fish > ~/.config/fish/completions/kolejka-client.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # the choices are click's own
    root = context.find_root().command
    click.echo(kind(root, {}, "kolejka-client", "_KOLEJKA_CLIENT_COMPLETE").source())

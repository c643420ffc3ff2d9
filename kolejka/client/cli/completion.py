"""``completion``: what makes a shell complete the commands."""

from __future__ import annotations

from kolejka.cli.completion import completion_command

completion = completion_command("kolejka-client")

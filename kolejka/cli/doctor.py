"""Printing what ``doctor`` found: ``ok``, ``MISS`` (required), ``warn``, or ``none`` (nobody set it up here)."""

from __future__ import annotations

import json
from collections.abc import Iterable

import click

from kolejka.common.checks import Check


def report(checks: Iterable[Check], *, as_json: bool) -> int:
    """Print the checks, for a person or as JSON, and return the exit status: 0 unless something required is missing."""
    checks = list(checks)
    if as_json:
        click.echo(json.dumps([check.to_json() for check in checks], indent=2))
    else:
        for check in checks:
            mark = "ok  " if check.ok else "MISS" if check.required else "none" if check.absent else "warn"
            click.echo(f"{mark} {check.check}: {check.message}")
            if not check.ok and check.cure:
                click.echo(f"     cure: {check.cure}")
    return 0 if all(check.ok or not check.required for check in checks) else 1

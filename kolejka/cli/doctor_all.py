"""The doctors of all programs, asked side by side and heard as one."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from kolejka.cli.programs import NOT_INSTALLED, PROGRAMS, install, program
from kolejka.common.checks import Check

PATIENCE_S = 60.0
NODE_PARTS = ("worker", "foreman", "observer")
"""programs of a node, which its administrator sets up: an ordinary user's machine need not be one"""


def checks(
    names: Sequence[str] = PROGRAMS, environment: Mapping[str, str] | None = None, uid: int | None = None
) -> list[Check]:
    """What the doctors of these programs find, each check named after its program.

    What is not installed or not set up here is no fault: a machine need not play every part. What a node needs cannot
    be told by an ordinary user (``uid``, by default ours), who lacks the rights that a node's programs have.
    """
    ordinary = (os.geteuid() if uid is None else uid) != 0
    asked = {
        name: subprocess.Popen(
            program(name, "doctor", "--json"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, errors="replace", env=None if environment is None else dict(environment),
        )
        for name in names
    }  # fmt: skip
    return [
        _of_ordinary(check) if ordinary and name in NODE_PARTS else check
        for name, process in asked.items()
        for check in _heard(name, process)
    ]


def _of_ordinary(check: Check) -> Check:
    """The check of a node's part as an ordinary user sees it."""
    if check.ok:
        return check
    return dataclasses.replace(
        check, required=False, absent=True, cure=f"only for a node; there, as root: {check.cure or 'kolejka doctor'}"
    )


def _heard(name: str, process: subprocess.Popen[str]) -> Iterator[Check]:
    try:
        out, err = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        yield Check(name, ok=False, message=f"its doctor does not answer within {PATIENCE_S:g} s")
        return
    try:
        found = [
            Check(f"{name}: {data['check']}", bool(data["ok"]), str(data["message"]), data.get("cure"),
                  bool(data.get("required", True)) and not data.get("absent"), bool(data.get("absent")))
            for data in json.loads(out)
        ]  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError):
        yield _silent(name, err)
    else:
        yield from found


def _silent(name: str, err: str) -> Check:
    """A doctor that said nothing sensible: its program is not installed, or broken."""
    last = err.strip().splitlines()[-1] if err.strip() else "it said nothing"
    if NOT_INSTALLED in last or "ModuleNotFoundError" in last:
        lacks = last.partition(": ")[2].partition(f" {NOT_INSTALLED}")[0]
        return Check(name, ok=False, message=f"not installed here: {lacks}", cure=install(name),
                     required=False, absent=True)  # fmt: skip
    return Check(name, ok=False, message=f"its doctor fails: {last}")

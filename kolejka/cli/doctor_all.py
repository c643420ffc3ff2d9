"""The doctors of all programs, asked side by side and heard as one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from kolejka.cli.programs import PROGRAMS, program
from kolejka.common.checks import Check

PATIENCE_S = 60.0


def checks(names: Sequence[str] = PROGRAMS, environment: Mapping[str, str] | None = None) -> list[Check]:
    """What the doctors of these programs find, each check named after its program.

    What is not installed or not set up here is no fault: a machine need not play every part.
    """
    asked = {
        name: subprocess.Popen(
            program(name, "doctor", "--json"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, errors="replace", env=None if environment is None else dict(environment),
        )
        for name in names
    }  # fmt: skip
    return [check for name, process in asked.items() for check in _heard(name, process)]


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
    if "ModuleNotFoundError" in last:
        extra = {"client": "client", "server": "server"}.get(name, "node")
        return Check(name, ok=False, message=f"not installed here: {last.partition(': ')[2]}",
                     cure=f"pip install 'kolejka[{extra}]'", required=False, absent=True)  # fmt: skip
    return Check(name, ok=False, message=f"its doctor fails: {last}")

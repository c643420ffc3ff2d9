"""Compile init.c for every machine it knows and write init.py: ``python -m kolejka.worker.runtimes.build_init``.

Needs gcc for each machine (Debian: gcc, gcc-aarch64-linux-gnu). Only whoever changes init.c runs this.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import tempfile
import zlib
from pathlib import Path
from typing import Final

COMPILERS: Final = {"x86_64": "x86_64-linux-gnu-gcc", "aarch64": "aarch64-linux-gnu-gcc"}
OPTIONS: Final = [
    *("-Os", "-Wall", "-Wextra", "-Werror", "-static", "-nostdlib", "-ffreestanding", "-fno-pie", "-no-pie", "-s"),
    *("-fno-stack-protector", "-fno-asynchronous-unwind-tables"),
    "-Wl,--build-id=none,-z,noseparate-code,-z,norelro,-n",
]
HERE: Final = Path(__file__).parent


def build(machine: str) -> bytes:
    """The program for one machine. CalledProcessError when it does not compile."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "init"
        subprocess.run([COMPILERS[machine], *OPTIONS, "-o", program, HERE / "init.c"], check=True)
        return program.read_bytes()


def main() -> None:
    """Write init.py."""
    source = hashlib.sha256((HERE / "init.c").read_bytes()).hexdigest()
    entries = []
    for machine in COMPILERS:
        text = base64.b85encode(zlib.compress(build(machine), 9)).decode()
        lines = "\n".join(f"        {text[at : at + 100]!r}" for at in range(0, len(text), 100))
        entries.append(f'    "{machine}": (\n{lines}\n    ),\n')
    head = (HERE / "init.py").read_text().split("# --- written")[0]
    body = f'SOURCE: Final = "{source}"\nPROGRAMS: Final = {{\n{"".join(entries)}}}\n'
    (HERE / "init.py").write_text(f"{head}# --- written by build_init.py from init.c; do not edit below\n{body}")


if __name__ == "__main__":
    main()

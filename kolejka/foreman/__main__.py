"""``python -m kolejka.foreman``."""

from kolejka.foreman.cli import run

run()

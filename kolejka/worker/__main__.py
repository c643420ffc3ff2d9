"""``python -m kolejka.worker`` is ``kolejka-worker``."""

from kolejka.worker.cli import run

run()

"""``python -m kolejka.observer``."""

from kolejka.observer.cli import run

run()

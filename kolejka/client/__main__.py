"""``python -m kolejka.client`` is ``kolejka-client``."""

from kolejka.client.cli.main import run

run()

"""procrastinate's side of ``peers.py``."""

from __future__ import annotations

import os

from procrastinate import App, PsycopgConnector

app = App(connector=PsycopgConnector(conninfo=os.environ["KOLEJKA_BENCH_BROKER"]))


@app.task
def noop() -> None:
    """Nothing."""

"""Celery's side of ``peers.py``."""

from __future__ import annotations

import os

from celery import Celery

app = Celery("noop", broker=os.environ["KOLEJKA_BENCH_BROKER"], backend=os.environ["KOLEJKA_BENCH_BROKER"])


@app.task
def noop() -> None:
    """Nothing."""

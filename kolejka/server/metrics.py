"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections import Counter as Counted
from collections.abc import Iterable, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kolejka.server.counts import Counts

_CLAIM_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_WAIT_S: Final = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600, 86400)
_SHARES: Final = ("cpus", "memory")


class _Found(Collector):
    """Metrics that are there already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


class Metrics:
    """What this process counts, or with ``counts`` all processes of this server; gauges are read when somebody asks."""

    def __init__(self, counts: Counts | None = None) -> None:
        self._counts = counts
        if counts is not None:
            counts.install()
        self._registry = CollectorRegistry()
        registry = self._registry
        self.requests = Counter(
            "kolejka_requests", "HTTP requests answered", ["method", "route", "status"], registry=registry
        )
        self.put = Counter("kolejka_tasks_put", "tasks accepted", registry=registry)
        self.given = Counter("kolejka_attempts_given", "attempts given to nodes", registry=registry)
        self.results = Counter("kolejka_results", "results accepted, by outcome", ["outcome"], registry=registry)
        self.refused = Counter(
            "kolejka_results_refused", "results refused: their lease was overtaken", registry=registry
        )
        self.lost = Counter("kolejka_attempts_lost", "attempts taken back, by reason", ["reason"], registry=registry)
        self.claim_s = Histogram(
            "kolejka_claim_seconds", "looking for a node's tasks, one look", buckets=_CLAIM_S, registry=registry
        )
        self.wait_s = Histogram(
            "kolejka_task_wait_seconds", "from a task's putting to an attempt at it", buckets=_WAIT_S, registry=registry
        )
        self.callbacks = Counter("kolejka_callbacks", "callbacks, by end of the try", ["end"], registry=registry)
        self.claims = Gauge("kolejka_claims_waiting", "claims that wait for a task", registry=registry)
        self.claims.set(0)  # whatever this process's predecessor had

    def text(self, depth: Iterable[tuple[str, str, int]], nodes: Iterable[Mapping[str, Any]]) -> bytes:
        """The exposition, with the gauges as they are now. ``nodes`` are the nodes as listings show them.

        What a silent node said last is no news: its share of use is left out.
        """
        told = CollectorRegistry()
        told.register(self._registry if self._counts is None else _Found(self._counts.collect(self._registry)))
        told.register(_Found(_gauges(depth, nodes)))
        return generate_latest(told)


def _gauges(depth: Iterable[tuple[str, str, int]], nodes: Iterable[Mapping[str, Any]]) -> list[Metric]:
    """What the database says."""
    tasks = GaugeMetricFamily("kolejka_tasks", "tasks by queue and state", labels=["queue", "state"])
    states = GaugeMetricFamily("kolejka_nodes", "nodes by state", labels=["state"])
    busy = GaugeMetricFamily("kolejka_node_tasks", "tasks that run on the node", labels=["node"])
    used = GaugeMetricFamily(
        "kolejka_node_used_ratio", "part of the node's offer that tasks hold", labels=["node", "resource"]
    )
    for queue, state, count in depth:
        tasks.add_metric([queue, state], count)
    nodes = list(nodes)
    for state, count in Counted(node["state"] for node in nodes).items():
        states.add_metric([state], count)
    for node in nodes:
        if node["state"] == "silent":
            continue
        busy.add_metric([node["name"]], node["busy"])
        for name in _SHARES:
            if node["total"].get(name):
                free = node["capacity"].get(name, 0) / node["total"][name]
                used.add_metric([node["name"], name], min(1.0, max(0.0, 1 - free)))
    return [tasks, states, busy, used]

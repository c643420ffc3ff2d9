"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_CLAIM_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_WAIT_S: Final = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600, 86400)
_SHARES: Final = ("cpus", "memory")


class Metrics:
    """Counters of one server process; gauges are set when somebody asks."""

    def __init__(self) -> None:
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
        self._busy = Gauge("kolejka_node_tasks", "tasks that run on the node", ["node"], registry=registry)
        self._used = Gauge(
            "kolejka_node_used_ratio", "part of the node's offer that tasks hold", ["node", "resource"],
            registry=registry,
        )  # fmt: skip
        self._depth = Gauge("kolejka_tasks", "tasks by queue and state", ["queue", "state"], registry=registry)
        self._nodes = Gauge("kolejka_nodes", "nodes by state", ["state"], registry=registry)
        self._claims = Gauge("kolejka_claims_waiting", "claims that wait for a task", registry=registry)

    def text(self, depth: Iterable[tuple[str, str, int]], nodes: Iterable[Mapping[str, Any]], claims: int) -> bytes:
        """The exposition, with the gauges as they are now. ``nodes`` are the nodes as listings show them.

        What a silent node said last is no news: its share of use is left out.
        """
        self._depth.clear()
        for queue, state, count in depth:
            self._depth.labels(queue, state).set(count)
        for gauge in (self._nodes, self._busy, self._used):
            gauge.clear()
        for node in nodes:
            self._nodes.labels(node["state"]).inc()
            if node["state"] == "silent":
                continue
            self._busy.labels(node["name"]).set(node["busy"])
            for name in _SHARES:
                if node["total"].get(name):
                    free = node["capacity"].get(name, 0) / node["total"][name]
                    self._used.labels(node["name"], name).set(min(1.0, max(0.0, 1 - free)))
        self._claims.set(claims)
        return generate_latest(self._registry)

"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest


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
        self._depth = Gauge("kolejka_tasks", "tasks by queue and state", ["queue", "state"], registry=registry)
        self._nodes = Gauge("kolejka_nodes", "nodes by state", ["state"], registry=registry)
        self._claims = Gauge("kolejka_claims_waiting", "claims that wait for a task", registry=registry)

    def text(self, depth: Iterable[tuple[str, str, int]], nodes: Iterable[str], claims: int) -> bytes:
        """The exposition, with the gauges as they are now. ``nodes`` are the nodes' states."""
        self._depth.clear()
        for queue, state, count in depth:
            self._depth.labels(queue, state).set(count)
        self._nodes.clear()
        for state in nodes:
            self._nodes.labels(state).inc()
        self._claims.set(claims)
        return generate_latest(self._registry)

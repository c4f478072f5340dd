"""Metrics of the hot path. Labels never hold a user, key, address, request id or raw path."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.process_collector import ProcessCollector

from relay.settings import Address

DURATION_BUCKETS = (0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
FIRST_TOKEN_BUCKETS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60)
PER_TOKEN_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
OVERHEAD_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
OTHER = "other"


class Metrics:
    """One registry a process. ``model`` is OTHER where the model is unknown."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._children: dict[tuple[str, ...], Any] = {}
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "relay_requests",
            "Calls by how they ended, refused ones included.",
            ["model", "provider", "outcome", "stream"],
            registry=registry,
        )
        self.duration = Histogram(
            "relay_request_duration_seconds",
            "From the request to the last byte.",
            ["model", "stream"],
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self.first_token = Histogram(
            "relay_time_to_first_token_seconds",
            "From the request to the first streamed byte.",
            ["model"],
            buckets=FIRST_TOKEN_BUCKETS,
            registry=registry,
        )
        self.per_token = Histogram(
            "relay_time_per_output_token_seconds",
            "Streaming time after the first byte for each output token.",
            ["model"],
            buckets=PER_TOKEN_BUCKETS,
            registry=registry,
        )
        self.tokens = Counter("relay_tokens", "Metered units by meter.", ["model", "type"], registry=registry)
        self.revenue = Counter(
            "relay_revenue_usd", "Charged to customers.", ["model", "provider"], registry=registry
        )
        self.cost = Counter("relay_cost_usd", "Owed to vendors.", ["model", "provider"], registry=registry)
        self.upstream_errors = Counter(
            "relay_upstream_errors",
            "Failed attempts at vendors.",
            ["provider", "channel", "class"],
            registry=registry,
        )
        self.channel_state = Gauge(
            "relay_channel_state",
            "1 in use, 0.5 cooling down after failures, 0 disabled.",
            ["channel"],
            registry=registry,
        )
        self.rejections = Counter(
            "relay_quota_rejections",
            "Calls refused for credit, budgets, rate or concurrency.",
            ["reason"],
            registry=registry,
        )
        self.overhead = Histogram(
            "relay_overhead_seconds",
            "Time that a call spent here instead of at its vendor.",
            buckets=OVERHEAD_BUCKETS,
            registry=registry,
        )
        self.inflight = Gauge("relay_inflight_requests", "Calls in progress.", registry=registry)
        self.limits_local = Gauge(
            "relay_limits_degraded",
            "1 while Redis is away and each replica enforces its share of the limits.",
            registry=registry,
        )
        self.ledger_alerts = Counter(
            "relay_ledger_alerts",
            "What an operator must look at: unpriced meters, lost or late captures.",
            ["reason"],
            registry=registry,
        )
        self.estimated = Counter(
            "relay_estimated_usage",
            "Calls billed on counted instead of reported usage.",
            ["model", "provider"],
            registry=registry,
        )

    def of(self, metric: str, *labels: str) -> Any:
        """A child of a labelled metric, e.g. ``of("tokens", model, meter)``; remembered: labels() is slow."""
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = getattr(self, metric).labels(*labels)
        return child

    def serve(self, address: Address) -> None:
        """Serve /metrics from a thread of its own."""
        start_http_server(address.port, address.host, registry=self.registry)

"""Metrics of the hot path. Labels never hold a user, key, address, request id or raw path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.process_collector import ProcessCollector

from relay.errors import HOURLY_SPEND
from relay.settings import Address

DURATION_BUCKETS = (0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
FIRST_TOKEN_BUCKETS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60)
PER_TOKEN_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
OVERHEAD_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
LEDGER_ALERTS = ("capture_lost", "late_capture", "settlement_failed", "unpriced_meter", "usage_doubted")
OTHER = "other"


class Metrics:
    """One registry a process. ``model`` is OTHER where the model is unknown."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._children: dict[tuple[str, ...], Any] = {}
        ProcessCollector(registry=self.registry)
        self._define_calls()
        self._define_times()
        self._define_money()
        self._define_providers()
        self._define_limits()

    def _define_calls(self) -> None:
        self.requests = self._counter(
            "relay_requests",
            "Calls by how they ended, refused ones included.",
            ["model", "provider", "outcome", "stream"],
        )
        self.inflight = self._gauge("relay_inflight_requests", "Calls in progress.")
        self.bodies = self._gauge("relay_request_body_bytes", "Bodies of the calls in progress.")
        self.answers = self._gauge("relay_answer_body_bytes", "Whole answers of the calls in progress.")

    def _define_times(self) -> None:
        self.duration = self._histogram(
            "relay_request_duration_seconds",
            "From the request to the last byte.",
            DURATION_BUCKETS,
            ["model", "stream"],
        )
        self.first_token = self._histogram(
            "relay_time_to_first_token_seconds",
            "From the request to the first streamed byte.",
            FIRST_TOKEN_BUCKETS,
            ["model"],
        )
        self.per_token = self._histogram(
            "relay_time_per_output_token_seconds",
            "Streaming time after the first byte for each output token.",
            PER_TOKEN_BUCKETS,
            ["model"],
        )
        self.overhead = self._histogram(
            "relay_overhead_seconds",
            "Time that a call spent here instead of at its provider.",
            OVERHEAD_BUCKETS,
        )

    def _define_money(self) -> None:
        self.tokens = self._counter("relay_tokens", "Metered units by meter.", ["model", "type"])
        self.revenue = self._counter("relay_revenue_usd", "Charged to customers.", ["model", "provider"])
        self.cost = self._counter("relay_cost_usd", "Owed to providers.", ["model", "provider"])
        self.estimated = self._counter(
            "relay_estimated_usage",
            "Calls billed on counted instead of reported usage.",
            ["model", "provider"],
        )
        self.ledger_alerts = self._counter(
            "relay_ledger_alerts",
            "What an operator must look at: unpriced meters, lost or late captures.",
            ["reason"],
        )
        for reason in LEDGER_ALERTS:  # from 0 on, so that Prometheus sees the first case as an increase
            self.ledger_alerts.labels(reason)

    def _define_providers(self) -> None:
        self.provider_errors = self._counter(
            "relay_provider_errors",
            "Failed attempts at providers.",
            ["provider", "channel", "class"],
        )
        self.channel_state = self._gauge(
            "relay_channel_state",
            "1 in use, 0.5 cooling down after failures, 0 disabled.",
            ["channel"],
        )
        self.channel_keys = self._gauge(
            "relay_channel_keys_usable",
            "API keys of an enabled channel that do not rest after a refusal by its provider.",
            ["channel"],
        )
        self.channel_budget = self._gauge(
            "relay_channel_budget_used_ratio",
            "Share of a channel's budget that is spent; of two, the larger share.",
            ["channel"],
        )
        self.channel_full = self._counter(
            "relay_channel_full",
            "How often a channel was passed over for its limits, or for a budget without a cost price.",
            ["channel", "reason"],
        )
        self.sticky = self._counter(
            "relay_sticky_calls",
            "Answered calls of a session, or that begin like others: kept by their channel, or moved.",
            ["type", "outcome"],
        )

    def _define_limits(self) -> None:
        self.rejections = self._counter(
            "relay_quota_rejections",
            "Calls refused for credit, budgets, hourly spending, requests, tokens or concurrency.",
            ["reason"],
        )
        self.rejections.labels(HOURLY_SPEND)  # from 0 on: its first case is an alert
        self.limits_local = self._gauge(
            "relay_limits_degraded",
            "1 while Redis is away and each replica enforces its share of the limits.",
        )

    def _counter(self, name: str, meaning: str, labels: Sequence[str]) -> Counter:
        return Counter(name, meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(name, meaning, labels, registry=self.registry)

    def _histogram(
        self, name: str, meaning: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> Histogram:
        return Histogram(name, meaning, labels, buckets=buckets, registry=self.registry)

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

"""Relay: models, providers, channels, the ledger's queue and the limits."""

from __future__ import annotations

from monitoring.dashboards.panels import Board, Lines, Number, Query, Section, Table

RATE = "[$__rate_interval]"


def by(labels: str, metric: str) -> str:
    """A counter's rate by labels."""
    return f"sum by ({labels}) (rate({metric}{RATE}))"


def quantile(share: float, label: str, metric: str) -> str:
    """A quantile by one label."""
    return f"histogram_quantile({share}, sum by ({label}, le) (rate({metric}_bucket{RATE})))"


BOARD = Board(
    uid="relay-relay",
    title="Relay",
    description="Models, providers and channels; the time that the relay takes; its ledger and its limits.",
    sections=[
        Section(
            "Calls",
            [
                Lines(
                    title="Calls by model",
                    description="Calls a second; a model that nobody offers counts as other.",
                    unit="reqps",
                    stacked=True,
                    queries=[Query(by("model", "relay_requests_total"), "{{model}}")],
                ),
                Lines(
                    title="Calls by provider",
                    description="Calls a second by the provider that answered last.",
                    unit="reqps",
                    stacked=True,
                    queries=[Query(by("provider", "relay_requests_total"), "{{provider}}")],
                ),
                Lines(
                    title="Calls in progress",
                    description="By task. What is normal depends on the environment.",
                    unit="short",
                    queries=[Query("sum by (instance) (relay_inflight_requests)", "{{instance}}")],
                ),
                Lines(
                    title="Requests in memory",
                    description="Bodies, by task. Above relay_bodies_bytes large requests get 503.",
                    unit="bytes",
                    queries=[Query("sum by (instance) (relay_request_body_bytes)", "{{instance}}")],
                ),
                Lines(
                    title="Answers in memory",
                    description="Whole ones, by task. Above relay_answers_bytes large ones wait.",
                    unit="bytes",
                    queries=[Query("sum by (instance) (relay_answer_body_bytes)", "{{instance}}")],
                ),
                Lines(
                    title="First token by model, p95",
                    description="From the request to the first streamed byte.",
                    unit="s",
                    alerts=["RelayFirstTokenSlow"],
                    queries=[
                        Query(quantile(0.95, "model", "relay_time_to_first_token_seconds"), "{{model}}")
                    ],
                ),
                Lines(
                    title="Time for each output token, p50",
                    description="Streaming time after the first byte: the provider's speed.",
                    unit="s",
                    queries=[
                        Query(quantile(0.5, "model", "relay_time_per_output_token_seconds"), "{{model}}")
                    ],
                ),
                Lines(
                    title="What the relay adds, p95",
                    description="Time that a call spent here instead of at its provider, by task.",
                    unit="s",
                    alerts=["RelayOverheadHigh"],
                    queries=[Query(quantile(0.95, "instance", "relay_overhead_seconds"), "{{instance}}")],
                ),
            ],
        ),
        Section(
            "Providers and channels",
            [
                Lines(
                    title="Failed attempts by provider",
                    description="Attempts a second. Customers may not notice: another channel answers.",
                    unit="reqps",
                    pages=["ProviderFailsOften"],
                    queries=[
                        Query(by("provider, class", "relay_provider_errors_total"), "{{provider}} {{class}}")
                    ],
                ),
                Lines(
                    title="Failed attempts by channel",
                    description="Attempts a second.",
                    unit="reqps",
                    pages=["ChannelFails", "ChannelAccountRefused"],
                    queries=[Query(by("channel", "relay_provider_errors_total"), "{{channel}}")],
                ),
                Table(
                    title="State of channels",
                    description="1 in use, 0.5 cooling down after failures, 0 disabled by an administrator.",
                    unit="short",
                    pages=["ChannelFails"],
                    query=Query("min by (channel) (relay_channel_state)"),
                ),
                Lines(
                    title="Usable keys of channels",
                    description="API keys that do not rest after a refusal, at the relay that has least.",
                    unit="short",
                    pages=["ChannelWithoutKey", "ChannelAccountRefused"],
                    queries=[Query("min by (channel) (relay_channel_keys_usable)", "{{channel}}")],
                ),
                Table(
                    title="Budgets of channels",
                    description="Share that is spent of the fuller budget; at 1 a channel is not used.",
                    unit="percentunit",
                    alerts=["ChannelBudgetSpent"],
                    query=Query("max by (channel) (relay_channel_budget_used_ratio)"),
                ),
                Lines(
                    title="Sticky calls that moved",
                    description="Share of sticky calls that another channel than theirs has answered.",
                    unit="percentunit",
                    queries=[
                        Query(
                            'sum by (type) (rate(relay_sticky_calls_total{outcome="moved"}'
                            "[$__rate_interval])) /"
                            " sum by (type) (rate(relay_sticky_calls_total[$__rate_interval]))",
                            "{{type}}",
                        )
                    ],
                ),
                Lines(
                    title="Channels passed over",
                    description="How often a second, for their own limits, or a budget without a cost price.",
                    unit="reqps",
                    queries=[
                        Query(by("channel, reason", "relay_channel_full_total"), "{{channel}} {{reason}}")
                    ],
                ),
            ],
        ),
        Section(
            "Ledger",
            [
                Number(
                    title="Open holds",
                    description="Holds that are neither captured nor released: about the calls in progress.",
                    unit="short",
                    pages=["LedgerHoldsUnsettled"],
                    query=Query("max(ledger_unsettled_holds)"),
                ),
                Number(
                    title="Oldest hold",
                    description="Age of the oldest hold that is neither captured nor released.",
                    unit="s",
                    alerts=["LedgerHoldsUnsettled"],
                    query=Query("max(ledger_hold_oldest_seconds)"),
                ),
                Number(
                    title="Audit's differences",
                    description="Found by the last run of any audit; anything but 0 is looked at.",
                    unit="short",
                    alerts=["LedgerImbalance"],
                    pages=["LedgerUnmeasured"],
                    query=Query("max(relay_audit_differences)"),
                ),
                Number(
                    title="Looked at by the audits",
                    description="Rows that the last runs of the audits compared.",
                    unit="short",
                    pages=["LedgerAuditOverdue"],
                    query=Query("sum(max by (audit) (relay_audit_checked))"),
                ),
                Number(
                    title="Holds swept, one day",
                    description="Holds that a crash left and the sweeper ended.",
                    unit="short",
                    pages=["LedgerHoldsSwept"],
                    query=Query("sum(increase(relay_ledger_swept_total[1d]))"),
                ),
                Number(
                    title="Amount swept, one day",
                    description="Held by the calls that a crash ended.",
                    unit="currencyUSD",
                    pages=["LedgerHoldsSwept"],
                    query=Query("sum(increase(relay_ledger_swept_usd_total[1d]))"),
                ),
                Lines(
                    title="What an operator must look at",
                    description="Unpriced meters, doubted usage, late and lost captures; number in an hour.",
                    unit="short",
                    pages=[
                        "LedgerCaptureLost",
                        "LedgerCaptureLate",
                        "LedgerMeterUnpriced",
                        "LedgerUsageDoubted",
                    ],
                    queries=[
                        Query("sum by (reason) (increase(relay_ledger_alerts_total[1h]))", "{{reason}}")
                    ],
                ),
                Lines(
                    title="Since a job last ended well",
                    description="By job. Sweeping and roll-ups may take an hour, audits a day and a half.",
                    unit="s",
                    pages=["LedgerJobOverdue", "LedgerAuditOverdue"],
                    queries=[
                        Query("time() - max by (name) (relay_job_last_success_timestamp_seconds)", "{{name}}")
                    ],
                ),
                Lines(
                    title="Usage that was counted here",
                    description="Calls a second billed on counted instead of reported usage.",
                    unit="reqps",
                    queries=[
                        Query(by("model, provider", "relay_estimated_usage_total"), "{{model}} {{provider}}")
                    ],
                ),
            ],
        ),
        Section(
            "Limits and processes",
            [
                Lines(
                    title="Calls refused by limits",
                    description="For credit, budgets, an hour, requests, tokens or concurrency, a second.",
                    unit="reqps",
                    pages=["SpendBreakerOpen"],
                    queries=[Query(by("reason", "relay_quota_rejections_total"), "{{reason}}")],
                ),
                Lines(
                    title="Limits without Redis",
                    description="1 while a task cannot reach Redis and enforces its share of the limits.",
                    unit="short",
                    alerts=["RelayLimitsDegraded"],
                    queries=[Query("relay_limits_degraded", "{{instance}}")],
                ),
                Lines(
                    title="Redis: refused, evicted, clients",
                    description="Connections refused and keys evicted, a second; clients connected.",
                    unit="short",
                    pages=["CacheDown", "CacheEvicts", "CacheRefusesConnections"],
                    queries=[
                        Query(f"sum(rate(redis_rejected_connections_total{RATE}))", "refused"),
                        Query(f"sum(rate(redis_evicted_keys_total{RATE}))", "evicted"),
                        Query("sum(redis_connected_clients)", "clients"),
                    ],
                ),
                Lines(
                    title="CPU by task",
                    description="Cores that a task uses; it is one process and cannot use more than one.",
                    unit="short",
                    queries=[Query(f'rate(process_cpu_seconds_total{{job="relay"}}{RATE})', "{{instance}}")],
                ),
                Lines(
                    title="Memory by task",
                    description="Resident memory of a task.",
                    unit="bytes",
                    queries=[Query('process_resident_memory_bytes{job="relay"}', "{{instance}}")],
                ),
                Lines(
                    title="Open files by task",
                    description="Share of the descriptors that a task may open.",
                    unit="percentunit",
                    queries=[
                        Query('process_open_fds{job="relay"} / process_max_fds{job="relay"}', "{{instance}}")
                    ],
                ),
                Number(
                    title="Youngest task",
                    description="Since a task last started: since the last release, where nothing crashed.",
                    unit="s",
                    pages=["RelayTaskDown"],
                    query=Query('time() - max(process_start_time_seconds{job="relay"})'),
                ),
                Number(
                    title="Release under way",
                    description="Since a release began that has not ended: one task is another version.",
                    unit="s",
                    alerts=["ReleaseUnfinished"],
                    query=Query(
                        "time() - (max(relay_release_unfinished_timestamp_seconds) > 0) or vector(0)"
                    ),
                ),
            ],
        ),
    ],
)

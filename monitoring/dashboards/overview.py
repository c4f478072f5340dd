"""Operations overview: one screen that says whether customers are served, and what burns."""

from __future__ import annotations

from monitoring.dashboards.panels import Board, Lines, Number, Query, Section, Table

RATE = "[$__rate_interval]"


def quantile(share: float, metric: str) -> str:
    """A quantile of all calls."""
    return f"histogram_quantile({share}, sum by (le) (rate({metric}_bucket{RATE})))"


BOARD = Board(
    uid="relay-overview",
    title="Operations overview",
    description="Whether customers are served, at what speed and margin, what burns, how old backups are.",
    sections=[
        Section(
            "Now",
            [
                Table(
                    title="What burns",
                    description="Alerts that fire. The runbook page of each is named after it.",
                    unit="short",
                    query=Query('ALERTS{alertstate="firing", severity!="none"} or vector(0)'),
                ),
                Number(
                    title="Calls",
                    description="Calls a second, refused ones included.",
                    unit="reqps",
                    query=Query(f"sum(rate(relay_requests_total{RATE}))"),
                ),
                Number(
                    title="Calls that fail",
                    description="Share of all calls that failed through no fault of the customer.",
                    unit="percentunit",
                    alerts=["RelayErrorRatioHigh"],
                    query=Query(
                        'slo:bad:rate5m{objective="availability"}'
                        " / ignoring (objective) sum(rate(relay_requests_total[5m]))"
                    ),
                ),
                Number(
                    title="Error budget left",
                    description="Of availability, 30 days: 100 % untouched, below 0 % the objective failed.",
                    unit="percentunit",
                    alerts=["SloBudgetSpent"],
                    query=Query('slo:budget_left:ratio30d{objective="availability"}'),
                ),
                Number(
                    title="Margin today",
                    description="Sales less cost of the last 24 hours, by the relays' counters.",
                    unit="currencyUSD",
                    query=Query(
                        "sum(increase(relay_revenue_usd_total[1d])) - sum(increase(relay_cost_usd_total[1d]))"
                    ),
                ),
                Number(
                    title="Relay tasks",
                    description="Tasks of the relay that answer.",
                    unit="short",
                    alerts=["RelayTooFewTasks"],
                    query=Query('count(up{job="relay"} == 1) or vector(0)'),
                ),
                Number(
                    title="Edges",
                    description="Edges that serve HTTPS as a customer sees it.",
                    unit="short",
                    pages=["EdgeDown"],
                    query=Query('sum(probe_success{job="edge_probe"})'),
                ),
                Number(
                    title="Available, 30 days",
                    description="Share of the probe's calls that succeeded through the better edge.",
                    unit="percentunit",
                    pages=["ProbeFails"],
                    query=Query("probe:availability_any:ratio30d"),
                ),
                Number(
                    title="Last backup",
                    description="Age of the newest good backup.",
                    unit="s",
                    alerts=["BackupTooOld"],
                    query=Query("time() - max(backup_newest_timestamp_seconds)"),
                ),
                Number(
                    title="Last proven restore",
                    description="Age of the last drill that proved a restore; without one it shows decades.",
                    unit="s",
                    pages=["DrillTooOld", "DrillFailed"],
                    query=Query("time() - max(drill_last_success_timestamp_seconds)"),
                ),
            ],
        ),
        Section(
            "Traffic",
            [
                Lines(
                    title="Calls by how they end",
                    description="Calls a second by outcome.",
                    unit="reqps",
                    pages=["RelayErrorRatioHigh"],
                    stacked=True,
                    queries=[Query(f"sum by (outcome) (rate(relay_requests_total{RATE}))", "{{outcome}}")],
                ),
                Lines(
                    title="Duration",
                    description="From the request to the last byte: mostly the length of the answers.",
                    unit="s",
                    queries=[
                        Query(quantile(share, "relay_request_duration_seconds"), f"p{share * 100:.0f}")
                        for share in (0.5, 0.95, 0.99)
                    ],
                ),
                Lines(
                    title="First token",
                    description="From the request to the first streamed byte.",
                    unit="s",
                    alerts=["RelayFirstTokenSlow"],
                    queries=[
                        Query(quantile(share, "relay_time_to_first_token_seconds"), f"p{share * 100:.0f}")
                        for share in (0.5, 0.95, 0.99)
                    ],
                ),
            ],
        ),
        Section(
            "Objectives and money",
            [
                Lines(
                    title="Burn rate, one hour",
                    description="1 uses up the error budget exactly within 30 days.",
                    unit="short",
                    alerts=["SloBurnsFast"],
                    queries=[Query("slo:burn:rate1h", "{{objective}}")],
                ),
                Lines(
                    title="Error budget left",
                    description="Of 30 days, by objective.",
                    unit="percentunit",
                    alerts=["SloBudgetSpent"],
                    pages=["SloBurnsSlowly"],
                    queries=[Query("slo:budget_left:ratio30d", "{{objective}}")],
                ),
                Lines(
                    title="Sales, cost and margin",
                    description="Dollars an hour, by the relays' counters.",
                    unit="currencyUSD",
                    queries=[
                        Query("sum(rate(relay_revenue_usd_total[15m])) * 3600", "sales"),
                        Query("sum(rate(relay_cost_usd_total[15m])) * 3600", "cost"),
                        Query(
                            "(sum(rate(relay_revenue_usd_total[15m])) - sum(rate(relay_cost_usd_total[15m])))"
                            " * 3600",
                            "margin",
                        ),
                    ],
                ),
            ],
        ),
    ],
)

"""Money: sales, cost and margin, holds and debt, who spends most."""

from __future__ import annotations

from monitoring.dashboards.panels import Board, LedgerTable, Lines, Number, Query, Section, Table

SALES, COST = "relay_revenue_usd_total", "relay_cost_usd_total"
HOUR = 3600


def hourly(metric: str, label: str) -> str:
    """Dollars an hour by a label."""
    return f"sum by ({label}) (rate({metric}[15m])) * {HOUR}"


def day(metric: str) -> str:
    """Dollars of the last 24 hours."""
    return f"sum(increase({metric}[1d]))"


# n$, the ledger's unit, are nano-dollars. The roll-up is an hour behind at most.
TOP_SPENDERS = """
select a.name as account, sum(u.calls) as calls, sum(u.failed) as failed,
       round(sum(u.charge) / 1e9, 4) as "sales $", round(sum(u.cost) / 1e9, 4) as "cost $",
       round(sum(u.charge - u.cost) / 1e9, 4) as "margin $"
  from usage_hourly u join accounts a on a.id = u.account_id
 where $__timeFilter(u.hour)
 group by a.name order by sum(u.charge) desc limit 20
"""
TREND = """
select a.name as account,
       round(sum(u.charge) filter (where u.day >= now() - interval '7 days') / 1e9, 4) as "7 days $",
       round(sum(u.charge) filter (where u.day < now() - interval '7 days') / 1e9, 4) as "7 days before $"
  from usage_daily u join accounts a on a.id = u.account_id
 where u.day >= now() - interval '14 days'
 group by a.name order by 2 desc nulls last limit 20
"""
BY_CHANNEL = """
select coalesce(c.name, 'none') as channel, u.model, sum(u.calls) as calls, sum(u.uncosted) as uncosted,
       round(sum(u.charge) / 1e9, 4) as "sales $", round(sum(u.cost) / 1e9, 4) as "cost $",
       round(sum(u.charge - u.cost) / 1e9, 4) as "margin $"
  from usage_hourly u left join channels c on c.id = u.channel_id
 where $__timeFilter(u.hour)
 group by 1, 2 order by sum(u.charge - u.cost) limit 50
"""
OPEN_HOLDS = """
select a.name as account, count(*) as holds, round(sum(h.amount) / 1e9, 4) as "held $",
       min(h.created_at) as oldest
  from holds h join accounts a on a.id = h.account_id
 where h.state = 'held'
 group by a.name order by sum(h.amount) desc limit 20
"""

BOARD = Board(
    uid="relay-money",
    title="Money",
    description=(
        "Whether the platform earns money. Curves are the relays' counters, which a crash may shorten by a "
        "call; tables are the ledger, which decides."
    ),
    hours=24,
    sections=[
        Section(
            "Last 24 hours",
            [
                Number(
                    title="Sales",
                    description="Charged to customers.",
                    unit="currencyUSD",
                    query=Query(day(SALES)),
                ),
                Number(
                    title="Cost",
                    description="Owed to providers.",
                    unit="currencyUSD",
                    query=Query(day(COST)),
                ),
                Number(
                    title="Margin",
                    description="Sales less cost.",
                    unit="currencyUSD",
                    query=Query(f"{day(SALES)} - {day(COST)}"),
                ),
                Number(
                    title="Margin of sales",
                    description="Share of the sales that stays.",
                    unit="percentunit",
                    query=Query(f"({day(SALES)} - {day(COST)}) / ({day(SALES)} > 0)"),
                ),
                Number(
                    title="Open holds",
                    description="Holds that are neither captured nor released.",
                    unit="short",
                    pages=["LedgerHoldsUnsettled"],
                    query=Query("max(ledger_unsettled_holds)"),
                ),
                Table(
                    title="Budgets of which little is left",
                    description="Of the platform (global 0) and of accounts; from 80 % on.",
                    unit="percentunit",
                    alerts=["LedgerBudgetSpent"],
                    query=Query("max by (scope, scope_id, period) (ledger_budget_used_ratio)"),
                ),
                Number(
                    title="Backups a month",
                    description="What keeping the backups costs a month at the price of the settings.",
                    unit="currencyUSD",
                    pages=["BackupCostHigh"],
                    query=Query("max(backup_bucket_cost_usd_month)"),
                ),
            ],
        ),
        Section(
            "Sales and cost",
            [
                Lines(
                    title="Sales by model",
                    description="Dollars an hour.",
                    unit="currencyUSD",
                    stacked=True,
                    queries=[Query(hourly(SALES, "model"), "{{model}}")],
                ),
                Lines(
                    title="Cost by provider",
                    description="Dollars an hour.",
                    unit="currencyUSD",
                    stacked=True,
                    queries=[Query(hourly(COST, "provider"), "{{provider}}")],
                ),
                Lines(
                    title="Margin by model",
                    description="Dollars an hour; below 0 the model is sold below its cost.",
                    unit="currencyUSD",
                    queries=[Query(f"{hourly(SALES, 'model')} - {hourly(COST, 'model')}", "{{model}}")],
                ),
                Lines(
                    title="Margin by provider",
                    description="Dollars an hour.",
                    unit="currencyUSD",
                    queries=[
                        Query(f"{hourly(SALES, 'provider')} - {hourly(COST, 'provider')}", "{{provider}}")
                    ],
                ),
                Lines(
                    title="Metered units",
                    description="Units a second by meter: tokens read and written, cached, images.",
                    unit="short",
                    stacked=True,
                    queries=[Query("sum by (type) (rate(relay_tokens_total[15m]))", "{{type}}")],
                ),
                Lines(
                    title="Refused for money",
                    description="Calls a second refused for credit, budgets or quotas.",
                    unit="reqps",
                    queries=[
                        Query("sum by (reason) (rate(relay_quota_rejections_total[15m]))", "{{reason}}")
                    ],
                ),
            ],
        ),
        Section(
            "From the ledger (PostgreSQL, a replica)",
            [
                LedgerTable(
                    title="Top spenders",
                    description="Accounts by sales in the time shown, from the hourly roll-up.",
                    unit="short",
                    sql=TOP_SPENDERS,
                ),
                LedgerTable(
                    title="Sales by channel and model",
                    description="Least margin first; uncosted are charged calls whose cost is unknown.",
                    unit="short",
                    pages=["LedgerMeterUnpriced"],
                    sql=BY_CHANNEL,
                ),
                LedgerTable(
                    title="Trend of accounts",
                    description="Sales of the last seven days beside those of the seven before.",
                    unit="short",
                    sql=TREND,
                ),
                LedgerTable(
                    title="Open holds by account",
                    description="What customers have promised and not yet paid.",
                    unit="short",
                    pages=["LedgerHoldsUnsettled"],
                    sql=OPEN_HOLDS,
                ),
            ],
        ),
    ],
)

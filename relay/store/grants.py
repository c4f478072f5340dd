"""SQL of grants, ledger entries, usage records and budgets for people."""

from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import dict_row

DbRow = dict[str, Any]


async def grant(
    connection: AsyncConnection[Any],
    *,
    account_id: int,
    unit: str,
    amount: int,
    source: str,
    source_id: str,
    priority: int,
    expires_at: datetime | None,
    reason: str,
    actor: str,
) -> tuple[int | None, str]:
    """Grant once by (source, source_id, unit); returns (grant id, made | known | conflict | no_account)."""
    cursor = await connection.execute(
        "select grant_id, outcome from ledger_grant(%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (account_id, unit, amount, source, source_id, priority, expires_at, reason, actor),
    )
    row = await cursor.fetchone()
    if row is None:
        raise RuntimeError("ledger_grant returned no row")
    return row[0], row[1]


async def list_grants(connection: AsyncConnection[Any], account_id: int) -> list[DbRow]:
    """Grants of an account in the order in which they are drained, used up ones last."""
    return await _all(
        connection,
        "select id, unit, source, source_id, amount, remaining, priority, expires_at, reason, created_by,"
        " created_at from grants where account_id = %s"
        " order by closed, unit, (source = 'plan_period') desc, priority, expires_at, id",
        (account_id,),
    )


async def list_balances(connection: AsyncConnection[Any], account_id: int) -> list[DbRow]:
    """Balance, held amount and debt of each unit of an account."""
    return await _all(
        connection,
        "select unit, balance, held, debt, next_event_at from balances where account_id = %s order by unit",
        (account_id,),
    )


async def list_entries(connection: AsyncConnection[Any], account_id: int, limit: int) -> list[DbRow]:
    """Entries of an account, newest first."""
    return await _all(
        connection,
        "select id, account_id, unit, grant_id, kind, amount, request_id, reverses, reason, source,"
        " created_at from entries where account_id = %s order by id desc limit %s",
        (account_id, limit),
    )


async def entries_of_request(connection: AsyncConnection[Any], request_id: UUID) -> list[DbRow]:
    """Entries that a call's capture wrote (and their reversals)."""
    return await _all(
        connection,
        "select id, account_id, unit, grant_id, kind, amount, reverses from entries where request_id = %s",
        (request_id,),
    )


async def reverse_entry(
    connection: AsyncConnection[Any], entry_id: int, reason: str, source: str
) -> tuple[str, int | None]:
    """Write the reversing entry; returns its outcome and id.

    Outcomes: made, known, unknown, not_reversible, debt_was_paid.
    """
    cursor = await connection.execute(
        "select outcome, entry_id from ledger_reverse(%s, %s, %s)", (entry_id, reason, source)
    )
    row = await cursor.fetchone()
    if row is None:
        raise RuntimeError("ledger_reverse returned no row")
    return row[0], row[1]


async def list_usage(
    connection: AsyncConnection[Any],
    *,
    account_id: int | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int,
) -> list[DbRow]:
    """Usage records, newest first; charge and cost in n$."""
    return await _all(
        connection,
        "select request_id, account_id, token_id, channel_id, model, customer_group, outcome, abort_rule,"
        " stream, admitted_at, started_at, settled_at, duration_ms, first_byte_ms, meters, raw_usage, held,"
        " charge, cost, plan_paid, debt, quotas_used, grants_used,"
        " exact_numerator || '/' || exact_denominator as exact, sell, cost_side, unpriced, attempts, facts"
        " from usage where (%(account)s::bigint is null or account_id = %(account)s)"
        " and (%(since)s::timestamptz is null or settled_at >= %(since)s)"
        " and (%(until)s::timestamptz is null or settled_at < %(until)s)"
        " order by settled_at desc limit %(limit)s",
        {"account": account_id, "since": since, "until": until, "limit": limit},
    )


async def export_usage(
    connection: AsyncConnection[Any], account_id: int | None, since: datetime | None, until: datetime | None
) -> AsyncGenerator[DbRow, None]:
    """The essence of each usage record, oldest first, read in portions."""
    async with connection.transaction(), connection.cursor("usage", row_factory=dict_row) as cursor:
        cursor.itersize = 2000
        await cursor.execute(
            "select request_id, account_id, token_id, channel_id, model, outcome, abort_rule, settled_at,"
            " meters, held, charge, cost, debt from usage"
            " where (%(account)s::bigint is null or account_id = %(account)s)"
            " and (%(since)s::timestamptz is null or settled_at >= %(since)s)"
            " and (%(until)s::timestamptz is null or settled_at < %(until)s)"
            " order by settled_at, request_id",
            {"account": account_id, "since": since, "until": until},
        )
        async for row in cursor:
            yield row


async def set_budget(
    connection: AsyncConnection[Any], *, scope: str, scope_id: int, period: str, maximum: int
) -> DbRow:
    """Set or change a budget; what was spent in the running period stays counted."""
    rows = await _all(
        connection,
        "insert into budgets (scope, scope_id, period, maximum, period_ends)"
        " values (%(scope)s, %(scope_id)s, %(period)s, %(maximum)s, budget_period_end(%(period)s, now()))"
        " on conflict (scope, scope_id, period) do update set maximum = excluded.maximum"
        " returning id, scope, scope_id, period, maximum, spent, held, period_ends",
        {"scope": scope, "scope_id": scope_id, "period": period, "maximum": maximum},
    )
    return rows[0]


async def list_budgets(connection: AsyncConnection[Any]) -> list[DbRow]:
    """All budgets."""
    return await _all(
        connection,
        "select id, scope, scope_id, period, maximum, spent, held, period_ends from budgets order by id",
        (),
    )


async def set_allowance(
    connection: AsyncConnection[Any],
    *,
    account_id: int,
    unit: str,
    amount: int,
    months: int,
    anchor: datetime | None,
    ends_at: datetime | None,
    source_id: str,
    reason: str,
) -> DbRow:
    """Give an account an amount anew each period; by default its periods count from the account's anchor."""
    rows = await _all(
        connection,
        "insert into allowances (account_id, unit, amount, months, anchor, ends_at, source_id, reason)"
        " select id, %(unit)s, %(amount)s, %(months)s, coalesce(%(anchor)s, period_anchor), %(ends_at)s,"
        " %(source_id)s, %(reason)s from accounts where id = %(account_id)s"
        " on conflict (source_id) do update set amount = excluded.amount, ends_at = excluded.ends_at"
        " returning id, account_id, unit, amount, months, anchor, ends_at, source_id",
        {
            "account_id": account_id,
            "unit": unit,
            "amount": amount,
            "months": months,
            "anchor": anchor,
            "ends_at": ends_at,
            "source_id": source_id,
            "reason": reason,
        },
    )
    if not rows:
        raise LookupError(f"account {account_id} does not exist")
    return rows[0]


async def set_terms(
    connection: AsyncConnection[Any], account_id: int, *, credit_limit: int | None, overage: str | None
) -> DbRow | None:
    """Set how far an account may go below zero (n$) and its overage multiplier; None: no such account."""
    rows = await _all(
        connection,
        "update accounts set credit_limit = coalesce(%s, credit_limit),"
        " overage_multiplier = coalesce(%s, overage_multiplier) where id = %s"
        " returning id, credit_limit, overage_multiplier::text",
        (credit_limit, overage, account_id),
    )
    return rows[0] if rows else None


async def _all(connection: AsyncConnection[Any], query: str, values: Any) -> list[DbRow]:
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(query, values)
        return await cursor.fetchall()

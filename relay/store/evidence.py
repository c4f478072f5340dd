"""SQL that proves and shows a ledger: a sample of records, sums that two databases must share, a view.

Everything here only reads, so that it works on a standby and on a scratch instance that recovery has paused.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection, AsyncCursor, IsolationLevel
from psycopg.rows import dict_row

from relay.store.audit import EVIDENCE, DbRow, totals_of

_SAMPLE = f"""
select {EVIDENCE} from usage order by hashtextextended(request_id::text, %(seed)s), settled_at limit %(most)s
"""  # noqa: S608
# Tables whose rows never change: when a row was written, its money, and the columns that every
# version of the schema has had, so that a database of last month can be compared with today's.
APPEND_ONLY: dict[str, tuple[str, str, str]] = {
    "entries": (
        "created_at",
        "case when unit = 'credit' then amount end",
        "id, account_id, unit, grant_id, kind, amount, request_id, reverses, reason, source, created_at",
    ),
    "usage": (
        "settled_at",
        "charge",
        "request_id, settled_at, account_id, token_id, channel_id, model, customer_group, outcome, stream,"
        " admitted_at, started_at, meters, raw_usage, held, charge, plan_paid, debt, quotas_used,"
        " grants_used, exact_numerator, exact_denominator, cost, sell, cost_side, unpriced",
    ),
}
_ACCOUNTS = """
select a.id, a.name, a.status, b.balance, b.held, b.debt,
       (select max(e.id) from entries e where e.account_id = a.id) as last_entry
from accounts a join balances b on b.account_id = a.id and b.unit = 'credit'
where %(account)s::bigint is null or a.id = %(account)s
order by last_entry desc nulls last, a.id limit %(accounts)s
"""
_ENTRIES = """
select id, account_id, unit, kind, amount, request_id, reason, created_at from entries
where %(account)s::bigint is null or account_id = %(account)s order by id desc limit %(entries)s
"""


@asynccontextmanager
async def reading(connection: AsyncConnection[Any]) -> AsyncIterator[AsyncCursor[DbRow]]:
    """One moment of the database; times are written in UTC whatever the server's setting."""
    await connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
    await connection.set_read_only(True)
    async with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute("set local timezone = 'UTC'; set local datestyle = 'ISO, YMD'")
        yield cursor


async def sample(connection: AsyncConnection[Any], most: int, seed: int) -> list[DbRow]:
    """``most`` usage records, picked by ``seed``: the same database and seed give the same records."""
    async with reading(connection) as cursor:
        await cursor.execute(_SAMPLE, {"seed": seed, "most": most})
        return await cursor.fetchall()


async def sums(
    connection: AsyncConnection[Any], until: datetime, *, month: str | None, by_account: bool
) -> dict[str, list[DbRow]]:
    """Rows, nano-dollars and a digest of each append-only table, a month (and an account), before a moment.

    The digest is the sum of the rows' hashes, so it does not depend on their order. ``month`` (2026-11) asks
    for that month only.
    """
    found: dict[str, list[DbRow]] = {}
    async with reading(connection) as cursor:
        for table, (written, amount, columns) in APPEND_ONLY.items():
            await cursor.execute(
                _sums_of(table, written, amount, columns, by_account), {"until": until, "month": month}
            )
            found[table] = await cursor.fetchall()
    return found


def _sums_of(table: str, written: str, amount: str, columns: str, by_account: bool) -> str:
    keys = "1, 2" if by_account else "1"
    account = "account_id as account, " if by_account else ""
    return f"""
        select to_char({written}, 'YYYY-MM') as month, {account}count(*) as rows,
               coalesce(sum({amount}), 0)::text as nanodollars,
               sum(hashtextextended(row({columns})::text, 0)::numeric)::text as digest
        from {table}
        where {written} < %(until)s and (%(month)s::text is null or to_char({written}, 'YYYY-MM') = %(month)s)
        group by {keys} order by {keys}
    """  # noqa: S608


async def view(
    connection: AsyncConnection[Any], *, account: int | None, accounts: int, entries: int
) -> dict[str, Any]:
    """The accounts that moved last with their balances, the last entries, and the totals, at one moment."""
    values = {"account": account, "accounts": accounts, "entries": entries}
    async with reading(connection) as cursor:
        totals = await totals_of(cursor)
        await cursor.execute(_ACCOUNTS, values)
        moved = await cursor.fetchall()
        await cursor.execute(_ENTRIES, values)
        return {"totals": totals, "accounts": moved, "entries": await cursor.fetchall()}

"""SQL that proves and shows a ledger: a sample of records, sums that two databases must share, a view.

Everything here only reads, so that it works on a standby and on a scratch instance that recovery has paused.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
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


# Rows before a moment. `xmin` is the 32 low bits of the transaction that wrote a row; it precedes another one
# modulo 2^32 (PostgreSQL's documentation, "Transactions and Identifiers"), so that it is asked only of rows
# written within a day of the moment: far fewer than 2^31 transactions fit into that.
_UNTIL = "{written} < %(until)s"
_COMMITTED = """
    ({written} < %(until)s - interval '1 day' or {written} < %(until)s + interval '1 day'
     and (xmin::text::bigint - %(end)s::bigint %% {xids} + {xids}) %% {xids} >= {xids} / 2
     and xmin::text::bigint <> all (%(open)s::bigint[]))
"""
_XIDS = 2**32


@dataclass(frozen=True)
class Committed:
    """The transactions that had committed at a point of the WAL, among those that a database knows as
    committed: below ``end``, the first that had not begun or ended, and not among ``open``."""

    end: int
    open: Sequence[int] = ()


async def sums(
    connection: AsyncConnection[Any],
    until: datetime,
    *,
    month: str | None,
    by_account: bool,
    committed: Committed | None = None,
) -> dict[str, list[DbRow]]:
    """Rows, nano-dollars and a digest of each append-only table, a month (and an account), before a moment.

    The digest is the sum of the rows' hashes, so it does not depend on their order. ``month`` (2026-11) asks
    for that month only. With ``committed`` it is not the time of the rows that decides, but who wrote them:
    at the point that is meant, which was at ``until``, two databases of one history have exactly these rows,
    however much one of them is ahead.
    """
    found: dict[str, list[DbRow]] = {}
    within = _UNTIL if committed is None else _COMMITTED
    values: dict[str, Any] = {"until": until, "month": month}
    if committed is not None:
        values |= {"end": committed.end, "open": [number % _XIDS for number in committed.open]}
    async with reading(connection) as cursor:
        for table in APPEND_ONLY:
            await cursor.execute(_sums_of(table, by_account, within), values)
            found[table] = await cursor.fetchall()
    return found


def _sums_of(table: str, by_account: bool, within: str) -> str:
    written, amount, columns = APPEND_ONLY[table]
    rows = within.format(written=written, xids=_XIDS)
    keys = "1, 2" if by_account else "1"
    account = "account_id as account, " if by_account else ""
    return f"""
        select to_char({written}, 'YYYY-MM') as month, {account}count(*) as rows,
               coalesce(sum({amount}), 0)::text as nanodollars,
               sum(hashtextextended(row({columns})::text, 0)::numeric)::text as digest
        from {table}
        where {rows} and (%(month)s::text is null or to_char({written}, 'YYYY-MM') = %(month)s)
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

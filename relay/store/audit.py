"""SQL that proves the books: every sum worked out anew, from the entries up."""

from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection, AsyncCursor, IsolationLevel
from psycopg.rows import dict_row

DbRow = dict[str, Any]

# Each query returns the rows that are wrong: whose account, what it is about (item), what it should be and
# what it is. `now` is a parameter: in a database restored to an earlier moment it is that moment.
CHECKS: dict[str, str] = {
    "balance is the sum of entries": """
        select account_id as account, account_id || ' ' || unit as item, coalesce(e.total, 0) as expected,
               b.balance as found
        from balances b full join (select account_id, unit, sum(amount) as total from entries group by 1, 2) e
          using (account_id, unit)
        where coalesce(b.balance, 0) <> coalesce(e.total, 0)
    """,
    "open grants less debt are the balance": """
        select b.account_id as account, b.account_id || ' ' || b.unit as item,
               coalesce(g.total, 0) - b.debt as expected, b.balance as found
        from balances b
        left join (select account_id, unit, sum(remaining) as total from grants group by 1, 2) g
          using (account_id, unit)
        where b.balance <> coalesce(g.total, 0) - b.debt
    """,
    "each grant is the sum of its entries": """
        select g.account_id as account, 'grant ' || g.id as item, coalesce(e.total, 0) as expected,
               g.remaining as found
        from grants g left join (select grant_id, sum(amount) as total from entries group by 1) e
          on e.grant_id = g.id
        where g.remaining <> coalesce(e.total, 0)
    """,
    "debt is the sum of its entries": """
        select b.account_id as account, b.account_id || ' ' || b.unit as item,
               -coalesce(e.total, 0) as expected, b.debt as found
        from balances b
        left join (select account_id, unit, sum(amount) as total from entries where grant_id is null
                   group by 1, 2) e using (account_id, unit)
        where b.debt <> -coalesce(e.total, 0)
    """,
    "credit held is the sum of open holds": """
        select b.account_id as account, b.account_id::text as item, coalesce(h.total, 0) as expected,
               b.held as found
        from balances b
        left join (select account_id, sum(amount) as total from holds where state = 'held' group by 1) h
          using (account_id)
        where b.unit = 'credit' and b.held <> coalesce(h.total, 0)
    """,
    "units held are the sum of open holds": """
        select b.account_id as account, b.account_id || ' ' || b.unit as item,
               coalesce(h.total, 0) as expected, b.held as found
        from balances b
        left join (select account_id, q.key as unit, sum(q.value::bigint) as total
                   from holds, jsonb_each_text(quotas) q where state = 'held' group by 1, 2) h
          using (account_id, unit)
        where b.unit <> 'credit' and b.held <> coalesce(h.total, 0)
    """,
    "a budget holds the sum of open holds": """
        select case b.scope when 'account' then b.scope_id end as account, 'budget ' || b.id as item,
               coalesce(h.total, 0) as expected, b.held as found
        from budgets b
        left join (select id, sum(amount) as total from holds, unnest(budget_ids) id
                   where state = 'held' group by 1) h using (id)
        where b.held <> coalesce(h.total, 0)
    """,
    "a breaker counts the charges of its hour": """
        select t.account_id as account, 'token ' || b.token_id as item,
               coalesce(sum(u.charge), 0) as expected, b.spent as found
        from spend_breakers b join tokens t on t.id = b.token_id
        left join usage u on u.account_id = t.account_id and u.token_id = b.token_id
                         and u.settled_at >= b.hour and u.settled_at < b.hour + interval '1 hour'
        group by t.account_id, b.token_id, b.spent having coalesce(sum(u.charge), 0) <> b.spent
    """,
    "a captured hold has entries of its charge": """
        select h.account_id as account, h.request_id::text as item, h.charge as expected,
               -coalesce(e.total, 0) as found
        from holds h
        left join (select request_id, sum(amount) as total from entries
                   where kind = 'capture' and unit = 'credit' group by 1) e using (request_id)
        where h.state <> 'held' and coalesce(h.charge, 0) <> -coalesce(e.total, 0)
    """,
    "no charge without a captured hold": """
        select e.account_id as account, e.request_id::text as item, 'captured' as expected,
               coalesce(h.state, 'no hold') as found
        from entries e left join holds h using (request_id)
        where e.kind = 'capture' and (h.state in ('held', 'released')
              or h.request_id is null and e.created_at > %(now)s - interval '35 days')
        group by e.account_id, e.request_id, h.state
    """,
    "one usage record for each settled hold": """
        select h.account_id as account, h.request_id::text as item, 1 as expected,
               count(u.request_id) as found
        from holds h left join usage u on u.request_id = h.request_id and u.settled_at = h.settled_at
        where h.state <> 'held' group by h.request_id having count(u.request_id) <> 1
    """,
    "no call is recorded twice": """
        select min(account_id) as account, request_id::text as item, 1 as expected, count(*) as found
        from usage group by request_id having count(*) > 1
    """,
    "the usage record has the charge of its hold": """
        select h.account_id as account, h.request_id::text as item, h.charge as expected, u.charge as found
        from holds h join usage u on u.request_id = h.request_id and u.settled_at = h.settled_at
        where h.charge is distinct from u.charge
    """,
    "no hold outlives its expiry by ten minutes": """
        select account_id as account, request_id::text as item, 'settled' as expected,
               'held since ' || created_at as found
        from holds where state = 'held' and expires_at < %(now)s - interval '10 minutes'
    """,
    "every account has a credit balance": """
        select a.id as account, a.id::text as item, 'a balance' as expected, 'none' as found
        from accounts a where not exists (select from balances b where b.account_id = a.id and b.unit =
        'credit')
    """,
}
_TOTALS = """
select (select count(*) from accounts) as accounts, (select count(*) from entries) as entries,
       (select count(*) from holds) as holds, (select count(*) from holds where state = 'held') as open_holds,
       (select count(*) from usage) as usage_records,
       (select coalesce(sum(balance), 0) from balances where unit = 'credit') as balance_nanodollars,
       (select coalesce(sum(amount), 0) from entries where unit = 'credit') as entries_nanodollars,
       (select coalesce(sum(debt), 0) from balances where unit = 'credit') as debt_nanodollars,
       (select coalesce(sum(charge), 0) from usage) as charged_nanodollars
"""
# The columns of a record from which its charge is derived again.
EVIDENCE = """
       request_id, account_id, settled_at, meters, raw_usage, charge, plan_paid, debt, overage::text,
       grants_used, quotas_used, exact_numerator, exact_denominator, cost, sell::text, cost_side::text,
       unpriced, outcome
"""
_RECORDS = f"""
select {EVIDENCE} from usage where settled_at >= %s and settled_at < %s order by settled_at, request_id
"""  # noqa: S608


async def conserve(
    connection: AsyncConnection[Any], most: int, now: datetime | None = None
) -> tuple[DbRow, list[DbRow]]:
    """Totals, and the first ``most`` differences of each check, all seen at one moment.

    ``now`` is the moment that the database was restored to; by default its own clock is asked.
    """
    await connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
    await connection.set_read_only(True)
    wrong: list[DbRow] = []
    async with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
        moment = now or await _clock(cursor)
        totals = await totals_of(cursor)
        for check, query in CHECKS.items():
            await cursor.execute(f"{query} limit {int(most)}", {"now": moment})
            wrong += [{"check": check, **row} for row in await cursor.fetchall()]
    return totals, wrong


async def totals_of(cursor: AsyncCursor[DbRow]) -> dict[str, int]:
    """How many rows there are, and the sums of money, in nano-dollars."""
    await cursor.execute(_TOTALS)
    return {name: int(value) for name, value in (await cursor.fetchone() or {}).items()}


async def _clock(cursor: AsyncCursor[DbRow]) -> datetime:
    await cursor.execute("select now() as now")
    row = await cursor.fetchone() or {}
    found: datetime = row["now"]
    return found


async def records(
    connection: AsyncConnection[Any], since: datetime, until: datetime
) -> AsyncGenerator[DbRow, None]:
    """Usage records settled in a span of time, read in portions."""
    async with connection.transaction(), connection.cursor("records", row_factory=dict_row) as cursor:
        cursor.itersize = 2000
        await cursor.execute(_RECORDS, (since, until))
        async for row in cursor:
            yield row

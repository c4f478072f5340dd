"""SQL of the jobs: whose turn it is, expired holds, roll-ups, partitions, retention."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

DbRow = dict[str, Any]

_ROLL_UP = """
select coalesce((select (result ->> 'until')::timestamptz from jobs where name = 'roll_up') - interval '1
hour',
                (select min(settled_at) from usage), now())
"""


async def claim(connection: AsyncConnection[Any], name: str, lease: timedelta) -> bool:
    """Take a job that is due; nobody else gets it before the lease ends or it is finished."""
    await connection.execute("insert into jobs (name) values (%s) on conflict do nothing", (name,))
    cursor = await connection.execute(
        "update jobs set next_run_at = now() + %s where name = %s and next_run_at <= now()", (lease, name)
    )
    return cursor.rowcount == 1


async def finish(connection: AsyncConnection[Any], name: str, after: timedelta, result: DbRow) -> None:
    """Note a success and when the job is due again."""
    await connection.execute(
        "update jobs set next_run_at = now() + %s, last_success_at = now(), result = %s where name = %s",
        (after, Jsonb(result), name),
    )


async def fail(connection: AsyncConnection[Any], name: str, after: timedelta) -> None:
    """Note a failure; the last result stays."""
    await connection.execute(
        "update jobs set next_run_at = now() + %s, last_failure_at = now() where name = %s", (after, name)
    )


async def list_jobs(connection: AsyncConnection[Any]) -> list[DbRow]:
    """All jobs that ever ran."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "select name, next_run_at, last_success_at, last_failure_at, result from jobs order by name"
        )
        return await cursor.fetchall()


async def expired_holds(connection: AsyncConnection[Any], most: int) -> list[tuple[UUID, int]]:
    """(request id, n$ held) of open holds past their expiry, oldest first."""
    cursor = await connection.execute(
        "select request_id, amount from holds where state = 'held' and expires_at < now()"
        " order by expires_at limit %s",
        (most,),
    )
    return await cursor.fetchall()


async def roll_accounts(connection: AsyncConnection[Any], most: int) -> int:
    """Lapse grants and begin periods of accounts where that is due."""
    return await _number(connection, "select ledger_roll_due(%s)", (most,))


async def roll_up_usage(connection: AsyncConnection[Any]) -> DbRow:
    """Roll up from an hour before the last time until the last full hour (two minutes of grace)."""
    cursor = await connection.execute(_ROLL_UP)
    since = _only(await cursor.fetchone())
    cursor = await connection.execute("select date_trunc('hour', now() - interval '2 minutes')")
    until: datetime = _only(await cursor.fetchone())
    lines = 0
    if since < until:
        lines = await _number(connection, "select usage_roll_up(%s, %s)", (since, until))
    return {"until": until.isoformat(), "lines": lines}


async def ensure_partitions(connection: AsyncConnection[Any], months_ahead: int) -> list[str]:
    """Make the partitions of the coming months; returns the names of new ones."""
    cursor = await connection.execute("select usage_ensure_partitions(%s)", (months_ahead,))
    return list(_only(await cursor.fetchone()))


async def drop_partitions(connection: AsyncConnection[Any], keep_months: int) -> list[str]:
    """Drop months of usage that are older and rolled up; returns their names."""
    cursor = await connection.execute("select usage_drop_partitions(%s)", (keep_months,))
    return list(_only(await cursor.fetchone()))


async def purge_holds(connection: AsyncConnection[Any], keep_days: int, most: int) -> int:
    """Forget old settled holds; returns how many."""
    return await _number(connection, "select holds_purge(%s, %s)", (keep_days, most))


async def _number(connection: AsyncConnection[Any], query: str, values: tuple[Any, ...]) -> int:
    cursor = await connection.execute(query, values)
    return int(_only(await cursor.fetchone()))


def _only(row: Any) -> Any:
    if row is None:
        raise RuntimeError("the query returned no row")
    return row[0]

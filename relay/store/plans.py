"""SQL of plans: what each of their accounts may use."""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row

_SELECT = (
    "select id, name, rpm, tpm, concurrency, model_limits,"
    " (select count(*) from accounts a where a.plan_id = plans.id) as accounts, created_at from plans"
)
Row = dict[str, Any]


async def create_plan(
    connection: AsyncConnection, name: str, *, rpm: int | None, tpm: int | None, concurrency: int | None
) -> Row:
    """Create a plan; raises psycopg.errors.UniqueViolation when the name is taken."""
    await connection.execute(
        "insert into plans (name, rpm, tpm, concurrency) values (%s, %s, %s, %s)",
        (name, rpm, tpm, concurrency),
    )
    return next(row for row in await list_plans(connection) if row["name"] == name)


async def list_plans(connection: AsyncConnection) -> list[Row]:
    """All plans, with how many ``accounts`` each has."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(f"{_SELECT} order by id")
        return await cursor.fetchall()


async def lock_plan(connection: AsyncConnection, name: str) -> int | None:
    """A plan's id, kept as it is until the transaction ends; None where there is none of that name."""
    cursor = await connection.execute("select id from plans where name = %s for update", (name,))
    row = await cursor.fetchone()
    return int(row[0]) if row else None


async def remove_plan(connection: AsyncConnection, plan_id: int) -> bool:
    """Forget a plan; False when an account has it. To be called with the plan locked."""
    cursor = await connection.execute(
        "delete from plans where id = %(plan)s and not exists"
        " (select from accounts where plan_id = %(plan)s)",
        {"plan": plan_id},
    )
    return cursor.rowcount == 1

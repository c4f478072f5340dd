"""SQL of routes: how one of the channels that serve a model is chosen."""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row

Row = dict[str, Any]


async def list_routes(connection: AsyncConnection) -> list[Row]:
    """All routes: model, sticky, prefer."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute("select model, sticky, prefer from routes order by model")
        return await cursor.fetchall()


async def set_route(connection: AsyncConnection, model: str, sticky: str | None, prefer: str | None) -> Row:
    """Set a model's route; what is None stays as it is, or is off and weight."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "insert into routes (model, sticky, prefer)"
            " values (%(model)s, coalesce(%(sticky)s, 'off'), coalesce(%(prefer)s, 'weight'))"
            " on conflict (model) do update set sticky = coalesce(%(sticky)s, routes.sticky),"
            " prefer = coalesce(%(prefer)s, routes.prefer) returning model, sticky, prefer",
            {"model": model, "sticky": sticky, "prefer": prefer},
        )
        (row,) = await cursor.fetchall()
        return row


async def remove_route(connection: AsyncConnection, model: str) -> bool:
    """Forget a model's route; False when it has none."""
    cursor = await connection.execute("delete from routes where model = %s", (model,))
    return cursor.rowcount == 1

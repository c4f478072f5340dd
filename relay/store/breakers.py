"""SQL of the breakers that stop a key which spends too much in an hour."""

from __future__ import annotations

from typing import Any, Literal

from psycopg import AsyncConnection
from psycopg.rows import dict_row

DbRow = dict[str, Any]
# ``open``: calls are refused until ``until``.
_SELECT = """
select b.token_id, t.account_id, t.name, t.prefix, b.maximum, n.spent, n.lifted,
       n.spent - n.lifted >= b.maximum as open, n.hour + interval '1 hour' as until
  from spend_breakers b join tokens t on t.id = b.token_id,
       lateral (select date_trunc('hour', now(), 'UTC') as hour) h,
       lateral (select b.spent, b.lifted, b.hour where b.hour >= h.hour
                union all
                select 0, 0, h.hour where b.hour < h.hour) n
"""


async def change(
    connection: AsyncConnection[Any],
    kind: Literal["set", "lift", "clear"],
    token_id: int,
    *,
    maximum: int | None,
    reason: str,
    actor: str,
) -> str:
    """Set a breaker at ``maximum`` n$ an hour, lift or clear it; returns spend_breaker_change()'s outcome."""
    cursor = await connection.execute(
        "select spend_breaker_change(%s, %s, %s, %s, %s)", (token_id, kind, maximum, reason, actor)
    )
    row = await cursor.fetchone()
    return str(row[0]) if row else ""


async def find(connection: AsyncConnection[Any], token_id: int) -> DbRow | None:
    """A token's breaker; amounts in n$, ``spent`` of the running hour."""
    rows = await _all(connection, f"{_SELECT} where b.token_id = %s", (token_id,))
    return rows[0] if rows else None


async def list_all(connection: AsyncConnection[Any], *, only_open: bool) -> list[DbRow]:
    """All breakers, or those that refuse calls."""
    where = "where n.spent - n.lifted >= b.maximum" if only_open else ""
    return await _all(connection, f"{_SELECT} {where} order by b.token_id", ())


async def changes(connection: AsyncConnection[Any], token_id: int, limit: int) -> list[DbRow]:
    """What was changed of a token's breaker, by whom and why; the newest first."""
    query = (
        "select id, token_id, kind, maximum, spent, reason, actor, created_at from spend_breaker_changes"
        " where token_id = %s order by id desc limit %s"
    )
    return await _all(connection, query, (token_id, limit))


async def _all(connection: AsyncConnection[Any], query: str, values: Any) -> list[DbRow]:
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(query, values)
        return await cursor.fetchall()

"""SQL of channels: accounts at providers. API keys come and go sealed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

_PUBLIC = "id, name, provider, base_url, models, model_map, priority, weight, status, created_at"
Row = dict[str, Any]


async def create_channel(
    connection: AsyncConnection,
    *,
    name: str,
    provider: str,
    base_url: str,
    api_key_sealed: str,
    models: Sequence[str],
    model_map: Mapping[str, str],
    priority: int,
    weight: int,
) -> int:
    """Create an enabled channel and return its id; raises psycopg.errors.UniqueViolation."""
    cursor = await connection.execute(
        "insert into channels (name, provider, base_url, api_key_sealed, models, model_map, priority, weight)"
        " values (%s, %s, %s, %s, %s, %s, %s, %s) returning id",
        (name, provider, base_url, api_key_sealed, list(models), Jsonb(dict(model_map)), priority, weight),
    )
    row = await cursor.fetchone()
    if row is None:
        raise RuntimeError("an insert returned no row")
    return int(row[0])


async def list_channels(connection: AsyncConnection) -> list[Row]:
    """All channels without their keys."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(f"select {_PUBLIC} from channels order by id")  # noqa: S608
        return await cursor.fetchall()


async def load_channels(connection: AsyncConnection) -> list[Row]:
    """All channels with their sealed keys, for routing."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(f"select {_PUBLIC}, api_key_sealed from channels order by id")  # noqa: S608
        return await cursor.fetchall()


async def set_channel_status(connection: AsyncConnection, channel: str, status: str) -> bool:
    """Set enabled or disabled, by name or id; False when there is no such channel."""
    cursor = await connection.execute(
        "update channels set status = %s where name = %s or id::text = %s", (status, channel, channel)
    )
    return cursor.rowcount == 1

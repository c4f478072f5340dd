"""SQL of channels: accounts at providers. API keys come and go sealed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg import AsyncConnection, sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

_PUBLIC = (  # not the key
    "id, name, provider, format, base_url, models, model_map, priority, weight, unknown_fields,"
    " output_limit_field, status, created_at"
)
# What may be written, by column of the table.
WRITABLE = (
    "name",
    "provider",
    "format",
    "base_url",
    "api_key_sealed",
    "models",
    "model_map",
    "priority",
    "weight",
    "unknown_fields",
    "output_limit_field",
    "status",
)
Row = dict[str, Any]


async def create_channel(connection: AsyncConnection, columns: Row) -> int:
    """Create a channel from columns of WRITABLE and return its id.

    Raises psycopg.errors.UniqueViolation when the name is taken.
    """
    names = _writable(columns)
    statement = sql.SQL("insert into channels ({}) values ({}) returning id").format(
        sql.SQL(", ").join(map(sql.Identifier, names)), sql.SQL(", ").join(sql.Placeholder() * len(names))
    )
    cursor = await connection.execute(statement, _values(columns))
    row = await cursor.fetchone()
    if row is None:
        raise RuntimeError("an insert returned no row")
    return int(row[0])


async def update_channel(connection: AsyncConnection, channel_id: int, columns: Row) -> bool:
    """Change columns of WRITABLE; False when there is no such channel."""
    changes = [sql.SQL("{} = %s").format(sql.Identifier(name)) for name in _writable(columns)]
    statement = sql.SQL("update channels set {} where id = %s").format(sql.SQL(", ").join(changes))
    cursor = await connection.execute(statement, [*_values(columns), channel_id])
    return cursor.rowcount == 1


def _writable(columns: Row) -> list[str]:
    unknown = set(columns) - set(WRITABLE)
    if unknown or not columns:
        raise ValueError(f"not columns of a channel: {sorted(unknown)}")
    return list(columns)


def _values(columns: Row) -> list[Any]:
    return [Jsonb(value) if isinstance(value, Mapping) else value for value in columns.values()]


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

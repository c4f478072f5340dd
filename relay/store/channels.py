"""SQL of channels: accounts at providers. API keys come and go sealed.

A channel's first key is a column of its row, the others are rows of channel_keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg import AsyncConnection, sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

_PUBLIC = (  # not the keys, but for their names
    "id, name, provider, format, base_url, models, model_map, priority, weight, rpm, tpm, concurrency,"
    " unknown_fields, output_limit_field, transcript_format, status, created_at, array[key_name]"
    " || array(select k.name from channel_keys k where k.channel_id = channels.id order by k.id) as keys"
)
_SEALED = (
    "jsonb_build_array(jsonb_build_object('name', key_name, 'api_key_sealed', api_key_sealed)) || coalesce("
    "(select jsonb_agg(jsonb_build_object('name', k.name, 'api_key_sealed', k.api_key_sealed) order by k.id)"
    " from channel_keys k where k.channel_id = channels.id), '[]') as sealed_keys"
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
    "rpm",
    "tpm",
    "concurrency",
    "unknown_fields",
    "output_limit_field",
    "transcript_format",
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


async def reseal_key(
    connection: AsyncConnection, channel_id: int, key_name: str, sealed: str, again: str
) -> bool:
    """Replace a sealed key; False when it is not `sealed` any more, since somebody has given another key."""
    found = {"channel": channel_id, "name": key_name, "sealed": sealed, "again": again}
    changed = 0
    for statement in (
        "update channels set api_key_sealed = %(again)s"
        " where id = %(channel)s and key_name = %(name)s and api_key_sealed = %(sealed)s",
        "update channel_keys set api_key_sealed = %(again)s"
        " where channel_id = %(channel)s and name = %(name)s and api_key_sealed = %(sealed)s",
    ):
        changed += (await connection.execute(statement, found)).rowcount
    return changed == 1


async def list_keys(connection: AsyncConnection, channel_id: int) -> list[Row]:
    """A channel's keys, the first one first, without the keys themselves."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "select key_name as name, created_at from channels where id = %(channel)s union all"
            " (select name, created_at from channel_keys where channel_id = %(channel)s order by id)",
            {"channel": channel_id},
        )
        return await cursor.fetchall()


async def add_key(connection: AsyncConnection, channel_id: int, key_name: str, sealed: str) -> None:
    """One more key; raises psycopg.errors.UniqueViolation when another one beside the first has the name."""
    await connection.execute(
        "insert into channel_keys (channel_id, name, api_key_sealed) values (%s, %s, %s)",
        (channel_id, key_name, sealed),
    )


async def remove_key(connection: AsyncConnection, channel_id: int, key_name: str) -> bool:
    """Forget a key; the oldest of the others takes the first one's place. False: it is unknown, or the only
    one."""
    found = {"channel": channel_id, "name": key_name}
    cursor = await connection.execute(
        "delete from channel_keys where channel_id = %(channel)s and name = %(name)s", found
    )
    if cursor.rowcount == 1:
        return True
    cursor = await connection.execute(
        "with heir as (delete from channel_keys where id ="
        " (select min(k.id) from channel_keys k join channels c on c.id = k.channel_id"
        " where c.id = %(channel)s and c.key_name = %(name)s) returning name, api_key_sealed)"
        " update channels set key_name = heir.name, api_key_sealed = heir.api_key_sealed from heir"
        " where channels.id = %(channel)s",
        found,
    )
    return cursor.rowcount == 1


async def lock_channel(connection: AsyncConnection, channel_id: int) -> Row:
    """A channel with its sealed keys, which nobody else changes until the transaction ends."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute("select 1 from channels where id = %s for update", (channel_id,))
        await cursor.execute(f"select {_PUBLIC}, {_SEALED} from channels where id = %s", (channel_id,))  # noqa: S608
        (row,) = await cursor.fetchall()
        return row


def _writable(columns: Row) -> list[str]:
    unknown = set(columns) - set(WRITABLE)
    if unknown or not columns:
        raise ValueError(f"not columns of a channel: {sorted(unknown)}")
    return list(columns)


def _values(columns: Row) -> list[Any]:
    return [Jsonb(value) if isinstance(value, Mapping) else value for value in columns.values()]


async def list_channels(connection: AsyncConnection) -> list[Row]:
    """All channels; ``keys``: the names of their keys, the first one first."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(f"select {_PUBLIC} from channels order by id")  # noqa: S608
        return await cursor.fetchall()


async def load_channels(connection: AsyncConnection) -> list[Row]:
    """All channels with their ``sealed_keys`` (name, api_key_sealed), for routing."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(f"select {_PUBLIC}, {_SEALED} from channels order by id")  # noqa: S608
        return await cursor.fetchall()


_BUDGETS = (
    "select b.channel_id, c.name as channel, b.period, b.maximum, b.period_ends,"
    " case when b.period_ends > now() then b.spent else 0 end as spent"
    " from channel_budgets b join channels c on c.id = b.channel_id order by b.channel_id, b.period"
)


async def list_budgets(connection: AsyncConnection) -> list[Row]:
    """Budgets of all channels, in n$ of the period that runs."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_BUDGETS)
        return await cursor.fetchall()


async def set_budget(connection: AsyncConnection, channel_id: int, period: str, maximum: int) -> None:
    """Set or change a budget; what was spent in the running period stays counted."""
    await connection.execute(
        "insert into channel_budgets (channel_id, period, maximum, period_ends)"
        " values (%(channel)s, %(period)s, %(maximum)s, budget_period_end(%(period)s, now()))"
        " on conflict (channel_id, period) do update set maximum = excluded.maximum",
        {"channel": channel_id, "period": period, "maximum": maximum},
    )


async def remove_budget(connection: AsyncConnection, channel_id: int, period: str) -> bool:
    """Forget a budget; False when there is none."""
    cursor = await connection.execute(
        "delete from channel_budgets where channel_id = %s and period = %s", (channel_id, period)
    )
    return cursor.rowcount == 1

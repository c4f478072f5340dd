"""SQL of prices, group multipliers and exchange rates."""

from collections.abc import Sequence
from datetime import datetime
from fractions import Fraction
from typing import Any, NamedTuple

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

DbRow = dict[str, Any]

_VERSION = (
    "id, model, side, provider, customer_group, currency, valid_from, valid_to, status, free, quantum,"
    " minimum, style, typed, hash, source, created_at"
)
_GROUP = "id, customer_group, for_group, multiplier, valid_from, valid_to"
_FX = "id, currency, numerator, denominator, valid_from, valid_to"
_INSERT = """
insert into price_versions (model, side, provider, customer_group, currency, valid_from, valid_to, free,
quantum,
                            minimum, style, typed, hash, source)
values (%(model)s, %(side)s, %(provider)s, %(customer_group)s, %(currency)s, coalesce(%(valid_from)s, now()),
        %(valid_to)s, %(free)s, %(quantum)s, %(minimum)s, %(style)s, %(typed)s, %(hash)s, %(source)s)
returning id
"""
_ROWS = """
select version_id, meter, unit_price, fallback, service_tier, context_from, context_to
from price_rows where version_id = any (%s) order by version_id, id
"""


class PriceRows(NamedTuple):
    """Rows of everything published: versions with theirs in ``rows``, group multipliers, exchange rates."""

    revision: int
    versions: list[DbRow]
    groups: list[DbRow]
    fx: list[DbRow]


async def load_published(connection: AsyncConnection[Any], since: datetime) -> PriceRows:
    """Everything published that holds at ``since`` or later."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        # The revision first: what changes while we read moves it, and the prices are loaded again.
        await cursor.execute("select revision from revisions where topic = 'prices'")
        revision = (await cursor.fetchone() or {"revision": 0})["revision"]
        lately = "(valid_to is null or valid_to > %s)"
        await cursor.execute(
            f"select {_VERSION} from price_versions where status = 'published' and {lately}",  # noqa: S608
            (since,),
        )
        versions = await _with_rows(cursor, await cursor.fetchall())
        await cursor.execute(f"select {_GROUP} from group_multipliers where {lately}", (since,))  # noqa: S608
        groups = await cursor.fetchall()
        await cursor.execute(f"select {_FX} from fx_rates where {lately}", (since,))  # noqa: S608
        return PriceRows(revision, versions, groups, await cursor.fetchall())


async def _with_rows(cursor: AsyncCursor[DbRow], versions: list[DbRow]) -> list[DbRow]:
    await cursor.execute(_ROWS, ([version["id"] for version in versions],))
    rows: dict[int, list[DbRow]] = {}
    for row in await cursor.fetchall():
        rows.setdefault(row.pop("version_id"), []).append(row)
    return [{**version, "rows": rows.get(version["id"], [])} for version in versions]


async def insert_version(connection: AsyncConnection[Any], version: DbRow, rows: Sequence[DbRow]) -> int:
    """Write a draft and return its id.

    ``version``: the columns of price_versions that have no default; ``rows``: those of price_rows.
    """
    async with connection.transaction():
        cursor = await connection.execute(
            _INSERT,
            {**version, "typed": Jsonb(version["typed"])},
        )
        made = await cursor.fetchone()
        if made is None:
            raise RuntimeError("an insert returned no row")
        async with connection.cursor() as writer:
            await writer.executemany(
                "insert into price_rows (version_id, meter, unit_price, fallback, service_tier, context_from,"
                " context_to) values (%(version_id)s, %(meter)s, %(unit_price)s, %(fallback)s,"
                " %(service_tier)s, %(context_from)s, %(context_to)s)",
                [{**row, "version_id": made[0]} for row in rows],
            )
        return int(made[0])


async def publish(connection: AsyncConnection[Any], version_id: int, *, supersede: bool) -> DbRow | None:
    """Publish a draft; None when there is none of this id (or it is published already).

    A draft that was to hold from the past holds from now. ``supersede``: an open-ended version that began
    earlier ends where this one begins. Raises psycopg.errors.ExclusionViolation when another version
    overlaps.
    """
    async with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "update price_versions set valid_from = greatest(valid_from, now())"
            " where id = %s and status = 'draft'"
            " returning model, side, provider, customer_group, valid_from",
            (version_id,),
        )
        draft = await cursor.fetchone()
        if draft is None:
            return None
        if supersede:
            await cursor.execute(
                "update price_versions set valid_to = %(valid_from)s where status = 'published'"
                " and (model, side, provider, customer_group)"
                " = (%(model)s, %(side)s, %(provider)s, %(customer_group)s)"
                " and valid_to is null and valid_from < %(valid_from)s",
                draft,
            )
        await cursor.execute(
            f"update price_versions set status = 'published' where id = %s returning {_VERSION}",  # noqa: S608
            (version_id,),
        )
        return await cursor.fetchone()


async def list_versions(
    connection: AsyncConnection[Any],
    *,
    model: str | None = None,
    status: str | None = None,
    at: datetime | None = None,
    version_id: int | None = None,
) -> list[DbRow]:
    """Versions with their rows, newest first; ``at``: only those that hold then."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            f"select {_VERSION} from price_versions"  # noqa: S608
            " where (%(model)s::text is null or model = %(model)s)"
            " and (%(status)s::text is null or status = %(status)s)"
            " and (%(id)s::bigint is null or id = %(id)s)"
            " and (%(at)s::timestamptz is null or tstzrange(valid_from, valid_to) @> %(at)s)"
            " order by id desc",
            {"model": model, "status": status, "at": at, "id": version_id},
        )
        return await _with_rows(cursor, await cursor.fetchall())


async def delete_draft(connection: AsyncConnection[Any], version_id: int) -> bool:
    """Drop a draft; False when there is none of this id."""
    cursor = await connection.execute(
        "delete from price_versions where id = %s and status = 'draft'", (version_id,)
    )
    return cursor.rowcount == 1


async def end_version(connection: AsyncConnection[Any], version_id: int, at: datetime | None) -> bool:
    """Set the end of a published version (now if None): from then on the model may be unpriced."""
    cursor = await connection.execute(
        "update price_versions"
        " set valid_to = greatest(coalesce(%s, now()), valid_from + interval '1 microsecond')"
        " where id = %s and status = 'published'",
        (at, version_id),
    )
    return cursor.rowcount == 1


async def set_multiplier(
    connection: AsyncConnection[Any], *, group: str, for_group: str, multiplier: str, source: str
) -> int:
    """Replace what a group pays from now on; returns the id of the new row."""
    async with connection.transaction():
        await connection.execute(
            "update group_multipliers set valid_to = now()"
            " where (customer_group, for_group) = (%s, %s) and (valid_to is null or valid_to > now())"
            " and valid_from < now()",
            (group, for_group),
        )
        cursor = await connection.execute(
            "insert into group_multipliers (customer_group, for_group, multiplier, source)"
            " values (%s, %s, %s, %s) returning id",
            (group, for_group, multiplier, source),
        )
        return _id(await cursor.fetchone())


async def set_fx(connection: AsyncConnection[Any], *, currency: str, value: Fraction, source: str) -> int:
    """Replace the exchange rate of a currency from now on; returns the id of the new row."""
    async with connection.transaction():
        await connection.execute(
            "update fx_rates set valid_to = now()"
            " where currency = %s and valid_to is null and valid_from < now()",
            (currency,),
        )
        cursor = await connection.execute(
            "insert into fx_rates (currency, numerator, denominator, source) values (%s, %s, %s, %s)"
            " returning id",
            (currency, value.numerator, value.denominator, source),
        )
        return _id(await cursor.fetchone())


async def list_multipliers(connection: AsyncConnection[Any]) -> list[DbRow]:
    """Group multipliers, newest first."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "select id, customer_group, for_group, multiplier::text, valid_from, valid_to, source"
            " from group_multipliers order by id desc"
        )
        return await cursor.fetchall()


async def list_fx(connection: AsyncConnection[Any]) -> list[DbRow]:
    """Exchange rates, newest first."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "select id, currency, numerator || '/' || denominator as rate, valid_from, valid_to, source"
            " from fx_rates order by id desc"
        )
        return await cursor.fetchall()


def _id(row: Any) -> int:
    if row is None:
        raise RuntimeError("an insert returned no row")
    return int(row[0])

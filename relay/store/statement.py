"""SQL of one account's statement: every row that names the account, all of them as of one moment.

Every table has a place here, and every column of a table that names an account: what a migration adds is
refused until somebody decides whether a customer may see it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import tuple_row

from relay.store.evidence import reading

VERSION = 1
PORTION = 2000
# Longer than the server's own limit: whoever reads the lines may be slow.
_IDLE = "set local idle_in_transaction_session_timeout = '10min'"
_OWN = "account_id = %(account)s"
_OF_ITS_TOKENS = "token_id in (select id from tokens where account_id = %(account)s)"


@dataclass(frozen=True)
class Table:
    """Which rows of a table are an account's, their order, and the columns that are told."""

    columns: str
    order: str
    rows: str = _OWN
    costs: str = ""

    def told(self, costs: bool) -> list[str]:
        """The columns, those that tell what calls cost the reseller only with `costs`."""
        return [*self.columns.split(), *(self.costs.split() if costs else ())]


# In the order of the statement: what an account is, what it may spend, what it spent.
TABLES: dict[str, Table] = {
    "accounts": Table(
        "id name customer_group status credit_limit overage_multiplier period_anchor rpm tpm concurrency"
        " model_limits plan_id created_at",
        "id",
        "id = %(account)s",
    ),
    "balances": Table("account_id unit balance held debt next_event_at", "unit"),
    "tokens": Table(
        "id account_id name prefix status models addresses permissions rpm tpm concurrency"
        " model_limits expires_at created_at",
        "id",
    ),
    "allowances": Table("id account_id unit amount months anchor ends_at source_id reason created_at", "id"),
    "budgets": Table(
        "id scope scope_id period maximum spent held period_ends created_at",
        "id",
        "(scope = 'account' and scope_id = %(account)s or scope = 'token' and scope_id in"
        " (select id from tokens where account_id = %(account)s))",
    ),
    "spend_breakers": Table("token_id maximum hour spent lifted", "token_id", _OF_ITS_TOKENS),
    "spend_breaker_changes": Table(
        "id token_id kind maximum spent reason actor created_at", "id", _OF_ITS_TOKENS
    ),
    "grants": Table(
        "id account_id unit source source_id amount remaining closed priority expires_at reason created_by"
        " created_at",
        "id",
    ),
    "holds": Table(
        "request_id account_id token_id attempt state amount quotas budget_ids overage model customer_group"
        " charge created_at expires_at settled_at reason",
        "created_at, request_id",
    ),
    "entries": Table(
        "id account_id unit grant_id kind amount request_id reverses reason source created_at", "id"
    ),
    "usage": Table(
        "request_id settled_at account_id token_id channel_id model customer_group outcome abort_rule stream"
        " admitted_at started_at duration_ms first_byte_ms meters raw_usage held charge plan_paid debt"
        " quotas_used grants_used exact_numerator exact_denominator overage sell unpriced facts",
        "settled_at, request_id",
        costs="cost cost_side attempts",
    ),
    "usage_hourly": Table(
        "hour account_id model channel_id calls failed charge input_units output_units",
        "hour, model, channel_id",
        costs="cost uncosted",
    ),
    "usage_daily": Table(
        "day account_id model channel_id calls failed charge input_units output_units",
        "day, model, channel_id",
        costs="cost uncosted",
    ),
}
LEFT_OUT = {
    "tokens.hash": "proves who has the token: a secret's digest leaves the database never",
    **{
        f"{table}.{column}": "what calls cost the reseller; `--costs` tells it"
        for table, one in TABLES.items()
        for column in one.costs.split()
    },
}
WITHOUT_ACCOUNT = {
    "alembic_version": "the schema's revision",
    "channel_budgets": "what providers may cost the reseller",
    "channel_keys": "more sealed keys of providers",
    "channels": "providers, with their sealed keys",
    "fx_rates": "exchange rates",
    "group_multipliers": "prices of customer groups; each usage record has its own by value",
    "jobs": "when the relay's own jobs ran",
    "plans": "what accounts of a plan may use",
    "price_rows": "prices; each usage record has its own by value",
    "price_versions": "prices; each usage record has its own by value",
    "revisions": "how often configuration changed",
    "routes": "how channels are chosen",
    "schema_support": "the oldest version of the relay that the schema serves",
}
_SCHEMA = """
select c.relname, array_agg(a.attname::text order by a.attnum)
from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
group by c.relname
"""
_HEAD = """
select now(), pg_current_snapshot()::text, (select version_num from alembic_version),
       (case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end)::text
"""


class NoAccount(LookupError):
    """There is no such account."""


class Unplaced(Exception):
    """The schema has tables or columns of which this program does not know whether they are told."""


def unplaced(schema: Mapping[str, list[str]]) -> list[str]:
    """Tables (``name``) and columns (``table.column``) of a schema that have no place here."""
    tables = [table for table in schema if table not in TABLES and table not in WITHOUT_ACCOUNT]
    columns = [
        f"{table}.{column}"
        for table, one in TABLES.items()
        for column in schema.get(table, ())
        if column not in one.told(costs=True) and f"{table}.{column}" not in LEFT_OUT
    ]
    return sorted([*tables, *columns])


async def schema_of(connection: AsyncConnection[Any]) -> dict[str, list[str]]:
    """The columns of each table; partitions are not told apart from their table."""
    cursor = await connection.execute(_SCHEMA)
    return {table: columns for table, columns in await cursor.fetchall()}


async def lines(
    connection: AsyncConnection[Any], account: int, *, costs: bool = False
) -> AsyncGenerator[tuple[str, Any], None]:
    """(What it is, its content) of the statement, all seen at one moment.

    First ``statement`` with a mapping: account, at, snapshot, lsn, schema, left_out. Then (table, JSON object
    as PostgreSQL writes it) for each row. Raises NoAccount and Unplaced before the first.
    """
    values = {"account": account}
    async with reading(connection):
        await connection.execute(_IDLE)
        cursor = connection.cursor(row_factory=tuple_row)
        at, snapshot, schema, lsn = await (await cursor.execute(_HEAD)).fetchone() or (None,) * 4
        found = await schema_of(connection)
        if strange := unplaced(found):
            raise Unplaced(", ".join(strange))
        await cursor.execute("select 1 from accounts where id = %(account)s", values)
        if not await cursor.fetchone():
            raise NoAccount(account)
        left_out = {
            name: reason for name, reason in LEFT_OUT.items() if not (costs and name != "tokens.hash")
        }
        head = {"version": VERSION, "account": account, "at": at.isoformat(), "snapshot": snapshot}
        yield "statement", head | {"lsn": lsn, "schema": schema, "left_out": left_out}
        for table, one in TABLES.items():
            # A database restored from before a migration lacks what it added.
            columns = [column for column in one.told(costs) if column in found.get(table, ())]
            if not columns:
                continue
            async with connection.cursor(f"statement_{table}", row_factory=tuple_row) as rows:
                rows.itersize = PORTION
                await rows.execute(_rows_of(table, one, columns).encode(), values)
                async for row in rows:
                    yield table, row[0]


def _rows_of(table: str, one: Table, columns: list[str]) -> str:
    # All of it is from TABLES; `columns` are those of them that the schema has.
    return (
        f"select row_to_json(line)::text from (select {', '.join(columns)} from {table}"  # noqa: S608
        f" where {one.rows} order by {one.order}) line"
    )

"""SQL of accounts and tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from psycopg import AsyncConnection, sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

_SELECT_ACCOUNT = """
select a.id, a.name, a.customer_group as "group", a.status, a.credit_limit, a.rpm, a.tpm, a.concurrency,
       a.model_limits, p.name as plan, b.balance as balance_nanodollars, b.held as held_nanodollars,
       b.debt as debt_nanodollars, a.created_at
from accounts a join balances b on b.account_id = a.id and b.unit = 'credit'
left join plans p on p.id = a.plan_id
"""
_SELECT_KEY = """
select id, account_id, name, prefix, status, models, addresses::text[] as addresses, permissions, rpm, tpm,
       concurrency, model_limits, expires_at, created_at
from tokens
"""
Row = dict[str, Any]


async def create_account(connection: AsyncConnection, name: str, group: str) -> int:
    """Create an account and return its id; raises psycopg.errors.UniqueViolation."""
    cursor = await connection.execute(
        "insert into accounts (name, customer_group) values (%s, %s) returning id", (name, group)
    )
    return _only_id(await cursor.fetchone())


async def find_account(
    connection: AsyncConnection, *, account_id: int | None = None, name: str | None = None
) -> Row | None:
    """The account with its credit balance, by id or by name."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(f"{_SELECT_ACCOUNT} where a.id = %s or a.name = %s", (account_id, name))
        return await cursor.fetchone()


async def list_accounts(connection: AsyncConnection, limit: int) -> list[Row]:
    """The newest accounts first."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(f"{_SELECT_ACCOUNT} order by a.id desc limit %s", (limit,))
        return await cursor.fetchall()


async def set_account_plan(connection: AsyncConnection, account_id: int, plan_id: int | None) -> bool:
    """Give an account a plan, or none; False when there is no such account."""
    cursor = await connection.execute("update accounts set plan_id = %s where id = %s", (plan_id, account_id))
    return cursor.rowcount == 1


async def set_account_status(connection: AsyncConnection, account_id: int, status: str) -> bool:
    """Set active, suspended or closed; False when there is no such account."""
    cursor = await connection.execute("update accounts set status = %s where id = %s", (status, account_id))
    return cursor.rowcount == 1


async def create_token(
    connection: AsyncConnection,
    *,
    account_id: int,
    name: str,
    digest: bytes,
    prefix: str,
    models: Sequence[str] | None,
    addresses: Sequence[str] | None,
    permissions: Sequence[str] | None,
    rpm: int | None,
    tpm: int | None,
    concurrency: int | None,
    expires_at: datetime | None,
) -> int:
    """Store a token's SHA-256 and return its id; raises UniqueViolation or ForeignKeyViolation of psycopg."""
    cursor = await connection.execute(
        "insert into tokens (account_id, name, hash, prefix, models, addresses, permissions, rpm, tpm,"
        " concurrency, expires_at)"
        " values (%s, %s, %s, %s, %s, %s::cidr[], %s, %s, %s, %s, %s) returning id",
        (
            account_id,
            name,
            digest,
            prefix,
            list(models) if models else None,
            list(addresses) if addresses else None,
            list(permissions) if permissions else None,
            rpm,
            tpm,
            concurrency,
            expires_at,
        ),
    )
    return _only_id(await cursor.fetchone())


async def list_tokens(connection: AsyncConnection, account_id: int) -> list[Row]:
    """The tokens of an account, without their hashes."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(f"{_SELECT_KEY} where account_id = %s order by id", (account_id,))
        return await cursor.fetchall()


async def list_tokens_by_prefix(connection: AsyncConnection, prefix: str) -> list[Row]:
    """The tokens that begin so, of any account: one, as a rule, for what a log shows of it."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(f"{_SELECT_KEY} where prefix = %s order by id", (prefix,))
        return await cursor.fetchall()


_BOUNDS = {"models": "%s", "addresses": "%s::cidr[]", "permissions": "%s", "expires_at": "%s"}


async def set_token(connection: AsyncConnection, token_id: int, bounds: Row) -> Row | None:
    """Change what a token is bound to: models, addresses, permissions, expires_at (None: to none); returns
    the token, None where there is no such one."""
    changes = ", ".join(f"{name} = {_BOUNDS[name]}" for name in bounds)
    async with connection.cursor(row_factory=dict_row) as cursor:
        values = [*bounds.values(), token_id]
        await cursor.execute(f"update tokens set {changes} where id = %s".encode(), values)  # noqa: S608
        await cursor.execute(f"{_SELECT_KEY} where id = %s", (token_id,))
        return await cursor.fetchone()


async def set_token_status(connection: AsyncConnection, token_id: int, status: str) -> bool:
    """Set active or disabled; False when there is no such token."""
    cursor = await connection.execute("update tokens set status = %s where id = %s", (status, token_id))
    return cursor.rowcount == 1


Limits = Mapping[str, int | None]
Limited = Literal["tokens", "accounts", "plans"]  # tables
_LIMITED = sql.SQL("update {} set {} where id = %s returning id, rpm, tpm, concurrency, model_limits")


async def set_limits(connection: AsyncConnection, table: Limited, row_id: int, limits: Limits) -> Row | None:
    """Change some of rpm, tpm and concurrency (None: no limit); returns all limits, None for no row."""
    changes = sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value)) for name, value in limits.items()
    )
    return await _limited(connection, table, row_id, changes)


async def set_model_limits(
    connection: AsyncConnection, table: Limited, row_id: int, model: str, limits: Limits
) -> Row | None:
    """The same for one model."""
    query = sql.SQL("select model_limits from {} where id = %s for update").format(sql.Identifier(table))
    cursor = await connection.execute(query, (row_id,))
    row = await cursor.fetchone()
    if row is None:
        return None
    models: dict[str, dict[str, int]] = row[0] or {}
    merged: Limits = {**models.pop(model, {}), **limits}
    left = {name: value for name, value in merged.items() if value is not None}
    after = models | ({model: left} if left else {})
    changes = sql.SQL("model_limits = {}").format(sql.Literal(Jsonb(after) if after else None))
    return await _limited(connection, table, row_id, changes)


async def _limited(
    connection: AsyncConnection, table: str, row_id: int, changes: sql.Composable
) -> Row | None:
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_LIMITED.format(sql.Identifier(table), changes), (row_id,))
        return await cursor.fetchone()


async def find_caller(connection: AsyncConnection, digest: bytes) -> Row | None:
    """The token with this SHA-256 and what a call needs to know of its account."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "select t.id as token_id, t.account_id, t.status, t.models, t.permissions,"
            " t.addresses::text[] as addresses, t.rpm, t.tpm, t.concurrency, t.expires_at,"
            " t.model_limits, a.model_limits as account_model_limits,"
            " a.rpm as account_rpm, a.tpm as account_tpm, a.concurrency as account_concurrency,"
            ' a.customer_group as "group", a.status as account_status,'
            " p.name as plan, p.rpm as plan_rpm, p.tpm as plan_tpm, p.concurrency as plan_concurrency,"
            " p.model_limits as plan_model_limits"
            " from tokens t join accounts a on a.id = t.account_id left join plans p on p.id = a.plan_id"
            " where t.hash = %s",
            (digest,),
        )
        return await cursor.fetchone()


def _only_id(row: tuple[Any, ...] | None) -> int:
    if row is None:
        raise RuntimeError("an insert returned no row")
    return int(row[0])

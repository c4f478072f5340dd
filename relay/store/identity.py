"""SQL of accounts and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row

_SELECT_ACCOUNT = """
select a.id, a.name, a.customer_group as "group", a.status, a.credit_limit,
       b.balance as balance_nanodollars, b.held as held_nanodollars, b.debt as debt_nanodollars, a.created_at
from accounts a join balances b on b.account_id = a.id and b.unit = 'credit'
"""
_SELECT_KEY = """
select id, account_id, name, prefix, status, models, addresses::text[] as addresses, rpm, tpm, concurrency,
       expires_at, created_at
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
    rpm: int | None,
    concurrency: int | None,
    expires_at: datetime | None,
) -> int:
    """Store a token's SHA-256 and return its id; raises UniqueViolation or ForeignKeyViolation of psycopg."""
    cursor = await connection.execute(
        "insert into tokens (account_id, name, hash, prefix, models, addresses, rpm, concurrency, expires_at)"
        " values (%s, %s, %s, %s, %s, %s::cidr[], %s, %s, %s) returning id",
        (
            account_id,
            name,
            digest,
            prefix,
            list(models) if models else None,
            list(addresses) if addresses else None,
            rpm,
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


async def set_token_status(connection: AsyncConnection, token_id: int, status: str) -> bool:
    """Set active or disabled; False when there is no such token."""
    cursor = await connection.execute("update tokens set status = %s where id = %s", (status, token_id))
    return cursor.rowcount == 1


async def find_caller(connection: AsyncConnection, digest: bytes) -> Row | None:
    """The token with this SHA-256 and what a call needs to know of its account."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "select t.id as token_id, t.account_id, t.status, t.models,"
            " t.addresses::text[] as addresses, t.rpm, t.concurrency, t.expires_at,"
            ' a.customer_group as "group", a.status as account_status'
            " from tokens t join accounts a on a.id = t.account_id where t.hash = %s",
            (digest,),
        )
        return await cursor.fetchone()


def _only_id(row: tuple[Any, ...] | None) -> int:
    if row is None:
        raise RuntimeError("an insert returned no row")
    return int(row[0])

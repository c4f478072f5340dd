"""Connections of their own, for what runs beside the pool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from psycopg import AsyncConnection
from psycopg.rows import TupleRow


@asynccontextmanager
async def connected(dsn: str, *, autocommit: bool = False) -> AsyncIterator[AsyncConnection[TupleRow]]:
    """A connection that commits at the end, or rolls back, and is closed whatever happens.

    psycopg's own context leaves it open when the task is cancelled while it commits. Raises psycopg.Error.
    """
    connection = await AsyncConnection.connect(dsn, autocommit=autocommit)
    try:
        async with connection:
            yield connection
    finally:
        await connection.close()

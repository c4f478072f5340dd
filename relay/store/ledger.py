"""SQL of the ledger's hot path: one statement a batch of holds, one a batch of captures and releases.

Columns travel as PostgreSQL array literals: their types do not depend on the values, so that each
statement is prepared once, and they are cheaper to write than adapted lists.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection, AsyncRawCursor
from psycopg.rows import TupleRow

from relay.store.connection import WatchedConnection


def hold_statement(types: Mapping[str, str]) -> str:
    """The call of ledger_hold with parameters of these names and PostgreSQL types, in their order."""
    return f"select outcome, missing, quotas, overage from ledger_hold({_arguments(types)})"  # noqa: S608


def settle_statement(types: Mapping[str, str]) -> str:
    """The call of ledger_settle, likewise."""
    return f"select outcome, charge from ledger_settle({_arguments(types)})"  # noqa: S608


def _arguments(types: Mapping[str, str]) -> str:
    return ", ".join(f"{name} => ${n}::{kind}[]" for n, (name, kind) in enumerate(types.items(), 1))


class LedgerConnection(WatchedConnection[TupleRow]):
    """Asks by one cursor, which remembers how to write and read the statement that it executed last."""

    same_cursor: AsyncRawCursor[TupleRow] | None = None


async def connect(dsn: str, name: str) -> AsyncConnection[TupleRow]:
    """A dedicated connection: each statement its own transaction, always prepared, never timed out."""
    connection: LedgerConnection = await LedgerConnection.connect(
        dsn, autocommit=True, prepare_threshold=0, application_name=name
    )
    try:
        await connection.execute("set statement_timeout = 0")
    except BaseException:
        await connection.close()
        raise
    connection.same_cursor = AsyncRawCursor(connection)
    return connection


async def run(
    connection: AsyncConnection[TupleRow], statement: str, columns: Sequence[str | None]
) -> list[TupleRow]:
    """Execute a statement on its columns (array literals) and return a row a member, in their order."""
    kept = connection.same_cursor if isinstance(connection, LedgerConnection) else None
    cursor = kept or AsyncRawCursor(connection)
    await cursor.execute(statement, columns)
    return await cursor.fetchall()


def literal(kind: str, values: Sequence[Any]) -> str | None:
    """An array literal of a PostgreSQL type; a column of nothing but nulls is null as a whole.

    Takes int for bigint, integer and numeric, bool, UUID, aware datetime and str.
    """
    nulls = values.count(None)
    if nulls and nulls == len(values):
        return None
    write = _WRITERS[kind]
    texts = ["NULL" if value is None else write(value) for value in values] if nulls else map(write, values)
    return "{" + ",".join(texts) + "}"


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


_WRITERS: dict[str, Callable[[Any], str]] = {
    "bigint": str,
    "integer": str,
    "numeric": str,
    "boolean": {True: "t", False: "f"}.__getitem__,
    "uuid": lambda value: f"{value.int:032x}",
    "timestamptz": datetime.isoformat,
    "text": _quoted,
}

"""SQL of the ledger's hot path: one statement a batch of holds, one a batch of captures and releases.

Columns travel as PostgreSQL array literals: their types do not depend on the values, so that each
statement is prepared once, and they are cheaper to write than adapted lists.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

from psycopg import AsyncConnection, AsyncRawCursor
from psycopg.rows import TupleRow

_HOLD_TYPES = "uuid bigint bigint bigint bigint bigint text text timestamptz text"
_SETTLE_TYPES = (
    "uuid bool bigint bigint numeric numeric bigint bigint text text bigint text text bool timestamptz"
    " bigint bigint bigint text text text int int text text"
)


def _arguments(types: str) -> str:
    return ", ".join(f"${n}::{kind}[]" for n, kind in enumerate(types.split(), 1))


HOLD = (
    "select outcome, missing, quotas, overage from "  # noqa: S608 - constants above
    f"ledger_hold({_arguments(_HOLD_TYPES)})"
)
SETTLE = f"select outcome, charge from ledger_settle({_arguments(_SETTLE_TYPES)})"  # noqa: S608


async def connect(dsn: str, name: str) -> AsyncConnection[TupleRow]:
    """A dedicated connection: each statement its own transaction, always prepared, never timed out."""
    connection = await AsyncConnection.connect(
        dsn, autocommit=True, prepare_threshold=0, application_name=name
    )
    try:
        await connection.execute("set statement_timeout = 0")
    except BaseException:
        await connection.close()
        raise
    return connection


async def run(
    connection: AsyncConnection[TupleRow], statement: str, columns: Sequence[str | None]
) -> list[TupleRow]:
    """Execute HOLD or SETTLE on columns (array literals) and return a row a member, in their order."""
    cursor = AsyncRawCursor(connection)
    await cursor.execute(statement, columns)
    return await cursor.fetchall()


def numbers(values: Iterable[int | None]) -> str:
    """An array literal of integers."""
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


def booleans(values: Iterable[bool]) -> str:
    """An array literal of booleans."""
    return "{" + ",".join(["t" if value else "f" for value in values]) + "}"


def uuids(values: Iterable[UUID]) -> str:
    """An array literal of UUIDs."""
    return "{" + ",".join([value.hex for value in values]) + "}"


def times(values: Iterable[datetime | None]) -> str:
    """An array literal of aware datetimes."""
    return "{" + ",".join(["NULL" if value is None else value.isoformat() for value in values]) + "}"


def texts(values: Iterable[str | None]) -> str:
    """An array literal of texts, quoted and escaped."""
    return "{" + ",".join([_quoted(value) for value in values]) + "}"


def _quoted(value: str | None) -> str:
    if value is None:
        return "NULL"
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

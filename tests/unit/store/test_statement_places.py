"""Whoever adds a table, or a column to what an account's statement tells, gives it a place there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from relay.store.statement import LEFT_OUT, TABLES, WITHOUT_ACCOUNT

SQL = Path(__file__).parents[3] / "relay/store/migrations/sql"
TABLE = re.compile(r"^create table (\w+)(?! partition of)\b", re.M)
CHANGE = re.compile(r"^alter table (\w+)\s+(.*?);", re.M | re.S)
COLUMN = re.compile(r"\badd column (\w+)")
TEXTS = [path.read_text() for path in sorted(SQL.glob("*.sql"))]


def added() -> set[tuple[str, str]]:
    """(table, column) of what was added later; the contract tests look at whole tables."""
    changes = [change for text in TEXTS for change in CHANGE.findall(text)]
    return {(table, column) for table, change in changes for column in COLUMN.findall(change)}


def test_each_table_has_a_place() -> None:
    tables = {table for text in TEXTS for table in TABLE.findall(text)}
    assert "accounts" in tables
    assert tables <= {*TABLES, *WITHOUT_ACCOUNT}


@pytest.mark.parametrize(("table", "column"), sorted(added()))
def test_each_column_has_a_place(table: str, column: str) -> None:
    told = TABLES[table].told(costs=True) if table in TABLES else None
    assert told is None or column in told or f"{table}.{column}" in LEFT_OUT

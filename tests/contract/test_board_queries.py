"""The boards' questions to the ledger on a real PostgreSQL, which may not write."""

from __future__ import annotations

import psycopg
import pytest

from tests import boards
from tests.contract.conftest import Database

QUESTIONS = [
    pytest.param(target["rawSql"], id=panel["title"])
    for board in boards.boards().values()
    for panel in boards.panels(board)
    for target in panel["targets"]
    if "rawSql" in target
]


@pytest.mark.parametrize("sql", QUESTIONS)
def test_tables_and_columns_are_there(database: Database, sql: str) -> None:
    """The time shown is filled in as Grafana does. That relay_reader may read is tested by its own set-up."""
    hour = "u.hour between now() - interval '1 day' and now()"
    with psycopg.connect(database.owner_dsn, options="-c default_transaction_read_only=on") as connection:
        cursor = connection.execute(sql.replace("$__timeFilter(u.hour)", hour).encode())
        assert cursor.description is not None
        assert cursor.fetchall() == []

"""The exporter's own queries on a real PostgreSQL, asked as the exporter's role."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import yaml

from tests.contract.conftest import REPOSITORY, Database, PostgresServer

QUERIES = yaml.safe_load((REPOSITORY / "templates/postgres/queries.yml").read_text())


def ask(server: PostgresServer, database: Database, name: str) -> list[dict[str, Any]]:
    """Rows of a query, by column."""
    dsn = server.dsn(database.name, "relay_exporter")
    with psycopg.connect(dsn, row_factory=psycopg.rows.dict_row) as connection:
        return connection.execute(QUERIES[name]["query"].encode()).fetchall()


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_gives_the_columns_that_it_declares(
    postgres: PostgresServer, database: Database, name: str
) -> None:
    declared = [column for metric in QUERIES[name]["metrics"] for column in metric]
    rows = ask(postgres, database, name)
    # Slots are there only while replicas are, budgets only where somebody set one.
    assert rows or name in ("pg_slot_retained", "ledger_budget")
    assert all(list(row) == declared for row in rows)


def test_budgets_of_which_little_is_left_are_told(postgres: PostgresServer, database: Database) -> None:
    """Not those of tokens, of a period that is over, or of which nothing may be spent."""
    budgets = [
        ("global", 0, "day", 100, 60, 20, "1 hour"),
        ("account", 1, "total", 100, 97, 0, None),
        ("account", 2, "month", 100, 79, 0, "1 hour"),
        ("account", 3, "month", 100, 100, 0, "-1 hour"),
        ("account", 4, "total", 0, 0, 0, None),
        ("token", 5, "total", 100, 100, 0, None),
    ]
    with psycopg.connect(database.owner_dsn, autocommit=True) as connection:
        connection.cursor().executemany(
            "insert into budgets (scope, scope_id, period, maximum, spent, held, period_ends)"
            " values (%s, %s, %s, %s, %s, %s, now() + %s::interval)",
            budgets,
        )
    rows = {(row["scope"], row["scope_id"]): row for row in ask(postgres, database, "ledger_budget")}
    assert {key: row["used_ratio"] for key, row in rows.items()} == {("global", 0): 0.8, ("account", 1): 0.97}
    assert rows["global", 0]["period"] == "day"
    assert list(rows["global", 0]) == [
        name for metric in QUERIES["ledger_budget"]["metrics"] for name in metric
    ]


@pytest.fixture
def no_replica(postgres: PostgresServer, postgres_dsn: str) -> Iterator[None]:
    """Strict synchronous mode when the last replica has gone: every name is waited for, and there is none."""

    def names(value: str) -> None:
        with psycopg.connect(postgres_dsn, autocommit=True) as connection:
            connection.execute("set synchronous_commit = local")
            connection.execute(f"alter system set synchronous_standby_names = '{value}'".encode())
            connection.execute("select pg_reload_conf()")

    names("*")
    yield
    names("")


def test_a_commit_that_no_replica_confirms_is_measured(
    postgres: PostgresServer, database: Database, no_replica: None
) -> None:
    done = threading.Event()

    def write() -> None:
        with psycopg.connect(database.owner_dsn, autocommit=True) as connection:
            connection.execute("create table waits (n int)")
        done.set()

    time.sleep(0.5)
    writer = threading.Thread(target=write)
    writer.start()
    deadline = time.monotonic() + 60
    while not (seconds := float(ask(postgres, database, "pg_commit_wait")[0]["seconds"])):
        assert time.monotonic() < deadline, "nobody waits"
        time.sleep(0.1)
    time.sleep(1)
    assert float(ask(postgres, database, "pg_commit_wait")[0]["seconds"]) >= seconds + 1
    assert not done.is_set()
    with psycopg.connect(postgres.dsn("postgres", "postgres"), autocommit=True) as connection:
        connection.execute("alter system reset synchronous_standby_names")
        connection.execute("select pg_reload_conf()")
    writer.join(60)
    assert done.is_set()
    assert float(ask(postgres, database, "pg_commit_wait")[0]["seconds"]) == 0

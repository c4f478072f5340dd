"""One account's statement from a real ledger: all of it, nobody else's, no secret, of one moment."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from backups.core.statement import Reader, Statement, check
from relay.store.statement import LEFT_OUT, TABLES, WITHOUT_ACCOUNT, unplaced
from tests.contract.conftest import Database
from tests.contract.postgres import PostgresServer
from tests.contract.relay_rig import MODEL, PROVIDER_KEY, Customer, Provider, Relay, asks

CALLS = 3


@pytest.fixture(scope="module")
def relay(module_database: Database, provider: Provider, tmp_path_factory: Any) -> Iterator[Relay]:
    relay = Relay(module_database, tmp_path_factory.mktemp("relay"))
    relay.channel(provider.url, MODEL)
    relay.price(MODEL)
    try:
        yield relay
    finally:
        relay.stop()


@pytest.fixture(scope="module")
def customers(relay: Relay) -> tuple[Customer, Customer]:
    replica = relay.replica()
    made = (
        Customer(relay, replica, 'acme ü \u2028 "quoted"', "1.00"),
        Customer(relay, replica, "globex", "2.00"),
    )
    for customer in made:
        relay.grant(customer.account, "0.50", f"second-{customer.account}")
        relay.command(
            "budget", "set", "--account", str(customer.account), "--period", "month", "--amount-usd", "9"
        )
        (token,) = relay.command("token", "list", "--account", str(customer.account))
        breaker = ("breaker", "set", "--token", str(token["id"]), "--usd-per-hour", "9")
        relay.command(*breaker, "--reason", "test", "--by", "test")
        for _ in range(CALLS):
            customer.sdk.chat.completions.create(model=MODEL, messages=asks())
        customer.balance()
    return made


def statement(relay: Relay, account: int, *options: str) -> str:
    done = relay.run("ledger", "statement", "--account", str(account), *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(text: str, kind: str) -> list[dict[str, Any]]:
    return [row[kind] for row in map(json.loads, text.split("\n")[:-1]) if kind in row]


def schema(dsn: str) -> dict[str, list[str]]:
    with psycopg.connect(dsn) as connection:
        found = connection.execute(
            "select table_name, array_agg(column_name::text) from information_schema.columns"
            " join information_schema.tables using (table_schema, table_name)"
            " where table_schema = 'public' and table_type = 'BASE TABLE'"
            " and table_name !~ '^usage_(default|\\d)' group by 1"
        ).fetchall()
    return dict(found)


def test_every_table_and_column_has_a_place(database: Database) -> None:
    """A migration that adds a table, or a column to a table that names accounts, makes this fail: say in
    relay/store/statement.py whether it is told, and teach backups/core/statement.py its sums."""
    found = schema(database.superuser_dsn)
    assert unplaced(found) == []
    assert set(found) == {*TABLES, *WITHOUT_ACCOUNT}
    assert set(TABLES) == Reader(Statement(1, "")).readers.keys(), "each is read by import-check, too"
    for table, columns in found.items():
        if "account_id" in columns:
            assert table in TABLES
        if table in TABLES:
            assert {*TABLES[table].told(costs=True)} <= set(columns)
    assert {name for name in LEFT_OUT if name.partition(".")[2] not in found[name.partition(".")[0]]} == set()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("create table invoices (id bigint, account_id bigint)", "invoices"),
        ("create table notes (id bigint, customer bigint references accounts)", "notes"),
        ("alter table tokens add column secret text", "tokens.secret"),
        ("alter table usage add column prompt text", "usage.prompt"),
    ],
)
def test_what_has_no_place_is_refused_when_it_runs(
    database: Database, tmp_path: Path, change: str, name: str
) -> None:
    relay = Relay(database, tmp_path)
    account = relay.account("acme", "1.00")
    assert relay.run("ledger", "statement", "--account", str(account)).returncode == 0
    with psycopg.connect(database.superuser_dsn) as connection:
        connection.execute(change.encode())
    done = relay.run("ledger", "statement", "--account", str(account))
    assert (done.returncode, name in done.stderr, done.stdout) == (1, True, "")


def test_it_is_all_of_one_account_and_adds_up(relay: Relay, customers: tuple[Customer, Customer]) -> None:
    acme, globex = customers
    text = statement(relay, acme.account)
    found = check(line + "\n" for line in text.split("\n")[:-1])
    assert (found.problems, found.dropped, found.account) == ([], 0, acme.account)
    assert (found.rows["usage"], found.rows["holds"], found.rows["tokens"]) == (CALLS, CALLS, 1)
    assert rows(text, "accounts")[0]["name"] == 'acme ü \u2028 "quoted"'
    assert [one["scope_id"] for one in rows(text, "budgets")] == [acme.account]
    assert (found.rows["spend_breakers"], found.rows["spend_breaker_changes"]) == (1, 1)
    with psycopg.connect(relay.database.superuser_dsn) as connection:
        for table in TABLES:
            where = TABLES[table].rows.replace("%(account)s", str(acme.account))
            query = f"select count(*) from {table} where {where}"  # noqa: S608
            assert [(len(rows(text, table)),)] == connection.execute(query.encode()).fetchall(), table
    others = {row["request_id"] for row in rows(statement(relay, globex.account), "usage")}
    assert not any(request in text for request in others)


def test_no_secret_is_in_it(relay: Relay, customers: tuple[Customer, Customer]) -> None:
    acme, _ = customers
    text = statement(relay, acme.account, "--costs")
    with psycopg.connect(relay.database.superuser_dsn) as connection:
        digests = [bytes(row[0]).hex() for row in connection.execute("select hash from tokens").fetchall()]
    for secret in (acme.key, PROVIDER_KEY, *digests):
        assert secret not in text
    assert not re.search(r"gAAAA|api_key|\"hash\"", text), "nothing sealed"
    assert all("cost" in row for row in rows(text, "usage"))
    plain = statement(relay, acme.account)
    assert not any({"cost", "cost_side", "attempts"} & row.keys() for row in rows(plain, "usage"))
    assert "usage.cost" in rows(plain, "statement")[0]["left_out"]


def test_it_is_of_one_moment_while_calls_go_on(
    relay: Relay, customers: tuple[Customer, Customer], tmp_path: Path
) -> None:
    acme, _ = customers
    command = [sys.executable, "-m", "relay", "ledger", "statement", "--account", str(acme.account)]
    for number in range(3):
        output = tmp_path / f"{number}.jsonl"
        with output.open("wb") as out:
            process = subprocess.Popen(command, env=relay.environment(), cwd=relay.program, stdout=out)
            with process:
                while process.poll() is None:
                    acme.sdk.chat.completions.create(model=MODEL, messages=asks())
        with output.open(encoding="utf-8") as lines:
            assert check(lines).problems == []


def test_the_reading_role_suffices(
    relay: Relay, customers: tuple[Customer, Customer], postgres: PostgresServer
) -> None:
    with psycopg.connect(relay.database.superuser_dsn) as connection:
        connection.execute("drop role if exists reads_only")
        connection.execute("create role reads_only login in role pg_read_all_data")
    dsn = postgres.dsn(relay.database.name, "reads_only")
    environment = relay.environment(RELAY_DATABASE_URL=dsn)
    command = [sys.executable, "-m", "relay", "ledger", "statement", "--account", str(customers[0].account)]
    done = subprocess.run(command, env=environment, cwd=relay.program, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_who_is_unknown_is_told(relay: Relay) -> None:
    done = relay.run("ledger", "statement", "--account", "999999")
    assert (done.returncode, "--account: 999999 does not exist" in done.stderr, done.stdout) == (1, True, "")


def test_sums_of_what_was_committed_go_by_transactions(
    relay: Relay, customers: tuple[Customer, Customer]
) -> None:
    with psycopg.connect(relay.database.superuser_dsn) as connection:
        (end,) = connection.execute("select txid_snapshot_xmax(txid_current_snapshot())").fetchone() or (0,)
        writers = connection.execute("select distinct xmin::text::bigint from entries").fetchall()

    def rows(*options: str) -> int:
        tables = relay.command("ledger", "sums", *options)["tables"]
        return sum(month["rows"] for month in tables["entries"])

    whole = rows()
    assert rows("--before-transaction", str(end)) == whole > 0
    assert rows("--before-transaction", str(end + 5 * 2**32)) == whole, "numbers have 64 bits, rows 32"
    assert rows("--before-transaction", str(writers[0][0])) < whole
    (one, *others) = [str(xid) for (xid,) in writers]
    left = rows("--before-transaction", str(end), "--open", one)
    assert 0 < left < whole
    assert rows("--before-transaction", str(end), *(f"--open={xid}" for xid in (one, *others))) == 0
    assert rows("--before-transaction", str(end), "--until", "2001-01-01T00:00:00Z") == 0

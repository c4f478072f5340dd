"""Migrations beside a version of the relay that does not know them: real processes on a real PostgreSQL."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import psycopg
import pytest
from alembic import command
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from relay.ledger.columns import DOCUMENTS, SETTLE
from relay.store.ledger import settle_statement
from relay.store.migrate import LOCK_KEY, Patience, alembic_config, migrate
from relay.store.migrations import FIRST_RELEASE
from relay.store.schema import known_revisions
from tests.contract.postgres import REPOSITORY, Database, PostgresServer, empty_database
from tests.contract.relay_rig import (
    MODEL,
    Customer,
    Process,
    Provider,
    Relay,
    asks,
    eventually,
    running_provider,
)

HEAD = known_revisions()[-1]
NEXT = ("9998_expand", "9999_index")
EXPAND = """
create table regions (id bigint generated always as identity primary key, name text not null);
alter table accounts add column region bigint, add column note text not null default '';
alter table tokens add column region bigint;
alter table channels add column region bigint;
alter table balances add column region bigint;
alter table grants add column region bigint;
alter table holds add column region bigint, add column trace text not null default '';
alter table entries add column region bigint;
alter table usage add column region bigint;
alter table price_versions add column region bigint;
alter table price_rows add column region bigint;
"""
INDEX = 'build_index("holds_by_region", "on holds (region)")'
REVISION = """
from alembic import op
from relay.store.migrations import build_index
revision, down_revision = "{}", "{}"
def upgrade():
    {}
"""
# What a program of the previous version can notice: what is missing afterwards was taken from it. A new file
# of a table means that it was rewritten or emptied, under a lock that lets nobody read.
INVENTORY = """
select format('column %s.%s %s', attrelid::regclass, attname, format_type(atttypid, atttypmod))
  from pg_attribute join pg_class c on c.oid = attrelid
 where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v') and attnum > 0
   and not attisdropped
union all
select format('column %s.%s may be left out', attrelid::regclass, attname)
  from pg_attribute join pg_class c on c.oid = attrelid
 where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') and attnum > 0 and not attisdropped
   and (not attnotnull or atthasdef or attidentity <> '')
union all
select format('file %s of table %s', relfilenode, oid::regclass)
  from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'
union all
select format('trigger %s on %s', tgname, tgrelid::regclass) from pg_trigger where not tgisinternal
union all
select format('function %s returns %s', oid::regprocedure, pg_get_function_result(oid))
  from pg_proc where pronamespace = 'public'::regnamespace
union all
select format('%s may %s %s', grantee::regrole, privilege_type, oid::regclass)
  from pg_class, aclexplode(relacl) where relnamespace = 'public'::regnamespace
union all
select format('%s may %s %s', grantee::regrole, privilege_type, oid::regprocedure)
  from pg_proc, aclexplode(coalesce(proacl, acldefault('f', proowner)))
 where pronamespace = 'public'::regnamespace
"""
# Lines of the inventory that a migration took away on purpose, one version after their last use, and why.
TAKEN_AWAY: dict[str, str] = {}
TAKES_AWAY = {
    "do $$ begin alter table accounts drop column status; end $$": "column accounts.status text",
    "drop trigger accounts_announce on accounts": "trigger accounts_announce on accounts",
    "revoke select on accounts from relay_app": "relay_app may SELECT accounts",
    "truncate jobs": "of table jobs",
    "alter table holds set unlogged": "of table holds",
    "alter table holds alter column token_id set not null": "column holds.token_id may be left out",
    "alter table holds alter column amount type numeric": "column holds.amount bigint",
    "alter function usage_roll_up rename to sum_up": "function usage_roll_up",
    "revoke execute on function ledger_roll_due from relay_app": "relay_app may EXECUTE ledger_roll_due",
}
SETTLE_FUNCTIONS = "select oid::regprocedure::text, oid from pg_proc where proname = 'ledger_settle'"
LOCK_SECONDS = Patience().lock_seconds
BUSY_MACHINE_SECONDS = 30.0
ENDS = "-c idle_in_transaction_session_timeout=60s"  # a migration that waits for ever fails the test


@pytest.fixture(scope="module")
def next_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The next version of the relay: this one with two migrations more."""
    program = tmp_path_factory.mktemp("next")
    shutil.copytree(REPOSITORY / "relay", program / "relay", ignore=shutil.ignore_patterns("__pycache__"))
    versions = program / "relay" / "store" / "migrations" / "versions"
    bodies = (f'op.execute("""{EXPAND}""")', INDEX)
    for revision, before, body in zip(NEXT, (HEAD, *NEXT), bodies, strict=False):
        (versions / f"{revision}.py").write_text(REVISION.format(revision, before, body))
    return program


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[Provider]:
    with running_provider(tmp_path) as running:
        yield running


@pytest.fixture
def previous(database: Database, tmp_path: Path) -> Iterator[Relay]:
    """This version."""
    relay = Relay(database, tmp_path)
    yield relay
    relay.stop()


@pytest.fixture
def following(previous: Relay, next_program: Path) -> Iterator[Relay]:
    """The next version, on the same database."""
    (previous.directory / "next").mkdir()
    relay = Relay(previous.database, previous.directory / "next", program=next_program)
    yield relay
    relay.stop()


@contextmanager
def migrating(relay: Relay, *options: str) -> Iterator[Process]:
    """`python -m relay migrate` while the block runs."""
    command = [sys.executable, "-m", "relay", "migrate", *options]
    process = Process(command, relay.directory / "migrate.log", relay.environment(), relay.program)
    process.start()
    try:
        yield process
    finally:
        process.kill()


@contextmanager
def working(task: Callable[[], None], workers: int = 1) -> Iterator[None]:
    """Repeat ``task`` beside the block; fails with what it raises."""
    done = Event()

    def repeat() -> None:
        while not done.wait(0.02):
            task()

    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(repeat) for _ in range(workers)]
        try:
            yield
        finally:
            done.set()
        for one in running:
            one.result()


def revision(database: Database) -> str:
    with psycopg.connect(database.app_dsn) as connection:
        row = connection.execute("select version_num from alembic_version").fetchone()
    assert row is not None
    return str(row[0])


def inventory(connection: psycopg.Connection[Any]) -> set[str]:
    return {line for (line,) in connection.execute(INVENTORY).fetchall()}


def test_since_the_first_release_nothing_was_taken_away(postgres: PostgresServer) -> None:
    name = "relay_first_release"
    empty_database(postgres, name)
    dsn = postgres.dsn(name, "relay_owner")
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn), poolclass=NullPool)
    with engine.connect() as work:
        command.upgrade(alembic_config(work), FIRST_RELEASE)
    with psycopg.connect(dsn, autocommit=True) as connection:
        before = inventory(connection)
        migrate(dsn)
        assert before - inventory(connection) == set(TAKEN_AWAY)
        oldest = connection.execute("select oldest_version from schema_support").fetchall()
        # Whoever takes something away says which versions no longer serve.
        assert (oldest == [(FIRST_RELEASE,)]) == (not TAKEN_AWAY)
    assert "column accounts.customer_group text" in before


def test_each_version_calls_the_function_that_has_its_parameters(postgres: PostgresServer) -> None:
    name = "relay_two_functions"
    empty_database(postgres, name)
    dsn = postgres.dsn(name, "relay_owner")
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn), poolclass=NullPool)
    with engine.connect() as work:
        command.upgrade(alembic_config(work), FIRST_RELEASE)
    newest = (REPOSITORY / "relay/store/migrations/functions/ledger_settle.sql").read_text()
    first = newest.replace(",\n    p_facts text[]", "").replace("p_facts[d.ord]", "null")
    with psycopg.connect(dsn, autocommit=True) as connection:
        signature = connection.execute(SETTLE_FUNCTIONS).fetchall()[0][0]
        connection.execute(f"drop function {signature}".encode())
        connection.execute(first.encode())
    migrate(dsn)
    types = {parameter: kind for parameter, (kind, _) in SETTLE.items()} | DOCUMENTS
    with psycopg.connect(postgres.dsn(name, "relay_app"), autocommit=True) as connection:
        both = {oid for _, oid in connection.execute(SETTLE_FUNCTIONS).fetchall()}
        assert len(both) == 2
        for own in (types, {parameter: kind for parameter, kind in types.items() if parameter != "p_facts"}):
            none_settled = psycopg.RawCursor(connection).execute(settle_statement(own), ["{}"] * len(own))
            assert none_settled.fetchall() == []
        rights = "select has_function_privilege('public', oid, 'execute') from pg_proc where oid = any (%s)"
        assert [right for (right,) in connection.execute(rights, (list(both),))] == [False, False]


@pytest.mark.parametrize("statement", TAKES_AWAY)
def test_what_is_taken_away_is_seen(module_database: Database, statement: str) -> None:
    with psycopg.connect(module_database.owner_dsn) as connection:
        before = inventory(connection)
        connection.execute(statement.encode())
        assert any(TAKES_AWAY[statement] in line for line in before - inventory(connection))
        connection.rollback()


def test_a_migration_steps_aside_for_a_long_transaction(following: Relay) -> None:
    database, waits = following.database, [0.0]
    customer = psycopg.connect(database.app_dsn, autocommit=True, options="-c statement_timeout=60s")

    def ask() -> None:
        began = time.monotonic()
        customer.execute("select name from accounts")
        waits.append(time.monotonic() - began)

    with customer, psycopg.connect(database.app_dsn, options=ENDS, application_name="long report") as report:
        report.execute("select count(*) from accounts")
        pid = report.info.backend_pid
        with working(ask):
            gave_up = following.run("migrate", "--attempts", "1")
            assert revision(database) == HEAD
            # The migration had made it before it came to the table that was locked.
            assert customer.execute("select to_regclass('regions')").fetchone() == (None,)
            with migrating(following) as migration:
                eventually(lambda: "stepping aside" in migration.log.read_text())
                report.rollback()
                assert migration.wait() == 0
    assert revision(database) == NEXT[-1]
    # It did stand in the way, and never for longer than it may.
    assert 0.5 < max(waits) < LOCK_SECONDS + BUSY_MACHINE_SECONDS
    assert gave_up.returncode == 1
    (told,) = (line for line in gave_up.stderr.splitlines() if "long report" in line)
    assert re.search(rf"{NEXT[0]} did not get AccessExclusiveLock on accounts, held by pid {pid} ", told)
    assert re.search(r"role relay_app, idle in transaction, open for \d+ s", told)
    assert f"pg_terminate_backend({pid})" in told


def test_migrations_wait_for_one_another(following: Relay) -> None:
    with psycopg.connect(following.database.owner_dsn, autocommit=True) as other:
        other.execute("select pg_advisory_lock(%s)", (LOCK_KEY,))
        with migrating(following) as migration:
            told = f"another migration is running, waiting for it: pid {other.info.backend_pid} "
            eventually(lambda: told in migration.log.read_text())
            assert revision(following.database) == HEAD
            other.execute("select pg_advisory_unlock(%s)", (LOCK_KEY,))
            assert migration.wait() == 0
    assert revision(following.database) == NEXT[-1]


def test_the_previous_version_serves_through_the_next_ones_migrations(
    previous: Relay, following: Relay, provider: Provider
) -> None:
    """A roll, and its undoing: no call fails, and the books agree."""
    previous.channel(provider.url, MODEL)
    previous.price(MODEL)
    running = previous.replica()
    customer = Customer(previous, running, "acme", "100.00")
    places, numbers, answers = [running], count(), Counter[int]()

    def call() -> None:
        number = next(numbers)
        customer.replica = places[number % len(places)]
        answers[customer.post({"model": MODEL, "messages": asks()}).status_code] += 1

    def answered(more: int) -> None:
        enough = answers.total() + more
        eventually(lambda: answers.total() >= enough)

    with working(call, workers=2):
        answered(20)
        assert following.run("migrate").returncode == 0
        answered(20)
        # Either version starts on the new schema; undoing a roll migrates with the previous one first.
        undone = previous.run("migrate")
        places += [following.replica(), previous.replica()]
        answered(30)
    assert (undone.returncode, undone.stdout) == (
        0,
        f"migrate: the schema is at {NEXT[-1]}, ahead of this version's {HEAD}: nothing to do\n",
    )
    assert revision(previous.database) == NEXT[-1]
    assert list(answers) == [200]
    assert customer.spent() == sum(record["charge"] for record in previous.usage(customer.account)) > 0
    assert len(provider.calls()) == answers.total()
    newcomer = Customer(previous, running, "newcomer", "1.00")
    assert newcomer.post({"model": MODEL, "messages": asks()}).status_code == 200
    for audit in ("conserve", "recompute"):
        assert previous.run("audit", audit).returncode == 0


def refusal(relay: Relay, service: str) -> subprocess.CompletedProcess[str]:
    """How a service ends that does not suit its database's schema."""
    refused = subprocess.run(
        [sys.executable, "-m", "relay", service],
        env=relay.environment(RELAY_LISTEN="127.0.0.1:0", RELAY_METRICS_LISTEN="127.0.0.1:0"),
        cwd=relay.program,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert refused.returncode == 1
    return refused


@pytest.mark.parametrize("service", ["serve", "work", "migrate"])
def test_a_version_that_the_schema_has_left_behind_refuses_to_start(
    previous: Relay, tmp_path: Path, service: str
) -> None:
    """Contracted by a migration of a later version, which says whom it still serves."""
    program = tmp_path / "later"
    shutil.copytree(REPOSITORY / "relay", program / "relay", ignore=shutil.ignore_patterns("__pycache__"))
    versions = program / "relay" / "store" / "migrations" / "versions"
    text = REVISION.replace("build_index", "ends_versions_before")
    first, second = (
        text.format(NEXT[0], HEAD, "pass"),
        text.format(NEXT[1], NEXT[0], f'ends_versions_before("{NEXT[0]}")'),
    )
    (versions / f"{NEXT[0]}.py").write_text(first)
    (versions / f"{NEXT[1]}.py").write_text(second)
    later = Relay(previous.database, previous.directory, program=program)
    with migrating(later) as process:
        assert process.wait(60) == 0
    refused = refusal(previous, service)
    assert f"at {NEXT[1]} and has dropped what this version uses, which knows {HEAD}" in refused.stderr
    assert f"start a newer version, one that knows {NEXT[0]}" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("service", ["serve", "work"])
def test_a_version_ahead_of_the_schema_refuses_to_start(following: Relay, service: str) -> None:
    refused = refusal(following, service)
    assert f"at {HEAD}, this version needs {NEXT[-1]}: run `python -m relay migrate` first" in refused.stderr
    assert "Traceback" not in refused.stderr

"""Replicas of the previous release serve while migrations run: what they ask is answered as before.

The recordings in calls/releases have what each release asks; `make release-calls` writes them. Here they are
repeated on today's schema, in a fresh database and in one that the release itself has filled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count

import psycopg
import pytest

from relay.store.migrate import migrate
from relay.store.schema import known_revisions
from tests.contract.calls.databases import (
    Place,
    build,
    copy_of,
    player,
    refused_when_migrated,
    refused_when_new,
)
from tests.contract.calls.recording import RELEASES, Recording, Run, recorded
from tests.contract.calls.replay import RELAY, Refusal, not_executed, not_prepared, told
from tests.contract.postgres import TEMPLATE, PostgresServer

RECORDINGS = {recording.name: recording for recording in recorded()}
HEAD = known_revisions()[-1]
NEWEST = list(RECORDINGS.values())[-1]
RUNS = [
    pytest.param(recording, run, id=f"{name}-{run.test.rpartition('::')[2]}")
    for name, recording in RECORDINGS.items()
    for run in recording.runs
]
# The moment may be at fault: an hour or a month ends while calls are repeated.
TRIES = 2
# Of a run's steps: as many must come to what is recorded where nothing has changed.
MOST_OF = 0.6
# In the first of them a made-up migration is seen, as a rule.
MOST_RUNS = 3
EXPANDS = """
create table regions (id bigint generated always as identity primary key, name text not null);
alter table accounts add column region bigint, add column note text not null default '';
alter table tokens add column region bigint;
alter table channels add column region bigint;
alter table plans add column note text not null default '';
alter table holds add column region bigint, add column trace text not null default '';
alter table entries add column region bigint;
alter table usage add column region bigint;
alter table fx_rates add column region bigint;
alter table group_multipliers add column region bigint;
"""
# Made-up migrations; a part of the statement that they break, and of what is said of it.
CONTRACTIONS = {
    "drops a column": (
        "alter table accounts drop column overage_multiplier",
        "overage_multiplier = coalesce(",
        'column "overage_multiplier" does not exist',
    ),
    "renames a column": (
        "alter table tokens rename column prefix to beginning",
        "insert into tokens (account_id, name, hash, prefix",
        'column "prefix" of relation "tokens" does not exist',
    ),
    "changes a column's type": (
        "alter table accounts alter column rpm type numeric",
        'update "accounts" set "rpm"',
        "now [['id', 'bigint'], ['rpm', 'numeric']",
    ),
    "drops a parameter of a function": (
        """drop function holds_purge; create function holds_purge(p_most integer) returns bigint
           language sql as 'select 0::bigint'; grant execute on function holds_purge to relay_app""",
        "select holds_purge($1, $2)",
        "function holds_purge(smallint",
    ),
    "changes what a function returns": (
        """drop function usage_ensure_partitions; create function usage_ensure_partitions(p_ahead integer)
           returns integer language sql as 'select 0'""",
        "select usage_ensure_partitions($1)",
        "now [['usage_ensure_partitions', 'integer']]",
    ),
    "takes a right to a table": (
        "revoke select on plans from relay_app",
        "from plans",
        "permission denied for table plans (42501)",
    ),
    "takes the right to a function": (
        "revoke execute on function ledger_roll_due from relay_app",
        "select ledger_roll_due($1)",
        "permission denied for function ledger_roll_due (42501)",
    ),
    "wants what old inserts do not give": (
        "alter table plans add column region text not null",
        "insert into plans (name, rpm, tpm, concurrency) values",
        'null value in column "region" of relation "plans"',
    ),
    "breaks the body of a function": (
        """create or replace function ledger_roll_due(most integer) returns bigint language plpgsql
           as 'begin perform no_more from accounts; return 0; end'""",
        "select ledger_roll_due($1)",
        'column "no_more" does not exist',
    ),
    "changes what an answer means": (
        "alter table tokens alter column status set default 'disabled'",
        "from tokens",
        "'active'",
    ),
}
_numbers = count(1)


@pytest.fixture
def place(postgres: PostgresServer) -> Iterator[Place]:
    """A fresh database of today's schema."""
    with copy_of(postgres, f"relay_repeated_{next(_numbers)}") as made:
        yield made


@pytest.fixture(scope="module")
def own_schemas(postgres: PostgresServer) -> dict[str, str]:
    """For each recorded release a database by its own migrations, to be copied: name by schema."""
    schemas = {recording.schema for recording in RECORDINGS.values()} - {HEAD}
    built = {schema: build(postgres, f"relay_schema_{schema[:4]}", schema).name for schema in schemas}
    return built | {HEAD: TEMPLATE}


def migrated_by(place: Place, sql: str) -> None:
    with psycopg.connect(place.dsn("relay_owner")) as connection:
        connection.execute(sql.encode())


def with_statement(part: str) -> list[Run]:
    """Runs of the newest recording in which the relay asks this, the shortest first."""
    found = [run for run in NEWEST.runs if any(part in sql for sql in asked_by_relay(run))]
    return sorted(found, key=lambda run: len(run.steps))


def asked_by_relay(run: Run) -> Iterator[str]:
    for number in {step.statement for step in run.steps} - {None}:
        statement = NEWEST.statements[number or 0]
        if statement.by == RELAY:
            yield statement.sql


def test_releases_are_recorded_as_long_as_they_may_serve(postgres: PostgresServer) -> None:
    """The newest recording is of what serves while the migrations after it run."""
    with psycopg.connect(postgres.dsn(TEMPLATE, "relay_app")) as connection:
        row = connection.execute("select oldest_version from schema_support").fetchone()
    assert row is not None
    assert NEWEST.schema >= row[0], (
        f"a migration has ended release {NEWEST.name}, which serves while it runs: end a version one release "
        "after the last that uses what is taken away, and record releases (`make release-calls`)"
    )
    for recording in RECORDINGS.values():
        assert recording.schema in known_revisions()
        assert recording.schema >= row[0], (
            f"a migration has ended {recording.name}: delete {RELEASES}/{recording.name}.json"
        )


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recording_has_nothing_random_or_secret(name: str) -> None:
    text = (RELEASES / f"{name}.json").read_text()
    assert set(re.findall(r"sk-relay-([\w-]{6})", text)) <= {f"{number:06d}" for number in range(10_000)}
    assert not re.search(r"gAAAA|127\.0\.0\.1:\d\d|(?<![\w-])[0-9a-f]{8}-[0-9a-f]{4}-[1-9]", text)


@pytest.mark.parametrize("name", RECORDINGS)
def test_what_a_release_asks_can_be_prepared(place: Place, name: str) -> None:
    recording = RECORDINGS[name]
    refused = [*not_prepared(recording, place.dsn), *not_executed(recording, player(place, recording))]
    assert not (text := told(recording, refused)), text


@pytest.mark.parametrize(("recording", "run"), RUNS)
def test_a_release_is_answered_as_before(
    postgres: PostgresServer, own_schemas: dict[str, str], recording: Recording, run: Run
) -> None:
    """In a database that it has filled before the migrations, and in a fresh one after them."""
    for _ in range(TRIES):
        with copy_of(postgres, f"relay_repeated_{next(_numbers)}", own_schemas[recording.schema]) as place:
            agreed, refused = refused_when_migrated(place, recording, run)
        of_the_relay = sum(
            recording.statements[step.statement].by == RELAY
            for step in run.steps
            if step.statement is not None
        )
        assert len(agreed) > MOST_OF * of_the_relay, f"{run.test} cannot be repeated: record it anew"
        # Where nothing was to be migrated, that was a fresh one.
        if recording.schema != HEAD:
            with copy_of(postgres, f"relay_repeated_{next(_numbers)}") as place:
                refused += refused_when_new(place, recording, run, agreed)
        if not refused:
            return
    pytest.fail(told(recording, refused))


def test_a_database_of_an_earlier_release_is_made_and_migrated(postgres: PostgresServer) -> None:
    before = known_revisions()[-2]
    place = build(postgres, "relay_earlier_release", before)
    assert migrate(place.dsn("relay_owner")) == (before, HEAD)


def refused(postgres: PostgresServer, sql: str, part: str) -> list[Refusal]:
    """What a made-up migration breaks, by all ways to see it."""
    found: list[Refusal] = []
    for run in with_statement(part)[:MOST_RUNS]:
        with copy_of(postgres, f"relay_repeated_{next(_numbers)}") as place:
            migrated_by(place, sql)
            found += not_prepared(NEWEST, place.dsn)
            found += refused_when_new(place, NEWEST, run)
        if found:
            break
    return found


@pytest.mark.parametrize("kind", CONTRACTIONS)
def test_what_would_break_the_previous_release_is_refused(postgres: PostgresServer, kind: str) -> None:
    sql, part, what = CONTRACTIONS[kind]
    text = told(NEWEST, refused(postgres, sql, part))
    assert part in text, text
    assert what in text, text
    assert f"release {NEWEST.name} serves while migrations run" in text
    assert "one version later: CONTRIBUTING.md" in text


def test_what_only_adds_is_not_refused(postgres: PostgresServer) -> None:
    assert told(NEWEST, refused(postgres, EXPANDS, "insert into accounts")) == ""


def test_what_fails_on_rows_of_before_is_refused(place: Place) -> None:
    """A function that relies on what new inserts alone fill."""
    sql = """
        alter table accounts add column region text;
        create or replace function ledger_roll_due(most integer) returns bigint language plpgsql
        as 'begin if exists (select from accounts where region is null) then
            perform no_more from accounts; end if; return 0; end'
    """
    run = with_statement("select ledger_roll_due($1)")[0]
    _, found = refused_when_migrated(place, NEWEST, run, lambda dsn: migrated_by(place, sql))
    assert 'column "no_more" does not exist' in told(NEWEST, found)

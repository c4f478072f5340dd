"""The database hosts' setup program on a real PostgreSQL: mends what differs, changes nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from templates.postgres import database_setup as setup
from tests.contract.conftest import Database

CREATED_ROLES = ("replicator", "rewinder", setup.READER)


PASSWORDS = {name: f"password-of-{name}" for name in setup.ATTRIBUTES}


@pytest.fixture
def server(postgres_dsn: str) -> Iterator[str]:
    """A server whose setup never ran: some roles exist without a password, some do not, nor the database."""
    yield postgres_dsn
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute("drop database if exists relay with (force)")
        for (role,) in connection.execute("select rolname from pg_roles where rolname ~ '_b$'").fetchall():
            connection.execute(f"drop role {role}")
        for role in CREATED_ROLES:
            if connection.execute("select to_regrole(%s)::text", (role,)).fetchone() != (None,):
                connection.execute(f"drop owned by {role}")
                connection.execute(f"drop role {role}")
        for role in (setup.OWNER, setup.APP, setup.EXPORTER):
            connection.execute(f"alter role {role} login password null")


def _apply(server: str, **changes: str) -> list[str]:
    return setup.set_up(server, PASSWORDS | changes, apply=True)


def _relay(server: str, user: str) -> psycopg.Connection[Any]:
    return psycopg.connect(server, dbname="relay", user=user, autocommit=True)


def test_check_names_what_is_missing_and_changes_nothing(server: str) -> None:
    first = setup.set_up(server, PASSWORDS, apply=False)
    assert "role replicator is missing" in first
    assert "database relay is missing" in first
    assert setup.set_up(server, PASSWORDS, apply=False) == first


def test_second_run_finds_nothing(server: str) -> None:
    assert _apply(server)
    assert _apply(server) == []


def test_only_a_changed_password_is_set_again(server: str) -> None:
    _apply(server)
    assert _apply(server, relay_app="rotated") == ["role relay_app has another password"]
    assert _apply(server, relay_app="rotated") == []


def test_a_membership_that_was_taken_away_comes_back(server: str) -> None:
    _apply(server)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("revoke pg_read_all_stats from relay_owner")
    assert _apply(server) == ["role relay_owner is not a member of pg_read_all_stats"]
    assert _apply(server) == []


def test_application_uses_what_the_owner_makes_but_makes_nothing(server: str) -> None:
    _apply(server)
    with _relay(server, "relay_owner") as owner:
        owner.execute(
            "create table charge (id bigint generated always as identity primary key, amount bigint)"
        )
        owner.execute("create schema inner_room create table thing (id int)")
    with _relay(server, "relay_app") as app:
        app.execute("insert into charge (amount) values (7)")
        assert app.execute("select amount from charge").fetchall() == [(7,)]
        app.execute("insert into inner_room.thing values (1)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            app.execute("create table mine (id int)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            app.execute("drop table charge")


def test_roles_without_a_grant_may_not_connect(server: str) -> None:
    _apply(server)
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        _relay(server, "rewinder")


def test_exclusion_constraints_can_use_scalars(server: str) -> None:
    _apply(server)
    with _relay(server, "relay_owner") as owner:
        owner.execute(
            "create table price (model text, at tstzrange, exclude using gist (model with =, at with &&))"
        )


def test_exporter_may_read_statistics_only(server: str) -> None:
    _apply(server)
    with _relay(server, "relay_owner") as owner:
        owner.execute("create table charge (id int)")
    with _relay(server, "relay_exporter") as exporter:
        assert exporter.execute("select name from pg_ls_waldir()").fetchone()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            exporter.execute("select * from charge")


def test_what_was_revoked_by_hand_comes_back(server: str) -> None:
    _apply(server)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("revoke connect on database relay from relay_app")
        connection.execute("grant connect on database relay to public")
    assert _apply(server) == [
        "every role may connect to relay",
        "role relay_app may not connect to relay",
        "role relay_exporter may not connect to relay",
        "role relay_reader may not connect to relay",
    ]
    assert _apply(server) == []


def test_the_reader_reads_what_the_owner_makes_and_changes_nothing(server: str) -> None:
    _apply(server)
    with _relay(server, "relay_owner") as owner:
        owner.execute("create table charge (id int)")
        owner.execute("insert into charge values (7)")
        owner.execute("create schema inner_room create table thing (id int)")
    with _relay(server, "relay_reader") as reader:
        assert reader.execute("select id from charge").fetchall() == [(7,)]
        assert reader.execute("select count(*) from inner_room.thing").fetchone() == (0,)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            reader.execute("insert into charge values (8)")
        # Who switches that off has no right to write either, nor to see the verifiers of passwords.
        reader.execute("set default_transaction_read_only = off")
        for statement in (
            "insert into charge values (8)",
            "delete from charge",
            "create table mine (id int)",
            "select rolpassword from pg_authid",
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'relay_owner'",
        ):
            with _relay(server, "relay_owner"), pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.execute(statement.encode())


def test_a_report_ends_after_its_time_and_there_are_few_at_once(server: str) -> None:
    _apply(server)
    with ExitStack() as opened:
        readers = [
            opened.enter_context(_relay(server, "relay_reader")) for _ in range(setup.READER_CONNECTIONS)
        ]
        with pytest.raises(psycopg.OperationalError, match="too many connections for role"):
            _relay(server, "relay_reader")
        assert readers[0].execute("show statement_timeout").fetchone() == ("1min",)


def test_a_reader_that_comes_later_reads_what_is_there_already(server: str) -> None:
    """As in a fleet that is older than the role."""
    _apply(server)
    with _relay(server, "relay_owner") as owner:
        owner.execute("create table charge (id int)")
    with psycopg.connect(server, dbname="relay", autocommit=True) as connection:
        connection.execute("drop owned by relay_reader")
        connection.execute("drop role relay_reader")
    told = _apply(server)
    assert "role relay_reader is missing" in told
    assert "relay_reader may not read public.charge" in told
    with _relay(server, "relay_reader") as reader:
        reader.execute("select * from charge")
    assert _apply(server) == []


def test_limits_of_the_reader_that_were_changed_by_hand_come_back(server: str) -> None:
    _apply(server)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("alter role relay_reader connection limit -1 ")
        connection.execute("alter role relay_reader set statement_timeout = 0")
    assert _apply(server) == [
        "role relay_reader has another limit of connections",
        "role relay_reader has another statement_timeout",
    ]
    assert _apply(server) == []


def test_the_reader_may_call_none_of_the_ledgers_writers(server: str, database: Database) -> None:
    _apply(server)
    with psycopg.connect(database.superuser_dsn, autocommit=True) as connection:
        callable_by = connection.execute(
            "select p.oid::regprocedure::text from pg_proc p"
            " where p.prosecdef and p.prorettype <> 'trigger'::regtype"
            " and has_function_privilege('relay_reader', p.oid, 'execute')"
        ).fetchall()
    assert callable_by == []


@pytest.mark.parametrize("stored", [None, "", "md5abc", "SCRAM-SHA-256$4096:c2FsdA==$AAAA:BBBB"])
def test_verifier_of_another_password_does_not_verify(stored: str | None) -> None:
    assert not setup.verifies("password", stored)


BOTH = {f"{role}_b": f"second-of-{role}" for role in setup.ATTRIBUTES}


def _set_up(server: str, logins: dict[str, str]) -> list[str]:
    return setup.set_up(server, logins, apply=True)


def test_each_role_may_have_two_logins_that_take_turns(server: str) -> None:
    """First, both, second, both, first: at each step a second run finds nothing."""
    for logins in (PASSWORDS, PASSWORDS | BOTH, BOTH, PASSWORDS | BOTH, PASSWORDS):
        assert _set_up(server, logins)
        assert setup.set_up(server, logins, apply=False) == []
        with psycopg.connect(server) as connection:
            query = "select rolname, rolpassword is null from pg_authid where rolname ~ %s and rolcanlogin"
            names = f"^({'|'.join(setup.ATTRIBUTES)})(_b)?$"
            rows = connection.execute(query, (names,)).fetchall()
        assert {name for name, _ in rows} == set(logins)
        assert not any(without for _, without in rows)


def test_a_fleet_that_begins_with_second_logins_works(server: str) -> None:
    """As after a site's loss in the middle of the turns."""
    assert _set_up(server, BOTH)
    assert setup.set_up(server, BOTH, apply=False) == []


def test_what_a_second_login_makes_belongs_to_its_role(server: str) -> None:
    _set_up(server, PASSWORDS | BOTH)
    with _relay(server, "relay_owner_b") as owner:
        owner.execute("create table charge (id bigint)")
    with _relay(server, "relay_app_b") as app:
        app.execute("insert into charge values (7)")
        assert app.execute("select current_user, session_user").fetchone() == ("relay_app", "relay_app_b")
    with _relay(server, "relay_reader_b") as reader:
        assert reader.execute("select * from charge").fetchall() == [(7,)]
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            reader.execute("create temp table x (id int)")
    with _relay(server, "relay_exporter_b") as exporter:
        assert exporter.execute("select name from pg_ls_waldir()").fetchone()
    with psycopg.connect(server) as connection:
        query = "select pg_get_userbyid(relowner) from pg_class where relname = 'charge'"
        with _relay(server, "postgres") as inside:
            assert inside.execute(query).fetchone() == ("relay_owner",)
        replicates = "select rolreplication from pg_roles where rolname = 'replicator_b'"
        assert connection.execute(replicates).fetchone() == (True,)
        rewinds = "select has_function_privilege('rewinder_b', %s, 'execute')"
        for function in setup.REWIND_FUNCTIONS:
            assert connection.execute(rewinds, (function,)).fetchone() == (True,)


def test_sessions_of_a_login_that_is_dropped_are_ended(server: str) -> None:
    _set_up(server, PASSWORDS | BOTH)
    old, new = _relay(server, "relay_app"), _relay(server, "relay_app_b")
    left = (PASSWORDS | BOTH) | {}
    del left["relay_app"]
    assert _set_up(server, left) == ["role relay_app is not used any more"]
    with pytest.raises(psycopg.OperationalError):
        old.execute("select 1")
    assert new.execute("select 1").fetchone() == (1,)
    new.close()
    with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
        _relay(server, "relay_app")

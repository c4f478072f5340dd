"""The database hosts' setup program on a real PostgreSQL: mends what differs, changes nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from templates.postgres import database_setup as setup

CREATED_ROLES = ("replicator", "rewinder")


PASSWORDS = {name: f"password-of-{name}" for name in setup.ATTRIBUTES}


@pytest.fixture
def server(postgres_dsn: str) -> Iterator[str]:
    """A server whose setup never ran: some roles exist without a password, some do not, nor the database."""
    yield postgres_dsn
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute("drop database if exists relay with (force)")
        for role in CREATED_ROLES:
            connection.execute(f"drop role if exists {role}")
        for role in (setup.OWNER, setup.APP, setup.EXPORTER):
            connection.execute(f"alter role {role} password null")


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
    ]
    assert _apply(server) == []


@pytest.mark.parametrize("stored", [None, "", "md5abc", "SCRAM-SHA-256$4096:c2FsdA==$AAAA:BBBB"])
def test_verifier_of_another_password_does_not_verify(stored: str | None) -> None:
    assert not setup.verifies("password", stored)

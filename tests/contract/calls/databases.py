"""Databases on which a release's calls are repeated."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from alembic import command
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from relay.store.migrate import alembic_config, migrate
from tests.contract.calls.recording import Recording, Run
from tests.contract.calls.replay import Player, Refusal, Types, not_answered, not_repeated, steady
from tests.contract.postgres import TEMPLATE, PostgresServer, empty_database


@dataclass(frozen=True)
class Place:
    """A database of a server."""

    server: PostgresServer
    name: str

    def dsn(self, role: str) -> str:
        """How a role connects."""
        return self.server.dsn(self.name, role)


@contextmanager
def copy_of(server: PostgresServer, name: str, template: str = TEMPLATE) -> Iterator[Place]:
    """A database of its own with what ``template`` has; removed afterwards."""
    with psycopg.connect(server.dsn("postgres", "postgres"), autocommit=True) as connection:
        connection.execute(f'create database "{name}" template "{template}" owner relay_owner'.encode())
    try:
        yield Place(server, name)
    finally:
        with psycopg.connect(server.dsn("postgres", "postgres"), autocommit=True) as connection:
            connection.execute(f'drop database "{name}" with (force)'.encode())


def build(server: PostgresServer, name: str, schema: str) -> Place:
    """A new database by the migrations up to ``schema`` and no others."""
    empty_database(server, name)
    place = Place(server, name)
    dsn = place.dsn("relay_owner")
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn), poolclass=NullPool)
    with engine.connect() as work:
        command.upgrade(alembic_config(work), schema)
    return place


def player(place: Place, recording: Recording) -> Player:
    """Repeats runs of a recording there, by the server's clock."""
    with psycopg.connect(place.dsn("postgres")) as connection:
        row = connection.execute("select now()").fetchone()
    assert row is not None
    return Player(place.dsn, Types.of(place.dsn("postgres")), recording.statements, row[0])


def refused_when_new(
    place: Place, recording: Recording, run: Run, steps: Container[int] | None = None
) -> list[Refusal]:
    """A run on a fresh database of today's schema: what comes to something else, of ``steps`` (None: all)."""
    return list(not_answered(recording, run, player(place, recording).play(run), steps))


def refused_when_migrated(
    place: Place, recording: Recording, run: Run, bring: Callable[[str], object] = migrate
) -> tuple[set[int], list[Refusal]]:
    """A run on a database of its own schema, then brought to today's: (steps that came to what is recorded
    before that, what of it fails after it)."""
    then = player(place, recording)
    agreed = steady(recording, run, then.play(run))
    bring(place.dsn("relay_owner"))
    return agreed, list(not_repeated(recording, run, then))

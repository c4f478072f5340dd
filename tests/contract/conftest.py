"""Real services on loopback for the contract tests: PostgreSQL with the relay's schema."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.postgres import (
    REPOSITORY,
    Database,
    PostgresServer,
    drop_database,
    free_port,
    make_database,
    running_server,
)
from tests.contract.relay_rig import Provider, running_provider

__all__ = ["REPOSITORY", "Database", "PostgresServer", "drop_database", "free_port", "make_database"]


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server with the fleet's roles and a migrated template database."""
    with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_dsn(postgres: PostgresServer) -> str:
    """Connection string of the superuser to the maintenance database."""
    return postgres.dsn("postgres", "postgres")


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    """The fake provider, one for a module."""
    with running_provider(tmp_path_factory.mktemp("provider")) as running:
        yield running


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[Database]:
    """A fresh, migrated database of one test."""
    made = make_database(postgres)
    yield made
    drop_database(postgres, made)


@pytest.fixture(scope="module")
def module_database(postgres: PostgresServer) -> Iterator[Database]:
    """A fresh, migrated database of one module."""
    made = make_database(postgres)
    yield made
    drop_database(postgres, made)

"""Real services on loopback for the contract tests: PostgreSQL with the relay's schema."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from tests.contract.relay_rig import Provider, Relay, Replica, running_provider
from tests.memory import files_in_memory

__all__ = ["REPOSITORY", "Database", "PostgresServer", "drop_database", "free_port", "make_database"]

# The files that take longest, the longest first: one that begins last is waited for by all others. Those that
# wait and those that calculate take turns, so that neither are among themselves.
LONGEST = (
    "test_edge_acme",
    "test_provider_fuzz",
    "test_killed_commands",
    "test_media",
    "test_gateway_faults",
    "test_chaos",
    "test_edge_slow",
    "test_edge_nginx",
    "test_gateway_stop",
    "test_drill",
    "test_provider_faults",
    "test_backups",
    "test_host_programs",
    "test_formats",
    "test_virtual_address",
    "test_healer",
)
assert all(Path(__file__).with_name(f"{name}.py").exists() for name in LONGEST)


def pytest_configure() -> None:
    """Servers' files are in memory."""
    files_in_memory()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first (with xdist's --no-loadscope-reorder)."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How long each of the longest files took on its worker: what LONGEST is made of."""
    seconds: dict[str, float] = defaultdict(float)
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if isinstance(report, pytest.TestReport):
            seconds[Path(report.location[0]).stem] += report.duration
    terminalreporter.section(f"{sum(seconds.values()):.0f} s of workers, of which")
    for name, spent in sorted(seconds.items(), key=lambda item: -item[1])[:20]:
        terminalreporter.write_line(f"{spent:7.1f} s {name}")


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


@pytest.fixture(scope="module")
def replica_settings() -> dict[str, str]:
    """What the module's ``replica`` is told beside the usual; a module defines its own."""
    return {}


@pytest.fixture(scope="module")
def replica(relay: Relay, replica_settings: dict[str, str]) -> Replica:
    """One replica for a module, of the fixture ``relay`` that the module defines and stops."""
    return relay.replica(**replica_settings)


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

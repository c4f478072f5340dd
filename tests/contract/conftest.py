"""Real services on loopback for the contract tests: PostgreSQL with the relay's schema."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import psycopg
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TEMPLATE = "relay_template"
ROLES = ("relay_owner", "relay_app", "relay_exporter")
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "log_min_messages": "warning",
}


@dataclass(frozen=True)
class Database:
    """A fresh database with the relay's schema. ``name`` tells databases of one server apart."""

    name: str
    owner_dsn: str
    app_dsn: str
    superuser_dsn: str


@dataclass(frozen=True)
class PostgresServer:
    """A running server; stop and start it to play a failing primary."""

    port: int
    data: Path
    binaries: Path
    prefix: tuple[str, ...]

    def dsn(self, database: str, user: str) -> str:
        """A libpq connection string."""
        return f"host=127.0.0.1 port={self.port} dbname={database} user={user} connect_timeout=5"

    def control(self, *arguments: str) -> None:
        """Run pg_ctl, e.g. ``control("restart", "-m", "immediate")``."""
        command = [*self.prefix, str(self.binaries / "pg_ctl"), "-D", str(self.data), "-w", *arguments]
        log = self.data.parent / "pg_ctl.log"
        with log.open("ab") as output:
            subprocess.run(command, check=True, stdout=output, stderr=output, cwd="/")


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not found:
        pytest.fail("PostgreSQL is missing: apt-get install postgresql")
    return found[-1]


def _initdb(root: Path) -> PostgresServer:
    binaries, data, port = _binaries(), root / "data", free_port()
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:
        account = pwd.getpwnam("postgres")
        os.chown(root, account.pw_uid, account.pw_gid)
        prefix = ("runuser", "-u", "postgres", "--")
    subprocess.run(
        [*prefix, str(binaries / "initdb"), "-D", str(data), "-U", "postgres", "--auth=trust", "-E", "UTF8"],
        check=True,
        capture_output=True,
        cwd="/",
    )
    settings = SETTINGS | {"port": str(port), "unix_socket_directories": str(root)}
    lines = "".join(f"{name} = '{value}'\n" for name, value in settings.items())
    with (data / "postgresql.conf").open("a") as config:
        config.write(lines)
    return PostgresServer(port=port, data=data, binaries=binaries, prefix=prefix)


def _prepare(server: PostgresServer) -> None:
    with psycopg.connect(server.dsn("postgres", "postgres"), autocommit=True) as connection:
        for role in ROLES:
            connection.execute(f'create role "{role}" login')
        connection.execute("grant pg_monitor to relay_exporter")
        connection.execute(f'create database "{TEMPLATE}" owner relay_owner')
    with psycopg.connect(server.dsn(TEMPLATE, "postgres"), autocommit=True) as connection:
        for kind in ("tables", "sequences"):
            rights = "select, insert, update, delete" if kind == "tables" else "usage, select"
            connection.execute(
                f"alter default privileges for role relay_owner grant {rights} on {kind} to relay_app"
            )
    environment = os.environ | {"RELAY_MIGRATION_DATABASE_URL": server.dsn(TEMPLATE, "relay_owner")}
    migrated = subprocess.run(
        [sys.executable, "-m", "relay", "migrate"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    if migrated.returncode:
        pytest.fail(f"relay migrate failed:\n{migrated.stdout}\n{migrated.stderr}")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server with the fleet's roles and a migrated template database."""
    root = Path(tempfile.mkdtemp(prefix="relay-pg-"))
    try:
        server = _initdb(root)
        server.control("start")
        try:
            _prepare(server)
            yield server
        finally:
            server.control("stop", "-m", "immediate")
    finally:
        shutil.rmtree(root)


@pytest.fixture(scope="session")
def postgres_dsn(postgres: PostgresServer) -> str:
    """Connection string of the superuser to the maintenance database."""
    return postgres.dsn("postgres", "postgres")


_numbers = count(1)


def make_database(server: PostgresServer) -> Database:
    """Create a database from the migrated template."""
    name = f"relay_test_{next(_numbers)}"
    with psycopg.connect(server.dsn("postgres", "postgres"), autocommit=True) as connection:
        connection.execute(f'create database "{name}" template "{TEMPLATE}" owner relay_owner')
    return Database(
        name=name,
        owner_dsn=server.dsn(name, "relay_owner"),
        app_dsn=server.dsn(name, "relay_app"),
        superuser_dsn=server.dsn(name, "postgres"),
    )


def drop_database(server: PostgresServer, database: Database) -> None:
    """Drop it, whoever is still connected."""
    with psycopg.connect(server.dsn("postgres", "postgres"), autocommit=True) as connection:
        connection.execute(f'drop database "{database.name}" with (force)')


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

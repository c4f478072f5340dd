"""A real PostgreSQL on loopback: made, prepared as the fleet's is, with the relay's schema."""

from __future__ import annotations

import atexit
import os
import pwd
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import count, cycle
from pathlib import Path

import psycopg

REPOSITORY = Path(__file__).resolve().parents[2]
TEMPLATE = "relay_template"
ROLES = ("relay_owner", "relay_app", "relay_exporter")
# Test workers that have ports of their own: no more run at once.
PORTS, SHARES = range(15_000, 32_000), 8
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "log_min_messages": "warning",
    # kill -9 takes nothing that was written; what power cuts take, no test here plays.
    "fsync": "off",
    # Files in /dev/shm are not safe here: tools that build root file systems beside us empty it.
    "dynamic_shared_memory_type": "mmap",
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
        return f"host=127.0.0.1 port={self.port} dbname={database} user={user} connect_timeout=30"

    def control(self, *arguments: str) -> None:
        """Run pg_ctl, e.g. ``control("restart", "-m", "immediate")``."""
        command = [*self.prefix, str(self.binaries / "pg_ctl"), "-D", str(self.data), "-w", *arguments]
        log = self.data.parent / "pg_ctl.log"
        with log.open("ab") as output:
            subprocess.run(command, check=True, stdout=output, stderr=output, cwd="/")


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on.

    It lies below the range that Linux gives to outgoing connections (32768 and up), so that a server finds it
    free again after a restart. Nobody else is given it meanwhile: test workers have ports of their own, and a
    process is given the same one again after all its others.
    """
    for port in _own_ports(os.getpid()):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("ports do not end")


@cache
def _own_ports(process: int) -> Iterator[int]:
    """Those of this worker, again and again; a forked process begins elsewhere among them."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    share = int(worker.removeprefix("gw")) if worker else random.randrange(SHARES)  # noqa: S311
    own = PORTS[share % SHARES :: SHARES]
    first = random.randrange(len(own))  # noqa: S311
    return cycle([*own[first:], *own[:first]])


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not found:
        raise RuntimeError("PostgreSQL is missing: apt-get install postgresql")
    return found[-1]


def initdb(root: Path) -> PostgresServer:
    """Make a server that is not started in the directory ``root``, run as user postgres when we are root."""
    server = _pristine(root)
    _configure(server)
    return server


def copied(root: Path, data: Path | None = None) -> PostgresServer:
    """The same in a tenth of the time, or a copy of the directory ``data`` of a server that was stopped.

    What one process copies has one system identifier.
    """
    server = _unmade(root)
    subprocess.run(["cp", "-a", str(data or _to_copy()), str(server.data)], check=True)
    _configure(server)
    return server


@cache
def _to_copy() -> Path:
    root = Path(tempfile.mkdtemp(prefix="relay-pg-to-copy-"))
    atexit.register(shutil.rmtree, root)
    return _pristine(root).data


def _pristine(root: Path) -> PostgresServer:
    server = _unmade(root)
    options = ("-U", "postgres", "--auth=trust", "-E", "UTF8", "--data-checksums", "--no-sync")
    command = [*server.prefix, str(server.binaries / "initdb"), "-D", str(server.data), *options]
    subprocess.run(command, check=True, capture_output=True, cwd="/")
    return server


def _unmade(root: Path) -> PostgresServer:
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:
        account = pwd.getpwnam("postgres")
        os.chown(root, account.pw_uid, account.pw_gid)
        prefix = ("runuser", "-u", "postgres", "--")
    return PostgresServer(port=free_port(), data=root / "data", binaries=_binaries(), prefix=prefix)


def _configure(server: PostgresServer) -> None:
    own = {"port": str(server.port), "unix_socket_directories": str(server.data.parent)}
    lines = "".join(f"{name} = '{value}'\n" for name, value in (SETTINGS | own).items())
    with (server.data / "postgresql.conf").open("a") as config:
        config.write(lines)


def prepare(server: PostgresServer, database: str = TEMPLATE) -> None:
    """Create the fleet's roles and ``database`` with the relay's schema; raises RuntimeError with why."""
    create_database(server, database)
    migrate(server, database)


def migrate(server: PostgresServer, database: str) -> None:
    """Bring ``database`` to the relay's newest schema; raises RuntimeError with why."""
    environment = os.environ | {"RELAY_MIGRATION_DATABASE_URL": server.dsn(database, "relay_owner")}
    migrated = subprocess.run(
        [sys.executable, "-m", "relay", "migrate"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    if migrated.returncode:
        raise RuntimeError(f"relay migrate failed:\n{migrated.stdout}\n{migrated.stderr}")


@contextmanager
def running_server(**environment: str) -> Iterator[PostgresServer]:
    """A started server with the fleet's roles and a migrated template database; removed afterwards.

    ``environment``: what it is started with beside ours.
    """
    root = Path(tempfile.mkdtemp(prefix="relay-pg-"))
    try:
        server = copied(root)
        own = ["env", *(f"{name}={value}" for name, value in environment.items())]
        replace(server, prefix=(*server.prefix, *own)).control("start")
        try:
            prepare(server)
            yield server
        finally:
            server.control("stop", "-m", "immediate")
    finally:
        shutil.rmtree(root)


def create_database(server: PostgresServer, database: str) -> None:
    """Create the fleet's roles and an empty ``database`` whose tables relay_app may use."""
    with psycopg.connect(server.dsn("postgres", "postgres"), autocommit=True) as connection:
        for role in ROLES:
            connection.execute(f'create role "{role}" login')
        connection.execute("grant pg_monitor to relay_exporter")
        connection.execute("grant pg_read_all_stats to relay_owner")
    empty_database(server, database)


def empty_database(server: PostgresServer, database: str) -> None:
    """Create an empty ``database``, whose tables relay_app may use, on a server that has the roles."""
    with psycopg.connect(server.dsn("postgres", "postgres"), autocommit=True) as connection:
        connection.execute(f'create database "{database}" owner relay_owner')
    with psycopg.connect(server.dsn(database, "postgres"), autocommit=True) as connection:
        for kind in ("tables", "sequences"):
            rights = "select, insert, update, delete" if kind == "tables" else "usage, select"
            connection.execute(
                f"alter default privileges for role relay_owner grant {rights} on {kind} to relay_app"
            )


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

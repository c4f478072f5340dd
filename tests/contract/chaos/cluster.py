"""Two PostgreSQL servers with synchronous streaming replication, and failover by kill -9 and promotion.

While both run, a commit is acknowledged once both have flushed it, so what the standby holds is at least what
any client was told. While one is rebuilt, the other runs alone (as Patroni does without strict mode).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg

from tests.contract.postgres import PostgresServer, copied, free_port

DATABASE = "relay"
SERVER_SETTINGS = """
max_wal_size = '2GB'
wal_level = replica
synchronous_commit = on
include 'node.conf'
"""
CLIENT = (
    "connect_timeout=2 tcp_user_timeout=3000 keepalives_idle=1 keepalives_interval=1 keepalives_count=3"
    " target_session_attrs=read-write"
)
SYNCHRONOUS_WITHIN_SECONDS = 120


class Cluster:
    """A primary and its synchronous standby. Blocking: call it from a thread beside an event loop."""

    def __init__(self) -> None:
        self._roots = tuple(Path(tempfile.mkdtemp(prefix=f"relay-chaos-{name}-")) for name in "ab")
        self.primary = copied(self._roots[0])
        owner = self._roots[0].stat()
        os.chown(self._roots[1], owner.st_uid, owner.st_gid)
        self.standby = PostgresServer(
            port=free_port(),
            data=self._roots[1] / "data",
            binaries=self.primary.binaries,
            prefix=self.primary.prefix,
        )
        self._running: list[PostgresServer] = []
        with (self.primary.data / "postgresql.conf").open("a") as config:
            config.write(SERVER_SETTINGS)

    def start(self) -> None:
        """Start the primary, alone."""
        self._configure(self.primary)
        self._start(self.primary)

    def dsn(self, user: str) -> str:
        """A connection string that finds the primary, whichever server that is."""
        ports = sorted((self.primary.port, self.standby.port))
        return f"host=127.0.0.1,127.0.0.1 port={ports[0]},{ports[1]} dbname={DATABASE} user={user} {CLIENT}"

    def attach_standby(self) -> None:
        """Copy the primary into the standby's place and return once commits wait for it."""
        shutil.rmtree(self.standby.data, ignore_errors=True)
        self._copy_primary()
        self._configure(self.standby, follows=self.primary)
        (self.standby.data / "standby.signal").touch()
        self._start(self.standby)
        self._wait_for("state", "streaming")
        self._configure(self.primary, synchronous=True)
        self.primary.control("reload")
        self._wait_for("sync_state", "sync")

    def fail_over(self) -> float:
        """Kill the primary and promote the standby; returns the seconds it took. Refuses to lose a commit."""
        if self._replication("sync_state") != "sync":
            raise RuntimeError("no failover: the standby is not synchronous, commits could be lost")
        began = time.monotonic()
        self.kill(self.primary)
        self.standby.control("promote")
        self.primary, self.standby = self.standby, self.primary
        return time.monotonic() - began

    def promote_standby(self) -> None:
        """The standby becomes the primary, whatever the other one does; close() stops both."""
        self.standby.control("promote")
        self.primary, self.standby = self.standby, self.primary

    def kill(self, server: PostgresServer) -> None:
        """kill -9 of all of it, frozen or not."""
        kill_server(server)
        self._running.remove(server)

    def close(self) -> None:
        """Stop what runs and remove every file."""
        for server in self._running:
            server.control("stop", "-m", "immediate")
        for root in self._roots:
            shutil.rmtree(root)

    def _start(self, server: PostgresServer) -> None:
        log = server.data.parent / "server.log"
        try:
            server.control("start", "-l", str(log))
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"PostgreSQL does not start:\n{log.read_text()[-2000:]}") from error
        self._running.append(server)

    def _configure(
        self, server: PostgresServer, *, follows: PostgresServer | None = None, synchronous: bool = False
    ) -> None:
        source = ""
        if follows:
            source = f"host=127.0.0.1 port={follows.port} user=postgres application_name=standby"
        settings = {
            "port": str(server.port),
            "unix_socket_directories": "",  # a killed server would leave a socket's lock behind
            "primary_conninfo": source,
            "synchronous_standby_names": "standby" if synchronous else "",
        }
        lines = "".join(f"{name} = '{value}'\n" for name, value in settings.items())
        (server.data / "node.conf").write_text(lines)

    def _copy_primary(self) -> None:
        program = str(self.primary.binaries / "pg_basebackup")
        source = ("-h", "127.0.0.1", "-p", str(self.primary.port), "-U", "postgres")
        options = ("-D", str(self.standby.data), "-c", "fast", "-X", "stream", "--no-sync")
        command = [*self.primary.prefix, program, *source, *options]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"pg_basebackup failed: {done.stderr.strip()}")

    def _replication(self, column: str) -> str | None:
        with psycopg.connect(self.primary.dsn("postgres", "postgres"), autocommit=True) as connection:
            row = connection.execute(
                f"select {column} from pg_stat_replication where application_name = 'standby'"  # noqa: S608
            ).fetchone()
        return str(row[0]) if row else None

    def _wait_for(self, column: str, value: str) -> None:
        deadline = time.monotonic() + SYNCHRONOUS_WITHIN_SECONDS
        while (found := self._replication(column)) != value:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the standby's {column} is {found!r}, not {value!r}: see its server.log")
            time.sleep(0.1)


@contextmanager
def frozen(server: PostgresServer) -> Iterator[None]:
    """Stop every process of a server, whose kernel goes on acknowledging packets; let them go in the end."""
    stopped = _stop_all(server)
    try:
        yield
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def kill_server(server: PostgresServer) -> None:
    """kill -9 of the postmaster and of every process of it; returns once none is left."""
    doomed = _stop_all(server)  # so that it neither forks nor reaps while its children die
    for pid in doomed:
        os.kill(pid, signal.SIGKILL)
    while any(_alive(pid) for pid in doomed):
        time.sleep(0.005)


def _stop_all(server: PostgresServer) -> list[int]:
    postmaster = int((server.data / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGSTOP)
    found = [postmaster, *_children(postmaster)]
    for pid in found:
        os.kill(pid, signal.SIGSTOP)
    return found


def _children(parent: int) -> list[int]:
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(pid) for pid in listed.split()]


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"

"""A replica built from the repository: a real PostgreSQL, pgBackRest and store, without Patroni."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backups.host import __main__ as program
from backups.host import common, replica
from tests.contract.backup_rig import Rig, running_rig
from tests.contract.postgres import REPOSITORY, PostgresServer, free_port

SCRIPT = REPOSITORY / "templates/postgres/relay-replica-wal"


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with running_rig() as made:
        made.sql("create table written (id int primary key)")
        made.must(made.commands.backup("full"))
        yield made


@pytest.fixture
def standby(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PostgresServer]:
    """A directory for a replica, which `relay-backups replica` fills; stopped afterwards."""
    root = rig.root / "replica"
    root.mkdir()
    (root / "data").mkdir(mode=0o700)
    settings = tmp_path / "backups.json"
    settings.write_text(json.dumps({"stanza": "relay", "config": str(rig.config)}))
    monkeypatch.setattr(common, "SETTINGS", settings)
    monkeypatch.setattr(replica, "MARK", root / "built")
    monkeypatch.setattr(replica, "primary_timeline", lambda _: 1)
    if os.geteuid() == 0:
        for path in (root, root / "data"):
            shutil.chown(path, "postgres", "postgres")
    made = PostgresServer(free_port(), root / "data", rig.server.binaries, rig.server.prefix)
    try:
        yield made
    finally:
        if (made.data / "postmaster.pid").exists():
            made.control("stop", "-m", "immediate")
        shutil.rmtree(root)


def configure(rig: Rig, standby: PostgresServer) -> None:
    """What Patroni would write: its own recovery settings in the place of pgBackRest's."""
    root = standby.data.parent
    config = root / "pgbackrest.conf"
    config.write_text(rig.config.read_text().replace(str(rig.server.data), str(standby.data)))
    command = (
        f"env RELAY_REPLICA_MARK={root}/built RELAY_PGBACKREST={config} sh {root}/relay-replica-wal %f %p"
    )
    shutil.copy(SCRIPT, root / "relay-replica-wal")
    own = {
        "port": standby.port,
        "unix_socket_directories": root,
        "archive_mode": "off",
        "primary_conninfo": f"host=127.0.0.1 port={rig.server.port} user=postgres",
        "restore_command": command,
        "wal_retrieve_retry_interval": "500ms",
    }
    lines = "".join(f"{name} = '{value}'\n" for name, value in own.items())
    (standby.data / "postgresql.auto.conf").write_text(lines)


def segments(rig: Rig) -> list[str]:
    return sorted(path.name for path in (rig.server.data / "pg_wal").glob("0*") if len(path.name) == 24)


def test_it_catches_up_on_wal_that_the_primary_has_no_more_and_streams(
    rig: Rig, standby: PostgresServer
) -> None:
    first = str(rig.sql("select pg_walfile_name(pg_current_wal_lsn())"))
    for number in range(6):
        rig.sql(f"insert into written values ({number})")  # noqa: S608
        rig.archive()
    for _ in range(2):
        rig.sql("checkpoint")
    assert first not in segments(rig), "the primary has given it up"
    assert program.main(["replica", str(standby.data)]) == 0
    assert (standby.data / "standby.signal").exists()
    mark = standby.data.parent / "built"
    assert mark.exists()
    configure(rig, standby)
    standby.control("start")
    rig.sql("insert into written values (100)")
    ask = "select state from pg_stat_replication"
    deadline = time.monotonic() + 90
    while not (rig.sql(ask) == "streaming" and rig.sql("select count(*) from written", standby.port) == 7):
        assert time.monotonic() < deadline, (standby.data.parent / "pg_ctl.log").read_text()[-3000:]
        time.sleep(0.1)
    assert not mark.exists(), "it reads the repository no more"
    rig.sql("insert into written values (101)")
    while rig.sql("select count(*) from written", standby.port) != 8:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_without_a_backup_that_fits_or_a_store_the_primary_is_copied(
    rig: Rig, standby: PostgresServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(replica, "primary_timeline", lambda _: 2)
    assert program.main(["replica", str(standby.data)]) == 1
    assert "no backup of timeline 2" in capsys.readouterr().err
    monkeypatch.setattr(replica, "primary_timeline", lambda _: 1)
    # A restore that breaks off, here for a directory that is in use.
    (standby.data / "postmaster.pid").write_text("1\n")
    assert program.main(["replica", str(standby.data)]) == 1
    (standby.data / "postmaster.pid").unlink()
    with rig.set(repo1_storage_port=str(free_port()), io_timeout="1"):
        assert program.main(["replica", str(standby.data)]) == 1
    assert not (standby.data.parent / "built").exists()
    assert list(standby.data.iterdir()) == []


def test_any_other_member_does_not_ask_the_store(tmp_path: Path) -> None:
    """A primary that takes over asks for WAL and histories: it is told at once that there are none."""
    asked = tmp_path / "asked"
    (tmp_path / "pgbackrest").write_text(f"#!/bin/sh\ntouch {asked}\nexit ${{CODE}}\n")
    (tmp_path / "pgbackrest").chmod(0o755)
    mark = tmp_path / "built"

    def wal(name: str, code: int = 0) -> int:
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "RELAY_REPLICA_MARK": str(mark),
            "CODE": str(code),
        }
        return subprocess.run(["sh", str(SCRIPT), name, "pg_wal/x"], env=environment).returncode

    for name in ("000000010000000000000007", "00000002.history"):
        assert wal(name) == 1
    assert not asked.exists()
    mark.touch()
    assert (wal("000000010000000000000007"), mark.exists(), asked.exists()) == (0, True, True)
    assert (wal("00000002.history", 1), mark.exists()) == (1, True), (
        "no later timeline is no end of the archive"
    )
    assert (wal("000000010000000000000008", 49), mark.exists()) == (49, True), "nor is a store that is away"
    assert (wal("000000010000000000000009", 1), mark.exists()) == (1, False)

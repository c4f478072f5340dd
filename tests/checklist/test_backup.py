"""Backups: one is there, WAL arrives within its time, and the database hosts cannot delete any of it."""

from __future__ import annotations

import json
import time
from typing import Any

from deploys.lib import fleet
from tests.checklist.targets import hosts

testinfra_hosts = hosts("db")

PGBACKREST = "cd / && runuser -u postgres -- pgbackrest --stanza=relay"
# An incomplete segment is closed within backup_archive_seconds; then it is compressed and sent.
SENDING_SECONDS = 30


def info(host: Any) -> dict[str, Any]:
    """What the repository holds of this cluster."""
    (found,) = json.loads(host.check_output(f"{PGBACKREST} info --output=json"))
    return dict(found)


def test_there_is_a_good_backup(host: Any) -> None:
    """The repository holds a backup without errors that is at most 26 hours old, encrypted by us."""
    found = info(host)
    assert found["cipher"] == "aes-256-cbc"
    newest = found["backup"][-1]
    assert not newest["error"]
    assert time.time() - newest["timestamp"]["stop"] < 26 * 3600


def test_wal_arrives_in_time(host: Any) -> None:
    """On the primary: the last WAL was archived less than a minute or so ago, and no try has failed since."""
    age = "select coalesce(extract(epoch from now() - last_archived_time), 1e9) from pg_stat_archiver"
    query = "cd / && runuser -u postgres -- psql -XAtqc"
    if host.check_output(f"{query} 'select pg_is_in_recovery()'") == "t":
        return
    limit = fleet.setting("backup_archive_seconds") + SENDING_SECONDS
    assert float(host.check_output(f'{query} "{age}"')) < limit


def test_the_archive_is_whole(host: Any) -> None:
    """No WAL that a restore needs is missing."""
    looked = host.run("relay-backups check")
    assert looked.rc == 0, looked.stdout + looked.stderr


def test_nothing_can_be_deleted_from_here(host: Any) -> None:
    """The account of a database host may not delete what is in the repository."""
    refused = host.run(f"{PGBACKREST} repo-rm backup/relay/backup.info")
    assert refused.rc != 0
    assert "AccessDenied" in refused.stdout + refused.stderr
    assert info(host)["status"]["code"] == 0


def test_timers_run(host: Any) -> None:
    """Backup and check are due, and their last runs did not fail."""
    for name in ("relay-backup", "relay-backup-check"):
        assert host.service(f"{name}.timer").is_running
        assert host.service(f"{name}.timer").is_enabled
        assert host.check_output(f"systemctl show --value --property Result {name}.service") == "success"


def test_secrets_are_private(host: Any) -> None:
    """Keys and passphrase can be read by root and PostgreSQL only."""
    file = host.file("/etc/pgbackrest/pgbackrest.conf")
    assert (file.user, file.group, file.mode) == ("root", "postgres", 0o640)

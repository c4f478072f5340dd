"""Backups that the fleet makes by itself, on the platform that the files before have built."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from deploys.sandbox import remote
from inventories.group_data import all as defaults
from tests.fleet.conftest import backups
from tests.fleet.patroni import leader, query

AS_POSTGRES = ("runuser", "-u", "postgres", "--")
PGBACKREST = (*AS_POSTGRES, "pgbackrest", "--stanza=relay")
DELETING = (*AS_POSTGRES, "pgbackrest", "--config=/etc/pgbackrest/retention.conf", "--stanza=relay")
# An incomplete segment is closed after a minute; then it is compressed and sent, by a machine that is busy.
ARCHIVED_SECONDS = defaults.backup_archive_seconds + 40
# Of those since there is an account: a fleet that is minutes old has a backup from before there was a ledger.
SOME_MOMENT = """select to_char(
    (min(created_at) + random() * (now() - min(created_at))) at time zone 'utc',
    'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'
) from accounts"""


# Of the segment that is open now; and when that was, in seconds since 1970.
WRITE = """select pg_walfile_name(pg_logical_emit_message(true, 'fleet', '')),
    extract(epoch from clock_timestamp())"""
ARCHIVED = """select coalesce(last_archived_wal, ''), extract(epoch from last_archived_time)
    from pg_stat_archiver"""
# Beyond it nobody waits for a segment to be archived.
HANGING_SECONDS = 180


def test_the_deploy_left_a_backup_that_is_whole() -> None:
    (found,) = json.loads(remote.run(leader(), *PGBACKREST, "info", "--output=json"))
    assert found["status"]["code"] == 0
    assert [backup for backup in found["backup"] if not backup["error"]]


def test_what_is_written_is_in_the_repository_within_a_minute() -> None:
    written, begin = query(WRITE).split("|")
    deadline = time.monotonic() + HANGING_SECONDS
    while (found := query(ARCHIVED).split("|"))[0] < written:
        assert time.monotonic() < deadline, f"{written} was not archived"
        time.sleep(1)
    # By the database's clock: how long this test took to look is no matter.
    took = float(found[1]) - float(begin)
    print(f"WAL reached the repository after {took:.0f} s")
    assert took < ARCHIVED_SECONDS


@pytest.mark.parametrize("path", ["backup/relay/backup.info", "archive/relay/archive.info"])
def test_database_hosts_cannot_delete(path: str) -> None:
    with pytest.raises(remote.RemoteError, match="AccessDenied"):
        remote.run(leader(), *PGBACKREST, "repo-rm", path)
    assert remote.run(leader(), *PGBACKREST, "repo-ls", path).strip()


@pytest.fixture
def deleted() -> Iterator[str]:
    """The segment after the oldest backup's, taken out of the repository, and brought back."""
    # The store tells whole seconds.
    began = datetime.now(UTC).replace(microsecond=0)
    place = "archive/relay/" + remote.run("ops1", *DELETING, "repo-ls", "archive/relay").split()[0]
    (directory,) = [
        line
        for line in remote.run("ops1", *DELETING, "repo-ls", place).split()
        if len(line) == len("0000000100000000")
    ][-1:]
    listed = remote.run("ops1", *DELETING, "repo-ls", f"{place}/{directory}").split()
    (found,) = json.loads(remote.run("ops1", *DELETING, "info", "--output=json"))
    needed = found["backup"][0]["archive"]["stop"]
    taken = min(name for name in listed if name[:24] > needed)
    remote.run("ops1", *DELETING, "repo-rm", f"{place}/{directory}/{taken}")
    yield taken[:24]
    backups("bucket", "sandbox", "--undelete", "relay/archive", "--since", began.isoformat(), "--yes")
    remote.run(leader(), "relay-backups", "check", "--whole")


def test_a_segment_that_somebody_deleted_is_found(deleted: str) -> None:
    host = leader()
    with pytest.raises(remote.RemoteError, match="exit 1"):
        remote.run(host, "relay-backups", "check", "--whole")
    told = remote.run(host, "sh", "-c", "relay-backups check --whole || true")
    assert deleted in told
    figures = remote.run(host, "cat", "/var/lib/prometheus/node-exporter/backup.prom")
    assert "backup_wal_missing_segments 1" in figures


def test_a_drill_proves_a_restore() -> None:
    command = ("relay-backups", "drill", "run", "--target", f"time={query(SOME_MOMENT)}", "--json")
    receipt = json.loads(remote.run("ops1", *command, seconds=900))
    assert receipt["ok"], receipt["problems"]
    (compared,) = [check for check in receipt["checks"] if check["name"] == "same rows as the fleet"]
    assert "not compared" not in compared["detail"]
    print(f"drill: writable after {receipt['rto_seconds']} s, {receipt['rpo_seconds']} s behind")
    listed = remote.run(
        "ops1", "relay-backups", "drill", "receipts", "--month", receipt["started"][:7], "--json"
    )
    assert "store" in {one["place"] for one in json.loads(listed) if json.loads(one["text"]) == receipt}
    assert json.loads(remote.run("ops1", "relay-backups", "scratch", "list", "--json")) == []

"""The commands that look: status, list, verify; and those of the repository: backup, retention."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from backups.cluster import Answer
from tests.unit.backups import repository_answers as repository
from tests.unit.backups.scripted import Call, Fleet, members

WELL = {"db1": "leader running", "db2": "quorum_standby streaming 0", "db3": "quorum_standby streaming 0"}
ARCHIVED = {"archived": 20, "failing": False, "sync": "ANY 1 (db2,db3)"}


def cluster(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, said: Any = None, **states: str) -> None:
    monkeypatch.setattr("backups.commands.status.time.time", lambda: repository.SECOND_STOP + 3600.0)
    repository.answers(fleet, said)
    fleet.on("db.", "/cluster", members(**(WELL | states)))
    fleet.on("db.", "relay-restore/hold")
    fleet.on("db.", "pg_stat_archiver", ARCHIVED)
    fleet.on("db.|ops1", "node-exporter")
    fleet.on("db.", "^true$")


def test_a_cluster_that_is_well_has_nothing_to_do(
    fleet: Fleet, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster(fleet, monkeypatch)
    result = call("status")
    assert result.code == 0
    assert "all is well" in result.out
    assert "20261126-010000F, 1.0 h old" in result.out
    assert "ANY 1 (db2,db3)" in result.out
    answer = call("status", "--json").json
    assert (answer["well"], answer["cluster"], answer["next"]) == (True, "production/relay", [])


@pytest.mark.parametrize(
    ("states", "wrong", "command"),
    [
        ({"db2": "replica starting"}, "db2 is starting", "python -m backups rejoin production db2"),
        ({"db2": "replica streaming 99000000"}, "db2 is 99 MB behind", "reinit production db2"),
        ({"db1": "replica running"}, "there is no primary", "python -m backups failover production"),
        (
            {"db2": "replica streaming", "db3": "replica streaming"},
            "no standby confirms writes",
            "python -m backups rejoin production",
        ),
    ],
)
def test_status_says_what_to_do(
    fleet: Fleet,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
    states: dict[str, str],
    wrong: str,
    command: str,
) -> None:
    cluster(fleet, monkeypatch, **states)
    result = call("status", "--json")
    assert result.code == 1
    assert [one for one in result.json["next"] if wrong in one["wrong"] and command in one["command"]]


def test_status_survives_the_loss_of_hosts(fleet: Fleet, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(fleet, monkeypatch)
    fleet.down = {"db1"}
    fleet.on("db.", "/cluster", members(db2="leader running", db3="quorum_standby streaming"))
    result = call("status")
    assert result.code == 1
    assert "start the host, then python -m backups rejoin production db1" in result.out
    fleet.down = {"db1", "db2", "db3", "ops1"}
    result = call("status")
    assert result.code == 1
    assert "backups/RUNBOOK.md" in result.out


def test_status_tells_an_unfinished_restore(
    fleet: Fleet, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster(fleet, monkeypatch)
    fleet.on("db3", "relay-restore/hold", "20261126T0\n")
    assert "a restore is unfinished and holds db3" in call("status").out


@pytest.mark.parametrize(
    ("pattern", "reply", "wrong"),
    [
        ("pg_stat_archiver", ARCHIVED | {"failing": True}, "WAL was last archived 20 s ago"),
        ("pg_stat_archiver", ARCHIVED | {"archived": 999}, "WAL was last archived 999 s ago"),
        ("node-exporter", "backup_wal_missing_segments 3\n", "the archive lacks 3 WAL segments"),
        ("node-exporter", "drill_failed 1\n", "the last restore drill failed"),
        ("pgbackrest .* info$", 1, "the repository cannot be read"),
    ],
)
def test_status_tells_what_is_wrong_with_backups(
    fleet: Fleet, call: Call, monkeypatch: pytest.MonkeyPatch, pattern: str, reply: Any, wrong: str
) -> None:
    cluster(fleet, monkeypatch)
    fleet.on("db.", pattern, reply)
    assert wrong in call("status").out


@pytest.mark.parametrize(
    ("success", "installed", "told"),
    [
        (9, 30, "no restore drill has succeeded for 9 days"),
        (None, 9, "no restore drill has succeeded for 9 days"),
        (7, 30, "all is well: nothing to do\n"),
        (None, 7, "all is well: nothing to do; a drill would prove that a restore works"),
    ],
)
def test_status_tells_that_no_drill_proves_a_restore(
    fleet: Fleet, call: Call, monkeypatch: pytest.MonkeyPatch, success: int | None, installed: int, told: str
) -> None:
    cluster(fleet, monkeypatch)
    figures = {"max_age_seconds": 8 * 86400.0}
    for name, days in (("last_success", success), ("installed", installed)):
        if days is not None:
            figures[f"{name}_timestamp_seconds"] = time.time() - days * 86400 - 60
    fleet.on("ops1", "node-exporter", "".join(f"drill_{name} {n}\n" for name, n in figures.items()))
    assert told in call("status").out + "\n"


def test_status_tells_size_and_cost_of_the_bucket(
    fleet: Fleet, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster(fleet, monkeypatch)
    figures = {"bytes": 1.5e9, "older_bytes": 5e8, "cost_usd_month": 0.05}
    fleet.on("ops1", "node-exporter", "".join(f"backup_bucket_{name} {n}\n" for name, n in figures.items()))
    assert "the bucket holds 2.00 GB, older versions among it: $0.05 a month" in call("status").out


def test_an_old_or_missing_backup_is_told(fleet: Fleet, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    old = repository.info(repository.backup(repository.FIRST, repository.FIRST_STOP - 86400, 1, "0/4000100"))
    cluster(fleet, monkeypatch, old)
    assert "the last good backup is 49 h old" in call("status").out
    cluster(fleet, monkeypatch, repository.info())
    assert "there is no good backup" in call("status").out


def test_list_shows_backups_and_wal(fleet: Fleet, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = repository.backup("20261127-010000F", repository.SECOND_STOP + 86400, 2, "0/9", error=True)
    cluster(fleet, monkeypatch, repository.info(*repository.TWO[0]["backup"], damaged))
    text = call("list").out
    assert "20261125-010000F" in text
    assert "DAMAGED" in text
    answer = call("list", "--json").json
    assert [one["good"] for one in answer["backups"]] == [True, True, False]
    assert answer["archives"][0]["archive"] == "15-1"


def test_a_backup_is_made_on_the_primary(fleet: Fleet, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(fleet, monkeypatch)
    made = repository.backup("20261126-050000F", repository.SECOND_STOP + 9000, 2, "0/9000000")
    said = {"now": repository.TWO}

    def make(_: str) -> str:
        said["now"] = repository.info(*repository.TWO[0]["backup"], made)
        return ""

    fleet.on("db.", "pgbackrest .* info$", lambda _: said["now"])
    fleet.on("db1", "relay-backups backup", make)
    assert call("backup").code == 0
    assert fleet.commands("relay-backups") == []
    result = call("backup", "--yes")
    assert result.code == 0
    assert "backup 20261126-050000F is whole" in result.out
    assert fleet.commands("relay-backups") == [("db1", "relay-backups backup")]
    fleet.on("db1", "relay-backups backup", Answer(1, err="the bucket is away"))
    failed = call("backup", "--yes")
    assert failed.code == 1
    assert "the bucket is away" in failed.err


def test_no_backup_without_a_primary(fleet: Fleet, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(fleet, monkeypatch, db1="replica running")
    assert call("backup", "--yes").code == 2


def test_verify_tells_what_is_wrong_with_or_without_a_primary(
    fleet: Fleet, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster(fleet, monkeypatch)
    fleet.on("db1", "relay-backups check --everything")
    assert call("verify").code == 0
    fleet.on("db1", "relay-backups check --everything", Answer(1, out="0000000100000001 is missing\n"))
    result = call("verify", "--json")
    assert result.code == 1
    assert result.json["problems"] == ["0000000100000001 is missing"]
    fleet.on("db1", "relay-backups check --everything", Answer(1, err="the store does not answer"))
    assert "the store does not answer" in call("verify").err
    fleet.on("db.", "/cluster", 1)
    fleet.on("db1", "relay-backups check --everything")
    assert call("verify").code == 0


def test_retention_shows_what_would_go_and_drops_it_on_ops(fleet: Fleet, call: Call) -> None:
    fleet.on("ops1", "retention$", "keep 20261126-010000F: day\nwould drop 20261125-010000F\n")
    fleet.on("ops1", "retention --yes")
    dry = call("retention", "--json")
    assert dry.json["result"] == {"dropped": ["20261125-010000F"]}
    assert fleet.commands("--yes") == []
    assert "--reason is missing" in call("retention", "--yes").err
    assert call("retention", "--yes", "--reason", "space").code == 0
    assert fleet.commands("--yes") == [("ops1", "relay-backups retention --yes")]
    fleet.on("ops1", "retention$", Answer(1, err="refused: too many"))
    refused = call("retention", "--yes", "--reason", "space")
    assert refused.code == 2
    assert "refused: too many" in refused.err


def test_json_is_one_object(fleet: Fleet, call: Call) -> None:
    fleet.down = {"db1", "db2", "db3"}
    result = call("list", "--json")
    assert result.code == 2
    assert json.loads(result.out)["outcome"] == "refused"

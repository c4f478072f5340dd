"""`relay-backups` on a primary with a real PostgreSQL, pgBackRest and store; Patroni alone is played."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backups.core import wal
from backups.host import __main__ as program
from backups.host import backup, check, common, retention, stanza
from deploys.lib import object_store
from tests.contract.backup_rig import Rig, running_rig

Run = Callable[..., int]


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with running_rig() as made:
        yield made


@pytest.fixture
def host(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``host("backup")`` runs a noun as the primary; ``host("retention", ops=True)`` as the ops host."""
    for module in (backup, check, stanza):
        monkeypatch.setattr(module, "is_primary", lambda _: True)
    for module in (check, retention):
        monkeypatch.setattr(module, "STATE", tmp_path)
    monkeypatch.setattr(common, "FIGURES", tmp_path)
    monkeypatch.setenv("PGHOST", str(rig.server.data.parent))
    monkeypatch.setenv("PGPORT", str(rig.server.port))
    ops_config = rig.root / "ops.conf"
    ops_config.write_text(rig.configuration(object_store.RETENTION))
    settings = tmp_path / "backups.json"
    monkeypatch.setattr(common, "SETTINGS", settings)

    def run(*words: str, ops: bool = False) -> int:
        settings.write_text(json.dumps({"stanza": "relay", "config": str(ops_config if ops else rig.config)}))
        return program.main(words)

    return run


def figures(directory: Path, name: str) -> dict[str, float]:
    lines = (directory / f"{name}.prom").read_text().splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#")}


def test_a_day_of_a_database(rig: Rig, host: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert host("stanza", "--check") == 0
    assert capsys.readouterr().out.strip() == "there is no backup yet"
    assert host("backup") == 0
    assert "is whole" in capsys.readouterr().out
    assert figures(tmp_path, "backup_run")["backup_run_failed"] == 0
    assert host("stanza", "--check") == 0
    assert capsys.readouterr().out == ""
    for _ in range(3):
        rig.archive()
    # As on a host that has just become the primary.
    (tmp_path / "backup_run.prom").unlink()
    assert host("check") == 0
    assert figures(tmp_path, "backup_run") == {"backup_run_failed": 0}
    found = figures(tmp_path, "backup")
    assert (found["backup_count"], found["backup_damaged_count"]) == (1, 0)
    assert found["backup_wal_newest_timestamp_seconds"] > found["backup_newest_timestamp_seconds"] - 1
    archiver = figures(tmp_path, "backup_archiver")
    assert (archiver["backup_archiver_failing"], archiver["backup_archiver_waiting_segments"]) == (0, 0)
    assert archiver["backup_wal_bytes"] >= wal.SEGMENT_BYTES
    assert (tmp_path / "wal.json").exists()
    assert host("retention", "--yes", ops=True) == 0
    kept = figures(tmp_path, "backup_retention")
    assert (kept["backup_retention_refused"], kept["backup_verify_problems"]) == (0, 0)
    assert host("check", "--everything") == 0
    capsys.readouterr()


def test_wal_that_somebody_deleted_is_named_and_counted(
    rig: Rig, host: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert host("backup") == 0
    name = rig.archive()
    rig.archive()
    # A segment of the last two minutes may still be on its way.
    monkeypatch.setattr(wal, "SETTLING_SECONDS", -3600)
    capsys.readouterr()
    with rig.store.changed(next(key for key in rig.store.objects() if f"/{name}-" in key), None):
        assert host("check") == 1
        told = capsys.readouterr().out
        assert name in told
        assert figures(tmp_path, "backup")["backup_wal_missing_segments"] == 1, told
        assert host("check", "--everything") == 1
        assert name in capsys.readouterr().out
        assert host("retention", "--yes", ops=True) == 1
        assert figures(tmp_path, "backup_retention")["backup_verify_problems"] > 0
    assert host("check") == 0


def test_what_database_hosts_may_not_do_is_refused_in_words(
    rig: Rig, host: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An interrupted backup keeps the next from being made, until ops removes it."""
    label = "20260101-000000F"
    rig.store.put(f"relay/backup/relay/{label}/bundle/1", b"half a backup")
    assert host("backup") == 1
    assert f"the interrupted backup {label} is in the way" in capsys.readouterr().err
    # It may still be running: only what is quiet for half an hour is removed.
    before = rig.store.objects()
    assert host("retention", "--yes", ops=True) == 0
    assert rig.store.objects() == before
    assert f"{label} may be a backup that is being made" in capsys.readouterr().out
    monkeypatch.setattr(retention, "QUIET_SECONDS", -1)
    assert host("retention", "--yes") == 1
    assert [key for key in rig.store.objects() if label in key]
    assert host("retention", "--yes", ops=True) == 0
    assert not [key for key in rig.store.objects() if label in key]
    assert host("backup") == 0

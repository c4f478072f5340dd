"""The programs on hosts: what they decide, with pgBackRest's answers in the place of a repository."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from backups.core.pgbackrest import PgBackRest
from backups.core.repository import Stanza, parse_info
from backups.host import __main__ as command
from backups.host import backup, check, common, replica, retention, stanza

OWN, FOREIGN = 7712334411090430888, 7712334411090430999


def entry(label: str, stop: int, *, error: bool = False) -> dict[str, Any]:
    return {
        "label": label,
        "type": "full",
        "error": error,
        "database": {"id": 1},
        "timestamp": {"start": stop - 4, "stop": stop},
        "archive": {"start": "000000010000000000000006", "stop": "000000010000000000000007"},
        "info": {"size": 3000, "repository": {"delta": 100}},
    }


def answer(status: int, *backups: dict[str, Any], system: int = OWN) -> str:
    known = [] if status == 1 else [{"id": 1, "system-id": system, "version": "15"}]
    archives = [{"id": "15-1", "database": {"id": 1}, "min": None, "max": None}] if known else []
    found = {
        "name": "relay",
        "status": {"code": status, "message": "", "lock": {"backup": {"held": False}}},
        "db": known,
        "archive": archives,
        "backup": list(backups),
    }
    return json.dumps([found])


def found(status: int, *backups: dict[str, Any], system: int = OWN) -> Stanza:
    return parse_info(answer(status, *backups, system=system), "relay")


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    settings = tmp_path / "backups.json"
    settings.write_text(json.dumps({"stanza": "relay", "config": "/c"}))
    monkeypatch.setattr(common, "SETTINGS", settings)
    monkeypatch.setattr(common, "FIGURES", tmp_path)
    for module in (check, retention):
        monkeypatch.setattr(module, "STATE", tmp_path)
    verified = {"at": time.time(), "problems": []}
    (tmp_path / "verified.json").write_text(json.dumps(verified))
    return tmp_path


class Programs:
    """Answers by the part of a command line that they belong to; keeps what was run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **answers: tuple[int, str]) -> None:
        self.answers = {name.replace("_", "-"): told for name, told in answers.items()}
        self.ran: list[str] = []
        for module in (common, stanza):
            monkeypatch.setattr(module, "run_as_account", self)

    def __call__(self, line: list[str], seconds: float = 0) -> subprocess.CompletedProcess[str]:
        words = " ".join(line)
        self.ran.append(words)
        for part, (code, text) in self.answers.items():
            if part in words:
                return subprocess.CompletedProcess(line, code, "" if code else text, text if code else "")
        return subprocess.CompletedProcess(line, 0, "", "")


def primary(monkeypatch: pytest.MonkeyPatch, module: Any, says: bool) -> None:
    monkeypatch.setattr(module, "is_primary", lambda _: says)


def test_a_repository_of_another_cluster_is_refused() -> None:
    (told,) = stanza.differences(found(0, entry("20261126-064414F", 9), system=FOREIGN), OWN)
    assert str(FOREIGN) in told
    assert str(OWN) in told
    assert "relay-backups stanza --upgrade" in told


def test_what_the_repository_lacks_is_named() -> None:
    assert stanza.differences(found(1), OWN) == ["the stanza is missing"]
    assert stanza.differences(found(2), OWN) == ["there is no backup yet"]
    assert stanza.differences(found(0, entry("20261126-064414F", 9)), OWN) == []


def test_a_foreign_repository_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    primary(monkeypatch, stanza, True)
    programs = Programs(monkeypatch, info=(0, answer(2, system=FOREIGN)), psql=(0, str(OWN)))
    assert command.main(["stanza"]) == 1
    assert not [line for line in programs.ran if line.endswith(("stanza-create", "stanza-upgrade", "check"))]


def test_the_archivers_lock_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    held = (50, "ERROR: [050]: unable to acquire lock on file '/tmp/pgbackrest/relay-archive.lock'")
    programs = Programs(monkeypatch, stanza_create=held)
    monkeypatch.setattr(time, "sleep", lambda _: programs.answers.clear())
    stanza.create(PgBackRest())
    assert len(programs.ran) == 2


def test_other_failures_of_the_stanza_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = Programs(monkeypatch, stanza_create=(28, "ERROR: [028]: do not match the database"))
    with pytest.raises(common.HostError, match="do not match"):
        stanza.create(PgBackRest())
    assert len(programs.ran) == 1


@pytest.mark.parametrize("noun", ["stanza", "backup", "check"])
def test_a_replica_does_nothing_and_has_no_figures(
    monkeypatch: pytest.MonkeyPatch, host: Path, noun: str
) -> None:
    for module in (stanza, backup, check):
        primary(monkeypatch, module, False)
    (host / "backup_run.prom").write_text("backup_run_failed 1\n")
    programs = Programs(monkeypatch)
    assert command.main([noun]) == 0
    assert programs.ran == []
    if noun != "stanza":
        assert not (host / "backup_run.prom").exists()


def test_a_backup_that_fails_is_a_figure(monkeypatch: pytest.MonkeyPatch, host: Path) -> None:
    primary(monkeypatch, backup, True)
    Programs(monkeypatch, info=(0, answer(2)), **{"no_expire_auto": (39, "ERROR: AccessDenied")})
    assert command.main(["backup"]) == 1
    assert "backup_run_failed 1" in (host / "backup_run.prom").read_text()


def test_an_interrupted_backup_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    primary(monkeypatch, backup, True)
    listing = {name: {"type": "path"} for name in ("20261126-043021F", "backup.history")}
    answers = {"repo_ls backup/relay/2": (0, json.dumps(OLD_FILE)), "repo_ls": (0, json.dumps(listing))}
    programs = Programs(monkeypatch, info=(0, answer(2)), **answers)
    assert command.main(["backup"]) == 1
    told = capsys.readouterr().err
    assert "20261126-043021F" in told
    assert "relay-backups retention --yes" in told
    assert not [line for line in programs.ran if line.endswith(" backup")]


def test_backups_with_errors_do_not_count_as_the_newest() -> None:
    both = found(0, entry("20261125-064414F", 900), entry("20261126-064414F", 1000, error=True))
    figures = check.backup_figures(both)
    assert figures["backup_newest_timestamp_seconds"] == 900
    assert (figures["backup_count"], figures["backup_damaged_count"]) == (1, 1)
    assert check.backup_figures(found(2))["backup_newest_timestamp_seconds"] == 0


def test_an_unreadable_repository_leaves_the_figures_as_they_were(
    monkeypatch: pytest.MonkeyPatch, host: Path
) -> None:
    primary(monkeypatch, check, True)
    (host / "backup.prom").write_text("backup_count 3\n")
    Programs(monkeypatch, info=(0, answer(99)), psql=(0, "1"))
    assert command.main(["check"]) == 1
    assert (host / "backup.prom").read_text() == "backup_count 3\n"
    assert "backup_archiver_failing 1.0" in (host / "backup_archiver.prom").read_text()


STALE = {"20261126-043021F": {"type": "path"}}
OLD_FILE = {"bundle/1": {"type": "file", "size": 1, "time": 1}}


@pytest.mark.parametrize("yes", [False, True])
def test_retention_removes_an_interrupted_backup_only_when_told(
    monkeypatch: pytest.MonkeyPatch, yes: bool
) -> None:
    now = int(time.time())
    answers = {
        "info": (0, answer(0, entry("20261126-064414F", now - 60))),
        "repo_ls backup/relay/2": (0, json.dumps(OLD_FILE)),
        "repo_ls": (0, json.dumps(STALE)),
    }
    programs = Programs(monkeypatch, **answers)
    assert command.main(["retention", *(["--yes"] if yes else [])]) == 0
    removed = [line for line in programs.ran if "repo-rm" in line]
    assert [line.split()[-1] for line in removed] == ["backup/relay/20261126-043021F"] * yes


def test_retention_drops_nothing_of_a_damaged_repository(monkeypatch: pytest.MonkeyPatch, host: Path) -> None:
    now = int(time.time())
    kept = [entry(f"2026{month:02d}01-000000F", now - 86400 * 40 * (12 - month)) for month in range(3, 12)]
    verified = {"at": now, "problems": ["WAL is missing"]}
    (host / "verified.json").write_text(json.dumps(verified))
    programs = Programs(monkeypatch, info=(0, answer(0, *kept)))
    assert command.main(["retention", "--yes", "--allow", "9"]) == 1
    assert not [line for line in programs.ran if line.endswith(" expire")]
    figures = (host / "backup_retention.prom").read_text()
    assert "backup_retention_refused 1.0" in figures
    assert re.search("backup_verify_problems [1-9]", figures)


@pytest.mark.parametrize(
    ("age", "problems", "words", "reads"),
    [
        (1, [], ["--yes"], False),
        (1, ["WAL is missing"], ["--yes"], True),
        (1, ["WAL is missing"], [], False),
        (retention.VERIFIED_SECONDS + 1, [], ["--yes"], True),
        (retention.VERIFIED_SECONDS + 1, [], [], False),
        (1, [], ["--verify"], True),
    ],
)
def test_the_whole_repository_is_read_once_a_day_when_it_was_damaged_or_when_told(
    monkeypatch: pytest.MonkeyPatch, host: Path, age: int, problems: list[str], words: list[str], reads: bool
) -> None:
    now = time.time()
    (host / "verified.json").write_text(json.dumps({"at": now - age, "problems": problems}))
    sound = (0, "stanza: relay\nstatus: ok\n")
    one = answer(0, entry("20261126-064414F", int(now) - 60))
    programs = Programs(monkeypatch, info=(0, one), verify=sound)
    command.main(["retention", *words])
    assert bool([line for line in programs.ran if line.endswith(" verify")]) is reads
    if reads and "--yes" in words:
        # Nothing of this repository could be read: that is told.
        assert "backup_verify_problems 0" not in (host / "backup_retention.prom").read_text()
        assert json.loads((host / "verified.json").read_text())["at"] >= now


def test_retention_drops_what_no_rule_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = int(time.time())
    many = [entry(f"2026{month:02d}01-000000F", now - 86400 * 40 * (12 - month)) for month in range(1, 12)]
    programs = Programs(monkeypatch, info=(0, answer(0, *many)))
    options = argparse.Namespace(yes=True, allow=9, verify=False)
    assert retention.run(options) == 0
    dropped = [line for line in programs.ran if line.endswith(" expire")]
    assert dropped
    assert "20261101" not in " ".join(dropped)


def test_a_replica_is_built_from_a_backup_of_the_primarys_timeline() -> None:
    def on(timeline: int, label: str, stop: int, **more: Any) -> dict[str, Any]:
        wal = f"{timeline:08X}0000000000000007"
        return entry(label, stop, **more) | {"archive": {"start": wal, "stop": wal}}

    backups = [
        on(1, "20261124-020000F", 10),
        on(2, "20261125-020000F", 20),
        on(2, "20261126-020000F", 30),
        on(2, "20261126-030000F", 40, error=True),
        on(1, "20261126-040000F", 50),
    ]
    held = found(0, *backups)
    assert replica.newest_of(held, 2).label == "20261126-020000F"
    assert replica.newest_of(held, 1).label == "20261126-040000F"
    for other in (found(0, *backups), found(2)):
        with pytest.raises(common.HostError, match="the primary is copied instead"):
            replica.newest_of(other, 3)


@pytest.mark.parametrize(
    "members",
    [[], [{"role": "replica", "timeline": 2}], [{"role": "leader"}], [{"role": "leader", "timeline": "2"}]],
)
def test_without_a_primary_no_replica_is_built(members: list[dict[str, Any]]) -> None:
    assert replica.timeline_of({"members": [*members, {"role": "leader", "timeline": 4}]}) == 4
    with pytest.raises(common.HostError, match="no primary"):
        replica.timeline_of({"members": members})

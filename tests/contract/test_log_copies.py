"""`relay-logs` on a real store: its queries, the canary, and copies in a real bucket that come back."""

from __future__ import annotations

import gzip
import json
import time
from argparse import Namespace
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from deploys.lib import object_store
from deploys.lib.log_store import RESTORED
from deploys.roles.logship import LogFile
from tests.contract.backup_rig import BUCKET, REGION, Store, keys, running_store
from tests.contract.logs_rig import HOST, Logs, running_logs, wait_for
from tests.unit.deploys.test_logship import load

PROGRAM = load("templates/logstore/relay_logs.py")
PLAIN = LogFile("/plain.log", "plain", "plain.service")
SILENT = LogFile("/heartbeat.log", "relay-logship", "")
SECURE = LogFile("/secure.log", "sshd", "ssh.service")
TODAY = datetime.now(UTC).date()


@pytest.fixture(scope="module")
def logs() -> Iterator[Logs]:
    with running_logs([PLAIN, SILENT, SECURE], restored=True) as found:
        yield found


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with running_store(lock_days=1) as found:
        yield found


@pytest.fixture
def settings(logs: Logs, store: Store) -> Any:
    return PROGRAM.Settings(
        hosts=[HOST, "app1"],
        ports={one.name: one.port for one in logs.instances},
        data={one.name: f"{logs.root}/relay-logs-{one.name}" for one in logs.instances},
        bucket={
            "bucket": BUCKET,
            "endpoint": f"https://localhost:{store.port}",
            "region": REGION,
            "uri_style": "path",
            "ca_file": str(store.root / "crt"),
            "keys": list(keys(object_store.LOGS)),
        },
        cold={"path": "/logs", "lock_days": 366},
    )


def file(logs: Logs, program: str) -> LogFile:
    return next(one for one in logs.files if one.program == program)


def queried(
    settings: Any, query: str, capsys: pytest.CaptureFixture[str], **others: Any
) -> list[dict[str, Any]]:
    values = {"query": query, "since": timedelta(hours=1), "day": None, "limit": 1000, "of_class": ""}
    assert PROGRAM.query(settings, Namespace(**values | others)) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_both_classes_are_asked_and_merged(
    logs: Logs, settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        logs.write(file(logs, "sshd" if number % 2 else "plain"), f"merged {number}")
        # Files are looked at once a second.
        time.sleep(1.1)
    wait_for(lambda: len(queried(settings, "merged", capsys)) == 4)
    found = queried(settings, "merged", capsys)
    assert [line["_time"] for line in found] == sorted(line["_time"] for line in found)
    assert {line["class"] for line in found} == {"business", "security"}
    assert len(queried(settings, "merged", capsys, of_class="security")) == 2
    assert [line["_msg"] for line in queried(settings, "merged", capsys, limit=2)] == [
        line["_msg"] for line in found[-2:]
    ]
    assert len(queried(settings, "merged", capsys, day=TODAY)) == 4
    assert queried(settings, "merged", capsys, day=TODAY - timedelta(days=3)) == []
    counts = queried(settings, "merged | stats count() lines", capsys)
    assert sorted(int(row["lines"]) for row in counts) == [2, 2]
    with pytest.raises(PROGRAM.Failure, match="refuses the query"):
        queried(settings, "(merged", capsys)


def test_who_is_silent_is_seen(logs: Logs, settings: Any, tmp_path: Path) -> None:
    logs.write(file(logs, "relay-logship"), "this host ships its logs")
    series: dict[str, float] = {}

    def looked() -> bool:
        assert PROGRAM.figures(settings, Namespace(figures=tmp_path, at=None)) == 0
        lines = (tmp_path / "log_store.prom").read_text().splitlines()
        series.update(
            (line.rpartition(" ")[0], float(line.rpartition(" ")[2])) for line in lines if line[0] != "#"
        )
        return series[f'log_host_last_line_timestamp_seconds{{host="{HOST}"}}'] > 0

    wait_for(looked)
    assert abs(series[f'log_host_last_line_timestamp_seconds{{host="{HOST}"}}'] - time.time()) < 60
    assert series['log_host_last_line_timestamp_seconds{host="app1"}'] == 0


def test_the_canarys_secrets_do_not_arrive(logs: Logs, settings: Any, tmp_path: Path) -> None:
    options = Namespace(figures=tmp_path, seconds=15.0)
    assert PROGRAM.canary(settings, options, lambda line: logs.write(file(logs, "plain"), line)) == 0
    figures = (tmp_path / "log_canary.prom").read_text()
    assert "\nlog_canary_found 0\n" in figures
    assert "\nlog_canary_missing 0\n" in figures


def test_the_canary_finds_what_is_not_redacted_and_what_does_not_arrive(
    logs: Logs, settings: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def unredacted(line: str) -> None:
        if "Bearer" not in line:
            fields = json.loads(line) if line.startswith("{") else {"_msg": line}
            fields["_time"] = datetime.now(UTC).isoformat()
            line = json.dumps(fields)
            with PROGRAM.call(settings, "business", "/insert/jsonline", line.encode(), PROGRAM.LINES):
                pass

    options = Namespace(figures=tmp_path, seconds=4.0)
    assert PROGRAM.canary(settings, options, unredacted) == 3
    figures = (tmp_path / "log_canary.prom").read_text()
    assert "\nlog_canary_found 6\n" in figures
    assert "\nlog_canary_missing 1\n" in figures
    assert "api_key, aws, dsn, named, json, query" in capsys.readouterr().out


def test_a_day_is_copied_by_class_locked_and_comes_back(
    logs: Logs, store: Store, settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = 12_000
    logs.write(file(logs, "sshd"), *(f"Accepted publickey number-{n}" for n in range(lines)))
    wait_for(lambda: logs.count("security", '"Accepted publickey"') == lines, 30)
    there = {name: logs.count(name, "*") for name in ("business", "security")}
    assert PROGRAM.cold_copy(settings, Namespace(day=TODAY)) == 0
    for name, wanted in there.items():
        key = f"logs/{name}/{TODAY}.ndjson.gz"
        copied = [json.loads(line) for line in gzip.decompress(store.get(key)).splitlines()]
        assert len(copied) == wanted
        assert {line["class"] for line in copied if "class" in line} == {name}
    # A second run writes what came since, and nothing else.
    written = store.objects()
    assert PROGRAM.cold_copy(settings, Namespace(day=TODAY)) == 0
    assert store.objects() == written
    s3 = PROGRAM.client(settings)
    assert PROGRAM.load_day(s3, settings, "security", TODAY) == there["security"]
    capsys.readouterr()
    found: list[dict[str, Any]] = []

    def back() -> bool:
        found[:] = queried(settings, '"number-4711"', capsys, of_class=RESTORED.name, day=TODAY)
        return bool(found)

    wait_for(back)
    assert [(line["host"], line["program"], line["class"]) for line in found] == [(HOST, "sshd", "security")]


def test_nobody_deletes_a_copy_of_security_logs(store: Store, settings: Any) -> None:
    s3, key = PROGRAM.client(settings), f"logs/security/{TODAY}.ndjson.gz"
    with pytest.raises(ClientError, match=r"AccessDenied|Access Denied"):
        s3.delete_object(Bucket=BUCKET, Key=key)
    version = store.client().head_object(Bucket=BUCKET, Key=key)
    assert version["ObjectLockMode"] == "GOVERNANCE"
    assert version["ObjectLockRetainUntilDate"] > datetime.now(UTC) + timedelta(days=365)
    with pytest.raises(ClientError):
        store.client().delete_object(Bucket=BUCKET, Key=key, VersionId=version["VersionId"])
    with pytest.raises(ClientError, match=r"AccessDenied|Access Denied"):
        s3.put_object(Bucket=BUCKET, Key="relay/backup/x", Body=b"x")


def test_a_copy_that_was_altered_is_refused(store: Store, settings: Any) -> None:
    day = date(2026, 1, 2)
    content = gzip.compress(b'{"_msg":"x","_time":"2026-01-02T00:00:00Z"}\n')
    about = {"lines": "1", "sha256": "0" * 64}
    store.client().put_object(
        Bucket=BUCKET, Key=f"logs/business/{day}.ndjson.gz", Body=content, Metadata=about
    )
    with pytest.raises(PROGRAM.Failure, match="not as it was written"):
        PROGRAM.load_day(PROGRAM.client(settings), settings, "business", day)
    with pytest.raises(PROGRAM.Failure, match="is not in the bucket"):
        PROGRAM.load_day(PROGRAM.client(settings), settings, "business", date(2025, 1, 1))


def test_days_are_due_when_their_last_lines_have_come() -> None:
    assert PROGRAM.due_days(datetime(2026, 11, 26, 1, 59, tzinfo=UTC))[-1] == date(2026, 11, 24)
    assert PROGRAM.due_days(datetime(2026, 11, 26, 2, 1, tzinfo=UTC))[-1] == date(2026, 11, 25)
    assert len(PROGRAM.due_days(datetime(2026, 11, 26, 2, 1, tzinfo=UTC))) == 7

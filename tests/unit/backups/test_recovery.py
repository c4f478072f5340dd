"""Where a restore stops, and the backup that it starts from."""

from __future__ import annotations

from typing import Any

import pytest

from backups.core import recovery
from backups.core.recovery import NoTarget, choose, target
from backups.core.repository import Backup
from backups.core.wal import Switch, parse_lsn

# Timeline 2 left 1 at 0/5000000; B, on timeline 1, ended behind that.
A = Backup("A", "full", 50, 100, wal_stop="000000010000000000000004", lsn_stop="0/4000000")
B = Backup("B", "full", 150, 200, wal_stop="000000010000000000000006", lsn_stop="0/6000000")
C = Backup("C", "full", 250, 300, wal_stop="000000020000000000000008", lsn_stop="0/8000000")
HISTORIES = {2: (Switch(1, parse_lsn("0/5000000")),)}


def at(seconds: int) -> str:
    return f"1970-01-01T00:{seconds // 60:02}:{seconds % 60:02}Z"


@pytest.mark.parametrize(
    ("found", "options", "label", "timeline"),
    [
        ([A, B, C], {}, "C", "2"),
        # The second restore after a first: B is newer, but lies on the branch that was left.
        ([A, B], {"time": at(250)}, "A", "2"),
        ([A, B, C], {"time": at(299)}, "A", "2"),
        ([A, B, C], {"time": at(300)}, "C", "2"),
        # Back to the branch that was left.
        ([A, B, C], {"timeline": 1}, "B", "1"),
        ([A, B, C], {"lsn": "0/7000000"}, "A", "2"),
        ([A, B, C], {"lsn": "0/7000000", "timeline": 1}, "B", "1"),
        ([A, B, C], {"lsn": "0/8000000"}, "C", "2"),
        ([A, B, C], {"transaction": "700", "backup": "A"}, "A", "2"),
        ([A, B, C], {"backup": "B"}, "B", ""),
    ],
)
def test_the_backup_leads_to_the_target(
    found: list[Backup], options: dict[str, Any], label: str, timeline: str
) -> None:
    start, end, _ = choose(found, target(**options), HISTORIES)
    assert (start.label, end.timeline) == (label, timeline)
    assert end.action == "promote"


@pytest.mark.parametrize(
    ("found", "options", "words"),
    [
        ([], {}, "no good backup"),
        ([A, B, C], {"time": at(99)}, "the oldest is A, ended 1970-01-01 00:01:40 UTC"),
        ([B], {"time": at(250)}, "there is none at all"),
        ([A, B, C], {"backup": "Z"}, "there are: A, B, C"),
        ([A, B, C], {"backup": "B", "time": at(290)}, "cannot lead to 2"),
        ([A, B, C], {"backup": "C", "time": at(290)}, "choose an older one"),
        ([A, B, C], {"timeline": 7}, "it has: 1, 2"),
        ([A, B, C], {"transaction": "700"}, "add --set with the last backup that ended before it, of A"),
    ],
)
def test_what_cannot_be_reached_is_refused(found: list[Backup], options: dict[str, Any], words: str) -> None:
    with pytest.raises(NoTarget, match=words):
        choose(found, target(**options), HISTORIES)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"time": "yesterday"}, "--to-time: 'yesterday' is no time"),
        ({"time": "2026-11-26T05:00:00"}, "lacks its offset from UTC"),
        ({"lsn": "12"}, "--to-lsn: '12' is no LSN"),
        ({"transaction": "x"}, "--to-transaction: 'x'"),
        ({"transaction": "2"}, "--to-transaction"),
        ({"time": at(1), "lsn": "0/1"}, "one target"),
        ({"exclusive": True}, "--exclusive"),
    ],
)
def test_a_target_that_is_none_names_its_option(options: dict[str, Any], words: str) -> None:
    with pytest.raises(NoTarget, match=words):
        target(**options)


def test_a_time_is_told_in_utc_to_the_microsecond() -> None:
    _, end, _ = choose([A], target(time="1970-01-01T02:00:00.123456+01:00", exclusive=True), {})
    assert (end.kind, end.value, end.exclusive) == ("time", "1970-01-01 01:00:00.123456+00", True)
    assert recovery.target(time="1970-01-01T02:00:00+01:00") == recovery.target(time="1970-01-01T01:00:00Z")

"""What a drill restores, what it compares, and the transactions beside a point."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backups.core.proof import (
    Commit,
    NothingToRestore,
    around,
    changed,
    compare,
    newest_written,
    parse_commits,
    pick,
)
from backups.core.repository import Backup, Stanza
from backups.core.wal import Archive, ArchivedFile, parse_segment, read_archive

HOUR = 3600


def stanza(*backups: Backup) -> Stanza:
    return Stanza("relay", 0, "ok", "aes-256-cbc", False, {1: 7}, (), backups)


def full(number: int, stopped: int, *, error: bool = False) -> Backup:
    segment = f"{1:08X}{0:08X}{number:08X}"
    label = f"202611{number:02d}-010000F"
    return Backup(label, "full", stopped - 60, stopped, error, wal_start=segment, wal_stop=segment)


def archive(*written: tuple[int, int]) -> Archive:
    files = [ArchivedFile(f"{1:08X}{0:08X}{number:08X}-{'a' * 40}.zst", at) for number, at in written]
    return read_archive(files)


@given(st.integers(0, 2**31))
def test_a_point_lies_between_the_first_backup_and_the_newest_wal(seed: int) -> None:
    backups = [full(number, number * HOUR) for number in range(1, 10)]
    point = pick(stanza(*backups), archive(*((n, n * HOUR) for n in range(1, 13))), seed)
    assert (point.first, point.last) == (HOUR, 12 * HOUR)
    if point.kind == "time":
        moment = datetime.fromisoformat(point.value).timestamp()
        # From the seventh newest backup on WAL is kept without a break.
        assert 3 * HOUR <= moment <= 12 * HOUR
    else:
        assert point.value in {"20261101-010000F", "20261102-010000F"}
    assert pick(stanza(*backups), archive(*((n, n * HOUR) for n in range(1, 13))), seed) == point


def test_seeds_reach_the_whole_of_it() -> None:
    backups = [full(number, number * HOUR) for number in range(1, 10)]
    stored = archive(*((n, n * HOUR) for n in range(1, 13)))
    goals = {pick(stanza(*backups), stored, seed).goal for seed in range(200)}
    assert {"set=20261101-010000F", "set=20261102-010000F"} <= goals
    assert len(goals) > 150


@given(st.integers(0, 2**31), st.floats(0, 13 * HOUR))
def test_a_later_point_is_later(seed: int, after: float) -> None:
    backups = [full(number, number * HOUR) for number in range(1, 10)]
    stored = archive(*((n, n * HOUR) for n in range(1, 13)))
    point = pick(stanza(*backups), stored, seed, after)
    assert point.moment >= after
    assert point.moment <= max(12 * HOUR, after + 1e-3)


def test_without_a_good_backup_or_wal_there_is_nothing() -> None:
    with pytest.raises(NothingToRestore, match="no good backup"):
        pick(stanza(full(1, 9, error=True)), archive((1, 9)), 1)
    with pytest.raises(NothingToRestore, match="no WAL"):
        pick(stanza(full(1, 9)), archive(), 1)
    assert newest_written(archive()) is None


def rows(**months: int) -> list[dict[str, Any]]:
    return [{"month": m.replace("_", "-")[1:], "rows": n, "digest": str(n)} for m, n in months.items()]


def test_the_same_rows_are_alike() -> None:
    sums = {"entries": rows(m2026_10=4, m2026_11=7), "usage": rows(m2026_11=2)}
    assert compare(sums, sums) == ([], [])


def test_a_month_that_differs_or_is_missing_on_either_side_is_named() -> None:
    mine = {"entries": rows(m2026_10=4, m2026_11=7)}
    theirs = {"entries": rows(m2026_11=8, m2026_12=1)}
    unlike, skipped = compare(mine, theirs)
    assert [(one.table, one.month) for one in unlike] == [
        ("entries", "2026-10"),
        ("entries", "2026-11"),
        ("entries", "2026-12"),
    ]
    assert str(unlike[1]) == "entries of 2026-11: rows 7, in the fleet 8; digest 7, in the fleet 8"
    assert skipped == []


def test_months_of_usage_that_the_fleet_dropped_are_not_compared() -> None:
    unlike, skipped = compare({"usage": rows(m2026_01=5, m2026_11=7)}, {"usage": rows(m2026_11=7)})
    assert (unlike, skipped) == ([], ["usage of 2026-01: the fleet has dropped it"])
    # Of entries nothing is ever dropped.
    assert compare({"entries": rows(m2026_01=5)}, {"entries": []})[0]


DUMP = """
rmgr: Transaction len (rec/tot):     34/    34, tx:        745, lsn: 0/05000028, prev 0/05, desc: COMMIT 2026-11-26 05:00:00.5 UTC
rmgr: Transaction len (rec/tot):     34/    34, tx:        746, lsn: 0/05000060, prev 0/05, desc: ABORT 2026-11-26 05:00:01 UTC
rmgr: Transaction len (rec/tot):     34/    34, tx:        747, lsn: 0/05000098, prev 0/05, desc: COMMIT 2026-11-26 05:00:02 UTC; subxacts: 748
"""  # noqa: E501 - as pg_waldump writes it


def test_commits_are_read_and_found_beside_a_position() -> None:
    first, second = parse_commits(DUMP)
    assert first == Commit(0x5000028, 745, "2026-11-26T05:00:00.5Z")
    assert second.xid == 747
    assert around([first, second], 0x5000060) == (first, second)
    assert around([first, second], 0x5000028) == (None, first)
    assert around([first, second], 0x6000000) == (second, None)
    assert parse_segment("000000010000000000000005").number == 5


def test_accounts_that_two_views_show_differently() -> None:
    before = {"accounts": [{"id": 1, "name": "a", "balance": 5, "held": 0, "debt": 0}]}
    after = {
        "accounts": [
            {"id": 1, "name": "a", "balance": 7, "held": 0, "debt": 0},
            {"id": 2, "name": "b", "balance": 1, "held": 0, "debt": 0},
        ]
    }
    assert changed(before, before) == []
    assert changed(before, after)[0] == {"id": 1, "name": "a", "balance": [5, 7]}
    assert changed(before, after)[1]["balance"] == [None, 1]

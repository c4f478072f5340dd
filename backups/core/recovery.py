"""Where a restore stops, and the backup that it starts from.

A restore makes a new timeline that leaves the old one at some point. A backup that was taken on the old
timeline behind that point cannot lead to the new one: PostgreSQL ends with "requested timeline is not a child
of this server's history". pgBackRest chooses by time alone, so the choice is made here, by the history files
of the archive.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from backups.core import pgbackrest
from backups.core.repository import Backup
from backups.core.wal import Switch, parse_lsn

LATEST, TIME, LSN, TRANSACTION, BACKUP = "latest", "time", "lsn", "transaction", "backup"
_LSN = re.compile(r"[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}")
Histories = Mapping[int, Sequence[Switch]]


class NoTarget(Exception):
    """What was asked for is no point to restore to; the message names the option and the remedy."""


@dataclass(frozen=True)
class Target:
    """Where to stop. `value`: ISO time in UTC, LSN or transaction id; `backup` a label, "" to choose one;
    `timeline` 0 means the newest; `exclusive` stops before the value rather than behind it."""

    kind: str = LATEST
    value: str = ""
    backup: str = ""
    timeline: int = 0
    exclusive: bool = False

    def __str__(self) -> str:
        words = {
            LATEST: "the last transaction in the archive",
            TIME: f"time {self.value}",
            LSN: f"LSN {self.value}",
            TRANSACTION: f"transaction {self.value}",
            BACKUP: f"the end of backup {self.backup}",
        }[self.kind]
        before = "just before " if self.exclusive else ""
        line = f" on timeline {self.timeline}" if self.timeline else ""
        start = f" from backup {self.backup}" if self.backup and self.kind != BACKUP else ""
        return f"{before}{words}{line}{start}"

    def moment(self) -> datetime:
        """The time of a target of kind time."""
        return datetime.fromisoformat(self.value)

    def data(self) -> dict[str, Any]:
        """For JSON, and to tell two restores apart."""
        return asdict(self)


def target(
    *,
    time: str | None = None,
    lsn: str | None = None,
    transaction: str | None = None,
    backup: str | None = None,
    timeline: int | None = None,
    exclusive: bool = False,
) -> Target:
    """The target of a command's options; raises NoTarget. A time needs its offset from UTC."""
    options = {"--to-time": time, "--to-lsn": lsn, "--to-transaction": transaction}
    given = [option for option, value in options.items() if value is not None]
    if len(given) > 1:
        raise NoTarget(f"{' and '.join(given)}: one restore has one target; choose one")
    common: dict[str, Any] = {"backup": backup or "", "timeline": timeline or 0, "exclusive": exclusive}
    if time is not None:
        return Target(TIME, _moment(time), **common)
    if lsn is not None:
        if not _LSN.fullmatch(lsn):
            raise NoTarget(f"--to-lsn: {lsn!r} is no LSN; write it as PostgreSQL does, e.g. 0/3000148")
        return Target(LSN, lsn.upper(), **common)
    if transaction is not None:
        if not (transaction.isascii() and transaction.isdigit() and int(transaction) >= 3):
            raise NoTarget(f"--to-transaction: {transaction!r} is no transaction id; write e.g. 7421")
        return Target(TRANSACTION, str(int(transaction)), **common)
    if exclusive:
        raise NoTarget("--exclusive: it belongs to --to-time, --to-lsn or --to-transaction; add one of them")
    return Target(BACKUP if backup else LATEST, "", **common)


def _moment(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise NoTarget(f"--to-time: {text!r} is no time; write e.g. 2026-11-26T05:00:00Z") from None
    if moment.tzinfo is None:
        raise NoTarget(f"--to-time: {text!r} lacks its offset from UTC; write e.g. {text}Z or {text}+01:00")
    return moment.astimezone(UTC).isoformat()


def timeline_of(one: Backup) -> int:
    """The timeline on which a backup ended."""
    return int((one.wal_stop or "1")[:8], 16)


def leads_to(one: Backup, timeline: int, histories: Histories) -> bool:
    """Whether recovery from a backup can arrive on a timeline."""
    own, end = timeline_of(one), parse_lsn(one.lsn_stop or "0/0")
    return own == timeline or any(
        switch.parent == own and end <= switch.position for switch in histories.get(timeline, ())
    )


def choose(
    found: Sequence[Backup], wanted: Target, histories: Histories
) -> tuple[Backup, pgbackrest.Target, dict[str, str]]:
    """The backup to start from, and pgBackRest's target and recovery options for a restore that ends as a
    primary. `found` are good backups. Raises NoTarget, which says what can be restored."""
    if not found:
        raise NoTarget("the repository has no good backup: there is nothing to restore; see `list`")
    named = next((one for one in found if one.label == wanted.backup), None)
    if wanted.backup and named is None:
        there = ", ".join(one.label for one in found)
        raise NoTarget(f"--set: there is no good backup {wanted.backup!r}; there are: {there}")
    if wanted.kind == BACKUP and named is not None:
        # "Latest", PostgreSQL's default, fails where a newer timeline left before the backup's end.
        return named, pgbackrest.Target("immediate"), {"recovery_target_timeline": "current"}
    if wanted.kind == TRANSACTION and named is None:
        ends = ", ".join(f"{one.label} ({_when(one)})" for one in found)
        raise NoTarget(
            "--to-transaction: the repository does not know when a transaction was: add --set with the last "
            f"backup that ended before it, of {ends}; or give its time or LSN instead"
        )
    timeline = _timeline(found, wanted, histories)
    able = [one for one in found if leads_to(one, timeline, histories)]
    early = [one for one in able if _before(one, wanted)]
    if named is not None:
        _must_lead(named, named in able, named in early, timeline, wanted)
        early = [named]
    if not early:
        oldest = f"the oldest is {able[0].label}, ended {_when(able[0])}" if able else "there is none at all"
        raise NoTarget(f"no backup that leads to timeline {timeline} ended before {wanted}: {oldest}")
    start = max(early, key=lambda one: (one.stopped, one.label))
    return start, _pgbackrest_target(wanted, timeline), {}


def _timeline(found: Sequence[Backup], wanted: Target, histories: Histories) -> int:
    known = {1, *histories, *map(timeline_of, found)}
    if wanted.timeline and wanted.timeline not in known:
        listed = ", ".join(map(str, sorted(known)))
        raise NoTarget(f"--timeline: the archive has no timeline {wanted.timeline}; it has: {listed}")
    return wanted.timeline or max(known)


def _must_lead(named: Backup, leads: bool, early: bool, timeline: int, wanted: Target) -> None:
    if not leads:
        raise NoTarget(
            f"--set: {named.label} was taken on timeline {timeline_of(named)} and cannot lead to {timeline}"
        )
    if not early:
        raise NoTarget(f"--set: {named.label} ended {_when(named)}, behind {wanted}; choose an older one")


def _before(one: Backup, wanted: Target) -> bool:
    if wanted.kind == TIME:
        return one.stopped <= wanted.moment().timestamp()
    if wanted.kind == LSN:
        return parse_lsn(one.lsn_stop or "0/0") <= parse_lsn(wanted.value)
    return True


def _when(one: Backup) -> str:
    return f"{datetime.fromtimestamp(one.stopped, UTC):%Y-%m-%d %H:%M:%S} UTC at LSN {one.lsn_stop}"


def _pgbackrest_target(wanted: Target, timeline: int) -> pgbackrest.Target:
    if wanted.kind == LATEST:
        return pgbackrest.Target(timeline=str(timeline))
    value = wanted.value
    if wanted.kind == TIME:
        value = wanted.moment().strftime("%Y-%m-%d %H:%M:%S.%f+00")
    kinds: dict[str, pgbackrest.TargetKind] = {TIME: "time", LSN: "lsn", TRANSACTION: "xid"}
    return pgbackrest.Target(kinds[wanted.kind], value, exclusive=wanted.exclusive, timeline=str(timeline))

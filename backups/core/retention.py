"""Which backups to keep: the newest of each of the last days, ISO weeks and months that have one.

Days, weeks and months are counted where there are backups, not back from today: after a gap, or with a wrong
clock, nothing that was worth keeping becomes old at once. All are UTC, by the time a backup started.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from backups.core.repository import Backup

# A clock may differ by this from the one that made the backup.
CLOCK_TOLERANCE_SECONDS = 300


@dataclass(frozen=True)
class Policy:
    """How many days, ISO weeks and months keep their newest backup; how many backups one run may drop."""

    days: int = 7
    weeks: int = 4
    months: int = 6
    most_dropped: int = 3

    def __post_init__(self) -> None:
        if self.days < 1 or self.weeks < 0 or self.months < 0 or self.most_dropped < 0:
            raise ValueError(
                "retention keeps at least one day; weeks, months and the most dropped are at least 0"
            )


@dataclass(frozen=True)
class Kept:
    """A backup that stays, and why, e.g. `day 2026-11-26, week 2026-W48`."""

    label: str
    why: str


@dataclass(frozen=True)
class Plan:
    """What retention would do.

    `surplus` are the labels that no rule keeps, in an order in which none is dropped before what depends on
    it. `refusal` says why nothing may be dropped now; then `expire` is empty.
    """

    kept: tuple[Kept, ...]
    surplus: tuple[str, ...]
    refusal: str = ""

    @property
    def expire(self) -> tuple[str, ...]:
        """Labels to drop now."""
        return () if self.refusal else self.surplus


Period = Callable[[datetime], str]


def day(moment: datetime) -> str:
    """E.g. `day 2026-11-26`."""
    return f"day {moment:%Y-%m-%d}"


def week(moment: datetime) -> str:
    """The ISO week, e.g. `week 2026-W48`."""
    year, number, _ = moment.isocalendar()
    return f"week {year:04d}-W{number:02d}"


def month(moment: datetime) -> str:
    """E.g. `month 2026-11`."""
    return f"month {moment:%Y-%m}"


def plan(backups: Sequence[Backup], now: float, policy: Policy = Policy()) -> Plan:
    """What to keep and what to drop of `backups` (`info`'s, in any order) at `now` (Unix seconds).

    A backup with errors, or one that needs such a backup or one that is gone, counts as none: it keeps no
    place and is dropped, but not while it is newer than every good one.
    """
    ordered = sorted(backups, key=lambda backup: (backup.started, backup.label))
    good = _restorable(ordered)
    reasons = _reasons(ordered, good, policy)
    kept = tuple(Kept(b.label, ", ".join(reasons[b.label])) for b in ordered if b.label in reasons)
    surplus = tuple(b.label for b in reversed(ordered) if b.label not in reasons)
    return Plan(kept, surplus, _refusal(ordered, good, surplus, now, policy))


def _restorable(ordered: Sequence[Backup]) -> list[Backup]:
    """Backups without error of which everything they need, down to the full one, is there without error."""
    sound = {backup.label: backup for backup in ordered if not backup.error}
    while True:
        left = {label: b for label, b in sound.items() if all(needed in sound for needed in b.needs)}
        if len(left) == len(sound):
            return list(left.values())
        sound = left


def _reasons(ordered: Sequence[Backup], good: Sequence[Backup], policy: Policy) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for period, count in ((day, policy.days), (week, policy.weeks), (month, policy.months)):
        for name, backup in _newest(good, period, count):
            reasons.setdefault(backup.label, []).append(name)
    if good:
        for backup in ordered:
            if backup not in good and backup.started > good[-1].started:
                reasons.setdefault(backup.label, []).append("not good, but newer than the last good one")
    else:
        reasons = {backup.label: ["no good backup to replace it"] for backup in ordered}
    _keep_needed({backup.label: backup for backup in ordered}, reasons)
    return reasons


def _newest(good: Sequence[Backup], period: Period, count: int) -> list[tuple[str, Backup]]:
    """The newest backup of each of the last `count` periods that have one."""
    latest: dict[str, Backup] = {}
    for backup in good:
        latest[period(datetime.fromtimestamp(backup.started, UTC))] = backup
    ranked = sorted(latest.items(), key=lambda item: (item[1].started, item[1].label), reverse=True)
    return ranked[:count]


def _keep_needed(backups: dict[str, Backup], reasons: dict[str, list[str]]) -> None:
    """Keep, too, what a kept backup needs, and what that needs."""
    waiting = list(reasons)
    while waiting:
        keeper = waiting.pop()
        for needed in sorted(backups[keeper].needs):
            if needed in backups:
                if needed not in reasons:
                    waiting.append(needed)
                reasons.setdefault(needed, []).append(f"needed by {keeper}")


def _refusal(
    ordered: Sequence[Backup], good: Sequence[Backup], surplus: Sequence[str], now: float, policy: Policy
) -> str:
    """Why nothing may be dropped, or an empty text."""
    if not good:
        return "there is no good backup: make one (a full backup) before any is dropped"
    future = [backup for backup in ordered if backup.started > now + CLOCK_TOLERANCE_SECONDS]
    if future:
        return (
            f"backup {future[-1].label} is dated after this host's time, "
            f"{datetime.fromtimestamp(now, UTC):%F %T} UTC: set the clocks right (timedatectl) first"
        )
    if len(surplus) > policy.most_dropped:
        return (
            f"{len(surplus)} backups would be dropped, more than {policy.most_dropped} at once: look at the "
            f"list; if it is right, allow {len(surplus)} for one run"
        )
    return ""

"""What a drill restores and must find: a random point within retention, and sums that must be the same.

Pure. Times are Unix seconds.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from backups.core.repository import Backup, Stanza
from backups.core.wal import Archive, parse_lsn, parse_segment

# A transaction may be written down this long after the time that its rows carry (idle transactions are ended
# after 60 s): younger rows may still be missing where the other database has them.
SETTLED_SECONDS = 120
Sums = Mapping[str, Sequence[Mapping[str, Any]]]


class NothingToRestore(ValueError):
    """The repository has no point that could be restored; the message says what is missing."""


@dataclass(frozen=True)
class Point:
    """What a drill restores: `kind` time or set.

    `first` and `last` are the ends of what could be chosen, `moment` is what was chosen between them.
    """

    kind: str
    value: str
    first: float
    last: float
    moment: float

    @property
    def goal(self) -> str:
        """As `relay-backups scratch restore --target` takes it."""
        return f"{self.kind}={self.value}"


def pick(stanza: Stanza, archive: Archive, seed: int, after: float = 0) -> Point:
    """A random point between the oldest kept backup's end and the newest archived WAL; `seed` decides which.

    Where WAL is kept without a break it is a moment; of older backups, which are kept without the WAL between
    them, it is one of these as it was at its end. None before `after` is chosen. Raises NothingToRestore.
    """
    good = stanza.good()
    if not good:
        raise NothingToRestore("the repository has no good backup")
    last = newest_written(archive)
    if last is None:
        raise NothingToRestore("the repository has no WAL")
    continuous = _continuous(stanza, good)
    first = max(float(good[0].stopped), after)
    # The last digits of a moment decide between two transactions, so that it is no whole second.
    moment = random.Random(seed + int(after)).uniform(first, max(last, first + 1e-3))  # noqa: S311
    if continuous and moment >= continuous[0].stopped:
        at = f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
        return Point("time", at, first, last, moment)
    older = [backup for backup in good if backup.stopped <= moment]
    return Point("set", (older or [good[0]])[-1].label, first, last, moment)


def newest_written(archive: Archive) -> float | None:
    """When the newest segment of the newest timeline was written to the archive."""
    timelines = archive.timelines()
    newest = archive.newest(max(timelines)) if timelines else None
    if newest is None:
        return max(map(float, archive.segments.values()), default=None)
    return float(archive.segments[newest])


def _continuous(stanza: Stanza, good: Sequence[Backup]) -> list[Backup]:
    """The backups from whose end on every moment can be restored, oldest first."""
    start = stanza.continuous_from()
    if start is None:
        return []
    return [
        backup
        for backup in good
        if backup.wal_start and parse_segment(backup.wal_start).number >= start.number
    ]


@dataclass(frozen=True)
class Unlike:
    """A table and month of which two databases do not hold the same."""

    table: str
    month: str
    restored: Mapping[str, Any]
    reference: Mapping[str, Any]

    def __str__(self) -> str:
        words = [
            f"{name} {self.restored.get(name, 'none')}, in the fleet {self.reference.get(name, 'none')}"
            for name in ("rows", "nanodollars", "digest")
            if self.restored.get(name) != self.reference.get(name)
        ]
        return f"{self.table} of {self.month}: {'; '.join(words)}"


def compare(restored: Sums, reference: Sums, key: str = "month") -> tuple[list[Unlike], list[str]]:
    """(What differs, what was not compared). The fleet drops old months of usage: those are not compared."""
    unlike: list[Unlike] = []
    skipped: list[str] = []
    for table in sorted({*restored, *reference}):
        mine = {row[key]: row for row in restored.get(table, ())}
        theirs = {row[key]: row for row in reference.get(table, ())}
        oldest = min(theirs, default=None)
        for month in sorted({*mine, *theirs}, key=str):
            if table == "usage" and key == "month" and (oldest is None or month < oldest):
                skipped.append(f"{table} of {month}: the fleet has dropped it")
            elif _without(mine.get(month), key) != _without(theirs.get(month), key):
                unlike.append(Unlike(table, str(month), mine.get(month, {}), theirs.get(month, {})))
    return unlike, skipped


def _without(row: Mapping[str, Any] | None, key: str) -> dict[str, Any]:
    return {name: value for name, value in (row or {}).items() if name != key}


_COMMIT = re.compile(
    r"tx:\s+(?P<xid>\d+), lsn: (?P<lsn>[0-9A-F]+/[0-9A-F]+), .*?desc: COMMIT (?:PREPARED )?"
    r"(?P<at>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?)"
)


@dataclass(frozen=True, order=True)
class Commit:
    """A transaction's end in the WAL: its position (bytes), number and time (ISO 8601, UTC)."""

    position: int
    xid: int
    at: str


def parse_commits(text: str) -> list[Commit]:
    """The commits in the output of `pg_waldump --rmgr=Transaction` (TZ=UTC), in their order."""
    return [
        Commit(parse_lsn(found["lsn"]), int(found["xid"]), f"{found['at'].replace(' ', 'T')}Z")
        for found in _COMMIT.finditer(text)
    ]


def around(commits: Sequence[Commit], position: int) -> tuple[Commit | None, Commit | None]:
    """(The last commit that is applied at `position`, the first that is not)."""
    before = [commit for commit in commits if commit.position < position]
    after = [commit for commit in commits if commit.position >= position]
    return max(before, default=None), min(after, default=None)


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Accounts whose balance, hold or debt two views show differently: id, name, and both sides in n$."""
    mine = {account["id"]: account for account in before.get("accounts", ())}
    found = []
    for account in after.get("accounts", ()):
        was = mine.get(account["id"], {})
        sides = {
            name: [was.get(name), account[name]]
            for name in ("balance", "held", "debt")
            if was.get(name) != account[name]
        }
        if sides:
            found.append({"id": account["id"], "name": account["name"], **sides})
    return found

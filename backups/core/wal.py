"""WAL segments: their names and arithmetic, and whether an archive holds every one that a restore needs.

A segment's name is 24 hexadecimal digits: timeline, log and segment, eight each; a log is 4 GiB (PostgreSQL,
"WAL Internals" and `src/include/access/xlog_internal.h`). pgBackRest keeps a segment as
`<name>-<sha1>.<compression>` in a directory of its first 16 digits.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

SEGMENT_BYTES = 16 * 1024 * 1024
LOG_BYTES = 1 << 32
# Archiving is asynchronous and parallel: for this long a segment may be missing behind a newer one.
SETTLING_SECONDS = 120

_SEGMENT = re.compile(r"[0-9A-F]{24}")
_DIRECTORY = re.compile(r"[0-9A-F]{16}")
_ARCHIVED = re.compile(
    r"(?P<segment>[0-9A-F]{24})(?P<partial>\.partial)?-(?P<sum>[0-9a-f]{40})(?:\.(?:gz|lz4|zst|bz2))?"
)
_HISTORY_FILE = re.compile(r"(?P<timeline>[0-9A-F]{8})\.history")
_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")


class WalError(ValueError):
    """A name, position or file of WAL that cannot be one; the message says which and why."""


@dataclass(frozen=True, order=True)
class Segment:
    """One WAL segment: its timeline and its number, counted from 0 in segments of the cluster's size."""

    timeline: int
    number: int

    def name(self, segment_bytes: int = SEGMENT_BYTES) -> str:
        """Its name, e.g. `000000010000000000000005`."""
        log, part = divmod(self.number, _per_log(segment_bytes))
        return f"{self.timeline:08X}{log:08X}{part:08X}"

    def directory(self, segment_bytes: int = SEGMENT_BYTES) -> str:
        """The directory of pgBackRest's archive that holds it."""
        return self.name(segment_bytes)[:16]

    def next(self) -> Segment:
        """The segment after it on the same timeline."""
        return Segment(self.timeline, self.number + 1)


def _per_log(segment_bytes: int) -> int:
    """Segments a log; PostgreSQL allows powers of two from 1 MiB to 1 GiB."""
    mebibytes = segment_bytes >> 20
    if segment_bytes != mebibytes << 20 or not 1 <= mebibytes <= 1024 or mebibytes & (mebibytes - 1):
        raise WalError(f"{segment_bytes} is no size of WAL segments: a power of two from 1 MiB to 1 GiB is")
    return LOG_BYTES // segment_bytes


def parse_segment(name: str, segment_bytes: int = SEGMENT_BYTES) -> Segment:
    """The segment of a name. Raises WalError where it is none, or none of this segment size."""
    if not _SEGMENT.fullmatch(name):
        raise WalError(f"{name!r} is no name of a WAL segment: 24 hexadecimal digits are")
    timeline, log, part = (int(name[start : start + 8], 16) for start in (0, 8, 16))
    per_log = _per_log(segment_bytes)
    if part >= per_log:
        raise WalError(f"{name} is no segment of {segment_bytes} bytes: a log has {per_log} of them")
    if timeline == 0:
        raise WalError(f"{name} has timeline 0; timelines start at 1")
    return Segment(timeline, log * per_log + part)


def parse_lsn(text: str) -> int:
    """A position in the WAL, e.g. `0/3000060`, in bytes. Raises WalError."""
    match = _LSN.fullmatch(text)
    if not match:
        raise WalError(f"{text!r} is no position in the WAL: it is written like 0/3000060")
    return (int(match[1], 16) << 32) + int(match[2], 16)


def format_lsn(position: int) -> str:
    """A position in bytes as PostgreSQL writes it, e.g. `0/3000060`."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def segment_at(timeline: int, position: int, segment_bytes: int = SEGMENT_BYTES) -> Segment:
    """The segment that holds the byte at `position`."""
    _per_log(segment_bytes)
    return Segment(timeline, position // segment_bytes)


@dataclass(frozen=True)
class Switch:
    """A line of a timeline's history: `parent` was left at `position` (bytes)."""

    parent: int
    position: int


def parse_history(text: str) -> tuple[Switch, ...]:
    """The switches that lead to a timeline, oldest first. Raises WalError for a file that cannot be one.

    Format: `readTimeLineHistory()` of PostgreSQL: timeline, position and reason, separated by white space;
    empty lines and lines that start with # mean nothing.
    """
    switches: list[Switch] = []
    for line in text.splitlines():
        fields = line.split(None, 2)
        if not fields or fields[0].startswith("#"):
            continue
        if len(fields) < 2 or not fields[0].isdecimal():
            raise WalError(f"a timeline's history has the line {line!r}: timeline and position are expected")
        switch = Switch(int(fields[0]), parse_lsn(fields[1]))
        if switches and switch.parent <= switches[-1].parent:
            raise WalError(f"a timeline's history goes backwards at the line {line!r}")
        switches.append(switch)
    if not switches:
        raise WalError("a timeline's history names no parent: the file is empty or cut off")
    return _effective(switches)


def _effective(switches: Sequence[Switch]) -> tuple[Switch, ...]:
    """The switches, none of which lies behind a later one.

    A lost site may leave a timeline's history in the archive and none of its WAL. What is restored follows
    that history, ends before the timeline began, and its own history says so: nothing of that timeline is
    in it.
    """
    positions = list(accumulate((switch.position for switch in reversed(switches)), min))
    return tuple(Switch(switch.parent, at) for switch, at in zip(switches, reversed(positions), strict=True))


@dataclass(frozen=True)
class Header:
    """What the first page of a segment says about itself."""

    timeline: int
    position: int
    system_id: int
    segment_bytes: int

    def segment(self) -> Segment:
        """The segment that it says it is."""
        return segment_at(self.timeline, self.position, self.segment_bytes)


HEADER_BYTES = 40


def parse_header(page: bytes) -> Header:
    """The header of a segment's first page (XLogLongPageHeaderData, little-endian), its first 40 bytes.

    Raises WalError for bytes that are no such header, all zeros for instance.
    """
    if len(page) < HEADER_BYTES:
        raise WalError(f"a WAL segment starts with a header of {HEADER_BYTES} bytes; {len(page)} are there")
    magic, info, timeline, position, _, system_id, segment_bytes, page_bytes = struct.unpack(
        "<HHIQI4xQII", page[:HEADER_BYTES]
    )
    if magic >> 8 != 0xD1 or not info & 0x0002:
        raise WalError("the segment does not start with the header of a WAL file")
    _per_log(segment_bytes)
    if position % segment_bytes or page_bytes & (page_bytes - 1):
        raise WalError("the segment's header contradicts itself")
    return Header(timeline, position, system_id, segment_bytes)


@dataclass(frozen=True)
class ArchivedFile:
    """A file of the archive, its name without directories, and when it was written (Unix seconds)."""

    name: str
    written: int = 0


@dataclass
class Archive:
    """What an archive holds: each segment's time and file name, duplicates, partial ones, histories."""

    segment_bytes: int = SEGMENT_BYTES
    segments: dict[Segment, int] = field(default_factory=dict)
    names: dict[Segment, str] = field(default_factory=dict)
    duplicates: set[Segment] = field(default_factory=set)
    partials: set[Segment] = field(default_factory=set)
    history_files: set[int] = field(default_factory=set)
    strangers: list[str] = field(default_factory=list)

    def timelines(self) -> set[int]:
        """Timelines of which it has a segment or the history."""
        return {segment.timeline for segment in self.segments} | self.history_files

    def newest(self, timeline: int) -> Segment | None:
        """The timeline's last segment."""
        return max((segment for segment in self.segments if segment.timeline == timeline), default=None)

    def add(self, file: ArchivedFile) -> None:
        """Take in one file; a name that no program gives is kept among the strangers."""
        name = file.name
        if match := _ARCHIVED.fullmatch(name):
            try:
                segment = parse_segment(match["segment"], self.segment_bytes)
            except WalError:
                self.strangers.append(name)
                return
            if match["partial"]:
                self.partials.add(segment)
            elif segment in self.segments:
                self.duplicates.add(segment)
            else:
                self.segments[segment] = file.written
                self.names[segment] = name
        elif match := _HISTORY_FILE.fullmatch(name):
            self.history_files.add(int(match["timeline"], 16))
        elif not _DIRECTORY.fullmatch(name) and not re.fullmatch(r"[0-9A-F]{24}\.[0-9A-F]{8}\.backup", name):
            self.strangers.append(name)


def read_archive(files: Iterable[ArchivedFile], segment_bytes: int = SEGMENT_BYTES) -> Archive:
    """The archive that these files make, from a listing of `archive/<stanza>/<archive id>`."""
    archive = Archive(segment_bytes)
    for file in files:
        archive.add(file)
    return archive


@dataclass(frozen=True)
class Range:
    """Segments of one timeline, first and last included, that something needs."""

    first: Segment
    last: Segment
    needed_by: str

    def __post_init__(self) -> None:
        if self.first.timeline != self.last.timeline:
            raise WalError(f"the WAL of {self.needed_by} spans two timelines")


@dataclass(frozen=True)
class Gap:
    """Segments that are missing: first and last name, how many, and what cannot be restored without them."""

    first: str
    last: str
    count: int
    needed_by: str

    def __str__(self) -> str:
        names = self.first if self.count == 1 else f"{self.first} to {self.last} ({self.count} segments)"
        return f"WAL {names} is missing from the archive; needed by {self.needed_by}"


def count_missing(found: Iterable[Gap], segment_bytes: int = SEGMENT_BYTES) -> int:
    """How many segments are missing: one that several need counts once."""
    firsts = ((parse_segment(gap.first, segment_bytes), gap.count) for gap in found)
    return len({(first.timeline, first.number + n) for first, count in firsts for n in range(count)})


Histories = Mapping[int, Sequence[Switch]]
RESTORE_TO_ANY_TIME = "restores to any time after the oldest backup whose WAL is kept"


def chain(start: Segment, newest: Segment, histories: Histories, segment_bytes: int) -> list[Range]:
    """The ranges that replay reads from `start` to `newest`, one a timeline.

    Of a parent everything before the segment in which it was left is needed: that segment itself is read from
    the child, which begins with a copy of it (`XLogInitNewTimeline()` of PostgreSQL). Raises WalError where
    the history of `newest`'s timeline is unknown or `start` does not lead there.
    """
    switches: Sequence[Switch] = ()
    if newest.timeline != start.timeline:
        if newest.timeline not in histories:
            raise WalError(
                f"the archive lacks {newest.timeline:08X}.history: timeline {newest.timeline} cannot "
                "be followed"
            )
        switches = histories[newest.timeline]
    steps = [switch for switch in switches if switch.parent >= start.timeline]
    ancestor = steps[0].parent if steps else newest.timeline
    if ancestor != start.timeline:
        raise WalError(f"timeline {newest.timeline} does not come from timeline {start.timeline}")
    ranges: list[Range] = []
    first = start
    timelines = [*(step.parent for step in steps), newest.timeline]
    for step, follower in zip(steps, timelines[1:], strict=True):
        left = segment_at(step.parent, step.position, segment_bytes)
        if left.number < first.number:
            raise WalError(f"timeline {step.parent} was left before {first.name(segment_bytes)}")
        if left.number > first.number:
            last = Segment(step.parent, left.number - 1)
            ranges.append(Range(first, last, RESTORE_TO_ANY_TIME))
        first = Segment(follower, left.number)
    ranges.append(Range(first, newest, RESTORE_TO_ANY_TIME))
    return ranges


def gaps(archive: Archive, needed: Range, settled_before: int | None = None) -> list[Gap]:
    """What the archive lacks of a range.

    With `settled_before` (Unix seconds), a segment is missing only when a later one, of its timeline or of
    one that follows, was there before that time: archiving is parallel, the newest may arrive out of order.
    """
    timeline = needed.first.timeline
    missing = [
        number
        for number in range(needed.first.number, needed.last.number + 1)
        if Segment(timeline, number) not in archive.segments
    ]
    if settled_before is not None and missing:
        settled = [
            s.number for s, at in archive.segments.items() if s.timeline >= timeline and at < settled_before
        ]
        newest = max(settled, default=-1)
        missing = [number for number in missing if number < newest]
    return [_gap(run, needed, archive.segment_bytes) for run in _runs(missing)]


def _runs(numbers: Sequence[int]) -> list[list[int]]:
    """Ascending numbers, split where they are not consecutive."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def _gap(run: Sequence[int], needed: Range, segment_bytes: int) -> Gap:
    first, last = (Segment(needed.first.timeline, number).name(segment_bytes) for number in (run[0], run[-1]))
    return Gap(first, last, len(run), needed.needed_by)


@dataclass(frozen=True)
class State:
    """How far an archive was checked: the last segment that was found in place, by timeline."""

    archive_id: str = ""
    checked: Mapping[int, int] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of JSON; `from_json` reads it."""
        checked = {str(timeline): number for timeline, number in sorted(self.checked.items())}
        return json.dumps({"archive_id": self.archive_id, "checked": checked})

    @classmethod
    def from_json(cls, text: str) -> State:
        """The state that `to_json` wrote; an empty one, which checks everything, for any other text."""
        try:
            value = json.loads(text)
            checked = {int(timeline): int(number) for timeline, number in value["checked"].items()}
            return cls(str(value["archive_id"]), checked)
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls()

    def after(self, first: Segment) -> Segment:
        """Where checking a range goes on: at the last segment found in place, or at the range's first."""
        return Segment(first.timeline, max(first.number, self.checked.get(first.timeline, 0)))


def directories(names: Iterable[str], state: State, segment_bytes: int = SEGMENT_BYTES) -> list[str]:
    """Of an archive's directories those that a check after `state` has to list, in order.

    A timeline's directories before the last segment checked are left out.
    """
    wanted = []
    for name in sorted(names):
        if not _DIRECTORY.fullmatch(name):
            continue
        timeline = int(name[:8], 16)
        checked = state.checked.get(timeline)
        if checked is None or name >= Segment(timeline, checked).directory(segment_bytes):
            wanted.append(name)
    return wanted


@dataclass(frozen=True)
class Continuity:
    """What a check found: gaps, other problems in words, the segments looked for, the newest one's name and
    when it was written (Unix seconds, 0: there is none), the state after it."""

    gaps: tuple[Gap, ...]
    problems: tuple[str, ...]
    segments: int
    newest: str | None
    state: State
    written: int = 0

    @property
    def whole(self) -> bool:
        """Whether nothing is missing."""
        return not self.gaps and not self.problems


def check(
    archive: Archive,
    histories: Histories,
    start: Segment | None,
    backups: Sequence[Range] = (),
    *,
    timeline: int | None = None,
    state: State | None = None,
    settled_before: int | None = None,
) -> Continuity:
    """Whether the archive holds every segment that the kept backups need.

    Args:
        archive: the listing; where it is an incremental one (`directories`), `state` says from where.
        histories: the switches of each timeline whose history file is in the archive (`parse_history`).
        start: first segment of the oldest backup from which WAL is kept without a break; None where none is.
        backups: the ranges that single backups need to be consistent, of old ones without later WAL too.
        timeline: the cluster's own, where it is known: a higher one in the archive is then reported as left
            by a restore. Without it the highest in the archive is taken for the cluster's.
        state: what was checked before; segments up to there are taken as found.
        settled_before: see `gaps`.
    """
    state = state or State()
    problems = [
        f"WAL {s.name(archive.segment_bytes)} is in the archive twice with different contents: "
        "another cluster writes to it, or one file was archived twice"
        for s in sorted(archive.duplicates)
    ]
    problems += [f"{name} in the archive is no file of WAL" for name in archive.strangers]
    known = [s.timeline for s in archive.segments if timeline is None or s.timeline <= timeline]
    if timeline is not None:
        problems += [
            f"timeline {number} is in the archive, but the cluster is on timeline {timeline}: a restore "
            "elsewhere archived here (restore with --archive-mode=off)"
            for number in sorted(archive.timelines())
            if number > timeline
        ]
    ranges = list(backups)
    newest = archive.newest(max(known)) if known else None
    if start is not None and newest is None:
        problems.append(f"the archive has no WAL after {start.name(archive.segment_bytes)}")
    elif start is not None and newest is not None:
        try:
            ranges += chain(start, newest, histories, archive.segment_bytes)
        except WalError as error:
            problems.append(str(error))
    return _look(archive, ranges, problems, newest, state, settled_before)


def _look(
    archive: Archive,
    ranges: Sequence[Range],
    problems: Sequence[str],
    newest: Segment | None,
    state: State,
    settled_before: int | None,
) -> Continuity:
    found: list[Gap] = []
    looked = 0
    checked = dict(state.checked)
    for whole in ranges:
        first = state.after(whole.first)
        if first.number > whole.last.number:
            continue
        rest = Range(first, whole.last, whole.needed_by)
        missing = gaps(archive, rest, settled_before)
        looked += rest.last.number - rest.first.number + 1
        found += [gap for gap in missing if gap not in found]
        timeline = first.timeline
        if whole.needed_by == RESTORE_TO_ANY_TIME:
            checked[timeline] = max(checked.get(timeline, 0), _in_place(archive, rest))
    name = newest.name(archive.segment_bytes) if newest else None
    written = archive.segments[newest] if newest else 0
    return Continuity(tuple(found), tuple(problems), looked, name, State(state.archive_id, checked), written)


def _in_place(archive: Archive, needed: Range) -> int:
    """The last segment before the first one that is missing: the next check starts there."""
    number = needed.first.number
    if needed.first not in archive.segments:
        return number
    while number < needed.last.number and Segment(needed.first.timeline, number + 1) in archive.segments:
        number += 1
    return number

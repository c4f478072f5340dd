"""What pgBackRest says of a repository, read and checked: `info`, `verify`, `repo-ls` and its own files.

Formats: pgBackRest 2.45 to 2.59 (`src/command/info/info.c`, `src/command/verify/verify.c`,
`src/info/info.c`). Times are Unix seconds, sizes bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from backups.core.wal import SEGMENT_BYTES, ArchivedFile, Range, Segment, parse_segment

Kind = Literal["full", "diff", "incr"]
LABEL = re.compile(r"\d{8}-\d{6}F(?:_\d{8}-\d{6}[DI])?")
# WAL is kept without a break from the newest seven full backups on: repo1-retention-archive.
CONTINUOUS_FULLS = 7

# The codes of a stanza's status, in words that say what to do.
STATUS_WORDS = {
    0: "in order",
    1: "the repository has no such stanza: check the stanza's name, or create it (pgbackrest stanza-create)",
    2: "the stanza has no backup yet: make a full one",
    3: "the stanza's files backup.info or archive.info are missing: do not create it anew, look for them",
    4: "the repositories of this stanza differ in their status",
    5: "the repositories of this stanza belong to different clusters",
    6: "the repository has no backup of that label",
    99: "the repository cannot be read",
}


class RepositoryError(ValueError):
    """An answer of pgBackRest, or a file of its repository, that cannot be used; the message says why."""


@dataclass(frozen=True)
class Backup:
    """One backup. `error` says that pages with a wrong checksum were copied: it cannot be counted on."""

    label: str
    kind: Kind
    started: int
    stopped: int
    error: bool = False
    wal_start: str | None = None
    wal_stop: str | None = None
    lsn_start: str | None = None
    lsn_stop: str | None = None
    size: int = 0
    repository_size: int = 0
    prior: str | None = None
    references: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    database_id: int = 1

    @property
    def needs(self) -> frozenset[str]:
        """Labels of the backups that it cannot be restored without."""
        return frozenset(self.references) | ({self.prior} if self.prior else frozenset())

    def wal(self, segment_bytes: int = SEGMENT_BYTES) -> Range | None:
        """The WAL that makes it consistent; None for an offline backup. Raises WalError."""
        if self.wal_start is None or self.wal_stop is None:
            return None
        first, last = (parse_segment(name, segment_bytes) for name in (self.wal_start, self.wal_stop))
        return Range(first, last, f"backup {self.label}")


@dataclass(frozen=True)
class ArchiveRange:
    """The first and the last segment of an archive (`15-1`), as `info` tells them, whatever is between."""

    archive_id: str
    database_id: int
    first: str | None
    last: str | None


@dataclass(frozen=True)
class Stanza:
    """A stanza as `info --output=json` tells it."""

    name: str
    status: int
    message: str
    cipher: str
    busy: bool
    databases: Mapping[int, int]
    """The system identifier of the cluster, by the number that the repository gives it."""
    archives: tuple[ArchiveRange, ...]
    backups: tuple[Backup, ...]

    @property
    def usable(self) -> bool:
        """Whether the repository could be read and the stanza is there; it may have no backup yet."""
        return self.status in (0, 2)

    @property
    def words(self) -> str:
        """What its status means, and what to do."""
        words = STATUS_WORDS.get(self.status, f"status {self.status}: {self.message}")
        return f"{words}: {self.message}" if self.status == 99 else words

    def backup(self, label: str) -> Backup:
        """The backup of a label. Raises RepositoryError, which names those that are there."""
        for backup in self.backups:
            if backup.label == label:
                return backup
        there = ", ".join(backup.label for backup in self.backups) or "none"
        raise RepositoryError(f"there is no backup {label}; the repository has: {there}")

    def database(self) -> int | None:
        """The newest database's number."""
        return max(self.databases, default=None)

    def archive_id(self) -> str | None:
        """The directory of the newest database's WAL, e.g. `15-1`."""
        current = self.database()
        return next((a.archive_id for a in self.archives if a.database_id == current), None)

    def good(self) -> tuple[Backup, ...]:
        """Backups without errors whose every needed backup is there and without errors, oldest first."""
        sound = {backup.label: backup for backup in self.backups if not backup.error}
        restorable = [b for b in sound.values() if all(needed in sound for needed in b.needs)]
        return tuple(sorted(restorable, key=lambda b: b.label))

    def latest_before(self, moment: float) -> Backup | None:
        """The newest good backup that was complete at `moment`: replay from it can reach `moment`."""
        return max((b for b in self.good() if b.stopped <= moment), key=lambda b: b.stopped, default=None)

    def continuous_from(
        self, fulls: int = CONTINUOUS_FULLS, segment_bytes: int = SEGMENT_BYTES
    ) -> Segment | None:
        """Where WAL without a break starts: the first segment of the oldest of the newest full backups.

        None where the current database has none. This is what repo1-retention-archive=N with
        repo1-retention-archive-type=full keeps. Raises WalError.
        """
        current = self.database()
        ours = [b for b in self.backups if b.database_id == current and b.kind == "full" and b.wal_start]
        newest = sorted(ours, key=lambda b: b.label)[-fulls:]
        return parse_segment(newest[0].wal_start or "", segment_bytes) if newest else None

    def wal_ranges(self, segment_bytes: int = SEGMENT_BYTES) -> list[Range]:
        """The WAL that the current database's backups need to be consistent. Raises WalError."""
        current = self.database()
        ranges = [backup.wal(segment_bytes) for backup in self.backups if backup.database_id == current]
        return [needed for needed in ranges if needed is not None]


def _loads(text: str, what: str) -> Any:
    try:
        # With a wrong passphrase pgBackRest puts control characters into its JSON.
        return json.loads(text, strict=False)
    except ValueError as error:
        raise RepositoryError(f"{what} is not JSON: {error}") from None


def parse_info(text: str, stanza: str) -> Stanza:
    """The stanza in the output of `info --output=json`. Raises RepositoryError."""
    value = _loads(text, "the answer of pgbackrest info")
    if not isinstance(value, list):
        raise RepositoryError("the answer of pgbackrest info is no list of stanzas")
    for entry in value:
        if isinstance(entry, dict) and entry.get("name") == stanza:
            try:
                return _stanza(entry)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise RepositoryError(f"pgbackrest info has an unexpected form: {error!r}") from error
    raise RepositoryError(f"pgbackrest info does not name the stanza {stanza!r}: {STATUS_WORDS[1]}")


def _stanza(entry: Mapping[str, Any]) -> Stanza:
    status = entry["status"]
    # What could not be read is told by the repository; the stanza only says "other".
    repositories = entry.get("repo") or []
    messages = [r["status"]["message"] for r in repositories if r["status"]["code"] not in (0, 2)]
    return Stanza(
        name=entry["name"],
        status=int(status["code"]),
        message=clean("; ".join(messages) or str(status["message"])),
        cipher=str(entry.get("cipher", "none")),
        busy=bool(status.get("lock", {}).get("backup", {}).get("held")),
        databases={int(db["id"]): int(db["system-id"]) for db in entry["db"]},
        archives=tuple(
            ArchiveRange(str(a["id"]), int(a["database"]["id"]), a.get("min"), a.get("max"))
            for a in entry["archive"]
        ),
        backups=tuple(_backup(backup) for backup in entry["backup"]),
    )


def _backup(entry: Mapping[str, Any]) -> Backup:
    archive, lsn, info = entry.get("archive") or {}, entry.get("lsn") or {}, entry.get("info") or {}
    if not LABEL.fullmatch(str(entry["label"])):
        raise RepositoryError(f"pgbackrest info names a backup {entry['label']!r}, which is no label")
    if entry["type"] not in ("full", "diff", "incr"):
        raise RepositoryError(f"backup {entry['label']} has the unknown type {entry['type']!r}")
    return Backup(
        label=str(entry["label"]),
        kind=entry["type"],
        started=int(entry["timestamp"]["start"]),
        stopped=int(entry["timestamp"]["stop"]),
        error=bool(entry.get("error")),
        wal_start=archive.get("start"),
        wal_stop=archive.get("stop"),
        lsn_start=lsn.get("start"),
        lsn_stop=lsn.get("stop"),
        size=int(info.get("size") or 0),
        repository_size=int((info.get("repository") or {}).get("delta") or 0),
        prior=entry.get("prior"),
        references=tuple(entry.get("reference") or ()),
        annotations=dict(entry.get("annotation") or {}),
        database_id=int(entry["database"]["id"]),
    )


def clean(message: str, length: int = 600) -> str:
    """A message of pgBackRest in one line of printable text.

    A wrong passphrase makes it quote what it could not decrypt; a refused request makes it quote headers.
    """
    lines = []
    for line in message.splitlines():
        printable = "".join(character if character.isprintable() else "" for character in line).strip()
        if "found outside of section" in line:
            printable = line.split(":", 2)[0].strip() + ": the file is not readable with this passphrase"
        if printable and not printable.startswith(("***", "HINT")) and printable not in lines:
            lines.append(printable)
    return " ".join(lines)[:length]


@dataclass(frozen=True)
class Checked:
    """What `verify` found of one backup or archive: files checked, files valid, and counts of each fault."""

    name: str
    status: str
    checked: int
    valid: int
    faults: Mapping[str, int] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong with it. One being made is not, nor what is left of an expired one:
        whether the index still names it is `verification.Verifier.manifests`' matter."""
        return (
            self.status in ("valid", "in-progress", "manifest missing")
            and self.checked == self.valid
            and not any(self.faults.values())
        )


@dataclass(frozen=True)
class Verification:
    """The outcome of `verify`. It reads the files that are there; WAL that is missing it does not notice."""

    sound: bool
    archives: tuple[Checked, ...]
    backups: tuple[Checked, ...]
    problems: tuple[str, ...]


_ARCHIVE_LINE = re.compile(r"archiveId: (\S+), total WAL checked: (\d+), total valid WAL: (\d+)")
_BACKUP_LINE = re.compile(
    r"backup: (\S+), status: (.+?), total files checked: (\d+), total valid files: (\d+)"
)
_FAULTS = re.compile(r"(missing|checksum invalid|size invalid|other): (\d+)")
_QUIET = ("archiveId: none found", "backup: none found", "no archives or backups exist in the repo")


def parse_verify(text: str) -> Verification:
    """The output of `verify --output=text --verbose`, which exits 0 on corruption (2.45 to 2.59 at least).

    Raises RepositoryError where it names no status: then nothing was verified, whatever the exit code.
    """
    status = re.search(r"^status: (\w+)$", text, re.MULTILINE)
    if not status:
        raise RepositoryError("pgbackrest verify told no status (run it with --output=text --verbose)")
    archives: list[Checked] = []
    backups: list[Checked] = []
    problems: list[str] = []
    into = archives
    for line in (line.strip() for line in text.splitlines()):
        if match := _ARCHIVE_LINE.fullmatch(line):
            into = archives
            archives.append(Checked(match[1], "valid", int(match[2]), int(match[3])))
        elif match := _BACKUP_LINE.fullmatch(line):
            into = backups
            backups.append(Checked(match[1], match[2], int(match[3]), int(match[4])))
        elif _FAULTS.match(line) and into:
            last = into.pop()
            faults = {name: int(count) for name, count in _FAULTS.findall(line)}
            into.append(Checked(last.name, last.status, last.checked, last.valid, faults))
        elif line and line not in _QUIET and not line.startswith(("stanza: ", "status: ")):
            problems.append(clean(line))
    for kind, results in (("the WAL of archive", archives), ("backup", backups)):
        problems += [_fault(kind, result) for result in results if not result.sound]
    if status[1] != "ok" and not problems:
        problems.append("pgbackrest verify reports an error that it does not name: look into its log")
    return Verification(not problems, tuple(archives), tuple(backups), tuple(problems))


def _fault(kind: str, result: Checked) -> str:
    faults = ", ".join(f"{name} {count}" for name, count in result.faults.items() if count)
    bad = result.checked - result.valid
    words = f"{kind} {result.name} is {result.status if result.status != 'valid' else 'damaged'}"
    return f"{words}: {bad} of {result.checked} files are not valid" + (f" ({faults})" if faults else "")


@dataclass(frozen=True)
class Entry:
    """A line of `repo-ls`: a path below the one listed, its kind, size and time of writing."""

    path: str
    kind: Literal["file", "path", "link", "special"]
    size: int = 0
    written: int = 0


def parse_listing(text: str) -> tuple[Entry, ...]:
    """The output of `repo-ls --output=json`; empty for a path that is not there. Raises RepositoryError.

    What a store keeps of deleted directories (a "file" whose name ends with a slash) is left out.
    """
    value = _loads(text or "{}", "the answer of pgbackrest repo-ls")
    if not isinstance(value, dict):
        raise RepositoryError("the answer of pgbackrest repo-ls is no object")
    try:
        return tuple(
            Entry(path, entry["type"], int(entry.get("size") or 0), int(entry.get("time") or 0))
            for path, entry in sorted(value.items())
            if path != "." and not path.endswith("/")
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise RepositoryError(f"pgbackrest repo-ls has an unexpected form: {error!r}") from error


def archived_files(entries: Sequence[Entry]) -> list[ArchivedFile]:
    """The files of a listing of an archive, as `wal.read_archive` takes them."""
    return [
        ArchivedFile(entry.path.rsplit("/", 1)[-1], entry.written)
        for entry in entries
        if entry.kind == "file"
    ]


Sections = dict[str, dict[str, Any]]


def parse_file(text: str, name: str) -> Sections:
    """One of the repository's own files (backup.info, archive.info, backup.manifest), its checksum proven.

    Values are JSON. The checksum is the SHA-1 of the sections in order as one JSON object without white space
    (`src/info/info.c`). Such a file holds keys: it must not be shown or logged. Raises RepositoryError for a
    file that is cut off or changed.
    """
    sections: Sections = {}
    raw: list[tuple[str, list[str]]] = []
    checksum = None
    for line in text.splitlines():
        if line.startswith("[") and line.endswith("]") and "=" not in line:
            raw.append((line[1:-1], []))
        elif line:
            if not raw:
                raise RepositoryError(f"{name} is damaged: a line of it belongs to no section")
            key, value = _split(line)
            if raw[-1][0] == "backrest" and key == "backrest-checksum":
                checksum = _value(value, name)
                continue
            raw[-1][1].append(f"{json.dumps(key, ensure_ascii=False)}:{value}")
            sections.setdefault(raw[-1][0], {})[key] = _value(value, name)
    if checksum is None:
        raise RepositoryError(f"{name} is cut off: its end, which holds the checksum, is missing")
    whole = ",".join(f'"{section}":{{{",".join(pairs)}}}' for section, pairs in raw if pairs)
    if hashlib.sha1(f"{{{whole}}}".encode(), usedforsecurity=False).hexdigest() != checksum:
        raise RepositoryError(f"{name} is damaged: its contents do not have the checksum that it names")
    return sections


def _split(line: str) -> tuple[str, str]:
    """Key and value. A file's path may itself contain `=`: the value is the first that is JSON."""
    position = line.find("=")
    while position >= 0:
        key, value = line[:position], line[position + 1 :]
        try:
            json.loads(value)
        except ValueError:
            position = line.find("=", position + 1)
            continue
        return key, value
    key, _, value = line.partition("=")
    return key, value


def _value(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise RepositoryError(f"{name} is damaged: a value of it cannot be read") from None


@dataclass(frozen=True)
class Manifest:
    """What a backup's manifest says of the backup as a whole."""

    label: str
    system_id: int
    version: str
    started: int
    stopped: int
    wal_start: str | None
    wal_stop: str | None
    files: int
    bytes: int


def parse_manifest(text: str, label: str) -> Manifest:
    """The manifest of a backup, from `repo-get`. Raises RepositoryError: cut off, changed, another's."""
    name = f"the manifest of backup {label}"
    sections = parse_file(text, name)
    try:
        backup, database = sections["backup"], sections["backup:db"]
        files = sections["target:file"]
        found = Manifest(
            label=backup["backup-label"],
            system_id=int(database["db-system-id"]),
            version=str(database["db-version"]),
            started=int(backup["backup-timestamp-start"]),
            stopped=int(backup["backup-timestamp-stop"]),
            wal_start=backup.get("backup-archive-start"),
            wal_stop=backup.get("backup-archive-stop"),
            files=len(files),
            bytes=sum(int(entry.get("size", 0)) for entry in files.values()),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RepositoryError(f"{name} lacks {error}") from error
    if found.label != label:
        raise RepositoryError(f"{name} is that of backup {found.label}")
    return found


def parse_system_ids(text: str) -> dict[int, int]:
    """The system identifiers of the clusters that archive.info names, by number. Raises RepositoryError."""
    sections = parse_file(text, "archive.info")
    try:
        return {int(number): int(entry["db-id"]) for number, entry in sections["db:history"].items()}
    except (KeyError, TypeError, ValueError) as error:
        raise RepositoryError(f"archive.info lacks {error}") from error

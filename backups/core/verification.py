"""Whether a repository could be restored from: every check that there is, by commands that others run.

`pgbackrest verify` alone is not enough (measured with 2.45): it exits 0 on corruption, does not notice WAL
that is missing, a manifest that is damaged while its copy is whole, a backup whose manifests are both gone,
nor WAL of another cluster. What it does not see is checked here.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from backups.core import wal
from backups.core.errors import Explanation, explain, explain_stanza
from backups.core.pgbackrest import PgBackRest
from backups.core.repository import (
    CONTINUOUS_FULLS,
    Backup,
    RepositoryError,
    Stanza,
    archived_files,
    parse_file,
    parse_info,
    parse_listing,
    parse_manifest,
    parse_system_ids,
    parse_verify,
)


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code, standard output and standard error."""

    code: int
    output: str
    errors: str = ""


Run = Callable[[Sequence[str]], Outcome]
"""Runs a command as the user who may read pgBackRest's configuration, and waits for it."""


class Failed(Exception):
    """The repository could not be read at all: nothing was checked. `why` says the cause and the remedy."""

    def __init__(self, why: Explanation) -> None:
        super().__init__(str(why))
        self.why = why


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a repository.

    `kind` is one of `wal`, `foreign`, `manifest`, `file`, `backup`, `index`, for metrics and alerts.
    """

    kind: str
    what: str

    def __str__(self) -> str:
        return self.what


# What unpacks a file of the archive, by the end of its name.
UNPACK = {".zst": "zstd -dcq", ".gz": "gzip -dc", ".lz4": "lz4 -dcq", ".bz2": "bzip2 -dc"}


@dataclass(frozen=True)
class Verifier:
    """Checks one stanza.

    Args:
        run: runs a command.
        commands: makes pgBackRest's command lines.
        system_id: the cluster's system identifier (`pg_control_system()`); None where none can be asked.
        timeline: the cluster's timeline, likewise.
        fulls: from how many full backups back WAL is kept without a break.
        segment_bytes: the cluster's size of WAL segments.
        headers: of so many segments, the newest, `continuity` reads the headers; None: of all it has not
            checked before. Reading one takes as long as fetching it.
    """

    run: Run
    commands: PgBackRest
    system_id: int | None = None
    timeline: int | None = None
    fulls: int = CONTINUOUS_FULLS
    segment_bytes: int = wal.SEGMENT_BYTES
    headers: int | None = None

    def stanza(self) -> Stanza:
        """The stanza. Raises Failed where the repository or the stanza cannot be read."""
        stanza = parse_info(self._output(self.commands.info()), self.commands.stanza)
        why = explain_stanza(stanza)
        if why:
            raise Failed(why)
        return stanza

    def everything(self, now: float) -> tuple[Finding, ...]:
        """All checks, the whole repository read. Raises Failed where it could not be read at all."""
        stanza = self.stanza()
        findings = [*self.index(stanza), *self.manifests(stanza)]
        continuity, strange = self.continuity(stanza, now)
        findings += [*wal_findings(continuity), *strange]
        findings += [Finding("file", problem) for problem in self._verify()]
        return tuple(findings)

    def _verify(self) -> tuple[str, ...]:
        outcome = self.run(self.commands.verify())
        if outcome.code:
            raise Failed(explain(outcome.code, outcome.errors))
        try:
            return parse_verify(outcome.output).problems
        except RepositoryError as error:
            return (str(error),)

    def continuity(
        self, stanza: Stanza, now: float, state: wal.State | None = None
    ) -> tuple[wal.Continuity, list[Finding]]:
        """Whether the archive is whole and this cluster's own.

        With the state of an earlier check only what was archived since is listed and read. Raises Failed.
        """
        archive_id = stanza.archive_id()
        if archive_id is None:
            empty = wal.Continuity((), ("the archive has no WAL",), 0, None, wal.State())
            return empty, []
        state = state if state and state.archive_id == archive_id else wal.State(archive_id)
        archive, files = self._archive(f"archive/{stanza.name}/{archive_id}", state)
        histories = self._histories(f"archive/{stanza.name}/{archive_id}", archive)
        found = wal.check(
            archive,
            histories,
            stanza.continuous_from(self.fulls, self.segment_bytes),
            stanza.wal_ranges(self.segment_bytes),
            timeline=self.timeline,
            state=state,
            settled_before=int(now) - wal.SETTLING_SECONDS,
        )
        expected = self.system_id or stanza.databases.get(stanza.database() or 0)
        fresh = sorted(s for s in files if s.number > state.checked.get(s.timeline, -1))
        chosen = fresh if self.headers is None else fresh[max(len(fresh) - self.headers, 0) :]
        return found, self._headers({segment: files[segment] for segment in chosen}, histories, expected)

    def _archive(self, path: str, state: wal.State) -> tuple[wal.Archive, dict[wal.Segment, str]]:
        top = parse_listing(self._output(self.commands.list_files(path)))
        archive = wal.read_archive(archived_files(top), self.segment_bytes)
        paths: dict[wal.Segment, str] = {}
        names = [entry.path for entry in top if entry.kind == "path"]
        for directory in wal.directories(names, state, self.segment_bytes):
            before = set(archive.segments)
            for file in archived_files(
                parse_listing(self._output(self.commands.list_files(f"{path}/{directory}")))
            ):
                archive.add(file)
            for segment in archive.segments.keys() - before:
                paths[segment] = f"{path}/{directory}/{archive.names[segment]}"
        return archive, paths

    def _histories(self, path: str, archive: wal.Archive) -> dict[int, tuple[wal.Switch, ...]]:
        histories = {}
        for timeline in sorted(archive.history_files):
            try:
                text = self._output(self.commands.get_file(f"{path}/{timeline:08X}.history"))
                histories[timeline] = wal.parse_history(text)
            except wal.WalError as error:
                archive.strangers.append(f"{timeline:08X}.history ({error})")
        return histories

    def _headers(
        self, paths: Mapping[wal.Segment, str], histories: wal.Histories, system_id: int | None
    ) -> list[Finding]:
        """What the segments say about themselves against their names and the cluster."""
        findings = []
        for segment, path in sorted(paths.items()):
            name = segment.name(self.segment_bytes)
            outcome = self.run(self.read_header(path))
            try:
                header = wal.parse_header(bytes.fromhex("".join(outcome.output.split())))
            except ValueError as error:
                findings.append(Finding("wal", f"WAL {name} cannot be read: {error}"))
                continue
            if system_id is not None and header.system_id != system_id:
                findings.append(
                    Finding(
                        "foreign",
                        f"WAL {name} is of another cluster (system identifier {header.system_id}, not "
                        f"{system_id}): no restore goes past it; make a full backup, find who archived it",
                    )
                )
            elif header.segment_bytes != self.segment_bytes or not wal.may_hold(
                segment, header, histories.get(segment.timeline, ())
            ):
                findings.append(
                    Finding("wal", f"WAL {name} holds {header.segment().name(header.segment_bytes)} instead")
                )
        return findings

    def read_header(self, path: str) -> list[str]:
        """The command that prints a segment's header in hexadecimal; it needs the program that unpacks it."""
        unpack = next((command for end, command in UNPACK.items() if path.endswith(end)), "cat")
        get = shlex.join(self.commands.get_file(path))
        # All of it is read, or pgBackRest would complain about the broken pipe.
        script = f"{get} | {unpack} | {{ od -A n -t x1 -N {wal.HEADER_BYTES}; cat >/dev/null; }}"
        return ["sh", "-c", script]

    def index(self, stanza: Stanza) -> list[Finding]:
        """Whether backup.info and archive.info, with copies, are whole and of this cluster. Raises Failed."""
        findings = []
        for path in (f"backup/{stanza.name}/backup.info", f"archive/{stanza.name}/archive.info"):
            texts = {}
            for name in (path, f"{path}.copy"):
                text, problem = self._file(name)
                if problem:
                    findings.append(Finding("index", problem))
                else:
                    texts[name] = text
            if len(set(texts.values())) > 1:
                findings.append(Finding("index", f"{path} and its copy differ: run `pgbackrest expire`"))
        current = stanza.databases.get(stanza.database() or 0)
        if self.system_id is not None and current != self.system_id:
            findings.append(
                Finding(
                    "foreign",
                    f"stanza {stanza.name} is of the cluster with system identifier {current}, this one's is "
                    f"{self.system_id}",
                )
            )
        return findings

    def _file(self, path: str) -> tuple[str, str]:
        """A file's text, and what is wrong with it."""
        outcome = self.run(self.commands.get_file(path))
        if outcome.code or not outcome.output:
            why = explain(outcome.code, outcome.errors)
            if why.cause in ("unreachable", "credentials", "clock", "certificate", "settings"):
                raise Failed(why)
            return "", f"{path} is missing" if not outcome.errors else f"{path} cannot be read: {why.detail}"
        try:
            parse_file(outcome.output, path)
            if path.endswith("archive.info"):
                parse_system_ids(outcome.output)
        except RepositoryError as error:
            return "", str(error)
        return outcome.output, ""

    def manifests(self, stanza: Stanza, labels: Iterable[str] | None = None) -> list[Finding]:
        """Whether each backup of the index is there, with two whole manifests that agree with the index.

        `labels` restricts it, to what is new for instance. Raises Failed.
        """
        wanted = set(labels) if labels is not None else {backup.label for backup in stanza.backups}
        findings = []
        for backup in stanza.backups:
            if backup.label not in wanted:
                continue
            if backup.error:
                findings.append(
                    Finding(
                        "backup",
                        f"backup {backup.label} holds pages with wrong checksums: the cluster's "
                        "own data is damaged; see `pgbackrest info --set` and the page checksums",
                    )
                )
            findings += self._manifest(stanza, backup)
        return findings

    def _manifest(self, stanza: Stanza, backup: Backup) -> list[Finding]:
        findings = []
        for name in ("backup.manifest", "backup.manifest.copy"):
            path = f"backup/{stanza.name}/{backup.label}/{name}"
            text, problem = self._file(path)
            if problem:
                findings.append(Finding("manifest", problem))
                continue
            try:
                manifest = parse_manifest(text, backup.label)
            except RepositoryError as error:
                findings.append(Finding("manifest", str(error)))
                continue
            expected = stanza.databases.get(backup.database_id)
            if manifest.system_id != expected:
                findings.append(Finding("foreign", f"{path} is of another cluster ({manifest.system_id})"))
            if (manifest.wal_start, manifest.wal_stop) != (backup.wal_start, backup.wal_stop):
                findings.append(Finding("manifest", f"{path} contradicts backup.info about the WAL it needs"))
        return findings

    def _output(self, command: Sequence[str]) -> str:
        outcome = self.run(command)
        if outcome.code:
            raise Failed(explain(outcome.code, outcome.errors))
        return outcome.output


def wal_findings(continuity: wal.Continuity) -> list[Finding]:
    """Gaps and problems of an archive as findings."""
    return [Finding("wal", text) for text in (*(str(gap) for gap in continuity.gaps), *continuity.problems)]

"""Makes a full backup and looks at it afterwards; a host that is not the primary does nothing."""

from __future__ import annotations

import argparse
import time

from backups.core.pgbackrest import PgBackRest
from backups.core.repository import Backup, Stanza, archived_files, parse_listing
from backups.core.verification import Verifier
from backups.core.wal import gaps, read_archive
from backups.host.common import (
    DAY_SECONDS,
    HostError,
    Settings,
    is_primary,
    output,
    verifier,
    write_figures,
)

HELP = {
    "backup_run_failed": "Whether the last backup that this host tried failed (1), or left damage in it.",
    "backup_run_timestamp_seconds": "When this host last tried to make a backup.",
    "backup_run_duration_seconds": "How long that took, its check included.",
}


def options(parser: argparse.ArgumentParser) -> None:
    """The noun has none."""


def run(_: argparse.Namespace) -> int:
    """0 made and found whole, or not the primary; else HostError."""
    settings = Settings.read()
    if not is_primary(settings):
        print("this host is not the primary: nothing to do")
        write_figures("backup_run", {}, HELP)
        return 0
    begin, failed = time.time(), 1
    try:
        label = make(verifier(settings))
        failed = 0
    finally:
        figures = {
            "backup_run_failed": failed,
            "backup_run_timestamp_seconds": round(begin),
            "backup_run_duration_seconds": round(time.time() - begin, 1),
        }
        write_figures("backup_run", figures, HELP)
    print(f"backup {label} is whole ({time.time() - begin:.1f} s)")
    return 0


def make(repository: Verifier) -> str:
    """Makes a backup; its label. HostError when it fails or is not whole."""
    before = repository.stanza()
    known = {backup.label for backup in before.backups}
    if strays := interrupted(repository.commands, before.name, known):
        raise HostError(
            f"the interrupted backup {min(strays)} is in the way, and this host may not delete: "
            "on the ops host: sudo relay-backups retention --yes; then: sudo systemctl start relay-backup"
        )
    output(repository.commands.backup("full"), "pgbackrest backup", DAY_SECONDS)
    after = repository.stanza()
    new = [backup for backup in after.backups if backup.label not in known]
    if not new:
        raise HostError("pgbackrest backup told success, but the repository has no new backup")
    if faults := look(repository, after, new[-1]):
        raise HostError(f"backup {new[-1].label} was made but is not whole: {'; '.join(faults)}")
    return new[-1].label


def interrupted(program: PgBackRest, stanza: str, known: set[str]) -> dict[str, int]:
    """Directories of backups that did not end, and when they were last written to.

    The next backup must delete them first. Some stores go on listing one whose files were deleted; that is in
    nobody's way.
    """
    listing = parse_listing(output(program.list_files(f"backup/{stanza}"), "pgbackrest repo-ls", 120))
    found = {}
    for entry in listing:
        if entry.kind == "path" and entry.path not in {*known, "backup.history"}:
            command = program.list_files(f"backup/{stanza}/{entry.path}", recurse=True)
            files = [e for e in parse_listing(output(command, "pgbackrest repo-ls")) if e.kind == "file"]
            if files:
                found[entry.path] = max(file.written for file in files)
    return found


def look(repository: Verifier, found: Stanza, backup: Backup) -> list[str]:
    """What is wrong with a backup: pages with wrong checksums, its manifests, its files, its WAL."""
    faults = [str(finding) for finding in repository.manifests(found, [backup.label])]
    commands = repository.commands
    names = commands.list_files(f"backup/{found.name}/{backup.label}", recurse=True)
    stored = sum(e.size for e in parse_listing(output(names, "pgbackrest repo-ls")) if e.kind == "file")
    if stored < backup.repository_size:
        faults.append(f"its files have {stored} bytes, its catalogue names {backup.repository_size}")
    needed = backup.wal()
    if needed is not None:
        names = commands.list_files(f"archive/{found.name}/{found.archive_id() or ''}", recurse=True)
        archive = read_archive(archived_files(parse_listing(output(names, "pgbackrest repo-ls"))))
        faults += map(str, gaps(archive, needed))
    return faults

"""Looks at what was archived and backed up; writes figures. A host that is not the primary has none."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

from backups.core import wal
from backups.core.repository import Stanza
from backups.core.verification import Verifier, wal_findings
from backups.host.backup import HELP as RUN_HELP
from backups.host.common import (
    STATE,
    HostError,
    Settings,
    figures_there,
    is_primary,
    query,
    verifier,
    write_figures,
)

# A host that has just become the primary has checked nothing before, and reading all headers takes long.
HEADERS = 16
HELP = {
    "backup_check_timestamp_seconds": "When the repository was last looked at with success.",
    "backup_newest_timestamp_seconds": "When the newest good backup was complete; 0: there is none.",
    "backup_newest_duration_seconds": "How long the newest good backup took.",
    "backup_newest_bytes": "Size of the database in the newest good backup.",
    "backup_newest_repository_bytes": "Size of the newest good backup in the repository.",
    "backup_repository_bytes": "Size of all backups in the repository, without WAL.",
    "backup_count": "Good backups in the repository.",
    "backup_damaged_count": "Backups with errors, or that need such a one.",
    "backup_wal_newest_timestamp_seconds": "When the newest WAL in the repository was written; 0: none.",
    "backup_wal_missing_segments": "WAL segments that the kept backups need and the repository lacks.",
    "backup_wal_problems": "Other faults of the archive: another cluster's WAL, timelines that do not fit.",
    "backup_archiver_failing": "Whether the archiver's last try failed (1).",
    "backup_archiver_waiting_segments": "WAL segments that wait to be archived.",
    "backup_wal_bytes": "WAL on the primary's disk: what is to be archived, replicated or used again.",
}


def options(parser: argparse.ArgumentParser) -> None:
    """The noun's options."""
    parser.add_argument("--whole", action="store_true", help="look at all WAL again, not only at what is new")
    text = "read every file of the repository again; on any database host, without figures"
    parser.add_argument("--everything", action="store_true", help=text)


def run(options: argparse.Namespace) -> int:
    """0 nothing is wrong, 1 WAL is missing or the archive has another fault; Failed: it cannot be told."""
    settings = Settings.read()
    if options.everything:
        return everything(settings)
    if not is_primary(settings):
        write_figures("backup", {}, HELP)
        write_figures("backup_run", {}, HELP)
        return 0
    write_figures("backup_archiver", archiving(), HELP)
    if not figures_there("backup_run"):
        # It has become the primary, and has tried no backup that could have failed.
        write_figures("backup_run", {"backup_run_failed": 0}, RUN_HELP)
    repository = replace(own(settings), headers=None if options.whole else HEADERS)
    # Where this fails, the other figures stay as they were: what the alerts look at is their age.
    found = repository.stanza()
    path = STATE / "wal.json"
    state = wal.State.from_json(path.read_text()) if path.exists() and not options.whole else None
    continuity, foreign = repository.continuity(found, time.time(), state)
    wrong = [*wal_findings(continuity), *foreign]
    if not wrong:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(continuity.state.to_json())
    figures = {
        **backup_figures(found),
        "backup_wal_newest_timestamp_seconds": continuity.written,
        "backup_wal_missing_segments": wal.count_missing(continuity.gaps, repository.segment_bytes),
        "backup_wal_problems": len(continuity.problems) + len(foreign),
        "backup_check_timestamp_seconds": round(time.time()),
    }
    write_figures("backup", figures, HELP)
    for line in wrong:
        print(line)
    return 1 if wrong else 0


def own(settings: Settings) -> Verifier:
    """The checks, with what the server on this host knows of itself; HostError where it does not run."""
    return replace(
        verifier(settings),
        system_id=int(query("select system_identifier from pg_control_system()")),
        timeline=int(query("select timeline_id from pg_control_checkpoint()")),
        segment_bytes=int(query("select setting from pg_settings where name = 'wal_segment_size'")),
    )


def everything(settings: Settings) -> int:
    """Prints whatever is wrong with the repository; 1 when something is. The server need not run."""
    try:
        repository = own(settings)
    except HostError as error:
        print(f"without what the server here knows of itself: {error}", file=sys.stderr)
        repository = verifier(settings)
    wrong = repository.everything(time.time())
    for line in wrong:
        print(line)
    return 1 if wrong else 0


def archiving() -> dict[str, float]:
    """What PostgreSQL says of its archiver."""
    failing = query(
        "select coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false)::int"
        " from pg_stat_archiver"
    )
    waiting = query("select count(*) from pg_ls_archive_statusdir() where name ~ '^[0-9A-F]{24}[.]ready$'")
    return {
        "backup_archiver_failing": float(failing),
        "backup_archiver_waiting_segments": float(waiting),
        "backup_wal_bytes": float(query("select coalesce(sum(size), 0) from pg_ls_waldir()")),
    }


def backup_figures(found: Stanza) -> dict[str, float]:
    """Figures of the backups that `info` names."""
    good = found.good()
    newest = max(good, key=lambda backup: backup.stopped, default=None)
    return {
        "backup_newest_timestamp_seconds": newest.stopped if newest else 0,
        "backup_newest_duration_seconds": newest.stopped - newest.started if newest else 0,
        "backup_newest_bytes": newest.size if newest else 0,
        "backup_newest_repository_bytes": newest.repository_size if newest else 0,
        "backup_repository_bytes": sum(backup.repository_size for backup in found.backups),
        "backup_count": len(good),
        "backup_damaged_count": len(found.backups) - len(good),
    }

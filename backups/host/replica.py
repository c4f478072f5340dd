"""Builds a replica from the newest backup instead of from the primary, whose disk and network it spares.

    relay-backups replica /var/lib/postgresql/15/relay     # Patroni runs it, as postgres

Only a backup of the primary's own timeline is used. One of an earlier timeline may hold what a failover or a
restore has left behind; the replica would stand where the primary never was, and never stream. Without a
fitting backup, or without the store, it fails, and Patroni copies the primary. The mark lets the new replica
read WAL from the repository up to its end: templates/postgres/relay-replica-wal.
"""

from __future__ import annotations

import argparse
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backups.core.pgbackrest import PgBackRest
from backups.core.repository import Backup, Stanza
from backups.core.wal import parse_segment
from backups.host.common import DAY_SECONDS, HostError, Settings, output, verifier

MARK = Path("/var/lib/postgresql/relay-replica-built")
LEADERS = ("leader", "master", "primary")


def options(parser: argparse.ArgumentParser) -> None:
    """The noun's options."""
    parser.add_argument("directory", type=Path, help="the data directory, empty or not there")


def run(options: argparse.Namespace) -> int:
    """0 restored as a standby; HostError: the primary is to be copied."""
    settings = Settings.read()
    backup = newest_of(verifier(settings).stanza(), primary_timeline(settings))
    options.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    MARK.write_text(f"{backup.label}\n")
    command = PgBackRest(settings.stanza, settings.config).standby(str(options.directory), backup.label)
    try:
        output(command, f"pgbackrest restore {backup.label}", DAY_SECONDS)
    except HostError:
        MARK.unlink()
        raise
    print(f"restored {backup.label}; it follows the primary now")
    return 0


def newest_of(found: Stanza, timeline: int) -> Backup:
    """The newest good backup that was made on a timeline."""
    own = [backup for backup in found.good() if backup.database_id == found.database()]
    fit = [b for b in own if b.wal_stop and parse_segment(b.wal_stop).timeline == timeline]
    if not fit:
        raise HostError(f"the repository has no backup of timeline {timeline}: the primary is copied instead")
    return max(fit, key=lambda backup: backup.stopped)


def primary_timeline(settings: Settings) -> int:
    """The timeline on which the primary writes, as this host's Patroni says."""
    context = ssl.create_default_context(cafile=settings.ca_file)
    try:
        with urllib.request.urlopen(f"{settings.rest}/cluster", timeout=10, context=context) as answer:  # noqa: S310
            return timeline_of(json.load(answer))
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise HostError(f"Patroni does not say who is the primary: {error}") from None


def timeline_of(cluster: Mapping[str, Any]) -> int:
    """The primary's timeline in GET /cluster."""
    for member in cluster.get("members", ()):
        if member.get("role") in LEADERS and isinstance(member.get("timeline"), int):
            return int(member["timeline"])
    raise HostError("there is no primary to follow")

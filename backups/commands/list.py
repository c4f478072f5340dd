"""``python -m backups list``: the backups and the archived WAL."""

from __future__ import annotations

from datetime import UTC, datetime

from backups.command import Command
from backups.danger import Outcome, Session
from backups.repository import a_host, stanza


def _run(session: Session) -> Outcome:
    found = stanza(session.cluster, a_host(session.cluster))
    good = {one.label for one in found.good()}
    rows = [
        {
            "label": one.label,
            "kind": one.kind,
            "stopped": datetime.fromtimestamp(one.stopped, UTC).isoformat(),
            "seconds": one.stopped - one.started,
            "bytes": one.size,
            "repository_bytes": one.repository_size,
            "lsn": one.lsn_stop,
            "good": one.label in good,
        }
        for one in found.backups
    ]
    archives = [{"archive": one.archive_id, "first": one.first, "last": one.last} for one in found.archives]
    lines = [f"{'backup':<34} {'ended (UTC)':<20} {'database':>10} {'stored':>10}  LSN"]
    lines += [
        f"{one.label:<34} {datetime.fromtimestamp(one.stopped, UTC):%Y-%m-%d %H:%M:%S} "
        f"{one.size / 1e6:>9.0f}M {one.repository_size / 1e6:>9.0f}M  {one.lsn_stop}"
        f"{'' if one.label in good else '  DAMAGED: cannot be restored'}"
        for one in found.backups
    ]
    lines += [f"WAL {one.archive_id}: {one.first} … {one.last}" for one in found.archives]
    return Outcome(0, {"outcome": "done", "backups": rows, "archives": archives}, "\n".join(lines))


COMMAND = Command(
    name="list",
    summary="show the backups and the archived WAL in the repository",
    example="list production",
    run=_run,
)

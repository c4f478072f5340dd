"""``python -m backups verify``: is the repository whole? Every file is read again, and the WAL has no gap."""

from __future__ import annotations

from backups.command import Command
from backups.danger import FAILED, Outcome, Session
from backups.repository import a_host, stanza
from deploys.lib.errors import DeployError

LOOK = "relay-backups check --everything"
PATIENCE_SECONDS = 24 * 3600


def _run(session: Session) -> Outcome:
    cluster = session.cluster
    leader = cluster.leader()
    host = leader.name if leader else a_host(cluster)
    size = sum(backup.repository_size for backup in stanza(cluster, host).backups)
    session.progress(f"reading {size / 1e6:.0f} MB of backups and all archived WAL again, on {host}")
    answer = cluster.run(host, LOOK, seconds=PATIENCE_SECONDS)
    problems = answer.out.strip().splitlines()
    if not answer.ok and not problems:
        raise DeployError(f"{host}: {LOOK}: {answer.words}")
    data = {"outcome": "failed" if problems else "done", "problems": problems, "seconds": session.seconds}
    if not problems:
        return Outcome(0, data, "the repository is whole")
    mend = f"make a new backup now: python -m backups backup {cluster.environment} --yes"
    return Outcome(FAILED, data, "\n".join([*problems, f"Next: {mend}"]))


COMMAND = Command(
    name="verify",
    summary="read the whole repository again and find what is damaged or missing",
    example="verify production --json",
    run=_run,
    description="Ends with 1 when something is.",
)

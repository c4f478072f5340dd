"""What commands ask of the repository: its backups, the histories of its timelines. From a database host."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from backups.cluster import SCOPE, Cluster
from backups.core.pgbackrest import PgBackRest
from backups.core.repository import RepositoryError, Stanza, parse_info, parse_listing
from backups.core.wal import Switch, parse_history
from backups.danger import Refused
from deploys.lib.errors import DeployError

PROGRAM = PgBackRest(SCOPE)
# Beyond what an unreachable store takes to be noticed.
INFO_SECONDS = 120


def as_postgres(command: Sequence[str]) -> str:
    """The shell command that runs a program as the account postgres; newer pgBackRest refuses root."""
    return shlex.join(["runuser", "-u", "postgres", "--", *command])


def psql(statement: str, *database: str) -> str:
    """The shell command that asks the local server as its superuser; in `database`, where it is named."""
    return as_postgres(["psql", "-XAtqc", statement, *database])


def stanza(cluster: Cluster, host: str) -> Stanza:
    """What the repository holds. DeployError says why it cannot be told."""
    text = cluster.output(host, as_postgres(PROGRAM.info()), seconds=INFO_SECONDS)
    try:
        found = parse_info(text, SCOPE)
    except RepositoryError as error:
        raise DeployError(f"{host}: {error}") from None
    if not found.usable:
        raise DeployError(f"{host}: the repository cannot be used: {found.words}")
    return found


def histories(cluster: Cluster, host: str, found: Stanza) -> dict[int, tuple[Switch, ...]]:
    """The ancestors of each timeline that the archive knows."""
    if found.archive_id() is None:
        return {}
    directory = f"archive/{SCOPE}/{found.archive_id()}"
    listing = cluster.output(host, as_postgres(PROGRAM.list_files(directory)), seconds=INFO_SECONDS)
    answer: dict[int, tuple[Switch, ...]] = {}
    for entry in parse_listing(listing):
        if entry.path.endswith(".history"):
            get = as_postgres(PROGRAM.get_file(f"{directory}/{entry.path}"))
            answer[int(entry.path[:8], 16)] = parse_history(cluster.output(host, get))
    return answer


def a_host(cluster: Cluster) -> str:
    """The first database host that answers; Refused when none does."""
    for host in cluster.db:
        if cluster.run(host, "true", seconds=15).ok:
            return host
    raise Refused(f"no database host answers: {', '.join(cluster.db)}; start one, or see backups/RUNBOOK.md")

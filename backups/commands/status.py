"""``python -m backups status``: one screen, and what to do next."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from backups.cluster import SCOPE, Cluster, Member, leader_of
from backups.command import Command
from backups.core.repository import Stanza
from backups.danger import FAILED, Outcome, Session
from backups.repository import psql, stanza
from deploys.lib.errors import DeployError

BACKUP_AGE_SECONDS = 26 * 3600
WAL_AGE_SECONDS = 300
LAG_BYTES = 64 * 1024 * 1024
FIGURES = "/var/lib/prometheus/node-exporter"
ARCHIVER = (
    "select json_build_object('archived', extract(epoch from now() - last_archived_time)::bigint,"
    " 'failing', coalesce(last_failed_time > last_archived_time, last_failed_time is not null),"
    " 'sync', current_setting('synchronous_standby_names')) from pg_stat_archiver"
)
RESTORE_STATE = "cat /var/lib/relay-restore/hold 2>/dev/null || true"


def _run(session: Session) -> Outcome:
    cluster = session.cluster
    held = cluster.everywhere(cluster.db, lambda host: cluster.run(host, RESTORE_STATE, seconds=20))
    silent = [host for host, answer in held.items() if not answer.reached]
    holds = [host for host, answer in held.items() if answer.reached and answer.out.strip()]
    members = cluster.members() if len(silent) < len(cluster.db) else []
    leader = leader_of(members)
    asked = next((host for host in cluster.db if host not in silent), None)
    repository, problem = _repository(cluster, leader.name if leader else asked)
    archiver = _archiver(cluster, leader)
    figures = _figures(cluster)
    facts = {
        "silent": silent,
        "held": holds,
        "members": [member.__dict__ for member in members],
        "last_backup": _last(repository),
        "repository_problem": problem,
        "archiver": archiver,
        "figures": figures,
    }
    todo = list(_todo(cluster.environment, cluster, members, facts))
    data = {"outcome": "done", "cluster": cluster.name, "well": not todo, **facts, "next": todo}
    return Outcome(FAILED if todo else 0, data, _screen(cluster, members, facts, todo))


def _repository(cluster: Cluster, host: str | None) -> tuple[Stanza | None, str]:
    if host is None:
        return None, "no database host answers"
    try:
        return stanza(cluster, host), ""
    except DeployError as error:
        return None, str(error)


def _last(found: Stanza | None) -> dict[str, Any] | None:
    if found is None or not found.good():
        return None
    newest = max(found.good(), key=lambda one: one.stopped)
    return {"label": newest.label, "age_seconds": round(time.time() - newest.stopped)}


def _archiver(cluster: Cluster, leader: Member | None) -> dict[str, Any]:
    if leader is None:
        return {}
    answer = cluster.run(leader.name, psql(ARCHIVER), seconds=20)
    try:
        return dict(json.loads(answer.out)) if answer.ok else {}
    except ValueError:
        return {}


def _figures(cluster: Cluster) -> dict[str, float]:
    """Figures of backups and drills that hosts keep for Prometheus; of several hosts' the largest."""
    found: dict[str, float] = {}
    hosts = [*cluster.db, *cluster.groups.get("ops", ())]
    command = f"cat {FIGURES}/*.prom 2>/dev/null | grep -E '^(backup|drill)_' || true"
    for answer in cluster.everywhere(hosts, lambda host: cluster.run(host, command, seconds=20)).values():
        for line in answer.out.splitlines() if answer.ok else ():
            name, _, value = line.rpartition(" ")
            try:
                found[name] = max(float(value), found.get(name, float(value)))
            except ValueError:
                continue
    return found


def _todo(
    environment: str, cluster: Cluster, members: list[Member], facts: Mapping[str, Any]
) -> Iterator[dict[str, str]]:
    """Each thing that is wrong, and the command for it."""

    def say(wrong: str, command: str) -> dict[str, str]:
        return {"wrong": wrong, "command": command}

    own = f"python -m backups {{}} {environment}".format
    leader = leader_of(members)
    if facts["held"]:
        hosts = ", ".join(facts["held"])
        yield say(
            f"a restore is unfinished and holds {hosts}", f"{own('restore')} … as it was begun: it goes on"
        )
    if not leader and not facts["held"]:
        if members:
            yield say("there is no primary: nothing can be written", f"wait 30 s; then {own('failover')}")
        elif len(facts["silent"]) < len(cluster.db):
            yield say("no Patroni answers", "python -m deploys apply " + environment + " --limit db")
        else:
            yield say("no database host answers", "start the hosts; if they are lost: backups/RUNBOOK.md")
    for host in facts["silent"]:
        yield say(f"{host} does not answer", f"start the host, then {own('rejoin')} {host}")
    yield from _members(own, cluster, members, leader, facts)
    yield from _backups(own, facts, leader)


def _members(
    own: Any, cluster: Cluster, members: list[Member], leader: Member | None, facts: Mapping[str, Any]
) -> Iterator[dict[str, str]]:
    away = {*facts["silent"], *facts["held"]}
    known = {member.name for member in members}
    for host in cluster.db if leader else ():
        if host not in known and host not in away:
            yield {"wrong": f"{host} is not in the cluster", "command": f"{own('rejoin')} {host}"}
    for member in members:
        if not member.well and leader and member.name not in away:
            yield {"wrong": f"{member.name} is {member.state}", "command": f"{own('rejoin')} {member.name}"}
        elif member.well and (member.lag or 0) > LAG_BYTES:
            megabytes = (member.lag or 0) / 1e6
            command = f"{own('reinit')} {member.name}, if the lag does not shrink"
            yield {"wrong": f"{member.name} is {megabytes:.0f} MB behind", "command": command}
    if leader and not any(member.confirms for member in members):
        wrong = "no standby confirms writes: calls that write wait"
        yield {"wrong": wrong, "command": f"{own('rejoin')} of a standby that does not stream"}


def _backups(own: Any, facts: Mapping[str, Any], leader: Member | None) -> Iterator[dict[str, str]]:
    if facts["repository_problem"]:
        command = "see monitoring/runbooks/ and: journalctl -u relay-backup, on a database host"
        yield {"wrong": f"the repository cannot be read: {facts['repository_problem']}", "command": command}
    elif facts["last_backup"] is None:
        yield {"wrong": "there is no good backup", "command": f"{own('backup')} --yes"}
    elif facts["last_backup"]["age_seconds"] > BACKUP_AGE_SECONDS:
        hours = facts["last_backup"]["age_seconds"] / 3600
        yield {"wrong": f"the last good backup is {hours:.0f} h old", "command": f"{own('backup')} --yes"}
    archiver = facts["archiver"]
    if leader and archiver and (archiver.get("failing") or (archiver.get("archived") or 0) > WAL_AGE_SECONDS):
        wrong = f"WAL was last archived {archiver.get('archived')} s ago"
        yield {"wrong": wrong, "command": f"on {leader.name}: sudo relay-backups stanza --check"}
    if facts["figures"].get("backup_wal_missing_segments"):
        missing = facts["figures"]["backup_wal_missing_segments"]
        yield {"wrong": f"the archive lacks {missing:.0f} WAL segments", "command": f"{own('backup')} --yes"}
    figures = facts["figures"]
    if figures.get("drill_failed"):
        yield {"wrong": "the last restore drill failed", "command": own("drill")}
    elif (days := _unproven_days(figures)) is not None:
        yield {"wrong": f"no restore drill has succeeded for {days:.0f} days", "command": own("drill")}


def _unproven_days(figures: Mapping[str, float]) -> float | None:
    """Days since the last good drill, or since drills were set up; None while they are few enough."""
    since = max(
        figures.get("drill_last_success_timestamp_seconds", 0),
        figures.get("drill_installed_timestamp_seconds", 0),
    )
    late = since and time.time() - since > figures.get("drill_max_age_seconds", float("inf"))
    return (time.time() - since) / 86400 if late else None


def _screen(
    cluster: Cluster, members: list[Member], facts: Mapping[str, Any], todo: list[dict[str, str]]
) -> str:
    lines = [
        f"cluster {cluster.name} (Patroni's {SCOPE})",
        f"  {'member':<10} {'role':<16} {'state':<12} timeline  lag",
    ]
    for member in members:
        lag = "" if member.leads else f"{member.lag / 1e6:.1f} MB" if member.lag is not None else "unknown"
        lines.append(
            f"  {member.name:<10} {member.role:<16} {member.state:<12} {member.timeline!s:<8}  {lag}"
        )
    archiver, last = facts["archiver"], facts["last_backup"]
    lines.append(f"  synchronous standbys: {archiver.get('sync') or 'not known'}")
    if last:
        lines.append(f"  last good backup: {last['label']}, {last['age_seconds'] / 3600:.1f} h old")
    if archiver:
        lines.append(f"  WAL last archived {archiver.get('archived')} s ago")
    figures = facts["figures"]
    if "backup_wal_missing_segments" in figures:
        lines.append(f"  WAL segments missing: {figures['backup_wal_missing_segments']:.0f}")
    if "backup_bucket_bytes" in figures:
        held = figures["backup_bucket_bytes"] + figures.get("backup_bucket_older_bytes", 0)
        cost = figures.get("backup_bucket_cost_usd_month", 0)
        lines.append(f"  the bucket holds {held / 1e9:.2f} GB, older versions among it: ${cost:.2f} a month")
    drill = next((value for name, value in figures.items() if name.startswith("drill_last_success")), None)
    lines.append(
        f"  last good drill: {f'{(time.time() - drill) / 86400:.1f} days ago' if drill else 'none known'}"
    )
    well = "all is well: nothing to do" + ("" if drill else "; a drill would prove that a restore works")
    lines += ["what to do next:"] if todo else [well]
    for number, one in enumerate(todo, 1):
        lines += [f"  {number}. {one['wrong']}", f"     {one['command']}"]
    return "\n".join(lines)


COMMAND = Command(
    name="status",
    summary="show the cluster, its backups, and what to do next",
    example="status production",
    run=_run,
    description="Ends with 1 when there is something to do.",
)

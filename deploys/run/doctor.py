"""`doctor`: one screen of what an operator should know before touching anything.

Hosts are asked over SSH side by side, Prometheus and Alertmanager on their own host. Nothing is changed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, Union

from pyinfra.api.host import Host

from deploys.lib import examples, fleet, lock
from deploys.lib.errors import DeployError
from deploys.lib.relay_service import ON_HOST
from deploys.roles.edge import EDGE_CERTIFICATES
from deploys.run import environment, figures, releases, remote
from deploys.run.figures import Alert, Row
from deploys.run.node.records import Records
from deploys.run.patch import records as patches
from deploys.run.patch.records import Record
from deploys.run.releases import Release

T = TypeVar("T")
# What was looked at, or why it could not be.
Seen = Union[T, DeployError]  # noqa: UP007 - an alias with a variable
DAY_SECONDS = 86400
PLAN_AGE_DAYS = 7
# A public certificate is renewed 30 days before its end.
EDGE_CERTIFICATE_DAYS = 21
BACKUP_AGE_SECONDS = 26 * 3600
LAG_MEGABYTES = 64
DISK_DAYS = 14
HOST_SECONDS = 40
SHOWN_ALERTS = 6
SHOWN_RELEASES = 3

# Programs whose versions should be the same wherever they run.
ENGINES = (
    "docker.io", "etcd-server", "nginx", "postgresql-15", "postgresql-16", "postgresql-17", "pgbackrest",
    "redis-server", "docker-registry", "prometheus", "syslog-ng-core", "keepalived", "openssh-server",
)  # fmt: skip
CERTIFICATES = ("/etc/relay/tls/host.crt", *EDGE_CERTIFICATES)
# One line a fact: its kind, then its words. What a host does not have, it says nothing of.
QUESTIONS = f"""
echo "reboot $(stat -c %Y /run/reboot-required 2>/dev/null || echo 0)"
dpkg-query -W -f 'package ${{Package}} ${{Version}}\\n' {" ".join(ENGINES)} 2>/dev/null
[ -x /opt/patroni/bin/patroni ] && echo "package $(timeout 10 /opt/patroni/bin/patroni --version)"
for file in {" ".join(CERTIFICATES)}; do
  [ -s $file ] && echo "certificate $file $(openssl x509 -noout -enddate -in $file | cut -d= -f2)"
done
if command -v relay-etcdctl >/dev/null; then
  timeout 10 relay-etcdctl endpoint health >/dev/null 2>&1 && echo "etcd healthy" || echo "etcd unhealthy"
fi
if command -v patronictl >/dev/null; then
  echo "patroni $(timeout 10 patronictl list --format json 2>/dev/null | tr -d '\\n')"
fi
if command -v docker >/dev/null; then
  timeout 10 docker node ls --format 'node {{{{.Hostname}}}} {{{{.Status}}}} {{{{.Availability}}}} m={{{{.ManagerStatus}}}}' 2>/dev/null
  timeout 10 docker service ls --filter name={ON_HOST} --format 'replicas {{{{.Replicas}}}}' 2>/dev/null
fi
true
"""  # noqa: E501
FILE_SYSTEMS = 'fstype!~"tmpfs|ramfs|squashfs|overlay"'
QUERIES = {
    "backup": "max(backup_newest_timestamp_seconds)",
    "drill": "max(drill_last_success_timestamp_seconds)",
    "drill_failed": "max(drill_failed)",
    "drill_max_age": "max(drill_max_age_seconds)",
    # At the rate of the last six hours, of which there must be all: a first load is no trend.
    "disk": (
        f"sort(node_filesystem_avail_bytes{{{FILE_SYSTEMS}}} "
        f"/ -(deriv(node_filesystem_avail_bytes{{{FILE_SYSTEMS}}}[6h]) < 0) "
        f"and node_filesystem_avail_bytes{{{FILE_SYSTEMS}}} offset 6h)"
    ),
    "free": (
        f"sort(node_filesystem_avail_bytes{{{FILE_SYSTEMS}}} / node_filesystem_size_bytes{{{FILE_SYSTEMS}}})"
    ),
}
FREE_RATIO = 0.15
EPILOG = """examples:
  python -m deploys doctor production              what the last plan said, and everything else
  python -m deploys doctor production --plan       look for drift anew; takes a minute
  python -m deploys doctor sandbox --json

exit codes: 0 all is well, 1 something could not be looked at, 2 something needs attention
"""


class Verdict(Enum):
    """What a line of the screen says."""

    WELL = "well"
    ATTENTION = "attention"
    UNKNOWN = "unknown"


SIGNS = {Verdict.WELL: "✔", Verdict.ATTENTION: "✘", Verdict.UNKNOWN: "?"}


@dataclass(frozen=True)
class Line:
    """A line of the screen: what about, how it stands, and what to do next; "" where nothing is to do."""

    topic: str
    verdict: Verdict
    text: str
    next: str = ""


@dataclass
class Told:
    """What a host said of itself. Times are seconds since 1970."""

    reboot: float = 0
    packages: dict[str, str] = field(default_factory=dict)
    certificates: dict[str, float] = field(default_factory=dict)
    etcd: bool | None = None
    patroni: list[dict[str, Any]] = field(default_factory=list)
    # (name, status, availability, manager status or "")
    nodes: list[tuple[str, str, str, str]] = field(default_factory=list)
    replicas: str = ""


def told(output: str) -> Told:
    """The lines of QUESTIONS, read."""
    found = Told()
    for line in output.splitlines():
        kind, _, rest = line.partition(" ")
        words = rest.split()
        if kind == "reboot":
            found.reboot = float(words[0])
        elif kind == "package" and len(words) == 2:
            found.packages[words[0]] = words[1]
        elif kind == "certificate" and len(words) > 1:
            end = datetime.strptime(" ".join(words[1:]), "%b %d %H:%M:%S %Y GMT")
            found.certificates[words[0]] = end.replace(tzinfo=UTC).timestamp()
        elif kind == "etcd":
            found.etcd = words == ["healthy"]
        elif kind == "patroni" and rest.startswith("["):
            found.patroni = json.loads(rest)
        elif kind == "node" and len(words) == 4:
            found.nodes.append((words[0], words[1], words[2], words[3].removeprefix("m=")))
        elif kind == "replicas" and words:
            found.replicas = words[0]
    return found


@dataclass
class Fleet:
    """Everything that was seen. `hosts` are None where a host did not answer."""

    name: str
    groups: Mapping[str, Sequence[str]]
    hosts: Mapping[str, Told | None]
    audit: Sequence[Mapping[str, Any]]
    measured: Seen[Mapping[str, list[Row]]]
    alerts: Seen[list[Alert]]
    history: Seen[list[Release]]
    holders: Mapping[str, Seen[str]]
    certificate_days: int
    now: float
    # Verb and name of nodes that `node` was interrupted with.
    begun: Sequence[tuple[str, str]] = ()
    # A run of `patch` that has not ended.
    patch: Record | None = None

    def of(self, group: str) -> list[Told]:
        """What the hosts of a group that answered said."""
        return [told for name in self.groups.get(group, ()) if (told := self.hosts.get(name))]


def examine(fleet: Fleet) -> list[Line]:
    """The whole screen."""
    parts = (
        _hosts, _drift, _versions, _reboots, _certificates, _etcd, _patroni, _swarm, _replicas, _backup,
        _drill, _alerts, _disks, _lock, _releases, _nodes, _patch,
    )  # fmt: skip
    return [line for part in parts for line in part(fleet)]


def status(lines: Sequence[Line]) -> int:
    """The exit code: 2 something needs attention, else 1 something could not be looked at, else 0."""
    verdicts = {line.verdict for line in lines}
    return 2 if Verdict.ATTENTION in verdicts else 1 if Verdict.UNKNOWN in verdicts else 0


def _well(topic: str, text: str) -> Line:
    return Line(topic, Verdict.WELL, text)


def _hosts(seen: Fleet) -> Iterator[Line]:
    silent = [name for name, said in seen.hosts.items() if said is None]
    if silent:
        text = f"{', '.join(silent)} did not answer over SSH"
        yield Line("hosts", Verdict.ATTENTION, text, "start them; monitoring/runbooks/HostDown.md")
    else:
        yield _well("hosts", f"all {len(seen.hosts)} answer")


def _drift(seen: Fleet) -> Iterator[Line]:
    runs = [one for one in seen.audit if one.get("command") in ("plan", "apply") and not one.get("limit")]
    plan = f"python -m deploys plan {seen.name}"
    if not runs:
        yield Line("drift", Verdict.UNKNOWN, "no plan is known on this machine", f"`{plan}`, or --plan here")
        return
    last = runs[-1]
    days = (seen.now - datetime.fromisoformat(last["at"]).timestamp()) / DAY_SECONDS
    who = f"{last['command']} by {last['who']}, {_ago(days * DAY_SECONDS)}"
    changes = int(last.get("changes", 0))
    if not str(last["result"]).startswith("done"):
        text = f"the last {who} ended: {last['result']}"
        yield Line("drift", Verdict.ATTENTION, text, f"mend what it names, then `{plan}`")
    elif last["command"] == "plan" and changes:
        apply = f"`python -m deploys apply {seen.name}` brings the fleet in line"
        yield Line("drift", Verdict.ATTENTION, f"{changes} changes pending ({who})", apply)
    elif str(last["result"]) != "done":
        text = f"the last {who}: {last['result']}"
        yield Line(
            "drift", Verdict.ATTENTION, text, f"`python -m deploys apply {seen.name}` once they are back"
        )
    elif days > PLAN_AGE_DAYS:
        yield Line("drift", Verdict.ATTENTION, f"nobody has looked for a while ({who})", f"`{plan}`")
    else:
        yield _well("drift", f"none ({who})")


def _versions(seen: Fleet) -> Iterator[Line]:
    where: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, said in seen.hosts.items():
        for package, version in (said.packages if said else {}).items():
            where[package][version].append(name)
    skewed = {package: versions for package, versions in where.items() if len(versions) > 1}
    for package, versions in sorted(skewed.items()):
        text = "; ".join(f"{version} on {', '.join(hosts)}" for version, hosts in sorted(versions.items()))
        following = f"`python -m deploys patch {seen.name} --engines` brings the newest, host after host"
        yield Line("versions", Verdict.ATTENTION, f"{package}: {text}", following)
    if not skewed:
        shown = (
            f"{package} {next(iter(where[package]))}" for package in sorted(where) if package in HEADLINE
        )
        yield _well("versions", f"the same everywhere: {', '.join(shown)}")


HEADLINE = ("docker.io", "etcd-server", "nginx", "patroni", "postgresql-15", "postgresql-16", "postgresql-17")


def _reboots(seen: Fleet) -> Iterator[Line]:
    waiting = {name: said.reboot for name, said in seen.hosts.items() if said and said.reboot}
    if not waiting:
        yield _well("reboots", "no host waits for one")
        return
    since = _ago(seen.now - min(waiting.values()))
    text = f"{', '.join(waiting)} wait for a reboot, the first for {since.removesuffix(' ago')}"
    following = f"`python -m deploys patch {seen.name}`; monitoring/runbooks/HostRebootOverdue.md"
    yield Line("reboots", Verdict.ATTENTION, text, following)


def _certificates(seen: Fleet) -> Iterator[Line]:
    ends = [
        (end, name, path)
        for name, said in seen.hosts.items()
        for path, end in (said.certificates if said else {}).items()
    ]
    if not ends:
        yield Line(
            "certificates", Verdict.UNKNOWN, "no host showed one", f"`python -m deploys plan {seen.name}`"
        )
        return
    for own, limit, following in (
        (True, seen.certificate_days, f"`python -m deploys secrets {seen.name} --renew`, then `apply`"),
        (False, EDGE_CERTIFICATE_DAYS, "monitoring/runbooks/EdgeCertificateRenewalFails.md"),
    ):
        short = [
            (end, name)
            for end, name, path in ends
            if (path not in EDGE_CERTIFICATES) == own and end < seen.now + limit * DAY_SECONDS
        ]
        if short:
            names = ", ".join(dict.fromkeys(name for _, name in short))
            days = (min(short)[0] - seen.now) / DAY_SECONDS
            kind = "host" if own else "public"
            text = f"{kind} certificates of {names} end in {days:.0f} days or more"
            text = text if days > 0 else f"{kind} certificates of {names} have expired"
            yield Line("certificates", Verdict.ATTENTION, text, following)
    if min(ends)[0] >= seen.now + seen.certificate_days * DAY_SECONDS:
        end, name, _ = min(ends)
        yield _well("certificates", f"the first ends in {(end - seen.now) / DAY_SECONDS:.0f} days ({name})")


def _etcd(seen: Fleet) -> Iterator[Line]:
    members = {
        name: bool(said and said.etcd) for name in seen.groups.get("db", ()) for said in [seen.hosts[name]]
    }
    yield from _quorum("etcd", members, "monitoring/runbooks/EtcdMemberDown.md")


def _quorum(topic: str, members: Mapping[str, bool], following: str) -> Iterator[Line]:
    if not members:
        return
    healthy, needed = sum(members.values()), len(members) // 2 + 1
    text = f"{healthy} of {len(members)} members are healthy"
    if healthy == len(members):
        yield _well(topic, f"{text}; {healthy - needed} may fail")
        return
    away = ", ".join(name for name, well in members.items() if not well)
    margin = healthy - needed
    left = (
        f"{margin} more may fail" if margin > 0 else "none may fail" if not margin else "there is no quorum"
    )
    yield Line(topic, Verdict.ATTENTION, f"{text} (not {away}): {left}", f"mend that first: {following}")


def _patroni(seen: Fleet) -> Iterator[Line]:
    if not seen.groups.get("db"):
        return
    members = next((said.patroni for said in seen.of("db") if said.patroni), [])
    following = f"`python -m backups status {seen.name}`"
    if not members:
        yield Line("database", Verdict.UNKNOWN, "no host says who the members are", following)
        return
    leaders = [str(one["Member"]) for one in members if "Leader" in str(one.get("Role"))]
    replicas = [one for one in members if "Leader" not in str(one.get("Role"))]
    confirm = [
        str(one["Member"]) for one in replicas if str(one.get("Role", "")).startswith(("Sync", "Quorum"))
    ]
    wrong = [] if len(leaders) == 1 else [f"{len(leaders)} primaries"]
    wrong += [] if confirm else ["no standby confirms writes"]
    missing = [name for name in seen.groups["db"] if name not in [str(one["Member"]) for one in members]]
    wrong += [f"{', '.join(missing)} not in the cluster"] if missing else []
    wrong += [f"{one['Member']} is {one['State']}" for one in replicas if one.get("State") != "streaming"]
    wrong += [f"{one['Member']} waits for a restart" for one in members if one.get("Pending restart")]
    if wrong:
        yield Line("database", Verdict.ATTENTION, "; ".join(wrong), following)
    else:
        yield _well("database", f"primary {leaders[0]}; {', '.join(confirm)} confirm writes")
    yield from _lag(replicas, following)


def _lag(replicas: Sequence[Mapping[str, Any]], following: str) -> Iterator[Line]:
    # From 4.1 on Patroni tells what is received and what is replayed.
    lags = {str(one["Member"]): one.get("Receive Lag", one.get("Lag in MB")) for one in replicas}
    behind = {
        name: lag for name, lag in lags.items() if not isinstance(lag, int | float) or lag > LAG_MEGABYTES
    }
    shown = ", ".join(f"{name} {lag} MB" for name, lag in (behind or lags).items())
    if behind:
        yield Line("lag", Verdict.ATTENTION, f"replicas are behind: {shown}", following)
    else:
        yield _well("lag", shown or "there is no replica")


def _swarm(seen: Fleet) -> Iterator[Line]:
    if not seen.groups.get("app"):
        return
    nodes = next((said.nodes for said in seen.of("app") if said.nodes), [])
    if not nodes:
        text = "no manager answers: there may be no leader"
        yield Line("swarm", Verdict.ATTENTION, text, "monitoring/runbooks/SwarmNoLeader.md")
        return
    managers = {name: manager in ("Leader", "Reachable") for name, _, _, manager in nodes if manager}
    yield from _quorum("swarm", managers, "monitoring/runbooks/SwarmManagersFew.md")
    away = [
        f"{name} is {state}, {use}" for name, state, use, _ in nodes if (state, use) != ("Ready", "Active")
    ]
    if away:
        yield Line("swarm", Verdict.ATTENTION, "; ".join(away), "monitoring/runbooks/SwarmNodeDown.md")


def _replicas(seen: Fleet) -> Iterator[Line]:
    if not seen.groups.get("app"):
        return
    counted = next((said.replicas for said in seen.of("app") if said.replicas), "")
    have, _, want = counted.partition("/")
    if counted and have == want != "0":
        yield _well("relay", f"{counted} replicas run")
        return
    text = f"{counted} replicas run" if counted else "no manager knows the relay's service"
    yield Line("relay", Verdict.ATTENTION, text, "monitoring/runbooks/RelayTaskDown.md")


def _figure(seen: Fleet, name: str) -> float | None:
    if isinstance(seen.measured, DeployError) or not seen.measured[name]:
        return None
    return seen.measured[name][0].value


def _unmeasured(seen: Fleet, topic: str) -> Iterator[Line]:
    if isinstance(seen.measured, DeployError):
        yield Line(topic, Verdict.UNKNOWN, str(seen.measured), "monitoring/runbooks/Watchdog.md")


def _backup(seen: Fleet) -> Iterator[Line]:
    yield from _unmeasured(seen, "backup")
    if isinstance(seen.measured, DeployError):
        return
    newest = _figure(seen, "backup")
    if newest is None or seen.now - newest > BACKUP_AGE_SECONDS:
        text = "no good one is known" if newest is None else f"the newest was made {_ago(seen.now - newest)}"
        yield Line("backup", Verdict.ATTENTION, text, f"`python -m backups status {seen.name}`")
    else:
        yield _well("backup", f"the newest was made {_ago(seen.now - newest)}")


def _drill(seen: Fleet) -> Iterator[Line]:
    if isinstance(seen.measured, DeployError):
        return
    last, longest = _figure(seen, "drill"), _figure(seen, "drill_max_age")
    following = f"`python -m backups drill {seen.name} --yes`"
    if _figure(seen, "drill_failed"):
        yield Line(
            "drill", Verdict.ATTENTION, "the last restore drill failed", "monitoring/runbooks/DrillFailed.md"
        )
    elif not last:
        yield Line("drill", Verdict.ATTENTION, "no restore has been proven yet", following)
    elif longest is not None and seen.now - last > longest:
        yield Line(
            "drill", Verdict.ATTENTION, f"a restore was last proven {_ago(seen.now - last)}", following
        )
    else:
        yield _well("drill", f"a restore was proven {_ago(seen.now - last)}")


def _alerts(seen: Fleet) -> Iterator[Line]:
    if isinstance(seen.alerts, DeployError):
        yield Line("alerts", Verdict.UNKNOWN, str(seen.alerts), "monitoring/runbooks/Watchdog.md")
        return
    for alert in seen.alerts[:SHOWN_ALERTS]:
        text = f"{alert.severity}: {alert.name}: {alert.summary}"
        yield Line("alerts", Verdict.ATTENTION, text, alert.runbook)
    if more := seen.alerts[SHOWN_ALERTS:]:
        names = ", ".join(dict.fromkeys(alert.name for alert in more))
        yield Line(
            "alerts",
            Verdict.ATTENTION,
            f"and {len(more)} more: {names}",
            "their pages in monitoring/runbooks",
        )
    if not seen.alerts:
        yield _well("alerts", "none fires")


def _disks(seen: Fleet) -> Iterator[Line]:
    if isinstance(seen.measured, DeployError):
        return
    full = [row for row in seen.measured["disk"] if row.value < DISK_DAYS * DAY_SECONDS]
    low = [row for row in seen.measured["free"] if row.value < FREE_RATIO]
    for row in full:
        text = f"{_place(row)} is full in {row.value / DAY_SECONDS:.1f} days at the rate of the last hours"
        yield Line("disks", Verdict.ATTENTION, text, "monitoring/runbooks/HostDiskFillsSoon.md")
    for row in low:
        text = f"{100 * row.value:.0f} % of {_place(row)} is free"
        yield Line("disks", Verdict.ATTENTION, text, "monitoring/runbooks/HostDiskSpaceLow.md")
    if not seen.measured["free"]:
        yield Line("disks", Verdict.UNKNOWN, "Prometheus knows of none", "monitoring/runbooks/TargetDown.md")
    elif not full and not low:
        row = min(seen.measured["free"], key=lambda one: one.value)
        fullest = f"the fullest, {_place(row)}, is {100 * row.value:.0f} % free"
        yield _well("disks", f"none is full within {DISK_DAYS} days; {fullest}")


def _place(row: Row) -> str:
    return f"{row.labels.get('mountpoint', '')} of {row.instance}"


def _lock(seen: Fleet) -> Iterator[Line]:
    for where, holder in seen.holders.items():
        if isinstance(holder, DeployError):
            yield Line("lock", Verdict.UNKNOWN, str(holder))
        elif holder:
            text = f"{holder} is at work (lock on {where})"
            yield Line("lock", Verdict.ATTENTION, text, "wait for it to end, or ask them")
    if not any(seen.holders.values()):
        yield _well("lock", "nobody is at work")


def _releases(seen: Fleet) -> Iterator[Line]:
    if isinstance(seen.history, DeployError):
        yield Line("releases", Verdict.UNKNOWN, str(seen.history))
        return
    if open_ := releases.unfinished(seen.history):
        text = f"{open_.number} by {open_.who} is unfinished: {open_.state} since {open_.changed}"
        following = (
            f"`python -m deploys release {seen.name} --yes` goes on, `rollback {seen.name} --yes` undoes it"
        )
        yield Line("releases", Verdict.ATTENTION, text, following)
    ended = [one for one in seen.history if one.ended][-SHOWN_RELEASES:]
    for one in reversed(ended):
        why = f": {one.reason}" if one.reason else ""
        yield _well("releases", f"{one.number} by {one.who}, {one.changed}: {one.state}{why}")
    if not seen.history:
        yield _well("releases", "none yet: the relay runs what `apply` has rolled")


def _nodes(seen: Fleet) -> Iterator[Line]:
    for verb, name in seen.begun:
        following = f"`python -m deploys node {verb} {seen.name} {name} --yes` goes on"
        yield Line("nodes", Verdict.ATTENTION, f"{verb} {name} was begun and has not ended", following)
    if not seen.begun:
        yield _well("nodes", "none is being added, replaced or removed")


def _patch(seen: Fleet) -> Iterator[Line]:
    if seen.patch is None:
        yield _well("patch", "none is unfinished")
        return
    where = f"stopped with {seen.patch.node} out of service" if seen.patch.node else "has not ended"
    text = f"the one of {seen.patch.by}, {seen.patch.began}, {where}"
    following = f"`python -m deploys patch {seen.name}` says what is left, with --yes it goes on"
    yield Line("patch", Verdict.ATTENTION, text, following)


def _ago(seconds: float) -> str:
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min ago"
    return (
        f"{seconds / 3600:.0f} h ago"
        if seconds < 3 * DAY_SECONDS
        else f"{seconds / DAY_SECONDS:.0f} days ago"
    )


def look(name: str, hosts: Sequence[Host], groups: Mapping[str, Sequence[str]]) -> Fleet:
    """Asks everybody at once."""
    directory = fleet.state_directory()
    monitor = figures.monitor(hosts)
    history = releases.History(monitor)
    # In this thread: pyinfra's current inventory is not that of others.
    days = int(fleet.setting("certificate_days_left"))
    with ThreadPoolExecutor(5) as pool:
        answers = pool.submit(remote.ask, hosts, ["sh", "-c", QUESTIONS], seconds=HOST_SECONDS)
        measured = pool.submit(_seen, lambda: _measured(monitor))
        alerts = pool.submit(_seen, lambda: figures.alerts(monitor))
        past = pool.submit(_seen, history.read)
        holder = pool.submit(_seen, history.holder)
        return Fleet(
            name=name,
            groups=groups,
            hosts={one.host: told(one.out) if not one.status else None for one in answers.result()},
            audit=_audit(directory, name),
            measured=measured.result(),
            alerts=alerts.result(),
            history=past.result(),
            holders={"this machine": lock.holder(directory / "deploy.lock"), monitor.name: holder.result()},
            certificate_days=days,
            now=time.time(),
            begun=[(one.command, one.name) for one in Records(directory).read().values()],
            patch=patches.Records(directory).read(),
        )


def _seen(question: Callable[[], T]) -> Seen[T]:
    try:
        return question()
    except DeployError as error:
        return error


def _measured(host: Host) -> dict[str, list[Row]]:
    return dict(zip(QUERIES, figures.ask(host, list(QUERIES.values())), strict=True))


def _audit(directory: Path, name: str) -> list[dict[str, Any]]:
    path = directory / "audit.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [entry for entry in map(json.loads, lines) if entry.get("environment") == name]


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    name = arguments.environment
    with environment.use(name) as inventory:
        if arguments.plan:
            # What it shows is beside the point here, and pyinfra needs a process of its own.
            command = [sys.executable, "-m", "deploys", "plan", name]
            subprocess.run(command, stdout=sys.stderr, cwd=fleet.REPOSITORY, check=False)
        groups = {group: [host.name for host in inventory.groups.get(group, [])] for group in ("app", "db")}
        lines = examine(look(name, list(inventory), groups))
    code = status(lines)
    if arguments.json:
        shown = [asdict(line) | {"verdict": line.verdict.value} for line in lines]
        print(json.dumps({"environment": name, "status": code, "lines": shown}, ensure_ascii=False))
        return code
    for line in lines:
        print(f"{SIGNS[line.verdict]} {line.topic:<13} {line.text}")
        if line.next:
            print(f"  {'':<13} → {line.next}")
    print({0: "all is well", 1: "not all could be looked at", 2: "something needs attention"}[code])
    return code


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's options."""
    text = (
        "show on one screen what to know before touching anything; exit code 0: all is well, 1: could not "
        "look, 2: needs attention"
    )
    command = examples.add(commands, "", "doctor", text, EPILOG)
    command.add_argument("environment", metavar="ENV", help=environment.HELP)
    command.add_argument(
        "--plan", action="store_true", help="plan now, instead of telling the result of the last plan"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run)

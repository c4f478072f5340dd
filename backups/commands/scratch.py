"""A restore beside the cluster, on the ops host: what ``python -m backups restore`` does without a name."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from backups.cluster import Cluster, HostFailed
from backups.core import recovery
from backups.danger import DONE, Call, Late, Outcome, Plan, Refused, Session, Step, carry_out
from backups.repository import psql
from deploys.lib.errors import DeployError

PATIENCE_SECONDS = 24 * 3600
ARCHIVE_SECONDS = 60
KINDS = {
    recovery.TIME: "time",
    recovery.LSN: "lsn",
    recovery.TRANSACTION: "xid",
    recovery.BACKUP: "set",
}
NANO = 1_000_000_000


def ops(cluster: Cluster) -> str:
    """The host that restores beside the cluster; Refused where there is none."""
    if not cluster.groups.get("ops"):
        raise Refused("the inventory has no ops host, where drills and previews run: add one to group `ops`")
    return cluster.groups["ops"][0]


def looks(session: Session) -> Outcome | None:
    """What --show, --forward and --back answer at once; None where none of them was given."""
    options = session.options
    name = shlex.quote(options.name)
    if options.forward or options.back:
        way = "--forward" if options.forward else "--back"
        by = f" --seconds {options.by}" if options.by else ""
        words = f"step {name} {way}{by}"
    elif options.show:
        words = f"show {name}" + (f" --account {options.account}" if options.account else "")
    else:
        return None
    answer = _answer(session.cluster, ops(session.cluster), words)
    return Outcome(DONE, {"outcome": "done", "preview": answer}, _screen(session, answer))


def restore(session: Session, wanted: recovery.Target) -> Outcome:
    """Restores beside the cluster: writable, or with --preview paused at the target."""
    options, host = session.options, ops(session.cluster)
    if options.timeline or (options.set and wanted.kind != recovery.BACKUP):
        raise Refused("--timeline, and --set with a target, belong to --over-cluster: leave them out here")
    words = f"restore --name {shlex.quote(options.name)} --target {shlex.quote(_target(wanted))}"
    words += " --exclusive" if wanted.exclusive else ""
    words += " --pause" if options.preview else ""
    own = f"python -m backups restore {session.cluster.environment}"
    plan = Plan(
        target=f"beside {session.cluster.name}, on {host}: {wanted}",
        checks=[],
        steps=[],
        undo=f"{own} --drop --name {options.name} --yes",
    )

    def act() -> None:
        plan.result["instance"] = _answer(session.cluster, host, words)

    command = f"relay-backups scratch {words} --json"
    plan.steps = [
        *_archiving(session),
        Step("Restore into an instance of its own", [Call(host, command)], act, seconds=60),
    ]
    plan.summary = lambda: _made(session, plan.result["instance"])
    return carry_out(session, plan)


def _archiving(session: Session) -> list[Step]:
    """Has the primary archive what it wrote last, so that a moment ago can be restored; none without one."""
    leader = session.cluster.leader()
    if leader is None:
        return []
    switch = Call(leader.name, psql("select pg_walfile_name(pg_switch_wal())"))
    archived = psql("select coalesce(last_archived_wal, '') from pg_stat_archiver")

    def act() -> None:
        segment = session.call(switch).out.strip()

        def there() -> bool:
            return session.cluster.output(leader.name, archived).strip() >= segment

        try:
            session.wait(f"{segment} is archived", ARCHIVE_SECONDS, there)
        except Late as late:
            session.progress(f"  {late}: the archive may end before the target")

    return [Step("Archive what the primary wrote last", [switch], act, seconds=5)]


def drop(session: Session) -> Outcome:
    """Removes a restore beside the cluster."""
    host, name = ops(session.cluster), session.options.name
    call = Call(host, f"relay-backups scratch drop {shlex.quote(name)} --json", seconds=600)
    plan = Plan(
        target=f"{name} on {host}",
        checks=[],
        steps=[Step(f"Stop {name} and remove its files", [call], seconds=3)],
        undo="none is needed: restore it again",
    )
    return carry_out(session, plan)


def _target(wanted: recovery.Target) -> str:
    if wanted.kind == recovery.LATEST:
        return "latest"
    value = wanted.backup if wanted.kind == recovery.BACKUP else wanted.value
    return f"{KINDS[wanted.kind]}={value}"


def _answer(cluster: Cluster, host: str, words: str) -> dict[str, Any]:
    command = f"relay-backups scratch {words} --json"
    answer = cluster.run(host, command, seconds=PATIENCE_SECONDS)
    try:
        found = dict(json.loads(answer.out))
    except ValueError:
        raise HostFailed(f"{host}: {command}: {answer.words}") from None
    if "error" in found:
        raise DeployError(str(found["error"]))
    return found


def _made(session: Session, made: Mapping[str, Any]) -> list[str]:
    if "show" in made:
        return [_screen(session, made["show"])]
    query = f"sudo -u postgres psql -h {made['socket']} relay"
    return [
        f"restored from backup {made['backup']} up to {made['lsn']}, last transaction "
        f"{made['last_transaction_at'] or 'none was replayed'}",
        f"look at it on {ops(session.cluster)}: {query}",
    ]


def _screen(session: Session, shown: Mapping[str, Any]) -> str:
    own = f"python -m backups restore {session.cluster.environment}"
    over = f"{own} --over-cluster {session.cluster.name} --to-lsn {shown['lsn']} --exclusive"
    view = shown["view"]
    lines = [
        f"paused at {shown['lsn']} ({shown['goal']}), from backup {shown['backup']}",
        f"  last transaction: {_transaction(shown['last'])}",
        f"  next transaction: {_transaction(shown['next'])}",
        "accounts that moved last, in $:",
        *(
            f"  {a['id']:>6} {a['name']:<24} balance {_usd(a['balance'])}  held {_usd(a['held'])}"
            for a in view["accounts"]
        ),
        "last entries:",
        *(f"  {_entry(entry)}" for entry in view["entries"]),
    ]
    if shown["before_lsn"]:
        lines.append(f"against {shown['before_lsn']}:")
        lines += [f"  {one['id']:>6} {one['name']:<24} {_sides(one)}" for one in shown["changed"]] or [
            "  no account differs"
        ]
    return "\n".join(
        [
            *lines,
            "Next:",
            f"  one transaction on, or back:  {own} --forward  |  --back  (--by SECONDS)",
            f"  this state for the cluster:   {over}",
            f"  or away with it:              {own} --drop --yes",
        ]
    )


def _usd(nanodollars: int) -> str:
    sign, whole = ("-" if nanodollars < 0 else ""), abs(nanodollars)
    return f"{sign}{whole // NANO}.{whole % NANO:09d}"


def _transaction(told: Mapping[str, Any] | None) -> str:
    return f"{told['xid']} at {told['at']}, LSN {told['lsn']}" if told else "none is near"


def _entry(entry: Mapping[str, Any]) -> str:
    return "  ".join(f"{name} {value}" for name, value in entry.items() if value not in (None, ""))


def _sides(one: Mapping[str, Any]) -> str:
    names = [name for name in ("balance", "held", "debt") if name in one]
    return ", ".join(
        f"{name} {' → '.join('none' if side is None else _usd(side) for side in one[name])}" for name in names
    )

"""``python -m backups failover``: a primary where there is none."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping
from typing import Any

from backups.cluster import SCOPE
from backups.command import Command
from backups.core.wal import format_lsn
from backups.danger import Call, Check, Outcome, Plan, Session, Step, carry_out

FORCE = "I accept that acknowledged writes may be lost"
WAIT_SECONDS = 120


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to", metavar="MEMBER", help="the new primary (default: the one with the highest LSN)"
    )
    parser.add_argument("--force", metavar="WORDS", help=f"where checks fail: the words {FORCE!r}")


def _run(session: Session) -> Outcome:
    cluster, options = session.cluster, session.options
    leader = cluster.leader()
    asked = cluster.everywhere(cluster.db, lambda host: _state(session, host))
    states = {host: found for host, found in asked.items() if found}
    sync = _sync(session, list(states))
    confirmed = _confirmed(sync)
    may = [host for host in states if host in confirmed]
    best = max(may or states, key=lambda host: states[host]["lsn"], default="")
    chosen = options.to or best
    forced = options.force == FORCE
    checks = [
        Check("the words of --force are exact", "" if options.force in (None, FORCE) else f"write {FORCE!r}"),
        Check(
            "there is no primary",
            f"{leader.name} is primary: use `switchover`" if leader and not forced else "",
        ),
        Check(
            f"{chosen or 'a member'} answers and has data",
            "" if chosen in states else f"members that answer: {', '.join(states) or 'none'}",
        ),
        Check(
            f"{chosen or 'a member'} is among those that confirm writes",
            ""
            if forced or chosen in confirmed
            else f"they are: {', '.join(confirmed) or 'not known'}; see --force",
        ),
        Check(
            f"{chosen or 'a member'} has the highest LSN",
            "" if forced or chosen == best else f"{best} has more: leave --to out",
        ),
        Check(
            "every member that may have confirmed a write answers",
            ""
            if forced or set(confirmed) <= set(states) | {_old_leader(sync)}
            else f"silent: {', '.join(sorted(set(confirmed) - set(states)))}; start it, or see --force",
        ),
    ]
    command = f"patronictl failover {SCOPE} --candidate {shlex.quote(chosen)} --force"

    def wait() -> None:
        session.wait(f"{chosen} takes writes", WAIT_SECONDS, lambda: cluster.takes_writes(chosen))

    lost = "; ".join(f"{host} {state['text']}" for host, state in sorted(states.items())) or "none is known"
    plan = Plan(
        target=f"{cluster.name}: {chosen or 'nobody'}",
        checks=checks,
        steps=[
            Step(f"Make {chosen} the primary", [Call(chosen or cluster.db[0], command)], seconds=4),
            Step(f"Wait until {chosen} takes writes", [], wait, 6),
        ],
        undo=f"python -m backups switchover {cluster.environment}, once the members stream",
        destroys=f"what members have behind the LSN of {chosen or 'the new primary'}",
        notes=(
            f"LSN of each member: {lost}",
            f"what is not on {chosen} is lost, where it was acknowledged or not",
        ),
    )
    return carry_out(session, plan)


def _state(session: Session, host: str) -> dict[str, Any] | None:
    """LSN of a member that answers: what it has received or written."""
    answer = session.cluster.run(host, session.cluster.rest(host, "patroni"), seconds=15)
    try:
        xlog = json.loads(answer.out).get("xlog", {}) if answer.ok else {}
    except ValueError:
        return None
    found = [
        int(xlog[name]) for name in ("location", "received_location", "replayed_location") if xlog.get(name)
    ]
    if not found:
        return None
    return {"lsn": max(found), "text": format_lsn(max(found))}


def _sync(session: Session, hosts: list[str]) -> dict[str, Any]:
    """What Patroni's key /sync names: the old primary, and whose confirmation counts."""
    for host in hosts or list(session.cluster.db):
        answer = session.cluster.run(host, "relay-etcdctl get --print-value-only /db/relay/sync", seconds=20)
        if answer.ok and answer.out.strip():
            return dict(json.loads(answer.out))
    return {}


def _confirmed(said: Mapping[str, Any]) -> list[str]:
    """Members whose confirmation Patroni counts, the old primary among them."""
    names = [_old_leader(said), *str(said.get("sync_standby") or "").split(",")]
    return [name for name in dict.fromkeys(names) if name]


def _old_leader(said: Mapping[str, Any]) -> str:
    return str(said.get("leader") or "")


COMMAND = Command(
    name="failover",
    summary="make a member the primary where there is none",
    example='failover production --reason "db1 is gone" --yes',
    run=_run,
    options=_options,
    acts=True,
    description="Patroni does this by itself within half a minute; this is for when it cannot.",
)

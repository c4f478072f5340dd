"""``python -m backups rebuild``: the site is lost; from repository, secrets and bucket the fleet again.

It runs the commands that a person would run, one after the other. Each can be interrupted and run again, and
what is due is looked at anew: after a restore that is finished, it is not restored a second time.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from backups.cluster import Cluster, HostFailed
from backups.command import Command
from backups.commands import restore
from backups.danger import Check, Outcome, Plan, Session, Step, carry_out, exact_name, moment
from backups.host.stanza import FOREIGN
from backups.repository import psql

ANSWER_SECONDS = 20
STANZA_SECONDS = 180
APPLY_SECONDS, BACKUP_SECONDS, RESTORE_SECONDS = 300, 30, 60
# The last role whose work a restore needs.
LAST_ROLE = "postgres"
HELD = "select count(*) || ' ' || coalesce(sum(amount), 0) from holds where state = 'held'"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--over-cluster", metavar="NAME", help="the cluster's exact name: ENV/relay, e.g. production/relay"
    )
    parser.add_argument(
        "--lost-at",
        metavar="TIME",
        help="when the site was lost, e.g. 2026-11-26T05:00:00Z: the gap ends there (default: now)",
    )


def _run(session: Session) -> Outcome:
    cluster, options = session.cluster, session.options
    lost_at = moment("--lost-at", options.lost_at) if options.lost_at else datetime.now(UTC)
    restored = _is_restored(cluster)
    plan = Plan(
        target=f"{cluster.name} and the fleet with it",
        checks=[
            exact_name(options.over_cluster, cluster.name, "--over-cluster"),
            Check("every host of the inventory answers", _silent(cluster)),
        ],
        steps=[],
        undo=f"none; data that the database hosts had is in {cluster.data_directory}.before-restore-*",
        destroys="" if restored else f"what {cluster.name} holds now; kept on the hosts",
        notes=["the cluster is restored already; what follows that is done again"] if restored else [],
    )

    def count() -> None:
        plan.result.update(_lost(cluster, lost_at))

    database, rest = _steps(session)
    # Counted before the relay runs: its sweeper would end the calls that are to be counted.
    plan.steps = [*([] if restored else database), Step("Count what was lost", act=count), *rest]
    plan.summary = lambda: _told(plan.result)
    return carry_out(session, plan, locked=False)


def _steps(session: Session) -> tuple[list[Step], list[Step]]:
    """What brings the database back, and what follows."""
    environment = session.cluster.environment
    restoring = ["backups", "restore", environment, "--over-cluster", session.cluster.name, "--yes"]
    reason = ["--reason", session.options.reason or "the site is lost"]
    steps = [
        (
            "Set the hosts up as far as the database",
            ["deploys", "apply", environment, "--until", LAST_ROLE],
            APPLY_SECONDS,
        ),
        ("Restore the last transaction in the archive", [*restoring, *reason], RESTORE_SECONDS),
        ("Set up all that stands on the database", ["deploys", "apply", environment], APPLY_SECONDS),
        ("Make a backup", ["backups", "backup", environment, "--yes", *reason], BACKUP_SECONDS),
    ]
    made = [
        Step(f"{what}: {_shown(words)}", act=_running(session, words), seconds=seconds)
        for what, words, seconds in steps
    ]
    return made[:2], made[2:]


def _shown(words: Sequence[str]) -> str:
    return f"python -m {shlex.join(words)}"


def _running(session: Session, words: Sequence[str]) -> Callable[[], None]:
    def act() -> None:
        # With --json standard output belongs to the answer.
        out = sys.stderr if session.options.json else None
        done = subprocess.run([sys.executable, "-m", *words], stdout=out, check=False)
        if done.returncode:
            raise HostFailed(
                f"`{_shown(words)}` ended with {done.returncode}; its reason stands above. Mend it, and run "
                "this again: it goes on there"
            )

    return act


def _silent(cluster: Cluster) -> str:
    hosts = sorted({host for group in cluster.groups.values() for host in group})
    answers = cluster.everywhere(hosts, lambda host: cluster.run(host, "true", seconds=ANSWER_SECONDS).ok)
    silent = [host for host, answered in answers.items() if not answered]
    return f"{', '.join(silent)}: put the new hosts' addresses into the inventory" if silent else ""


def _is_restored(cluster: Cluster) -> bool:
    """Whether a primary runs whose backups the repository holds, and no restore is half done."""
    leader = cluster.leader()
    if leader is None:
        return False
    asked = cluster.run(leader.name, "relay-backups stanza --check", seconds=STANZA_SECONDS)
    journal = _journal(cluster)
    return asked.ok and FOREIGN not in asked.out and (journal is None or journal["finished"])


def _journal(cluster: Cluster) -> Mapping[str, Any] | None:
    """The newest restore that a database host remembers."""
    look = restore.part("look", cluster.data_directory)
    answers = cluster.everywhere(cluster.db, lambda host: cluster.run(host, look)).values()
    return restore.newest_journal(json.loads(answer.out) for answer in answers if answer.ok)


def _lost(cluster: Cluster, lost_at: datetime) -> dict[str, Any]:
    """The last transaction, the seconds from it to the loss, and the calls that the sweeper will end."""
    journal, leader = _journal(cluster), cluster.leader()
    if leader is None:
        raise HostFailed("no database host is primary: see `python -m backups status`")
    at = restore.last_transaction(cluster, journal["first"], journal["identity"]) if journal else None
    gap = round((lost_at - datetime.fromisoformat(at)).total_seconds(), 1) if at else None
    calls, amount = cluster.output(leader.name, psql(HELD, "relay")).split()
    return {
        "last_transaction_at": at,
        "lost_at": lost_at.isoformat(timespec="seconds"),
        "gap_seconds": gap,
        "held_calls": int(calls),
        "held_nanodollars": int(amount),
    }


def _told(result: dict[str, Any]) -> list[str]:
    at = result["last_transaction_at"]
    gap = f"lost: what was committed in the {result['gap_seconds']} s from then to {result['lost_at']}"
    return [
        f"last transaction: {at}\n{gap}" if at else "last transaction: the backup's own end",
        f"calls that ran then: {result['held_calls']}, holding {result['held_nanodollars']} n$; the sweeper "
        "ends each when its time is over",
    ]


COMMAND = Command(
    name="rebuild",
    summary="the site is lost: set up new hosts, restore, start all again, say what was lost",
    example='rebuild production --over-cluster production/relay --yes --reason "site lost"',
    run=_run,
    options=_options,
    acts=True,
    description=(
        "Needs this repository, the secrets file with its key, the bucket, and hosts in the inventory under\n"
        "the names of the old ones. Interrupted or failed, it goes on when it is run again."
    ),
)

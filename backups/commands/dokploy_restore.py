"""``python -m backups dokploy-restore``: Dokploy's own state from the bucket, on this node or another one.

Dokploy is one service with one database on the node that has its label: when that is lost, this brings both
back elsewhere. What Dokploy has deployed goes on running under Swarm meanwhile, and is not touched.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pyinfra.context import inventory

from backups.cluster import Cluster, HostFailed
from backups.command import Command
from backups.danger import Call, Check, Outcome, Plan, Session, Step, carry_out, exact_name
from deploys.lib import own_dokploy, tunnel
from deploys.lib.errors import DeployError

TOOL = "/usr/local/sbin/relay-dokploy"
LOOK_SECONDS, UP_SECONDS = 60, 1000
RESTORE_SECONDS = 3600


@dataclass(frozen=True)
class Look:
    """What the node that gets it says: nodes of the swarm, those with the label, what the swarm lacks,
    backups (newest first)."""

    nodes: tuple[str, ...] = ()
    labelled: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    backups: tuple[Mapping[str, Any], ...] = ()
    problem: str = ""

    def backup(self, key: str) -> Mapping[str, Any]:
        """The backup of that key, the newest one for ""; empty when there is none."""
        return next((one for one in self.backups if key in ("", one["key"])), {})


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--node", metavar="NAME", help="where Dokploy shall run: the host of group `dokploy`")
    parser.add_argument("--over", metavar="NAME", help="the exact name: ENV/dokploy, e.g. production/dokploy")
    parser.add_argument("--backup", metavar="KEY", default="", help="which one; default: the newest")


def _run(session: Session) -> Outcome:
    cluster, options = session.cluster, session.options
    node, stamp = options.node or "", datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    look = _look(cluster, node)
    chosen = look.backup(options.backup)
    others = [host for host in cluster.groups.get("app", ()) if host != node]
    silent = [host for host in others if not cluster.run(host, "true", seconds=20).ok]
    plan = Plan(
        target=f"{_name(cluster)} on {node}",
        checks=_checks(session, look, chosen),
        steps=_steps(session, node, look, str(chosen.get("key", "")), others, silent, stamp),
        undo=_undo(look, str(chosen.get("host", "the node of before")), node, stamp),
        destroys=f"what {_name(cluster)} holds now; it is kept on its host, renamed",
        notes=_notes(chosen, silent),
    )
    plan.summary = lambda: [
        *([plan.result["proof"]] if "proof" in plan.result else []),
        f"`python -m deploys apply {cluster.environment}` does the rest: the way in, backups, the monitoring",
    ]
    if node:
        plan.steps = [*plan.steps, Step("Prove it by its API", act=_prove(plan, node), seconds=10)]
    return carry_out(session, plan)


def _name(cluster: Cluster) -> str:
    return f"{cluster.environment}/dokploy"


def _look(cluster: Cluster, node: str) -> Look:
    if node not in cluster.groups.get("app", ()):
        return Look(problem=f"--node {node or '…'}: name a host of `app`")
    answer = cluster.run(node, f"{TOOL} look", seconds=LOOK_SECONDS)
    if not answer.reached:
        return Look(problem=f"{node} does not answer")
    try:
        said = json.loads(answer.out) if answer.ok else None
    except ValueError:
        said = None
    if not isinstance(said, dict):
        return Look(
            problem=f"{node} says: {answer.words}; `python -m deploys apply {cluster.environment}` puts the "
            "program there (it stops at Dokploy, and names this command)"
        )
    nodes, labelled, missing = (tuple(said[name]) for name in ("nodes", "labelled", "missing"))
    return Look(nodes, labelled, missing, tuple(said["backups"]))


def _checks(session: Session, look: Look, chosen: Mapping[str, Any]) -> list[Check]:
    cluster, options = session.cluster, session.options
    named = cluster.groups.get("dokploy", ())
    first = [
        exact_name(options.over, _name(cluster), "--over"),
        Check("the node answers and has the program", look.problem),
        Check(
            "the inventory names that node",
            ""
            if named == (options.node,)
            else f'write dokploy = ["{options.node}"] into inventories/{cluster.environment}.py, or the next '
            "apply moves the label back",
        ),
    ]
    if look.problem:
        return first
    wanted = options.backup or "the newest backup"
    has = ", ".join(one["key"] for one in look.backups) or "none"
    return [
        *first,
        Check("the node manages the swarm", "" if look.nodes else "it is no manager: name one that is"),
        Check(
            "network and secrets are in the swarm",
            f"{', '.join(look.missing)}: `python -m deploys apply {cluster.environment}` makes them"
            if look.missing
            else "",
        ),
        Check(f"the bucket has {wanted}", "" if chosen else f"it has: {has}"),
    ]


def _steps(
    session: Session, node: str, look: Look, key: str, others: list[str], silent: list[str], stamp: str
) -> list[Step]:
    aside = f"[ ! -x {TOOL} ] || {TOOL} set-aside {stamp}"
    away = [name for name in look.labelled if name != node]
    labels = [f"docker node update --label-rm dokploy {shlex.quote(name)}" for name in away]
    labels.append(f"docker node update --label-add dokploy=true {shlex.quote(node)}")
    answering = [Call(host, aside, 180) for host in others if host not in silent]
    return [
        Step("Stop Dokploy; what it deployed goes on", [Call(node, f"{TOOL} down", 300)], seconds=15),
        Step(
            "Rename the state on other hosts, so that nothing starts on it",
            answering,
            act=lambda: _wait_until_let_go(session, answering),
        ),
        Step("Move the label", [Call(node, label) for label in labels]),
        Step(
            f"Restore {key or '…'}",
            [Call(node, f"{TOOL} restore {shlex.quote(key)} {stamp}", RESTORE_SECONDS)],
            seconds=60,
        ),
        Step("Start Dokploy", [Call(node, f"{TOOL} up dokploy", UP_SECONDS)], seconds=60),
    ]


def _wait_until_let_go(session: Session, calls: list[Call]) -> None:
    session.wait("other hosts to let go of it", 300, lambda: _let_go(session, calls))


def _let_go(session: Session, calls: list[Call]) -> bool:
    """Whether all have renamed it; where a container still stops it is asked again."""
    answers = [session.cluster.run(call.host, call.command, seconds=call.seconds) for call in calls]
    return all(answer.ok for answer in answers)


def _prove(plan: Plan, node: str) -> Callable[[], None]:
    def act() -> None:
        try:
            plan.result["proof"] = prove(node)
        except DeployError as error:
            raise HostFailed(
                f"Dokploy runs on {node}, and does not prove itself: {error}. A key that is younger than the "
                "backup is made anew by `python -m deploys dokploy key ENV`"
            ) from None

    return act


def prove(node: str) -> str:
    """Signs in at the node's Dokploy and shows it the API key; what was seen."""
    with tunnel.to(inventory.get_host(node), own_dokploy.PORT) as port:
        return own_dokploy.prove(port)


def _notes(chosen: Mapping[str, Any], silent: list[str]) -> list[str]:
    notes = (
        [f"of {chosen.get('host', '?')}, {chosen.get('made', '?')}: what came later is lost"]
        if chosen
        else []
    )
    return notes + [
        f"{host} does not answer: should it come back, nothing of Dokploy starts there without the label; "
        f"before it ever gets that again, run `sudo {TOOL} set-aside old` there"
        for host in silent
    ]


def _undo(look: Look, made_on: str, node: str, stamp: str) -> str:
    old = next((name for name in look.labelled if name != node), made_on)
    renamed = [
        f"{path}.before-restore-{stamp}" for path in ("/etc/dokploy", "/var/lib/relay-dokploy/postgres")
    ]
    return (
        f"on {node} `sudo {TOOL} down` and `sudo {TOOL} set-aside undone`; on {old} rename "
        f"{' and '.join(renamed)} back (where an earlier try has renamed them, each is the newest "
        f"`.before-restore-*` of a date there); then name {old} in `dokploy` of the inventory, and apply"
    )


COMMAND = Command(
    name="dokploy-restore",
    summary="Dokploy's own state from the bucket, on this node or another one",
    example=(
        'dokploy-restore production --node app2 --over production/dokploy --yes --reason "app1 is lost"'
    ),
    run=_run,
    options=_options,
    acts=True,
    description=(
        "Moves the label, restores database and files, starts Dokploy and proves it by its API. First name\n"
        "the node in the inventory's group `dokploy` and run `apply`, which stops there. deploys/RUNBOOK.md."
    ),
)

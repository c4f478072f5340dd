"""``python -m backups reinit``: a member that is beyond repair is made anew from the primary."""

from __future__ import annotations

import argparse
import shlex

from backups.cluster import SCOPE, Cluster, Member, leader_of
from backups.command import Command
from backups.danger import Call, Check, Outcome, Plan, Session, Step, carry_out

PATIENCE_SECONDS = 6 * 3600


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("member", metavar="MEMBER", help="its exact name, which `status` shows")


def _run(session: Session) -> Outcome:
    cluster, name = session.cluster, session.options.member
    members = cluster.members()
    plan = Plan(
        target=f"{cluster.name}: {name}",
        checks=checks(members, name),
        steps=steps(session, cluster, name),
        undo="none is needed: the primary has all that the member had and that counts",
        destroys=f"the data directory of {name}",
    )
    return carry_out(session, plan)


def checks(members: list[Member], name: str) -> list[Check]:
    """What must hold before a member's data may be thrown away."""
    leader = leader_of(members)
    others = [member.name for member in members if member.name != name and member.well]
    known = ", ".join(member.name for member in members) or "none"
    found = next((member for member in members if member.name == name), None)
    wrong = "" if found else f"members are: {known}; where Patroni does not run, see `rejoin`"
    if found and found.leads:
        wrong = "it is the primary, whose data is never thrown away; see `switchover`"
    return [
        Check("there is a primary to copy from", "" if leader else "none: see `status`"),
        Check(f"{name} is a member and not the primary", wrong),
        Check("a member other than this one is well", "" if others else "none is: see `status`"),
    ]


def steps(session: Session, cluster: Cluster, name: str) -> list[Step]:
    """Make the member anew and wait until it streams."""
    host = name if name in cluster.addresses else cluster.db[0]
    command = f"patronictl reinit {SCOPE} {shlex.quote(name)} --force --wait"
    call = Call(host, command, seconds=PATIENCE_SECONDS)

    def wait() -> None:
        session.wait(f"{name} streams", 300, lambda: cluster.streams(name))

    return [
        Step(f"Make {name} anew from the primary", [call], seconds=20),
        Step(f"Wait until {name} streams", [], wait, 5),
    ]


COMMAND = Command(
    name="reinit",
    summary="make a member anew from the primary",
    example='reinit production db2 --reason "its disk was replaced" --yes',
    run=_run,
    options=_options,
    acts=True,
)

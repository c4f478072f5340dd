"""``python -m backups rejoin``: an old primary or a failed member comes back."""

from __future__ import annotations

import argparse

from backups.cluster import Member, leader_of
from backups.command import Command
from backups.commands import reinit
from backups.danger import Call, Check, Late, Outcome, Plan, Session, Step, carry_out

# pg_rewind of a large database; a member that has not come back by then is made anew.
REWIND_SECONDS = 300


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("member", metavar="MEMBER", help="its exact name: the database host's")


def _run(session: Session) -> Outcome:
    cluster, name = session.cluster, session.options.member
    members = cluster.members()
    plan = Plan(
        target=f"{cluster.name}: {name}",
        checks=_checks(session, members, name),
        steps=_steps(session, name),
        undo="none is needed: what the member had and others lack was never acknowledged",
        destroys=f"what {name} wrote and no other member has",
        notes=("Patroni rewinds the member; where that fails, it is made anew from the primary",),
    )
    return carry_out(session, plan)


def _checks(session: Session, members: list[Member], name: str) -> list[Check]:
    cluster = session.cluster
    leader = leader_of(members)
    known = name in cluster.db
    wrong = "" if known else f"database hosts are: {', '.join(cluster.db)}"
    if leader and leader.name == name:
        wrong = "it is the primary already"
    elif any(member.name == name and member.state == "streaming" for member in members):
        wrong = "it streams already"
    there = known and cluster.run(name, "true", seconds=15).ok
    held = "test ! -e /var/lib/relay-restore/hold"
    free = not there or cluster.run(name, held).ok
    return [
        Check("there is a primary to follow", "" if leader else "none: see `status`"),
        Check(f"{name} is a database host that is not in the cluster", wrong),
        Check(f"{name} answers", "" if there or not known else "start the host first"),
        Check(
            f"no unfinished restore holds {name}", "" if free else "finish it: run the same `restore` again"
        ),
    ]


def _steps(session: Session, name: str) -> list[Step]:
    cluster = session.cluster

    def come_back() -> None:
        try:
            session.wait(f"{name} rewinds and streams", REWIND_SECONDS, lambda: cluster.streams(name))
        except Late:
            session.progress(f"  {name} does not rewind: making it anew")
            for step in reinit.steps(session, cluster, name):
                session.perform(step)

    start = "systemctl reset-failed patroni.service; systemctl restart patroni.service"
    return [
        Step(f"Start Patroni on {name} anew", [Call(name, start)], seconds=5),
        Step(f"Wait until {name} streams; else make it anew", [], come_back, 20),
    ]


COMMAND = Command(
    name="rejoin",
    summary="bring an old primary or a failed member back: rewind it, or else make it anew",
    example='rejoin production db1 --reason "the host is back" --yes',
    run=_run,
    options=_options,
    acts=True,
)

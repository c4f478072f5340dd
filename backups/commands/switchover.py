"""``python -m backups switchover``: another member becomes the primary, without loss."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Sequence

from backups.cluster import SCOPE, Member, leader_of
from backups.command import Command
from backups.danger import Call, Check, Outcome, Plan, Session, Step, carry_out

WAIT_SECONDS = 90
REST_SECONDS = 60


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to", metavar="MEMBER", help="the new primary (default: the best confirmed standby)"
    )


def _run(session: Session) -> Outcome:
    members = session.cluster.members()
    leader = leader_of(members)
    candidate = _candidate(members, session.options.to)
    old = leader.name if leader else "nobody"
    new = candidate.name if candidate else session.options.to or "nobody"
    plan = Plan(
        target=f"{session.cluster.name}: {old} → {new}",
        checks=_checks(members, leader, candidate, session.options.to),
        steps=[],
        undo=f"python -m backups switchover {session.cluster.environment} --to {old} --yes",
        notes=("calls that write wait for the new primary, as a rule less than 3 s",),
    )
    plan.steps = _steps(session, plan, old, new)
    plan.summary = lambda: [
        f"{new} is the primary; handing over took {plan.result['switched_seconds']} s until it took writes"
    ]
    return carry_out(session, plan)


def _candidate(members: Sequence[Member], wanted: str | None) -> Member | None:
    """The wanted member, or of the confirmed standbys the one that is least behind."""
    if wanted:
        return next((member for member in members if member.name == wanted), None)
    able = [member for member in members if member.confirms]
    return min(able, key=lambda member: (member.lag is None, member.lag or 0, member.name), default=None)


def _checks(
    members: Sequence[Member], leader: Member | None, candidate: Member | None, wanted: str | None
) -> list[Check]:
    missing = "no Patroni answers: see `status`" if not members else "none: see `failover`"
    able = [member.name for member in members if member.confirms]
    known = ", ".join(member.name for member in members) or "none"
    if candidate is None:
        found = f"there are: {known}" if wanted else "none streams: bring one back, see `status`"
    elif candidate.leads:
        found = "it is the primary already"
    elif not candidate.confirms:
        found = f"it is {candidate.role}, {candidate.state}; choose one of: {', '.join(able) or 'none'}"
    else:
        found = ""
    name = wanted or (candidate.name if candidate else "a standby")
    return [
        Check("there is a primary", "" if leader else missing),
        Check(f"{name} is a member that has confirmed every acknowledged write", found),
    ]


def _steps(session: Session, plan: Plan, old: str, new: str) -> list[Step]:
    cluster = session.cluster
    # On the new primary's host: it answers whatever becomes of the old one. `--force` only means: do not ask.
    # What ends is told by Patroni's interface, whose /primary answers when writes are taken.
    switch = (
        f"patronictl switchover {SCOPE} --leader {shlex.quote(old)} --candidate {shlex.quote(new)} --force"
    )
    hand_over = Call(new if new in cluster.addresses else cluster.db[0], switch, seconds=WAIT_SECONDS)

    def act() -> None:
        begin = time.monotonic()
        session.call(hand_over)
        session.wait(f"{new} takes writes", WAIT_SECONDS, lambda: cluster.takes_writes(new))
        plan.result["switched_seconds"] = round(time.monotonic() - begin, 1)

    def rest() -> None:
        def well() -> bool:
            members = cluster.members()
            return bool(members) and all(member.well for member in members)

        session.wait("every member streams", REST_SECONDS, well)
        plan.result["members"] = {member.name: member.role for member in cluster.members()}

    return [
        Step(f"Hand over from {old} to {new}", [hand_over], act, seconds=4),
        Step("Wait until every member streams from the new primary", [], rest, seconds=8),
    ]


COMMAND = Command(
    name="switchover",
    summary="make another member the primary, without loss",
    example="switchover production --to db2 --yes",
    run=_run,
    options=_options,
    acts=True,
    description="Without --to the confirmed standby that is least behind. Refused when none has confirmed.",
)

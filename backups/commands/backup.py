"""``python -m backups backup``: a full backup now, checked afterwards."""

from __future__ import annotations

from backups.command import Command
from backups.core.repository import Stanza
from backups.danger import Call, Check, Outcome, Plan, Session, Step, carry_out
from backups.repository import a_host, stanza

PATIENCE_SECONDS = 24 * 3600


def _run(session: Session) -> Outcome:
    cluster = session.cluster
    leader = cluster.leader()
    host = leader.name if leader else a_host(cluster)
    before = stanza(cluster, host)
    newest = before.good()[-1] if before.good() else None
    made = Call(host, "relay-backups backup", seconds=PATIENCE_SECONDS)
    plan = Plan(
        target=f"{cluster.name} on {host}",
        checks=[
            Check("there is a primary", "" if leader else "none: see `status`"),
            Check("no backup runs already", "one does: wait for it, `list` shows it" if before.busy else ""),
        ],
        steps=[],
        undo="none is needed: retention drops backups that no rule keeps",
    )

    def act() -> None:
        session.call(made)
        plan.result["backup"] = _new(before, stanza(cluster, host))

    seconds = newest.stopped - newest.started + 10 if newest else 60
    plan.steps = [Step(f"Back {host} up and check the backup", [made], act, seconds)]
    plan.summary = lambda: [f"backup {plan.result['backup']} is whole"]
    return carry_out(session, plan)


def _new(before: Stanza, after: Stanza) -> str:
    known = {one.label for one in before.backups}
    return next((one.label for one in reversed(after.backups) if one.label not in known), "")


COMMAND = Command(
    name="backup",
    summary="make a full backup now and check it",
    example='backup production --yes --reason "before the release"',
    run=_run,
    acts=True,
)

"""``python -m backups retention``: drop the backups that no rule keeps, from the ops host."""

from __future__ import annotations

from backups.command import Command
from backups.danger import Call, Check, Outcome, Plan, Refused, Session, Step, carry_out

LOOK_SECONDS = 600
PATIENCE_SECONDS = 24 * 3600


def _run(session: Session) -> Outcome:
    cluster = session.cluster
    if not cluster.groups.get("ops"):
        raise Refused("the inventory has no ops host, which alone may delete backups: add one to group `ops`")
    host = cluster.groups["ops"][0]
    looked = cluster.run(host, "relay-backups retention", seconds=LOOK_SECONDS)
    lines = looked.out.strip().splitlines()
    dropped = [line.split()[2].rstrip(":") for line in lines if line.startswith("would drop ")]
    plan = Plan(
        target=f"{cluster.name}: {', '.join(dropped) or 'nothing to drop'}",
        checks=[Check("retention may drop something", "" if looked.ok else f"{host}: {looked.words}")],
        steps=[
            Step(
                "Drop what no rule keeps, once the repository is known to be whole",
                [Call(host, "relay-backups retention --yes", seconds=PATIENCE_SECONDS)],
                seconds=60,
            )
        ],
        undo="none: dropped backups are gone, unless the bucket keeps versions",
        destroys=f"backups {', '.join(dropped)}" if dropped else "",
        notes=lines,
    )
    plan.result.update({"dropped": dropped})
    return carry_out(session, plan)


COMMAND = Command(
    name="retention",
    summary="drop the backups that no rule keeps (7 daily, 4 weekly, 6 monthly)",
    example='retention production --yes --reason "the bucket grows"',
    run=_run,
    acts=True,
)

"""``python -m backups drill``: a random point restored beside the fleet and proven; or a month's receipts."""

from __future__ import annotations

import argparse
import json

from backups.cluster import HostFailed
from backups.command import Command
from backups.commands.scratch import ops
from backups.core.receipts import ReceiptError, month_of, page
from backups.danger import DONE, FAILED, Call, Outcome, Plan, Refused, Session, Step, carry_out
from backups.host.drill import kept as checked
from backups.signing import public_key

PATIENCE_SECONDS = 120


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, metavar="N", help="the same point again (default: a random one)")
    parser.add_argument("--page", metavar="MONTH", help="instead: the receipts of a month, e.g. 2026-11")


def _run(session: Session) -> Outcome:
    return _page(session, session.options.page) if session.options.page else _drill(session)


def _drill(session: Session) -> Outcome:
    cluster, host = session.cluster, ops(session.cluster)
    seed = f" --seed {session.options.seed}" if session.options.seed is not None else ""
    call = Call(host, f"relay-backups drill run --json{seed}")
    plan = Plan(
        target=f"{cluster.name}, beside it on {host}",
        checks=[],
        steps=[],
        undo="none is needed: what was restored is removed, the receipt stays",
    )

    def act() -> None:
        last = ""
        try:
            for line in cluster.lines(host, f"{call.command} 2>&1"):
                last = line.strip()
                if not last.startswith("{"):
                    session.progress(f"  {last}")
        except HostFailed:
            if not last.startswith("{"):
                raise
        plan.result["receipt"] = json.loads(last)
        if problems := plan.result["receipt"]["problems"]:
            raise HostFailed(f"the drill failed: {'; '.join(problems)}")

    plan.steps = [Step("Restore a random point, prove it, remove it", [call], act, seconds=60)]
    plan.summary = lambda: _told(plan)
    return carry_out(session, plan)


def _told(plan: Plan) -> list[str]:
    receipt = plan.result["receipt"]
    return [
        f"proven: {receipt['goal']} from backup {receipt['backup']}, seed {receipt['seed']}",
        f"writable after {receipt['rto_seconds']} s; the archive was {receipt['rpo_seconds']} s behind",
        *(f"  ✔ {check['name']}: {check['detail']}" for check in receipt["checks"]),
    ]


def _page(session: Session, wanted: str) -> Outcome:
    cluster, host = session.cluster, ops(session.cluster)
    try:
        month = month_of(wanted)
    except ReceiptError as error:
        raise Refused(f"--page: {error}") from None
    command = f"relay-backups drill receipts --month {month} --json"
    found = json.loads(cluster.output(host, command, seconds=PATIENCE_SECONDS))
    public = public_key()
    kept = [checked(one, public) for one in found]
    bad = [one for one in kept if one.refused]
    data = {
        "outcome": "failed" if bad else "done",
        "receipts": [
            {"name": one.name, "ok": bool(one.receipt and one.receipt.ok), "refused": one.refused}
            for one in kept
        ],
    }
    return Outcome(FAILED if bad else DONE, data, page(cluster.environment, month, kept))


COMMAND = Command(
    name="drill",
    summary="restore a random point beside the fleet, prove it, remove it; or show a month's receipts",
    example="drill production --yes",
    run=_run,
    options=_options,
    acts=True,
    description=(
        "Proven are the ledger's sums, charges derived again, and every page and index. The timer does the\n"
        "same. --page 2026-11 prints the month's page; each receipt's signature is checked."
    ),
)

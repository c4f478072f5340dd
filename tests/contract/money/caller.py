"""A replica's worth of callers: holds and captures until nothing is left, then prints what it got.

Run as a process by the tests: python -m tests.contract.money.caller DSN '{"account": 1, "callers": 67, ...}'
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from typing import Any

from relay.ledger.errors import BudgetExceeded, InsufficientCredit, LedgerError
from relay.ledger.ledger import Ledger
from tests.contract.money.books import METERS, capture, order


async def _caller(ledger: Ledger, plan: dict[str, Any], counts: Counter[str]) -> None:
    for _ in range(plan["calls"]):
        quotas = plan.get("quotas", {})
        try:
            hold = await ledger.hold(order(plan["account"], token=plan.get("token"), quotas=quotas))
        except (InsufficientCredit, BudgetExceeded) as refusal:
            counts[type(refusal).__name__] += 1
            continue
        counts["held"] += 1
        print("held", flush=True)
        await asyncio.sleep(plan.get("call_seconds", 0.01))
        try:
            charge = await ledger.capture(capture(hold, dict(METERS)))
            counts["charged"] += charge
            counts["captured"] += 1
        except LedgerError as failure:
            counts[type(failure).__name__] += 1


async def _main(dsn: str, plan: dict[str, Any]) -> None:
    ledger = Ledger(dsn)
    await ledger.start()
    counts: Counter[str] = Counter()
    await asyncio.gather(*(_caller(ledger, plan, counts) for _ in range(plan["callers"])))
    await ledger.close()
    print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], json.loads(sys.argv[2])))

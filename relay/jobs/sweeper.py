"""Ends what crashes left.

The rule: a hold whose expiry has passed was left by a relay that died, or that could not reach the
database for longer than it retries. A capture is durable before a call's last byte is sent, so this call
was not delivered in full. Its hold is released in full and the customer is charged nothing. The usage
record says so: outcome "swept", the amount that was held, no usage. What the provider may bill for such
calls shows as the difference between its books and ours, bounded by the swept records' held amounts.
"""

from typing import Any

from psycopg import AsyncConnection

from relay.ledger.columns import SETTLE_STATEMENT, of_settles, release_item
from relay.ledger.orders import CallFacts
from relay.store import ledger, maintenance

OUTCOME = "swept"
REASON = "expired: the relay that held it did not settle it"
PORTION = 500


async def sweep(connection: AsyncConnection[Any]) -> tuple[int, int]:
    """Release expired holds; returns (holds, n$ that they held). Safe in several relays at once."""
    holds = amount = 0
    while True:
        expired = dict(await maintenance.expired_holds(connection, PORTION))
        items = [release_item(request_id, REASON, CallFacts(outcome=OUTCOME)) for request_id in expired]
        if not items:
            return holds, amount
        rows = await ledger.run(connection, SETTLE_STATEMENT, of_settles(items))
        for item, row in zip(items, rows, strict=True):
            if row[0] == "release":  # else somebody was first
                holds += 1
                amount += expired[item.request_id]

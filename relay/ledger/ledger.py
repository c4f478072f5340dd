"""The only way into the ledger: hold, capture, release. Concurrent calls share statements and commits."""

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, NamedTuple, NoReturn
from uuid import UUID

import orjson
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.ledger import columns
from relay.ledger.errors import (
    AccountSuspended,
    BudgetExceeded,
    DuplicateRequest,
    InsufficientCredit,
    LedgerUnavailable,
    SpendBreakerOpen,
    UnknownHold,
)
from relay.ledger.group_commit import MAX_BATCH, GroupCommit
from relay.ledger.orders import CallFacts, CaptureOrder, Hold, HoldOrder
from relay.pricing.units import MAX_NANODOLLARS
from relay.store import ledger as store

Alert = Callable[[str, Mapping[str, Any]], None]

log = logging.getLogger(__name__)


class _Held(NamedTuple):
    outcome: str
    missing: int | None
    quotas: str | None
    overage: str | None


class Ledger:
    """One dedicated connection for holds, one for captures and releases, each with one statement in flight.

    ``dsn``: libpq text of relay_app; with failover, several hosts and target_session_attrs=read-write.
    ``settle_seconds``: how long a capture is tried while the database is away. ``max_waiting_holds``: how
    many calls may wait for it; captures always may. ``on_alert(name, facts)`` is called for what an operator
    must know: "unpriced_meter", "usage_doubted", "capture_lost", "late_capture".
    """

    def __init__(
        self,
        dsn: str,
        *,
        settle_seconds: float = 60.0,
        on_alert: Alert | None = None,
        max_batch: int = MAX_BATCH,
        max_waiting_holds: int | None = None,
    ) -> None:
        self._settle_seconds = settle_seconds
        self._on_alert = on_alert or (lambda name, facts: log.error("%s: %s", name, facts))
        self._holds: GroupCommit[columns.HoldItem, _Held] = GroupCommit(
            "holds",
            lambda: store.connect(dsn, "relay holds"),
            _write_holds,
            self._give_back,
            max_batch,
            max_waiting_holds,
        )
        self._settles: GroupCommit[columns.SettleItem, tuple[str, int]] = GroupCommit(
            "captures", lambda: store.connect(dsn, "relay captures"), _write_settles, max_batch=max_batch
        )

    async def start(self) -> None:
        """Begin to connect in the background; returns at once, calls wait for the connection."""
        self._holds.start()
        self._settles.start()

    async def close(self) -> None:
        """Finish what waits, then disconnect. Holds first: an orphaned one is given back by a release."""
        await self._holds.close()
        await self._settles.close()

    async def hold(self, order: HoldOrder, *, deadline_seconds: float = 10.0) -> Hold:
        """Reserve; durable when it returns.

        Raises InsufficientCredit, BudgetExceeded, SpendBreakerOpen, AccountSuspended, DuplicateRequest, or
        LedgerUnavailable when the database did not confirm in time (a hold that was written after all is
        released), or too many calls wait for it.
        """
        bound = order.bound
        if not 0 <= bound.covered_amount <= bound.amount <= MAX_NANODOLLARS:
            raise InsufficientCredit(bound.amount)
        item = columns.HoldItem(order, random.getrandbits(63))
        held = await self._holds.submit(order.request_id, item, deadline_seconds).future
        if held.outcome != "held":
            _refuse(held)
        allotted = orjson.loads(held.quotas) if held.quotas else {}
        overage = Fraction(1) if held.overage in (None, "1") else Fraction(held.overage)
        return Hold(order, allotted, overage)

    async def capture(self, order: CaptureOrder) -> int:
        """Charge; durable when it returns the n$ really charged. Idempotent by request id.

        It is written even if the caller is cancelled meanwhile. Tries for ``settle_seconds`` through
        failovers; then raises LedgerUnavailable and leaves the hold to the sweeper. Raises UnknownHold
        when the sweeper was first.
        """
        item = columns.capture_item(order)
        model = order.hold.order.admission.model
        if item.unpriced:
            self._on_alert("unpriced_meter", {"model": model, "meters": dict(item.unpriced)})
        if order.doubt:
            self._on_alert("usage_doubted", {"request_id": str(item.request_id), "why": order.doubt})
        try:
            member = self._settles.submit(item.request_id, item, self._settle_seconds)
            outcome, charge = await member.future
        except LedgerUnavailable:
            self._on_alert("capture_lost", {"request_id": str(item.request_id), "charge": item.charge})
            raise
        if outcome in ("capture", "captured"):
            return charge
        self._on_alert("late_capture", {"request_id": str(item.request_id), "outcome": outcome})
        raise UnknownHold(f"request {item.request_id}: its hold is {outcome}, nothing was charged")

    async def release(self, request_id: UUID, reason: str, facts: CallFacts | None = None) -> None:
        """Give a hold back and record the call as not charged. Idempotent; a captured call stays captured.

        Raises LedgerUnavailable when the database is away for too long; the sweeper releases it then.
        """
        item = columns.release_item(request_id, reason, facts or CallFacts(outcome="released"))
        await self._settles.submit(request_id, item, self._settle_seconds).future

    def _give_back(self, item: columns.HoldItem) -> None:
        facts = CallFacts(outcome="abandoned")
        release = columns.release_item(item.order.request_id, "the caller had gone before the hold", facts)
        member = self._settles.submit(release.request_id, release, self._settle_seconds)
        member.future.add_done_callback(lambda future: future.cancelled() or future.exception())


def _refuse(held: _Held) -> NoReturn:
    missing = held.missing or 0
    if held.outcome == "credit":
        raise InsufficientCredit(missing)
    if held.outcome.startswith("budget:"):
        raise BudgetExceeded(held.outcome.removeprefix("budget:"), missing)
    if held.outcome.startswith("breaker:"):
        until, spent, maximum = map(int, held.outcome.split(":")[1:])
        raise SpendBreakerOpen(datetime.fromtimestamp(until, UTC), spent, maximum)
    if held.outcome == "inactive":
        raise AccountSuspended("the account is not active: ask an administrator")
    if held.outcome == "duplicate":
        raise DuplicateRequest("this request id was used before: choose a new one")
    raise LedgerUnavailable("the hold was written too late and has been released")


async def _write_holds(
    connection: AsyncConnection[TupleRow], items: Sequence[columns.HoldItem]
) -> list[_Held]:
    rows = await store.run(connection, columns.HOLD_STATEMENT, columns.of_holds(items))
    return [_Held(*row) for row in rows]


async def _write_settles(
    connection: AsyncConnection[TupleRow], items: Sequence[columns.SettleItem]
) -> list[tuple[str, int]]:
    rows = await store.run(connection, columns.SETTLE_STATEMENT, columns.of_settles(items))
    return [(row[0], row[1]) for row in rows]

"""The one door to the ledger: hold, capture, release, with group commit (see `relay.money.batch`)."""

from collections.abc import Callable
from uuid import UUID

from relay.money.orders import CallFacts, CaptureOrder, Hold, HoldOrder


class Ledger:
    """Holds and captures of concurrent calls share statements and commits; one dedicated connection for each kind.

    `dsn`: libpq text of relay_app, several hosts with target_session_attrs=read-write where there is failover.
    """

    def __init__(self, dsn: str, *, on_alert: Callable[[str, dict[str, object]], None] | None = None) -> None:
        self._dsn = dsn
        self._on_alert = on_alert

    async def start(self) -> None:
        """Begin to connect in the background; returns at once, calls wait for the connection."""
        raise NotImplementedError

    async def close(self) -> None:
        """Finish what waits (captures first), then disconnect."""
        raise NotImplementedError

    async def hold(self, order: HoldOrder, *, deadline_seconds: float = 10.0) -> Hold:
        """Reserve; durable when it returns.

        Raises InsufficientCredit, BudgetExceeded, AccountSuspended, DuplicateRequest, or LedgerUnavailable when
        the database did not confirm in time (a hold that was written after all is released by the sweeper).
        """
        raise NotImplementedError

    async def capture(self, order: CaptureOrder) -> int:
        """Charge; durable when it returns the n$ really charged. Idempotent by request id.

        Tries for a bounded time through failovers; then raises LedgerUnavailable and leaves the hold to the
        sweeper. Raises UnknownHold when the sweeper was first.
        """
        raise NotImplementedError

    async def release(self, request_id: UUID, reason: str, facts: CallFacts | None = None) -> None:
        """Give a hold back and record the call as not charged. Idempotent; a captured call stays captured."""
        raise NotImplementedError

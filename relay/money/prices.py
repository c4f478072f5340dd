"""Prices in memory, kept true by LISTEN/NOTIFY and a revision check."""

from datetime import datetime

from relay.money.admission import Admission
from relay.money.catalog import Catalog


class PriceBook:
    """The published prices. `start` loads them; a change elsewhere is seen within a second."""

    def __init__(self, dsn: str, *, poll_seconds: float = 1.0) -> None:
        self._dsn = dsn
        self._poll_seconds = poll_seconds
        self.catalog = Catalog()

    async def start(self) -> None:
        """Load the prices; raises LedgerUnavailable when the database cannot be reached."""
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    def admit(
        self, model: str, *, group: str, at: datetime, using_group: str = "", service_tier: str = ""
    ) -> Admission:
        """The sell price frozen for one call. Raises Unpriced(model)."""
        return self.catalog.admit(
            model, group=group, at=at, using_group=using_group, service_tier=service_tier
        )

"""Prices in memory, kept true by LISTEN/NOTIFY and a revision check."""

import logging
from datetime import UTC, datetime, timedelta

from relay.price_book.load import load_catalog
from relay.pricing.catalog import Catalog
from relay.pricing.tariff import Admission
from relay.store.changes import Changes
from relay.store.connection import connected

KEPT = timedelta(days=1)  # how long an ended price stays in memory, for calls in flight and late quotes

log = logging.getLogger(__name__)


class PriceBook:
    """The published prices. A change elsewhere is seen at once; one that no notification told, within 2 s.

    While the database is away the last prices hold on: holds cannot be written then either.
    ``loaded_since``: the earliest time at which the catalog knows every price.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._changes = Changes(dsn)
        self._changes.on("prices", self._reload)
        self.catalog = Catalog()
        self.loaded_since = datetime.max.replace(tzinfo=UTC)

    async def start(self) -> None:
        """Load the prices; waits for the database."""
        await self._changes.start()

    async def close(self) -> None:
        """Stop listening."""
        await self._changes.close()

    def admit(
        self, model: str, *, group: str, at: datetime, using_group: str = "", service_tier: str = ""
    ) -> Admission:
        """The sell price frozen for one call. Raises Unpriced(model)."""
        return self.catalog.admit(
            model, group=group, at=at, using_group=using_group, service_tier=service_tier
        )

    async def refresh(self) -> None:
        """Load the prices now: who has just written one sees it at once."""
        since = datetime.now(UTC) - KEPT
        async with connected(self._dsn) as connection:
            self.catalog = await load_catalog(connection, since)
        self.loaded_since = since
        log.info("prices at revision %d", self.catalog.revision)

    async def _reload(self, _: int | None) -> None:
        await self.refresh()

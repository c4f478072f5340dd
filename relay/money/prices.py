"""Prices in memory, kept true by LISTEN/NOTIFY and a revision check."""

import logging
from datetime import datetime

from psycopg import AsyncConnection

from relay.money.admission import Admission
from relay.money.catalog import Catalog
from relay.store.changes import Changes
from relay.store.prices import load_catalog

log = logging.getLogger(__name__)


class PriceBook:
    """The published prices. A change elsewhere is seen at once; one that no notification told, within 2 s.

    While the database is away the last prices hold on: holds cannot be written then either.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._changes = Changes(dsn)
        self._changes.on("prices", self._reload)
        self.catalog = Catalog()

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

    async def _reload(self, _: int | None) -> None:
        async with await AsyncConnection.connect(self._dsn) as connection:
            self.catalog = await load_catalog(connection)
        log.info("prices at revision %d", self.catalog.revision)

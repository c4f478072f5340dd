"""Which channels may still cost something: their budgets, which settlement counts, read every few seconds."""

from __future__ import annotations

import asyncio
import logging

import psycopg
from psycopg_pool import AsyncConnectionPool

from relay.store import channels as store
from relay.telemetry.metrics import Metrics

READ_SECONDS = 2.0

log = logging.getLogger(__name__)


class ChannelBudgets:
    """What is read goes on to hold while the database is away."""

    def __init__(self, pool: AsyncConnectionPool, metrics: Metrics) -> None:
        self._pool, self._metrics = pool, metrics
        self._used: dict[int, float] = {}
        self._shown: frozenset[str] = frozenset()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read them, and go on reading; raises what the database does."""
        await self.read()
        self._task = asyncio.create_task(self._run(), name="budgets of channels")

    async def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def limits(self, channel_id: int) -> bool:
        """Whether the channel has a budget."""
        return channel_id in self._used

    def spent(self, channel_id: int) -> bool:
        """Whether one of the channel's budgets is spent."""
        return self._used.get(channel_id, 0.0) >= 1

    async def read(self) -> None:
        """Read them once."""
        async with self._pool.connection() as connection:
            rows = await store.list_budgets(connection)
        used: dict[int, float] = {}
        shown: dict[str, float] = {}
        for row in rows:
            ratio = row["spent"] / row["maximum"]
            used[row["channel_id"]] = max(ratio, used.get(row["channel_id"], 0.0))
            shown[row["channel"]] = used[row["channel_id"]]
        for channel, ratio in shown.items():
            self._metrics.channel_budget.labels(channel).set(ratio)
        for gone in self._shown - shown.keys():
            self._metrics.channel_budget.remove(gone)
        self._used, self._shown = used, frozenset(shown)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(READ_SECONDS)
            try:
                await self.read()
            except psycopg.Error as error:
                log.warning("budgets of channels cannot be read, the last ones hold: %s", error)

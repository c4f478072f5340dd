"""``GET /healthz``: may calls come here? ``GET /livez``: does the process still answer?

A container's health check belongs on /livez: on /healthz an absent database would get every replica killed.
"""

from __future__ import annotations

import asyncio
import time

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from relay.asgi import Send, send_json
from relay.formats.description import FLAG, TEXT, Schema, answer
from relay.limits.shared import Limits

ANSWER: Schema = answer(
    status={"enum": ["ok", "unavailable"]}, database={"enum": ["ok", "away"]}, redis=TEXT, draining=FLAG
)
CHECK_SECONDS = 1.0
DATABASE_SECONDS = 2.0


class Health:
    """Readiness of this replica."""

    def __init__(self, pool: AsyncConnectionPool, limits: Limits) -> None:
        self._pool, self._limits = pool, limits
        self._checked, self._database = 0.0, False
        self._lock = asyncio.Lock()
        self.draining = False

    def drain(self) -> None:
        """The replica is about to stop: from now on it is not ready."""
        self.draining = True

    async def ready(self, send: Send) -> None:
        """200, or 503 while draining or without database. Redis is told but never decides."""
        database = await self._database_answers()
        payload = {
            "status": "ok" if database and not self.draining else "unavailable",
            "database": "ok" if database else "away",
            "redis": self._limits.state,
            "draining": self.draining,
        }
        await send_json(send, 200 if payload["status"] == "ok" else 503, payload)

    async def alive(self, send: Send) -> None:
        """200."""
        await send_json(send, 200, {"status": "ok"})

    async def _database_answers(self) -> bool:
        async with self._lock:
            if time.monotonic() - self._checked > CHECK_SECONDS:
                self._database = await self._ask()
                self._checked = time.monotonic()
        return self._database

    async def _ask(self) -> bool:
        try:
            async with asyncio.timeout(DATABASE_SECONDS), self._pool.connection() as connection:
                await connection.execute("select 1")
        except (psycopg.Error, PoolTimeout, TimeoutError, OSError):
            return False
        return True

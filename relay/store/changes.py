"""Tells caches what changed: LISTEN/NOTIFY for speed, revision numbers so that no loss goes unnoticed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import psycopg
from psycopg import AsyncConnection, sql

from relay.store.connection import connected

CHANNEL = "relay_changes"  # payload "topic:id", sent by the trigger announce_change()
# It writes something, so that a primary that was replaced without knowing it does not answer: what is
# disabled would stay enabled for as long as it lives.
REVISIONS = "select topic, revision from revisions, pg_logical_emit_message(true, 'changes', '')"
COMPARE_SECONDS = 2.0
RETRY_SECONDS = 0.5

Handler = Callable[[int | None], Awaitable[None]]

log = logging.getLogger(__name__)


class Changes:
    """One listening connection a process.

    A handler gets the id of a changed row, or None when anything of its topic may have changed: at the start,
    after a lost connection, or when the topic's revision moved further than notifications arrived. A handler
    that raises psycopg.Error is called again with None once the database is back.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._handlers: dict[str, list[Handler]] = {}
        self._revisions: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    def on(self, topic: str, handler: Handler) -> None:
        """Call ``handler`` on changes of ``topic`` (accounts, tokens, channels, prices). Before start()."""
        self._handlers.setdefault(topic, []).append(handler)

    async def start(self) -> None:
        """Begin listening; returns once every handler was called for the first time."""
        self._task = asyncio.create_task(self._run(), name="changes")
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait({ready, self._task}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if self._task.done():
            self._task.result()

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                async with connected(self._dsn, autocommit=True) as connection:
                    await self._listen(connection)
            except psycopg.Error as error:
                self._revisions.clear()
                log.warning("listening for changes was interrupted, trying again: %s", error)
                await asyncio.sleep(RETRY_SECONDS)

    async def _listen(self, connection: AsyncConnection) -> None:
        await connection.execute(sql.SQL("listen {}").format(sql.Identifier(CHANNEL)))
        await self._compare(connection, {})
        self._ready.set()
        while True:
            heard: dict[str, list[int]] = {}
            async for notice in connection.notifies(timeout=COMPARE_SECONDS, stop_after=1):
                topic, _, changed = notice.payload.partition(":")
                heard.setdefault(topic, []).append(int(changed))
            await self._compare(connection, heard)

    async def _compare(self, connection: AsyncConnection, heard: dict[str, list[int]]) -> None:
        cursor = await connection.execute(REVISIONS)
        for topic, revision in await cursor.fetchall():
            known = self._revisions.get(topic)
            if revision == known:
                continue
            ids = heard.get(topic, [])
            complete = known is not None and revision - known == len(ids)
            for changed in ids if complete else [None]:
                for handler in self._handlers.get(topic, []):
                    await handler(changed)
            self._revisions[topic] = revision

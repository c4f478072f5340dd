"""Signs of life for a customer whose provider is quiet.

Clients and proxies cut a stream in which nothing comes for long. From the attempt at the first provider until
the call is settled, the customer gets a ping whenever nothing was sent to it for RELAY_PING_SECONDS. With the
first ping its answer has begun: what goes wrong later is an error event in it, and no status. But a ping
delivers nothing: another provider may still be asked, and nothing is charged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType


class Pinger:
    """Calls ``send`` while it is entered, whenever nothing else was sent for ``seconds``; never while
    ``busy()``. Whoever sends something else awaits ``pause`` before.
    """

    def __init__(self, seconds: float, busy: Callable[[], bool], send: Callable[[], Awaitable[None]]) -> None:
        self._seconds, self._busy, self._send = seconds, busy, send
        self._loop = asyncio.get_running_loop()
        self._sent = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    async def pause(self) -> None:
        """Something else is sent now: after the ping that may be on its way."""
        self._sent = self._loop.time()
        if self._task is not None:
            await self._task

    def _look(self) -> None:
        left = self._sent + self._seconds - self._loop.time()
        if left <= 0:
            left = self._seconds
            if self._task is None and not self._busy():
                self._task = self._loop.create_task(self._ping())
        self._timer = self._loop.call_later(left, self._look)

    async def _ping(self) -> None:
        try:
            await self._send()
            self._sent = self._loop.time()
        finally:
            self._task = None

    async def __aenter__(self) -> None:
        self._sent = self._loop.time()
        self._timer = self._loop.call_later(self._seconds, self._look)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()  # the customer may not read, and nothing is to be waited for

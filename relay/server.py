"""The server, and how it stops without losing a call that a proxy has sent or is sending.

What a proxy may count on after SIGTERM, in this order:

1. Draining, for ``drain_seconds``: new connections and calls are taken, and every answer that begins says
   that its connection ends. A proxy that closes what is idle for less than that keeps none meanwhile.
2. No new connection is taken; those that had begun are (relay.listener).
3. Calls end. A connection whose client was never told of the end stays open until the client has been silent
   for ``drain_seconds``; a call that still comes on it is served.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType
from typing import cast

import uvicorn

from relay.http_protocol import HttpProtocol
from relay.listener import keep_out, waiting

# Longer than the last step of a handshake takes that has begun.
HANDSHAKE_SECONDS = 0.2
# Then at most, for the event loop to accept what has begun; it asks so often.
ACCEPT_SECONDS, ACCEPT_PAUSE_SECONDS = 10.0, 0.01
_CLOSE = (b"connection", b"close")


class Server(uvicorn.Server):
    """Serves until SIGTERM or SIGINT, then drains; ``on_drain`` is told when that begins."""

    def __init__(self, config: uvicorn.Config, drain_seconds: float, on_drain: Callable[[], None]) -> None:
        super().__init__(config)
        self._drain_seconds, self._on_drain = drain_seconds, on_drain
        self._draining = False
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A first signal drains, a second one ends the draining."""
        self._loop.call_soon_threadsafe(self._stop if self._draining else self._drain)

    def _drain(self) -> None:
        self._draining = True
        self._on_drain()
        # uvicorn adds these to every answer, and takes them over from its settings once a second.
        self.config.encoded_headers.append(_CLOSE)
        self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]
        self.config.timeout_keep_alive = self._drain_seconds  # type: ignore[assignment]
        for connection in self.server_state.connections:
            cast(HttpProtocol, connection).drain(self._drain_seconds)
        self._loop.call_later(self._drain_seconds, self._stop)

    def _stop(self) -> None:
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """The steps after draining."""
        for server in self.servers:
            for listener in server.sockets:
                keep_out(listener.fileno())
        await asyncio.sleep(HANDSHAKE_SECONDS)
        await self._accept_all()
        await super().shutdown(sockets)

    async def _accept_all(self) -> None:
        """Until no connection waits to be accepted: a busy event loop may not have come to it meanwhile."""
        end = self._loop.time() + ACCEPT_SECONDS
        while self._loop.time() < end and any(  # noqa: ASYNC110 -- the kernel tells nobody
            waiting(listener.fileno()) for server in self.servers for listener in server.sockets
        ):
            await asyncio.sleep(ACCEPT_PAUSE_SECONDS)

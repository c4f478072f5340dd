"""Notices that the customer has gone, and interrupts the waiting for a vendor; never a settlement."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from relay.gateway.http import ClientGone, Receive


class Departure:
    """Watches one request's connection after its body was read. Close it when the call is over."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._interruptible: asyncio.Task[object] | None = None
        self.gone = False
        self._watch = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self._interruptible is not None:
            self._interruptible.cancel()

    @contextmanager
    def interrupts(self) -> Iterator[None]:
        """Within it the customer's leaving raises ClientGone at the next await."""
        if self.gone:
            raise ClientGone
        task = asyncio.current_task()
        self._interruptible = task
        try:
            yield
        except asyncio.CancelledError:
            # The server may have cancelled the call as well: then it stays cancelled.
            if self.gone and task is not None and task.uncancel() == 0:
                raise ClientGone from None
            raise
        finally:
            self._interruptible = None

    def close(self) -> None:
        """Stop watching."""
        self._watch.cancel()

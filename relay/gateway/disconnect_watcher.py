"""Notices that the customer has gone, and interrupts the waiting for a provider; never a settlement."""

from __future__ import annotations

import asyncio
from types import TracebackType

from relay.asgi import ClientGone, Receive


class DisconnectWatcher:
    """Watches one request's connection after its body was read. Close it when the call is over.

    ``with watcher:`` makes the customer's leaving raise ClientGone at the block's next await. It may be
    entered again, but not within itself.
    """

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

    def __enter__(self) -> None:
        if self.gone:
            raise ClientGone
        self._interruptible = asyncio.current_task()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._interruptible = self._interruptible, None
        # The server may have cancelled the call as well: then it stays cancelled.
        if (
            isinstance(error, asyncio.CancelledError)
            and self.gone
            and task is not None
            and task.uncancel() == 0
        ):
            raise ClientGone from None

    def close(self) -> None:
        """Stop watching."""
        self._watch.cancel()

"""Notices that the customer has gone, and interrupts the waiting for a provider; never a settlement."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from relay.asgi import ClientGone, WhenGone


def _none() -> float:
    return 0.0


class DisconnectWatcher:
    """Watches one request's connection after its body was read. Close it when the call is over.

    ``with watcher:`` makes the customer's leaving raise ClientGone in the block, ``patience()`` seconds after
    it; what ends sooner is not interrupted, and ``gone`` tells. It may be entered again, but not within
    itself.
    """

    def __init__(self, when_gone: WhenGone) -> None:
        self._interruptible: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.gone = False
        self.patience: Callable[[], float] = _none
        when_gone(self._leave)

    def _leave(self) -> None:
        self.gone = True
        patience = self.patience() if self._interruptible is not None else 0.0
        if patience > 0:
            self._timer = asyncio.get_running_loop().call_later(patience, self._interrupt)
        else:
            self._interrupt()

    def _interrupt(self) -> None:
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
        """Interrupt nothing any more."""
        self.patience = _none
        if self._timer is not None:
            self._timer.cancel()

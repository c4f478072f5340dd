"""What the endpoints work with, assembled once by relay.app."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from relay.identity.directory import Directory
from relay.limits.shared import Limits
from relay.money.door import Ledger
from relay.money.prices import PriceBook
from relay.providers.transport import Transport
from relay.routing.channels import ChannelTable
from relay.settings import Settings
from relay.telemetry.metrics import Metrics

T = TypeVar("T")


class Finishing:
    """Work that must end even when the call that began it is cancelled: settlements."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run ``work`` on its own; await the task through asyncio.shield."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def wait(self, seconds: float) -> int:
        """Wait for all of it; returns how many did not end in time."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=seconds)
        return len(self._tasks)


@dataclass(slots=True)
class Services:
    """One of each a process."""

    settings: Settings
    directory: Directory
    channels: ChannelTable
    limits: Limits
    prices: PriceBook
    ledger: Ledger
    transport: Transport
    metrics: Metrics
    finishing: Finishing = field(default_factory=Finishing)

"""Request rate and concurrency of one process, exact and without storage: what a replica enforces alone.

Rate: sliding window of two fixed minutes. The previous minute counts by the share of it that the window still
covers, so that a burst at a minute's edge does not get twice the limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

WINDOW_SECONDS = 60
IDLE_TOKENS = 10_000


@dataclass(frozen=True, slots=True)
class Refused:
    """``reason``: rate_limit_exceeded or concurrency_limit_exceeded; try again in ``retry_after`` seconds."""

    reason: str
    retry_after: float


@dataclass(slots=True)
class _Use:
    minute: int = 0
    current: int = 0
    previous: int = 0
    running: int = 0


def weighted(current: int, previous: int, now: float) -> float:
    """Requests in the last 60 seconds, as the sliding window estimates them."""
    return current + previous * (1 - now % WINDOW_SECONDS / WINDOW_SECONDS)


def share(limit: int | None, replicas: int) -> int | None:
    """A replica's part of a limit, at least one."""
    return None if limit is None else math.ceil(limit / replicas)


class LocalLimits:
    """Counts by token. Call acquire() once a call, and release() after each call that was let in."""

    def __init__(self) -> None:
        self._uses: dict[int, _Use] = {}

    def acquire(self, token_id: int, rpm: int | None, concurrency: int | None, now: float) -> Refused | None:
        """Let a call in, or say why not. ``now``: Unix time."""
        use = self._at(token_id, now)
        if concurrency is not None and use.running >= concurrency:
            return Refused("concurrency_limit_exceeded", 1)
        if rpm is not None and weighted(use.current, use.previous, now) + 1 > rpm:
            return Refused("rate_limit_exceeded", WINDOW_SECONDS - now % WINDOW_SECONDS)
        use.current += 1
        use.running += 1
        return None

    def release(self, token_id: int) -> None:
        """A call has ended."""
        use = self._uses.get(token_id)
        if use is not None and use.running:
            use.running -= 1

    def _at(self, token_id: int, now: float) -> _Use:
        minute = int(now // WINDOW_SECONDS)
        use = self._uses.get(token_id)
        if use is None:
            self._forget_idle(minute)
            use = self._uses[token_id] = _Use()
        if use.minute != minute:
            use.previous = use.current if use.minute == minute - 1 else 0
            use.current, use.minute = 0, minute
        return use

    def _forget_idle(self, minute: int) -> None:
        if len(self._uses) < IDLE_TOKENS:
            return
        for token_id, use in list(self._uses.items()):
            if not use.running and use.minute < minute - 1:
                del self._uses[token_id]

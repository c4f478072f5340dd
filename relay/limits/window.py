"""Requests and tokens a minute and calls at a time, exact and without storage: what a replica enforces alone.

Rate: sliding window of two fixed minutes. The previous minute counts by the share of it that the window still
covers, so that a burst at a minute's edge does not get twice the limit. Tokens are reserved when a call is
let in, by the most that it can use, and corrected to what it has used in the minute of the reservation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

WINDOW_SECONDS = 60
IDLE_SUBJECTS = 10_000
REQUESTS = "rate_limit_exceeded"
TOKENS = "token_rate_limit_exceeded"
RUNNING = "concurrency_limit_exceeded"
# More tokens than the limit has: no waiting helps.
TOO_MANY = "tokens_above_limit"


@dataclass(frozen=True, slots=True)
class Limit:
    """What a subject may use: requests and tokens a minute, calls at a time; None: as much as it likes.

    ``subject``: whose limit it is, e.g. ``token:5``.
    """

    subject: str
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None

    @property
    def none(self) -> bool:
        """Whether it limits nothing."""
        return self.rpm is None and self.tpm is None and self.concurrency is None

    def share(self, replicas: int, tokens: int) -> Limit:
        """A replica's part, at least one. A call that needs more ``tokens`` than the part passes alone."""
        part = _part(self.tpm, replicas)
        return replace(
            self,
            rpm=_part(self.rpm, replicas),
            tpm=None if part is None else max(part, tokens),
            concurrency=_part(self.concurrency, replicas),
        )


class Counts(NamedTuple):
    """Requests and tokens that a subject was let in with, in this minute and in the one before."""

    requests: int = 0
    requests_before: int = 0
    tokens: int = 0
    tokens_before: int = 0

    def plus(self, tokens: int) -> Counts:
        """With one call more."""
        return self._replace(requests=self.requests + 1, tokens=self.tokens + tokens)


NOTHING = Counts()


class Left(NamedTuple):
    """What remains of a ``limit`` a minute, and in how many seconds all of it does."""

    limit: int
    remaining: int
    reset: float


@dataclass(frozen=True, slots=True)
class Standing:
    """What remains of a caller's limits, of each kind the least; None where it has no such limit."""

    requests: Left | None = None
    tokens: Left | None = None


UNLIMITED = Standing()


@dataclass(frozen=True, slots=True)
class Refused:
    """``reason``: see REQUESTS and its like; ``limit``: the one that is reached. Try again in ``retry_after``
    seconds: sooner it cannot be let in.
    """

    reason: str
    retry_after: float
    limit: Limit
    standing: Standing = UNLIMITED


def weighted(current: int, previous: int, now: float) -> float:
    """What was counted in the last 60 seconds, as the sliding window estimates it."""
    return current + previous * (1 - now % WINDOW_SECONDS / WINDOW_SECONDS)


def wait(current: int, previous: int, needed: int, limit: int, now: float) -> float:
    """Seconds until ``needed`` more fit into ``limit``, which has room for them, if nobody else comes."""
    into, room = now % WINDOW_SECONDS, limit - needed
    if current > room:
        return WINDOW_SECONDS - into + WINDOW_SECONDS * (1 - room / current)
    if current + previous <= room:
        return 0.0
    return max(0.0, WINDOW_SECONDS * (1 - (room - current) / previous) - into)


def refusal(limit: Limit, reason: str, counts: Counts, tokens: int, now: float) -> Refused:
    """A call's refusal, which says when to come back. ``counts``: of the limit's subject."""
    seconds = 1.0
    if reason == REQUESTS and limit.rpm is not None:
        seconds = wait(counts.requests, counts.requests_before, 1, limit.rpm, now)
    elif reason == TOKENS and limit.tpm is not None:
        seconds = wait(counts.tokens, counts.tokens_before, tokens, limit.tpm, now)
    return Refused(reason, seconds, limit)


def standing(counted: Iterable[tuple[Limit, Counts]], now: float) -> Standing:
    """What remains of these limits, of each kind the least."""
    requests, tokens = [], []
    for limit, counts in counted:
        if limit.rpm is not None:
            requests.append(_left(limit.rpm, counts.requests, counts.requests_before, now))
        if limit.tpm is not None:
            tokens.append(_left(limit.tpm, counts.tokens, counts.tokens_before, now))
    return Standing(min(requests, key=_tightness, default=None), min(tokens, key=_tightness, default=None))


def _tightness(left: Left) -> tuple[int, int]:
    return left.remaining, left.limit


def _left(limit: int, current: int, previous: int, now: float) -> Left:
    until_next = WINDOW_SECONDS - now % WINDOW_SECONDS
    reset = until_next + WINDOW_SECONDS if current else until_next if previous else 0.0
    return Left(limit, max(0, math.floor(limit - weighted(current, previous, now))), reset)


def _part(limit: int | None, replicas: int) -> int | None:
    return None if limit is None else math.ceil(limit / replicas)


@dataclass(slots=True)
class _Use:
    minute: int = 0
    counts: Counts = NOTHING
    running: int = 0


class LocalLimits:
    """Counts by subject. Call acquire() once a call, and release() after each call that was let in."""

    def __init__(self) -> None:
        self._uses: dict[str, _Use] = {}

    def acquire(self, limits: Sequence[Limit], tokens: int, now: float) -> Standing | Refused:
        """Let a call in that all limits have room for, or say why not. ``now``: Unix time."""
        uses = [self._at(limit.subject, now) for limit in limits]
        for limit, use in zip(limits, uses, strict=True):
            reason = _reached(limit, use, tokens, now)
            if reason is not None:
                counted = [(one, use.counts) for one, use in zip(limits, uses, strict=True)]
                refused = refusal(limit, reason, use.counts, tokens, now)
                return replace(refused, standing=standing(counted, now))
        for use in uses:
            use.counts = use.counts.plus(tokens)
            use.running += 1
        return standing([(one, use.counts) for one, use in zip(limits, uses, strict=True)], now)

    def release(self, limits: Sequence[Limit]) -> None:
        """A call has ended."""
        for limit in limits:
            use = self._uses.get(limit.subject)
            if use is not None and use.running:
                use.running -= 1

    def correct(self, limits: Sequence[Limit], minute: int, difference: int) -> None:
        """A call that was let in in ``minute`` has used so many tokens more than it reserved."""
        for limit in limits:
            use = self._uses.get(limit.subject)
            if use is not None and use.minute == minute:
                use.counts = use.counts._replace(tokens=max(0, use.counts.tokens + difference))
            elif use is not None and use.minute == minute + 1:
                use.counts = use.counts._replace(tokens_before=max(0, use.counts.tokens_before + difference))

    def _at(self, subject: str, now: float) -> _Use:
        minute = int(now // WINDOW_SECONDS)
        use = self._uses.get(subject)
        if use is None:
            self._forget_idle(minute)
            use = self._uses[subject] = _Use()
        if use.minute != minute:
            before = use.counts if use.minute == minute - 1 else NOTHING
            use.counts = Counts(requests_before=before.requests, tokens_before=before.tokens)
            use.minute = minute
        return use

    def _forget_idle(self, minute: int) -> None:
        if len(self._uses) < IDLE_SUBJECTS:
            return
        for subject, use in list(self._uses.items()):
            if not use.running and use.minute < minute - 1:
                del self._uses[subject]


def _reached(limit: Limit, use: _Use, tokens: int, now: float) -> str | None:
    counts = use.counts
    if limit.concurrency is not None and use.running >= limit.concurrency:
        return RUNNING
    if limit.rpm is not None and weighted(counts.requests, counts.requests_before, now) + 1 > limit.rpm:
        return REQUESTS
    if limit.tpm is not None and weighted(counts.tokens, counts.tokens_before, now) + tokens > limit.tpm:
        return TOKENS
    return None

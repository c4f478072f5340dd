"""Limits shared by all replicas through Redis, and a share per replica while Redis is away.

One script a call that has limits; the calls that wait while a round trip is in flight share the next one.
Slots of running calls are members of a sorted set with a lease that is renewed while the call runs, so that a
replica's death frees them within LEASE_SECONDS.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from relay.limits.window import WINDOW_SECONDS, LocalLimits, Refused, share
from relay.telemetry.metrics import Metrics

LEASE_SECONDS = 30
RENEW_SECONDS = 10.0
ROUND_TRIP_SECONDS = 0.25
RETRY_SECONDS = 1.0
# A token's set of running calls is forgotten so long after the last of them was let in or renewed.
RUNNING_SECONDS = 600

# KEYS: counters of this and of the previous minute, running set. ARGV: rpm, concurrency (0: none), request
# id, seconds into the minute, now, lease, lifetime of the set. Returns 1 let in, -1 rate, -2 concurrency.
ENTER = """
local rpm, concurrency = tonumber(ARGV[1]), tonumber(ARGV[2])
local now = tonumber(ARGV[5])
if concurrency > 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
  if redis.call('ZCARD', KEYS[3]) >= concurrency then return -2 end
end
if rpm > 0 then
  local current = tonumber(redis.call('GET', KEYS[1]) or '0')
  local previous = tonumber(redis.call('GET', KEYS[2]) or '0')
  if current + previous * (1 - tonumber(ARGV[4]) / 60) + 1 > rpm then return -1 end
  redis.call('INCR', KEYS[1])
  redis.call('EXPIRE', KEYS[1], 130)
end
if concurrency > 0 then
  redis.call('ZADD', KEYS[3], now + tonumber(ARGV[6]), ARGV[3])
  redis.call('EXPIRE', KEYS[3], ARGV[7])
end
return 1
"""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Slot:
    """The place of a call that was let in; hand it to release() once, whatever happened."""

    token_id: int
    request_id: UUID
    local: bool
    leased: bool


@dataclass(slots=True)
class _Waiting:
    keys: list[str]
    values: list[Any]
    answer: asyncio.Future[int]


class Limits:
    """RPM and concurrency by token. Never fails a call because Redis is gone."""

    def __init__(self, url: str, ca_file: Path | None, replicas: int, metrics: Metrics) -> None:
        """``url`` empty: no Redis, every replica enforces its share."""
        self._replicas, self._metrics = replicas, metrics
        self._local = LocalLimits()
        self._redis = _client(url, ca_file) if url else None
        self._away_until = 0.0
        self._waiting: list[_Waiting] = []
        self._running: dict[UUID, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._flushing = False

    async def start(self) -> None:
        """Begin renewing leases."""
        if self._redis is not None:
            self._spawn(self._renew())

    async def close(self) -> None:
        """Disconnect."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._redis is not None:
            await self._redis.aclose()

    @property
    def state(self) -> str:
        """``off``, ``ok`` or ``away``."""
        if self._redis is None:
            return "off"
        return "away" if self._away_until > time.monotonic() else "ok"

    async def acquire(
        self, token_id: int, rpm: int | None, concurrency: int | None, request_id: UUID
    ) -> Slot | Refused:
        """Let a call in or say why not."""
        if rpm is None and concurrency is None:
            return Slot(token_id, request_id, local=False, leased=False)
        if self._redis is not None and self._away_until <= time.monotonic():
            try:
                code = await self._ask(self._redis, token_id, rpm, concurrency, request_id)
            except Exception as error:  # the limits' storage never fails a call
                self._lost(error)
            else:
                return self._verdict(code, token_id, concurrency is not None, request_id)
        mine = share(rpm, self._replicas), share(concurrency, self._replicas)
        refused = self._local.acquire(token_id, *mine, time.time())
        return refused or Slot(token_id, request_id, local=True, leased=True)

    def release(self, slot: Slot) -> None:
        """The call has ended; frees its slot without waiting for Redis."""
        if slot.local:
            self._local.release(slot.token_id)
        elif slot.leased:
            self._running.pop(slot.request_id, None)
            self._spawn(self._free(slot))

    def _verdict(self, code: int, token_id: int, slot: bool, request_id: UUID) -> Slot | Refused:
        if code == -2:
            return Refused("concurrency_limit_exceeded", 1)
        if code == -1:
            return Refused("rate_limit_exceeded", WINDOW_SECONDS - time.time() % WINDOW_SECONDS)
        if slot:
            self._running[request_id] = token_id
        return Slot(token_id, request_id, local=False, leased=slot)

    async def _ask(
        self, client: redis.Redis, token_id: int, rpm: int | None, concurrency: int | None, request_id: UUID
    ) -> int:
        now = time.time()
        minute, into = divmod(now, WINDOW_SECONDS)
        keys = [
            f"rpm:{token_id}:{int(minute)}",
            f"rpm:{token_id}:{int(minute) - 1}",
            _running_key(token_id),
        ]
        values = [rpm or 0, concurrency or 0, request_id.hex, into, now, LEASE_SECONDS, RUNNING_SECONDS]
        waiting = _Waiting(keys, values, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if not self._flushing:
            self._flushing = True
            self._spawn(self._flush(client))
        return await waiting.answer

    async def _flush(self, client: redis.Redis) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                await self._round_trip(client, batch)
        finally:
            self._flushing = False

    async def _round_trip(self, client: redis.Redis, batch: list[_Waiting]) -> None:
        try:
            async with asyncio.timeout(ROUND_TRIP_SECONDS):
                codes = await _enter(client, batch)
        except Exception as error:  # whatever it is, no call waits for ever
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)
            return
        self._metrics.limits_local.set(0)
        for waiting, code in codes:
            if not waiting.answer.done():
                waiting.answer.set_result(code)

    async def _free(self, slot: Slot) -> None:
        await self._quietly("ZREM", _running_key(slot.token_id), slot.request_id.hex)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            until = time.time() + LEASE_SECONDS
            for request_id, token_id in list(self._running.items()):
                await self._quietly("ZADD", _running_key(token_id), "XX", until, request_id.hex)
            for token_id in set(self._running.values()):
                await self._quietly("EXPIRE", _running_key(token_id), RUNNING_SECONDS)

    async def _quietly(self, *command: Any) -> None:
        if self._redis is None or self._away_until > time.monotonic():
            return
        try:
            async with asyncio.timeout(ROUND_TRIP_SECONDS):
                await self._redis.execute_command(*command)  # type: ignore[no-untyped-call]
        except Exception as error:  # the limits' storage never fails a call
            self._lost(error)

    def _lost(self, error: Exception) -> None:
        if self._away_until <= time.monotonic():
            log.warning("Redis is away, limits fall back to a share a replica: %s", type(error).__name__)
        self._away_until = time.monotonic() + RETRY_SECONDS
        self._metrics.limits_local.set(1)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _enter(client: redis.Redis, batch: list[_Waiting]) -> list[tuple[_Waiting, int]]:
    """What Redis decides of each call; raises when it does not answer all of them."""
    pipe = client.pipeline(transaction=False)
    for waiting in batch:
        pipe.eval(ENTER, len(waiting.keys), *waiting.keys, *waiting.values)
    answers = await pipe.execute()
    return [(waiting, int(answer)) for waiting, answer in zip(batch, answers, strict=True)]


def _running_key(token_id: int) -> str:
    return f"running:{token_id}"


def _client(url: str, ca_file: Path | None) -> redis.Redis:
    options: dict[str, Any] = {}
    if url.startswith("rediss://") and ca_file is not None:
        options["ssl_ca_certs"] = str(ca_file)
    return redis.Redis.from_url(
        url,
        socket_timeout=ROUND_TRIP_SECONDS,
        socket_connect_timeout=ROUND_TRIP_SECONDS,
        # A call that is asked about twice is counted twice.
        retry=Retry(NoBackoff(), 0),
        **options,
    )

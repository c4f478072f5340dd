"""Limits shared by all replicas through Redis, and a share per replica while Redis is away.

One script a call that has limits. What is asked and told while a round trip is in flight shares the next one.
Slots of running calls are members of a sorted set with a lease that is renewed while the call runs, so that a
replica's death frees them within LEASE_SECONDS.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from relay.limits.window import (
    REQUESTS,
    RUNNING,
    TOKENS,
    TOO_MANY,
    UNLIMITED,
    WINDOW_SECONDS,
    Counts,
    Limit,
    LocalLimits,
    Refused,
    Standing,
    refusal,
    standing,
)
from relay.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from relay.limits.redis_pipeline import Pipeline

LEASE_SECONDS = 30
RENEW_SECONDS = 10.0
RETRY_SECONDS = 1.0
# Commands that share a round trip.
MAX_BATCH = 500
# A subject's set of running calls is forgotten so long after the last of them was let in or renewed.
RUNNING_SECONDS = 600

# KEYS, for each limit: requests of this and of the previous minute, tokens likewise, running calls. ARGV:
# call, seconds into the minute, now, lease, lifetime of a set of running calls, tokens to reserve; then for
# each limit rpm, tpm, concurrency (0: none). Returns 1 let in, -1 requests, -2 running calls, -3 tokens; the
# position of the limit that is reached; then for each limit its four counts before the call.
ENTER = """
local into, now, tokens = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[6])
local function count(key, limit)
  if limit == 0 then return 0 end
  return tonumber(redis.call('GET', key) or '0')
end
local answer = {1, 0}
local limits = {}
for i = 1, #KEYS / 5 do
  local k, a = (i - 1) * 5, 6 + (i - 1) * 3
  local rpm, tpm, running = tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3])
  local requests, before = count(KEYS[k + 1], rpm), count(KEYS[k + 2], rpm)
  local used, used_before = count(KEYS[k + 3], tpm), count(KEYS[k + 4], tpm)
  for _, number in ipairs({requests, before, used, used_before}) do table.insert(answer, number) end
  limits[i] = {k, rpm, tpm, running}
  if answer[1] == 1 then
    if running > 0 then redis.call('ZREMRANGEBYSCORE', KEYS[k + 5], '-inf', now) end
    if running > 0 and redis.call('ZCARD', KEYS[k + 5]) >= running then
      answer[1], answer[2] = -2, i
    elseif rpm > 0 and requests + before * (1 - into / 60) + 1 > rpm then
      answer[1], answer[2] = -1, i
    elseif tpm > 0 and used + used_before * (1 - into / 60) + tokens > tpm then
      answer[1], answer[2] = -3, i
    end
  end
end
if answer[1] ~= 1 then return answer end
for _, limit in ipairs(limits) do
  local k, rpm, tpm, running = unpack(limit)
  if rpm > 0 then
    redis.call('INCR', KEYS[k + 1])
    redis.call('EXPIRE', KEYS[k + 1], 130)
  end
  if tpm > 0 then
    redis.call('INCRBY', KEYS[k + 3], ARGV[6])
    redis.call('EXPIRE', KEYS[k + 3], 130)
  end
  if running > 0 then
    redis.call('ZADD', KEYS[k + 5], now + tonumber(ARGV[4]), ARGV[1])
    redis.call('EXPIRE', KEYS[k + 5], ARGV[5])
  end
end
return answer
"""
# KEYS: tokens of the minute in which a call reserved. ARGV: by how much it has used more. What Redis has
# forgotten, or lost, is not made again.
CORRECT = """
for _, key in ipairs(KEYS) do
  if redis.call('EXISTS', key) == 1 then
    local left = redis.call('INCRBY', key, ARGV[1])
    if left < 0 then redis.call('INCRBY', key, -left) end
  end
end
"""
# By the name that Redis keeps a script by.
SCRIPTS = {
    hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest(): script for script in (ENTER, CORRECT)
}
ENTER_NAME, CORRECT_NAME = SCRIPTS
_REASONS = {-1: REQUESTS, -2: RUNNING, -3: TOKENS}

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Slot:
    """The place of a call that was let in; hand it to release() once, whatever happened, or to
    free() and then to correct().

    ``reserved``: tokens that it counts for in ``minute`` (of Unix time); ``used``: what it is known to have
    used. ``local``: it counts in this replica alone. ``standing``: of its limits, with it.
    """

    limits: tuple[Limit, ...]
    request_id: UUID
    local: bool = False
    minute: int = 0
    reserved: int = 0
    standing: Standing = UNLIMITED
    used: int = 0


@dataclass(slots=True)
class _Command:
    """``answer``: of what is asked; what is only told has none."""

    words: tuple[Any, ...]
    answer: asyncio.Future[list[int]] | None = None


class Limits:
    """Requests and tokens a minute and calls at a time. Never fails a call because Redis is gone."""

    def __init__(
        self,
        url: str,
        ca_file: Path | None,
        replicas: int,
        metrics: Metrics,
        timeout_seconds: float = 0.25,
    ) -> None:
        """``url`` empty: no Redis, every replica enforces its share; as while Redis takes longer than
        ``timeout_seconds``.
        """
        self._replicas, self._metrics = replicas, metrics
        self._local = LocalLimits()
        self._redis: Redis | None = None
        self._pipeline: Pipeline | None = None
        if url:
            self._redis, self._pipeline = _redis_at(url, ca_file, timeout_seconds)
        self._timeout_seconds = timeout_seconds
        self._away_until = 0.0
        self._shown_away = False
        self._waiting: list[_Command] = []
        self._running: dict[UUID, list[str]] = {}
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
        if self._redis is not None and self._pipeline is not None:
            await self._pipeline.close()
            await self._redis.aclose()

    @property
    def state(self) -> str:
        """``off``, ``ok`` or ``away``."""
        if self._redis is None:
            return "off"
        return "away" if self._away_until > time.monotonic() else "ok"

    async def acquire(self, limits: Sequence[Limit], tokens: int, request_id: UUID) -> Slot | Refused:
        """Let a call in that all ``limits`` have room for, or say why not. ``tokens``: the most it uses."""
        limits = tuple(limit for limit in limits if not limit.none)
        if not limits:
            return Slot(limits, request_id)
        for limit in limits:
            if limit.tpm is not None and tokens > limit.tpm:
                return Refused(TOO_MANY, 0, limit)
        now = time.time()
        if self._redis is not None and self._away_until <= time.monotonic():
            try:
                answer = await self._ask(limits, tokens, request_id, now)
                return self._verdict(answer, limits, tokens, request_id, now)
            except Exception as error:  # the limits' storage never fails a call
                self._lost(error)
        shares = [limit.share(self._replicas, tokens) for limit in limits]
        given = self._local.acquire(shares, tokens, now)
        if isinstance(given, Refused):
            return replace(given, limit=limits[shares.index(given.limit)])
        return Slot(limits, request_id, True, _minute(now), tokens, given)

    def correct(self, slot: Slot) -> None:
        """The call uses no more than it has: that counts, in place of what it reserved. Once it is over, or
        sooner; does not wait for Redis.
        """
        difference, slot.reserved = slot.used - slot.reserved, slot.used
        if not difference:
            return
        if slot.local:
            self._local.correct(slot.limits, slot.minute, difference)
        else:
            keys = [f"tpm:{limit.subject}:{slot.minute}" for limit in slot.limits if limit.tpm is not None]
            if keys:
                self._tell("EVALSHA", CORRECT_NAME, len(keys), *keys, difference)

    def release(self, slot: Slot) -> None:
        """The call has ended: corrects what it counts for, and frees its place."""
        self.correct(slot)
        self.free(slot)

    def free(self, slot: Slot) -> None:
        """The call no longer runs; correct() comes later. Does not wait for Redis."""
        if slot.local:
            self._local.release(slot.limits)
            return
        for key in self._running.pop(slot.request_id, ()):
            self._tell("ZREM", key, slot.request_id.hex)

    def _verdict(
        self, answer: list[int], limits: tuple[Limit, ...], tokens: int, request_id: UUID, now: float
    ) -> Slot | Refused:
        code, position, *numbers = answer
        counted = [Counts(*numbers[at : at + 4]) for at in range(0, 4 * len(limits), 4)]
        if code != 1:
            limit, counts = limits[position - 1], counted[position - 1]
            refused = refusal(limit, _REASONS[code], counts, tokens, now)
            return replace(refused, standing=standing(zip(limits, counted, strict=True), now))
        running = [_running_key(limit) for limit in limits if limit.concurrency is not None]
        if running:
            self._running[request_id] = running
        after = [(limit, counts.plus(tokens)) for limit, counts in zip(limits, counted, strict=True)]
        return Slot(limits, request_id, False, _minute(now), tokens, standing(after, now))

    async def _ask(self, limits: tuple[Limit, ...], tokens: int, request_id: UUID, now: float) -> list[int]:
        minute, into = _minute(now), now % WINDOW_SECONDS
        keys: list[str] = []
        values: list[Any] = [request_id.hex, into, now, LEASE_SECONDS, RUNNING_SECONDS, tokens]
        for limit in limits:
            subject = limit.subject
            keys += [f"rpm:{subject}:{minute}", f"rpm:{subject}:{minute - 1}"]
            keys += [f"tpm:{subject}:{minute}", f"tpm:{subject}:{minute - 1}", _running_key(limit)]
            values += [limit.rpm or 0, limit.tpm or 0, limit.concurrency or 0]
        answer: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._queue(_Command(("EVALSHA", ENTER_NAME, len(keys), *keys, *values), answer))
        return await answer

    def _tell(self, *words: Any) -> None:
        if self._redis is not None and self._away_until <= time.monotonic():
            self._queue(_Command(words))

    def _queue(self, command: _Command) -> None:
        self._waiting.append(command)
        if not self._flushing:
            self._flushing = True
            self._spawn(self._flush())

    async def _flush(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                await self._round_trip(batch)
        finally:
            self._flushing = False

    async def _round_trip(self, batch: list[_Command]) -> None:
        """Have Redis do all of ``batch``; where that fails, who asked is told."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                answers = await self._sent([command.words for command in batch])
        except Exception as error:  # whatever it is, no call waits for ever
            self._lost(error)
            answers = [error] * len(batch)
        else:
            self._found()
        for command, answer in zip(batch, answers, strict=True):
            if command.answer is not None and not command.answer.done():
                _give(command.answer, answer)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            until = time.time() + LEASE_SECONDS
            for request_id, keys in list(self._running.items()):
                for key in keys:
                    await self._quietly("ZADD", key, "XX", until, request_id.hex)
            for key in {key for keys in self._running.values() for key in keys}:
                await self._quietly("EXPIRE", key, RUNNING_SECONDS)

    async def _quietly(self, *command: Any) -> None:
        if self._redis is None or self._away_until > time.monotonic():
            return
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._redis.execute_command(*command)  # type: ignore[no-untyped-call]
        except Exception as error:  # the limits' storage never fails a call
            self._lost(error)

    async def _sent(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        from redis.exceptions import NoScriptError

        answers = await self._answers(commands)
        unknown = [at for at, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            # Redis was started anew, and has not done these.
            await self._answers([("SCRIPT", "LOAD", script) for script in SCRIPTS.values()])
            again = await self._answers([commands[at] for at in unknown])
            for at, answer in zip(unknown, again, strict=True):
                answers[at] = answer
        return answers

    async def _answers(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """The answers of a batch, an exception for what Redis refuses."""
        if self._pipeline is None:
            raise ConnectionError("there is no Redis")
        answers = await self._pipeline.execute(commands)
        if len(answers) != len(commands):
            raise ConnectionError(f"{len(answers)} answers to {len(commands)} commands")
        return answers

    def _found(self) -> None:
        if self._shown_away:
            self._shown_away = False
            self._metrics.limits_local.set(0)

    def _lost(self, error: Exception) -> None:
        if self._away_until <= time.monotonic():
            log.warning("Redis is away, limits fall back to a share a replica: %s", type(error).__name__)
        self._away_until = time.monotonic() + RETRY_SECONDS
        self._shown_away = True
        self._metrics.limits_local.set(1)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _give(waiting: asyncio.Future[list[int]], answer: Any) -> None:
    try:
        waiting.set_result(list(map(int, answer)))
    except (TypeError, ValueError) as error:
        waiting.set_exception(answer if isinstance(answer, Exception) else error)


def _minute(now: float) -> int:
    return int(now // WINDOW_SECONDS)


def _running_key(limit: Limit) -> str:
    return f"running:{limit.subject}"


def _redis_at(url: str, ca_file: Path | None, timeout_seconds: float) -> tuple[Redis, Pipeline]:
    """Its library is read only here: 0.15 s of CPU, which commands and a relay without Redis do not need."""
    from relay.limits import redis_pipeline

    client = redis_pipeline.client(url, ca_file, timeout_seconds)
    return client, redis_pipeline.Pipeline(client)

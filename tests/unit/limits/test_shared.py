"""What limits decide with Redis, without it and while it comes and goes, on a Redis that follows a script."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from redis.exceptions import RedisError

from relay.limits import shared
from relay.limits.shared import LEASE_SECONDS, RETRY_SECONDS, RUNNING_SECONDS, Limits, Slot
from relay.limits.window import (
    REQUESTS,
    RUNNING,
    TOKENS,
    TOO_MANY,
    UNLIMITED,
    Left,
    Limit,
    Refused,
    Standing,
)
from relay.telemetry.metrics import Metrics

CALL, OTHER = UUID(int=1), UUID(int=2)
SHARED, LOCAL = ("in", False), ("in", True)
NOW = 7 * 60 + 15.0  # a quarter into minute 7


class ScriptedRedis:
    """Answers each script with the next of ``codes``, while ``gate`` is open: a code alone says that nothing
    was counted before, or that the first limit refuses. An exception among them is raised, None leaves it
    without an answer.
    """

    def __init__(self) -> None:
        self.codes: list[Any] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.scripts: list[tuple[Any, ...]] = []
        self.commands: list[tuple[Any, ...]] = []
        self.trips = 0
        self.closed = False

    def add(self, words: tuple[Any, ...]) -> int:
        if words[:2] == ("EVALSHA", shared.ENTER_NAME):
            self.scripts.append(words[2:])
            limits: int = words[2] // 5
            return limits
        self.commands.append(words)
        return 0

    async def execute(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        asked = [self.add(words) for words in commands]
        self.trips += any(asked)
        await self.gate.wait()
        if not any(asked):
            if self.codes and isinstance(self.codes[0], Exception):
                raise self.codes.pop(0)
            return asked
        given = [self.codes.pop(0) if limits else 1 for limits in asked]
        for code in given:
            if isinstance(code, Exception):
                raise code
        answers = zip(given, asked, strict=True)
        return [
            [code, int(code < 0)] + [0] * 4 * count if isinstance(code, int) else code
            for code, count in answers
            if code is not None
        ]

    async def execute_command(self, *command: Any) -> None:
        self.commands.append(command)
        await self.gate.wait()
        if self.codes and isinstance(self.codes[0], Exception):
            raise self.codes.pop(0)

    async def close(self) -> None:
        assert not self.closed

    async def aclose(self) -> None:
        self.closed = True


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = NOW

    def time(self) -> float:
        return self.now

    monotonic = time


async def asks(
    limits: Limits, token: int, rpm: int | None, concurrency: int | None, call: UUID, tpm: int | None = None
) -> Slot | Refused:
    """A call of 10 tokens at most."""
    return await limits.acquire([Limit(str(token), rpm, tpm, concurrency)], 10, call)


def told(given: Slot | Refused) -> tuple[str, float]:
    """("in", whether this replica counts it alone), or why not and when to come back."""
    return ("in", given.local) if isinstance(given, Slot) else (given.reason, round(given.retry_after, 3))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(shared, "time", made)
    return made


@pytest.fixture
def redis(monkeypatch: pytest.MonkeyPatch) -> ScriptedRedis:
    made = ScriptedRedis()
    monkeypatch.setattr(shared, "_redis_at", lambda url, ca_file, timeout_seconds: (made, made))
    return made


def play(
    story: Callable[[Limits, Metrics], Coroutine[Any, Any, None]],
    url: str = "redis://r",
    timeout_seconds: float = 0.25,
) -> None:
    async def run() -> None:
        metrics = Metrics()
        limits = Limits(url, None, 3, metrics, timeout_seconds)
        try:
            async with asyncio.timeout(20):
                await story(limits, metrics)
            await asyncio.sleep(0)
        finally:
            await limits.close()

    asyncio.run(run())


def degraded(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("relay_limits_degraded")


def test_a_token_without_limits_asks_nobody(redis: ScriptedRedis, clock: Clock) -> None:
    async def story(limits: Limits, _: Metrics) -> None:
        slot = await asks(limits, 5, None, None, CALL)
        assert isinstance(slot, Slot)
        assert (slot.local, slot.standing) == (False, UNLIMITED)
        limits.release(slot)
        await asyncio.sleep(0)
        assert (redis.trips, redis.commands) == (0, [])
        assert limits.state == "ok"

    play(story)
    assert redis.closed


def test_redis_is_asked_for_this_minute_and_the_one_before(redis: ScriptedRedis, clock: Clock) -> None:
    async def story(limits: Limits, _: Metrics) -> None:
        redis.codes = [1, 1]
        rate = await asks(limits, 5, 9, None, CALL)
        slot = await asks(limits, 5, None, 4, OTHER)
        assert (told(rate), told(slot)) == (SHARED, SHARED)
        keys = (5, "rpm:5:7", "rpm:5:6", "tpm:5:7", "tpm:5:6", "running:5")
        assert redis.scripts == [
            (*keys, CALL.hex, 15.0, NOW, LEASE_SECONDS, RUNNING_SECONDS, 10, 9, 0, 0),
            (*keys, OTHER.hex, 15.0, NOW, LEASE_SECONDS, RUNNING_SECONDS, 10, 0, 0, 4),
        ]
        for held in (rate, slot):
            assert isinstance(held, Slot)
            limits.release(held)
        await asyncio.sleep(0)
        assert redis.commands == [("ZREM", "running:5", OTHER.hex)]

    play(story)


@pytest.mark.parametrize(
    ("answer", "said", "standing"),
    [
        # 9 in this minute: at its end one too many still.
        ([-1, 1, 9, 4, 20, 8], (REQUESTS, 51.667), Standing(Left(9, 0, 105.0), Left(50, 24, 105.0))),
        ([-2, 1, 0, 4, 0, 8], (RUNNING, 1), Standing(Left(9, 6, 45.0), Left(50, 44, 45.0))),
        # 40 and three quarters of 8: room for 10 once 40 have become none and 50 - 10 are left.
        ([-3, 1, 1, 0, 40, 8], (TOKENS, 45.0), Standing(Left(9, 8, 105.0), Left(50, 4, 105.0))),
    ],
)
def test_a_refusal_says_when_to_come_back(
    redis: ScriptedRedis, clock: Clock, answer: list[int], said: tuple[str, float], standing: Standing
) -> None:
    async def story(limits: Limits, _: Metrics) -> None:
        redis.codes = [answer]
        refused = await asks(limits, 5, 9, 4, CALL, 50)
        assert isinstance(refused, Refused)
        assert told(refused) == said
        assert (refused.limit, refused.standing) == (Limit("5", 9, 50, 4), standing)

    play(story)


def test_a_refusal_names_the_limit_that_is_reached(redis: ScriptedRedis, clock: Clock) -> None:
    async def story(limits: Limits, _: Metrics) -> None:
        redis.codes = [[-3, 2, 1, 0, 0, 0, 1, 0, 90, 0]]
        both = [Limit("token:5", 9), Limit("none"), Limit("account:3", None, 95)]
        refused = await limits.acquire(both, 10, CALL)
        assert isinstance(refused, Refused)
        assert (refused.reason, refused.limit) == (TOKENS, both[2])
        assert refused.standing == Standing(Left(9, 8, 105.0), Left(95, 5, 105.0))
        keys = [f"{kind}:{subject}" for subject in ("token:5", "account:3") for kind in ("rpm", "tpm")]
        assert [key.rpartition(":")[0] for key in redis.scripts[0][1:] if str(key)[1:4] == "pm:"] == [
            key for key in keys for _ in range(2)
        ]

    play(story)


def test_more_than_the_whole_limit_is_never_let_in(redis: ScriptedRedis, clock: Clock) -> None:
    async def story(limits: Limits, _: Metrics) -> None:
        refused = await asks(limits, 5, 9, None, CALL, 9)
        assert refused == Refused(TOO_MANY, 0, Limit("5", 9, 9))
        redis.codes = [1]
        assert told(await asks(limits, 5, 9, None, CALL, 10)) == SHARED
        assert redis.trips == 1

    play(story)


def test_tokens_are_corrected_once_in_the_minute_of_their_reservation(
    redis: ScriptedRedis, clock: Clock
) -> None:
    async def story(limits: Limits, _: Metrics) -> None:
        both = [Limit("token:5", 9, 50), Limit("account:3", 9), Limit("account:4", None, 60)]
        redis.codes = [[1, 0, 2, 0, 20, 0, 0, 0, 0, 0, 0, 0, 45, 0]]
        slot = await limits.acquire(both, 10, CALL)
        assert isinstance(slot, Slot)
        assert slot.standing == Standing(Left(9, 6, 105.0), Left(60, 5, 105.0))
        clock.now += 70
        slot.used = 7
        limits.correct(slot)
        limits.correct(slot)
        limits.release(slot)
        await settled()
        keys = ("tpm:token:5:7", "tpm:account:4:7")
        assert redis.commands == [("EVALSHA", shared.CORRECT_NAME, 2, *keys, -3)]

    play(story)


def test_a_call_that_nothing_came_of_gives_back_all_that_it_reserved(
    redis: ScriptedRedis, clock: Clock
) -> None:
    async def story(limits: Limits, _: Metrics) -> None:
        redis.codes = [1, 1, 1]
        for tpm, commands in ((50, [("EVALSHA", shared.CORRECT_NAME, 1, "tpm:5:7", -10)]), (None, [])):
            slot = await asks(limits, 5, 9, None, CALL, tpm)
            assert isinstance(slot, Slot)
            limits.release(slot)
            await settled()
            assert redis.commands == commands
            redis.commands.clear()
        exact = await asks(limits, 5, None, None, CALL, 50)
        assert isinstance(exact, Slot)
        exact.used = 10
        limits.release(exact)
        await settled()
        assert redis.commands == []

    play(story)


def test_calls_that_wait_share_a_round_trip(redis: ScriptedRedis, clock: Clock) -> None:
    async def story(limits: Limits, _: Metrics) -> None:
        redis.codes = [1, -1, -2, 1]
        answers = await asyncio.gather(*(asks(limits, 5, 9, 4, UUID(int=n)) for n in range(4)))
        assert [isinstance(answer, Slot) for answer in answers] == [True, False, False, True]
        assert redis.trips == 1

    play(story)


def test_calls_that_come_during_a_round_trip_share_the_next(redis: ScriptedRedis, clock: Clock) -> None:
    async def story(limits: Limits, _: Metrics) -> None:
        redis.codes = [1] * 4
        redis.gate.clear()
        first = asyncio.create_task(asks(limits, 5, 9, 4, UUID(int=9)))
        await settled()
        others = [asyncio.create_task(asks(limits, 5, 9, 4, UUID(int=n))) for n in range(3)]
        await settled()
        assert redis.trips == 1
        redis.gate.set()
        assert all(isinstance(answer, Slot) for answer in await asyncio.gather(first, *others))
        assert redis.trips == 2

    play(story)


FAILURES = [
    RedisError("gone"),
    OSError("gone"),
    TimeoutError(),
    AttributeError("a fault of the client"),
    "odd",
]


@pytest.mark.parametrize("failure", FAILURES, ids=str)
def test_while_redis_is_away_a_replica_enforces_its_share(
    redis: ScriptedRedis, clock: Clock, failure: Exception | str
) -> None:
    async def story(limits: Limits, metrics: Metrics) -> None:
        redis.codes = [failure]
        # 4 running calls among 3 replicas: 2 for each.
        slots = [await asks(limits, 5, None, 4, UUID(int=n)) for n in range(2)]
        assert [told(slot) for slot in slots] == [LOCAL] * 2
        assert told(await asks(limits, 5, None, 4, CALL)) == (RUNNING, 1)
        assert (redis.trips, limits.state, degraded(metrics)) == (1, "away", 1)
        assert isinstance(slots[0], Slot)
        limits.release(slots[0])
        assert isinstance(await asks(limits, 5, None, 4, CALL), Slot)
        assert redis.commands == []
        # 4 calls a minute among 3 replicas: 2 for each.
        rates = [await asks(limits, 6, 4, None, UUID(int=n)) for n in range(3)]
        assert told(rates[2]) == (REQUESTS, 75.0)
        assert isinstance(rates[2], Refused)
        assert (rates[2].limit, rates[2].standing.requests) == (Limit("6", 4), Left(2, 0, 105.0))
        # 40 tokens a minute among 3 replicas: 14 for each, and what is more passes alone.
        tokens = [await asks(limits, 8, None, None, UUID(int=n), 40) for n in range(2)]
        assert [told(given)[0] for given in tokens] == ["in", TOKENS]
        large = [await limits.acquire([Limit("9", None, 40)], 40, UUID(int=n)) for n in range(2)]
        assert [told(given)[0] for given in large] == ["in", TOKENS]
        assert isinstance(large[0], Slot)
        large[0].used = 3
        limits.release(large[0])
        assert told(await limits.acquire([Limit("9", None, 40)], 11, CALL)) == LOCAL
        # It is asked again after a while, not before.
        clock.now += RETRY_SECONDS - 0.01
        await asks(limits, 7, 4, None, CALL)
        assert redis.trips == 1
        clock.now += 0.01
        redis.codes = [1]
        assert told(await asks(limits, 7, 4, None, CALL)) == SHARED
        assert (redis.trips, limits.state, degraded(metrics)) == (2, "ok", 0)

    play(story)


async def leased(redis: ScriptedRedis, limits: Limits, call: UUID = CALL) -> Slot:
    redis.codes = [1]
    slot = await asks(limits, 5, None, 4, call)
    assert isinstance(slot, Slot)
    assert call in limits._running
    return slot


async def settled() -> None:
    """Let the work that acquire() and release() have begun come to its end."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_slot_that_cannot_be_freed_degrades_and_is_left_to_its_lease(
    redis: ScriptedRedis, clock: Clock
) -> None:
    async def story(limits: Limits, metrics: Metrics) -> None:
        for failure in [RedisError("gone"), OSError("gone"), ValueError("odd")]:
            slot = await leased(redis, limits)
            redis.codes = [failure]
            limits.release(slot)
            await settled()
            assert (limits.state, degraded(metrics)) == ("away", 1)
            clock.now += RETRY_SECONDS

    play(story)


def test_while_redis_is_away_no_slot_is_freed_there(redis: ScriptedRedis, clock: Clock) -> None:
    async def story(limits: Limits, _: Metrics) -> None:
        first, second = await leased(redis, limits), await leased(redis, limits, OTHER)
        redis.codes = [RedisError("gone")]
        await asks(limits, 5, None, 4, UUID(int=3))
        limits.release(first)
        await settled()
        assert redis.commands == []
        clock.now += RETRY_SECONDS
        limits.release(second)
        await settled()
        assert redis.commands == [("ZREM", "running:5", OTHER.hex)]

    play(story)


def test_a_slot_that_is_given_back_twice_breaks_nothing(redis: ScriptedRedis, clock: Clock) -> None:
    async def story(limits: Limits, _: Metrics) -> None:
        slot = await leased(redis, limits)
        limits.release(slot)
        limits.release(slot)
        await settled()
        assert redis.commands == [("ZREM", "running:5", CALL.hex)]

    play(story)


def test_a_redis_that_hangs_is_away_soon(redis: ScriptedRedis, clock: Clock) -> None:
    async def story(limits: Limits, metrics: Metrics) -> None:
        slot = await leased(redis, limits)
        redis.gate.clear()
        assert told(await asks(limits, 5, None, 4, OTHER)) == LOCAL
        clock.now += RETRY_SECONDS
        assert limits.state == "ok"
        limits.release(slot)
        await asyncio.sleep(0.05)
        await settled()
        assert limits.state == "away"

    play(story, timeout_seconds=0.01)


@pytest.mark.parametrize(
    "codes", [[None, None], [1, None], [None, 1], ["odd", "odd"], [[], []], [[7, 1, 0, 0, 0, 0]] * 2]
)
def test_an_answer_that_lacks_a_call_counts_for_none(
    redis: ScriptedRedis, clock: Clock, codes: list[Any]
) -> None:
    async def story(limits: Limits, _: Metrics) -> None:
        redis.codes = codes
        slots = await asyncio.gather(*(asks(limits, 5, None, 6, UUID(int=n)) for n in range(2)))
        assert [told(slot) for slot in slots] == [LOCAL] * 2
        assert (redis.trips, limits.state) == (1, "away")

    play(story)


def test_who_was_let_in_is_in_whatever_became_of_the_next(redis: ScriptedRedis, clock: Clock) -> None:
    async def story(limits: Limits, _: Metrics) -> None:
        redis.codes = [1, "odd"]
        slots = await asyncio.gather(*(asks(limits, 5, None, 6, UUID(int=n)) for n in range(2)))
        assert [told(slot) for slot in slots] == [SHARED, LOCAL]
        assert (redis.trips, limits.state) == (1, "away")

    play(story)


def test_nothing_runs_on_after_the_end(redis: ScriptedRedis, clock: Clock) -> None:
    async def story() -> None:
        limits = Limits("redis://r", None, 3, Metrics())
        await limits.start()
        await limits.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(story())
    assert redis.closed


def test_each_loss_of_redis_is_one_log_line(
    redis: ScriptedRedis, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(limits: Limits, _: Metrics) -> None:
        redis.codes = [RedisError("gone")] * 3
        await asyncio.gather(*(asks(limits, 5, None, 4, UUID(int=n)) for n in range(3)))
        await asks(limits, 5, None, 4, CALL)
        clock.now += RETRY_SECONDS
        redis.codes = [OSError("gone")]
        await asks(limits, 5, None, 4, CALL)
        clock.now += RETRY_SECONDS
        slot = await leased(redis, limits)
        redis.codes = [ValueError("odd")]
        limits.release(slot)
        await settled()

    play(story)
    said = "Redis is away, limits fall back to a share a replica: "
    assert caplog.messages == [said + "RedisError", said + "OSError", said + "ValueError"]


def test_redis_is_asked_once_and_not_again(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """A client that tries again by itself would make each call wait as often."""
    connections = []

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        limits = Limits(f"redis://127.0.0.1:{port}/0", None, 3, Metrics())
        assert told(await asks(limits, 5, None, 4, CALL)) == LOCAL
        await limits.close()
        server.close()

    asyncio.run(run())
    assert len(connections) == 1
    assert caplog.messages[0].endswith(": ConnectionError")


def test_leases_of_running_calls_are_renewed(
    redis: ScriptedRedis, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "RENEW_SECONDS", 0.01)

    async def story(limits: Limits, _: Metrics) -> None:
        await limits.start()
        redis.codes = [1, 1, 1]
        held = await asks(limits, 5, None, 4, CALL)
        freed = await asks(limits, 5, None, 4, OTHER)
        await asks(limits, 5, 4, None, UUID(int=3))  # has a rate alone: nothing to renew
        assert isinstance(held, Slot)
        assert isinstance(freed, Slot)
        limits.release(freed)
        renewals: list[Any] = []
        async with asyncio.timeout(10):
            while len(renewals) < 4:
                await asyncio.sleep(0.01)
                renewals = [command for command in redis.commands if command[0] != "ZREM"]
        lease = ("ZADD", "running:5", "XX", NOW + LEASE_SECONDS, CALL.hex)
        assert set(renewals) == {lease, ("EXPIRE", "running:5", RUNNING_SECONDS)}

    play(story)


def test_without_redis_every_replica_enforces_its_share(clock: Clock) -> None:
    async def story(limits: Limits, metrics: Metrics) -> None:
        await limits.start()
        assert limits.state == "off"
        slots = [await asks(limits, 5, None, 4, UUID(int=n)) for n in range(3)]
        assert [isinstance(slot, Slot) for slot in slots] == [True, True, False]
        assert degraded(metrics) == 0

    play(story, url="")


def test_without_redis_its_library_is_not_read() -> None:
    """Each command and each start of a relay without Redis would take 0.15 s of CPU longer."""
    told = "import sys, relay.cli, relay.app; print([name for name in sys.modules if name == 'redis'])"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_redis_with_tls_trusts_the_given_authority(tmp_path: Path) -> None:
    authority = tmp_path / "ca.crt"
    for url, given, expected in (
        ("rediss://r:1/0", authority, str(authority)),
        ("rediss://r:1/0", None, None),
        ("redis://r:1/0", authority, None),
    ):
        client = Limits(url, given, 1, Metrics(), 1.5)._redis
        assert client is not None
        options = client.connection_pool.connection_kwargs
        assert options.get("ssl_ca_certs") == expected
        assert (options["socket_timeout"], options["socket_connect_timeout"]) == (None, 1.5)
        assert options["retry"].get_retries() == 0

"""The limits' script on a real Redis, against what it should decide by the definition of the limits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import count
from uuid import UUID, uuid4

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.limits import shared
from relay.limits.shared import LEASE_SECONDS, RUNNING_SECONDS, Limits, Slot
from relay.telemetry.metrics import Metrics
from tests.contract.relay_rig import Redis, eventually, running_redis

TOKENS = count(1)  # each test and example has a token of its own
START = 100 * 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with running_redis(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def client(server: Redis) -> Iterator[redis.Redis]:
    with redis.Redis(port=server.port, decode_responses=True) as connected:
        yield connected


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = START

    def time(self) -> float:
        return self.now

    monotonic = time


class Model:
    """The definition: requests of a sliding minute, and running calls whose lease is not over."""

    def __init__(self) -> None:
        self.requests: dict[int, int] = {}
        self.running: dict[UUID, float] = {}

    def lets_in(self, rpm: int | None, concurrency: int | None, call: UUID, now: float) -> str:
        minute, into = divmod(now, 60)
        alive = {held: until for held, until in self.running.items() if until > now}
        before = self.requests.get(int(minute) - 1, 0) * (1 - into / 60)
        if concurrency is not None and len(alive) >= concurrency:
            return "concurrency_limit_exceeded"
        if rpm is not None and self.requests.get(int(minute), 0) + before + 1 > rpm:
            return "rate_limit_exceeded"
        if rpm is not None:
            self.requests[int(minute)] = self.requests.get(int(minute), 0) + 1
        if concurrency is not None:
            self.running = alive | {call: now + LEASE_SECONDS}
        return "in"


LIMIT = st.none() | st.integers(1, 4)
STEPS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.0, 0.0, 1.0, 7.5, 15.0, 29.5, 30.0, 60.0, 150.0]), st.booleans()),
    min_size=1,
    max_size=30,
)


# Without a clock, since machines are busy.
@settings(deadline=None)
@given(rpm=LIMIT, concurrency=LIMIT, steps=STEPS)
def test_redis_decides_by_the_definition(
    server: Redis, rpm: int | None, concurrency: int | None, steps: list[tuple[float, bool]]
) -> None:
    """Two replicas in turn: time passes, a call comes, and the oldest running one may end before it."""
    clock, model, token = Clock(), Model(), next(TOKENS)

    async def story() -> None:
        replicas = [Limits(server.url, None, 2, Metrics()) for _ in range(2)]
        held: list[tuple[Limits, Slot]] = []
        for number, (seconds, ends) in enumerate(steps):
            clock.now += seconds
            if ends and held:
                owner, slot = held.pop(0)
                owner.release(slot)
                await asyncio.gather(*owner._tasks)
                model.running.pop(slot.request_id, None)
            call, replica = uuid4(), replicas[number % 2]
            given = await replica.acquire(token, rpm, concurrency, call)
            if isinstance(given, Slot):
                assert not given.local
                held.append((replica, given))
            decided = "in" if isinstance(given, Slot) else given.reason
            assert decided == model.lets_in(rpm, concurrency, call, clock.now)
        for replica in replicas:
            await replica.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "time", clock)
        # A busy machine is no Redis that is away.
        patch.setattr(shared, "ROUND_TRIP_SECONDS", 20.0)
        asyncio.run(story())


def test_counters_outlive_their_window_and_end(server: Redis, client: redis.Redis) -> None:
    token = next(TOKENS)

    async def story() -> None:
        limits = Limits(server.url, None, 1, Metrics())
        for _ in range(2):
            await limits.acquire(token, 9, 9, uuid4())
        await limits.close()

    asyncio.run(story())
    (counter,) = client.keys(f"rpm:{token}:*")
    assert client.get(counter) == "2"
    assert 120 < int(client.ttl(counter)) <= 130, "this minute, and all of the next one"
    assert LEASE_SECONDS < int(client.ttl(f"running:{token}")) <= RUNNING_SECONDS


def test_a_call_may_run_longer_than_its_set_is_kept(
    server: Redis, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "RENEW_SECONDS", 0.05)
    token = next(TOKENS)
    running = f"running:{token}"

    async def story() -> None:
        limits = Limits(server.url, None, 1, Metrics())
        await limits.start()
        slot = await limits.acquire(token, None, 1, uuid4())
        assert isinstance(slot, Slot)
        client.expire(running, 5)
        client.zadd(running, {slot.request_id.hex: 1})
        renewed = asyncio.to_thread(eventually, lambda: int(client.ttl(running)) > 5)
        await renewed
        assert not isinstance(await limits.acquire(token, None, 1, uuid4()), Slot)
        limits.release(slot)
        await asyncio.to_thread(eventually, lambda: not client.exists(running))
        await limits.close()

    asyncio.run(story())

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
from relay.limits.window import REQUESTS, RUNNING, TOKENS, Limit
from relay.telemetry.metrics import Metrics
from tests.contract.relay_rig import Redis, early_in_a_minute, eventually, limits_on, running_redis

TOKENS_OF_TEST = count(1)  # each test and example has a token of its own
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
    """The definition: requests and tokens of a sliding minute, and running calls whose lease is not over."""

    def __init__(self) -> None:
        self.requests: dict[int, int] = {}
        self.tokens: dict[int, int] = {}
        self.running: dict[UUID, float] = {}

    def refuses(self, limit: Limit, tokens: int, now: float) -> str | None:
        minute, into = divmod(now, 60)

        def counted(of: dict[int, int]) -> float:
            return of.get(int(minute), 0) + of.get(int(minute) - 1, 0) * (1 - into / 60)

        if limit.concurrency is not None and len(self.alive(now)) >= limit.concurrency:
            return RUNNING
        if limit.rpm is not None and counted(self.requests) + 1 > limit.rpm:
            return REQUESTS
        if limit.tpm is not None and counted(self.tokens) + tokens > limit.tpm:
            return TOKENS
        return None

    def alive(self, now: float) -> dict[UUID, float]:
        return {held: until for held, until in self.running.items() if until > now}

    def takes(self, limit: Limit, tokens: int, call: UUID, now: float) -> None:
        minute = int(now // 60)
        if limit.rpm is not None:
            self.requests[minute] = self.requests.get(minute, 0) + 1
        if limit.tpm is not None:
            self.tokens[minute] = self.tokens.get(minute, 0) + tokens
        if limit.concurrency is not None:
            self.running = self.alive(now) | {call: now + LEASE_SECONDS}


LIMIT = st.none() | st.integers(1, 4)
TPM = st.none() | st.integers(50, 200)
STEPS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.0, 1.0, 7.5, 15.0, 29.5, 30.0, 60.0, 150.0]),
        st.booleans(),
        st.booleans(),
        st.integers(0, 50),  # tokens that it reserves, and uses
        st.integers(0, 60),
    ),
    min_size=1,
    max_size=30,
)


# Without a clock, since machines are busy.
@settings(deadline=None)
@given(limits=st.tuples(LIMIT, TPM, LIMIT), account=st.tuples(LIMIT, TPM, LIMIT), steps=STEPS)
def test_redis_decides_by_the_definition(
    server: Redis,
    limits: tuple[int | None, int | None, int | None],
    account: tuple[int | None, int | None, int | None],
    steps: list[tuple[float, bool, bool, int, int]],
) -> None:
    """Two replicas in turn: time passes, the oldest call may end, one of an account's two keys calls."""
    clock, subject = Clock(), next(TOKENS_OF_TEST)
    keys = [Limit(f"token:{subject}.{number}", *limits) for number in range(2)]
    whole = Limit(f"account:{subject}", *account)
    models = {limit.subject: Model() for limit in (*keys, whole)}

    async def story() -> None:
        async with limits_on(server, 2) as one, limits_on(server, 2) as other:
            replicas = [one, other]
            held: list[tuple[Limits, Slot, int]] = []
            for number, (seconds, ends, first, tokens, used) in enumerate(steps):
                clock.now += seconds
                if ends and held:
                    owner, slot, reserved = held.pop(0)
                    owner.release(slot)
                    await asyncio.gather(*owner._tasks)
                    for limit in slot.limits:
                        models[limit.subject].running.pop(slot.request_id, None)
                        if limit.tpm is not None:
                            models[limit.subject].tokens[slot.minute] += slot.used - reserved
                call, replica, both = uuid4(), replicas[number % 2], (keys[first], whole)
                given = await replica.acquire(both, tokens, call)
                reasons = [models[limit.subject].refuses(limit, tokens, clock.now) for limit in both]
                expected = next((reason for reason in reasons if reason is not None), "in")
                assert ("in" if isinstance(given, Slot) else given.reason) == expected
                if isinstance(given, Slot):
                    assert not given.local
                    given.used = used
                    held.append((replica, given, tokens))
                    for limit in both:
                        models[limit.subject].takes(limit, tokens, call, clock.now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "time", clock)
        asyncio.run(story())


def test_many_callers_on_two_replicas_never_reserve_more_than_the_limit(
    server: Redis, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 calls at once, four times: at no time do use and reservations exceed the limit."""
    clock = Clock()
    monkeypatch.setattr(shared, "time", clock)
    subject, tpm = f"token:{next(TOKENS_OF_TEST)}", 10_000
    limit, counter = Limit(subject, tpm=tpm), f"tpm:{subject}:{int(START // 60)}"
    most = let_in = used = 0

    async def story() -> None:
        async with limits_on(server, 2) as one, limits_on(server, 2) as other:
            replicas = [one, other]
            reserved = 0

            async def call(number: int) -> None:
                nonlocal reserved, most, let_in, used
                replica, tokens = replicas[number % 2], 100 + number % 7 * 50
                slot = await replica.acquire([limit], tokens, uuid4())
                if not isinstance(slot, Slot):
                    assert slot.reason == TOKENS
                    return
                let_in += 1
                reserved += tokens
                most = max(most, reserved + used)
                await asyncio.sleep(0.001 * (number % 5))
                reserved -= tokens
                used += tokens // 10
                slot.used = tokens // 10
                replica.release(slot)

            for first in range(0, 400, 100):
                await asyncio.gather(*(call(number) for number in range(first, first + 100)))
                for replica in replicas:
                    while replica._tasks:
                        await asyncio.gather(*replica._tasks)

    asyncio.run(story())
    assert most <= tpm
    assert let_in > tpm // 250, "corrections let in more than the reservations alone"
    assert int(str(client.get(counter))) == used


def test_a_correction_makes_nothing_of_what_redis_has_lost(server: Redis, client: redis.Redis) -> None:
    limit = Limit(f"token:{next(TOKENS_OF_TEST)}", tpm=1000)

    async def story() -> None:
        async with limits_on(server) as limits:
            for left, after in ((None, None), (300, 0), (900, 400)):
                slot = await limits.acquire([limit], 500, uuid4())
                assert isinstance(slot, Slot)
                counter = f"tpm:{limit.subject}:{slot.minute}"
                client.delete(counter)
                if left is not None:
                    client.set(counter, left)
                limits.release(slot)
                await asyncio.gather(*limits._tasks)
                assert client.get(counter) == (None if after is None else str(after))
                client.delete(counter)

    asyncio.run(story())


def test_counters_outlive_their_window_and_end(server: Redis, client: redis.Redis) -> None:
    token = next(TOKENS_OF_TEST)

    async def story() -> None:
        async with limits_on(server) as limits:
            for _ in range(2):
                await limits.acquire([Limit(str(token), 9, 90, 9)], 7, uuid4())

    asyncio.run(story())
    for kind, counted in (("rpm", "2"), ("tpm", "14")):
        (counter,) = client.keys(f"{kind}:{token}:*")
        assert client.get(counter) == counted
        assert 90 < int(client.ttl(counter)) <= 130, "this minute, and all of the next one"
    assert LEASE_SECONDS < int(client.ttl(f"running:{token}")) <= RUNNING_SECONDS


def test_a_call_may_run_longer_than_its_set_is_kept(
    server: Redis, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "RENEW_SECONDS", 0.05)
    token = next(TOKENS_OF_TEST)
    running = f"running:{token}"

    async def story() -> None:
        async with limits_on(server) as limits:
            await limits.start()
            slot = await limits.acquire([Limit(str(token), concurrency=1)], 0, uuid4())
            assert isinstance(slot, Slot)
            client.expire(running, 5)
            client.zadd(running, {slot.request_id.hex: 1})
            renewed = asyncio.to_thread(eventually, lambda: int(client.ttl(running)) > 5)
            await renewed
            assert not isinstance(await limits.acquire([Limit(str(token), concurrency=1)], 0, uuid4()), Slot)
            limits.release(slot)
            await asyncio.to_thread(eventually, lambda: not client.exists(running))

    asyncio.run(story())


def test_a_redis_that_has_forgotten_the_scripts_counts_each_call_once(
    server: Redis, client: redis.Redis
) -> None:
    """As after its restart: what was refused for want of the script is done once, of a whole batch."""
    limit = Limit(f"token:{next(TOKENS_OF_TEST)}", rpm=100, tpm=1000, concurrency=50)

    async def story() -> None:
        async with limits_on(server) as limits:
            for _ in range(3):
                client.script_flush()
                slots = await asyncio.gather(*(limits.acquire([limit], 10, uuid4()) for _ in range(5)))
                assert all(isinstance(slot, Slot) and not slot.local for slot in slots)
                client.script_flush()
                for slot in slots:
                    assert isinstance(slot, Slot)
                    slot.used = 4
                    limits.release(slot)
            names = ("rpm", "tpm", "running")
            counted = {name: client.keys(f"{name}:{limit.subject}*")[0] for name in names}
            await asyncio.to_thread(eventually, lambda: client.get(counted["tpm"]) == "60")
            assert client.get(counted["rpm"]) == "15"
            await asyncio.to_thread(eventually, lambda: client.zcard(counted["running"]) == 0)

    early_in_a_minute()
    asyncio.run(story())


def test_a_connection_that_redis_has_closed_meanwhile_is_no_loss(server: Redis, client: redis.Redis) -> None:
    limit = Limit(f"token:{next(TOKENS_OF_TEST)}", concurrency=50)

    async def story() -> None:
        async with limits_on(server) as limits:
            for _ in range(3):
                slot = await limits.acquire([limit], 0, uuid4())
                assert isinstance(slot, Slot)
                assert not slot.local
                assert client.client_kill_filter(_type="normal", skipme=True) == 1
                await asyncio.sleep(0.1)

    asyncio.run(story())


def test_no_answer_is_taken_for_that_of_a_later_call(
    server: Redis, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has waited in vain for Redis leaves an answer behind."""
    monkeypatch.setattr(shared, "RETRY_SECONDS", 0.0)
    limit = Limit(f"token:{next(TOKENS_OF_TEST)}", rpm=100)

    async def story() -> None:
        limits = Limits(server.url, None, 1, Metrics(), timeout_seconds=0.5)
        try:
            assert not await local(limits)
            client.client_pause(2_000)
            assert await local(limits)
            while await local(limits):  # until the pause is over
                pass
            left = []
            for _ in range(5):
                slot = await limits.acquire([limit], 0, uuid4())
                assert isinstance(slot, Slot)
                assert slot.standing.requests is not None
                left.append(slot.standing.requests.remaining)
            assert left == list(range(left[0], left[0] - 5, -1))
        finally:
            await limits.close()

    async def local(limits: Limits) -> bool:
        slot = await limits.acquire([limit], 0, uuid4())
        assert isinstance(slot, Slot)
        return slot.local

    early_in_a_minute()
    asyncio.run(story())

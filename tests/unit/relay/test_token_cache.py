"""Who calls while the database is away, and which limits of an account and its plan hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg_pool import PoolTimeout

from relay.errors import ApiError
from relay.identity import token_cache
from relay.identity.token_cache import Rates, TokenCache
from relay.store import identity

LIMITS = st.none() | st.integers(1, 9)
RATES = st.builds(Rates, LIMITS, LIMITS, LIMITS)
ROW: dict[str, Any] = dict.fromkeys(
    (
        *("models", "addresses", "permissions", "expires_at", "plan", "rpm", "tpm", "concurrency"),
        *("model_limits", "account_rpm", "account_tpm", "account_concurrency", "account_model_limits"),
        *("plan_rpm", "plan_tpm", "plan_concurrency", "plan_model_limits"),
    )
) | {"token_id": 1, "account_id": 2, "group": "default", "status": "active", "account_status": "active"}


class Database:
    """A pool whose database is away until it is said to be back."""

    def __init__(self) -> None:
        self.away = True
        self.asked = 0

    @asynccontextmanager
    async def connection(self, timeout: float) -> AsyncIterator[object]:  # noqa: ASYNC109 - as the pool has it
        self.asked += 1
        if self.away:
            await asyncio.sleep(min(timeout, 0.02))
            raise PoolTimeout("away")
        yield object()


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Database:
    async def find(_: object, digest: bytes) -> dict[str, Any]:
        return ROW

    monkeypatch.setattr(identity, "find_caller", find)
    monkeypatch.setattr(token_cache, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(token_cache, "TRY_SECONDS", 0.05)
    return Database()


def cache_of(database: Database, seconds: float = 60, calls: int = 2) -> TokenCache:
    return TokenCache(cast(Any, database), seconds, calls)


async def ask(cache: TokenCache, key: bytes) -> str:
    try:
        return str((await cache.authenticate(key, None, "chat")).token_id)
    except ApiError as error:
        return f"{error.status} {error.reason} {error.headers['retry-after']}"


def test_so_many_calls_wait_and_are_served_and_the_next_are_refused_at_once(database: Database) -> None:
    cache = cache_of(database)

    async def story() -> None:
        waiting = [asyncio.create_task(ask(cache, key)) for key in (b"a", b"b")]
        await asyncio.sleep(0.1)
        assert await ask(cache, b"c") == "503 database_unavailable 2"
        assert not any(task.done() for task in waiting)
        database.away = False
        assert await asyncio.gather(*waiting) == ["1", "1"]
        asked = database.asked
        assert await ask(cache, b"c") == "1", "nobody waits any more"
        assert await ask(cache, b"a") == "1"
        assert database.asked == asked + 1, "a token is asked for once"

    asyncio.run(story())


def test_nobody_waits_longer_than_is_set(database: Database) -> None:
    cache = cache_of(database, seconds=0.5)

    async def story() -> None:
        assert await ask(cache, b"a") == "503 database_unavailable 2"
        assert database.asked >= 2, "it has tried again"
        cancelled = asyncio.create_task(ask(cache, b"b"))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        database.away = False
        assert await asyncio.gather(*(ask(cache, key) for key in (b"b", b"c"))) == ["1", "1"]

    asyncio.run(story())


@given(RATES, RATES)
def test_of_two_limits_the_lower_one_holds(one: Rates, other: Rates) -> None:
    held = one.stricter(other)
    assert held == other.stricter(one)
    for at in range(3):
        given_ = [limits[at] for limits in (one, other) if limits[at] is not None]
        assert held[at] == (min(cast(Any, given_)) if given_ else None)


def test_a_plans_limits_are_those_of_each_model_that_either_names() -> None:
    row = ROW | {
        "account_rpm": 9,
        "plan": "pro",
        "plan_rpm": 7,
        "plan_concurrency": 3,
        "account_model_limits": {"a": {"rpm": 5}, "b": {"tpm": 6}},
        "plan_model_limits": {"a": {"rpm": 6, "tpm": 4}, "c": {"rpm": 1}},
    }
    caller = token_cache._caller(row)
    assert caller.account_limits == Rates(7, None, 3)
    assert caller.account_models == {
        "a": Rates(5, 4, None),
        "b": Rates(None, 6, None),
        "c": Rates(1, None, None),
    }
    assert (caller.plan, caller.plan_limits, caller.plan_models["c"].rpm) == ("pro", Rates(7, None, 3), 1)

"""The relay when its surroundings fail: Redis, the database, the process itself; and its drained end."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
import requests

from relay.limits import shared
from relay.limits.shared import Limits, Slot
from relay.limits.window import Limit
from tests.contract.conftest import Database, PostgresServer
from tests.contract.relay_rig import (
    MODEL,
    Customer,
    Provider,
    Redis,
    Relay,
    asks,
    early_in_a_minute,
    eventually,
    limits_on,
    price,
    running_redis,
)

BODY = {"model": MODEL, "messages": asks()}


@pytest.fixture(autouse=True)
def obedient(provider: Provider) -> Iterator[None]:
    yield
    provider.control()


@pytest.fixture
def relay(database: Database, provider: Provider, tmp_path: Path) -> Iterator[Relay]:
    made = Relay(database, tmp_path)
    made.channel(provider.url, MODEL)
    made.price(MODEL)
    yield made
    made.stop()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Redis]:
    with running_redis(tmp_path) as running:
        yield running


# ---------------------------------------------------------------------- limits and Redis


def test_replicas_share_the_rate_limit(relay: Relay, own_redis: Redis) -> None:
    relay.settings["RELAY_REDIS_URL"] = own_redis.url
    first, second = relay.replica(), relay.replica()
    customer = Customer(relay, first, "limited", "1.00", "--rpm", "6")
    early_in_a_minute()
    refused = []
    for number in range(12):
        customer.replica = (first, second)[number % 2]
        answer = customer.post(BODY)
        if answer.status_code == 429:
            refused.append(answer)
    assert len(refused) == 6
    assert {answer.json()["error"]["code"] for answer in refused} == {"rate_limit_exceeded"}
    assert all(1 <= int(answer.headers["retry-after"]) <= 120 for answer in refused)
    assert len(relay.usage(customer.account)) == 6


def test_concurrency_is_shared_and_freed(relay: Relay, own_redis: Redis, provider: Provider) -> None:
    relay.settings["RELAY_REDIS_URL"] = own_redis.url
    first, second = relay.replica(), relay.replica()
    customer = Customer(relay, first, "narrow", "1.00", "--concurrency", "2")
    provider.control(chunk_delay_ms=1500, completion_tokens=10)
    streams = [first.client(customer.key), second.client(customer.key)]
    open_streams = [sdk.chat.completions.create(model=MODEL, messages=asks(), stream=True) for sdk in streams]
    answer = customer.post(BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "concurrency_limit_exceeded")
    open_streams[0].close()
    provider.control()
    eventually(lambda: customer.post(BODY).status_code == 200)
    open_streams[1].close()


def test_no_call_fails_because_redis_is_gone(relay: Relay, own_redis: Redis) -> None:
    relay.settings |= {"RELAY_REDIS_URL": own_redis.url, "RELAY_REPLICAS": "2"}
    replica = relay.replica()
    customer = Customer(relay, replica, "alone", "1.00", "--rpm", "1000", "--concurrency", "50")
    assert customer.post(BODY).status_code == 200
    own_redis.process.kill()
    assert [customer.post(BODY).status_code for _ in range(20)] == [200] * 20
    assert replica.metric("relay_limits_degraded") == 1
    assert requests.get(f"{replica.url}/healthz", timeout=60).json()["redis"] == "away"
    assert eventually(replica.ready)
    own_redis.start()
    eventually(lambda: customer.post(BODY).ok and replica.metric("relay_limits_degraded") == 0)
    with_redis = Customer(relay, replica, "share", "1.00", "--rpm", "4")
    own_redis.process.kill()
    early_in_a_minute()
    statuses = [with_redis.post(BODY).status_code for _ in range(4)]
    assert statuses == [200, 200, 429, 429], "a replica alone lets its share through: 4 for 2 replicas"
    tokens = Customer(relay, replica, "tokens", "1.00", "--tpm", "1000")
    statuses = [tokens.post(BODY | {"max_tokens": most}).status_code for most in (400, 900, 300)]
    assert statuses == [200, 429, 200], "likewise of 1000 tokens, and a call gives back what it did not use"


ONLY_SLOT = Limit("7", concurrency=1)


async def gets_the_slot(limits: Limits) -> bool:
    return isinstance(await limits.acquire([ONLY_SLOT], 0, uuid4()), Slot)


def test_slots_of_a_dead_replica_are_freed(own_redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "LEASE_SECONDS", 5)

    async def scenario() -> None:
        async with limits_on(own_redis) as dead, limits_on(own_redis) as alive:
            began = time.monotonic()
            assert await gets_the_slot(dead)
            assert not await gets_the_slot(alive) or time.monotonic() - began > 5
            await asyncio.sleep(5.1)
            assert await gets_the_slot(alive)

    asyncio.run(scenario())


def test_slots_of_a_long_call_are_kept(own_redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "LEASE_SECONDS", 12)
    monkeypatch.setattr(shared, "RENEW_SECONDS", 0.5)

    async def scenario() -> None:
        async with limits_on(own_redis) as limits:
            await limits.start()
            slot = await limits.acquire([ONLY_SLOT], 0, uuid4())
            assert isinstance(slot, Slot)
            await asyncio.sleep(13)
            assert not await gets_the_slot(limits)
            limits.release(slot)
            with redis.Redis(port=own_redis.port) as client:
                await asyncio.to_thread(eventually, lambda: not client.exists("running:7"))
            assert await gets_the_slot(limits)

    asyncio.run(scenario())


# ---------------------------------------------------------------------- the relay itself


def test_a_drain_lets_streams_finish(relay: Relay, provider: Provider) -> None:
    replica = relay.replica(RELAY_DRAIN_SECONDS="12")
    customer = Customer(relay, replica, "draining", "1.00")
    provider.control(chunk_delay_ms=100, completion_tokens=30)
    stream = customer.sdk.chat.completions.create(model=MODEL, messages=asks(), stream=True)
    next(iter(stream))
    replica.process.signal(signal.SIGTERM)
    eventually(lambda: requests.get(f"{replica.url}/healthz", timeout=60).status_code == 503)
    provider.control(completion_tokens=1)
    assert customer.post(BODY).status_code == 200, "until the drain is over, calls are still served"
    eventually(lambda: customer.post(BODY).headers.get("connection") == "close")
    rest = list(stream)
    assert rest[-1].choices[0].finish_reason == "stop"
    assert replica.process.wait() == 0
    records = relay.usage(customer.account)
    assert {record["outcome"] for record in records} == {"ok"}
    assert 30 in {record["meters"]["out_text"] for record in records}


def test_a_stream_beyond_the_grace_is_cut_and_charged_for_what_was_delivered(
    relay: Relay, provider: Provider
) -> None:
    replica = relay.replica(RELAY_DRAIN_SECONDS="0", RELAY_GRACE_SECONDS="1")
    customer = Customer(relay, replica, "cut", "1.00")
    provider.control(chunk_delay_ms=200, completion_tokens=100)
    lines = customer.post(BODY | {"stream": True}, stream=True).iter_lines()
    next(lines)
    replica.process.signal(signal.SIGTERM)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        list(lines)
    assert replica.process.wait() == 0
    record = customer.record()
    assert (record["outcome"], record["abort_rule"]) == ("shutdown", "bill what was delivered")
    assert 1 <= record["meters"]["out_text"] < 100
    assert customer.spent() == price(record["meters"]["in_text"], record["meters"]["out_text"])


def test_a_killed_relay_leaves_a_hold_that_the_sweeper_ends(relay: Relay, provider: Provider) -> None:
    relay.settings |= {
        "RELAY_HOLD_WAIT_SECONDS": "5",
        "RELAY_PROVIDER_TIMEOUT_SECONDS": "3",
        "RELAY_SETTLE_SECONDS": "1",
        "RELAY_HOLD_MARGIN_SECONDS": "1",
    }
    replica = relay.replica()
    customer = Customer(relay, replica, "killed", "1.00")
    provider.control(chunk_delay_ms=200, completion_tokens=100)
    stream = customer.sdk.chat.completions.create(model=MODEL, messages=asks(), stream=True)
    next(iter(stream))
    replica.process.kill()
    balance, held = relay.balance(customer.account)
    assert balance == customer.funds
    assert held > 0, "the hold was not durable before the provider was called"
    customer.replica = relay.replica()
    provider.control()
    assert customer.post(BODY).status_code == 200
    eventually(lambda: relay.balance(customer.account)[1] == 0)
    swept, paid = sorted(relay.usage(customer.account), key=lambda record: record["charge"])
    assert (swept["outcome"], swept["charge"], paid["outcome"]) == ("swept", 0, "ok")
    assert customer.spent() == paid["charge"]
    assert relay.run("audit", "conserve").returncode == 0


def test_a_customer_that_does_not_read_is_cut_pays_what_it_got_and_frees_its_slot(
    relay: Relay, provider: Provider
) -> None:
    replica = relay.replica(RELAY_PROVIDER_TIMEOUT_SECONDS="6")
    customer = Customer(relay, replica, "stalled", "5.00", "--concurrency", "1")
    provider.control(completion_tokens=40_000)
    body = json.dumps(BODY | {"stream": True, "max_tokens": 40_000}).encode()
    host, port = replica.url.removeprefix("http://").split(":")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: relay\r\nauthorization: Bearer {customer.key}\r\n"
        )
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        # It has the slot before the other call asks for it.
        assert connection.recv(12) == b"HTTP/1.1 200"
        eventually(lambda: customer.post(BODY).status_code == 429)
        record = eventually(lambda: relay.usage(customer.account))[0]
        provider.control()
        assert customer.post(BODY).status_code == 200, "its slot is free"
    assert (record["outcome"], record["abort_rule"]) == ("client_stalled", "bill what was delivered")
    assert 1 <= record["meters"]["out_text"] < 40_000
    assert record["charge"] == price(record["meters"]["in_text"], record["meters"]["out_text"])


# ---------------------------------------------------------------------- the database


def test_calls_work_again_after_the_database_restarts(relay: Relay, postgres: PostgresServer) -> None:
    replica = relay.replica()
    customer = Customer(relay, replica, "restarted", "1.00")
    assert customer.post(BODY).status_code == 200
    postgres.control("restart", "-m", "immediate")
    eventually(lambda: customer.post(BODY).status_code == 200)
    eventually(replica.ready)
    new = Customer(relay, replica, "afterwards", "1.00")
    assert new.post(BODY).status_code == 200, "identity is no longer kept true"


def test_a_stream_survives_the_database(relay: Relay, provider: Provider, postgres: PostgresServer) -> None:
    replica = relay.replica()
    customer = Customer(relay, replica, "patient", "1.00")
    provider.control(chunk_delay_ms=100, completion_tokens=10)
    stream = customer.sdk.chat.completions.create(model=MODEL, messages=asks(), stream=True)
    next(iter(stream))
    postgres.control("stop", "-m", "immediate")
    back = threading.Timer(2, postgres.control, ("start",))
    try:
        eventually(lambda: not replica.ready())
        assert requests.get(f"{replica.url}/livez", timeout=60).ok
    finally:
        back.start()
    assert list(stream)[-1].choices[0].finish_reason == "stop"
    back.join()
    record = eventually(lambda: relay.usage(customer.account))[0]
    assert (record["outcome"], record["meters"]["out_text"]) == ("ok", 10)
    assert customer.spent() == price(record["meters"]["in_text"], 10)


def test_a_stream_that_cannot_be_charged_ends_without_its_end(
    relay: Relay, provider: Provider, postgres: PostgresServer
) -> None:
    replica = relay.replica(RELAY_SETTLE_SECONDS="1")
    customer = Customer(relay, replica, "unsettled", "1.00")
    provider.control(chunk_delay_ms=100, completion_tokens=10)
    lines = customer.post(BODY | {"stream": True}, stream=True).iter_lines()
    next(lines)
    postgres.control("stop", "-m", "immediate")
    try:
        rest = [line for line in lines if line]
    finally:
        postgres.control("start")
    assert b"could not be charged" in rest[-1]
    assert b"data: [DONE]" not in rest
    balance, held = relay.balance(customer.account)
    assert balance == customer.funds
    assert held > 0, "the hold stays for the sweeper"
    assert replica.metric('relay_ledger_alerts_total{reason="capture_lost"}') == 1


def test_so_many_calls_wait_for_a_database_and_the_others_are_refused_at_once(
    relay: Relay, provider: Provider, postgres: PostgresServer
) -> None:
    """A real PostgreSQL is stopped and started: who waits is served, once, and pays for it."""
    replica = relay.replica(RELAY_HOLD_WAIT_SECONDS="60", RELAY_HOLD_WAIT_CALLS="3")
    customer = Customer(relay, replica, "waits", "1.00")
    late = relay.token(customer.account, "late")
    assert customer.post(BODY).status_code == 200
    time.sleep(5)  # What is told of new tokens makes the replica forget the old ones.
    assert customer.post(BODY).status_code == 200
    before = provider.totals()["calls"]
    contents = {"contents": [{"role": "user", "parts": [{"text": "Hi?"}]}]}
    refusals: list[tuple[str, dict[str, str], Any]] = [
        ("/v1/chat/completions", {"authorization": f"Bearer {customer.key}"}, BODY),
        ("/v1/messages", {"x-api-key": customer.key}, BODY | {"max_tokens": 9}),
        (f"/v1beta/models/{MODEL}:generateContent", {"x-goog-api-key": customer.key}, contents),
    ]

    def called() -> float:
        return replica.metric("relay_inflight_requests")

    with ThreadPoolExecutor(5) as pool:
        postgres.control("stop", "-m", "immediate")
        try:
            waiting = [pool.submit(customer.post, BODY) for _ in range(3)]
            eventually(lambda: called() == 3, 60)
            for path, headers, body in refusals * 2:
                began = time.monotonic()
                refused = requests.post(replica.url + path, json=body, headers=headers, timeout=60)
                assert (refused.status_code, int(refused.headers["retry-after"]) >= 1) == (503, True)
                assert "cannot reserve credit right now. Nothing was charged" in refused.text
                assert time.monotonic() - began < 30, "it has not waited"
            headers = {"authorization": f"Bearer {late}"}
            url = f"{replica.url}/v1/models"
            unknown = pool.submit(requests.get, url, headers=headers, timeout=90)
            eventually(lambda: called() == 4, 60)
            assert not any(call.done() for call in [*waiting, unknown])
            assert provider.totals()["calls"] == before
        finally:
            postgres.control("start")
        assert [call.result().status_code for call in waiting] == [200] * 3
        assert unknown.result().status_code == 200, "a key that nobody remembers waits, too"
    assert provider.totals()["calls"] == before + 3
    paid = [record["charge"] for record in relay.usage(customer.account) if record["outcome"] == "ok"]
    assert (len(paid), customer.spent()) == (5, sum(paid))


def test_without_database_calls_are_refused_before_the_provider(
    relay: Relay, provider: Provider, postgres: PostgresServer
) -> None:
    replica = relay.replica(RELAY_HOLD_WAIT_SECONDS="3")
    customer = Customer(relay, replica, "refused", "1.00")
    assert customer.post(BODY).status_code == 200
    before = provider.totals()
    postgres.control("stop", "-m", "immediate")
    try:
        answer = customer.post(BODY)
        unknown = requests.get(
            f"{replica.url}/v1/models", headers={"authorization": "Bearer sk-relay-new"}, timeout=30
        )
    finally:
        postgres.control("start")
    # Which of the two depends on whether the token is still known, for a second or two.
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] in ("ledger_unavailable", "database_unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert unknown.status_code == 503
    assert provider.totals() == before

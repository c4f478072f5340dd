"""The relay from outside: a real database, a provider with its own books, the official SDK as the
customer.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import requests

from tests.contract.conftest import Database, free_port
from tests.contract.relay_rig import (
    MODEL,
    TOPUP_URL,
    Customer,
    Provider,
    Relay,
    Replica,
    asks,
    eventually,
    price,
    running_provider,
)


@pytest.fixture(scope="module")
def relay(
    module_database: Database, provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Relay]:
    made = Relay(module_database, tmp_path_factory.mktemp("relay"))
    made.channel(provider.url, f"{MODEL},priced-by-call,unpriced,mapped=fake-large")
    for model in (MODEL, "mapped", "unserved"):
        made.price(model)
    made.price("priced-by-call", "--call", "0.001/1")
    yield made
    made.stop()


@pytest.fixture(scope="module")
def replica_settings() -> dict[str, str]:
    return {"RELAY_MAX_BODY_BYTES": "100000"}


@pytest.fixture(scope="module")
def impatient(relay: Relay) -> Replica:
    """For providers that let it wait: one that is merely slow would be too late for it."""
    return relay.replica(RELAY_PROVIDER_FIRST_BYTE_SECONDS="1", RELAY_PROVIDER_IDLE_SECONDS="1")


@pytest.fixture(autouse=True)
def obedient(provider: Provider) -> Iterator[None]:
    yield
    provider.control()


@pytest.fixture
def customer(relay: Relay, replica: Replica, request: pytest.FixtureRequest) -> Customer:
    return Customer(relay, replica, request.node.name, "1.00")


# ---------------------------------------------------------------------- paid calls


def test_a_call_is_charged_to_the_nano_dollar(customer: Customer, provider: Provider) -> None:
    answer = customer.sdk.chat.completions.with_raw_response.create(model=MODEL, messages=asks())
    usage = answer.parse().usage
    assert usage is not None
    (booked,) = provider.calls(answer.headers["x-request-id"])
    assert (usage.prompt_tokens, usage.completion_tokens) == (
        booked["prompt_tokens"],
        booked["completion_tokens"],
    )
    assert customer.spent() == price(usage.prompt_tokens, usage.completion_tokens)
    record = customer.record()
    assert record["charge"] == customer.spent()
    assert record["outcome"] == "ok"
    assert record["abort_rule"] is None
    assert record["meters"] == {"in_text": usage.prompt_tokens, "out_text": usage.completion_tokens}


@pytest.mark.parametrize("asked", [True, False])
def test_a_stream_is_charged_by_its_usage(customer: Customer, provider: Provider, asked: bool) -> None:
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if asked else {}
    stream = customer.sdk.chat.completions.create(model="mapped", messages=asks(), stream=True, **options)
    chunks = list(stream)
    (booked,) = provider.calls(stream.response.headers["x-request-id"])
    assert booked["model"] == "fake-large"
    assert customer.spent() == price(booked["prompt_tokens"], booked["completion_tokens"])
    usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert [usage.completion_tokens for usage in usages] == ([booked["completion_tokens"]] if asked else [])
    assert all(chunk.choices for chunk in chunks[: -1 if asked else None])
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert len(text.split()) == booked["completion_tokens"]


def test_the_charge_is_durable_before_the_last_byte(customer: Customer) -> None:
    body = {"model": MODEL, "messages": asks(), "stream": True}
    answer = customer.post(body, stream=True)
    for line in answer.iter_lines():
        if line == b"data: [DONE]":
            break
    # The last line is in hand: whatever happens to the relay now, the charge is already in the database.
    balance, held = customer.relay.balance(customer.account)
    assert held == 0
    assert balance < customer.funds


def test_choices_multiply(customer: Customer) -> None:
    answer = customer.sdk.chat.completions.create(model=MODEL, messages=asks(), n=3, max_completion_tokens=5)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 15
    assert customer.spent() == price(answer.usage.prompt_tokens, 15)


def test_a_missing_limit_is_held_and_sent(relay: Relay, replica: Replica, provider: Provider) -> None:
    sdk = Customer(relay, replica, "no-limit", "1.00").sdk
    long = 'provider:{"completion_tokens": 9000}'
    answer = sdk.chat.completions.create(model=MODEL, messages=asks(long))
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4096
    assert answer.choices[0].finish_reason == "length"


def test_models_lists_what_can_be_used(customer: Customer) -> None:
    assert [model.id for model in customer.sdk.models.list()] == [MODEL, "mapped", "priced-by-call"]
    assert customer.sdk.models.retrieve("mapped").id == "mapped"
    with pytest.raises(openai.NotFoundError):
        customer.sdk.models.retrieve("unpriced")


# ---------------------------------------------------------------------- refusals


def test_keys(relay: Relay, replica: Replica) -> None:
    with pytest.raises(openai.AuthenticationError):
        replica.client("sk-relay-nobody").models.list()
    assert requests.get(f"{replica.url}/v1/models", timeout=60).status_code == 401
    customer = Customer(relay, replica, "keys", None)
    token_id = relay.command("token", "list", "--account", str(customer.account))[0]["id"]
    customer.sdk.models.list()
    relay.command("token", "disable", str(token_id))
    eventually(lambda: customer.post({}).status_code == 401)
    relay.command("token", "enable", str(token_id))
    eventually(lambda: customer.post({}).status_code != 401)
    relay.command("account", "suspend", str(customer.account))
    eventually(lambda: customer.post({}).status_code == 403)


def test_a_key_bound_to_models_and_addresses(relay: Relay, replica: Replica) -> None:
    bound = Customer(relay, replica, "bound", "1.00", "--models", "mapped")
    with pytest.raises(openai.PermissionDeniedError, match="may not use the model"):
        bound.sdk.chat.completions.create(model=MODEL, messages=asks())
    assert [model.id for model in bound.sdk.models.list()] == ["mapped"]
    elsewhere = Customer(relay, replica, "elsewhere", "1.00", "--addresses", "192.0.2.0/24")
    with pytest.raises(openai.PermissionDeniedError, match="address"):
        elsewhere.sdk.models.list()


def test_without_credit_402_says_what_is_missing_and_where_to_pay(
    relay: Relay, replica: Replica, provider: Provider
) -> None:
    poor = Customer(relay, replica, "poor", "0.00001")
    before = provider.totals()
    with pytest.raises(openai.APIStatusError) as caught:
        poor.sdk.chat.completions.create(model=MODEL, messages=asks(), max_completion_tokens=1000)
    error = caught.value.response.json()["error"]
    assert caught.value.status_code == 402
    assert error["code"] == "insufficient_credit"
    assert error["topup_url"] == TOPUP_URL
    relay.grant(poor.account, f"{error['missing_nanodollars'] / 1e9:.9f}", "just-enough")
    poor.sdk.chat.completions.create(model=MODEL, messages=asks(), max_completion_tokens=1000)
    assert provider.totals()["calls"] == before["calls"] + 1


@pytest.mark.parametrize(
    ("model", "status", "says"),
    [
        ("nobody-knows", 404, "does not exist"),
        ("unpriced", 404, "no price"),
        ("unserved", 404, "does not exist"),
    ],
)
def test_models_that_cannot_be_used(
    customer: Customer, provider: Provider, model: str, status: int, says: str
) -> None:
    before = provider.totals()
    answer = customer.post({"model": model, "messages": asks()})
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, "model")
    assert says in answer.json()["error"]["message"]
    assert provider.totals() == before


def test_malformed_requests(customer: Customer) -> None:
    answer = customer.post({"model": MODEL, "messages": asks(), "max_tokens": "many"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "max_tokens")
    plain = {"content-type": "text/plain"}
    assert customer.post(None, data="{}", headers=plain).status_code == 415
    assert customer.post({"model": MODEL, "messages": asks("x" * 200_000)}).status_code == 413
    unbounded = customer.post(
        None, data=iter([b"x" * 60_000] * 4), headers={"content-type": "application/json"}
    )
    assert unbounded.status_code == 413
    url = f"{customer.replica.url}/v1/chat/completions"
    assert requests.get(url, timeout=60).status_code == 405
    assert requests.post(f"{customer.replica.url}/v1/nonsense", timeout=60).status_code == 404
    assert customer.spent() == 0


# ---------------------------------------------------------------------- providers that fail


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ({"status": 500}, 502),
        ({"status": 429}, 503),
        ({"status": 401}, 502),
        ({"reset": True}, 502),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_provider_that_fails_is_not_charged(
    customer: Customer, provider: Provider, fault: dict[str, Any], status: int, stream: bool
) -> None:
    provider.control(**fault)
    answer = customer.post({"model": MODEL, "messages": asks(), "stream": stream})
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "server_error"
    assert customer.spent() == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_provider_that_is_late_is_not_charged(
    customer: Customer, impatient: Replica, provider: Provider, stream: bool
) -> None:
    customer.replica = impatient
    test_a_provider_that_fails_is_not_charged(customer, provider, {"latency_ms": 3000}, 504, stream)


def test_a_provider_that_blames_the_request_is_quoted(customer: Customer, provider: Provider) -> None:
    provider.control(status=400)
    answer = customer.post({"model": MODEL, "messages": asks()})
    assert answer.status_code == 400
    assert "told to answer 400" in answer.json()["error"]["message"]
    assert customer.spent() == 0


def test_a_stream_that_breaks_off_is_charged_for_what_was_delivered(
    customer: Customer, provider: Provider
) -> None:
    provider.control(truncate_after_chunks=5, completion_tokens=20)
    stream = customer.sdk.chat.completions.create(model=MODEL, messages=asks(), stream=True)
    with pytest.raises(openai.APIError, match="broke off"):
        list(stream)
    (booked,) = provider.calls(stream.response.headers["x-request-id"])
    assert booked["completion_tokens"] == 5
    assert customer.spent() == price(booked["prompt_tokens"], 5)
    record = customer.record()
    assert (record["outcome"], record["abort_rule"]) == ("truncated", "bill what was delivered")
    assert record["raw_usage"]["estimated"] is True


def test_a_stream_that_ends_without_usage_is_counted(customer: Customer, provider: Provider) -> None:
    provider.control(end_after_chunks=4, completion_tokens=20)
    stream = customer.sdk.chat.completions.create(model=MODEL, messages=asks(), stream=True)
    with pytest.raises(openai.APIError, match="broke off"):
        list(stream)
    (booked,) = provider.calls(stream.response.headers["x-request-id"])
    assert customer.spent() == price(booked["prompt_tokens"], 4)


def test_an_error_inside_a_stream(customer: Customer, provider: Provider) -> None:
    body = {"model": MODEL, "messages": asks(), "stream": True}
    provider.control(error_after_chunks=0)
    assert customer.post(body).status_code == 502
    assert customer.spent() == 0
    provider.control(error_after_chunks=3)
    stream = customer.sdk.chat.completions.create(model=MODEL, messages=asks(), stream=True)
    with pytest.raises(openai.APIError, match="told to fail"):
        list(stream)
    (booked,) = provider.calls(stream.response.headers["x-request-id"])
    assert customer.spent() == price(booked["prompt_tokens"], 3)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_without_usage_is_counted(customer: Customer, provider: Provider, stream: bool) -> None:
    provider.control(omit_usage=True)
    answer = customer.post({"model": MODEL, "messages": asks(), "stream": stream})
    assert answer.status_code == 200
    (booked,) = provider.calls(answer.headers["x-request-id"])
    assert customer.spent() == price(booked["prompt_tokens"], booked["completion_tokens"])
    assert customer.record()["raw_usage"]["estimated"] is True


@pytest.mark.parametrize("stream", [False, True])
def test_nonsense_for_usage_is_counted_like_none(
    customer: Customer, provider: Provider, stream: bool
) -> None:
    question = {"model": MODEL, "messages": asks(), "stream": stream}
    provider.control(omit_usage=True)
    assert customer.post(question).status_code == 200
    counted = customer.spent()
    provider.control(usage={"prompt_tokens": 5, "completion_tokens": -3})
    assert customer.post(question).status_code == 200
    assert customer.spent() == 2 * counted
    told = [record["raw_usage"]["provider"] for record in customer.relay.usage(customer.account)]
    assert any(usage and usage["completion_tokens"] == -3 for usage in told), "what it told is kept"


def test_a_stream_that_stalls_is_cut_and_counted(
    customer: Customer, impatient: Replica, provider: Provider
) -> None:
    provider.control(chunk_delay_ms=5000)
    stream = impatient.client(customer.key).chat.completions.create(model=MODEL, messages=asks(), stream=True)
    with pytest.raises(openai.APIError):
        list(stream)
    assert customer.spent() == price(customer.record()["meters"]["in_text"], 1)


# ---------------------------------------------------------------------- customers that leave


def test_a_customer_that_leaves_stops_the_provider_and_pays_what_was_delivered(
    customer: Customer, provider: Provider
) -> None:
    provider.control(chunk_delay_ms=200, completion_tokens=100)
    stream = customer.sdk.chat.completions.create(model=MODEL, messages=asks(), stream=True)
    received = 0
    for _ in stream:
        received += 1
        if received == 5:
            break
    stream.close()
    (booked,) = eventually(lambda: provider.calls(stream.response.headers["x-request-id"]))
    assert not booked["complete"]
    # Two or three more than came, and a few seconds' of a busy machine; all of them take 20 s.
    assert 5 <= booked["completion_tokens"] <= 50
    record = eventually(lambda: customer.relay.usage(customer.account))[0]
    assert (record["outcome"], record["abort_rule"]) == ("client_gone", "bill what was delivered")
    delivered = record["meters"]["out_text"]
    assert received <= delivered <= booked["completion_tokens"]
    assert customer.spent() == price(booked["prompt_tokens"], delivered)


def test_a_customer_that_leaves_before_the_answer_is_not_charged(
    customer: Customer, provider: Provider
) -> None:
    provider.control(latency_ms=4000)
    before = provider.totals()
    with pytest.raises(openai.APITimeoutError):
        customer.sdk.chat.completions.create(model=MODEL, messages=asks(), timeout=0.5)
    assert customer.spent() == 0
    time.sleep(4)
    assert provider.totals() == before, "the provider was not cancelled"


# ---------------------------------------------------------------------- channels


def test_failover_charges_once(relay: Relay, replica: Replica, provider: Provider, tmp_path: Path) -> None:
    customer = Customer(relay, replica, "failover", "1.00")
    relay.price("replicated")
    relay.channel(f"http://127.0.0.1:{free_port()}", "replicated", "dead", "--priority", "9")
    with running_provider(tmp_path) as ill:
        ill.control(status=500)
        relay.channel(ill.url, "replicated", "ill", "--priority", "5")
        relay.channel(provider.url, "replicated", "well", "--priority", "1")
        eventually(lambda: "replicated" in {model.id for model in customer.sdk.models.list()})
        eventually(lambda: customer.post({"model": "replicated", "messages": asks()}).status_code == 200)
        records = [record for record in relay.usage(customer.account) if record["outcome"] == "ok"]
        answer = customer.sdk.chat.completions.with_raw_response.create(model="replicated", messages=asks())
        assert len(provider.calls(answer.headers["x-request-id"])) == 1
        assert ill.totals()["calls"] == 0
        after = [record for record in relay.usage(customer.account) if record["outcome"] == "ok"]
        assert len(after) == len(records) + 1
        assert customer.spent() == sum(record["charge"] for record in after)
    relay.command("channel", "disable", "well")
    relay.command("channel", "disable", "ill")
    eventually(lambda: customer.post({"model": "replicated", "messages": asks()}).status_code == 502)
    relay.command("channel", "disable", "dead")
    # A call that still knows the dead channel is offered to it for seconds.
    eventually(lambda: customer.post({"model": "replicated", "messages": asks()}).status_code == 503)


# ---------------------------------------------------------------------- many at once


async def burst(replicas: list[Replica], key: str, callers: int, each: int) -> Counter[int]:
    """Statuses of ``callers`` callers at once, each with ``each`` calls in a row."""
    body = {"model": "priced-by-call", "messages": asks()}
    statuses: Counter[int] = Counter()
    async with aiohttp.ClientSession(
        headers={"authorization": f"Bearer {key}"},
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=120),
    ) as session:

        async def caller(number: int) -> None:
            url = f"{replicas[number % len(replicas)].url}/v1/chat/completions"
            for _ in range(each):
                async with session.post(url, json=body) as answer:
                    await answer.read()
                    statuses[answer.status] += 1

        await asyncio.gather(*(caller(number) for number in range(callers)))
    return statuses


@pytest.fixture(scope="module")
def replicas(relay: Relay, replica: Replica) -> list[Replica]:
    return [replica, relay.replica(), relay.replica()]


def test_credit_for_exactly_n_calls_gives_exactly_n(
    relay: Relay, replicas: list[Replica], provider: Provider
) -> None:
    customer = Customer(relay, replicas[0], "exact", "0.137")  # 137 calls of $0.001
    before = provider.totals()["calls"]
    assert asyncio.run(burst(replicas, customer.key, 200, 2)) == {200: 137, 402: 263}
    assert customer.balance() == 0
    assert provider.totals()["calls"] == before + 137


def test_a_budget_for_exactly_n_calls_gives_exactly_n(relay: Relay, replicas: list[Replica]) -> None:
    customer = Customer(relay, replicas[0], "budgeted", "1.00")
    token_id = relay.command("token", "list", "--account", str(customer.account))[0]["id"]
    relay.command("budget", "set", "--token", str(token_id), "--amount-usd", "0.023")
    assert asyncio.run(burst(replicas, customer.key, 60, 1)) == {200: 23, 402: 37}
    assert customer.spent() == 23_000_000


# ---------------------------------------------------------------------- prices


def test_a_price_change_reaches_every_replica_and_no_call_that_was_admitted(
    relay: Relay, replicas: list[Replica], provider: Provider
) -> None:
    customer = Customer(relay, replicas[0], "repriced", "1.00")
    relay.price("fake-large", "--in-text", "1/1M", "--out-text", "1/1M")
    relay.channel(provider.url, "fake-large", "large")
    eventually(lambda: "fake-large" in {model.id for model in customer.sdk.models.list()})
    provider.control(chunk_delay_ms=100, completion_tokens=30)
    stream = customer.sdk.chat.completions.create(model="fake-large", messages=asks(), stream=True)
    next(iter(stream))
    relay.price("fake-large", "--in-text", "7/1M", "--out-text", "7/1M")
    changed = time.monotonic()
    provider.control(completion_tokens=3)
    list(stream)
    time.sleep(max(0.0, changed + 2 - time.monotonic()))
    for replica in replicas:
        replica.client(customer.key).chat.completions.create(model="fake-large", messages=asks())
    records = relay.usage(customer.account)
    (admitted_before,) = [record for record in records if record["stream"]]
    assert admitted_before["charge"] == 1_000 * sum(admitted_before["meters"].values())
    for record in records[: len(replicas)]:
        assert record["charge"] == 7_000 * sum(record["meters"].values())


# ---------------------------------------------------------------------- metrics


def test_metrics_count_what_was_served_and_what_was_refused(relay: Relay, replica: Replica) -> None:
    customer = Customer(relay, replica, "measured", "0.01")

    def count(model: str, provider: str, outcome: str) -> float:
        labels = f'model="{model}",outcome="{outcome}",provider="{provider}",stream="false"'
        return replica.metric(f"relay_requests_total{{{labels}}}")

    kinds = (
        ("fake-small", "openai", "ok"),
        ("fake-small", "none", "insufficient_credit"),
        ("other", "none", "model_not_found"),
        ("other", "none", "invalid_api_key"),
    )
    before = [count(*kind) for kind in kinds]
    revenue = replica.metric('relay_revenue_usd_total{model="fake-small",provider="openai"}')
    assert customer.post({"model": MODEL, "messages": asks(), "max_tokens": 5}).status_code == 200
    assert customer.post({"model": MODEL, "messages": asks(), "max_tokens": 9000}).status_code == 402
    assert customer.post({"model": "made-up-by-a-customer", "messages": asks()}).status_code == 404
    assert customer.post({}, headers={"authorization": "Bearer sk-relay-x"}).status_code == 401
    assert [count(*kind) - was for kind, was in zip(kinds, before, strict=True)] == [1, 1, 1, 1]
    earned = replica.metric('relay_revenue_usd_total{model="fake-small",provider="openai"}') - revenue
    assert earned == pytest.approx(customer.spent() / 1e9)
    assert replica.metric("relay_inflight_requests") == 0
    exposition = requests.get(f"{replica.metrics_url}/metrics", timeout=60).text
    assert "made-up-by-a-customer" not in exposition
    assert customer.key not in exposition
    assert requests.get(f"{replica.url}/metrics", timeout=60).status_code == 404

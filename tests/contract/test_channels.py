"""Keys, limits and budgets of channels: real replicas, a Redis, and a provider with an account a key."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import openai
import psycopg
import pytest
import requests

from tests.contract.conftest import Database
from tests.contract.relay_rig import (
    MODEL,
    PROVIDER_KEY,
    Customer,
    Provider,
    Relay,
    Replica,
    asks,
    early_in_a_minute,
    eventually,
    running_redis,
)

REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "revoked": ({"status": 401}, "auth"),
    "forbidden": ({"status": 403}, "auth"),
    "no-credit": ({"status": 402}, "quota"),
    "no-quota": ({"status": 429, "error_code": "insufficient_quota"}, "quota"),
    "limited": ({"status": 429, "retry_after": "30"}, "rate"),
}


@dataclass
class Stage:
    """Two replicas that share a Redis. Each test has a model, channels and accounts of its own."""

    relay: Relay
    replicas: list[Replica]
    provider: Provider
    customer: Customer
    clients: list[openai.OpenAI]

    def channel(self, name: str, model: str, accounts: list[str], *options: str) -> None:
        """A channel with a key for each account at the provider, which is named like the account."""
        self.relay.command(
            *("channel", "create", "--name", name, "--base-url", f"{self.provider.url}/v1"),
            *("--api-key-stdin", "--models", f"{model}={MODEL}"),
            *(options if "--provider" in options else ("--provider", "openai", *options)),
            stdin=key_of(accounts[0]),
        )
        for account in accounts[1:]:
            self.add(name, account)
        for account in accounts:
            self.provider.control(account, text=f"by {account}")
        self.usable(name, len(accounts))

    def add(self, channel: str, account: str) -> None:
        """One more key of a channel."""
        self.relay.command(
            *("channel", "key", "add", channel, "--name", account, "--api-key-stdin"), stdin=key_of(account)
        )

    def usable(self, channel: str, count: int) -> None:
        """Wait until both replicas say that so many keys of a channel are usable."""
        for replica in self.replicas:
            sample = f'relay_channel_keys_usable{{channel="{channel}"}}'
            eventually(partial(_tells, replica, sample, count))

    def ask(self, model: str, replica: int = 0) -> str:
        """Which account has answered."""
        answer = self.clients[replica].chat.completions.create(model=model, messages=asks())
        return str(answer.choices[0].message.content).removeprefix("by ")

    def attempts(self, model: str) -> list[list[tuple[str, str]]]:
        """Key and outcome of each attempt of the calls for a model, the newest call first."""
        records = self.relay.usage(self.customer.account)
        return [
            [(attempt["key"], attempt["outcome"]) for attempt in record["attempts"]]
            for record in records
            if record["model"] == model
        ]


def _tells(replica: Replica, sample: str, value: float) -> bool:
    return replica.metric(sample) == value


def key_of(account: str) -> str:
    """The key of an account at the fake provider."""
    return f"{PROVIDER_KEY}.{account}"


@pytest.fixture(scope="module")
def stage(
    module_database: Database, provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    directory: Path = tmp_path_factory.mktemp("keys")
    with running_redis(directory) as redis:
        relay = Relay(module_database, directory, {"RELAY_REDIS_URL": redis.url})
        replicas = [relay.replica(), relay.replica()]
        customer = Customer(relay, replicas[0], "keys", "500.00")
        clients = [replica.client(customer.key) for replica in replicas]
        yield Stage(relay, replicas, provider, customer, clients)
        relay.stop()


@pytest.fixture
def model(stage: Stage, request: pytest.FixtureRequest) -> str:
    """A model of the test's own, with its price."""
    name = request.node.name.removeprefix("test_").replace("[", "-").replace("]", "")[:60]
    stage.relay.price(name)
    return str(name)


def test_calls_take_turns_among_a_channels_keys(stage: Stage, model: str) -> None:
    stage.channel(model, model, ["t1", "t2", "t3"])
    assert Counter(stage.ask(model) for _ in range(6)) == {"t1": 2, "t2": 2, "t3": 2}
    # The first key's name is not the account's.
    assert Counter(attempt for call in stage.attempts(model) for attempt in call) == {
        ("first", "ok"): 2,
        ("t2", "ok"): 2,
        ("t3", "ok"): 2,
    }
    stage.relay.command("channel", "key", "remove", model, "first")
    stage.usable(model, 2)
    assert Counter(stage.ask(model) for _ in range(4)) == {"t2": 2, "t3": 2}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refused_key_rests_while_the_others_serve(stage: Stage, model: str, refusal: str) -> None:
    told, kind = REFUSALS[refusal]
    one, two, spare = (f"{refusal}-{name}" for name in ("one", "two", "spare"))
    stage.channel(model, model, [one, two], "--priority", "10")
    stage.channel(f"{model}-spare", model, [spare])
    stage.provider.control(one, **told)
    assert [stage.ask(model) for _ in range(4)] == [two] * 4
    assert stage.attempts(model) == [[(two, "ok")]] * 3 + [
        [("first", f"status_{told['status']}"), (two, "ok")]
    ]
    replica = stage.replicas[0]
    assert replica.metric(f'relay_channel_keys_usable{{channel="{model}"}}') == 1
    labels = f'channel="{model}",class="{kind}",provider="openai"'
    assert replica.metric(f"relay_provider_errors_total{{{labels}}}") == 1
    # The other channel serves when no key of the first is left, until one is.
    stage.provider.control(two, **told)
    assert [stage.ask(model) for _ in range(3)] == [spare] * 3
    assert [len(call) for call in stage.attempts(model)[:3]] == [1, 1, 2]
    stage.add(model, f"{refusal}-new")
    stage.provider.control(f"{refusal}-new", text="by new")
    eventually(lambda: stage.ask(model) == "new")
    log = replica.process.log.read_text()
    assert key_of(one) not in log
    assert f'"channel_key":"{two}"' in log.replace('": "', '":"')


def test_after_the_time_that_its_provider_named_a_key_gets_one_probe_and_then_its_share(
    stage: Stage, model: str
) -> None:
    stage.channel(model, model, ["p1"], "--priority", "10")
    stage.channel(f"{model}-spare", model, ["p2"])
    stage.provider.control("p1", status=429, retry_after="5")
    assert stage.ask(model) == "p2"
    # All calls ask while the probe is under way.
    stage.provider.control("p1", text="by p1", latency_ms=5000)
    assert stage.ask(model) == "p2", "it still rests"
    time.sleep(5)
    with ThreadPoolExecutor(12) as pool:
        answered = Counter(pool.map(lambda _: stage.ask(model), range(12)))
    assert answered == {"p1": 1, "p2": 11}
    stage.provider.control("p1", text="by p1")
    assert [stage.ask(model) for _ in range(3)] == ["p1"] * 3


def test_calls_go_on_where_every_key_rests_and_no_other_channel_has_the_model(
    stage: Stage, model: str
) -> None:
    stage.channel(model, model, ["s1", "s2"])
    for account in ("s1", "s2"):
        stage.provider.control(account, status=429, retry_after="30")
    with pytest.raises(openai.APIStatusError) as refused:
        stage.ask(model)
    assert (refused.value.status_code, refused.value.code) == (503, "provider_overloaded")
    assert int(refused.value.response.headers["retry-after"]) <= 30
    assert [len(call) for call in stage.attempts(model)] == [2]
    for account in ("s1", "s2"):
        stage.provider.control(account, text=f"by {account}")
    assert stage.ask(model) in ("s1", "s2")


def test_replicas_share_a_channels_concurrency(stage: Stage, model: str) -> None:
    for name, account, priority in ((model, "c1", "10"), (f"{model}-spare", "c2", "1")):
        stage.channel(name, model, [account], "--priority", priority, "--concurrency", "1")
        stage.provider.control(account, completion_tokens=60, chunk_delay_ms=300)
    key = stage.customer.key
    streams = [
        sdk.chat.completions.create(model=model, messages=asks(), stream=True) for sdk in stage.clients
    ]
    begun = [next(iter(stream)) for stream in streams]
    assert len(begun) == 2
    requested: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
        "openai": ("/v1/chat/completions", {"authorization": f"Bearer {key}"}, {"messages": asks()}),
        "anthropic": (
            "/v1/messages",
            {"x-api-key": key, "anthropic-version": "2023-06-01"},
            {"messages": asks(), "max_tokens": 10},
        ),
        "gemini": (
            f"/v1beta/models/{model}:generateContent",
            {"x-goog-api-key": key},
            {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]},
        ),
    }
    told = {}
    for name, (path, headers, body) in requested.items():
        document = body if name == "gemini" else body | {"model": model}
        answer = requests.post(stage.replicas[0].url + path, json=document, headers=headers, timeout=60)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1"), name
        told[name] = answer.json()
    assert told["openai"]["error"]["code"] == "provider_overloaded"
    assert told["anthropic"]["type"] == "error"
    assert told["gemini"]["error"]["status"] == "UNAVAILABLE"
    full = f'relay_channel_full_total{{channel="{model}",reason="concurrency_limit_exceeded"}}'
    assert stage.replicas[0].metric(full) >= 3
    for stream in streams:
        stream.close()
    for account in ("c1", "c2"):
        stage.provider.control(account, text=f"by {account}")
    eventually(lambda: _answers(stage, model) == "c1")


def test_replicas_share_a_channels_requests_a_minute(stage: Stage, model: str) -> None:
    stage.channel(model, model, ["r1"], "--priority", "10", "--rpm", "3")
    stage.channel(f"{model}-spare", model, ["r2"], "--rpm", "2")
    early_in_a_minute()
    answered = [stage.ask(model, replica=number % 2) for number in range(5)]
    assert answered == ["r1"] * 3 + ["r2"] * 2
    with pytest.raises(openai.APIStatusError) as refused:
        stage.ask(model)
    assert (refused.value.status_code, refused.value.code) == (503, "provider_overloaded")
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 120
    assert stage.customer.balance() > 0, "nothing stays held"
    stage.relay.command("channel", "set", model, "--rpm", "none")
    eventually(lambda: _answers(stage, model) == "r1")


def test_replicas_share_a_channels_tokens_a_minute(stage: Stage, model: str) -> None:
    """Each call reserves about 610 tokens and uses fewer than 60."""
    stage.channel(model, model, ["t1"], "--priority", "10", "--tpm", "1000")
    stage.channel(f"{model}-spare", model, ["t2"], "--tpm", "700")
    most: dict[str, Any] = {"model": model, "messages": asks(), "max_tokens": 600}
    for account in ("t1", "t2"):
        stage.provider.control(account, completion_tokens=40, chunk_delay_ms=100)
    early_in_a_minute()
    first, second = (sdk.chat.completions.create(stream=True, **most) for sdk in stage.clients)
    begun = [next(iter(stream)) for stream in (first, second)]
    assert len(begun) == 2
    with pytest.raises(openai.APIStatusError) as refused:
        stage.clients[1].chat.completions.create(**most)
    assert (refused.value.status_code, refused.value.code) == (503, "provider_overloaded")
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 120
    full = f'relay_channel_full_total{{channel="{model}",reason="token_rate_limit_exceeded"}}'
    assert stage.replicas[1].metric(full) >= 1
    for stream in (first, second):
        assert list(stream)
    for account in ("t1", "t2"):
        stage.provider.control(account, text=f"by {account}")
    early_in_a_minute()
    again = eventually(lambda: stage.clients[0].chat.completions.create(**most), 10)
    assert again.choices[0].message.content == "by t1", "what was not used was given back"
    with pytest.raises(openai.BadRequestError) as above:
        stage.clients[0].chat.completions.create(**most | {"max_tokens": 1001})
    assert (above.value.code, above.value.param) == ("tokens_above_limit", "max_tokens")
    assert "above the 1000 tokens a minute that the model takes: lower max_tokens" in above.value.message
    shown = stage.relay.command("channel", "set", model, "--tpm", "none")
    assert (shown["tpm"], shown["rpm"]) == (None, None)
    eventually(lambda: _answers(stage, model) == "t1", 5)


def _answers(stage: Stage, model: str) -> str:
    try:
        return stage.ask(model)
    except openai.APIStatusError as refusal:
        return str(refusal.code)


# ---------------------------------------------------------------------- budgets


def budgets(stage: Stage, channel: str) -> list[dict[str, Any]]:
    """A channel's budgets as operators see them."""
    found: list[dict[str, Any]] = stage.relay.command("channel", "budget", "list")
    return [row for row in found if row["channel"] == channel]


def costs(stage: Stage, model: str) -> list[int]:
    """What the calls for a model cost, in n$."""
    return [
        record["cost"] for record in stage.relay.usage(stage.customer.account) if record["model"] == model
    ]


def test_a_channel_that_has_spent_its_budget_is_not_used_until_the_period_ends(
    stage: Stage, model: str
) -> None:
    stage.channel(model, model, ["b1"], "--priority", "10", "--provider", "b1")
    stage.channel(f"{model}-spare", model, ["b2"])
    set_budget = ("channel", "budget", "set", model, "--period", "day", "--amount-usd")
    unpriced = stage.relay.run(*set_budget, "1")
    assert (unpriced.returncode, f"no cost price for {model}" in unpriced.stderr) == (1, True)
    rates = ("--in-text", "1/1M", "--out-text", "3/1M")
    stage.relay.command("price", "publish", "--model", model, "--side", "cost", "--provider", "b1", *rates)
    assert eventually(lambda: stage.ask(model) and costs(stage, model)[0])
    each = costs(stage, model)[0]
    allowed = f"{2 * each / 10**9:.9f}"
    made = stage.relay.command(*set_budget, allowed)
    assert (made["maximum"], made["spent"], made["period"]) == (2 * each, 0, "day")
    known = len(costs(stage, model))
    assert [stage.ask(model) for _ in range(2)] == ["b1"] * 2
    (spent,) = budgets(stage, model)
    assert spent["spent"] == sum(costs(stage, model)[:-known]) == 2 * each
    eventually(lambda: stage.ask(model) == "b2")
    assert stage.replicas[0].metric(f'relay_channel_budget_used_ratio{{channel="{model}"}}') >= 1
    # The day ends: what was spent is void, and the next call's cost begins the next one.
    with psycopg.connect(stage.relay.database.superuser_dsn, autocommit=True) as connection:
        connection.execute("update channel_budgets set period_ends = now() - interval '1 second'")
        assert [row["spent"] for row in budgets(stage, model)] == [0]
        eventually(lambda: stage.ask(model) == "b1")
        (again,) = budgets(stage, model)
        assert again["spent"] == each
        ends = "select period_ends = budget_period_end('day', now()) from channel_budgets"
        assert connection.execute(ends).fetchall() == [(True,)]
    assert stage.relay.command("channel", "budget", "remove", model, "--period", "day") == []
    missing = stage.relay.run("channel", "budget", "remove", model, "--period", "day")
    assert (missing.returncode, "has no budget a day" in missing.stderr) == (1, True)


def test_each_call_of_each_replica_counts_once(stage: Stage, model: str) -> None:
    stage.channel(model, model, ["e1", "e2"], "--provider", "e1")
    rates = ("--in-text", "1/1M", "--out-text", "3/1M")
    stage.relay.command("price", "publish", "--model", model, "--side", "cost", "--provider", "e1", *rates)
    for period in ("day", "month"):
        stage.relay.command("channel", "budget", "set", model, "--period", period, "--amount-usd", "1000")

    def ask(number: int) -> bool:
        if number % 5:
            return bool(stage.ask(model, replica=number % 2))
        stream = stage.clients[number % 2].chat.completions.create(model=model, messages=asks(), stream=True)
        stream.close()  # whose cost is that of what was delivered, or nothing
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(40)))
    assert stage.customer.balance() > 0
    spent = sum(cost or 0 for cost in costs(stage, model))
    assert spent > 0
    assert [row["spent"] for row in budgets(stage, model)] == [spent, spent]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--period", "day", "--amount-usd", "0"), "--amount-usd: it must be above 0"),
        (("--period", "day", "--amount-usd", "much"), "--amount-usd"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(stage: Stage, options: tuple[str, ...], said: str) -> None:
    (first, *_) = stage.relay.command("channel", "list")
    refused = stage.relay.run("channel", "budget", "set", str(first["id"]), *options)
    assert (refused.returncode, said in refused.stderr) == (1, True), refused.stderr

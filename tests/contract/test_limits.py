"""Limits of keys and accounts on two replicas with PostgreSQL and Redis, as the official SDKs hear them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import anthropic
import openai
import pytest
import requests
from google import genai
from google.genai import errors as google_errors
from google.genai import types

from tests.contract.conftest import Database
from tests.contract.relay_rig import (
    MODEL,
    Customer,
    Provider,
    Relay,
    Replica,
    asks,
    early_in_a_minute,
    eventually,
    of_google,
    running_redis,
)

DETAIL = "type.googleapis.com/google.rpc."


class Stage(NamedTuple):
    relay: Relay
    first: Replica
    second: Replica

    def customer(self, name: str, *options: str) -> Customer:
        return Customer(self.relay, self.first, name, "5.00", *options)


@pytest.fixture(scope="module")
def stage(
    module_database: Database, provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    directory = tmp_path_factory.mktemp("limits")
    with running_redis(directory) as redis:
        settings = {"RELAY_REDIS_URL": redis.url, "RELAY_REPLICAS": "2"}
        relay = Relay(module_database, directory, settings)
        relay.channel(provider.url, MODEL)
        relay.price(MODEL)
        yield Stage(relay, relay.replica(), relay.replica())
        relay.stop()


@pytest.fixture(autouse=True)
def obedient(provider: Provider) -> Iterator[None]:
    yield
    provider.control()


# ---------------------------------------------------------------------- each API's SDK


class Heard(NamedTuple):
    """What an SDK heard: HTTP's status and headers, and the error's body."""

    status: int
    headers: Any
    error: Any = None


def chat(customer: Customer, most: int) -> Heard:
    try:
        given = customer.sdk.chat.completions.with_raw_response.create(
            model=MODEL, messages=asks(), max_tokens=most
        )
    except (openai.RateLimitError, openai.BadRequestError) as error:
        return Heard(error.status_code, error.response.headers, error.body)
    return Heard(given.status_code, given.headers)


def responses(customer: Customer, most: int) -> Heard:
    try:
        given = customer.sdk.responses.with_raw_response.create(
            model=MODEL, input="What does a call cost?", max_output_tokens=most
        )
    except (openai.RateLimitError, openai.BadRequestError) as error:
        return Heard(error.status_code, error.response.headers, error.body)
    return Heard(given.status_code, given.headers)


def messages(customer: Customer, most: int) -> Heard:
    with anthropic.Anthropic(api_key=customer.key, base_url=customer.replica.url, max_retries=0) as sdk:
        try:
            given = sdk.messages.with_raw_response.create(
                model=MODEL, max_tokens=most, messages=[{"role": "user", "content": "What does it cost?"}]
            )
        except (anthropic.RateLimitError, anthropic.BadRequestError) as error:
            return Heard(error.status_code, error.response.headers, error.response.json()["error"])
        return Heard(given.status_code, given.headers)


def gemini(customer: Customer, most: int) -> Heard:
    options = types.HttpOptions(base_url=customer.replica.url, **of_google())
    with genai.Client(api_key=customer.key, http_options=options) as sdk:
        try:
            given = sdk.models.generate_content(
                model=MODEL,
                contents="What does a call cost?",
                config=types.GenerateContentConfig(max_output_tokens=most),
            )
        except google_errors.ClientError as error:
            headers = getattr(error.response, "headers", None)
            return Heard(error.code, headers, error.details["error"])
        return Heard(200, getattr(given.sdk_http_response, "headers", None))


APIS = {"chat": chat, "responses": responses, "messages": messages, "gemini": gemini}


def left_of(api: str, headers: Any, what: str) -> tuple[int, int]:
    """(limit, what remains) by the headers that the API's clients know; checks when all of it does."""
    if api == "messages":
        limit, remaining, reset = (
            headers[f"anthropic-ratelimit-{what}-{name}"] for name in ("limit", "remaining", "reset")
        )
        until = datetime.fromisoformat(reset) - datetime.now(UTC)
        assert timedelta() < until <= timedelta(seconds=121)
    else:
        limit, remaining, reset = (
            headers[f"x-ratelimit-{name}-{what}"] for name in ("limit", "remaining", "reset")
        )
        minutes, _, seconds = reset.removesuffix("s").rpartition("m")
        assert 0 < 60 * int(minutes or 0) + int(seconds) <= 120
    return int(limit), int(remaining)


@pytest.mark.parametrize("api", APIS)
def test_each_sdk_hears_what_is_left_and_what_is_refused(stage: Stage, provider: Provider, api: str) -> None:
    provider.control(completion_tokens=20)
    customer = stage.customer(f"hears-{api}", "--tpm", "1000", "--rpm", "4")
    early_in_a_minute()
    first = APIS[api](customer, 900)
    assert first.status == 200
    customer.replica = stage.second
    customer.sdk = stage.second.client(customer.key)
    refused = APIS[api](customer, 980)
    assert refused.status == 429
    assert api == "gemini" or 0 < int(refused.headers["retry-after"]) <= 120
    assert "limit of 1000 tokens a minute" in refused.error["message"]
    if api == "gemini":
        assert not [name for name in refused.headers if "ratelimit" in name]
        (retry,) = (one for one in refused.error["details"] if one["@type"] == f"{DETAIL}RetryInfo")
        assert 1 <= int(retry["retryDelay"].removesuffix("s")) <= 120
        assert refused.error["status"] == "RESOURCE_EXHAUSTED"
        return
    assert left_of(api, first.headers, "requests") == (4, 3)
    limit, remaining = left_of(api, first.headers, "tokens")
    assert (limit, 70 < remaining < 100) == (1000, True), "with the whole reservation"
    assert left_of(api, refused.headers, "requests") == (4, 3)
    limit, remaining = left_of(api, refused.headers, "tokens")
    used = sum(record["meters"].get(name, 0) for record in [customer.record()] for name in record["meters"])
    assert (limit, remaining) == (1000, 1000 - used), "corrected by the usage"
    assert refused.error["type"] == "rate_limit_error"
    if api != "messages":
        assert refused.error["code"] == "token_rate_limit_exceeded"


FIELDS = {
    "chat": "max_tokens",
    "responses": "max_output_tokens",
    "messages": "max_tokens",
    "gemini": "generationConfig.maxOutputTokens",
}


@pytest.mark.parametrize("api", APIS)
def test_what_could_never_pass_is_no_matter_of_waiting(stage: Stage, api: str) -> None:
    customer = stage.customer(f"above-{api}", "--tpm", "1000")
    refused = APIS[api](customer, 1000)
    assert refused.status == 400
    assert "retry-after" not in refused.headers
    assert f"lower {FIELDS[api]}, or shorten the prompt" in refused.error["message"]
    assert "above the API key's limit of 1000 tokens a minute" in refused.error["message"]
    if api in ("chat", "responses"):
        assert (refused.error["code"], refused.error["param"]) == ("tokens_above_limit", FIELDS[api])
    assert APIS[api](customer, 900).status == 200, "it has taken nothing of the limit"


# ---------------------------------------------------------------------- reservations


BODY = {"model": MODEL, "messages": asks(), "max_tokens": 400}


def stream(replica: Replica, key: str) -> tuple[int, list[bytes]]:
    """A streamed call of 400 tokens and its prompt at most, read to its end."""
    headers = {"authorization": f"Bearer {key}"}
    url = f"{replica.url}/v1/chat/completions"
    given = requests.post(url, json=BODY | {"stream": True}, headers=headers, timeout=60, stream=True)
    return given.status_code, list(given.iter_lines())


def test_many_callers_on_two_replicas_share_a_limit(stage: Stage, provider: Provider) -> None:
    """40 calls at once, each of up to 410 tokens of the account's 5000: 12 run, and use 30 tokens each."""
    stage.relay.account("shared", "5.00")
    account = stage.relay.command("account", "show", "shared")["id"]
    limited = stage.relay.command("account", "limit", str(account), "--tpm", "5000")
    assert (limited["id"], limited["rpm"], limited["tpm"]) == (account, None, 5000)
    keys = [stage.relay.token(account, name) for name in ("laptop", "server")]
    # All have asked before the first one ends.
    provider.control(completion_tokens=20, chunk_delay_ms=500)
    early_in_a_minute()
    with ThreadPoolExecutor(40) as pool:
        callers = [((stage.first, stage.second)[n % 2], keys[n // 2 % 2]) for n in range(40)]
        statuses = [status for status, _ in pool.map(lambda caller: stream(*caller), callers)]
    assert sorted(statuses) == [200] * 12 + [429] * 28
    provider.control(completion_tokens=20)
    with ThreadPoolExecutor(4) as pool:
        again = [status for status, _ in pool.map(lambda caller: stream(*caller), callers[:8])]
    assert again == [200] * 8, "12 calls have used 360 tokens, and gave back what they had reserved"


def test_failed_calls_give_back_what_they_reserved(stage: Stage, provider: Provider) -> None:
    customer = stage.customer("fails", "--tpm", "1000")
    poor = Customer(stage.relay, stage.first, "poor", None, "--tpm", "1000")
    provider.control(status=400, error_rate=1.0)
    early_in_a_minute()
    for _ in range(4):
        unpaid = poor.post(BODY | {"max_tokens": 900})
        assert (unpaid.status_code, unpaid.headers["x-ratelimit-limit-tokens"]) == (402, "1000")
        assert customer.post(BODY | {"max_tokens": 900}).status_code == 400
    provider.control()
    assert customer.post(BODY | {"max_tokens": 900}).status_code == 200


def test_limits_of_a_key_change_while_it_is_used(stage: Stage) -> None:
    customer = stage.customer("changes", "--rpm", "1000")
    (key,) = stage.relay.command("token", "list", "--account", str(customer.account))
    assert customer.post(BODY).ok

    def limit(*options: str) -> Any:
        return stage.relay.command("token", "limit", str(key["id"]), *options)

    assert limit("--tpm", "300")["tpm"] == 300
    eventually(lambda: customer.post(BODY).status_code == 400)
    assert limit("--tpm", "none", "--rpm", "none", "--concurrency", "7")["concurrency"] == 7
    eventually(lambda: customer.post(BODY).ok, 2)
    assert not [name for name in customer.post(BODY).headers if "ratelimit" in name]


def test_a_model_may_have_limits_of_its_own(stage: Stage, provider: Provider) -> None:
    stage.relay.command("channel", "set", "main", "--models", f"{MODEL},other={MODEL}")
    stage.relay.price("other")
    customer = stage.customer("models", "--tpm", "5000")
    (key,) = stage.relay.command("token", "list", "--account", str(customer.account))
    stage.relay.command("token", "limit", str(key["id"]), "--model", MODEL, "--tpm", "1000")
    stage.relay.command("account", "limit", str(customer.account), "--model", "other", "--rpm", "2")
    early_in_a_minute()

    def asked(model: str, most: int) -> tuple[int, str]:
        given = customer.post(BODY | {"model": model, "max_tokens": most})
        return given.status_code, given.json().get("error", {}).get("message", "")

    eventually(lambda: asked("other", 10)[0] == 200, 10)
    assert asked(MODEL, 900)[0] == 200
    status, message = asked(MODEL, 1000)
    assert (status, f"1000 tokens a minute for the model '{MODEL}': lower max_tokens" in message) == (
        400,
        True,
    )
    status, message = asked(MODEL, 985)
    assert (status, f"limit of 1000 tokens a minute for the model '{MODEL}'" in message) == (429, True)
    assert asked("other", 2000)[0] == 200, "only the key's limit of 5000"
    status, message = asked("other", 10)
    assert (status, "account's limit of 2 requests a minute for the model 'other'" in message) == (429, True)


@pytest.mark.parametrize("strictest", ["plan", "account", "key", "model"])
def test_of_plan_account_key_and_model_the_strictest_holds(stage: Stage, strictest: str) -> None:
    customer = stage.customer(f"strictest-{strictest}", "--rpm", "3" if strictest == "key" else "7")
    (key,) = stage.relay.command("token", "list", "--account", str(customer.account))
    run, account = stage.relay.command, str(customer.account)
    plan = run("plan", "create", "--name", f"by-{strictest}", "--rpm", "3" if strictest == "plan" else "8")
    run("account", "limit", account, "--rpm", "3" if strictest == "account" else "9")
    if strictest == "model":
        run("plan", "limit", str(plan["id"]), "--model", MODEL, "--rpm", "3")
        run("account", "limit", account, "--model", MODEL, "--rpm", "5")
        run("token", "limit", str(key["id"]), "--model", MODEL, "--rpm", "6")
    given = run("account", "set", account, "--plan", plan["name"])
    assert (given["plan"], run("account", "show", account)["plan"]) == (plan["name"],) * 2
    early_in_a_minute()
    sdks = [replica.client(customer.key) for replica in (stage.first, stage.second)]
    for number in range(3):
        heard = sdks[number % 2].chat.completions.with_raw_response.create(
            model=MODEL, messages=asks(), max_tokens=9
        )
        limit, left = (heard.headers[f"x-ratelimit-{name}-requests"] for name in ("limit", "remaining"))
        assert (int(limit), int(left)) == (3, 2 - number)
    whose = "API key's limit of 3" if strictest == "key" else "account's limit of 3"
    by = {"plan": " by its plan 'by-plan'", "model": f" for the model '{MODEL}' by its plan 'by-model'"}
    words = f"The {whose} requests a minute{by.get(strictest, '')} is reached: try again later."
    for sdk in sdks:
        with pytest.raises(openai.RateLimitError) as refused:
            sdk.chat.completions.create(model=MODEL, messages=asks(), max_tokens=9)
        assert words in refused.value.message


def test_a_plan_changes_while_its_accounts_call(stage: Stage, provider: Provider) -> None:
    run = stage.relay.command
    plan = run("plan", "create", "--name", "changing", "--tpm", "100000")
    assert (plan["tpm"], plan["rpm"], plan["accounts"]) == (100_000, None, 0)
    customer = stage.customer("changing")
    replicas = [stage.first, stage.second]
    url = "/v1/chat/completions"

    def heard(most: int = 900) -> list[int]:
        headers = {"authorization": f"Bearer {customer.key}"}
        body = BODY | {"max_tokens": most}
        return [
            requests.post(replica.url + url, json=body, headers=headers, timeout=60).status_code
            for replica in replicas
        ]

    assert heard() == [200, 200]
    run("account", "set", str(customer.account), "--plan", "changing")
    run("plan", "limit", str(plan["id"]), "--tpm", "500", "--concurrency", "3")
    eventually(lambda: heard() == [400, 400], 60)
    refused = customer.post(BODY | {"max_tokens": 900}).json()["error"]
    assert "above the account's limit of 500 tokens a minute by its plan 'changing'" in refused["message"]
    (used,) = [row for row in run("plan", "list") if row["name"] == "changing"]
    assert (used["tpm"], used["concurrency"], used["accounts"]) == (500, 3, 1)
    for arguments, words in (
        (("plan", "remove", "changing"), "accounts have the plan 'changing'; give them another one"),
        (("plan", "create", "--name", "changing"), "plan 'changing' exists; `plan limit` changes it"),
        (("plan", "create", "--name", "none"), "other than 'none'"),
        (("plan", "remove", "nobody"), "plan 'nobody' does not exist; `plan list` shows them"),
        (
            ("account", "set", str(customer.account), "--plan", "nobody"),
            "--plan: plan 'nobody' does not exist",
        ),
        (("account", "set", "99999", "--plan", "changing"), "account 99999 does not exist"),
        (("plan", "limit", "99999", "--rpm", "1"), "plan 99999 does not exist; `plan list` shows them"),
    ):
        failed = stage.relay.run(*arguments)
        assert (failed.returncode, words in failed.stderr) == (1, True), failed.stderr
    provider.control(completion_tokens=5)
    assert run("account", "set", str(customer.account), "--plan", "none")["plan"] is None
    eventually(lambda: heard() == [200, 200], 60)
    assert "changing" not in [row["name"] for row in run("plan", "remove", "changing")]


def test_counting_tokens_takes_none(stage: Stage) -> None:
    customer = stage.customer("counts", "--tpm", "50", "--rpm", "3")
    early_in_a_minute()
    with anthropic.Anthropic(api_key=customer.key, base_url=stage.first.url, max_retries=0) as sdk:
        question: Any = [{"role": "user", "content": "word " * 200}]
        for _ in range(3):
            assert sdk.messages.count_tokens(model=MODEL, messages=question).input_tokens > 100
        with pytest.raises(anthropic.RateLimitError, match="limit of 3 requests a minute"):
            sdk.messages.count_tokens(model=MODEL, messages=question)


# ---------------------------------------------------------------------- hourly spending


def early_in_an_hour() -> None:
    """Let no test see a new hour begin."""
    if time.time() % 3600 > 3600 - 90:
        time.sleep(3600 - time.time() % 3600)


def test_a_key_that_spends_too_much_in_an_hour_is_stopped(stage: Stage, provider: Provider) -> None:
    early_in_an_hour()
    provider.control(completion_tokens=20)
    customer = stage.customer("runaway")
    (key,) = stage.relay.command("token", "list", "--account", str(customer.account))
    token = ("--token", str(key["id"]))
    by = ("--reason", "agents run at night", "--by", "ann")
    made = stage.relay.command("breaker", "set", *token, "--usd-per-hour", "0.0005", *by)
    assert (made["maximum"], made["spent"], made["open"]) == (500_000, 0, False)
    while chat(customer, 100).status == 200:
        assert customer.spent() < 1_000_000
    spent = customer.spent()
    assert spent >= 500_000
    started = stage.relay.replica()
    for replica in (stage.first, stage.second, started):
        customer.replica, customer.sdk = replica, replica.client(customer.key)
        for api, ask in APIS.items():
            before = 3600 - time.time() % 3600
            refused = ask(customer, 100)
            assert refused.status == 429
            left = 3600 - time.time() % 3600
            assert "limit is $0.0005: calls are refused until 2" in refused.error["message"]
            assert "ask support to lift" in refused.error["message"]
            if api != "gemini":
                assert left - 2 <= int(refused.headers["retry-after"]) <= before + 2
                assert (refused.headers.get("x-should-retry") == "false") == (left > 122)
            if api == "chat":
                assert refused.error["code"] == "hourly_spend_exceeded"
                assert refused.error["spent_nanodollars"] == spent
    assert customer.spent() == spent, "nothing passes"
    assert started.metric('relay_quota_rejections_total{reason="hourly_spend_exceeded"}') == 4

    (listed,) = stage.relay.command("breaker", "list", "--open")
    assert (listed["token_id"], listed["account_id"], listed["prefix"]) == (
        key["id"],
        customer.account,
        customer.key[:15],
    )
    lifted = stage.relay.command("breaker", "lift", *token, *by[:2], "--by", "bob")
    assert (lifted["spent"], lifted["lifted"], lifted["open"]) == (spent, spent, False)
    assert chat(customer, 100).status == 200
    assert stage.relay.command("breaker", "list", "--open") == []
    history = stage.relay.command("breaker", "history", *token)
    assert [(line["kind"], line["actor"]) for line in history] == [("lift", "bob"), ("set", "ann")]
    again = stage.relay.run("breaker", "lift", *token, *by)
    assert (again.returncode, "refuses nothing; `breaker list` shows why" in again.stderr) == (1, True)


def test_a_breaker_is_set_and_cleared_in_words(stage: Stage) -> None:
    customer = stage.customer("words")
    (key,) = stage.relay.command("token", "list", "--account", str(customer.account))
    token = ("--token", str(key["id"]))
    by = ("--reason", "test", "--by", "ann")
    made = stage.relay.command("breaker", "set", *token, "--usd-per-hour", "2.50", *by)
    assert made["maximum"] == 2_500_000_000
    assert stage.relay.command("breaker", "clear", *token, *by) == {"token_id": key["id"], "cleared": True}
    for arguments, words in (
        (("lift", *token, *by), "has no breaker; `breaker set` gives it one"),
        (("set", "--token", "999999", "--usd-per-hour", "1", *by), "`token list --account ID` shows them"),
        (("set", *token, "--usd-per-hour", "0", *by), "--usd-per-hour: it is not between 1 n$ and"),
        (("set", *token, "--usd-per-hour", "1", "--reason", " ", "--by", "ann"), "--reason: write something"),
    ):
        failed = stage.relay.run("breaker", *arguments)
        assert (failed.returncode, words in failed.stderr) == (1, True), failed.stderr

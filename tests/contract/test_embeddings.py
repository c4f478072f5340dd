"""Embeddings by OpenAI's SDK and by Google's, each on providers of each format: vectors, books, refusals."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
import requests
from google import genai
from google.genai import errors as google_errors
from google.genai import types

from deploys.sandbox.provider.embeddings import DIMENSIONS, vector
from tests.contract.conftest import Database
from tests.contract.fuzz.raw_provider import Answer, Received, running_raw_provider
from tests.contract.relay_rig import PROVIDER_KEY, Customer, Provider, Relay, Replica, eventually, of_google
from tests.contract.two_providers import raw_json

IN = 20  # nano-dollars a token
# Channels: their formats, the end of their base URL, the provider's name of the model.
CHANNELS = {
    "openai": ("openai", "v1", "fake-large"),
    "openai-responses": ("openai-responses", "v1", "fake-large"),
    "gemini": ("gemini", "v1beta", "gemini-fake"),
    "anthropic": ("anthropic", "v1", "claude-fake"),
}
# Of a model whose name says gemini Google's SDK makes all texts parts of one.
MODELS = {name: f"vectors-{number}" for number, name in enumerate(CHANNELS)}
ABLE = [name for name in CHANNELS if name != "anthropic"]
TEXTS = ["Some words.", "Grüße, 世界, in other words.", "x" * 400]


@dataclass
class Stage:
    """A model of MODELS on each channel; ``crossing`` on raw providers, first Gemini's, then OpenAI's, and
    ``alone`` on the first of them."""

    relay: Relay
    replica: Replica
    provider: Provider
    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def choose(self, name: str) -> Answer:
        """Of the raw provider ``name``."""
        self.asked.append(name)
        return self.answers[name]


@pytest.fixture(scope="module")
def stage(
    module_database: Database, provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    relay = Relay(module_database, tmp_path_factory.mktemp("relay"))

    def choose(name: str) -> Callable[[Received], Answer]:
        return lambda _received: made.choose(name)

    with running_raw_provider(choose("first")) as first, running_raw_provider(choose("second")) as second:
        rows = [
            (name, format, f"{provider.url}/{end}", f"{MODELS[name]}={theirs}", "0")
            for name, (format, end, theirs) in CHANNELS.items()
        ]
        rows.append(("first", "gemini", first, "crossing=theirs,alone=theirs", "10"))
        rows.append(("second", "openai", second, "crossing=theirs", "1"))
        for name, format, url, models, priority in rows:
            relay.command(
                *("channel", "create", "--name", name, "--provider", f"p-{name}", "--format", format),
                *("--base-url", url, "--api-key-stdin", "--models", models, "--priority", priority),
                stdin=PROVIDER_KEY,
            )
        for model in (*MODELS.values(), "crossing", "alone"):
            relay.price(model, "--in-text", "0.02/1M", "--out-text", "1/1M")
        made = Stage(relay, relay.replica(), provider)
        yield made
        relay.stop()


@pytest.fixture
def customer(stage: Stage, request: pytest.FixtureRequest) -> Iterator[Customer]:
    stage.asked.clear()
    yield Customer(stage.relay, stage.replica, request.node.name, "1.00")
    stage.provider.control()


@dataclass(frozen=True)
class Embedded:
    """What an SDK gave back."""

    vectors: list[list[float]]
    tokens: int | None
    request_id: str
    left_out: str


def by_openai(customer: Customer, model: str, texts: Any, size: int | None = None, **more: Any) -> Embedded:
    """Of OpenAI's SDK, which asks for packed vectors unless it is told otherwise."""
    given = {"model": model, "input": texts} | ({} if size is None else {"dimensions": size}) | more
    raw = customer.sdk.embeddings.with_raw_response.create(**given)
    made: Any = raw.parse()
    data = sorted(made.data, key=lambda one: one.index)
    assert [one.index for one in data] == list(range(len(data)))
    vectors = [one.embedding for one in data]
    if more.get("encoding_format") == "base64":
        vectors = [unpacked(text) for text in vectors]
    left_out = raw.headers.get("x-relay-left-out", "")
    return Embedded(vectors, made.usage and made.usage.prompt_tokens, raw.headers["x-request-id"], left_out)


def unpacked(text: str) -> list[float]:
    data = base64.b64decode(text)
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def by_google(customer: Customer, model: str, texts: Any, size: int | None = None, **more: Any) -> Embedded:
    options = types.HttpOptions(base_url=customer.replica.url, **of_google())
    with genai.Client(api_key=customer.key, http_options=options) as client:
        config = types.EmbedContentConfig(output_dimensionality=size, **more)
        made: Any = client.models.embed_content(model=model, contents=texts, config=config)
    usage, head = made.usage_metadata, made.sdk_http_response.headers
    tokens = None if usage is None else usage.prompt_token_count
    vectors = [one.values for one in made.embeddings]
    return Embedded(vectors, tokens, head["x-request-id"], head.get("x-relay-left-out", ""))


def by_google_alone(
    customer: Customer, model: str, texts: Any, size: int | None = None, **more: Any
) -> Embedded:
    """``embedContent``, which the SDK does not call."""
    (text,) = texts if isinstance(texts, list) else [texts]
    body = {"content": {"parts": [{"text": text}]}, "output_dimensionality": size} | more
    answer = requests.post(
        f"{customer.replica.url}/v1beta/models/{model}:embedContent",
        json=body,
        headers={"x-goog-api-key": customer.key},
        timeout=60,
    )
    made = answer.json()
    assert answer.ok, made
    tokens = made.get("usageMetadata", {}).get("promptTokenCount")
    return Embedded([made["embedding"]["values"]], tokens, answer.headers["x-request-id"], "")


SDKS: dict[str, Callable[..., Embedded]] = {
    "openai": by_openai,
    "google": by_google,
    "google alone": by_google_alone,
}


def of_record(customer: Customer, request_id: str) -> dict[str, Any]:
    records = customer.relay.usage(customer.account)
    (record,) = [record for record in records if record["request_id"] == request_id]
    return record


@pytest.mark.parametrize(
    ("texts", "size"), [(TEXTS[0], None), (TEXTS[:1], 16), (TEXTS, 16)], ids=["one", "list of one", "several"]
)
@pytest.mark.parametrize("channel", ABLE)
@pytest.mark.parametrize("sdk", SDKS)
def test_each_sdk_on_each_format(
    stage: Stage, customer: Customer, sdk: str, channel: str, texts: Any, size: int | None
) -> None:
    if sdk == "google alone" and texts is TEXTS:
        texts = TEXTS[2]
    made = SDKS[sdk](customer, MODELS[channel], texts, size)
    wanted = [vector(text, size or DIMENSIONS) for text in (texts if isinstance(texts, list) else [texts])]
    assert made.vectors == [pytest.approx(one, abs=1e-6) for one in wanted]
    (booked,) = stage.provider.calls(made.request_id)
    assert (booked["model"], booked["usage_sent"]) == (CHANNELS[channel][2], True)
    record = of_record(customer, made.request_id)
    assert record["meters"] == {"in_text": booked["bill"]["input"]}
    assert made.tokens == booked["prompt_tokens"] == booked["bill"]["input"]
    assert customer.spent() == record["charge"] == booked["bill"]["input"] * IN
    assert record["abort_rule"] is None


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("channel", ABLE)
def test_vectors_are_packed_as_they_are_wanted(customer: Customer, channel: str, encoding: str) -> None:
    made = by_openai(customer, MODELS[channel], TEXTS, encoding_format=encoding, user="somebody")
    assert made.vectors == [pytest.approx(vector(text, DIMENSIONS), abs=1e-6) for text in TEXTS]
    assert made.left_out == ("user" if channel == "gemini" else "")


@pytest.mark.parametrize("sdk", SDKS)
@pytest.mark.parametrize("channel", ABLE)
@pytest.mark.parametrize("lie", [False, True], ids=["none", "too much"])
def test_usage_that_is_not_told_or_cannot_be_is_counted(
    stage: Stage, customer: Customer, sdk: str, channel: str, lie: bool
) -> None:
    """A prompt has no more tokens than bytes."""
    told = {"promptTokenCount": 100_000, "prompt_tokens": 100_000}
    stage.provider.control(omit_usage=not lie, told_usage=told if lie else None)
    made = SDKS[sdk](customer, MODELS[channel], "x" * 400)
    record = of_record(customer, made.request_id)
    assert record["meters"] == {"in_text": 100}
    assert customer.spent() == record["charge"] == 100 * IN
    assert record["abort_rule"] == "bill what was delivered"
    assert record["raw_usage"]["estimated"] is True
    if not lie:
        assert made.tokens == (100 if (sdk, channel) == ("openai", "gemini") else None)


# ---------------------------------------------------------------------- refusals


def test_a_task_passes_to_gemini_and_is_refused_by_name_elsewhere(stage: Stage, customer: Customer) -> None:
    more: dict[str, Any] = {"task_type": "RETRIEVAL_DOCUMENT", "title": "A title"}
    assert len(by_google(customer, MODELS["gemini"], TEXTS, **more).vectors) == 3
    for name in more:
        with pytest.raises(google_errors.ClientError) as caught:
            by_google(customer, MODELS["openai"], TEXTS, **{name: more[name]})
        place = f"requests[0].{'taskType' if name == 'task_type' else name}"
        assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")
        assert caught.value.message == (
            f"{place}: the provider of this model has no such field; leave it out."
        )
    assert len(customer.relay.usage(customer.account)) == 1


@pytest.mark.parametrize("given", [[1, 2, 3], [[1, 2], [3]]], ids=["tokens", "lists of tokens"])
def test_tokens_are_refused_by_name_where_texts_are_wanted(customer: Customer, given: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        by_openai(customer, MODELS["gemini"], given)
    body: Any = caught.value.body
    assert (caught.value.param, caught.value.code) == ("input", "unsupported_parameter")
    assert body["message"] == "input: the provider of this model takes texts, and no tokens."
    assert customer.relay.usage(customer.account) == []
    assert customer.spent() == 0


def test_a_model_whose_providers_make_no_vectors_is_refused_by_name(customer: Customer) -> None:
    said = f"The model '{MODELS['anthropic']}' cannot be used at this endpoint: its provider has no such API."
    with pytest.raises(openai.BadRequestError, match=said) as caught:
        by_openai(customer, MODELS["anthropic"], TEXTS)
    assert (caught.value.param, caught.value.code) == ("model", "unsupported_endpoint")
    with pytest.raises(google_errors.ClientError, match=said) as refused:
        by_google(customer, MODELS["anthropic"], TEXTS)
    assert (refused.value.code, refused.value.status) == (400, "INVALID_ARGUMENT")
    assert customer.relay.usage(customer.account) == []


# ---------------------------------------------------------------------- answers that are none


VECTOR = {"values": [0.5, 0.5]}
USAGE = {"usageMetadata": {"promptTokenCount": 5}}
NO_ANSWERS: dict[str, Any] = {
    "no vectors": {"embeddings": []} | USAGE,
    "an empty vector": {"embeddings": [VECTOR, {}]} | USAGE,
    "nothing": USAGE,
    "an error": {"error": {"code": 500, "message": "x", "status": "INTERNAL"}} | USAGE,
    "another kind": {"embeddings": [VECTOR, {"values": ["0.5"]}]} | USAGE,
    "too few": {"embeddings": [VECTOR]} | USAGE,
    "too many": {"embeddings": [VECTOR] * 3} | USAGE,
}


def of_openai(*vectors: list[float]) -> Answer:
    """The vectors, the last one first, by their index."""
    data = [{"object": "embedding", "index": index, "embedding": made} for index, made in enumerate(vectors)]
    usage = {"prompt_tokens": 7, "total_tokens": 7}
    return raw_json({"object": "list", "data": data[::-1], "usage": usage})


@pytest.mark.parametrize("name", NO_ANSWERS)
def test_what_is_no_answer_goes_to_the_next_provider_and_costs_nothing(
    stage: Stage, customer: Customer, name: str
) -> None:
    stage.answers = {"first": raw_json({"embeddings": [VECTOR]} | USAGE), "second": of_openai([0.25], [0.75])}
    assert by_openai(customer, "alone", "x").tokens == 5  # and the channel rests no more
    stage.answers["first"] = raw_json(NO_ANSWERS[name])
    made = by_openai(customer, "crossing", TEXTS[:2])
    assert (made.vectors, made.tokens, customer.spent()) == ([[0.25], [0.75]], 7, 12 * IN)
    assert stage.asked == ["first", "first", "second"]
    first, _ = of_record(customer, made.request_id)["attempts"]
    assert (first["may_bill"], first["outcome"] != "ok") == (True, True)
    with pytest.raises(openai.InternalServerError) as caught:
        by_openai(customer, "alone", TEXTS[:2])
    assert "Nothing was charged" in str(caught.value)
    assert (stage.asked[-1], customer.spent()) == ("first", 12 * IN)


@pytest.mark.parametrize("sdk", ["google", "google alone"])
def test_google_hears_of_the_next_providers_vectors(stage: Stage, customer: Customer, sdk: str) -> None:
    texts = TEXTS[:2] if sdk == "google" else TEXTS[0]
    vectors = [[0.25], [0.75]] if sdk == "google" else [[0.25]]
    nothing: Any = {"embeddings": [], "embedding": {}}
    stage.answers = {"first": raw_json(nothing | USAGE), "second": of_openai(*vectors)}
    made = SDKS[sdk](customer, "crossing", texts)
    assert (made.vectors, made.tokens, customer.spent()) == (vectors, 7, 7 * IN)


def test_the_books_are_the_charges(stage: Stage) -> None:
    for proof in ("recompute", "conserve"):
        assert stage.relay.command("audit", proof)["ok"]


def test_what_a_model_is_for_is_told_in_geminis_list(stage: Stage, customer: Customer) -> None:
    """By its price: one that writes no text makes vectors, one that is paid by the image does neither."""
    prices = {"vectors": ("--in-text", "0.02/1M"), "writer": (), "painter": ("--rate", "image=0.04/1")}
    create = (
        "channel",
        "create",
        "--name",
        "kinds",
        "--provider",
        "p",
        "--base-url",
        "http://127.0.0.1:9/v1",
    )
    stage.relay.command(*create, "--api-key-stdin", "--models", ",".join(prices), stdin=PROVIDER_KEY)
    for model, rates in prices.items():
        stage.relay.price(model, *rates)

    def told() -> dict[str, list[str]]:
        url = f"{customer.replica.url}/v1beta/models?pageSize=1000"
        answer = requests.get(url, headers={"x-goog-api-key": customer.key}, timeout=60).json()
        return {one["name"]: one["supportedGenerationMethods"] for one in answer["models"]}

    eventually(lambda: {f"models/{model}" for model in prices} <= told().keys())
    assert {model: told()[f"models/{model}"] for model in prices} == {
        "vectors": ["embedContent", "batchEmbedContents"],
        "writer": ["generateContent", "countTokens"],
        "painter": [],
    }

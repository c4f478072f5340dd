"""OpenAI's endpoints beside conversations, with its SDK: what comes back, what is billed, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
import requests

from tests.contract.conftest import Database
from tests.contract.relay_rig import PROVIDER_KEY, Customer, Provider, Relay, Replica, running_provider

IN = 20  # nano-dollars a token
METERS = {"input": "in_text", "cache_read": "cache_read", "output": "out_text"}
PRICE = ("--in-text", "0.02/1M")


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    with running_provider(tmp_path_factory.mktemp("provider")) as running:
        yield running


@pytest.fixture(scope="module")
def relay(
    module_database: Database, provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Relay]:
    made = Relay(module_database, tmp_path_factory.mktemp("relay"))
    made.channel(provider.url, "small=fake-large,judge=omni-moderation-latest,by-call=fake-large", "ours")
    made.command(
        *("channel", "create", "--name", "theirs", "--provider", "anthropic", "--format", "anthropic"),
        *("--base-url", f"{provider.url}/v1", "--api-key-stdin", "--models", "claude=claude-fake"),
        stdin=PROVIDER_KEY,
    )
    made.price("small", *PRICE, "--out-text", "1/1M")
    for model in ("judge", "by-call"):
        made.price(model, "--rate", "call=0.001/1")
    made.price("claude", *PRICE, "--out-text", "1/1M")
    yield made
    made.stop()


@pytest.fixture(scope="module")
def customer(relay: Relay, replica: Replica) -> Customer:
    return Customer(relay, replica, "others", "100.00")


def recorded(customer: Customer, request_id: str) -> dict[str, Any]:
    records = customer.relay.usage(customer.account)
    (record,) = [record for record in records if record["request_id"] == request_id]
    return record


@pytest.mark.parametrize("packed", [False, True], ids=["float", "base64"])
@pytest.mark.parametrize(
    "given",
    ["Some words.", ["Some words.", "Other words."], [1, 2, 3], [[1, 2], [3]]],
    ids=["text", "texts", "tokens", "lists of tokens"],
)
def test_embeddings(customer: Customer, provider: Provider, given: Any, packed: bool) -> None:
    before = customer.balance()
    raw = customer.sdk.embeddings.with_raw_response.create(
        model="small", input=given, dimensions=16, encoding_format="base64" if packed else "float"
    )
    answer = raw.parse()
    (booked,) = provider.calls(raw.headers["x-request-id"])
    record = recorded(customer, raw.headers["x-request-id"])
    count = len(given) if isinstance(given, list) and not isinstance(given[0], int) else 1
    assert len(answer.data) == count
    if packed:
        assert isinstance(answer.data[0].embedding, str)
    else:
        assert len(answer.data[0].embedding) == 16
    assert record["meters"] == {"in_text": booked["bill"]["input"]}
    assert answer.usage.prompt_tokens == booked["prompt_tokens"]
    assert before - customer.balance() == record["charge"] == booked["bill"]["input"] * IN


def test_embeddings_whose_provider_tells_no_usage_are_counted(customer: Customer, provider: Provider) -> None:
    provider.control(omit_usage=True)
    try:
        before = customer.balance()
        raw = customer.sdk.embeddings.with_raw_response.create(model="small", input="x" * 400)
        assert raw.parse().data
    finally:
        provider.control()
    assert recorded(customer, raw.headers["x-request-id"])["meters"] == {"in_text": 100}
    assert before - customer.balance() == 100 * IN


def test_embeddings_by_a_model_whose_providers_have_none_are_refused(customer: Customer) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        customer.sdk.embeddings.create(model="claude", input="x")
    assert (caught.value.code, caught.value.param) == ("unsupported_endpoint", "model")


def post(customer: Customer, path: str, body: Any = None, method: str = "POST") -> requests.Response:
    headers = {"authorization": f"Bearer {customer.key}"}
    return requests.request(method, f"{customer.replica.url}{path}", json=body, headers=headers, timeout=60)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        *(("Say something.", {}), ("Say something.", {"max_tokens": 30, "n": 2})),
        *((["Say this.", "Say that."], {"max_tokens": 5}), ([1, 2, 3], {"stop": ["has"]})),
    ],
    ids=["text", "two of it", "texts", "tokens"],
)
def test_completions(
    customer: Customer, provider: Provider, prompt: Any, options: dict[str, Any], stream: bool
) -> None:
    before = customer.balance()
    create: Any = customer.sdk.completions.with_raw_response.create
    raw = create(model="small", prompt=prompt, stream=stream, **options)
    parts = list(raw.parse()) if stream else [raw.parse()]
    texts: dict[int, str] = {}
    for part in parts:
        for choice in part.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    prompts = len(prompt) if isinstance(prompt, list) and isinstance(prompt[0], str) else 1
    assert len(texts) == options.get("n", 1) * prompts
    (booked,) = provider.calls(raw.headers["x-request-id"])
    assert sum(len(said.split()) for said in texts.values()) == booked["completion_tokens"]
    record = recorded(customer, raw.headers["x-request-id"])
    bill = {METERS[name]: units for name, units in booked["bill"].items() if units}
    assert record["meters"] == bill
    assert before - customer.balance() == record["charge"]
    if stream:
        assert all(part.usage is None and part.choices for part in parts)  # which was not asked for


def test_completions_tell_usage_in_a_stream_where_that_is_asked_for(customer: Customer) -> None:
    chunks = list(
        customer.sdk.completions.create(
            model="small", prompt="Hi?", stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


def test_moderations_cost_their_call(customer: Customer) -> None:
    before = customer.balance()
    answer = customer.sdk.moderations.create(model="judge", input=["I kill time.", "Hello."])
    assert [result.flagged for result in answer.results] == [True, False]
    assert before - customer.balance() == 1_000_000


def test_moderations_by_a_model_without_a_price_for_a_call_are_refused(customer: Customer) -> None:
    with pytest.raises(openai.NotFoundError, match="call has no price"):
        customer.sdk.moderations.create(model="small", input="x")


RERANK = {"query": "rain today", "documents": ["It rains.", "rain today", {"text": "Sun."}], "top_n": 2}


def test_rerank_costs_what_the_provider_counts(customer: Customer, provider: Provider) -> None:
    before = customer.balance()
    answer = post(customer, "/v1/rerank", RERANK | {"model": "small"})
    assert [result["index"] for result in answer.json()["results"]] == [1, 0]
    (booked,) = provider.calls(answer.headers["x-request-id"])
    record = recorded(customer, answer.headers["x-request-id"])
    assert record["meters"] == {"in_text": booked["bill"]["input"]}
    assert before - customer.balance() == booked["bill"]["input"] * IN


def test_rerank_by_the_call(customer: Customer) -> None:
    before = customer.balance()
    assert post(customer, "/v1/rerank", RERANK | {"model": "by-call"}).status_code == 200
    assert before - customer.balance() == 1_000_000


@pytest.mark.parametrize(
    ("path", "fields", "place"),
    [
        *(("completions", {}, "prompt"), ("completions", {"prompt": 5}, "prompt")),
        ("completions", {"prompt": "x", "stream_options": {}}, "stream_options"),
        ("completions", {"prompt": ["x", "y"], "suffix": "z"}, "suffix"),
        *(("moderations", {}, "input"), ("rerank", {"query": "x"}, "documents")),
        *(
            ("rerank", {"query": "x", "documents": []}, "documents"),
            ("rerank", {"documents": ["x"]}, "query"),
        ),
    ],
)
def test_errors_name_the_field(customer: Customer, path: str, fields: dict[str, Any], place: str) -> None:
    answer = post(customer, f"/v1/{path}", {"model": "small"} | fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, place)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", "/v1/responses/resp_1"), ("DELETE", "/v1/responses/resp_1")),
        *(("POST", "/v1/responses/resp_1/cancel"), ("GET", "/v1/responses/resp_1/input_items")),
        *(("POST", "/v1/files"), ("GET", "/v1/batches"), ("POST", "/v1/vector_stores/x/search")),
        *(("GET", "/v1/realtime"), ("POST", "/v1/videos"), ("POST", "/v1/conversations")),
    ],
)
def test_what_is_not_offered_says_so(customer: Customer, method: str, path: str) -> None:
    answer = post(customer, path, None if method == "GET" else {}, method)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (404, "not_offered", "invalid_request_error")
    assert path in error["message"]


def test_stored_answers_are_not_found_by_the_sdk(customer: Customer) -> None:
    with pytest.raises(openai.NotFoundError, match="not kept"):
        customer.sdk.responses.retrieve("resp_1")
    with pytest.raises(openai.NotFoundError, match="not kept"):
        customer.sdk.responses.delete("resp_1")


@pytest.mark.parametrize(
    "fields",
    [
        *({"previous_response_id": "resp_1"}, {"conversation": "conv_1"}, {"store": True}),
        *({"background": True}, {"prompt": {"id": "pmpt_1"}}, {"service_tier": "priority"}),
        *({"tools": [{"type": "web_search"}]}, {"input": [{"type": "item_reference", "id": "rs_1"}]}),
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_needs_answers_that_were_kept_is_refused_before_the_hold(
    customer: Customer, provider: Provider, fields: dict[str, Any]
) -> None:
    before, calls = customer.balance(), len(provider.calls())
    answer = post(customer, "/v1/responses", {"model": "small", "input": "Hi?"} | fields)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["param"].startswith(next(iter(fields)))
    assert (customer.balance(), len(provider.calls())) == (before, calls)


def test_a_websocket_is_refused_at_once(customer: Customer) -> None:
    """Codex tries one first, and goes on over HTTP after 426."""
    headers = {
        **{"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"},
        **{"sec-websocket-key": "eA==", "authorization": f"Bearer {customer.key}"},
    }
    answer = requests.get(f"{customer.replica.url}/v1/responses", headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (426, "websocket_not_offered")
    assert answer.headers["upgrade"] == "HTTP/1.1"
    assert answer.elapsed.total_seconds() < 4
    plain = requests.get(f"{customer.replica.url}/v1/responses", timeout=60)
    assert (plain.status_code, plain.headers["allow"]) == (405, "POST, OPTIONS")


def test_the_books_are_the_charges(customer: Customer) -> None:
    for proof in ("recompute", "conserve"):
        assert customer.relay.command("audit", proof)["ok"]

"""``/v1/messages`` and its neighbours as Anthropic's clients use them: bytes, headers, errors, money."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
import requests

from tests.contract.conftest import Database
from tests.contract.fuzz.raw_provider import Answer
from tests.contract.relay_rig import Customer, asks, eventually
from tests.contract.two_providers import (
    PRICES,
    Channel,
    Stage,
    openai_answer,
    raw_json,
    running_stage,
    streamed,
)

KEY = "sk-planted-7Hq2XcV9pLmN4tRz8KdWf3Gb"
THEIRS = "provider-model-0613"
IN, OUT, READ = 3_000, 15_000, 300  # nano-dollars a token
QUESTION: dict[str, Any] = {
    "model": "claude",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Hi?"}],
}
USAGE = {"input_tokens": 10, "cache_read_input_tokens": 4, "output_tokens": 5}
CHARGE = 10 * IN + 4 * READ + 5 * OUT
VERSION = {"anthropic-version": "2023-06-01"}


@pytest.fixture(scope="module")
def stage(module_database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Models: ``claude`` and ``mapped`` of the first provider (Anthropic's format), ``crossing`` of both,
    ``chat`` of the second one (OpenAI's)."""
    first = Channel("anthropic", f"claude,mapped={THEIRS},crossing={THEIRS}", "p-first")
    second = Channel("openai", "crossing=gpt-x,chat=gpt-x", "p-second")
    prices = dict.fromkeys(("claude", "mapped", "crossing", "chat"), PRICES)
    directory = tmp_path_factory.mktemp("messages")
    with running_stage(module_database, directory, first, second, KEY, prices) as made:
        yield made


@pytest.fixture
def customer(stage: Stage, request: pytest.FixtureRequest) -> Customer:
    stage.requests.clear()
    stage.says(whole_answer())
    stage.says(openai_answer(), by="second")
    return Customer(stage.relay, stage.replica, request.node.name, "1.00")


def post(customer: Customer, body: Any, path: str = "/v1/messages", **headers: str) -> requests.Response:
    """A call as Anthropic's SDK makes it."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = {"x-api-key": customer.key, "content-type": "application/json", **VERSION}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.post(f"{customer.replica.url}{path}", data=data, headers=head | named, timeout=60)


# ---------------------------------------------------------------------- what providers send


def message(**more: Any) -> dict[str, Any]:
    """A whole message."""
    content = [{"type": "text", "text": "Hello"}]
    made = {"id": "msg_1", "type": "message", "role": "assistant", "model": THEIRS, "content": content}
    return made | {"stop_reason": "end_turn", "stop_sequence": None, "usage": USAGE} | more


def whole_answer() -> Answer:
    return raw_json(message())


def sse(kind: str, **fields: Any) -> bytes:
    """An event of Anthropic's."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | fields)}\n\n".encode()


def begin(usage: dict[str, Any] | None = None) -> bytes:
    told = usage or {"input_tokens": 10, "cache_read_input_tokens": 4, "output_tokens": 1}
    head = message(content=[], stop_reason=None, usage=told)
    return sse("message_start", message=head) + sse(
        "content_block_start", index=0, content_block={"type": "text", "text": ""}
    )


def words(text: str) -> bytes:
    return sse("content_block_delta", index=0, delta={"type": "text_delta", "text": text})


def end(usage: dict[str, Any] | None = None) -> bytes:
    stopped = sse("content_block_stop", index=0)
    delta = {"stop_reason": "end_turn", "stop_sequence": None}
    return (
        stopped + sse("message_delta", delta=delta, usage=usage or {"output_tokens": 5}) + sse("message_stop")
    )


STREAM = streamed(begin(), words("Hel"), words("lo"), end())
STREAMING = QUESTION | {"stream": True}


# ---------------------------------------------------------------------- bytes that pass


ODD = (
    b'{ "model" : "claude", "max_tokens":100,\n "future_field": {"a": [1.50, 1e3, "\\u00fc"]},'
    b' "messages":[{"role":"user","content":[{"type":"text","text":"H\\u0069?","new":null}]}]  }'
)


def test_the_body_passes_byte_by_byte(stage: Stage, customer: Customer) -> None:
    answer = post(customer, ODD)
    assert answer.status_code == 200
    ((_, received),) = stage.requests
    assert hashlib.sha256(received.body).digest() == hashlib.sha256(ODD).digest()
    assert answer.content == stage.answers["first"][0].writes[0][1].partition(b"\r\n\r\n")[2]


def test_only_the_models_name_is_replaced(stage: Stage, customer: Customer) -> None:
    ours = ODD.replace(b'"claude"', b'"mapped"')
    answer = post(customer, ours)
    ((_, received),) = stage.requests
    assert received.body == ours.replace(b'"mapped"', f'"{THEIRS}"'.encode())
    assert answer.json()["model"] == "mapped"
    assert THEIRS not in answer.text


def test_a_stream_passes_byte_by_byte(stage: Stage, customer: Customer) -> None:
    events = (begin(), words("Hel"), sse("ping"), words("lo"), sse("future_event", x=1), end())
    stage.says(streamed(*events))
    assert post(customer, STREAMING).content == b"".join(events)
    stage.says(streamed(*events))
    mapped = post(customer, STREAMING | {"model": "mapped"}).content
    assert mapped == b"".join(events).replace(THEIRS.encode(), b"mapped")


def test_headers_and_the_query_pass_and_the_key_does_not(stage: Stage, customer: Customer) -> None:
    answer = post(
        customer,
        QUESTION,
        "/v1/messages?beta=true",
        anthropic_beta="one-2025-01-01,two-2025-02-02",
        anthropic_dangerous_direct_browser_access="true",
        cookie="secret=1",
    )
    assert answer.status_code == 200
    ((_, received),) = stage.requests
    head = received.head.decode().lower()
    assert head.startswith("post /v1/messages?beta=true http/1.1")
    assert "anthropic-beta: one-2025-01-01,two-2025-02-02\r\n" in head
    assert "anthropic-dangerous-direct-browser-access: true\r\n" in head
    assert "anthropic-version: 2023-06-01\r\n" in head
    assert f"x-api-key: {KEY.lower()}\r\n" in head
    assert "cookie" not in head
    assert customer.key.lower() not in head


@pytest.mark.parametrize("how", ["x-api-key", "authorization", "x-goog-api-key", "query", "both"])
def test_keys_come_as_each_sdk_sends_them(customer: Customer, how: str) -> None:
    heads = {
        "authorization": {"authorization": f"Bearer {customer.key}"},
        "query": {},
        "both": {"authorization": f"Bearer {customer.key}", "x-api-key": customer.key},
    }
    head = heads.get(how, {how: customer.key})
    query = f"?key={customer.key}" if how == "query" else ""
    answer = requests.get(f"{customer.replica.url}/v1/models{query}", headers=head, timeout=60)
    assert answer.status_code == 200


# ---------------------------------------------------------------------- money


def test_a_call_is_charged_by_each_meter(stage: Stage, customer: Customer) -> None:
    post(customer, QUESTION)
    assert customer.spent() == CHARGE
    record = customer.record()
    assert record["meters"] == {"in_text": 10, "cache_read": 4, "out_text": 5}


def test_a_streams_usage_is_cumulative_and_never_added_twice(stage: Stage, customer: Customer) -> None:
    told = sse("message_delta", delta={"stop_reason": None}, usage={"output_tokens": 3})
    again = {"input_tokens": 10, "cache_read_input_tokens": 4, "output_tokens": 5}
    stage.says(streamed(begin(), words("Hello"), told, end(again)))
    post(customer, STREAMING)
    assert customer.spent() == CHARGE


def test_a_stream_that_breaks_off_is_charged_by_its_prompt_and_what_was_delivered(
    stage: Stage, customer: Customer
) -> None:
    stage.says(streamed(begin(), words("Hello wo"), cut=True))
    answer = post(customer, STREAMING)
    last = answer.text.strip().split("\n\n")[-1].split("\n")
    assert last[0] == "event: error"
    error = json.loads(last[1].removeprefix("data: "))
    assert error["type"] == "error"
    assert error["error"]["type"] == "api_error"
    assert customer.spent() == 10 * IN + 4 * READ + 2 * OUT  # 8 characters
    assert customer.record()["abort_rule"] == "bill what was delivered"


def test_a_customer_that_leaves_is_charged_for_what_it_got(stage: Stage, customer: Customer) -> None:
    stage.says(streamed(begin(), words("Hello wo"), 1.0, words("rld" * 50), 1.0, end()))
    url, head = f"{customer.replica.url}/v1/messages", {"x-api-key": customer.key, **VERSION}
    with requests.post(url, json=STREAMING, headers=head, stream=True, timeout=60) as answer:
        for line in answer.iter_lines():
            if b"Hello" in line:
                break
    eventually(lambda: customer.relay.usage(customer.account))
    assert customer.spent() == 10 * IN + 4 * READ + 2 * OUT
    assert customer.record()["outcome"] == "client_gone"


@pytest.mark.parametrize("usage", [{"input_tokens": 10**9, "output_tokens": 5}, {"output_tokens": -1}, {}])
def test_usage_that_cannot_be_is_counted_here(stage: Stage, customer: Customer, usage: Any) -> None:
    stage.says(raw_json(message(usage=usage)))
    assert post(customer, QUESTION).status_code == 200
    assert customer.spent() == (4 + 1) * IN + 2 * OUT  # "Hi?" and "Hello"


# ---------------------------------------------------------------------- failover


@pytest.mark.parametrize("stream", [False, True])
def test_failover_crosses_formats(stage: Stage, customer: Customer, stream: bool) -> None:
    stage.says(raw_json({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}, 529))
    if stream:
        chunks: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": None}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            {
                "choices": [],
                "usage": {
                    "prompt_tokens": 14,
                    "completion_tokens": 5,
                    "prompt_tokens_details": {"cached_tokens": 4},
                },
            },
        ]
        events = [
            b"data: " + json.dumps({"id": "c", "model": "gpt-x"} | chunk).encode() + b"\n\n"
            for chunk in chunks
        ]
        stage.says(streamed(*events, b"data: [DONE]\n\n"), by="second")
    sdk = anthropic.Anthropic(api_key=customer.key, base_url=customer.replica.url, max_retries=0)
    asked: Any = QUESTION | {"model": "crossing"}
    with sdk:
        if stream:
            with sdk.messages.stream(**asked) as events_of:
                got = events_of.get_final_message()
        else:
            got = sdk.messages.create(**asked)
    assert (got.content[0].type, got.model, got.stop_reason) == ("text", "crossing", "end_turn")
    assert (got.usage.input_tokens, got.usage.cache_read_input_tokens, got.usage.output_tokens) == (10, 4, 5)
    assert [name for name, _ in stage.requests] == ["first", "second"]
    assert customer.spent() == CHARGE
    outcomes = [attempt["outcome"] for attempt in customer.record()["attempts"]]
    assert outcomes == ["status_529", "ok"]


def test_an_openai_customer_fails_over_to_its_own_format(stage: Stage, customer: Customer) -> None:
    stage.says(raw_json(b"", 500))
    assert customer.post({"model": "crossing", "messages": asks(), "max_tokens": 50}).status_code == 200
    assert [name for name, _ in stage.requests] == ["first", "second"]
    stage.requests.clear()
    # What the first one's format cannot say goes to the second alone.
    assert (
        customer.post({"model": "crossing", "messages": asks(), "max_tokens": 50, "seed": 7}).status_code
        == 200
    )
    assert [name for name, _ in stage.requests] == ["second"]


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0.type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "search_result"}]}]},
            "messages.0.content.0.type",
        ),
        ({"future_field": 1}, "future_field"),
    ],
)
def test_what_cannot_be_translated_is_refused_by_name_before_the_hold(
    stage: Stage, customer: Customer, change: dict[str, Any], place: str
) -> None:
    answer = post(customer, QUESTION | {"model": "chat"} | change)
    body = answer.json()
    assert (answer.status_code, body["type"], body["error"]["type"]) == (
        400,
        "error",
        "invalid_request_error",
    )
    assert body["error"]["message"].startswith(f"{place}: ")
    assert stage.requests == []
    assert customer.spent() == 0


@pytest.mark.parametrize(
    ("change", "place"), [({"seed": 7}, "seed"), ({"n": 2}, "n"), ({"logit_bias": {"1": 1}}, "logit_bias")]
)
def test_the_same_for_openais_customers(
    stage: Stage, customer: Customer, change: dict[str, Any], place: str
) -> None:
    answer = customer.post({"model": "claude", "messages": asks(), "max_tokens": 50} | change)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, place, "unsupported_parameter")
    assert stage.requests == []


def test_what_says_nothing_about_the_answer_is_left_out_and_named(stage: Stage, customer: Customer) -> None:
    asked = {"model": "claude", "messages": asks(), "max_tokens": 50, "store": False, "prompt_cache_key": "k"}
    answer = customer.post(asked)
    assert answer.headers["x-relay-left-out"] == "prompt_cache_key, store"
    assert "x-relay-left-out" not in post(customer, QUESTION).headers


@pytest.mark.parametrize(
    ("change", "place"),
    [
        *(({"max_tokens": None}, "max_tokens"), ({"messages": []}, "messages"), ({"model": 1}, "model")),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"speed": "fast"}, "speed"),
        ({"inference_geo": "us"}, "inference_geo"),
        (
            {"context_management": {"edits": [{"type": "compact_20260112"}]}},
            "context_management.edits.0.type",
        ),
    ],
)
def test_what_has_no_price_is_refused_by_name(
    stage: Stage, customer: Customer, change: dict[str, Any], place: str
) -> None:
    answer = post(customer, QUESTION | change)
    assert answer.status_code == 400
    assert place in answer.json()["error"]["message"]
    assert stage.requests == []


def test_conversations_that_a_server_keeps_are_refused_as_anthropics_sdk_understands(
    customer: Customer,
) -> None:
    answer = post(customer, QUESTION | {"thread": {"type": "create"}})
    assert answer.status_code == 400
    assert answer.json()["error"]["details"]["error_code"] == "thread_unsupported_request"


def test_a_name_that_occurs_twice_is_refused(stage: Stage, customer: Customer) -> None:
    for body in (
        b'{"model":"claude","max_tokens":1,"max_tokens":9999,"messages":[{"role":"user","content":"x"}]}',
        b'{"model":"claude","max_tokens":1,"max_tok\\u0065ns":1,"messages":[{"role":"user","content":"x"}]}',
    ):
        answer = post(customer, body)
        assert (answer.status_code, "max_tokens" in answer.text) == (400, True)
    assert stage.requests == []


@pytest.mark.parametrize(
    ("status", "kind", "change", "key"),
    [
        (401, "authentication_error", {}, "sk-relay-nobody"),
        (404, "not_found_error", {"model": "nobody-knows"}, None),
        (402, "billing_error", {"max_tokens": 9_000_000}, None),
    ],
)
def test_errors_have_anthropics_shape(
    stage: Stage, customer: Customer, status: int, kind: str, change: dict[str, Any], key: str | None
) -> None:
    answer = post(customer, QUESTION | change, x_api_key=key or customer.key)
    body = answer.json()
    assert (answer.status_code, body["type"], body["error"]["type"]) == (status, "error", kind)
    assert body["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]


def test_a_providers_refusal_keeps_its_words(stage: Stage, customer: Customer) -> None:
    words_of = "messages.0: tool_use ids were found without tool_result blocks"
    stage.says(
        raw_json({"type": "error", "error": {"type": "invalid_request_error", "message": words_of}}, 400)
    )
    answer = post(customer, QUESTION)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, words_of)
    assert customer.spent() == 0


# ---------------------------------------------------------------------- pings, counting, models


def test_a_quiet_provider_costs_no_customer_its_patience(stage: Stage, customer: Customer) -> None:
    stage.says(streamed(begin(), words("Hel"), 1.0, words("lo"), end()))
    answer = post(customer, STREAMING)
    assert answer.text.count("event: ping\n") >= 2
    assert answer.text.endswith('{"type": "message_stop"}\n\n')
    assert customer.spent() == CHARGE
    # Before anything was generated, too.
    stage.says(streamed(begin(), 1.0, words("Hello"), end()))
    assert post(customer, STREAMING).text.count("event: ping\n") >= 2
    slow = streamed(
        b": hi\n\n",
        1.0,
        b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n',
        b"data: [DONE]\n\n",
    )
    stage.says(slow, by="second")
    text = customer.post({"model": "chat", "messages": asks(), "stream": True}).text
    assert text.count(": ping\n\n") >= 2
    assert text.endswith("data: [DONE]\n\n")


def test_tokens_are_counted_by_the_provider_at_no_charge(stage: Stage, customer: Customer) -> None:
    stage.says(raw_json({"input_tokens": 42}))
    body = {"model": "mapped", "messages": QUESTION["messages"]}
    answer = post(customer, body, "/v1/messages/count_tokens?beta=true")
    assert answer.json() == {"input_tokens": 42}
    ((_, received),) = stage.requests
    assert received.head.startswith(b"POST /v1/messages/count_tokens?beta=true ")
    assert json.loads(received.body) == body | {"model": THEIRS}
    assert customer.spent() == 0


def test_tokens_are_counted_here_where_no_provider_counts(stage: Stage, customer: Customer) -> None:
    body = {"model": "chat", "system": "Be brief.", "messages": QUESTION["messages"]}
    answer = post(customer, body, "/v1/messages/count_tokens")
    assert answer.json() == {"input_tokens": 4 + 3 + 1}
    assert answer.headers["x-relay-estimate"] == "counted by text"
    assert stage.requests == []
    assert post(customer, body | {"messages": "x"}, "/v1/messages/count_tokens").status_code == 400


def test_models_in_anthropics_shape(customer: Customer) -> None:
    with anthropic.Anthropic(api_key=customer.key, base_url=customer.replica.url) as sdk:
        assert [model.id for model in sdk.models.list(limit=1000)] == ["chat", "claude", "crossing", "mapped"]
        assert [model.id for model in sdk.models.list(limit=1)] == ["chat", "claude", "crossing", "mapped"]
        assert sdk.models.retrieve("claude").display_name == "claude"
        with pytest.raises(anthropic.NotFoundError):
            sdk.models.retrieve("nobody-knows")
    began = time.monotonic()
    assert [model.id for model in customer.sdk.models.list()] == ["chat", "claude", "crossing", "mapped"]
    assert time.monotonic() - began < 30


# ---------------------------------------------------------------------- broken streams
# Last, since the providers rest after so many failures.

# A provider's stream that ends before its end, in either format: "Hello wo" came, 2 tokens by count.
OPENAI_BEGIN = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"Hello wo"}}]}\n\n'
BROKEN = {
    "cut": ((), True),
    "ended early": ((), False),
    "silent": ((6.0, b": late\n\n"), False),
    "nonsense": ((b"data: {nonsense\n\n",), False),
}
ERRORS = {
    "first": sse("error", error={"type": "overloaded_error", "message": "too busy"}),
    "second": b'data: {"error": {"message": "too busy", "type": "server_error"}}\n\n',
}


@pytest.mark.parametrize("how", [*BROKEN, "error"])
@pytest.mark.parametrize("by", ["first", "second"])
@pytest.mark.parametrize("ours", ["openai", "anthropic"])
def test_a_broken_stream_ends_with_an_error_in_the_customers_format_and_is_charged_alike(
    stage: Stage, customer: Customer, ours: str, by: str, how: str
) -> None:
    rest, cut = BROKEN.get(how, ((ERRORS[by],), False))
    stage.says(
        streamed(begin() + words("Hello wo") if by == "first" else OPENAI_BEGIN, *rest, cut=cut), by=by
    )
    model = "claude" if by == "first" else "chat"
    if ours == "anthropic":
        text = post(customer, STREAMING | {"model": model}).text
        last = json.loads(text.strip().rpartition("data: ")[2])
        assert (last["type"], "event: error\n" in text, "message_stop" in text) == ("error", True, False)
        prompt = 4 + 1  # "Hi?"
    else:
        asked = {"model": model, "max_tokens": 100, "stream": True, "messages": asks("Hi?")}
        text = customer.post(asked).text
        last = json.loads(text.strip().rpartition("data: ")[2])
        assert ("message" in last["error"], "[DONE]" in text) == (True, False)
        prompt = 4 + 1
    assert "Hello wo" in text
    told = 10 * IN + 4 * READ  # Anthropic tells the prompt's usage first
    assert customer.spent() == (told if by == "first" else prompt * IN) + 2 * OUT
    assert customer.record()["abort_rule"] == "bill what was delivered"


@pytest.mark.parametrize("ours", ["openai", "anthropic"])
def test_a_customer_that_leaves_a_translated_stream_is_charged_for_what_it_got(
    stage: Stage, customer: Customer, ours: str
) -> None:
    theirs = "second" if ours == "anthropic" else "first"
    begun = OPENAI_BEGIN if theirs == "second" else begin() + words("Hello wo")
    more = OPENAI_BEGIN if theirs == "second" else words("Hello wo")
    stage.says(streamed(begun, 1.0, more, 1.0, more), by=theirs)
    path = "/v1/messages" if ours == "anthropic" else "/v1/chat/completions"
    head = {"authorization": f"Bearer {customer.key}"}
    asked = STREAMING | {"model": "chat" if theirs == "second" else "claude"}
    url = customer.replica.url + path
    with requests.post(url, json=asked, headers=head, stream=True, timeout=60) as answer:
        for line in answer.iter_lines():
            if b"Hello" in line:
                break
    eventually(lambda: customer.relay.usage(customer.account))
    assert customer.record()["outcome"] == "client_gone"
    prompt = 5 * IN if theirs == "second" else 10 * IN + 4 * READ
    assert customer.spent() == prompt + 2 * OUT


def test_every_charge_can_be_computed_again(stage: Stage, customer: Customer) -> None:
    post(customer, QUESTION)
    stage.says(streamed(begin(), words("Hello wo"), cut=True))
    post(customer, STREAMING)
    for proof in ("recompute", "conserve"):
        assert stage.relay.command("audit", proof)["ok"]

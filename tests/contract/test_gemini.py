"""``/v1beta/models/…`` as Google's clients use it: bytes, paths, keys, errors, money."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from google import genai
from google.genai import errors as google_errors
from google.genai import types

from tests.contract.conftest import Database
from tests.contract.relay_rig import Customer, asks, trusted
from tests.contract.two_providers import (
    PRICES,
    Channel,
    Stage,
    openai_answer,
    openai_response,
    raw_json,
    running_stage,
    streamed,
)

KEY = "AIzaSy-planted-7Hq2XcV9pLmN4tRz8KdWf3Gb"
THEIRS = "gemini-theirs-001"
IN, OUT, READ = 3_000, 15_000, 300  # nano-dollars a token
HI: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": "Hi?"}]}]}
QUESTION = HI | {"generationConfig": {"maxOutputTokens": 100}}
USAGE = {
    "promptTokenCount": 12,
    "cachedContentTokenCount": 4,
    "toolUsePromptTokenCount": 2,
    "candidatesTokenCount": 3,
    "thoughtsTokenCount": 2,
    "totalTokenCount": 19,
}
CHARGE = 10 * IN + 4 * READ + 5 * OUT


@pytest.fixture(scope="module")
def stage(module_database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Models: ``gem`` and ``mapped`` of the first provider (Gemini's format), ``crossing`` of both, ``chat``
    of the second one (OpenAI's)."""
    first = Channel("gemini", f"gem,mapped={THEIRS},crossing={THEIRS}", "p-first")
    second = Channel("openai", "crossing=gpt-x,chat=gpt-x", "p-second")
    prices = dict.fromkeys(("gem", "mapped", "crossing", "chat"), PRICES)
    directory = tmp_path_factory.mktemp("gemini")
    with running_stage(module_database, directory, first, second, KEY, prices) as made:
        yield made


@pytest.fixture
def customer(stage: Stage, request: pytest.FixtureRequest) -> Customer:
    stage.requests.clear()
    stage.says(raw_json(response()))
    stage.says(openai_answer(), by="second")
    return Customer(stage.relay, stage.replica, request.node.name, "1.00")


def post(
    customer: Customer, body: Any, action: str = "gem:generateContent", **headers: str
) -> requests.Response:
    """A call as Google's SDK makes it."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = {"x-goog-api-key": customer.key, "content-type": "application/json"}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    path = action if action.startswith("/") else f"/v1beta/models/{action}"
    return requests.post(f"{customer.replica.url}{path}", data=data, headers=head | named, timeout=60)


def sdk(customer: Customer) -> genai.Client:
    options = types.HttpOptions(base_url=customer.replica.url, client_args={"verify": trusted()})
    return genai.Client(api_key=customer.key, http_options=options)


# ---------------------------------------------------------------------- what providers send


def response(*texts: str, finish: str | None = "STOP", usage: Any = USAGE) -> dict[str, Any]:
    """A response; without texts "Hello"."""
    parts = [{"text": text} for text in texts or ("Hello",)]
    candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    told = {"usageMetadata": usage} if usage else {}
    return {"candidates": [candidate]} | told | {"modelVersion": THEIRS, "responseId": "r1"}


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\r\n\r\n"


EVENTS = (event(response("Hel", finish=None)), event(response("lo")))
STREAM = streamed(*EVENTS)
SSE = "gem:streamGenerateContent?alt=sse"


# ---------------------------------------------------------------------- bytes that pass


ODD = (
    b'{ "generation_config": {"max_output_tokens" :100.0,"topK":1e0},\n "futureField": [1.50, "\\u00fc"],'
    b' "contents":[{"role":"user","parts":[{"text":"H\\u0069?","new":null}]}]  }'
)


@pytest.mark.parametrize("model", ["gem", "mapped"])
def test_the_body_passes_byte_by_byte(stage: Stage, customer: Customer, model: str) -> None:
    answer = post(customer, ODD, f"{model}:generateContent")
    assert answer.status_code == 200
    ((_, received),) = stage.requests
    assert hashlib.sha256(received.body).digest() == hashlib.sha256(ODD).digest()
    theirs = THEIRS if model == "mapped" else "gem"
    assert received.head.startswith(f"POST /v1/models/{theirs}:generateContent HTTP/1.1\r\n".encode())
    sent = stage.answers["first"][0].writes[0][1].partition(b"\r\n\r\n")[2]
    assert answer.content == (sent if model == "gem" else sent.replace(THEIRS.encode(), b"mapped"))


def test_only_the_limit_that_is_held_for_is_put_in(stage: Stage, customer: Customer) -> None:
    post(customer, json.dumps(HI).encode())
    ((_, received),) = stage.requests
    assert received.body == b'{"generationConfig":{"maxOutputTokens":4096},' + json.dumps(HI).encode()[1:]


def test_a_stream_passes_byte_by_byte(stage: Stage, customer: Customer) -> None:
    stage.says(STREAM)
    answer = post(customer, QUESTION, SSE)
    assert answer.content == b"".join(EVENTS)
    assert answer.headers["content-type"].startswith("text/event-stream")
    ((_, received),) = stage.requests
    assert received.head.startswith(b"POST /v1/models/gem:streamGenerateContent?alt=sse HTTP/1.1\r\n")
    assert customer.spent() == CHARGE


@pytest.mark.parametrize("query", ["", "?alt=json", "?$alt=json&prettyPrint=false"])
def test_without_alt_sse_a_stream_is_an_array(stage: Stage, customer: Customer, query: str) -> None:
    stage.says(STREAM)
    answer = post(customer, QUESTION, f"gem:streamGenerateContent{query}")
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.json() == [response("Hel", finish=None), response("lo")]
    for one in EVENTS:
        assert one.removeprefix(b"data: ").strip() in answer.content
    assert b"alt=sse" in stage.requests[0][1].head
    assert customer.spent() == CHARGE
    stage.says(openai_answer(), by="second")
    chunks = ({"content": "Hel"}, {"content": "lo"})
    told = [{"id": "c", "choices": [{"index": 0, "delta": delta}]} for delta in chunks]
    end = {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    usage = {"id": "c", "choices": [], "usage": openai_response()["usage"]}
    stage.says(streamed(*(event(one) for one in (*told, end, usage)), b"data: [DONE]\n\n"), by="second")
    elements = post(customer, QUESTION, f"chat:streamGenerateContent{query}").json()
    assert [one["candidates"][0]["content"]["parts"][0]["text"] for one in elements] == ["Hel", "lo", ""]
    assert elements[-1]["usageMetadata"]["totalTokenCount"] == 19


@pytest.mark.parametrize("alt", ["", "?alt=sse"])
def test_a_quiet_provider_costs_no_customer_its_patience(stage: Stage, customer: Customer, alt: str) -> None:
    """Blank lines come meanwhile, which are nothing in an array, and in a stream of events."""
    stage.says(streamed(EVENTS[0], 1.0, EVENTS[1]))
    answer = post(customer, QUESTION, f"gem:streamGenerateContent{alt}")
    if alt:
        assert answer.content.replace(b"\r\n", b"") == b"".join(EVENTS).replace(b"\r\n", b"")
        assert answer.content.count(b"\r\n") >= b"".join(EVENTS).count(b"\r\n") + 2
    else:
        assert answer.json() == [response("Hel", finish=None), response("lo")]
        assert answer.content.count(b"\r\n") >= 3
    stage.says(streamed(1.0, *EVENTS))
    with sdk(customer) as client:
        chunks = client.models.generate_content_stream(model="gem", contents="Hi?")
        assert "".join(chunk.text or "" for chunk in chunks) == "Hello"


@pytest.mark.parametrize("path", ["/v1beta/models/gem%3AgenerateContent", "/v1/models/gem:generateContent"])
def test_other_ways_to_write_the_path(stage: Stage, customer: Customer, path: str) -> None:
    assert post(customer, QUESTION, path).json()["candidates"]
    assert stage.requests[0][1].head.startswith(b"POST /v1/models/gem:generateContent ")


@pytest.mark.parametrize("how", ["x-goog-api-key", "query", "authorization"])
def test_the_key_does_not_pass(stage: Stage, customer: Customer, how: str) -> None:
    heads = {"authorization": {"authorization": f"Bearer {customer.key}"}, "query": {}}
    query = f"?key={customer.key}" if how == "query" else ""
    answer = requests.post(
        f"{customer.replica.url}/v1beta/models/gem:generateContent{query}",
        json=QUESTION,
        headers={"x-goog-fieldmask": "candidates"} | heads.get(how, {how: customer.key}),
        timeout=60,
    )
    assert answer.status_code == 200
    head = stage.requests[0][1].head.decode().lower()
    assert f"x-goog-api-key: {KEY.lower()}\r\n" in head
    assert customer.key.lower() not in head
    assert "fieldmask" not in head  # it would hide the usage


# ---------------------------------------------------------------------- money


def test_a_call_is_charged_by_each_meter(customer: Customer) -> None:
    post(customer, QUESTION)
    assert customer.spent() == CHARGE
    assert customer.record()["meters"] == {"in_text": 10, "cache_read": 4, "out_text": 5}


def test_a_blocked_prompt_is_charged_as_the_provider_tells(stage: Stage, customer: Customer) -> None:
    usage = {"promptTokenCount": 12, "totalTokenCount": 12}
    blocked = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": usage}
    stage.says(raw_json(blocked))
    assert post(customer, QUESTION).json() == blocked
    assert customer.spent() == 12 * IN
    stage.says(streamed(event(blocked)))
    assert post(customer, QUESTION, SSE).content == event(blocked)
    assert customer.spent() == 24 * IN


def test_a_stream_that_breaks_off_is_charged_by_its_usage_so_far(stage: Stage, customer: Customer) -> None:
    stage.says(streamed(EVENTS[0], cut=True))
    error = json.loads(post(customer, QUESTION, SSE).content.split(b"data: ")[-1])["error"]
    assert (error["code"], error["status"]) == (502, "UNAVAILABLE")
    assert customer.spent() == CHARGE
    assert customer.record()["abort_rule"] == "bill what was delivered"
    stage.says(streamed(event(response("Hello wo", finish=None, usage=None)), cut=True))
    elements = post(customer, QUESTION, "gem:streamGenerateContent").json()
    assert elements[-1]["error"]["status"] == "UNAVAILABLE"
    assert customer.spent() == CHARGE + 5 * IN + 2 * OUT  # counted: "Hi?" and "Hello wo"


@pytest.mark.parametrize("ours", ["gemini", "openai"])
@pytest.mark.parametrize("stream", [False, True])
def test_failover_crosses_formats(stage: Stage, customer: Customer, ours: str, stream: bool) -> None:
    post(customer, QUESTION)  # so the first one does not rest from earlier failures
    stage.requests.clear()
    busy = {"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}}
    stage.says(raw_json([busy] if stream else busy, 503))
    told = [
        {"id": "c", "choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": "stop"}]},
        {"id": "c", "choices": [], "usage": openai_response()["usage"]},
    ]
    if stream:
        stage.says(streamed(*(event(one) for one in told), b"data: [DONE]\n\n"), by="second")
    if ours == "openai":
        asked = {"model": "crossing", "messages": asks(), "max_tokens": 50, "stream": stream}
        assert "Hello" in customer.post(asked).text
    else:
        with sdk(customer) as client:
            call: Any = {"model": "crossing", "contents": "Hi?", "config": {"max_output_tokens": 50}}
            answers = (
                list(client.models.generate_content_stream(**call))
                if stream
                else [client.models.generate_content(**call)]
            )
        assert "".join(answer.text or "" for answer in answers) == "Hello"
        assert answers[-1].model_version == "crossing"
    assert [name for name, _ in stage.requests] == ["first", "second"]
    assert customer.spent() == 2 * CHARGE
    records = customer.relay.usage(customer.account)
    outcomes = [[attempt["outcome"] for attempt in record["attempts"]] for record in records]
    assert sorted(outcomes) == [["ok"], ["status_503", "ok"]]


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("model", "change", "place"),
    [
        ("gem", {"tools": [{"googleSearch": {}}]}, "tools[0].googleSearch"),
        ("gem", {"cachedContent": "cachedContents/x"}, "cachedContent"),
        ("chat", {"futureField": 1}, "futureField"),
        ("chat", {"generationConfig": {"candidateCount": 2}}, "generationConfig.candidateCount"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name_before_the_hold(
    stage: Stage, customer: Customer, model: str, change: dict[str, Any], place: str
) -> None:
    answer = post(customer, QUESTION | change, f"{model}:generateContent")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["status"]) == (400, 400, "INVALID_ARGUMENT")
    assert error["message"].startswith(f"{place}: ")
    fields = [one["field"] for detail in error["details"] for one in detail.get("fieldViolations", ())]
    assert fields == [place]
    assert stage.requests == []
    assert customer.spent() == 0


def test_the_same_for_openais_customers(stage: Stage, customer: Customer) -> None:
    asked = {"model": "gem", "messages": asks(), "max_tokens": 50, "logprobs": True}
    error = customer.post(asked).json()["error"]
    assert (error["param"], error["code"]) == ("logprobs", "unsupported_parameter")
    assert stage.requests == []


@pytest.mark.parametrize(
    ("status", "word", "action", "change", "key"),
    [
        (401, "UNAUTHENTICATED", "gem:generateContent", {}, "sk-relay-nobody"),
        (404, "NOT_FOUND", "nobody-knows:generateContent", {}, None),
        (404, "NOT_FOUND", "gem:makeCoffee", {}, None),
        (405, "INVALID_ARGUMENT", "gem", {}, None),
        (402, "FAILED_PRECONDITION", "gem:generateContent", {"maxOutputTokens": 9_000_000}, None),
        (400, "INVALID_ARGUMENT", "gem:generateContent?fields=candidates", {}, None),
        (400, "INVALID_ARGUMENT", "gem:generateContent?alt=sse", {}, None),
        (400, "INVALID_ARGUMENT", "gem:streamGenerateContent?alt=proto", {}, None),
        (404, "NOT_FOUND", "nobody-knows:streamGenerateContent", {}, None),
    ],
)
def test_errors_have_googles_shape(
    customer: Customer, status: int, word: str, action: str, change: dict[str, Any], key: str | None
) -> None:
    answer = post(customer, HI | {"generationConfig": change}, action, x_goog_api_key=key or customer.key)
    body = answer.json()
    assert isinstance(body, list) == ("streamGenerateContent" in action)  # as Google's
    error = (body[0] if isinstance(body, list) else body)["error"]
    assert (answer.status_code, error["code"], error["status"]) == (status, status, word)
    named = [detail["requestId"] for detail in error["details"] if "requestId" in detail]
    assert named == [answer.headers["x-request-id"]]


def test_a_providers_refusal_keeps_its_words(stage: Stage, customer: Customer) -> None:
    words = f"* GenerateContentRequest.contents: {THEIRS} wants more."
    stage.says(raw_json({"error": {"code": 400, "message": words, "status": "INVALID_ARGUMENT"}}, 400))
    with sdk(customer) as client, pytest.raises(google_errors.ClientError) as caught:
        client.models.generate_content(model="mapped", contents="Hi?")
    assert caught.value.message == words.replace(THEIRS, "mapped")
    assert customer.spent() == 0


def test_a_channels_wrong_key_is_no_fault_of_the_customers(stage: Stage, customer: Customer) -> None:
    words = "API key not valid. Please pass a valid API key."
    stage.says(raw_json({"error": {"code": 400, "message": words, "status": "INVALID_ARGUMENT"}}, 400))
    answer = post(customer, QUESTION)
    assert answer.status_code == 502
    assert "API key" not in answer.text


# ---------------------------------------------------------------------- counting, models


def test_tokens_are_counted_by_the_provider_at_no_charge(stage: Stage, customer: Customer) -> None:
    stage.says(raw_json({"totalTokens": 42}))
    whole = {"generateContentRequest": QUESTION | {"model": "models/mapped"}}
    for body, theirs in (
        (HI, HI),
        (whole, {"generateContentRequest": QUESTION | {"model": f"models/{THEIRS}"}}),
    ):
        stage.requests.clear()
        assert post(customer, body, "mapped%3AcountTokens").json() == {"totalTokens": 42}
        ((_, received),) = stage.requests
        assert received.head.startswith(f"POST /v1/models/{THEIRS}:countTokens ".encode())
        assert json.loads(received.body) == theirs
    assert customer.spent() == 0


def test_tokens_are_counted_here_where_no_provider_counts(stage: Stage, customer: Customer) -> None:
    with sdk(customer) as client:
        assert client.models.count_tokens(model="chat", contents="Hi?").total_tokens == 4 + 1
    answer = post(customer, HI, "chat:countTokens")
    assert answer.headers["x-relay-estimate"] == "counted by text"
    assert stage.requests == []


def test_models_in_googles_shape(customer: Customer) -> None:
    names = [f"models/{name}" for name in ("chat", "crossing", "gem", "mapped")]
    with sdk(customer) as client:
        assert [model.name for model in client.models.list()] == names
        assert [model.name for model in client.models.list(config={"page_size": 1})] == names
        assert client.models.get(model="gem").display_name == "gem"
        with pytest.raises(google_errors.ClientError, match="NOT_FOUND"):
            client.models.get(model="nobody-knows")
    url, head = f"{customer.replica.url}/v1/models", {"x-goog-api-key": customer.key}
    assert "models" in requests.get(url, headers=head, timeout=60).json()
    assert "models" in requests.get(f"{url}?key={customer.key}", timeout=60).json()
    assert "data" in requests.get(url, headers={"authorization": f"Bearer {customer.key}"}, timeout=60).json()
    wrong = requests.get(f"{customer.replica.url}/v1beta/models?pageSize=0", headers=head, timeout=60)
    assert wrong.json()["error"]["status"] == "INVALID_ARGUMENT"

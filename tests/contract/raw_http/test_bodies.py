"""Bodies of requests, good and bad, and what the provider gets of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests

from relay.gateway.answer_memory import LARGE_BYTES
from relay.http_protocol import MAX_DISCARDED_BYTES
from tests.contract.raw_http.raw import JSON, MAX_BODY, QUESTION, Raw, ask, request
from tests.contract.raw_http.recorder import LARGE_ANSWER, Recorder
from tests.contract.relay_rig import MODEL, Customer, Relay, asks, eventually


@pytest.mark.parametrize(
    "content_type",
    [
        *("application/json", "application/json; charset=utf-8", 'APPLICATION/JSON;Charset="UTF-8"'),
        *("application/json;charset=iso-8859-1", "application/vnd.x+json", "", None),
    ],
)
def test_content_types_that_are_json(customer: Customer, content_type: str | None) -> None:
    headers = [] if content_type is None else [f"Content-Type: {content_type}"]
    answer = ask(customer, request(customer, "POST", "/v1/chat/completions", *headers, body=QUESTION))
    assert answer.status == 200


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/x", "json"]
)
def test_content_types_that_are_not(customer: Customer, content_type: str) -> None:
    headers = [f"Content-Type: {content_type}"]
    answer = ask(customer, request(customer, "POST", "/v1/chat/completions", *headers, body=QUESTION))
    assert (answer.status, answer.error()["code"]) == (415, "unsupported_media_type")
    assert content_type in answer.error()["message"]
    assert "application/json" in answer.error()["message"]


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "zstd", "deflate, gzip", "identity, gzip"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/pricing/quote"])
def test_compressed_bodies_get_415_and_are_told_so(customer: Customer, encoding: str, path: str) -> None:
    answer = ask(
        customer, request(customer, "POST", path, JSON, f"Content-Encoding: {encoding}", body=b"\x1f\x8b")
    )
    assert (answer.status, answer.error()["code"]) == (415, "unsupported_content_encoding")
    assert "without compression" in answer.error()["message"]
    assert answer.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("encoding", ["identity", ""])
def test_a_body_that_says_it_is_not_compressed(customer: Customer, encoding: str) -> None:
    headers = [JSON, f"Content-Encoding: {encoding}"]
    assert (
        ask(customer, request(customer, "POST", "/v1/chat/completions", *headers, body=QUESTION)).status
        == 200
    )


def test_a_body_in_chunks(customer: Customer) -> None:
    head = request(customer, "POST", "/v1/chat/completions", JSON, "Transfer-Encoding: chunked")
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in (QUESTION[:7], QUESTION[7:])]
    assert ask(customer, head, *chunks, b"0\r\n\r\n").status == 200
    assert ask(customer, head + b"".join(chunks) + b"0\r\nX-Trailer: 1\r\n\r\n").status == 200


def test_expect_continue(customer: Customer) -> None:
    headers = [JSON, "Expect: 100-continue", f"Content-Length: {len(QUESTION)}"]
    with Raw(customer.replica) as raw:
        raw.send(request(customer, "POST", "/v1/chat/completions", *headers))
        assert raw.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert raw.send(QUESTION).answer().status == 200


@pytest.mark.parametrize(("length", "key", "status"), [(MAX_BODY + 1, True, 413), (10, False, 401)])
def test_a_refusal_comes_before_the_body_is_sent(
    customer: Customer, length: int, key: bool, status: int
) -> None:
    headers = [JSON, "Expect: 100-continue", f"Content-Length: {length}"]
    with Raw(customer.replica) as raw:
        raw.send(request(customer if key else None, "POST", "/v1/chat/completions", *headers))
        assert raw.answer().status == status
        assert raw.closed(), "the client will not send its body, so nothing can follow on this connection"


@pytest.mark.parametrize("size", [MAX_BODY + 1, 20_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_too_large_does_not_cost_the_client_its_answer(
    customer: Customer, size: int, chunked: bool
) -> None:
    body = b"x" * size
    headers = [JSON, "Transfer-Encoding: chunked"] if chunked else [JSON]
    sent = b"%x\r\n%s\r\n0\r\n\r\n" % (size, body) if chunked else body
    with Raw(customer.replica) as raw:
        answer = raw.send(request(customer, "POST", "/v1/chat/completions", *headers, body=sent)).answer()
        assert (answer.status, answer.error()["code"]) == (413, "request_too_large")
        assert str(MAX_BODY) in answer.error()["message"]
        assert raw.send(request(customer, "GET", "/v1/models")).answer("GET").status == 200


def test_a_body_without_end_is_cut(customer: Customer) -> None:
    block = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with Raw(customer.replica) as raw:
        raw.send(request(customer, "POST", "/v1/chat/completions", JSON, "Transfer-Encoding: chunked"))
        assert not can_send(raw, block * 16, 2 * MAX_DISCARDED_BYTES)


def can_send(raw: Raw, block: bytes, size: int) -> bool:
    """Whether ``size`` bytes can be sent, before the relay closes the connection."""
    try:
        for _ in range(size // len(block)):
            raw.send(block)
    except ConnectionError:
        return False
    return True


LIES = [
    ("Content-Length: 5", 400),  # the rest of the body is another request, and none
    ("Content-Length: -1", 400),
    ("Content-Length: 5\r\nContent-Length: 6", 400),
    ("Content-Length: ten", 400),
    ("Content-Length: 99999999999999999999999", 400),
    ("Content-Length: 5\r\nTransfer-Encoding: chunked", 400),
    ("Transfer-Encoding: gzip", 400),
    ("Transfer-Encoding: gzip, chunked", 415),
    ("Content-Length: 0", 400),
]


@pytest.mark.parametrize(("header", "status"), LIES)
def test_lengths_that_lie(customer: Customer, header: str, status: int) -> None:
    data = request(customer, "POST", "/v1/chat/completions", JSON, header)
    with Raw(customer.replica) as raw:
        answer = raw.send(data + (b"5\r\nhello\r\n0\r\n\r\n" if "chunked" in header else QUESTION)).answer()
        assert answer.status == status
        assert answer.error()["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not a valid JSON object"),
        (b"null", "not a valid JSON object"),
        (b'["model"]', "Expected `object`"),
        (b'"text"', "Expected `object`"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8"),
        (QUESTION.replace(b"call", b"c\xe4ll"), "not UTF-8"),
        (QUESTION.replace(b"call", b"c\x00ll"), "not a valid JSON object"),
        (QUESTION + b"}", "not a valid JSON object"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "nested deeper"),
        (b"[" * 90_000, "nested deeper"),
        (b'{"model":"m","messages":[],"max_tokens":1e999}', "messages"),
    ],
)
def test_bodies_that_cannot_be_read(customer: Customer, body: bytes, says: str) -> None:
    answer = ask(customer, request(customer, "POST", "/v1/chat/completions", JSON, body=body))
    assert answer.status == 400
    assert says in answer.error()["message"]


def test_odd_bodies_that_can_be_read_reach_the_provider(customer: Customer, lenient: None) -> None:
    body = json.loads(QUESTION) | {"user": "half \ud83d", "seed": 10**40, "metadata": {"nul": "\0"}, "new": 1}
    body |= {"max_tokens": 5.0, "audio": None, "moderation": {"model": "m"}, "prompt_cache_retention": "24h"}
    answer = ask(customer, request(customer, body=b"\xef\xbb\xbf" + json.dumps(body).encode()))
    assert answer.status == 200
    assert json.loads(answer.body)["usage"]["completion_tokens"] <= 5


# ---------------------------------------------------------------------- what the provider gets


def test_a_channels_settings_reach_its_provider(relay: Relay, recorder: str, customer: Customer) -> None:
    channels: dict[str, tuple[str, ...]] = {
        "plain": ("--provider", "openai"),
        "other": ("--provider", "deepseek"),
        "picky": ("--provider", "openai", "--output-limit-field", "max_tokens", "--unknown-fields", "drop"),
        "strict": ("--provider", "openai", "--unknown-fields", "refuse"),
    }
    for name, options in channels.items():
        relay.price(f"by-{name}")
        relay.command(
            *("channel", "create", "--name", name, "--base-url", recorder, "--api-key-stdin"),
            *("--models", f"by-{name}", *options),
            stdin="key",
        )
    replica = relay.replica(RELAY_MODEL_MAX_OUTPUT="by-picky=77,*=99")

    def sent(name: str, **more: Any) -> dict[str, Any]:
        Recorder.got.clear()
        body = {"model": f"by-{name}", "messages": asks(), **more}
        headers = {"authorization": f"Bearer {customer.key}"}
        answer = requests.post(f"{replica.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
        if answer.status_code != 200:
            assert Recorder.got == []
            found: dict[str, Any] = answer.json()["error"]
            return found
        (got,) = Recorder.got
        return {key: value for key, value in got.items() if key not in ("model", "messages")}

    assert sent("plain", brand_new=1, user="u") == {"max_completion_tokens": 99, "brand_new": 1, "user": "u"}
    assert sent("other", brand_new=1, seed=None) == {"max_tokens": 99, "brand_new": 1}
    assert sent("picky", brand_new=1, user="u") == {"max_tokens": 77, "user": "u"}
    assert sent("picky", max_completion_tokens=5) == {"max_completion_tokens": 5}
    refusal = sent("strict", brand_new=1)
    assert (refusal["param"], refusal["code"]) == ("brand_new", "unknown_parameter")
    assert sent("strict", user="u") == {"max_completion_tokens": 99, "user": "u"}
    customer.balance()  # fails while anything is held
    changed = relay.command("channel", "set", "picky", "--unknown-fields", "usual", "--weight", "2")
    assert (changed["unknown_fields"], changed["output_limit_field"]) == ("", "max_tokens")
    eventually(lambda: sent("picky", brand_new=1) == {"max_tokens": 77, "brand_new": 1})


def test_the_sdk_sends_todays_fields(customer: Customer, lenient: None) -> None:
    answer = customer.sdk.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "anna"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": "42"},
        ],
        max_tokens=3,
        moderation={"model": "omni-moderation-latest"},
        prompt_cache_options={"mode": "explicit", "ttl": "30m"},
        prompt_cache_retention="24h",
        verbosity="low",
        extra_body={"top_k": 5, "brand_new": {"x": None}, "audio": None},
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 3


# ---------------------------------------------------------------------- large ones together


def test_large_requests_are_bounded_together(relay: Relay) -> None:
    """Large ones are refused while others fill the memory, and served afterwards; small ones are served."""
    replica = relay.replica(RELAY_BODIES_BYTES=str(1 << 20))
    customer = Customer(relay, replica, "bodies", "5.00")
    text = json.dumps({"model": MODEL, "messages": asks("x" * 300_000)}).encode()
    large = request(customer, "POST", "/v1/chat/completions", JSON, body=text)
    assert ask(customer, large).status == 200
    begun = request(customer, "POST", "/v1/chat/completions", JSON, "Content-Length: 600000") + b" " * 500_000
    with Raw(replica) as first, Raw(replica) as second:
        for raw in (first, second):
            raw.send(begun)
        eventually(lambda: replica.metric("relay_request_body_bytes") == 1_000_000)
        refused = ask(customer, large)
        assert (refused.status, refused.error()["code"]) == (503, "server_busy")
        assert refused.headers["retry-after"] == "2"
        assert ask(customer, request(customer, body=QUESTION)).status == 200
    eventually(lambda: replica.metric("relay_request_body_bytes") == 0)
    assert ask(customer, large).status == 200


def test_large_answers_wait_for_each_other(relay: Relay, recorder: str) -> None:
    """One beyond the memory holds up the next, while its customer reads nothing; small ones pass."""
    relay.price("large")
    create = ("channel", "create", "--name", "large", "--provider", "openai", "--base-url", recorder)
    relay.command(*create, "--api-key-stdin", "--models", "large", stdin="key")
    replica = relay.replica(RELAY_ANSWERS_BYTES=str(1 << 20))
    customer = Customer(relay, replica, "answers", "5.00")
    asked = request(customer, body=json.dumps({"model": "large", "messages": asks()}).encode())

    def held() -> float:
        return replica.metric("relay_answer_body_bytes")

    with Raw(replica) as first, Raw(replica) as second:
        first.send(asked)
        eventually(lambda: held() > LARGE_ANSWER)
        second.send(asked)
        eventually(lambda: held() > LARGE_ANSWER + LARGE_BYTES)
        assert ask(customer, request(customer, body=QUESTION)).status == 200
        assert held() < LARGE_ANSWER + (1 << 20)
        for raw in (first, second):
            answer = raw.answer()
            assert (answer.status, len(answer.body) > LARGE_ANSWER) == (200, True)
    eventually(lambda: held() == 0)
    calls = [row for row in relay.usage(customer.account) if row["model"] == "large"]
    assert [row["outcome"] for row in calls] == ["ok", "ok"]

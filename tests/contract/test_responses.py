"""``/v1/responses`` as OpenAI's clients use it: bytes, failover, broken streams, money."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.contract.conftest import Database
from tests.contract.relay_rig import Customer, asks, eventually
from tests.contract.test_messages import message, sse
from tests.contract.two_providers import PRICES, Channel, Stage, raw_json, running_stage, streamed

KEY = "sk-planted-7Hq2XcV9pLmN4tRz8KdWf3Gb"
THEIRS = "provider-model-0613"
IN, OUT, READ = 3_000, 15_000, 300  # nano-dollars a token
QUESTION: dict[str, Any] = {"model": "native", "input": "Hi?", "max_output_tokens": 100}
STREAMING = QUESTION | {"stream": True}
USAGE = {"input_tokens": 14, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 5}
CHARGE = 10 * IN + 4 * READ + 5 * OUT
COUNTED = (4 + 1) * IN  # of the prompt: 4 an item and one for "Hi?"
SEALED = {"id": "rs_1", "type": "reasoning", "summary": [], "encrypted_content": "c2VhbGVk"}
SAID = {
    "id": "msg_1",
    "type": "message",
    "status": "completed",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "Hello", "annotations": []}],
}


def response(**more: Any) -> dict[str, Any]:
    """A whole answer."""
    made = {"id": "resp_1", "object": "response", "model": THEIRS, "status": "completed", "error": None}
    return made | {"output": [SEALED, SAID], "usage": USAGE} | more


BEGIN = sse(
    "response.created", response=response(status="in_progress", output=[], usage=None), sequence_number=0
)
THOUGHT = sse("response.output_item.added", output_index=0, item=SEALED) + sse(
    "response.output_item.done", output_index=0, item=SEALED
)
ADDED = sse("response.output_item.added", output_index=1, item=SAID | {"content": []})


def words(text: str) -> bytes:
    return sse("response.output_text.delta", output_index=1, content_index=0, delta=text)


DONE = sse("response.output_item.done", output_index=1, item=SAID)
END = sse("response.completed", response=response())
EVENTS = (BEGIN, THOUGHT, ADDED, words("Hel"), sse("response.future_event", x=1), words("lo"), DONE, END)


@pytest.fixture(scope="module")
def stage(module_database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Models: ``native`` and ``mapped`` of the first provider (Responses), ``crossing`` of it and of the
    second one (Anthropic's format)."""
    first = Channel("openai-responses", f"native,mapped={THEIRS},crossing={THEIRS}", "p-first")
    second = Channel("anthropic", "crossing=claude-x", "p-second")
    prices = dict.fromkeys(("native", "mapped", "crossing"), PRICES)
    directory = tmp_path_factory.mktemp("responses")
    with running_stage(module_database, directory, first, second, KEY, prices) as made:
        yield made


@pytest.fixture
def customer(stage: Stage, request: pytest.FixtureRequest) -> Customer:
    stage.requests.clear()
    stage.says(raw_json(response()))
    return Customer(stage.relay, stage.replica, request.node.name, "1.00")


def post(customer: Customer, body: Any) -> requests.Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = {"authorization": f"Bearer {customer.key}", "content-type": "application/json"}
    return requests.post(f"{customer.replica.url}/v1/responses", data=data, headers=head, timeout=60)


ODD = (
    b'{ "model" : "native", "max_output_tokens":100,\n "future_field": {"a": [1.50, 1e3, "\\u00fc"]},'
    b' "input":[{"type":"reasoning","summary":[],"encrypted_content":"c2VhbGVk"},'
    b'{"role":"assistant","content":"Yes","phase":"commentary"},'
    b'{"role":"user","content":[{"type":"input_text","text":"H\\u0069?","new":null}]}]  }'
)


def test_bodies_pass_byte_by_byte(stage: Stage, customer: Customer) -> None:
    answer = post(customer, ODD)
    ((_, received),) = stage.requests
    assert hashlib.sha256(received.body).digest() == hashlib.sha256(ODD).digest()
    assert answer.content == stage.answers["first"][0].writes[0][1].partition(b"\r\n\r\n")[2]
    assert customer.spent() == CHARGE


def test_only_the_models_name_is_replaced(stage: Stage, customer: Customer) -> None:
    ours = ODD.replace(b'"native"', b'"mapped"')
    answer = post(customer, ours)
    ((_, received),) = stage.requests
    assert received.body == ours.replace(b'"mapped"', f'"{THEIRS}"'.encode())
    assert answer.json()["model"] == "mapped"
    assert THEIRS not in answer.text


def test_a_request_without_a_limit_gets_the_one_that_was_held_for(stage: Stage, customer: Customer) -> None:
    body = b'{"model":"native","input":"Hi?"}'
    assert post(customer, body).status_code == 200
    ((_, received),) = stage.requests
    assert received.body == b'{"max_output_tokens":4096,' + body[1:]


def test_a_stream_passes_byte_by_byte(stage: Stage, customer: Customer) -> None:
    stage.says(streamed(*EVENTS))
    assert post(customer, STREAMING).content == b"".join(EVENTS)
    mapped = post(customer, STREAMING | {"model": "mapped"}).content
    assert mapped == b"".join(EVENTS).replace(THEIRS.encode(), b"mapped")
    assert customer.spent() == 2 * CHARGE


@pytest.mark.parametrize("stream", [False, True])
def test_failover_crosses_formats(stage: Stage, customer: Customer, stream: bool) -> None:
    stage.says(raw_json({"error": {"type": "server_error", "message": "busy"}}, 503))
    usage = {"input_tokens": 10, "cache_read_input_tokens": 4, "output_tokens": 5}
    stage.says(raw_json(message(usage=usage)), by="second")
    if stream:
        block = sse("content_block_start", index=0, content_block={"type": "text", "text": "Hello"})
        delta = {"stop_reason": "end_turn", "stop_sequence": None}
        stage.says(
            streamed(
                sse("message_start", message=message(content=[], usage=usage)),
                block + sse("content_block_stop", index=0),
                sse("message_delta", delta=delta, usage={"output_tokens": 5}) + sse("message_stop"),
            ),
            by="second",
        )
    asked: Any = QUESTION | {"model": "crossing"}
    if stream:
        with customer.sdk.responses.stream(
            **{name: value for name, value in asked.items() if name != "stream"}
        ) as events:
            got: Any = events.get_final_response()
    else:
        got = customer.sdk.responses.create(**asked)
    assert (got.output_text, got.model, got.status) == ("Hello", "crossing", "completed")
    assert (got.usage.input_tokens, got.usage.output_tokens) == (14, 5)
    assert [name for name, _ in stage.requests] == ["first", "second"]
    assert customer.spent() == CHARGE


def test_pings_of_a_quiet_stream_are_comments(stage: Stage, customer: Customer) -> None:
    stage.says(streamed(BEGIN, 1.0, ADDED + words("Hello"), END))
    answer = post(customer, STREAMING)
    assert answer.content.startswith(b": ping\n\n")
    assert answer.content.replace(b": ping\n\n", b"") == BEGIN + ADDED + words("Hello") + END


# ---------------------------------------------------------------------- broken streams
# Last, since the providers rest after so many failures.

BROKEN = {
    "cut": ((), True),
    "ended early": ((), False),
    "silent": ((6.0, b": late\n\n"), False),
    "nonsense": ((b"data: {nonsense\n\n",), False),
    "failed": ((sse("response.failed", response=response(error={"code": "x", "message": "busy"})),), False),
    "error": ((sse("error", code="x", message="busy", param=None),), False),
}


@pytest.mark.parametrize("how", [*BROKEN])
@pytest.mark.parametrize("ours", ["responses", "openai"])
def test_a_broken_stream_ends_with_an_error_and_is_charged_by_what_came(
    stage: Stage, customer: Customer, ours: str, how: str
) -> None:
    rest, cut = BROKEN[how]
    stage.says(streamed(BEGIN, ADDED, words("Hello wo"), *rest, cut=cut))
    if ours == "responses":
        text = post(customer, STREAMING).text
        last = json.loads(text.strip().rpartition("data: ")[2])
        assert last["type"] in ("error", "response.failed")
        assert "response.completed" not in text
    else:
        asked = {"model": "native", "max_tokens": 100, "stream": True, "messages": asks("Hi?")}
        text = customer.post(asked).text
        last = json.loads(text.strip().rpartition("data: ")[2])
        assert ("message" in last["error"], "[DONE]" in text) == (True, False)
    assert "Hello wo" in text
    told = how == "failed"  # which tells the usage of all that was generated
    assert customer.spent() == (CHARGE if told else COUNTED + 2 * OUT)
    assert customer.record()["abort_rule"] == "bill what was delivered"


def test_a_customer_that_leaves_is_charged_for_what_it_got(stage: Stage, customer: Customer) -> None:
    stage.says(streamed(BEGIN, ADDED, words("Hello wo"), 1.0, words("rld" * 50), 1.0, END))
    url, head = f"{customer.replica.url}/v1/responses", {"authorization": f"Bearer {customer.key}"}
    with requests.post(url, json=STREAMING, headers=head, stream=True, timeout=60) as answer:
        for line in answer.iter_lines():
            if b"Hello" in line:
                break
    eventually(lambda: customer.relay.usage(customer.account))
    assert customer.spent() == COUNTED + 2 * OUT
    assert customer.record()["outcome"] == "client_gone"


def test_every_charge_can_be_computed_again(stage: Stage) -> None:
    for proof in ("recompute", "conserve"):
        assert stage.relay.command("audit", proof)["ok"]

"""What compatible providers were reported to send in other gateways' trackers, through the real relay.

A provider that answers with what it is told to; customers' formats that read it; and each bill.
The reports are named at the cases, by their trackers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import anthropic
import pytest
import requests

from tests.contract.conftest import Database
from tests.contract.relay_rig import Customer, Relay, Replica, eventually, trusted

PRICES = {"in_text": 3_000, "out_text": 15_000, "cache_read": 300, "cache_write_5m": 3_750}  # nano-dollars
PRICES |= {"cache_write_1h": 6_000}
MODELS = {"openai": "as-openai", "openai-responses": "as-responses", "anthropic": "as-anthropic"}
MODELS |= {"gemini": "as-gemini"}
HOLD = "word " * 12_000  # a prompt whose bound covers what the providers tell


class Scripted(ThreadingHTTPServer):
    """A provider that gives one answer to all; ``asked``: what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: tuple[str, bytes] = ("application/json", b"{}")
        self.asked: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """Answers as its server says."""

    server: Scripted

    def do_POST(self) -> None:
        """Answer anything."""
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append(json.loads(body))
        kind, answer = self.server.answer
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def scripted() -> Iterator[Scripted]:
    server = Scripted()
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def relay(
    module_database: Database, scripted: Scripted, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Relay]:
    made = Relay(module_database, tmp_path_factory.mktemp("relay"))
    for format, model in MODELS.items():
        made.command(
            *("channel", "create", "--name", f"c-{format}", "--provider", "compatible", "--format", format),
            *("--base-url", f"{scripted.url}/v1", "--api-key-stdin", "--models", f"{model}=theirs"),
            stdin="key",
        )
        rates = [(f"--{name.replace('_', '-')}", f"{nano / 1000}/1M") for name, nano in PRICES.items()]
        made.price(model, *(word for rate in rates for word in rate))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def customer(relay: Relay, replica: Replica) -> Customer:
    return Customer(relay, replica, "reported", "1000.00")


def events(*payloads: Any) -> tuple[str, bytes]:
    """A stream; ``payloads`` with a type name their events."""
    lines = []
    for payload in payloads:
        named = f"event: {payload['type']}\n" if isinstance(payload, dict) and "type" in payload else ""
        data = payload if isinstance(payload, str) else json.dumps(payload)
        lines.append(f"{named}data: {data}\n\n")
    return "text/event-stream", "".join(lines).encode()


def ask(customer: Customer, ours: str, model: str, stream: bool, **more: Any) -> requests.Response:
    """A customer's call in format ``ours``."""
    url, said = customer.replica.url, HOLD
    body: dict[str, Any] = {"model": model, "stream": stream} | more
    paths: dict[str, tuple[str, dict[str, Any]]] = {
        "openai": ("/v1/chat/completions", {"messages": [{"role": "user", "content": said}]}),
        "openai-responses": ("/v1/responses", {"input": said}),
        "anthropic": ("/v1/messages", {"messages": [{"role": "user", "content": said}], "max_tokens": 9_999}),
    }
    path, asked = paths[ours]
    headers = {"authorization": f"Bearer {customer.key}"}
    return requests.post(url + path, json=asked | body, headers=headers, timeout=60)


def record(customer: Customer, answer: requests.Response) -> dict[str, Any]:
    """The relay's record of a call."""

    def found() -> dict[str, Any] | None:
        records = customer.relay.usage(customer.account)
        own = [one for one in records if one["request_id"] == answer.headers["x-request-id"]]
        return own[0] if own else None

    made: dict[str, Any] = eventually(found)
    return made


def check_bill(customer: Customer, answer: requests.Response, meters: dict[str, int]) -> None:
    """It was charged for exactly this."""
    assert answer.status_code == 200, answer.text
    told = record(customer, answer)
    assert told["meters"] == meters
    assert int(told["charge"]) == sum(PRICES[name] * units for name, units in meters.items())


TEXT = {"index": 0, "delta": {"content": "Yes."}, "finish_reason": None}
ENDED = {"index": 0, "delta": {}, "finish_reason": "stop"}
TOLD = {"prompt_tokens": 900, "completion_tokens": 30, "total_tokens": 930}
CHAT_USAGES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    # earendil-works/pi#2017, #8075: Moonshot's stands in the last choice, its cache in a field of its own
    "in the choice": (
        {"choices": [ENDED | {"usage": TOLD | {"cached_tokens": 300}}]},
        {"in_text": 600, "cache_read": 300, "out_text": 30},
    ),
    "in x_groq": (
        {"choices": [ENDED], "x_groq": {"id": "r", "usage": TOLD}},
        {"in_text": 900, "out_text": 30},
    ),
    # BerriAI/litellm#40090: Alibaba's caches
    "alibaba": (
        {
            "choices": [ENDED],
            "usage": TOLD
            | {
                "prompt_tokens_details": {
                    "cached_tokens": 100,
                    "cache_creation_input_tokens": 500,
                    "cache_creation": {"ephemeral_5m_input_tokens": 500},
                    "cache_type": "ephemeral",
                }
            },
        },
        {"in_text": 300, "cache_read": 100, "cache_write_5m": 500, "out_text": 30},
    ),
    # BerriAI/litellm#31069, QuantumNous/new-api#2249: Claude behind gateways
    "litellm": (
        {
            "choices": [ENDED],
            "usage": TOLD
            | {
                "cache_read_input_tokens": 100,
                "cache_creation_input_tokens": 500,
                "prompt_tokens_details": {
                    "cached_tokens": 100,
                    "cache_creation_tokens": 500,
                    "cache_creation_token_details": {"ephemeral_1h_input_tokens": 400},
                },
            },
        },
        {"in_text": 300, "cache_read": 100, "cache_write_5m": 100, "cache_write_1h": 400, "out_text": 30},
    ),
    # QuantumNous/new-api#5003: the caches beside the prompt, which the total says
    "beside": (
        {
            "choices": [ENDED],
            "usage": {
                "prompt_tokens": 300,
                "completion_tokens": 30,
                "total_tokens": 930,
                "cache_read_input_tokens": 100,
                "cache_creation_input_tokens": 500,
                "claude_cache_creation_1_h_tokens": 500,
            },
        },
        {"in_text": 300, "cache_read": 100, "cache_write_1h": 500, "out_text": 30},
    ),
}


@pytest.mark.parametrize("ours", ["openai", "anthropic"])
@pytest.mark.parametrize("case", CHAT_USAGES)
def test_usage_in_odd_places_is_charged_as_it_was_told(
    customer: Customer, scripted: Scripted, ours: str, case: str
) -> None:
    last, meters = CHAT_USAGES[case]
    scripted.answer = events({"id": "c", "choices": [TEXT]}, {"id": "c", **last}, "[DONE]")
    check_bill(customer, ask(customer, ours, MODELS["openai"], stream=True), meters)


@pytest.mark.parametrize("ours", ["anthropic", "openai"])
def test_a_cached_prompt_is_not_charged_twice(customer: Customer, scripted: Scripted, ours: str) -> None:
    """maximhq/bifrost#5510 (Moonshot), #5355 (Alibaba): the begin tells it whole, the end in parts."""
    message = {"id": "m", "type": "message", "role": "assistant", "model": "theirs", "content": []}
    scripted.answer = events(
        {"type": "message_start", "message": message | {"usage": {"input_tokens": 8834, "output_tokens": 0}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Yes."}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn"},
            "usage": {"input_tokens": 18, "cache_read_input_tokens": 8816, "output_tokens": 426},
        },
        {"type": "message_stop"},
    )
    answer = ask(customer, ours, MODELS["anthropic"], stream=True)
    check_bill(customer, answer, {"in_text": 18, "cache_read": 8816, "out_text": 426})


CUT = ({"id": "c", "choices": [TEXT]}, {"id": "c", "choices": [ENDED | {"finish_reason": "error"}]}, "[DONE]")
BROKEN = {
    # OpenRouter tells it in the choice; Z.ai and DeepSeek by the reason alone
    "openai": {"id": "c", "choices": [{"index": 0, "message": {"content": "Y"}, "finish_reason": "error"}]},
    # BerriAI/litellm#21744, #16651, #40477: told as an ordinary end
    "gemini": {
        "candidates": [{"content": {"role": "model"}, "finishReason": "MALFORMED_FUNCTION_CALL"}],
        "usageMetadata": {"promptTokenCount": 900, "totalTokenCount": 900},
    },
}


@pytest.mark.parametrize("theirs", BROKEN)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_broke_off_is_an_error_and_costs_nothing(
    customer: Customer, scripted: Scripted, theirs: str, stream: bool
) -> None:
    whole = "application/json", json.dumps(BROKEN[theirs]).encode()
    scripted.answer = events(CUT[1], BROKEN[theirs]) if stream and theirs == "openai" else whole
    if stream and theirs == "gemini":
        scripted.answer = events(BROKEN[theirs])
    answer = ask(customer, "anthropic", MODELS[theirs], stream)
    assert answer.status_code == 502, answer.text
    assert answer.json()["error"]["type"] == "api_error"
    assert int(record(customer, answer)["charge"]) == 0


def test_a_stream_that_broke_off_ends_with_an_error_and_costs_what_came(
    customer: Customer, scripted: Scripted
) -> None:
    scripted.answer = events(*CUT)
    told = ask(customer, "anthropic", MODELS["openai"], stream=True)
    assert '"text":"Yes."' in told.text
    assert "event: error" in told.text
    assert "message_stop" not in told.text
    assert dict(record(customer, told)["meters"])["out_text"] == 1


def piece(index: int | None, id: str | None, name: str | None, arguments: Any) -> dict[str, Any]:
    """A chunk with a piece of a call."""
    function = {"name": name, "arguments": arguments}
    call: dict[str, Any] = {"index": index, "id": id, "type": "function"}
    call["function"] = {key: value for key, value in function.items() if value is not None}
    delta = {"tool_calls": [{key: value for key, value in call.items() if value is not None}]}
    return {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


TWO = [("look", {"at": 1}), ("look", {"at": 2})]
CALLS = {
    # su-kaka/gcli2api#406, NousResearch/hermes-agent#62937: Google's compatible API numbers all calls 0
    "no ids": (TWO, [piece(0, "", "look", '{"at":1}'), piece(0, "", "look", '{"at":2}')]),
    "no index": (TWO, [piece(None, "a", "look", '{"at":1}'), piece(None, "b", "look", '{"at":2}')]),
    # xorbitsai/inference#4237, InternLM/lmdeploy#3412: the same id for several calls
    "one id": (TWO, [piece(0, "a", "look", '{"at":1}'), piece(1, "a", "look", '{"at":2}')]),
    # poolsideai/pool#9, vllm-project/vllm#23522: an id of its own for each piece
    "an id a piece": (
        TWO[:1],
        [piece(0, "a", "look", ""), piece(0, "b", None, '{"at"'), piece(0, "c", None, ":1}")],
    ),
    "heads repeated": (
        TWO[:1],
        [piece(0, "a", "look", '{"at"'), piece(0, "b", "look", ":1"), piece(0, "b", "look", "}")],
    ),
    "name repeated": (TWO[:1], [piece(0, "a", "look", ""), piece(0, "a", "look", '{"at":1}')]),
    # ggml-org/llama.cpp#20198, huggingface/text-generation-inference#2461: arguments that are no text
    "objects": (TWO, [piece(0, "a", "look", {"at": 1}), piece(1, "b", "look", {"at": 2})]),
    # BerriAI/litellm#5063: a call without arguments
    "no arguments": ([("look", {})], [piece(0, "a", "look", "")]),
}


@pytest.mark.parametrize("case", CALLS)
def test_tool_calls_arrive_each_as_one_with_its_arguments(
    customer: Customer, scripted: Scripted, case: str
) -> None:
    wanted, pieces = CALLS[case]
    ends = ENDED | {"finish_reason": "tool_calls"}
    scripted.answer = events(*pieces, {"id": "c", "choices": [ends], "usage": TOLD}, "[DONE]")
    http = anthropic.DefaultHttpxClient(verify=trusted())
    with anthropic.Anthropic(api_key=customer.key, base_url=customer.replica.url, http_client=http) as sdk:
        asked: Any = {
            "model": MODELS["openai"],
            "max_tokens": 500,
            "messages": [{"role": "user", "content": HOLD}],
        }
        with sdk.messages.stream(**asked) as stream:
            message = stream.get_final_message()
    uses = [block for block in message.content if block.type == "tool_use"]
    assert [(use.name, use.input) for use in uses] == wanted
    assert len({use.id for use in uses}) == len(wanted)
    assert all(use.id for use in uses)


def test_a_call_without_arguments_has_json_in_openais_stream(customer: Customer, scripted: Scripted) -> None:
    """BerriAI/litellm#5063, simonw/llm#1164: clients read the pieces together as JSON."""
    message = {"id": "m", "type": "message", "role": "assistant", "model": "theirs", "content": []}
    use = {"type": "tool_use", "id": "t", "name": "snooze", "input": {}}
    scripted.answer = events(
        {"type": "message_start", "message": message | {"usage": {"input_tokens": 9, "output_tokens": 0}}},
        {"type": "content_block_start", "index": 0, "content_block": use},
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "input_json_delta", "partial_json": ""},
        },
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 4}},
        {"type": "message_stop"},
    )
    asked: Any = {"model": MODELS["anthropic"], "messages": [{"role": "user", "content": HOLD}]}
    with customer.sdk.chat.completions.stream(**asked) as stream:
        calls = stream.get_final_completion().choices[0].message.tool_calls or []
    (call,) = calls
    assert json.loads(call.function.arguments) == {}


def test_what_claude_code_says_to_anthropics_books_is_no_prompt_of_others(
    customer: Customer, scripted: Scripted
) -> None:
    """anthropics/claude-code#68900: a line that changes with each request keeps prompts out of caches."""
    scripted.answer = events({"id": "c", "choices": [TEXT]}, {"id": "c", "choices": [ENDED], "usage": TOLD})
    line = "x-anthropic-billing-header: cc_version=2.1.177.01c; cc_entrypoint=cli; cch="
    sent = []
    for changing in ("36ee5", "0aaa9"):
        system = [{"type": "text", "text": f"{line}{changing};"}, {"type": "text", "text": "You are brief."}]
        assert ask(customer, "anthropic", MODELS["openai"], stream=True, system=system).status_code == 200
        sent.append(scripted.asked[-1]["messages"])
    assert sent[0] == sent[1]
    assert sent[0][0] == {"role": "system", "content": "You are brief."}

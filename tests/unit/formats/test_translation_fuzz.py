"""Whatever customers and providers send is translated or refused: nothing else is raised.

What is sent is of each format's richest kind, with some values replaced or taken away.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise, product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import ApiError
from relay.formats import anthropic_request, gemini_request, openai_chat_request, openai_responses_request
from relay.formats.answer import BadAnswer, ErrorAnswer
from relay.formats.conversation import Untranslatable
from relay.formats.format import MeterOptions, Shown
from relay.formats.registry import FORMATS
from relay.formats.request import Request
from relay.formats.sse import EventTooLarge
from relay.formats.translated_stream import TranslatedMeter
from relay.providers.profiles import Profile
from relay.settings import Settings

SETTINGS = Settings.read({})
PROFILES = [Profile("max_tokens", "pass", extensions) for extensions in (True, False)]
PAIRS = [(ours, theirs) for ours in FORMATS for theirs in FORMATS if ours != theirs]
SHOWN = Shown("m", include_usage=True, created=1)
CHECKS: dict[str, Callable[[bytes, Settings], Request]] = {
    "openai": openai_chat_request.parse,
    "openai-responses": openai_responses_request.parse,
    "anthropic": anthropic_request.parse,
    "gemini": partial(gemini_request.parse, model="m"),
}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 10**25)
    | st.floats()
    | st.sampled_from(["text", "tool_use", "image", "", "{}", "[tool error]\n", "data:", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["type", "text", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)
MARK = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
REQUESTS: dict[str, Any] = {
    "anthropic": {
        "model": "m",
        "max_tokens": 2000,
        "system": [{"type": "text", "text": "Be brief."} | MARK],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "x"} | MARK,
                    {"type": "image", "source": {"type": "url", "url": "https://a/b"}},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aa"}},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm", "signature": "s"},
                    {"type": "redacted_thinking", "data": "d"},
                    {"type": "text", "text": "y", "citations": None},
                    {"type": "tool_use", "id": "t", "name": "n", "input": {"a": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t", "content": "z", "is_error": True},
                    {"type": "tool_result", "tool_use_id": "u", "content": [{"type": "text", "text": "z"}]},
                ],
            },
            {"role": "system", "content": "And now?"},
        ],
        "tools": [
            {"name": "n", "description": "d", "input_schema": {"type": "object"}, "strict": True} | MARK
        ],
        "tool_choice": {"type": "tool", "name": "n", "disable_parallel_tool_use": True},
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "metadata": {"user_id": "u"},
        "stop_sequences": ["a"],
        "temperature": 0.5,
        "stream": True,
        "cache_control": {"type": "ephemeral"},
        "context_management": {"edits": [{"type": "clear_thinking_x"}]},
    },
    "openai": {
        "model": "m",
        "max_tokens": 2000,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "x"} | MARK,
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,aa", "detail": "low"}},
                    {"type": "image_url", "image_url": "https://a/b"},
                ],
            },
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "y"}],
                "reasoning_content": "Hm",
                "reasoning_details": [
                    {"type": "reasoning.text", "text": "Hm", "signature": "s", "index": 0},
                    {"type": "reasoning.encrypted", "data": "d", "index": 1},
                ],
                "tool_calls": [
                    {
                        "id": "t",
                        "type": "function",
                        "function": {"name": "n", "arguments": '{"a": 1}'},
                        "extra_content": {"google": {"thought_signature": "s"}},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "t", "content": "[tool error]\nz"},
            {"role": "tool", "tool_call_id": "u", "content": [{"type": "text", "text": "z"}]},
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "n",
                    "description": "d",
                    "parameters": {"type": "object"},
                    "strict": True,
                },
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "n"}},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": {"type": "object"}},
        },
        "reasoning_effort": "low",
        "thinking": {"type": "enabled", "budget_tokens": 5},
        "stop": ["a"],
        "n": 1,
        "logit_bias": {},
        "stream": True,
        "stream_options": {"include_usage": True},
        "metadata": {},
        "parallel_tool_calls": False,
    },
}
REASONED = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [{"type": "summary_text", "text": "Hm"}],
    "content": [{"type": "reasoning_text", "text": "Hm"}],
    "encrypted_content": "s",
}
CALLED = {"type": "function_call", "id": "fc_1", "call_id": "t", "name": "n", "arguments": '{"a": 1}'}
SAID = {
    "type": "message",
    "id": "msg_1",
    "status": "completed",
    "role": "assistant",
    "content": [
        {"type": "output_text", "text": "y", "annotations": [], "logprobs": []},
        {"type": "refusal", "refusal": "No."},
    ],
}
FUNCTION = {"type": "function", "name": "n", "description": "d", "parameters": {"type": "object"}}
REQUESTS["openai-responses"] = {
    "model": "m",
    "max_output_tokens": 2000,
    "instructions": "Be brief.",
    "input": [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "x"},
                {"type": "input_image", "image_url": "data:image/png;base64,aa", "detail": "low"},
                {"type": "input_image", "image_url": "https://a/b"},
            ],
        },
        REASONED,
        {"type": "reasoning", "summary": [], "encrypted_content": "d"},
        SAID | {"phase": "commentary"},
        CALLED,
        CALLED | {"call_id": "u", "namespace": "far"},
        {"type": "custom_tool_call", "call_id": "v", "name": "patch", "input": "+ line"},
        {"type": "function_call_output", "call_id": "t", "output": "[tool error]\nz"},
        {"type": "function_call_output", "call_id": "u", "output": [{"type": "input_text", "text": "z"}]},
        {"type": "custom_tool_call_output", "call_id": "v", "output": "done"},
        {"type": "message", "role": "developer", "content": "And now?"},
    ],
    "tools": [
        {
            "type": "function",
            "name": "n",
            "description": "d",
            "parameters": {"type": "object"},
            "strict": True,
        },
        {
            "type": "custom",
            "name": "patch",
            "format": {"type": "grammar", "syntax": "lark", "definition": "x"},
        },
        {
            "type": "namespace",
            "name": "far",
            "description": "d",
            "tools": [{"type": "function", "name": "n"}],
        },
    ],
    "tool_choice": {"type": "function", "name": "n"},
    "text": {
        "format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}},
        "verbosity": "medium",
    },
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["reasoning.encrypted_content"],
    "store": False,
    "stream": True,
    "metadata": {},
    "parallel_tool_calls": False,
}
ANTHROPIC_USAGE = {"input_tokens": 5, "cache_creation": {"ephemeral_5m_input_tokens": 1}, "output_tokens": 5}
OPENAI_USAGE = {"prompt_tokens": 5, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 2}}
RESPONSES_USAGE = {
    "input_tokens": 5,
    "input_tokens_details": {"cached_tokens": 2},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 1},
}
RESPONSE = {
    "id": "resp_i",
    "object": "response",
    "model": "m",
    "status": "completed",
    "error": None,
    "incomplete_details": None,
    "output": [REASONED, SAID, CALLED],
    "usage": RESPONSES_USAGE,
}
PICTURE = {"inlineData": {"mimeType": "image/png", "data": "aa"}}
REQUESTS["gemini"] = {
    "system_instruction": {"parts": [{"text": "Be brief."}]},
    "contents": [
        {
            "role": "user",
            "parts": [
                {"text": "x"},
                PICTURE,
                {"fileData": {"fileUri": "https://a/b.png", "mimeType": "image/png"}},
            ],
        },
        {
            "role": "model",
            "parts": [
                {"text": "Hm", "thought": True},
                {"text": "", "thought": True, "thoughtSignature": "cmVsYXk6c2lnbmF0dXJlOnM="},
                {"text": "y", "thoughtSignature": "aa=="},
                {"functionCall": {"name": "n", "args": {"a": 1}}, "thoughtSignature": "aa=="},
                {"functionCall": {"name": "n", "args": {}, "id": "u"}},
            ],
        },
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"name": "n", "response": {"result": "z"}}},
                {
                    "functionResponse": {
                        "name": "n",
                        "id": "u",
                        "response": {"error": ["z", {"$ref": "one"}]},
                        "parts": [{"inlineData": PICTURE["inlineData"] | {"displayName": "one"}}],
                    }
                },
            ],
        },
    ],
    "tools": [
        {
            "functionDeclarations": [
                {"name": "n", "description": "d", "parametersJsonSchema": {"type": "object"}},
                {
                    "name": "o",
                    "parameters": {
                        "type": "OBJECT",
                        "properties": {
                            "a_b": {"type": "STRING", "nullable": True, "enum": ["x"], "maxLength": "5"},
                            "c": {"type": "ARRAY", "items": {"anyOf": [{"type": "INTEGER"}]}},
                        },
                        "propertyOrdering": ["c", "a_b"],
                    },
                },
            ]
        }
    ],
    "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["n"]}},
    "safetySettings": [{"category": "c", "threshold": "t"}],
    "generationConfig": {
        "max_output_tokens": "2000",
        "temperature": 0.5,
        "topP": 0.5,
        "topK": 3,
        "seed": 7,
        "stopSequences": ["a"],
        "candidateCount": 1,
        "responseModalities": ["TEXT"],
        "responseMimeType": "application/json",
        "responseSchema": {"type": "OBJECT", "nullable": True},
        "thinkingConfig": {"thinkingLevel": "LOW", "includeThoughts": True},
    },
}
GEMINI_USAGE = {
    "promptTokenCount": 5,
    "candidatesTokenCount": 5,
    "thoughtsTokenCount": 2,
    "totalTokenCount": 12,
}
ANSWERS: dict[str, Any] = {
    "openai-responses": RESPONSE,
    "anthropic": {
        "id": "i",
        "model": "m",
        "content": REQUESTS["anthropic"]["messages"][1]["content"],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": ANTHROPIC_USAGE,
    },
    "openai": {
        "id": "i",
        "model": "m",
        "choices": [{"index": 0, "message": REQUESTS["openai"]["messages"][2], "finish_reason": "stop"}],
        "usage": OPENAI_USAGE,
    },
}


ANSWERS["gemini"] = {
    "responseId": "i",
    "modelVersion": "m",
    "candidates": [{"content": REQUESTS["gemini"]["contents"][1], "finishReason": "STOP", "index": 0}],
    "usageMetadata": GEMINI_USAGE,
}


def _deltas() -> list[Any]:
    calls = [{"index": 0, "id": "t", "type": "function", "function": {"name": "n", "arguments": "{"}}]
    more = [{"index": 0, "function": {"arguments": "}"}}, {"index": 1, "id": "u", "function": {"name": "n"}}]
    deltas: list[Any] = [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Hm"},
        {"reasoning_details": REQUESTS["openai"]["messages"][2]["reasoning_details"]},
        {"content": "x", "tool_calls": calls},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}], "tool_calls": more},
    ]
    chunks = [{"id": "i", "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    end = {"id": "i", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    return [*chunks, end, {"id": "i", "choices": [], "usage": OPENAI_USAGE}]


def _responses() -> list[Any]:
    begun = {"type": "response.reasoning_summary_part.added", "output_index": 0, "summary_index": 0}
    events: list[Any] = [
        {"type": "response.created", "response": RESPONSE | {"output": [], "usage": None}},
        {"type": "response.output_item.added", "output_index": 0, "item": REASONED | {"summary": []}},
        begun,
        {"type": "response.reasoning_summary_text.delta", "output_index": 0, "delta": "Hm"},
        begun | {"summary_index": 1},
        {"type": "response.reasoning_text.delta", "output_index": 0, "delta": "Hm"},
        {"type": "response.output_item.done", "output_index": 0, "item": REASONED},
        {"type": "response.output_item.added", "output_index": 1, "item": SAID | {"content": []}},
        {"type": "response.output_text.delta", "output_index": 1, "content_index": 0, "delta": "y"},
        {"type": "response.refusal.delta", "output_index": 1, "content_index": 1, "delta": "No."},
        {"type": "response.output_item.done", "output_index": 1, "item": SAID},
        {"type": "response.output_item.added", "output_index": 2, "item": CALLED | {"arguments": ""}},
        {"type": "response.function_call_arguments.delta", "output_index": 2, "delta": '{"a":'},
        {"type": "response.function_call_arguments.delta", "output_index": 2, "delta": " 1}"},
        {"type": "response.output_item.done", "output_index": 2, "item": CALLED},
        {"type": "keepalive"},
        {"type": "response.completed", "response": RESPONSE},
    ]
    return [event | {"sequence_number": number} for number, event in enumerate(events)]


STREAMS: dict[str, list[Any]] = {
    "openai-responses": _responses(),
    "openai": _deltas(),
    "anthropic": [
        {
            "type": "message_start",
            "message": {"id": "i", "model": "m", "content": [], "usage": ANTHROPIC_USAGE},
        },
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "s"}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "redacted_thinking", "data": "d"},
        },
        {"type": "content_block_stop", "index": 1},
        {"type": "content_block_start", "index": 2, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "text_delta", "text": "x"}},
        {"type": "content_block_stop", "index": 2},
        {
            "type": "content_block_start",
            "index": 3,
            "content_block": {"type": "tool_use", "id": "t", "name": "n", "input": {"a": 1}},
        },
        {
            "type": "content_block_delta",
            "index": 3,
            "delta": {"type": "input_json_delta", "partial_json": "{}"},
        },
        {"type": "content_block_stop", "index": 3},
        {"type": "ping"},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": ANTHROPIC_USAGE},
        {"type": "message_stop"},
    ],
}


STREAMS["gemini"] = [
    {"responseId": "i", "candidates": [{"content": {"parts": [part], "role": "model"}, "index": 0}]}
    | {"usageMetadata": GEMINI_USAGE}
    for part in REQUESTS["gemini"]["contents"][1]["parts"]
]
STREAMS["gemini"].append(ANSWERS["gemini"] | {"candidates": [{"finishReason": "STOP"}]})


# One strategy for all lengths: making one for each draw takes longer than drawing.
PLACES = st.integers(0, 999)


@st.composite
def mutated(draw: st.DrawFn, example: Any) -> Any:
    """A copy with up to three values somewhere in it replaced or taken away."""
    made = copy.deepcopy(example)
    for _ in range(draw(st.integers(1, 3))):
        at = made
        while True:
            if not isinstance(at, dict | list) or not at:
                break
            keys = list(at) if isinstance(at, dict) else range(len(at))
            key = keys[draw(PLACES) % len(keys)]
            if isinstance(at[key], dict | list) and at[key] and draw(st.integers(0, 4)):
                at = at[key]
                continue
            if draw(st.booleans()):
                at[key] = draw(VALUES)
            else:
                del at[key]
            break
    return made


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@given(st.data(), st.booleans())
def test_requests(pair: tuple[str, str], data: st.DataObject, drop: bool) -> None:
    translate_request(pair[0], pair[1:], data.draw(mutated(REQUESTS[pair[0]])), drop)


def translate_request(ours: str, others: Iterable[str], request: Any, drop: bool) -> None:
    """A request is read once, and written to each channel's format."""
    body = json.dumps(request).encode()
    try:
        document = CHECKS[ours](body, SETTINGS).document()
    except ApiError:
        document = body  # even what no endpoint would let in
    try:
        read = FORMATS[ours].read_request(document, drop)
    except Untranslatable as refusal:
        assert refusal.place  # noqa: PT017
        return
    for theirs, profile in product(others, PROFILES):
        try:
            written = FORMATS[theirs].write_request(read, "m", 9, profile)
        except Untranslatable as refusal:
            assert refusal.place  # noqa: PT017
        else:
            assert json.loads(written.body).get("model", "m") == "m"


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@given(st.data(), st.lists(st.integers(0, 10**4), max_size=4))
def test_streams(pair: tuple[str, str], data: st.DataObject, cuts: list[int]) -> None:
    translate_stream(pair, sent(data.draw(mutated(STREAMS[pair[0]]))), cuts)


def sent(events: Any) -> bytes:
    """Events as a provider sends them."""
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


def translate_stream(pair: tuple[str, str], stream: bytes, cuts: list[int]) -> None:
    theirs, ours = pair
    options = MeterOptions(
        keep_usage_chunk=True, choices=1, max_event_bytes=1 << 16, model="m", redact=lambda text: text
    )
    provider = FORMATS[theirs]
    meter = TranslatedMeter(provider.meter(options), provider.decoder(), FORMATS[ours].encoder(SHOWN))
    edges = [0, *sorted({cut % (len(stream) + 1) for cut in cuts}), len(stream)]
    try:
        for begin, end in pairwise(edges):
            meter.feed(stream[begin:end])
        meter.end()
        meter.tail()
    except (BadAnswer, EventTooLarge):
        return
    assert meter.estimate() >= 0
    meter.partial_usage(3)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@given(st.data())
def test_whole_answers(pair: tuple[str, str], data: st.DataObject) -> None:
    translate_answer(pair, json.dumps(data.draw(mutated(ANSWERS[pair[0]]))).encode())


def translate_answer(pair: tuple[str, str], body: bytes) -> None:
    theirs, ours = (FORMATS[name] for name in pair)
    try:
        whole = theirs.read_whole(body)
        assert whole.estimate() >= 0
        written = ours.write_answer(theirs.read_answer(body), SHOWN)
    except (BadAnswer, ErrorAnswer):
        return
    assert json.loads(written)[ours.MODEL_FIELD] == "m"


def replaced(example: Any, value: Any) -> Iterator[Any]:
    """A document of its own in which one value after the other, wherever it stands, is another.

    It is the same object each time: whoever keeps it must copy it.
    """
    whole = json.loads(json.dumps(example))
    yield from (whole for _ in _replacements(whole, value))


def _replacements(part: Any, value: Any) -> Iterator[None]:
    for key in list(part) if isinstance(part, dict) else range(len(part)):
        kept = part[key]
        part[key] = value
        yield
        part[key] = kept
        if isinstance(kept, dict | list):
            yield from _replacements(kept, value)


def test_one_value_at_a_time_is_replaced() -> None:
    shared = {"d": 1}
    made = [json.dumps(document) for document in replaced({"a": [shared, shared], "b": "x"}, None)]
    assert made == [
        '{"a": null, "b": "x"}',
        '{"a": [null, {"d": 1}], "b": "x"}',
        '{"a": [{"d": null}, {"d": 1}], "b": "x"}',
        '{"a": [{"d": 1}, null], "b": "x"}',
        '{"a": [{"d": 1}, {"d": null}], "b": "x"}',
        '{"a": [{"d": 1}, {"d": 1}], "b": null}',
    ]


# What nothing is looked up by; a number; nothing.
ODD: list[Any] = [[], {}, 1, None]


@pytest.mark.parametrize("value", ODD, ids=repr)
@pytest.mark.parametrize("name", REQUESTS)
def test_each_value_of_a_request_may_be_of_another_type(name: str, value: Any) -> None:
    others = [theirs for ours, theirs in PAIRS if ours == name]
    for request in replaced(REQUESTS[name], value):
        translate_request(name, others, request, drop=False)


@pytest.mark.parametrize("value", ODD[:2], ids=repr)
@pytest.mark.parametrize("name", STREAMS)
def test_each_value_of_a_stream_or_an_answer_may_be_of_another_type(name: str, value: Any) -> None:
    pairs = [pair for pair in PAIRS if pair[0] == name]
    for stream in map(sent, replaced(STREAMS[name], value)):
        for pair in pairs:
            translate_stream(pair, stream, [])
    for answer in replaced(ANSWERS[name], value):
        body = json.dumps(answer).encode()
        for pair in pairs:
            translate_answer(pair, body)

"""The fake provider in every format, asked by each API's own SDK: what it says, refuses, breaks and books."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
import requests
from google import genai
from google.genai import errors as google_errors
from google.genai import types

from tests.contract.relay_rig import PROVIDER_KEY, Provider

MODELS = {
    "openai_chat": "fake-small",
    "openai_responses": "fake-small",
    "anthropic": "claude-fake",
    "gemini": "gemini-fake",
}
FORMATS = tuple(MODELS)
PIXEL = (
    b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
).decode()
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
ARGUMENTS = {"city": "all the fee", "days": 7}
LONG = "word " * 2_000  # 2,500 tokens: enough for a cache


@pytest.fixture(autouse=True)
def obedient(provider: Provider) -> Iterator[None]:
    yield
    provider.control()


class Caller:
    """The four SDKs, pointed at the provider itself; every method gives the same kind of thing for each."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.newest = 0
        self.openai = openai.OpenAI(api_key=PROVIDER_KEY, base_url=f"{provider.url}/v1", max_retries=0)
        self.anthropic = anthropic.Anthropic(api_key=PROVIDER_KEY, base_url=provider.url, max_retries=0)
        options = types.HttpOptions(base_url=provider.url)
        self.google = genai.Client(api_key=PROVIDER_KEY, http_options=options)
        self.headers = {
            "openai_chat": {"authorization": f"Bearer {PROVIDER_KEY}"},
            "openai_responses": {"authorization": f"Bearer {PROVIDER_KEY}"},
            "anthropic": {"x-api-key": PROVIDER_KEY, "anthropic-version": "2023-06-01"},
            "gemini": {"x-goog-api-key": PROVIDER_KEY},
        }

    def url(self, fmt: str, stream: bool = False) -> str:
        """Where a format's requests go."""
        paths = {
            "openai_chat": "/v1/chat/completions",
            "openai_responses": "/v1/responses",
            "anthropic": "/v1/messages",
            "gemini": f"/v1beta/models/{MODELS['gemini']}:generateContent",
        }
        if stream and fmt == "gemini":
            return f"{self.provider.url}/v1beta/models/{MODELS['gemini']}:streamGenerateContent?alt=sse"
        return self.provider.url + paths[fmt]

    def post(self, fmt: str, body: dict[str, Any], *, stream: bool = False, **options: Any) -> Any:
        """A request without an SDK."""
        headers = self.headers[fmt] | options.pop("headers", {})
        if stream and fmt != "gemini":
            body = body | {"stream": True}
        return requests.post(self.url(fmt, stream), json=body, headers=headers, timeout=60, **options)

    def last(self) -> dict[str, Any]:
        """The latest line of the books; the older ones, some hundred, are not asked for again."""
        line = self.provider.calls(after=self.newest - 1)[-1]
        self.newest = line["id"]
        return line


@pytest.fixture(scope="module")
def caller(provider: Provider) -> Iterator[Caller]:
    made = Caller(provider)
    yield made
    made.openai.close()
    made.anthropic.close()
    made.google.close()


def body(fmt: str, text: str = "What does a call cost?", **more: Any) -> dict[str, Any]:
    """The smallest request of a format."""
    if fmt == "openai_responses":
        return {"model": MODELS[fmt], "input": text} | more
    if fmt == "gemini":
        return {"contents": [{"role": "user", "parts": [{"text": text}]}]} | more
    limits = {"max_tokens": 500} if fmt == "anthropic" else {}
    return {"model": MODELS[fmt], "messages": [{"role": "user", "content": text}]} | limits | more


def tools(fmt: str, *names: str) -> list[dict[str, Any]]:
    """Tools as a format declares them."""
    if fmt == "openai_chat":
        return [{"type": "function", "function": {"name": name, "parameters": WEATHER}} for name in names]
    if fmt == "openai_responses":
        return [{"type": "function", "name": name, "parameters": WEATHER, "strict": True} for name in names]
    if fmt == "anthropic":
        return [{"name": name, "input_schema": WEATHER} for name in names]
    declared = [{"name": name, "parametersJsonSchema": WEATHER} for name in names]
    return [{"functionDeclarations": declared}]


def refused(fmt: str, answer: Any) -> str:
    """The message of a refusal in the format's own shape."""
    assert answer.status_code == 400, answer.text
    told = answer.json()
    if fmt == "anthropic":
        assert (told["type"], told["error"]["type"]) == ("error", "invalid_request_error")
    elif fmt == "gemini":
        assert (told["error"]["code"], told["error"]["status"]) == (400, "INVALID_ARGUMENT")
    else:
        assert told["error"]["type"] == "invalid_request_error"
    return str(told["error"]["message"])


# ---------------------------------------------------------------------- what it says, by the SDKs


def test_chat_whole_and_streamed_say_the_same(caller: Caller) -> None:
    ask: Any = {"model": "fake-small", "messages": body("openai_chat")["messages"]}
    whole: Any = caller.openai.chat.completions.create(**ask)
    with caller.openai.chat.completions.stream(**ask, stream_options={"include_usage": True}) as events:
        for _ in events:
            pass
        streamed: Any = events.get_final_completion()
    assert whole.choices[0].message.content == streamed.choices[0].message.content
    assert whole.usage == streamed.usage
    assert caller.last()["usage"]["total_tokens"] == whole.usage.total_tokens


def test_responses_whole_and_streamed_say_the_same(caller: Caller) -> None:
    ask: Any = {
        "model": "fake-small",
        "input": "Think. Then call get_weather and get_time.",
        "tools": tools("openai_responses", "get_weather", "get_time"),
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
    }
    whole: Any = caller.openai.responses.create(**ask)
    with caller.openai.responses.stream(**ask) as events:
        kinds = [event.type for event in events]
        streamed: Any = events.get_final_response()
    assert [item.type for item in whole.output] == ["reasoning", "function_call", "function_call"]
    assert [item.type for item in streamed.output] == [item.type for item in whole.output]
    for response in (whole, streamed):
        calls = [item for item in response.output if item.type == "function_call"]
        assert [json.loads(call.arguments) for call in calls] == [ARGUMENTS, ARGUMENTS]
        assert response.usage is not None
        assert response.usage.output_tokens_details.reasoning_tokens > 0
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert "response.reasoning_summary_text.delta" in kinds
    again = [*ask_items(ask["input"]), *[item.model_dump(exclude_none=True) for item in streamed.output]]
    results: Any = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "fine"}
        for item in streamed.output
        if item.type == "function_call"
    ]
    for item in again:
        item.pop("parsed_arguments", None)
    answer: Any = caller.openai.responses.create(**ask | {"input": again + results})
    assert answer.output_text
    followed: Any = caller.openai.responses.create(
        **ask | {"input": results, "previous_response_id": streamed.id}
    )
    assert followed.output_text


def ask_items(text: str) -> list[dict[str, Any]]:
    return [{"type": "message", "role": "user", "content": text}]


def test_messages_whole_and_streamed_say_the_same(caller: Caller) -> None:
    ask: Any = {
        "model": "claude-fake",
        "max_tokens": 4_000,
        "messages": [{"role": "user", "content": "Call get_weather and get_time."}],
        "tools": tools("anthropic", "get_weather", "get_time"),
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    whole: Any = caller.anthropic.messages.create(**ask)
    with caller.anthropic.messages.stream(**ask) as events:
        streamed: Any = events.get_final_message()
    for message in (whole, streamed):
        assert [block.type for block in message.content] == ["thinking", "tool_use", "tool_use"]
        assert message.stop_reason == "tool_use"
        assert [block.input for block in message.content if block.type == "tool_use"] == [ARGUMENTS] * 2
    assert whole.content[0] == streamed.content[0]
    assert whole.usage.output_tokens == streamed.usage.output_tokens
    booked = caller.last()
    assert booked["bill"]["output"] == streamed.usage.output_tokens
    turns = [
        *ask["messages"],
        {"role": "assistant", "content": [b.model_dump(exclude_none=True) for b in streamed.content]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": block.id, "content": "fine"}
                for block in streamed.content
                if block.type == "tool_use"
            ],
        },
    ]
    answer: Any = caller.anthropic.messages.create(**ask | {"messages": turns})
    assert answer.stop_reason == "end_turn"
    counted: Any = caller.anthropic.messages.count_tokens(
        **{name: ask[name] for name in ("model", "messages", "tools")}
    )
    assert counted.input_tokens == whole.usage.input_tokens


@pytest.mark.parametrize("model", ["gemini-fake", "gemini-3-fake"])
def test_gemini_whole_and_streamed_say_the_same(caller: Caller, model: str) -> None:
    config = types.GenerateContentConfig(
        tools=[types.Tool(**tool) for tool in tools("gemini", "get_weather", "get_time")],
        thinking_config=types.ThinkingConfig(include_thoughts=True),
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
    )
    question = types.Content(role="user", parts=[types.Part(text="Call get_weather and get_time.")])
    whole: Any = caller.google.models.generate_content(model=model, contents=question, config=config)
    chunks = list(caller.google.models.generate_content_stream(model=model, contents=question, config=config))
    streamed = [call for chunk in chunks for call in chunk.function_calls or []]
    assert whole.function_calls is not None
    assert [(call.name, call.args) for call in whole.function_calls] == [
        ("get_weather", ARGUMENTS),
        ("get_time", ARGUMENTS),
    ]
    assert [call.args for call in streamed] == [call.args for call in whole.function_calls]
    assert bool(streamed[0].id) == (model == "gemini-3-fake")
    usage, last = whole.usage_metadata, chunks[-1].usage_metadata
    assert usage == last
    assert usage is not None
    assert usage.thoughts_token_count
    assert usage.total_token_count == sum(
        (usage.prompt_token_count or 0, usage.candidates_token_count or 0, usage.thoughts_token_count)
    )
    assert caller.last()["bill"]["output"] == (usage.candidates_token_count or 0) + usage.thoughts_token_count
    said: Any = whole.candidates[0].content
    results = [
        types.Part(function_response=types.FunctionResponse(name=call.name, id=call.id, response={"ok": 1}))
        for call in whole.function_calls
    ]
    turns: Any = [question, said, types.Content(role="user", parts=results)]
    assert caller.google.models.generate_content(model=model, contents=turns, config=config).text
    assert caller.google.models.count_tokens(model=model, contents=question).total_tokens
    for part in said.parts:
        part.thought_signature = None
    if model == "gemini-3-fake":
        with pytest.raises(google_errors.ClientError, match="missing a thought_signature"):
            caller.google.models.generate_content(model=model, contents=turns, config=config)


def test_gemini_streams_an_array_without_alt_sse(caller: Caller) -> None:
    url = f"{caller.provider.url}/v1beta/models/gemini-fake%3AstreamGenerateContent"
    answer = requests.post(url, params={"key": PROVIDER_KEY}, json=body("gemini"), timeout=60)
    elements = answer.json()
    assert answer.headers["content-type"].startswith("application/json")
    assert elements[-1]["candidates"][0]["finishReason"] == "STOP"
    assert elements[-1]["usageMetadata"] == caller.last()["usage"]
    wrong = requests.post(url, params={"key": PROVIDER_KEY}, json={"contents": []}, timeout=60)
    assert wrong.json()[0]["error"]["status"] == "INVALID_ARGUMENT"


def test_structured_answers_follow_their_schema(caller: Caller) -> None:
    chat: Any = caller.openai.chat.completions.create(
        model="fake-small",
        messages=[{"role": "user", "content": "Weather?"}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "weather", "schema": WEATHER, "strict": True},
        },
    )
    response: Any = caller.openai.responses.create(
        model="fake-small",
        input="Weather?",
        text={"format": {"type": "json_schema", "name": "weather", "schema": WEATHER, "strict": True}},
    )
    message: Any = caller.anthropic.messages.create(
        model="claude-fake",
        max_tokens=500,
        messages=[{"role": "user", "content": "Weather?"}],
        output_config={"format": {"type": "json_schema", "schema": WEATHER}},
    )
    content: Any = caller.google.models.generate_content(
        model="gemini-fake",
        contents="Weather?",
        config={"response_mime_type": "application/json", "response_json_schema": WEATHER},
    )
    texts = [chat.choices[0].message.content, response.output_text, content.text]
    texts += [block.text for block in message.content if block.type == "text"]
    assert [json.loads(text or "") for text in texts] == [ARGUMENTS] * 4


def image(fmt: str, data: str = PIXEL) -> dict[str, Any]:
    """A request with an image."""
    if fmt == "openai_chat":
        part: Any = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        return body(fmt, messages=[{"role": "user", "content": [{"type": "text", "text": "What?"}, part]}])
    if fmt == "openai_responses":
        part = {"type": "input_image", "image_url": f"data:image/png;base64,{data}"}
        return body(fmt, input=[{"role": "user", "content": [part]}])
    if fmt == "anthropic":
        source = {"type": "base64", "media_type": "image/png", "data": data}
        return body(fmt, messages=[{"role": "user", "content": [{"type": "image", "source": source}]}])
    return {"contents": [{"parts": [{"inlineData": {"mimeType": "image/png", "data": data}}]}]}


@pytest.mark.parametrize("fmt", FORMATS)
def test_images_are_taken_and_must_be_images(caller: Caller, fmt: str) -> None:
    assert caller.post(fmt, image(fmt)).status_code == 200
    assert caller.last()["prompt_tokens"] >= 85
    assert refused(fmt, caller.post(fmt, image(fmt, base64.b64encode(b"no image at all").decode())))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_is_told_in_the_formats_way(caller: Caller, fmt: str, stream: bool) -> None:
    caller.provider.control(refusal=True)
    text = caller.post(fmt, body(fmt), stream=stream).text
    told: str = {
        "openai_chat": '"refusal"',
        "openai_responses": '"type": "refusal"',
        "anthropic": '"stop_reason": "refusal"',
        "gemini": '"finishReason": "SAFETY"',
    }[fmt]
    assert told.replace(" ", "") in text.replace(" ", "")


@pytest.mark.parametrize("fmt", ["openai_chat", "anthropic", "gemini"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_sequence_ends_the_text(caller: Caller, fmt: str, stream: bool) -> None:
    fields: dict[str, dict[str, Any]] = {
        "openai_chat": {"stop": ["got", "fee"]},
        "anthropic": {"stop_sequences": ["got", "fee"]},
        "gemini": {"generationConfig": {"stopSequences": ["got", "fee"]}},
    }
    answer = caller.post(fmt, body(fmt, **fields[fmt]), stream=stream).text
    # Ids are random letters and digits, of which "fee" may be a part.
    text = re.sub(r'"(?:id|responseId|system_fingerprint)": ?"[^"]*"', "", answer)
    assert "all" in text
    sequence = re.search(r'"stop_sequence": ?"fee"', text)
    assert bool(sequence) == (fmt == "anthropic")
    assert "fee" not in (text.replace(sequence[0], "") if sequence else text)
    assert caller.last()["completion_tokens"] == 2


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_limit_cuts_the_answer(caller: Caller, fmt: str) -> None:
    fields: dict[str, dict[str, Any]] = {
        "openai_chat": {"max_completion_tokens": 16},
        "openai_responses": {"max_output_tokens": 16},
        "anthropic": {"max_tokens": 16},
        "gemini": {"generationConfig": {"maxOutputTokens": 16}},
    }
    caller.provider.control(completion_tokens=30)
    text = caller.post(fmt, body(fmt, **fields[fmt])).text
    told = {"openai_chat": "length", "openai_responses": "max_output_tokens", "anthropic": "max_tokens"}
    assert f'"{told.get(fmt, "MAX_TOKENS")}"' in text
    assert caller.last()["completion_tokens"] == 16


# ---------------------------------------------------------------------- the cache of prompts


def test_what_prompts_begin_with_is_cached(caller: Caller) -> None:
    for fmt in ("openai_chat", "openai_responses", "gemini"):
        fresh = f"{fmt} {LONG}"
        first = caller.post(fmt, body(fmt, fresh))
        assert first.status_code == 200
        assert caller.last()["bill"]["cache_read"] == 0
        caller.post(fmt, body(fmt, fresh))
        booked = caller.last()
        assert booked["bill"]["cache_read"] >= 1024
        assert booked["bill"]["cache_read"] % 128 == 0
        assert booked["prompt_tokens"] == booked["bill"]["input"] + booked["bill"]["cache_read"]


@pytest.mark.parametrize(("ttl", "meter"), [("5m", "cache_write_5m"), ("1h", "cache_write_1h")])
def test_markers_write_and_read_the_cache(caller: Caller, ttl: str, meter: str) -> None:
    marked: Any = {
        "type": "text",
        "text": f"{ttl} {LONG}",
        "cache_control": {"type": "ephemeral", "ttl": ttl},
    }
    bills = []
    for _ in range(2):
        with caller.anthropic.messages.stream(
            model="claude-fake",
            max_tokens=100,
            system=[marked],
            messages=[{"role": "user", "content": "Hello"}],
        ) as events:
            usage = events.get_final_message().usage
        booked = caller.last()
        bills.append(booked["bill"])
        assert usage.cache_read_input_tokens == booked["bill"]["cache_read"]
        assert usage.input_tokens == booked["bill"]["input"]
    assert bills[0][meter] > 2_000
    assert bills[0]["cache_read"] == 0
    assert bills[1][meter] == 0
    assert bills[1]["cache_read"] == bills[0][meter]


# ---------------------------------------------------------------------- what it refuses

SAID = {"role": "user", "content": "Hi"}
USE = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "fine"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
GEMINI_CALL = {"functionCall": {"name": "get_weather", "args": {}}}
GEMINI_RESULT = {"functionResponse": {"name": "get_weather", "response": {}}}
TURN = {"role": "user", "parts": [{"text": "Hi"}]}


@pytest.mark.parametrize(
    ("fmt", "more", "words"),
    [
        ("openai_chat", {"max_tokens": 5, "max_completion_tokens": 5}, "at the same time"),
        ("openai_chat", {"top_k": 5}, "Unrecognized request argument supplied: top_k"),
        ("openai_chat", {"messages": []}, "messages"),
        ("openai_chat", {"messages": [SAID | {"cache_control": {}}]}, "Unknown parameter"),
        ("openai_chat", {"messages": [{"role": "robot", "content": "Hi"}]}, "Invalid value: 'robot'"),
        (
            "openai_chat",
            {"messages": [SAID, {"role": "tool", "tool_call_id": "x", "content": "1"}]},
            "preceeding",
        ),
        ("openai_chat", {"messages": [SAID, {"role": "assistant", "tool_calls": [CALL]}, SAID]}, "call_1"),
        ("openai_chat", {"messages": [SAID, {"role": "assistant", "content": None}]}, "content"),
        ("openai_chat", {"stream_options": {"include_usage": True}}, "stream_options"),
        ("openai_chat", {"tool_choice": "auto"}, "only allowed when 'tools'"),
        ("openai_chat", {"temperature": 3}, "<= 2"),
        ("openai_chat", {"temperature": "hot"}, "expected a decimal, but got a string"),
        ("openai_chat", {"response_format": {"type": "json_object"}}, "'json' in some form"),
        ("openai_chat", {"tools": [{"name": "get_weather"}]}, "tools[0].type"),
        ("openai_chat", {"model": "o3", "max_tokens": 5}, "max_completion_tokens"),
        ("openai_responses", {"messages": [SAID]}, "moved to 'input'"),
        ("openai_responses", {"max_tokens": 5}, "moved to 'max_output_tokens'"),
        ("openai_responses", {"max_output_tokens": 5}, ">= 16"),
        ("openai_responses", {"stop": ["x"]}, "Unknown parameter: 'stop'"),
        ("openai_responses", {"previous_response_id": "resp_none"}, "not found"),
        ("openai_responses", {"tools": [{"type": "function", "function": {"name": "x"}}]}, "tools[0]"),
        (
            "openai_responses",
            {"input": [{"type": "function_call_output", "call_id": "x", "output": "1"}]},
            "No tool call found",
        ),
        (
            "openai_responses",
            {"input": [{"type": "function_call", "call_id": "x", "name": "f", "arguments": "{}"}]},
            "No tool output found",
        ),
        (
            "openai_responses",
            {"input": [{"role": "assistant", "content": [{"type": "input_text", "text": "Hi"}]}]},
            "'output_text', 'refusal'",
        ),
        (
            "openai_responses",
            {"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]},
            "following item",
        ),
        ("anthropic", {"max_tokens": None}, "max_tokens"),
        ("anthropic", {"seed": 5}, "seed: Extra inputs are not permitted"),
        ("anthropic", {"messages": []}, "at least one message"),
        ("anthropic", {"messages": [{"role": "assistant", "content": "Hi"}]}, "first message"),
        ("anthropic", {"messages": [{"role": "tool", "content": "Hi"}]}, 'Unexpected role "tool"'),
        ("anthropic", {"messages": [{"role": "user", "content": ""}]}, "non-empty"),
        ("anthropic", {"messages": [SAID, {"role": "assistant", "content": [USE]}, SAID]}, "`tool_use` ids"),
        (
            "anthropic",
            {"messages": [SAID, {"role": "user", "content": [RESULT]}]},
            "unexpected `tool_use_id`",
        ),
        (
            "anthropic",
            {
                "messages": [
                    SAID,
                    {"role": "assistant", "content": [USE]},
                    {"role": "user", "content": [{"type": "text", "text": "x"}, RESULT]},
                ]
            },
            "`tool_use` ids",
        ),
        ("anthropic", {"model": ""}, "model"),
        ("anthropic", {"temperature": 1.5}, "less than or equal to 1"),
        ("anthropic", {"thinking": {"type": "enabled", "budget_tokens": 2_000}}, "greater than"),
        ("anthropic", {"thinking": {"type": "enabled", "budget_tokens": 100}}, "1024"),
        ("anthropic", {"tool_choice": {"type": "any"}}, "tools"),
        ("anthropic", {"tools": [{"name": "x", "parameters": {}}]}, "Extra inputs"),
        ("anthropic", {"tools": [{"name": "x", "input_schema": {"properties": {}}}]}, "type: Field required"),
        (
            "anthropic",
            {"model": "claude-sonnet-4-5", "messages": [SAID, {"role": "system", "content": "x"}]},
            "system",
        ),
        (
            "anthropic",
            {"system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}] * 5},
            "5",
        ),
        (
            "anthropic",
            {
                "messages": [
                    SAID,
                    {
                        "role": "assistant",
                        "content": [{"type": "thinking", "thinking": "a", "signature": "b"}],
                    },
                ]
            },
            "Invalid `signature`",
        ),
        ("gemini", {"contents": []}, "contents is not specified"),
        ("gemini", {"max_tokens": 5}, 'Unknown name "maxTokens"'),
        ("gemini", {"contents": [{"role": "assistant", "parts": [{"text": "x"}]}]}, "valid role"),
        ("gemini", {"contents": [{"role": "user", "parts": []}]}, "must not be empty"),
        ("gemini", {"contents": [{"parts": [{}]}]}, "one initialized"),
        ("gemini", {"contents": [{"parts": [{"text": "x", "cacheControl": {}}]}]}, "contents[0].parts[0]"),
        (
            "gemini",
            {"contents": [TURN, {"role": "model", "parts": [GEMINI_CALL]}, TURN]},
            "is equal to the number",
        ),
        ("gemini", {"contents": [TURN, {"role": "user", "parts": [GEMINI_RESULT]}]}, "immediately after"),
        ("gemini", {"generationConfig": {"responseSchema": {"type": "OBJECT"}}}, "application/json"),
        (
            "gemini",
            {"tools": [{"functionDeclarations": [{"name": "f", "parameters": WEATHER}]}]},
            'Unknown name "additionalProperties"',
        ),
        (
            "gemini",
            {"generationConfig": {"thinkingConfig": {"thinkingBudget": 5, "thinkingLevel": "LOW"}}},
            "only one",
        ),
        ("gemini", {"contents": [{"parts": [{"text": "x", "thoughtSignature": "YQ=="}]}]}, "Corrupted"),
    ],
)
def test_what_the_real_api_refuses_is_refused(
    caller: Caller, fmt: str, more: dict[str, Any], words: str
) -> None:
    asked = body(fmt) | more
    if fmt == "openai_responses" and "messages" in more:
        del asked["input"]
    assert words in refused(fmt, caller.post(fmt, asked))
    caller.provider.control(lenient=True)
    assert caller.post(fmt, body(fmt) | {"surely_unknown": 1}).status_code == 200


def test_the_version_header_and_the_keys_are_asked_for(caller: Caller) -> None:
    unversioned = requests.post(
        caller.url("anthropic"), json=body("anthropic"), headers={"x-api-key": PROVIDER_KEY}, timeout=10
    )
    assert "anthropic-version" in refused("anthropic", unversioned)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(api_key="wrong", base_url=f"{caller.provider.url}/v1").models.list()
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(api_key="wrong", base_url=caller.provider.url).models.list()
    for key, code in (("wrong", 400), ("", 403)):
        answer = requests.post(caller.url("gemini"), params={"key": key}, json=body("gemini"), timeout=60)
        assert answer.status_code == code


def test_models_are_listed_in_each_shape(caller: Caller) -> None:
    assert "fake-small" in [model.id for model in caller.openai.models.list()]
    assert caller.openai.models.retrieve("gpt-4o").id == "gpt-4o"
    assert "claude-fake" in [model.id for model in caller.anthropic.models.list()]
    assert "models/gemini-fake" in [model.name for model in caller.google.models.list()]
    with pytest.raises(openai.NotFoundError):
        caller.openai.models.retrieve("no-such-model")


def test_embeddings_are_booked_by_input(caller: Caller) -> None:
    made: Any = caller.openai.embeddings.create(
        model="fake-small", input=["one text", "two texts"], dimensions=4
    )
    assert [len(one.embedding) for one in made.data] == [4, 4]
    booked = caller.last()
    assert booked["bill"] | {"input": 0} == dict.fromkeys(booked["bill"], 0)
    assert booked["usage"] == {
        "prompt_tokens": made.usage.prompt_tokens,
        "total_tokens": made.usage.total_tokens,
    }
    embedded: Any = caller.google.models.embed_content(model="gemini-fake", contents="one text")
    assert [len(one.values) for one in embedded.embeddings] == [8]
    requests_ = [{"content": {"parts": [{"text": text}]}} for text in ("one text", "two texts")]
    url = f"{caller.provider.url}/v1beta/models/gemini-fake:batchEmbedContents"
    batch = requests.post(url, json={"requests": requests_}, headers=caller.headers["gemini"], timeout=60)
    assert len(batch.json()["embeddings"]) == 2
    assert caller.last()["bill"]["input"] == made.usage.prompt_tokens


# ---------------------------------------------------------------------- how it fails


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503, 529])
def test_each_status_is_answered_in_the_formats_shape(
    caller: Caller, fmt: str, stream: bool, status: int
) -> None:
    caller.provider.control(status=status, error_message="as told", retry_after="7")
    before = caller.provider.totals()
    answer: Any = caller.post(fmt, body(fmt), stream=stream)
    assert answer.status_code == status
    assert answer.headers["retry-after"] == "7"
    assert answer.json()["error"]["message"] == "as told"
    assert caller.provider.totals() == before, "what failed is not billed"


@pytest.mark.parametrize("fmt", FORMATS)
def test_one_account_may_fail_alone(caller: Caller, fmt: str) -> None:
    def status(key: str) -> int:
        name, shown = next(iter(caller.headers[fmt].items()))
        headers = {name: shown.replace(PROVIDER_KEY, key)}
        return int(caller.post(fmt, body(fmt), headers=headers).status_code)

    caller.provider.control(account="ill", status=500)
    assert status(f"{PROVIDER_KEY}.ill") == 500
    assert status(PROVIDER_KEY) == status(f"{PROVIDER_KEY}.well") == 200
    assert status(f"{PROVIDER_KEY}ill") == (400 if fmt == "gemini" else 401)
    caller.provider.control(account="ill")
    assert status(f"{PROVIDER_KEY}.ill") == 200


@pytest.mark.parametrize("fmt", FORMATS)
def test_an_error_event_may_come_first_or_in_the_middle(caller: Caller, fmt: str) -> None:
    for after in (0, 4):
        caller.provider.control(error_after_chunks=after, completion_tokens=20)
        text = caller.post(fmt, body(fmt), stream=True).text
        assert "told to fail" in text
        booked = caller.last()
        assert not booked["complete"]
        assert booked["completion_tokens"] < 20


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_stream_may_break_or_end_early(caller: Caller, fmt: str) -> None:
    caller.provider.control(truncate_after_chunks=5, completion_tokens=20)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        caller.post(fmt, body(fmt), stream=True)
    caller.provider.control(end_after_chunks=5, completion_tokens=20)
    text = caller.post(fmt, body(fmt), stream=True).text
    assert text
    assert not any(sign in text for sign in ("[DONE]", "message_stop", "response.completed", "finishReason"))
    assert not caller.last()["complete"]


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_quiet_stream_holds_its_connection(caller: Caller, fmt: str) -> None:
    caller.provider.control(quiet_after_chunks=3, completion_tokens=20)
    asked = body(fmt) | ({} if fmt == "gemini" else {"stream": True})
    answer = requests.post(
        *(caller.url(fmt, stream=True),), json=asked, headers=caller.headers[fmt], timeout=0.5, stream=True
    )
    with pytest.raises(requests.exceptions.ConnectionError, match="timed out"):
        list(answer.iter_content(None))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("stream", [False, True])
def test_usage_may_be_missing_early_or_wild(caller: Caller, fmt: str, stream: bool) -> None:
    field = "usageMetadata" if fmt == "gemini" else '"usage":{'
    more: dict[str, Any] = (
        {"stream_options": {"include_usage": True}} if fmt == "openai_chat" and stream else {}
    )

    def text() -> str:
        answer: str = caller.post(fmt, body(fmt, **more), stream=stream).text
        return answer.replace(" ", "").replace("\n", "")

    assert field in text()
    caller.provider.control(omit_usage=True)
    assert field not in text().replace('"usage":{}', "")
    assert not caller.last()["usage_sent"]
    wild = {"told": 10**40, "output_tokens": -1}
    caller.provider.control(told_usage=wild)
    assert '"told":1000' in text()
    assert caller.last()["completion_tokens"] > 0, "what it bills is its own count"
    caller.provider.control(usage=wild)
    assert '"told":1000' in text()
    assert caller.last()["usage"] == wild


@pytest.mark.parametrize("fmt", FORMATS)
def test_usage_may_be_told_first_only_or_each_time(caller: Caller, fmt: str) -> None:
    field = '"usageMetadata":' if fmt == "gemini" else '"usage":{"'
    counts = {}
    for at in ("first", "each", "end"):
        caller.provider.control(usage_at=at, completion_tokens=10)
        counts[at] = caller.post(fmt, body(fmt), stream=True).text.count(field)
    assert counts["end"] == 1
    assert counts["each"] > counts["end"]
    assert counts["first"] == (2 if fmt == "openai_responses" else 1), "its two first events say the same"


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_may_be_compressed_dribbled_or_something_else(
    caller: Caller, fmt: str, stream: bool
) -> None:
    plain = caller.post(fmt, body(fmt), stream=stream)
    caller.provider.control(gzip=True, bytes_per_write=3, ping_every=2)
    packed = caller.post(fmt, body(fmt), stream=stream)
    assert packed.headers["content-encoding"] == "gzip"
    assert "the " in packed.text
    assert len(packed.text) >= len(plain.text) - 100
    for instead, start in (("html", "<!DOCTYPE"), ("object", "{}"), ("null", "null"), ("empty", "")):
        caller.provider.control(instead=instead)
        answer: Any = caller.post(fmt, body(fmt), stream=stream)
        assert answer.status_code == 200
        assert answer.text.startswith(start)
        assert len(answer.text) < 200
    caller.provider.control(instead="cut")
    with pytest.raises(requests.exceptions.RequestException):
        caller.post(fmt, body(fmt), stream=stream)


@pytest.mark.parametrize("fmt", FORMATS)
def test_an_order_survives_within_the_prompt(caller: Caller, fmt: str) -> None:
    order = 'provider:{"text": "ordered", "calls": [{"name": "get_weather", "arguments": {"city": "Bern"}}]}'
    text = caller.post(fmt, body(fmt, order, tools=tools(fmt, "get_weather"))).text
    assert "ordered" in text
    assert "Bern" in text
    assert "no JSON follows" in refused(fmt, caller.post(fmt, body(fmt, "provider:nonsense")))

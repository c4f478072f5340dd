"""Each customer's format on each provider's, with the official SDKs: what comes back, and each cell's bill.

``-s`` prints the table. A cell says "ok", or by which name the relay refuses; it is never empty.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import anthropic
import openai
import pytest
from google import genai
from google.genai import errors, types
from pydantic import BaseModel

from tests.contract.conftest import Database
from tests.contract.relay_rig import (
    PROVIDER_KEY,
    Customer,
    Provider,
    Relay,
    Replica,
    of_google,
    running_provider,
    trusted,
)

OURS = ("openai", "openai-responses", "anthropic", "gemini")
# Gemini's models since the third generation want their signatures back, those before give calls no names.
CHANNELS = {
    "openai": ("openai", "v1", "fake-large"),
    "openai-responses": ("openai-responses", "v1", "fake-large"),
    "anthropic": ("anthropic", "v1", "claude-fake"),
    "gemini": ("gemini", "v1beta", "gemini-3-fake"),
    "gemini-2": ("gemini", "v1beta", "gemini-fake"),
}
MODELS = {name: f"on-{name}" for name in CHANNELS}
TABLE: dict[tuple[str, str, str, bool], str] = {}
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SCHEMA = {
    "type": "object",
    "properties": {"place": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["place", "days"],
    "additionalProperties": False,
}
NEWEST = 20  # records: no test asks for more answers
METERS = {
    "input": "in_text",
    "cache_read": "cache_read",
    "cache_write_5m": "cache_write_5m",
    "cache_write_1h": "cache_write_1h",
    "output": "out_text",
}


class NotInTheApi(Exception):
    """The customer's API has no words for that."""


@dataclass
class Said:
    """An answer in no SDK's words. ``history``: what is to be sent with the next question."""

    text: str = ""
    thoughts: str = ""
    calls: list[tuple[str, str, Any]] = field(default_factory=list)
    stop: str = ""
    prompt: int = 0
    output: int = 0
    cached: int = 0
    history: Any = None
    request_id: str = ""


class OpenAiCustomer:
    """A conversation with OpenAI's SDK."""

    def __init__(self, customer: Customer, model: str, stream: bool) -> None:
        self._sdk, self._model, self._stream = customer.sdk, model, stream
        self.messages: list[Any] = []

    def ask(self, content: Any, **options: Any) -> Said:
        """The answer to one more message of the user's."""
        self.messages.append({"role": "user", "content": content})
        return self.go_on(**options)

    def go_on(self, **options: Any) -> Said:
        """The answer to what the messages are now."""
        given: Any = {"model": self._model, "messages": self.messages, "max_completion_tokens": 300}
        given |= options
        create: Any = self._sdk.chat.completions.with_raw_response.create
        if self._stream:
            raw = create(**given, stream=True, stream_options={"include_usage": True})
            said = self._streamed(raw.parse())
        else:
            raw = create(**given)
            said = self._whole(raw.parse())
        said.request_id = raw.headers["x-request-id"]
        self.messages.append(said.history)
        return said

    def _whole(self, answer: Any) -> Said:
        (choice,) = answer.choices
        message = choice.message.model_dump(exclude_none=True)
        return _of_openai(message, choice.finish_reason, answer.usage)

    def _streamed(self, chunks: Any) -> Said:
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        finish, usage = "", None
        calls: dict[int, Any] = {}
        for chunk in chunks:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                delta = choice.delta.model_dump(exclude_none=True)
                message["content"] += delta.get("content", "")
                for name in ("reasoning_content", "reasoning_details", "refusal"):
                    if name in delta:
                        message[name] = message.get(name, type(delta[name])()) + delta[name]
                for call in delta.get("tool_calls", []):
                    known = calls.setdefault(
                        call["index"], {"type": "function", "function": {"arguments": ""}}
                    )
                    known |= {"id": call["id"]} if "id" in call else {}
                    known["function"]["arguments"] += call["function"].get("arguments", "")
                    if "name" in call["function"]:
                        known["function"]["name"] = call["function"]["name"]
                finish = choice.finish_reason or finish
        if calls:
            message["tool_calls"] = [calls[index] for index in sorted(calls)]
        return _of_openai(message, finish, usage)

    def tools(self, *names: str, one_by_one: bool = False) -> dict[str, Any]:
        """Options that offer tools."""
        tools = [
            {"type": "function", "function": {"name": name, "description": "d", "parameters": SCHEMA}}
            for name in names
        ]
        return {"tools": tools} | ({"parallel_tool_calls": False} if one_by_one else {})

    def results(self, said: Said, *contents: Any) -> None:
        """Add the results of the tools that were called."""
        for (call, _, _), content in zip(said.calls, contents, strict=True):
            self.messages.append({"role": "tool", "tool_call_id": call, "content": content})

    def system(self, text: str, cache: bool = False) -> None:
        """Say it to the model before all else. OpenAI caches by itself, and takes no mark."""
        content: Any = text
        if cache and self._model != MODELS["openai"]:
            content = [{"type": "text", "text": text, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
        self.messages.insert(0, {"role": "system", "content": content})

    @staticmethod
    def image() -> list[Any]:
        """A question about an image."""
        shown = {"url": f"data:image/png;base64,{DOT}"}
        return [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": shown}]

    limit_option = "max_completion_tokens"
    stop: ClassVar[dict[str, Any]] = {"stop": ["has"]}
    schema: ClassVar[dict[str, Any]] = {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "trip", "schema": SCHEMA, "strict": True},
        }
    }
    thinking: ClassVar[dict[str, Any]] = {"reasoning_effort": "high"}


def _of_openai(message: dict[str, Any], finish: str, usage: Any) -> Said:
    calls = [
        (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in message.get("tool_calls", [])
    ]
    assert usage is not None
    return Said(
        message.get("content") or "",
        message.get("reasoning_content", ""),
        calls,
        {"stop": "end", "length": "length", "tool_calls": "tool", "content_filter": "refusal"}[finish],
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.prompt_tokens_details.cached_tokens or 0,
        message,
    )


class ResponsesCustomer:
    """A conversation with OpenAI's SDK by its Responses, of which nothing is kept."""

    def __init__(self, customer: Customer, model: str, stream: bool) -> None:
        self._sdk, self._model, self._stream = customer.sdk, model, stream
        self.messages: list[Any] = []
        self._instructions: dict[str, Any] = {}

    def ask(self, content: Any, **options: Any) -> Said:
        """The answer to one more message of the user's."""
        self.messages.append({"role": "user", "content": content})
        return self.go_on(**options)

    def go_on(self, **options: Any) -> Said:
        """The answer to what the items are now."""
        given: Any = {"model": self._model, "input": self.messages, "max_output_tokens": 300, "store": False}
        given |= self._instructions | options
        create: Any = self._sdk.responses.with_raw_response.create
        raw = create(**given, stream=self._stream)
        answer = self._streamed(raw.parse()) if self._stream else raw.parse()
        output = [item.model_dump(exclude_none=True) for item in answer.output]
        said = Said(
            answer.output_text,
            "".join(part["text"] for item in output for part in item.get("summary", [])),
            [
                (item.call_id, item.name, json.loads(item.arguments))
                for item in answer.output
                if item.type == "function_call"
            ],
            "length" if answer.status == "incomplete" else "end",
            answer.usage.input_tokens,
            answer.usage.output_tokens,
            answer.usage.input_tokens_details.cached_tokens,
            output,
            raw.headers["x-request-id"],
        )
        if said.calls:
            said.stop = "tool"
        self.messages += output
        return said

    def _streamed(self, events: Any) -> Any:
        """The last event repeats what the others told."""
        pieces: dict[str, str] = {}
        items: list[Any] = []
        for number, event in enumerate(events):
            assert event.sequence_number == number
            if event.type in ("response.output_text.delta", "response.function_call_arguments.delta"):
                pieces[event.item_id] = pieces.get(event.item_id, "") + event.delta
            elif event.type == "response.output_item.done":
                items.append(event.item)
            last = event
        assert last.type in ("response.completed", "response.incomplete")
        answer = last.response
        assert [item.model_dump() for item in items] == [item.model_dump() for item in answer.output]
        texts = {item.id: item.content[0].text for item in answer.output if item.type == "message"}
        texts |= {item.id: item.arguments for item in answer.output if item.type == "function_call"}
        assert pieces == {name: words for name, words in texts.items() if words}
        return answer

    def tools(self, *names: str, one_by_one: bool = False) -> dict[str, Any]:
        """Options that offer tools."""
        tools = [
            {"type": "function", "name": name, "description": "d", "parameters": SCHEMA, "strict": True}
            for name in names
        ]
        return {"tools": tools} | ({"parallel_tool_calls": False} if one_by_one else {})

    def results(self, said: Said, *contents: Any) -> None:
        """Add the results of the tools that were called."""
        for (call, _, _), content in zip(said.calls, contents, strict=True):
            self.messages.append({"type": "function_call_output", "call_id": call, "output": content})

    def system(self, text: str, cache: bool = False) -> None:
        """Say it to the model before all else. OpenAI caches by itself, and better with a key."""
        key = {"prompt_cache_key": f"key-{hash(text)}"} if cache else {}
        self._instructions = {"instructions": text} | key

    @staticmethod
    def image() -> list[Any]:
        """A question about an image."""
        url = f"data:image/png;base64,{DOT}"
        return [{"type": "input_text", "text": "What is it?"}, {"type": "input_image", "image_url": url}]

    limit_option = "max_output_tokens"
    stop: ClassVar[dict[str, Any]] = {"extra_body": {"stop": ["has"]}}  # which this API has not
    schema: ClassVar[dict[str, Any]] = {
        "text": {"format": {"type": "json_schema", "name": "trip", "schema": SCHEMA, "strict": True}}
    }
    thinking: ClassVar[dict[str, Any]] = {
        "reasoning": {"effort": "high", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
    }


class AnthropicCustomer:
    """A conversation with Anthropic's SDK."""

    def __init__(self, customer: Customer, model: str, stream: bool) -> None:
        self._customer = customer
        self._model, self._stream = model, stream
        self.messages: list[Any] = []
        self._system: dict[str, Any] = {}

    def ask(self, content: Any, **options: Any) -> Said:
        """The answer to one more message of the user's."""
        self.messages.append({"role": "user", "content": content})
        return self.go_on(**options)

    def go_on(self, **options: Any) -> Said:
        """The answer to what the messages are now."""
        given: Any = {"model": self._model, "messages": self.messages, "max_tokens": 300}
        given |= self._system | options
        url, http = self._customer.replica.url, anthropic.DefaultHttpxClient(verify=trusted())
        with anthropic.Anthropic(
            api_key=self._customer.key, base_url=url, max_retries=0, timeout=120, http_client=http
        ) as sdk:
            if self._stream:
                with sdk.messages.stream(**given) as stream:
                    message: Any = stream.get_final_message()
                    request_id = stream.response.headers["request-id"]
            else:
                raw = sdk.messages.with_raw_response.create(**given)
                message, request_id = raw.parse(), raw.headers["request-id"]
        usage = message.usage
        cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
        content = [block.model_dump(exclude_none=True) for block in message.content]
        said = Said(
            "".join(block.text for block in message.content if block.type == "text"),
            "".join(block.thinking for block in message.content if block.type == "thinking"),
            [(block.id, block.name, block.input) for block in message.content if block.type == "tool_use"],
            {"end_turn": "end", "max_tokens": "length", "tool_use": "tool", "stop_sequence": "end"}.get(
                str(message.stop_reason), str(message.stop_reason)
            ),
            usage.input_tokens + cached,
            usage.output_tokens,
            usage.cache_read_input_tokens or 0,
            {"role": "assistant", "content": content},
            request_id,
        )
        self.messages.append(said.history)
        return said

    def tools(self, *names: str, one_by_one: bool = False) -> dict[str, Any]:
        """Options that offer tools."""
        tools = [{"name": name, "description": "d", "input_schema": SCHEMA} for name in names]
        choice = {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}} if one_by_one else {}
        return {"tools": tools} | choice

    def results(self, said: Said, *contents: Any) -> None:
        """Add the results of the tools that were called."""
        blocks = [
            {"type": "tool_result", "tool_use_id": call} | ({"content": content} if content else {})
            for (call, _, _), content in zip(said.calls, contents, strict=True)
        ]
        self.messages.append({"role": "user", "content": blocks})

    def system(self, text: str, cache: bool = False) -> None:
        """Say it to the model before all else."""
        mark = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
        self._system = {"system": [{"type": "text", "text": text} | mark] if cache else text}

    @staticmethod
    def image() -> list[Any]:
        """A question about an image."""
        source = {"type": "base64", "media_type": "image/png", "data": DOT}
        return [{"type": "text", "text": "What is it?"}, {"type": "image", "source": source}]

    limit_option = "max_tokens"
    stop: ClassVar[dict[str, Any]] = {"stop_sequences": ["has"]}
    schema: ClassVar[dict[str, Any]] = {
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}
    }
    thinking: ClassVar[dict[str, Any]] = {
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "max_tokens": 2000,
    }


def google(customer: Customer) -> genai.Client:
    """Google's SDK."""
    options = types.HttpOptions(base_url=customer.replica.url, **of_google())
    return genai.Client(api_key=customer.key, http_options=options)


class GeminiCustomer:
    """A conversation with Google's SDK."""

    def __init__(self, customer: Customer, model: str, stream: bool) -> None:
        self._customer = customer
        self._model, self._stream = model, stream
        self.messages: list[Any] = []
        self._system: dict[str, Any] = {}

    def ask(self, content: Any, **options: Any) -> Said:
        """The answer to one more message of the user's."""
        parts = content if isinstance(content, list) else [types.Part(text=content)]
        self.messages.append(types.Content(role="user", parts=parts))
        return self.go_on(**options)

    def go_on(self, **options: Any) -> Said:
        """The answer to what the messages are now."""
        if any(isinstance(message, dict) for message in self.messages):
            raise NotInTheApi
        config: Any = {"max_output_tokens": 300} | self._system | options
        with google(self._customer) as sdk:
            asked: Any = {"model": self._model, "contents": self.messages, "config": config}
            if self._stream:
                answers = list(sdk.models.generate_content_stream(**asked))
            else:
                answers = [sdk.models.generate_content(**asked)]
        parts = [part for answer in answers for part in answer.candidates[0].content.parts or []]  # type: ignore[index, union-attr]
        usage: Any = answers[-1].usage_metadata
        finish: Any = answers[-1].candidates[0].finish_reason  # type: ignore[index]
        calls = [part.function_call for part in parts if part.function_call]
        said = Said(
            "".join(part.text or "" for part in parts if not part.thought),
            "".join(part.text or "" for part in parts if part.thought),
            [(call.id, call.name, call.args) for call in calls],  # type: ignore[misc]
            {"STOP": "tool" if calls else "end", "MAX_TOKENS": "length"}.get(finish.value, finish.value),
            usage.prompt_token_count,
            (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0),
            usage.cached_content_token_count or 0,
            types.Content(role="model", parts=parts),
            answers[0].sdk_http_response.headers["x-request-id"],  # type: ignore[union-attr, index]
        )
        assert usage.total_token_count == said.prompt + said.output
        self.messages.append(said.history)
        return said

    def tools(self, *names: str, one_by_one: bool = False) -> dict[str, Any]:
        """Options that offer tools."""
        if one_by_one:
            raise NotInTheApi
        declared = [
            types.FunctionDeclaration(name=name, description="d", parameters_json_schema=SCHEMA)
            for name in names
        ]
        return {"tools": [types.Tool(function_declarations=declared)]}

    def results(self, said: Said, *contents: Any) -> None:
        """Add the results of the tools that were called."""
        parts = []
        for (call, name, _), content in zip(said.calls, contents, strict=True):
            response = types.FunctionResponse(id=call, name=name, response={"result": content})
            if isinstance(content, list):
                text, image = content
                response.response = {"result": text.text}
                blob = types.FunctionResponseBlob(**image.inline_data.model_dump(exclude_none=True))
                response.parts = [types.FunctionResponsePart(inline_data=blob)]
            parts.append(types.Part(function_response=response))
        self.messages.append(types.Content(role="user", parts=parts))

    def system(self, text: str, cache: bool = False) -> None:
        """Say it to the model before all else. Gemini caches by itself, and takes no mark."""
        if cache and self._model == MODELS["anthropic"]:
            raise NotInTheApi
        self._system = {"system_instruction": text}

    @staticmethod
    def image() -> list[Any]:
        """A question about an image."""
        picture = types.Part.from_bytes(data=base64.b64decode(DOT), mime_type="image/png")
        return [types.Part(text="What is it?"), picture]

    limit_option = "max_output_tokens"
    stop: ClassVar[dict[str, Any]] = {"stop_sequences": ["has"]}
    schema: ClassVar[dict[str, Any]] = {
        "response_mime_type": "application/json",
        "response_json_schema": SCHEMA,
    }
    thinking: ClassVar[dict[str, Any]] = {
        "thinking_config": {"include_thoughts": True, "thinking_budget": 1024},
        "max_output_tokens": 2000,
    }


Talk = OpenAiCustomer | ResponsesCustomer | AnthropicCustomer | GeminiCustomer
TALKS: dict[str, Callable[[Customer, str, bool], Talk]] = {
    "openai": OpenAiCustomer,
    "openai-responses": ResponsesCustomer,
    "anthropic": AnthropicCustomer,
    "gemini": GeminiCustomer,
}


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    with running_provider(tmp_path_factory.mktemp("provider")) as running:
        yield running


@pytest.fixture(scope="module")
def relay(
    module_database: Database, provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Relay]:
    made = Relay(module_database, tmp_path_factory.mktemp("relay"))
    for name, (format, version, model) in CHANNELS.items():
        made.command(
            *("channel", "create", "--name", f"c-{name}", "--provider", format, "--format", format),
            *("--base-url", f"{provider.url}/{version}", "--api-key-stdin"),
            *("--models", f"{MODELS[name]}={model}"),
            stdin=PROVIDER_KEY,
        )
        made.price(
            MODELS[name],
            *("--in-text", "3/1M", "--out-text", "15/1M", "--cache-read", "0.30/1M"),
            *("--cache-write-5m", "3.75/1M", "--cache-write-1h", "6/1M"),
        )
    yield made
    made.stop()


@pytest.fixture(scope="module")
def replica_settings() -> dict[str, str]:
    return {"RELAY_PING_SECONDS": "1"}


@pytest.fixture(scope="module")
def customer(relay: Relay, replica: Replica) -> Customer:
    return Customer(relay, replica, "formats", "100.00")


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    yield
    columns = [(ours, theirs) for ours in OURS for theirs in CHANNELS]
    print("\n" + f"{'':24}" + "".join(f"{f'{ours} on {theirs}':>26}" for ours, theirs in columns))
    for what in dict.fromkeys(key[2] for key in TABLE):
        cells = [
            " / ".join(TABLE.get((ours, theirs, what, stream), "-") for stream in (False, True))
            for ours, theirs in columns
        ]
        print(f"{what:24}" + "".join(f"{cell:>26}" for cell in cells))
    print("(whole / stream)")


# ---------------------------------------------------------------------- what is asked


def text(talk: Talk) -> list[Said]:
    said = talk.ask('provider:{"reasoning": false}')
    assert said.stop == "end"
    assert len(said.text.split()) == said.output
    return [said]


def system(talk: Talk) -> list[Said]:
    talk.system("You are short of words. " * 20)
    said = talk.ask("Say something.")
    assert said.prompt > 100  # the system's text was counted
    return [said]


def length(talk: Talk) -> list[Said]:
    said = talk.ask('provider:{"completion_tokens": 30}', **{talk.limit_option: 16})
    assert (said.stop, said.output) == ("length", 16)
    return [said]


def stop_sequence(talk: Talk) -> list[Said]:
    said = talk.ask("Say something.", **talk.stop)
    assert said.text == "all the fee "
    return [said]


def image(talk: Talk) -> list[Said]:
    said = talk.ask(talk.image())
    assert said.prompt >= 85  # what the fake provider counts for an image
    return [said]


def tool(talk: Talk) -> list[Said]:
    options = talk.tools("get_weather")
    first = talk.ask("Call get_weather.", **options)
    ((call, name, arguments),) = first.calls
    assert (first.stop, name, arguments) == ("tool", "get_weather", {"place": "all the fee", "days": 7})
    assert call or isinstance(talk, GeminiCustomer)  # whose models before the third generation name no calls
    talk.results(first, "It rains.")
    second = talk.go_on(**options)
    assert (second.stop, second.calls) == ("end", [])
    assert second.text
    return [first, second]


def parallel_tools(talk: Talk) -> list[Said]:
    options = talk.tools("get_weather", "get_time")
    first = talk.ask("Call get_weather and get_time.", **options)
    assert [name for _, name, _ in first.calls] == ["get_weather", "get_time"]
    named = {call for call, _, _ in first.calls}
    assert len(named) == 2 or (named == {None} and isinstance(talk, GeminiCustomer))
    talk.results(first, "It rains.", "")  # a tool may give nothing
    second = talk.go_on(**options)
    assert second.text
    return [first, second]


def tools_one_by_one(talk: Talk) -> list[Said]:
    said = talk.ask(
        "Call get_weather and get_time.", **talk.tools("get_weather", "get_time", one_by_one=True)
    )
    assert len(said.calls) == 1
    return [said]


def image_of_a_tool(talk: Talk) -> list[Said]:
    options = talk.tools("get_weather")
    first = talk.ask("Call get_weather.", **options)
    talk.results(first, talk.image())
    second = talk.go_on(**options)
    assert second.prompt >= first.prompt + 85
    return [first, second]


def json_schema(talk: Talk) -> list[Said]:
    said = talk.ask("Where to?", **talk.schema)
    assert json.loads(said.text) == {"place": "all the fee", "days": 7}
    return [said]


def reasoning(talk: Talk) -> list[Said]:
    """Thoughts go back with the next question: their signatures must be whole."""
    shown = {"reasoning": True}
    if not isinstance(talk, OpenAiCustomer):
        shown["reasoning_content"] = True  # which OpenAI itself neither tells nor takes
    first = talk.ask(f"provider:{json.dumps(shown)}", **talk.thinking)
    second = talk.ask("Go on.", **talk.thinking)
    assert second.text
    return [first, second]


def caching(talk: Talk) -> list[Said]:
    talk.system(f"{time.time_ns()} " + "word " * 1500, cache=True)
    first = talk.ask("Say something.")
    second = talk.ask("Go on.")
    assert (first.cached, second.cached > 1000) == (0, True)
    return [first, second]


def system_in_the_middle(talk: Talk) -> list[Said]:
    first = talk.ask("Say something.")
    talk.messages.append({"role": "user", "content": "And now?"})
    talk.messages.append({"role": "system", "content": "Be brief. " * 40})
    second = talk.go_on()
    assert second.prompt > first.prompt + 90
    return [first, second]


ASKED = (
    *(text, system, length, stop_sequence, image, tool, parallel_tools, tools_one_by_one),
    *(image_of_a_tool, json_schema, reasoning, caching, system_in_the_middle),
)
REFUSALS = (openai.BadRequestError, anthropic.BadRequestError, errors.ClientError)
# What is refused by name, and by which.
REFUSED = {
    # By the provider: tools of OpenAI's give text alone.
    ("openai", "openai", "image_of_a_tool"): "image_url",
    # OpenAI's Responses have no stop sequences.
    **{("openai-responses", theirs, "stop_sequence"): "stop" for theirs in OURS},
    ("openai", "openai-responses", "stop_sequence"): "stop",
    ("anthropic", "openai-responses", "stop_sequence"): "stop_sequences",
    # By the relay: Gemini's format has no words for it.
    ("openai", "gemini", "tools_one_by_one"): "parallel_tool_calls",
    ("openai-responses", "gemini", "tools_one_by_one"): "parallel_tool_calls",
    ("gemini", "openai-responses", "stop_sequence"): "stopSequences",
    ("anthropic", "gemini", "tools_one_by_one"): "tool_choice.disable_parallel_tool_use",
}


# Where the generations of Gemini's models differ.
OF_GEMINI_2 = (tool, parallel_tools, image_of_a_tool, reasoning)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("asked", "theirs"),
    [(asked, theirs) for asked in ASKED for theirs in OURS] + [(asked, "gemini-2") for asked in OF_GEMINI_2],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
@pytest.mark.parametrize("ours", OURS)
def test_the_matrix(
    asked: Callable[[Talk], list[Said]],
    ours: str,
    theirs: str,
    stream: bool,
    customer: Customer,
    provider: Provider,
) -> None:
    cell = ours, theirs, asked.__name__, stream
    TABLE[cell] = "FAILED"
    talk = TALKS[ours](customer, MODELS[theirs], stream)
    before = customer.balance()
    refused = REFUSED.get((ours, theirs, asked.__name__))
    if refused is not None:
        with pytest.raises(REFUSALS, match=refused):
            asked(talk)
        TABLE[cell] = f"400 {refused}"
        return
    try:
        said = asked(talk)
    except NotInTheApi:
        assert ours == "gemini"
        TABLE[cell] = "not in the API"
        return
    charged = sum(_checked(answer, customer, provider) for answer in said)
    assert before - customer.balance() == charged
    TABLE[cell] = "ok"


def _checked(said: Said, customer: Customer, provider: Provider) -> int:
    """The charge of an answer: its record has what the provider's books have, and the SDK was told it."""
    (booked,) = provider.calls(said.request_id)
    records = customer.relay.usage(customer.account, newest=NEWEST)
    (record,) = [record for record in records if record["request_id"] == said.request_id]
    bill = {METERS[name]: units for name, units in booked["bill"].items() if units}
    meters = dict(record["meters"])
    if "in_image" in meters:  # which Gemini counts apart, and the books do not
        meters["in_text"] += meters.pop("in_image")
    assert meters == bill
    assert (said.prompt, said.output) == (booked["prompt_tokens"], booked["completion_tokens"])
    return int(record["charge"])


class Trip(BaseModel):
    """What the fake model fills in."""

    place: str
    days: int


@pytest.mark.parametrize("theirs", OURS)
def test_openais_helpers_of_the_sdk(customer: Customer, theirs: str) -> None:
    completions = customer.sdk.chat.completions
    asked: Any = {"model": MODELS[theirs], "messages": [{"role": "user", "content": "Where to?"}]}
    asked |= {"response_format": Trip, "max_completion_tokens": 100}
    streamed = _streamed(completions.stream(**asked), "get_final_completion")
    for answer in (completions.parse(**asked), streamed):
        assert answer.choices[0].message.parsed == Trip(place="all the fee", days=7)


@pytest.mark.parametrize("theirs", OURS)
def test_responses_helpers_of_the_sdk(customer: Customer, theirs: str) -> None:
    responses = customer.sdk.responses
    asked: Any = {"model": MODELS[theirs], "input": "Where to?", "text_format": Trip}
    with responses.stream(**asked) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        streamed: Any = stream.get_final_response()
    for answer in (responses.parse(**asked), streamed):
        assert answer.output_parsed == Trip(place="all the fee", days=7)
        assert answer.output_text == text


@pytest.mark.parametrize("theirs", OURS)
def test_anthropics_helpers_of_the_sdk(customer: Customer, theirs: str) -> None:
    weathers: list[int] = []

    @anthropic.beta_tool
    def get_weather(place: str, days: int) -> str:
        """The weather.

        Args:
            place: where
            days: for how long
        """
        weathers.append(days)
        return f"rain in {place}"

    asked: Any = {"model": MODELS[theirs], "max_tokens": 300}
    question: Any = [{"role": "user", "content": "Call get_weather."}]
    url = customer.replica.url
    with anthropic.Anthropic(api_key=customer.key, base_url=url, max_retries=0) as sdk:
        answers = list(sdk.beta.messages.tool_runner(**asked, tools=[get_weather], messages=question))
        assert [answer.stop_reason for answer in answers] == ["tool_use", "end_turn"]
        assert weathers == [7]
        parsed = sdk.messages.parse(**asked, messages=question, output_format=Trip).parsed_output
        assert parsed == Trip(place="all the fee", days=7)
        with sdk.messages.stream(**asked, messages=question) as stream:
            text = "".join(stream.text_stream)
            assert text == stream.get_final_text()
        assert sdk.messages.count_tokens(model=MODELS[theirs], messages=question).input_tokens > 0


def _streamed(manager: Any, final: str) -> Any:
    with manager as stream:
        for _ in stream:
            pass
        return getattr(stream, final)()


def test_every_charge_can_be_computed_again(customer: Customer) -> None:
    for proof in ("recompute", "conserve"):
        assert customer.relay.command("audit", proof)["ok"]

"""OpenAI's chat completions: POST /v1/chat/completions.

Source: OpenAI's API reference, chat; the refusals are worded as its API words them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from . import openai_words
from .answers import AUTO, MUST, NONE, Answer, Block, Prompt, Tool, ToolCall, extra, last_turn, message
from .cache import Cache
from .checking import (
    BadRequest,
    anything,
    decimal,
    either,
    flag,
    listed,
    mapping,
    matching,
    one_of,
    record,
    tagged,
    text,
    whole,
)
from .control import Control
from .formats import JSON, Asked, Chunk, Telling, Usage, event, figure, figures
from .openai_words import check_function, check_image, check_strict

WORDING = openai_words.Wording(chat=True)
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
REASONING = ("o1", "o3", "o4", "gpt-5")  # models that take max_completion_tokens only

NAME = matching(r"[a-zA-Z0-9_-]{1,64}")
TEXT_PART = record({"type": text, "text": text}, prompt_cache_breakpoint=anything)
IMAGE = record({"url": text}, detail=one_of("auto", "low", "high", "original"))
USER_PART = tagged(
    "type",
    {
        "text": TEXT_PART,
        "image_url": record({"type": text, "image_url": IMAGE}),
        "input_audio": record(
            {"type": text, "input_audio": record({"data": text, "format": one_of("wav", "mp3")})}
        ),
        "file": record({"type": text, "file": record(file_id=text, file_data=text, filename=text)}),
    },
)
ASSISTANT_PART = tagged("type", {"text": TEXT_PART, "refusal": record({"type": text, "refusal": text})})
TEXT_CONTENT = either(str, text, listed(tagged("type", {"text": TEXT_PART}), 1))
USER_CONTENT = either(str, text, listed(USER_PART, 1))
CALL = tagged(
    "type",
    {
        "function": record({"id": text, "type": text, "function": record({"name": text, "arguments": text})}),
        "custom": record({"id": text, "type": text, "custom": record({"name": text, "input": text})}),
    },
)
MESSAGE = tagged(
    "role",
    {
        "system": record({"role": text, "content": TEXT_CONTENT}, name=text),
        "developer": record({"role": text, "content": TEXT_CONTENT}, name=text),
        "user": record({"role": text, "content": USER_CONTENT}, name=text),
        "assistant": record(
            {"role": text},
            content=either(str, text, listed(ASSISTANT_PART)),
            name=text,
            refusal=text,
            audio=record({"id": text}),
            tool_calls=listed(CALL, 1, 128),
            function_call=record({"name": text, "arguments": text}),
            annotations=anything,
        ),
        "tool": record({"role": text, "content": TEXT_CONTENT, "tool_call_id": text}),
        "function": record({"role": text, "content": text, "name": text}),
    },
)
FUNCTION = record({"name": NAME}, description=text, parameters=mapping, strict=flag)
TOOL = tagged(
    "type",
    {
        "function": record({"type": text, "function": FUNCTION}),
        "custom": record({"type": text, "custom": record({"name": NAME}, description=text, format=mapping)}),
    },
)
CHOICE = either(
    str,
    one_of("none", "auto", "required"),
    tagged(
        "type",
        {
            "function": record({"type": text, "function": record({"name": text})}),
            "custom": record({"type": text, "custom": record({"name": text})}),
            "allowed_tools": record({"type": text, "allowed_tools": mapping}),
        },
    ),
)
SCHEMA = record({"name": NAME, "schema": mapping}, description=text, strict=flag)
RESPONSE_FORMAT = tagged(
    "type",
    {
        "text": record({"type": text}),
        "json_object": record({"type": text}),
        "json_schema": record({"type": text, "json_schema": SCHEMA}),
    },
)
REQUEST = record(
    {"model": text, "messages": listed(MESSAGE, 1)},
    audio=mapping,
    frequency_penalty=decimal(-2, 2),
    function_call=either(str, one_of("none", "auto"), record({"name": text})),
    functions=listed(FUNCTION, 1, 128),
    logit_bias=mapping,
    logprobs=flag,
    max_completion_tokens=whole(1),
    max_tokens=whole(1),
    metadata=mapping,
    modalities=listed(one_of("text", "audio")),
    moderation=mapping,
    n=whole(1, 128),
    parallel_tool_calls=flag,
    prediction=mapping,
    presence_penalty=decimal(-2, 2),
    prompt_cache_key=text,
    prompt_cache_options=mapping,
    prompt_cache_retention=one_of("in_memory", "24h"),
    reasoning_effort=one_of(*EFFORTS),
    response_format=RESPONSE_FORMAT,
    safety_identifier=text,
    seed=whole(),
    service_tier=one_of("auto", "default", "flex", "scale", "priority", "fast"),
    stop=either(str, text, listed(text, 1, 4)),
    store=flag,
    stream=flag,
    stream_options=record(include_usage=flag, include_obfuscation=flag),
    temperature=decimal(0, 2),
    tool_choice=CHOICE,
    tools=listed(TOOL, 1, 128),
    top_logprobs=whole(0, 20),
    top_p=decimal(0, 1),
    user=text,
    verbosity=one_of("low", "medium", "high"),
    web_search_options=mapping,
)


class Chat:
    """The format; without state."""

    name = "openai_chat"
    usage_at = "end"
    stream_type = b"text/event-stream"
    ping = b": keep-alive\n\n"

    def read(self, asked: Asked, *, lenient: bool) -> Prompt:
        body = asked.body
        if not isinstance(body.get("model"), str) or not body["model"]:
            raise BadRequest("you must provide a model parameter")
        if not lenient:
            REQUEST(WORDING, body, ())
            check_limits(body)
            check_tools(body)
            check_turns(body["messages"])
        return prompt_of(body)

    def remember(self, cache: Cache, answer: Answer) -> None:
        cache.automatic(answer)

    def usage(self, answer: Answer, produced: int) -> JSON:
        thoughts = min(len(answer.thoughts) * answer.prompt.n, produced)
        return {
            "prompt_tokens": answer.prompt.tokens,
            "completion_tokens": produced,
            "total_tokens": answer.prompt.tokens + produced,
            "prompt_tokens_details": {"cached_tokens": answer.cached, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": thoughts,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }

    def bill(self, usage: Mapping[str, Any]) -> JSON:
        return figures(
            whole_input=figure(usage, "prompt_tokens"),
            output=figure(usage, "completion_tokens"),
            read=figure(usage, "prompt_tokens_details", "cached_tokens"),
            written=figure(usage, "prompt_tokens_details", "cache_write_tokens"),
        )

    def whole(self, name: str, answer: Answer, usage: Usage, control: Control) -> JSON:
        choices = [
            {
                "index": index,
                "message": whole_message(answer, control),
                "logprobs": None,
                "finish_reason": finish_of(answer),
            }
            for index in range(answer.prompt.n)
        ]
        body = head(name, answer, "chat.completion") | {"choices": choices}
        return body if usage is None else body | {"usage": usage}

    def chunks(self, name: str, answer: Answer, telling: Telling, control: Control) -> Iterator[Chunk]:
        made, produced = Chunks(name, answer), 0
        for choice in range(answer.prompt.n):
            for number, (tokens, delta) in enumerate(deltas(answer, control)):
                begin = {"role": "assistant"} if number == 0 else {}
                first = telling.first() if choice == number == 0 else None
                produced += tokens
                yield tokens, made.chunk(choice, begin | delta, None, first or telling.so_far(produced))
            yield 0, made.chunk(choice, {}, finish_of(answer), telling.so_far(produced))

    def tail(self, name: str, answer: Answer, telling: Telling, control: Control) -> bytes:
        usage = telling.last(answer.produced)
        return (b"" if usage is None else Chunks(name, answer).usage(usage)) + b"data: [DONE]\n\n"

    def error(self, status: int, message: str, code: str | None = None, param: str | None = None) -> JSON:
        return openai_words.error(status, message, code, param)

    def error_event(self, error: JSON, *, first: bool) -> bytes:
        return event(error)


class Chunks:
    """The chunks of one answer; with include_usage those without usage carry ``"usage":null``."""

    def __init__(self, name: str, answer: Answer) -> None:
        self._head = head(name, answer, "chat.completion.chunk")
        self._tells = answer.prompt.facts.get("include_usage")

    def chunk(self, index: int, delta: JSON, finish: str | None, usage: Usage) -> bytes:
        """A chunk of one choice."""
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        body = self._head | {"choices": [choice]}
        return event(body | {"usage": usage} if self._tells or usage is not None else body)

    def usage(self, usage: JSON) -> bytes:
        """The chunk without choices that ends a stream with include_usage."""
        return event(self._head | {"choices": [], "usage": usage})


def head(name: str, answer: Answer, kind: str) -> JSON:
    """The fields that open every object of an answer."""
    return {
        "id": f"chatcmpl-{name}",
        "object": kind,
        "created": int(time.time()),
        "model": answer.prompt.model,
    }


def deltas(answer: Answer, control: Control) -> Iterator[tuple[int, JSON]]:
    """(tokens, delta) of one choice. Thoughts that are not shown come with the first delta, as cost only."""
    hidden = 0 if control.reasoning_content else len(answer.thoughts)
    if control.reasoning_content:
        yield from ((1, {"reasoning_content": thought}) for thought in answer.thoughts)
    field = "refusal" if answer.finish == "refusal" else "content"
    for word in answer.words:
        yield 1 + hidden, {field: word}
        hidden = 0
    for index, call in enumerate(answer.calls):
        opening = call_of(call)
        opening[opening["type"]][argument_field(call)] = ""
        yield hidden, {"content": None, "tool_calls": [{"index": index} | opening]}
        yield from argument_deltas(index, call)
        hidden = 0
    if hidden:
        yield hidden, {"content": ""}


def argument_deltas(index: int, call: ToolCall) -> Iterator[tuple[int, JSON]]:
    """A call's arguments in four pieces; the last one brings the rest of its cost."""
    size = max(-(-len(call.arguments) // 4), 1)
    pieces = [call.arguments[at : at + size] for at in range(0, len(call.arguments), size)] or [""]
    kind = "custom" if call.free else "function"
    for number, piece in enumerate(pieces):
        cost = call.tokens - len(pieces) + 1 if number == len(pieces) - 1 else 1
        yield cost, {"tool_calls": [{"index": index, kind: {argument_field(call): piece}}]}


def argument_field(call: ToolCall) -> str:
    """Where a call's arguments stand."""
    return "input" if call.free else "arguments"


def call_of(call: ToolCall) -> JSON:
    """A call as a message holds it."""
    kind = "custom" if call.free else "function"
    return {
        "id": f"call_{call.id}",
        "type": kind,
        kind: {"name": call.name, argument_field(call): call.arguments},
    }


def whole_message(answer: Answer, control: Control) -> JSON:
    """The message of a whole answer."""
    refused = answer.finish == "refusal"
    said = answer.text if answer.words or not answer.calls else None
    message: JSON = {
        "role": "assistant",
        "content": None if refused else said,
        "refusal": answer.text if refused else None,
    }
    if control.reasoning_content and answer.thoughts:
        message["reasoning_content"] = answer.thought
    if answer.calls:
        message["tool_calls"] = [call_of(call) for call in answer.calls]
    return message


def finish_of(answer: Answer) -> str:
    """OpenAI's word for why it ended; a refusal is an ordinary end."""
    return {"length": "length", "tools": "tool_calls", "blocked": "content_filter"}.get(answer.finish, "stop")


# ---------------------------------------------------------------------- the request


def prompt_of(body: JSON) -> Prompt:
    """The request in no format's words."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise BadRequest("messages must be a non-empty array of objects")
    wanted = body.get("response_format") or {}
    schema = (wanted.get("json_schema") or {}).get("schema") if isinstance(wanted, dict) else None
    if schema is None and isinstance(wanted, dict) and wanted.get("type") == "json_object":
        schema = {"type": "object", "properties": {"answer": {"type": "string"}}}
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    last = last_turn(messages)
    stop = body.get("stop") or []
    return Prompt(
        model=body["model"],
        blocks=[block_of(one) for one in messages] + tool_blocks(body),
        last=texts_of(last),
        stream=bool(body.get("stream")),
        answers_tools=last.get("role") in ("tool", "function"),
        limit=limit if isinstance(limit, int) else None,
        stop=[stop] if isinstance(stop, str) else stop,
        tools=[tool_of(tool) for tool in body.get("tools") or []],
        choice=choice_of(body.get("tool_choice")),
        parallel=body.get("parallel_tool_calls") is not False,
        schema=schema,
        reasons=body.get("reasoning_effort") not in (None, "none"),
        n=int(body.get("n") or 1),
        facts={"include_usage": bool((body.get("stream_options") or {}).get("include_usage"))},
    )


def texts_of(said: Mapping[str, Any]) -> list[str]:
    """The texts of a message, whose content is a string or a list of parts."""
    content = said.get("content")
    if isinstance(content, list):
        return [str(part.get("text", "")) for part in content if isinstance(part, dict)]
    return [str(content or "")]


def block_of(said: Mapping[str, Any]) -> Block:
    """A message as a piece of the prompt."""
    content = said.get("content")
    images = sum("image_url" in part for part in content) if isinstance(content, list) else 0
    calls = [str(call.get("function") or call.get("custom")) for call in said.get("tool_calls") or []]
    return message(" ".join([*texts_of(said), *calls]), images)


def tool_blocks(body: JSON) -> list[Block]:
    """The declared tools as pieces of the prompt."""
    return [extra(tool) for tool in body.get("tools") or []]


def tool_of(tool: Mapping[str, Any]) -> Tool:
    """A declared tool."""
    if tool.get("type") == "custom":
        return Tool(tool["custom"]["name"], free=True)
    return Tool(tool["function"]["name"], tool["function"].get("parameters"))


def choice_of(choice: Any) -> str:
    """The tools that must be called."""
    if isinstance(choice, dict):
        inner = choice.get("function") or choice.get("custom") or {}
        return str(inner.get("name", AUTO))
    return {"none": NONE, "required": MUST}.get(choice or "", AUTO)


def check_limits(body: JSON) -> None:
    """What may not stand together."""
    if body.get("max_tokens") is not None:
        if body.get("max_completion_tokens") is not None:
            raise BadRequest(
                "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
                param="max_tokens",
                code="invalid_parameter_combination",
            )
        if body["model"].startswith(REASONING):
            raise BadRequest(
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use"
                " 'max_completion_tokens' instead.",
                param="max_tokens",
                code="unsupported_parameter",
            )
    if body.get("stream_options") is not None and not body.get("stream"):
        raise BadRequest(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
        )
    if body.get("top_logprobs") is not None and not body.get("logprobs"):
        raise BadRequest(
            "Invalid value for 'top_logprobs': must be set only when 'logprobs' is true.",
            param="top_logprobs",
        )
    wanted = body.get("response_format") or {}
    if wanted.get("type") == "json_object" and "json" not in str(body["messages"]).lower():
        raise BadRequest(
            "'messages' must contain the word 'json' in some form, to use 'response_format' of type"
            " 'json_object'.",
            param="messages",
        )
    schema = wanted.get("json_schema")
    if schema and schema.get("strict"):
        check_strict(schema["schema"], f"response_format '{schema['name']}'", "response_format")


def check_tools(body: JSON) -> None:
    """What is asked of tools."""
    if not body.get("tools"):
        for name in ("tool_choice", "parallel_tool_calls"):
            if body.get(name) is not None:
                message = f"Invalid value for '{name}': '{name}' is only allowed when 'tools' are specified."
                raise BadRequest(message, param=name)
    for index, tool in enumerate(body.get("tools") or []):
        if "function" in tool:
            check_function(tool["function"], f"tools[{index}].function.parameters")


def check_turns(messages: list[JSON]) -> None:
    """Tool messages must answer the calls before them, all of them; images must be images."""
    waiting: dict[str, int] = {}
    for index, said in enumerate(messages):
        if said["role"] == "tool":
            if said["tool_call_id"] not in waiting:
                raise BadRequest(
                    "Invalid parameter: messages with role 'tool' must be a response to a preceeding message"
                    " with 'tool_calls'.",
                    param=f"messages.[{index}].role",
                )
            del waiting[said["tool_call_id"]]
            continue
        check_answered(waiting)
        if said["role"] == "assistant":
            if said.get("content") is None and not said.get("tool_calls") and not said.get("refusal"):
                raise WORDING.wrong_type(("messages", index, "content"), "a string", None)
            waiting = {call["id"]: index for call in said.get("tool_calls") or []}
        for number, part in enumerate(said["content"] if isinstance(said.get("content"), list) else []):
            if part.get("type") == "image_url":
                check_image(part["image_url"]["url"], f"messages[{index}].content[{number}].image_url.url")
    check_answered(waiting)


def check_answered(waiting: Mapping[str, int]) -> None:
    """Refuse when a call has no answer."""
    if waiting:
        raise BadRequest(
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each"
            " 'tool_call_id'. The following tool_call_ids did not have response messages:"
            f" {', '.join(waiting)}",
            param=f"messages.[{min(waiting.values())}].role",
        )

"""OpenAI's Responses: POST /v1/responses, GET and DELETE /v1/responses/{id}.

Source: OpenAI's API reference, responses and its streaming events.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from . import openai_words
from .answers import (
    AUTO,
    MUST,
    NONE,
    Answer,
    Block,
    Prompt,
    Tool,
    ToolCall,
    extra,
    last_turn,
    message,
    random_id,
    signature,
)
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
from .openai_chat import EFFORTS, NAME
from .openai_words import check_function, check_image, check_strict

WORDING = openai_words.Wording(chat=False)
REMEMBERED = 1_000  # answers that may be asked for again
SIGNER = "responses"
# Where chat's fields went.
MOVED = {
    "messages": "input",
    "response_format": "text.format",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
}

INPUT_PARTS = {
    "input_text": record({"type": text, "text": text}, prompt_cache_breakpoint=anything),
    "input_image": record(
        {"type": text}, image_url=text, file_id=text, detail=one_of("auto", "low", "high", "original")
    ),
    "input_file": record({"type": text}, file_id=text, file_data=text, file_url=text, filename=text),
}
OUTPUT_PARTS = {
    "output_text": record({"type": text, "text": text}, annotations=listed(anything), logprobs=anything),
    "refusal": record({"type": text, "refusal": text}),
}
INPUT = either(str, text, listed(tagged("type", INPUT_PARTS), 1))
OUTPUT = either(str, text, listed(tagged("type", OUTPUT_PARTS), 1))
STATUS = one_of("in_progress", "completed", "incomplete")
MESSAGE = tagged(
    "role",
    {
        role: record(
            {"role": text, "content": OUTPUT if role == "assistant" else INPUT},
            type=one_of("message"),
            id=text,
            status=STATUS,
            phase=one_of("commentary", "final_answer"),
        )
        for role in ("user", "assistant", "system", "developer")
    },
)
RESULT = either(str, text, listed(tagged("type", INPUT_PARTS)))
SUMMARY = listed(tagged("type", {"summary_text": record({"type": text, "text": text})}))
THOUGHTS = listed(tagged("type", {"reasoning_text": record({"type": text, "text": text})}))
ITEM = tagged(
    "type",
    {
        "message": MESSAGE,
        "function_call": record(
            {"type": text, "call_id": matching(".{1,64}"), "name": NAME, "arguments": text},
            id=matching("fc.*"),
            status=STATUS,
            namespace=text,
        ),
        "function_call_output": record(
            {"type": text, "call_id": matching(".{1,64}"), "output": RESULT}, id=text, status=STATUS
        ),
        "custom_tool_call": record(
            {"type": text, "call_id": text, "name": text, "input": text},
            id=matching("ctc.*"),
            status=STATUS,
            namespace=text,
        ),
        "custom_tool_call_output": record({"type": text, "call_id": text, "output": RESULT}, id=text),
        "reasoning": record(
            {"type": text, "summary": SUMMARY},
            id=matching("rs_.*"),
            content=THOUGHTS,
            encrypted_content=text,
            status=STATUS,
        ),
        "item_reference": record({"type": text, "id": text}),
    },
    default="message",
)
FUNCTION = record(
    {"type": text, "name": NAME}, parameters=mapping, strict=flag, description=text, defer_loading=flag
)
CUSTOM = record({"type": text, "name": NAME}, description=text, format=mapping, defer_loading=flag)
INNER_TOOL = tagged("type", {"function": FUNCTION, "custom": CUSTOM})
BUILT_IN = (
    "web_search",
    "web_search_preview",
    "file_search",
    "code_interpreter",
    "image_generation",
    "mcp",
    "local_shell",
    "shell",
    "apply_patch",
    "computer",
    "computer_use_preview",
    "tool_search",
)
TOOL = tagged(
    "type",
    {
        "function": FUNCTION,
        "custom": CUSTOM,
        "namespace": record({"type": text, "name": NAME, "tools": listed(INNER_TOOL)}, description=text),
    }
    | dict.fromkeys(BUILT_IN, mapping),
)
CHOICE = either(
    str,
    one_of("none", "auto", "required"),
    tagged(
        "type",
        {
            "function": record({"type": text, "name": text}),
            "custom": record({"type": text, "name": text}),
            "allowed_tools": record({"type": text, "mode": one_of("auto", "required"), "tools": anything}),
        }
        | dict.fromkeys(BUILT_IN, mapping),
    ),
)
TEXT_FORMAT = tagged(
    "type",
    {
        "text": record({"type": text}),
        "json_object": record({"type": text}),
        "json_schema": record({"type": text, "name": NAME, "schema": mapping}, description=text, strict=flag),
    },
)
INCLUDED = (
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
)
REQUEST = record(
    {"model": text},
    background=flag,
    context_management=anything,
    conversation=anything,
    include=listed(one_of(*INCLUDED)),
    input=either(str, text, listed(ITEM)),
    instructions=text,
    max_output_tokens=whole(16),
    max_tool_calls=whole(1),
    metadata=mapping,
    moderation=mapping,
    parallel_tool_calls=flag,
    previous_response_id=text,
    prompt=mapping,
    prompt_cache_key=text,
    prompt_cache_options=mapping,
    prompt_cache_retention=one_of("in_memory", "24h"),
    reasoning=record(
        effort=one_of(*EFFORTS),
        summary=one_of("auto", "concise", "detailed"),
        generate_summary=one_of("auto", "concise", "detailed"),
        context=text,
    ),
    safety_identifier=text,
    service_tier=one_of("auto", "default", "flex", "scale", "priority", "fast"),
    store=flag,
    stream=flag,
    stream_options=record(include_obfuscation=flag),
    temperature=decimal(0, 2),
    text=record(format=TEXT_FORMAT, verbosity=one_of("low", "medium", "high")),
    tool_choice=CHOICE,
    tools=listed(TOOL, 0, 128),
    top_logprobs=whole(0, 20),
    top_p=decimal(0, 1),
    truncation=one_of("auto", "disabled"),
    user=text,
    client_metadata=mapping,
)


class Responses:
    """The format. It keeps the answers that were to be stored, with what they answered."""

    name = "openai_responses"
    usage_at = "end"
    stream_type = b"text/event-stream"
    ping = b": keep-alive\n\n"

    def __init__(self) -> None:
        self._stored: OrderedDict[str, tuple[JSON, list[JSON]]] = OrderedDict()

    def read(self, asked: Asked, *, lenient: bool) -> Prompt:
        body = asked.body
        if not lenient:
            for name, moved in MOVED.items():
                if name in body:
                    message = (
                        f"Unsupported parameter: '{name}'. In the Responses API, this parameter has moved to"
                        f" '{moved}'. Try again with the new parameter."
                    )
                    raise BadRequest(message, param=name, code="unsupported_parameter")
            REQUEST(WORDING, body, ())
            check(body)
        items = self._before(body) + items_of(body)
        if not items:
            raise WORDING.missing(("input",))
        if not lenient:
            check_items(items)
        return prompt_of(body, items)

    def _before(self, body: JSON) -> list[JSON]:
        """What the answer that is continued had read and said."""
        name = body.get("previous_response_id")
        if name is None:
            return []
        if name not in self._stored:
            raise BadRequest(
                f"Previous response with id '{name}' not found.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        answer, read = self._stored[name]
        said: list[JSON] = answer["output"]
        return read + said

    def stored(self, name: str) -> JSON:
        """An answer that was stored; raises BadRequest with status 404."""
        if name not in self._stored:
            raise BadRequest(f"Response with id '{name}' not found.", status=404)
        response, _ = self._stored[name]
        return response

    def delete(self, name: str) -> JSON:
        """Forget an answer."""
        self.stored(name)
        del self._stored[name]
        return {"id": name, "object": "response", "deleted": True}

    def _store(self, answer: Answer, response: JSON) -> None:
        if answer.prompt.facts["request"].get("store") is False:
            return
        self._stored[response["id"]] = (response, answer.prompt.facts["items"])
        if len(self._stored) > REMEMBERED:
            self._stored.popitem(last=False)

    def remember(self, cache: Cache, answer: Answer) -> None:
        cache.automatic(answer)

    def usage(self, answer: Answer, produced: int) -> JSON:
        return {
            "input_tokens": answer.prompt.tokens,
            "input_tokens_details": {"cached_tokens": answer.cached, "cache_write_tokens": 0},
            "output_tokens": produced,
            "output_tokens_details": {"reasoning_tokens": min(len(answer.thoughts), produced)},
            "total_tokens": answer.prompt.tokens + produced,
        }

    def bill(self, usage: Mapping[str, Any]) -> JSON:
        return figures(
            whole_input=figure(usage, "input_tokens"),
            output=figure(usage, "output_tokens"),
            read=figure(usage, "input_tokens_details", "cached_tokens"),
            written=figure(usage, "input_tokens_details", "cache_write_tokens"),
        )

    def whole(self, name: str, answer: Answer, usage: Usage, control: Control) -> JSON:
        response = ended(name, answer, usage)
        self._store(answer, response)
        return response

    def chunks(self, name: str, answer: Answer, telling: Telling, control: Control) -> Iterator[Chunk]:
        stream = Stream()
        begun = frame(name, answer) | {"status": "in_progress", "output": [], "usage": telling.first()}
        yield 0, stream.event("response.created", response=begun)
        yield 0, stream.event("response.in_progress", response=begun)
        for index, item in enumerate(output_of(name, answer)):
            yield from ITEM_EVENTS[item["type"]](stream, index, item, answer)
        answer.prompt.facts["sequence"] = stream.sequence

    def tail(self, name: str, answer: Answer, telling: Telling, control: Control) -> bytes:
        response = ended(name, answer, telling.last(answer.produced))
        self._store(answer, response)
        stream = Stream(answer.prompt.facts["sequence"])
        return stream.event(f"response.{response['status']}", response=response)

    def error(self, status: int, message: str, code: str | None = None, param: str | None = None) -> JSON:
        return openai_words.error(status, message, code, param)

    def error_event(self, error: JSON, *, first: bool) -> bytes:
        told = error["error"]
        body = {"type": "error", "code": told["code"] or told["type"], "message": told["message"]}
        return event(body | {"param": told["param"], "sequence_number": 0}, "error")


class Stream:
    """Writes events with their running number."""

    def __init__(self, sequence: int = 0) -> None:
        self.sequence = sequence

    def event(self, kind: str, **fields: Any) -> bytes:
        """The next event."""
        written = event({"type": kind, "sequence_number": self.sequence} | fields, kind)
        self.sequence += 1
        return written


def reasoning_events(stream: Stream, index: int, item: JSON, answer: Answer) -> Iterator[Chunk]:
    """A reasoning item: its summary, where it has one."""
    at = {"item_id": item["id"], "output_index": index}
    unspent = len(answer.thoughts)
    yield 0, stream.event("response.output_item.added", output_index=index, item=item | {"summary": []})
    for number, summary in enumerate(item["summary"]):
        part = {"summary_index": number}
        empty = summary | {"text": ""}
        yield 0, stream.event("response.reasoning_summary_part.added", **at, **part, part=empty)
        for thought in answer.thoughts:
            unspent -= 1
            yield 1, stream.event("response.reasoning_summary_text.delta", **at, **part, delta=thought)
        yield 0, stream.event("response.reasoning_summary_text.done", **at, **part, text=summary["text"])
        yield 0, stream.event("response.reasoning_summary_part.done", **at, **part, part=summary)
    yield unspent, stream.event("response.output_item.done", output_index=index, item=item)


def message_events(stream: Stream, index: int, item: JSON, answer: Answer) -> Iterator[Chunk]:
    """A message of one part."""
    at = {"item_id": item["id"], "output_index": index, "content_index": 0}
    (part,) = item["content"]
    refused = part["type"] == "refusal"
    kind, field = ("refusal", "refusal") if refused else ("output_text", "text")
    more: JSON = {} if refused else {"logprobs": []}
    begun = item | {"status": "in_progress", "content": []}
    yield 0, stream.event("response.output_item.added", output_index=index, item=begun)
    yield 0, stream.event("response.content_part.added", **at, part=part | {field: ""})
    for word in answer.words:
        yield 1, stream.event(f"response.{kind}.delta", **at, delta=word, **more)
    yield 0, stream.event(f"response.{kind}.done", **at, **{field: part[field]}, **more)
    yield 0, stream.event("response.content_part.done", **at, part=part)
    yield 0, stream.event("response.output_item.done", output_index=index, item=item)


def call_events(stream: Stream, index: int, item: JSON, answer: Answer) -> Iterator[Chunk]:
    """A call of a function or of a custom tool; its arguments come in four pieces."""
    custom = item["type"] == "custom_tool_call"
    field, kind = ("input", "custom_tool_call_input") if custom else ("arguments", "function_call_arguments")
    at = {"item_id": item["id"], "output_index": index}
    begun = item | {field: ""} | ({} if custom else {"status": "in_progress"})
    yield 0, stream.event("response.output_item.added", output_index=index, item=begun)
    written = item[field]
    size = max(-(-len(written) // 4), 1)
    pieces = [written[start : start + size] for start in range(0, len(written), size)]
    tokens = next(call.tokens for call in answer.calls if f"call_{call.id}" == item["call_id"])
    for piece in pieces:
        yield 1, stream.event(f"response.{kind}.delta", **at, delta=piece)
    name = {} if custom else {"name": item["name"]}
    rest = tokens - len(pieces)
    yield rest, stream.event(f"response.{kind}.done", **at, **name, **{field: written})
    yield 0, stream.event("response.output_item.done", output_index=index, item=item)


ITEM_EVENTS = {
    "reasoning": reasoning_events,
    "message": message_events,
    "function_call": call_events,
    "custom_tool_call": call_events,
}


def frame(name: str, answer: Answer) -> JSON:
    """A response without what it says."""
    asked = answer.prompt.facts["request"]
    return {
        "id": f"resp_{name}",
        "object": "response",
        "created_at": int(time.time()),
        "error": None,
        "incomplete_details": None,
        "instructions": asked.get("instructions"),
        "max_output_tokens": asked.get("max_output_tokens"),
        "metadata": asked.get("metadata") or {},
        "model": answer.prompt.model,
        "parallel_tool_calls": answer.prompt.parallel,
        "previous_response_id": asked.get("previous_response_id"),
        "reasoning": asked.get("reasoning") or {"effort": None, "summary": None},
        "store": asked.get("store") is not False,
        "temperature": asked.get("temperature", 1.0),
        "text": asked.get("text") or {"format": {"type": "text"}},
        "tool_choice": asked.get("tool_choice") or "auto",
        "tools": asked.get("tools") or [],
        "top_p": asked.get("top_p", 1.0),
        "truncation": asked.get("truncation") or "disabled",
    }


def ended(name: str, answer: Answer, usage: Usage) -> JSON:
    """The whole response."""
    reason = {"length": "max_output_tokens", "blocked": "content_filter"}.get(answer.finish)
    body = frame(name, answer) | {"output": output_of(name, answer)}
    body["status"] = "incomplete" if reason else "completed"
    body["incomplete_details"] = {"reason": reason} if reason else None
    return body if usage is None else body | {"usage": usage}


def output_of(name: str, answer: Answer) -> list[JSON]:
    """The items of an answer."""
    asked = answer.prompt.facts["request"]
    items: list[JSON] = []
    if answer.thoughts:
        shown = bool((asked.get("reasoning") or {}).get("summary"))
        summary = [{"type": "summary_text", "text": answer.thought}] if shown else []
        item: JSON = {"id": f"rs_{name}", "type": "reasoning", "summary": summary}
        if "reasoning.encrypted_content" in (asked.get("include") or []):
            item["encrypted_content"] = signature(SIGNER, item["id"])
        items.append(item)
    if answer.words or not answer.calls:
        refused = answer.finish == "refusal"
        spoken: JSON = {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": []}
        part = {"type": "refusal", "refusal": answer.text} if refused else spoken
        status = "incomplete" if answer.finish in ("length", "blocked") else "completed"
        said = {"id": f"msg_{name}", "type": "message", "status": status, "role": "assistant"}
        items.append(said | {"content": [part]})
    return items + [item_of(call) for call in answer.calls]


def item_of(call: ToolCall) -> JSON:
    """A call as an item."""
    named = {"call_id": f"call_{call.id}", "name": call.name}
    if call.free:
        return {"id": f"ctc_{call.id}", "type": "custom_tool_call", "input": call.arguments} | named
    done = {"arguments": call.arguments, "status": "completed"}
    return {"id": f"fc_{call.id}", "type": "function_call"} | named | done


# ---------------------------------------------------------------------- the request


def items_of(body: JSON) -> list[JSON]:
    """The input as items."""
    asked = body.get("input")
    if isinstance(asked, str):
        return [{"type": "message", "role": "user", "content": asked}]
    return [{"type": "message"} | item for item in asked or []]


def prompt_of(body: JSON, items: list[JSON]) -> Prompt:
    """The request in no format's words."""
    wanted = (body.get("text") or {}).get("format") or {}
    schema = wanted.get("schema")
    if wanted.get("type") == "json_object":
        schema = {"type": "object", "properties": {"answer": {"type": "string"}}}
    instructions = [message(body["instructions"])] if body.get("instructions") else []
    effort = (body.get("reasoning") or {}).get("effort")
    last = last_turn(items)
    return Prompt(
        model=body["model"],
        blocks=instructions + [block_of(one) for one in items] + [extra(t) for t in body.get("tools") or []],
        last=texts_of(last),
        stream=bool(body.get("stream")),
        answers_tools=last["type"].endswith("_output"),
        limit=body.get("max_output_tokens"),
        tools=[tool for one in body.get("tools") or [] for tool in tools_of(one)],
        choice=choice_of(body.get("tool_choice")),
        parallel=body.get("parallel_tool_calls") is not False,
        schema=schema,
        reasons=bool(body.get("reasoning")) and effort != "none",
        facts={"request": body, "items": items},
    )


def texts_of(item: JSON) -> list[str]:
    """The texts of an item."""
    content = item.get("content", item.get("output"))
    if isinstance(content, list):
        return [str(part.get("text", part.get("refusal", ""))) for part in content]
    return [str(content or "")]


def block_of(item: JSON) -> Block:
    """An item as a piece of the prompt."""
    content = item.get("content", item.get("output"))
    images = sum(part["type"] == "input_image" for part in content) if isinstance(content, list) else 0
    own = [str(item[name]) for name in ("name", "arguments", "input", "summary") if item.get(name)]
    return message(" ".join([*texts_of(item), *own]), images)


def tools_of(tool: JSON) -> list[Tool]:
    """What a declared tool lets the model call; providers' own tools are never used here."""
    if tool["type"] == "namespace":
        return [inner for one in tool["tools"] for inner in tools_of(one)]
    if tool["type"] not in ("function", "custom"):
        return []
    return [Tool(tool["name"], tool.get("parameters"), free=tool["type"] == "custom")]


def choice_of(choice: Any) -> str:
    """The tools that must be called."""
    if isinstance(choice, dict):
        return str(choice.get("name", MUST if choice.get("mode") == "required" else AUTO))
    return {"none": NONE, "required": MUST}.get(choice or "", AUTO)


def check(body: JSON) -> None:
    """What may not stand together, and the schemas."""
    if body.get("stream_options") is not None and not body.get("stream"):
        raise BadRequest(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
        )
    wanted = (body.get("text") or {}).get("format") or {}
    if wanted.get("strict"):
        check_strict(wanted["schema"], f"response_format '{wanted['name']}'", "text.format.schema")
    for index, tool in enumerate(body.get("tools") or []):
        if tool["type"] == "function":
            check_function(tool, f"tools[{index}].parameters")
    choice = body.get("tool_choice")
    if choice == "required" and not body.get("tools"):
        raise BadRequest(
            "Tool choice 'required' must be specified with 'tools' parameter.", param="tool_choice"
        )


def check_items(items: list[JSON]) -> None:
    """Calls and results must match; reasoning must be its own, and be followed by what it led to."""
    calls: dict[str, str] = {}
    answered: set[str] = set()
    for index, item in enumerate(items):
        kind = item["type"]
        if kind in ("function_call", "custom_tool_call"):
            calls[item["call_id"]] = kind.replace("_", " ")
        elif kind.endswith("_output"):
            what = kind.removesuffix("_output").replace("_", " ")
            if calls.get(item["call_id"]) != what:
                raise BadRequest(
                    f"No tool call found for {what} output with call_id {item['call_id']}.", param="input"
                )
            answered.add(item["call_id"])
        elif kind == "reasoning":
            check_reasoning(item, items[index + 1 : index + 2])
        check_images(item, index)
    for call_id in calls.keys() - answered:
        raise BadRequest(f"No tool output found for {calls[call_id]} {call_id}.", param="input")


def check_reasoning(item: JSON, following: list[JSON]) -> None:
    """Encrypted thoughts must be those that were given out, before what they led to."""
    name = item.get("id") or ""
    sealed = item.get("encrypted_content")
    if sealed is not None and name and sealed != signature(SIGNER, name):
        raise BadRequest(
            f"The encrypted content for item {name} could not be verified.", code="invalid_encrypted_content"
        )
    led_to = ("message", "function_call", "custom_tool_call", "reasoning")
    if (
        not following
        or following[0]["type"] not in led_to
        or following[0].get("role", "assistant") != "assistant"
    ):
        raise BadRequest(
            f"Item '{name}' of type 'reasoning' was provided without its required following item.",
            param="input",
        )


def check_images(item: JSON, index: int) -> None:
    """Images must be images."""
    for field in ("content", "output"):
        parts = item.get(field)
        for number, part in enumerate(parts if isinstance(parts, list) else []):
            where = f"input[{index}].{field}[{number}]"
            if part.get("type") == "input_image":
                if part.get("image_url") is None and part.get("file_id") is None:
                    raise BadRequest(f"Missing required parameter: '{where}.image_url'.", param=where)
                if part.get("image_url") is not None:
                    check_image(part["image_url"], f"{where}.image_url")


def new_name() -> str:
    """The part of an answer's id that is its own."""
    return random_id(24)

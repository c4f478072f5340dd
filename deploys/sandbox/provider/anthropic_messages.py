"""Anthropic's messages: POST /v1/messages and /v1/messages/count_tokens.

Source: Anthropic's API reference, messages, streaming and errors; refusals are worded as its API words them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .answers import AUTO, MUST, NONE, Answer, Block, Prompt, Tool, extra, last_turn, message, signature
from .cache import HOUR, Cache
from .checking import (
    BadRequest,
    Kind,
    Path,
    anything,
    decimal,
    either,
    flag,
    image_bytes,
    listed,
    mapping,
    matching,
    nullable,
    one_of,
    record,
    tagged,
    text,
    whole,
)
from .control import Control
from .formats import JSON, Asked, Chunk, Telling, Usage, event, figure

SIGNER = "anthropic"
MARKERS = 4
LEAST_BUDGET = 1024
FIVE_MINUTES = 300
FIRST_ONLY = ("cache_creation", "service_tier")  # what only message_start tells of the usage
VERSIONS = ("2023-01-01", "2023-06-01", "2026-10-21")
REMOVED = ("temperature", "top_p", "top_k")  # from the latest version
# Models that came before system messages in the middle of a conversation.
OLDER = re.compile(r"claude-(2|3|instant|opus-4-[0-7]\b|opus-4-20|sonnet-4|haiku-4)")
ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def spelled(path: Path) -> str:
    """A field as Anthropic names it."""
    return ".".join(str(part) for part in path)


class Wording:
    """Anthropic's words, which are those of the library that checks its requests."""

    nulls = False

    def name(self, written: str) -> str:
        return written

    def unknown(self, path: Path) -> BadRequest:
        return BadRequest(f"{spelled(path)}: Extra inputs are not permitted")

    def missing(self, path: Path) -> BadRequest:
        return BadRequest(f"{spelled(path)}: Field required")

    def wrong_type(self, path: Path, expected: str, value: Any) -> BadRequest:
        kind = expected.partition(" ")[2]
        named = {"array": "list", "object": "dictionary", "decimal": "number"}.get(kind, kind)
        return BadRequest(f"{spelled(path)}: Input should be a valid {named}")

    def wrong_value(self, path: Path, supported: tuple[str, ...], value: Any) -> BadRequest:
        if path[-1:] == ("role",):
            return BadRequest(f'messages: Unexpected role "{value}". Allowed roles are "user" or "assistant"')
        known = ", ".join(f"'{one}'" for one in supported)
        return BadRequest(f"{spelled(path)}: Input should be one of {known}")

    def out_of_range(self, path: Path, low: float, high: float, value: Any) -> BadRequest:
        if isinstance(value, list):
            return BadRequest(f"{spelled(path)}: List should have from {low:g} to {high:g} items")
        bound = f"greater than or equal to {low:g}" if value < low else f"less than or equal to {high:g}"
        return BadRequest(f"{spelled(path)}: Input should be {bound}")


WORDING = Wording()
CACHE = nullable(tagged("type", {"ephemeral": record({"type": text}, ttl=one_of("5m", "1h"))}))
TEXT = record({"type": text, "text": text}, cache_control=CACHE, citations=nullable(anything))
MEDIA = one_of("image/jpeg", "image/png", "image/gif", "image/webp")
SOURCE = {
    "url": record({"type": text, "url": text}),
    "file": record({"type": text, "file_id": text}),
}
IMAGE = record(
    {
        "type": text,
        "source": tagged(
            "type", SOURCE | {"base64": record({"type": text, "media_type": MEDIA, "data": text})}
        ),
    },
    cache_control=CACHE,
)
DOCUMENT = record(
    {
        "type": text,
        "source": tagged(
            "type",
            SOURCE
            | {
                "base64": record({"type": text, "media_type": one_of("application/pdf"), "data": text}),
                "text": record({"type": text, "media_type": one_of("text/plain"), "data": text}),
                "content": record({"type": text, "content": anything}),
            },
        ),
    },
    cache_control=CACHE,
    citations=nullable(mapping),
    context=nullable(text),
    title=nullable(text),
)
SEARCH_RESULT = record(
    {"type": text, "source": text, "title": text, "content": listed(tagged("type", {"text": TEXT}))},
    cache_control=CACHE,
    citations=nullable(mapping),
)
CALL_ID = matching(r"[a-zA-Z0-9_-]+")
TOOL_NAME = matching(r"[a-zA-Z0-9_-]{1,128}")
RESULT = record(
    {"type": text, "tool_use_id": CALL_ID},
    cache_control=CACHE,
    content=either(
        str,
        text,
        listed(
            tagged(
                "type", {"text": TEXT, "image": IMAGE, "document": DOCUMENT, "search_result": SEARCH_RESULT}
            )
        ),
    ),
    is_error=flag,
)
USE = record(
    {"type": text, "id": CALL_ID, "name": TOOL_NAME, "input": mapping}, cache_control=CACHE, caller=mapping
)
USER = tagged(
    "type",
    {
        "text": TEXT,
        "image": IMAGE,
        "document": DOCUMENT,
        "search_result": SEARCH_RESULT,
        "tool_result": RESULT,
    },
)
ASSISTANT = tagged(
    "type",
    {
        "text": TEXT,
        "tool_use": USE,
        "thinking": record({"type": text, "thinking": text, "signature": text}),
        "redacted_thinking": record({"type": text, "data": text}),
    },
)
SYSTEM = either(str, text, listed(tagged("type", {"text": TEXT})))
MESSAGE = tagged(
    "role",
    {
        "user": record({"role": text, "content": either(str, text, listed(USER))}),
        "assistant": record({"role": text, "content": either(str, text, listed(ASSISTANT))}),
        "system": record({"role": text, "content": SYSTEM}),
    },
)


def input_schema(wording: Any, value: Any, path: Path) -> None:
    """A tool's schema: of an object, with any keyword but a choice at its top."""
    mapping(wording, value, path)
    if value.get("type") != "object":
        raise (
            WORDING.missing((*path, "type"))
            if "type" not in value
            else WORDING.wrong_value((*path, "type"), ("object",), value["type"])
        )
    for name in ("oneOf", "allOf", "anyOf"):
        if name in value:
            raise BadRequest(
                f"{spelled(path)}: input_schema does not support oneOf, allOf, or anyOf at the top level"
            )


CUSTOM = record(
    {"name": TOOL_NAME, "input_schema": input_schema},
    type=nullable(one_of("custom")),
    description=text,
    cache_control=CACHE,
    strict=flag,
    defer_loading=flag,
    eager_input_streaming=nullable(flag),
    input_examples=listed(mapping),
    allowed_callers=listed(text),
)
BUILT_IN = re.compile(
    r"(bash|text_editor|computer|web_search|web_fetch|code_execution|memory|tool_search)_.*"
)


def tool(wording: Any, value: Any, path: Path) -> None:
    """A tool of the customer's, or one of Anthropic's own."""
    mapping(wording, value, path)
    kind = value.get("type") or "custom"
    if not isinstance(kind, str) or not BUILT_IN.fullmatch(kind):
        CUSTOM(wording, value, (*path, "custom") if kind == "custom" else path)


PARALLEL = {"disable_parallel_tool_use": flag}
CHOICE = tagged(
    "type",
    {
        "auto": record({"type": text}, **PARALLEL),
        "any": record({"type": text}, **PARALLEL),
        "tool": record({"type": text, "name": text}, **PARALLEL),
        "none": record({"type": text}),
    },
)
DISPLAY = nullable(one_of("summarized", "omitted"))
THINKING = tagged(
    "type",
    {
        "enabled": record({"type": text, "budget_tokens": whole(LEAST_BUDGET)}, display=DISPLAY),
        "adaptive": record({"type": text}, display=DISPLAY),
        "between_tools": record({"type": text}),
        "disabled": record({"type": text}),
    },
)
OUTPUT = record(
    effort=nullable(one_of("low", "medium", "high", "xhigh", "max")),
    format=nullable(tagged("type", {"json_schema": record({"type": text, "schema": mapping})})),
)
COUNTED: dict[str, Kind] = {
    "cache_control": CACHE,
    "system": SYSTEM,
    "thinking": THINKING,
    "tools": listed(tool),
    "tool_choice": CHOICE,
    "output_config": OUTPUT,
    "output_format": nullable(mapping),
    "context_management": nullable(mapping),
    "speed": nullable(one_of("standard", "fast")),
    "mcp_servers": anything,
}
NEEDED: dict[str, Kind] = {"model": matching(".+"), "messages": listed(MESSAGE)}
REQUEST = record(
    NEEDED | {"max_tokens": whole(1)},
    container=nullable(anything),
    diagnostics=nullable(mapping),
    inference_geo=nullable(text),
    metadata=record(user_id=nullable(text)),
    service_tier=one_of("auto", "standard_only"),
    stop_sequences=listed(text),
    stream=flag,
    temperature=decimal(0, 1),
    top_k=whole(0),
    top_p=decimal(0, 1),
    **COUNTED,
)
COUNT_REQUEST = record(NEEDED, **COUNTED)


class Messages:
    """The format; without state."""

    name = "anthropic"
    usage_at = "each"
    stream_type = b"text/event-stream; charset=utf-8"
    ping = event({"type": "ping"}, "ping")

    def read(self, asked: Asked, *, lenient: bool) -> Prompt:
        body = asked.body
        if not lenient:
            REQUEST(WORDING, body, ())
            check_version(asked)
            check(body)
        return prompt_of(body)

    def count(self, asked: Asked, *, lenient: bool) -> JSON:
        """The answer of count_tokens."""
        if not lenient:
            COUNT_REQUEST(WORDING, asked.body, ())
            check_version(asked)
            check(asked.body)
        return {"input_tokens": prompt_of(asked.body).tokens}

    def remember(self, cache: Cache, answer: Answer) -> None:
        cache.marked(answer)

    def usage(self, answer: Answer, produced: int) -> JSON:
        written = answer.written_5m + answer.written_1h
        return {
            "input_tokens": answer.prompt.tokens - answer.cached - written,
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": answer.cached,
            "cache_creation": {
                "ephemeral_5m_input_tokens": answer.written_5m,
                "ephemeral_1h_input_tokens": answer.written_1h,
            },
            "output_tokens": produced,
            "output_tokens_details": {"thinking_tokens": min(len(answer.thoughts), produced)},
            "service_tier": "standard",
        }

    def bill(self, usage: Mapping[str, Any]) -> JSON:
        hour = figure(usage, "cache_creation", "ephemeral_1h_input_tokens")
        return {
            "input": figure(usage, "input_tokens"),
            "cache_read": figure(usage, "cache_read_input_tokens"),
            "cache_write_5m": figure(usage, "cache_creation_input_tokens") - hour,
            "cache_write_1h": hour,
            "output": figure(usage, "output_tokens"),
        }

    def whole(self, name: str, answer: Answer, usage: Usage, control: Control) -> JSON:
        body = begun(name, answer) | {"content": blocks_of(answer)}
        body |= {"stop_reason": stop_of(answer), "stop_sequence": answer.stopped_by}
        return body if usage is None else body | {"usage": usage}

    def chunks(self, name: str, answer: Answer, telling: Telling, control: Control) -> Iterator[Chunk]:
        message = begun(name, answer)
        told = telling.first()
        if told is not None:
            message["usage"] = told | ({} if control.usage or control.told_usage else {"output_tokens": 1})
        yield 0, event({"type": "message_start", "message": message}, "message_start") + self.ping
        for index, block in enumerate(blocks_of(answer)):
            start = block_start(block)
            yield (
                0,
                event(
                    {"type": "content_block_start", "index": index, "content_block": start},
                    "content_block_start",
                ),
            )
            for tokens, delta in block_deltas(block, answer):
                body = {"type": "content_block_delta", "index": index, "delta": delta}
                yield tokens, event(body, "content_block_delta")
            yield 0, event({"type": "content_block_stop", "index": index}, "content_block_stop")

    def tail(self, name: str, answer: Answer, telling: Telling, control: Control) -> bytes:
        delta = {"stop_reason": stop_of(answer), "stop_sequence": answer.stopped_by}
        body: JSON = {"type": "message_delta", "delta": delta}
        usage = telling.last(answer.produced)
        if usage is not None:
            body["usage"] = {name: usage[name] for name in usage if name not in FIRST_ONLY}
        return event(body, "message_delta") + event({"type": "message_stop"}, "message_stop")

    def error(self, status: int, message: str, code: str | None = None, param: str | None = None) -> JSON:
        kind = code or ERRORS.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": None}

    def error_event(self, error: JSON, *, first: bool) -> bytes:
        return event({"type": "error", "error": error["error"]}, "error")


def begun(name: str, answer: Answer) -> JSON:
    """A message without what it says."""
    return {
        "id": f"msg_{name}",
        "type": "message",
        "role": "assistant",
        "model": answer.prompt.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {},
    }


def blocks_of(answer: Answer) -> list[JSON]:
    """The blocks of an answer. Thoughts that are not to be shown have their signature only."""
    blocks: list[JSON] = []
    if answer.thoughts:
        shown = "" if answer.prompt.facts.get("display") == "omitted" else answer.thought
        blocks.append({"type": "thinking", "thinking": shown, "signature": signature(SIGNER, shown)})
    if answer.words:
        blocks.append({"type": "text", "text": answer.text})
    for call in answer.calls:
        inputs = json.loads(call.arguments)
        blocks.append({"type": "tool_use", "id": f"toolu_{call.id}", "name": call.name, "input": inputs})
    return blocks


def block_start(block: JSON) -> JSON:
    """A block before its first delta."""
    empty: dict[str, JSON] = {
        "thinking": {"thinking": "", "signature": ""},
        "text": {"text": ""},
        "tool_use": {"input": {}},
    }
    return block | empty[block["type"]]


def block_deltas(block: JSON, answer: Answer) -> Iterator[tuple[int, JSON]]:
    """(tokens, delta) of a block."""
    if block["type"] == "text":
        yield from ((1, {"type": "text_delta", "text": word}) for word in answer.words)
    elif block["type"] == "thinking":
        unspent = len(answer.thoughts)
        for thought in answer.thoughts if block["thinking"] else []:
            unspent -= 1
            yield 1, {"type": "thinking_delta", "thinking": thought}
        yield unspent, {"type": "signature_delta", "signature": block["signature"]}
    else:
        call = next(call for call in answer.calls if block["id"] == f"toolu_{call.id}")
        size = max(-(-len(call.arguments) // 4), 1)
        pieces = [call.arguments[at : at + size] for at in range(0, len(call.arguments), size)]
        yield call.tokens - len(pieces), {"type": "input_json_delta", "partial_json": ""}
        yield from ((1, {"type": "input_json_delta", "partial_json": piece}) for piece in pieces)


def stop_of(answer: Answer) -> str:
    """Anthropic's word for why it ended."""
    words = {"length": "max_tokens", "sequence": "stop_sequence", "tools": "tool_use"}
    return words.get(answer.finish, "end_turn" if answer.finish == "stop" else "refusal")


# ---------------------------------------------------------------------- the request


def content_of(said: Mapping[str, Any]) -> list[JSON]:
    """The blocks of a message, or of a result."""
    content = said.get("content") or []
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def prompt_of(body: JSON) -> Prompt:
    """The request in no format's words."""
    if not isinstance(body.get("model"), str) or not body.get("messages"):
        raise BadRequest("messages: at least one message is required")
    last = content_of(last_turn(body["messages"]))
    choice = body.get("tool_choice") or {}
    thinking = body.get("thinking") or {}
    blocks = [extra(tool, cache_of(tool)) for tool in body.get("tools") or []]
    blocks += [block_of(block) for block in content_of({"content": body.get("system")})]
    blocks += [block_of(block) for said in body["messages"] for block in content_of(said)]
    if body.get("cache_control"):
        tail = blocks[-1]
        blocks[-1] = Block(tail.text, tail.tokens, cache_of(body))
    wanted = (body.get("output_config") or {}).get("format") or body.get("output_format") or {}
    return Prompt(
        model=body["model"],
        blocks=blocks,
        last=[str(block.get("text", "")) for block in last],
        stream=bool(body.get("stream")),
        answers_tools=any(block["type"] == "tool_result" for block in last),
        limit=body.get("max_tokens"),
        stop=body.get("stop_sequences") or [],
        tools=[
            Tool(tool["name"], tool.get("input_schema"))
            for tool in body.get("tools") or []
            if "input_schema" in tool
        ],
        choice={"none": NONE, "any": MUST}.get(choice.get("type", ""), choice.get("name", AUTO)),
        parallel=not choice.get("disable_parallel_tool_use"),
        schema=wanted.get("schema"),
        reasons=thinking.get("type") in ("enabled", "adaptive"),
        facts={"display": thinking.get("display")},
    )


def cache_of(block: Mapping[str, Any]) -> int:
    """For how many seconds a marker asks to keep what comes up to it; 0 without one."""
    marker = block.get("cache_control")
    if not marker:
        return 0
    return HOUR if marker.get("ttl") == "1h" else FIVE_MINUTES


def block_of(block: JSON) -> Block:
    """A block as a piece of the prompt."""
    if block["type"] == "tool_result":
        inner = content_of(block)
        images = sum(part["type"] == "image" for part in inner)
        return message(" ".join(str(part.get("text", "")) for part in inner), images, cache_of(block))
    if block["type"] == "tool_use":
        return message(block["name"] + json.dumps(block["input"]), 0, cache_of(block))
    said = str(block.get("text", block.get("thinking", "")))
    return message(said, block["type"] == "image", cache_of(block))


def check_version(asked: Asked) -> None:
    """The header that names the API's version, and what the latest one takes no more."""
    told = asked.header(b"anthropic-version")
    if not told:
        raise BadRequest("anthropic-version: header is required")
    if told not in VERSIONS:
        raise BadRequest(f'anthropic-version: "{told}" is not a valid version. Did you mean "2023-06-01"?')
    if told != VERSIONS[-1]:
        return
    for name in REMOVED:
        if name in asked.body:
            raise WORDING.unknown((name,))
    for index, said in enumerate(asked.body.get("messages") or []):
        for number, block in enumerate(content_of(said) if said.get("role") == "user" else []):
            if block.get("citations") and block.get("type") == "text":
                raise WORDING.unknown(("messages", index, "content", number, "text", "citations"))


def check(body: JSON) -> None:
    """What may not stand together, and the order of turns."""
    if not body["messages"]:
        raise BadRequest("messages: at least one message is required")
    check_thinking(body)
    if body.get("tool_choice") and not body.get("tools"):
        raise BadRequest("tool_choice: may only be specified while providing `tools`")
    for index, stop in enumerate(body.get("stop_sequences") or []):
        if not stop.strip():
            raise BadRequest(f"stop_sequences.{index}: each stop sequence must contain non-whitespace")
    names = [tool["name"] for tool in body.get("tools") or []]
    if len(set(names)) < len(names):
        raise BadRequest("tools: Tool names must be unique.")
    check_markers(body)
    check_turns(body["messages"], body["model"])
    wanted = ((body.get("output_config") or {}).get("format") or {}).get("schema")
    if wanted is not None:
        check_output(wanted, "output_config.format.schema")


def check_thinking(body: JSON) -> None:
    """What goes with thinking."""
    thinking = body.get("thinking") or {}
    if thinking.get("type") not in ("enabled", "adaptive"):
        return
    if thinking["type"] == "enabled" and thinking["budget_tokens"] >= body.get("max_tokens", 2**63):
        raise BadRequest("`max_tokens` must be greater than `thinking.budget_tokens`.")
    if body.get("temperature", 1) != 1:
        raise BadRequest("`temperature` may only be set to 1 when thinking is enabled.")
    if body.get("top_k") is not None:
        raise BadRequest("`top_k` must be unset when thinking is enabled.")
    if (body.get("tool_choice") or {}).get("type") in ("any", "tool"):
        raise BadRequest("Thinking may not be enabled when tool_choice forces tool use.")
    last = next((m for m in reversed(body["messages"]) if m["role"] == "assistant"), None)
    open_turn = last is not None and any(
        block["type"] == "tool_result" for block in content_of(body["messages"][-1])
    )
    blocks = content_of(last) if last and open_turn else []
    if (
        blocks
        and thinking["type"] == "enabled"
        and blocks[0]["type"] not in ("thinking", "redacted_thinking")
    ):
        index = body["messages"].index(last)
        raise BadRequest(
            f"messages.{index}.content.0.type: Expected `thinking` or `redacted_thinking`, but found"
            f" `{blocks[0]['type']}`. When `thinking` is enabled, a final `assistant` message must start with"
            " a thinking block (preceeding the lastmost set of `tool_use` and `tool_result` blocks)."
        )


def check_markers(body: JSON) -> None:
    """At most four cache markers, none on an empty text."""
    places = [("tools", body.get("tools") or []), ("system", content_of({"content": body.get("system")}))]
    places += [(f"messages.{i}.content", content_of(said)) for i, said in enumerate(body["messages"])]
    found = bool(body.get("cache_control"))
    total = int(found)
    for place, blocks in places:
        for index, block in enumerate(blocks):
            if block.get("cache_control"):
                total += 1
                if block.get("type") == "text" and not block["text"]:
                    raise BadRequest(
                        f"{place}.{index}.text: cache_control cannot be set for empty text blocks"
                    )
    if total > MARKERS:
        raise BadRequest(f"A maximum of 4 blocks with cache_control may be provided. Found {total}.")


def check_turns(messages: list[JSON], model: str) -> None:
    """The order of turns; neighbours of one role count as one turn."""
    if messages[0]["role"] != "user":
        raise BadRequest(f'messages: first message must use the "user" role, found "{messages[0]["role"]}"')
    waiting: dict[str, int] = {}
    previous = ""
    for index, said in enumerate(messages):
        where = f"messages.{index}"
        role, blocks = said["role"], content_of(said)
        if role == "system":
            check_system(model, previous, waiting)
        elif not blocks and not (role == "assistant" and index == len(messages) - 1):
            raise BadRequest(
                f"{where}: all messages must have non-empty content except for the optional final assistant"
                " message"
            )
        check_blocks(where, blocks)
        if role == "user":
            answer_calls(where, blocks, waiting)
        elif role == "assistant":
            if previous != "assistant":
                unanswered(waiting)
            waiting |= {block["id"]: index for block in blocks if block["type"] == "tool_use"}
        previous = role
    unanswered(waiting)
    last = content_of(messages[-1])
    if messages[-1]["role"] == "assistant" and last and str(last[-1].get("text", "")).endswith((" ", "\n")):
        raise BadRequest("messages: final assistant content cannot end with trailing whitespace")


def check_system(model: str, previous: str, waiting: Mapping[str, int]) -> None:
    """A system message in the middle: newer models only, and right after a user's turn."""
    if OLDER.match(model):
        raise BadRequest("messages: role 'system' is not supported on this model")
    if previous != "user" or waiting:
        raise BadRequest("messages: a message with role 'system' must immediately follow a user turn")


def answer_calls(where: str, blocks: list[JSON], waiting: dict[str, int]) -> None:
    """Take the results of a user's turn, which must come first, from the calls that wait."""
    if not waiting and not any(block["type"] == "tool_result" for block in blocks):
        return
    for index, block in enumerate(blocks):
        if block["type"] == "tool_result":
            if block["tool_use_id"] not in waiting:
                raise BadRequest(
                    f"{where}.content.{index}: unexpected `tool_use_id` found in `tool_result` blocks:"
                    f" {block['tool_use_id']}. Each `tool_result` block must have a corresponding `tool_use`"
                    " block in the previous message."
                )
            del waiting[block["tool_use_id"]]
        else:
            unanswered(waiting)


def unanswered(waiting: Mapping[str, int]) -> None:
    """Refuse when a call has no result."""
    if waiting:
        raise BadRequest(
            f"messages.{min(waiting.values())}: `tool_use` ids were found without `tool_result` blocks"
            f" immediately after: {', '.join(waiting)}. Each `tool_use` block must have a corresponding"
            " `tool_result` block in the next message."
        )


def check_blocks(where: str, blocks: list[JSON]) -> None:
    """Texts, images and thoughts of one message."""
    for index, block in enumerate(blocks):
        at = f"{where}.content.{index}"
        kind = block["type"]
        if kind == "text" and not block["text"].strip():
            found = "non-empty" if not block["text"] else "contain non-whitespace text"
            raise BadRequest(f"messages: text content blocks must {'be ' if found[0] == 'n' else ''}{found}")
        if kind == "image" and block["source"]["type"] == "base64":
            problem = image_bytes(block["source"]["media_type"], block["source"]["data"])
            if problem:
                raise BadRequest(f"{at}.image.source.base64: {problem}")
        if kind == "thinking" and block["signature"] != signature(SIGNER, block["thinking"]):
            raise BadRequest(f"{at}: Invalid `signature` in `thinking` block")
        if kind == "tool_result":
            inner = [part for part in content_of(block) if part["type"] != "text"]
            check_blocks(at, inner)


def check_output(schema: Any, where: str) -> None:
    """A schema for answers must close every object."""
    if isinstance(schema, list):
        for inner in schema:
            check_output(inner, where)
    elif isinstance(schema, dict):
        if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
            raise BadRequest(
                f"{where}: For 'object' type, 'additionalProperties' must be explicitly set to false"
            )
        for name in ("properties", "$defs"):
            check_output(list((schema.get(name) or {}).values()), where)
        for name in ("items", "anyOf", "allOf"):
            check_output(schema.get(name), where)

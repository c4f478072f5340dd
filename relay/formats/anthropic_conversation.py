"""Requests in Anthropic's messages format from and to the neutral conversation.

Protocol: https://platform.claude.com/docs/en/api/messages
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from relay.formats.anthropic_fields import BILLING_LINE, without_billing_line
from relay.formats.anthropic_schema import answer_schema
from relay.formats.conversation import (
    AnswerFormat,
    Conversation,
    Image,
    Part,
    Reasoning,
    Refusal,
    Role,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Turn,
    Untranslatable,
    merged,
    without_blanks,
)
from relay.formats.format import Written
from relay.formats.reading import (
    CallNames,
    Object,
    arguments_object,
    arguments_text,
    encoded,
    image_type,
    items,
    life,
    mapping,
    mark,
    object_schema,
    one_of,
    only,
    optional,
    text,
)
from relay.providers.profiles import Profile

PLACES = {
    "max_output": "max_tokens",
    "stop": "stop_sequences",
    "user": "metadata.user_id",
    "effort": "output_config.effort",
    "tools_one_by_one": "tool_choice.disable_parallel_tool_use",
    "answer_format": "output_config.format",
    "cache": "cache_control",
}
_READ = frozenset(
    {
        *("model", "messages", "system", "stream", "tools", "tool_choice", "max_tokens", "temperature"),
        *("top_p", "top_k", "stop_sequences", "thinking", "output_config", "output_format", "metadata"),
        *("cache_control", "service_tier", "speed", "inference_geo"),
    }
)
# Wishes about the provider's own ways: they say nothing about the answer.
_LEFT_OUT = ("context_management", "diagnostics")
_TOOL_FIELDS = ("name", "description", "input_schema", "strict", "cache_control", "type")
_TOOL_WISHES = ("eager_input_streaming", "defer_loading", "allowed_callers")
_NOT_OF_AN_ID = re.compile(r"[^a-zA-Z0-9_-]")
# Google's, of texts and calls, which only Google reads.
SIGNATURE = "thoughtSignature"
EFFORTS = ("low", "medium", "high", "xhigh", "max")
_NOT_HERE = "this model's provider speaks Anthropic's format, which has no such field; leave it out"


# ---------------------------------------------------------------- reading


def read_request(body: bytes, drop_unknown: bool) -> Conversation:
    """See Format."""
    fields: Object = {name: value for name, value in json.loads(body).items() if value is not None}
    left_out = [name for name in _LEFT_OUT if fields.pop(name, None) is not None]
    if drop_unknown:
        left_out += sorted(fields.keys() - _READ)
        fields = {name: fields[name] for name in fields.keys() & _READ}
    only(fields, _READ, "")
    config = mapping(fields.get("output_config", {}), "output_config")
    only(config, ("effort", "format"), "output_config")
    made = Conversation(
        model=text(fields.get("model"), "model"),
        turns=_read_turns(fields, left_out),
        stream=bool(optional(fields.get("stream"), bool, "stream")),
        include_usage=True,
        tools=[
            _read_tool(mapping(tool, f"tools.{number}"), f"tools.{number}", left_out)
            for number, tool in enumerate(items(fields.get("tools"), "tools"))
        ],
        answer_format=_read_format(config.get("format", fields.get("output_format"))),
        max_output=optional(fields.get("max_tokens"), int, "max_tokens"),
        temperature=optional(fields.get("temperature"), float, "temperature"),
        top_p=optional(fields.get("top_p"), float, "top_p"),
        top_k=optional(fields.get("top_k"), int, "top_k"),
        stop=[
            text(word, f"stop_sequences.{number}")
            for number, word in enumerate(items(fields.get("stop_sequences"), "stop_sequences"))
        ],
        effort=optional(config.get("effort"), str, "output_config.effort"),
        cache=life(fields.get("cache_control"), "cache_control"),
        places=PLACES,
        left_out=left_out,
    )
    _read_choice(fields.get("tool_choice"), made)
    _read_thinking(fields.get("thinking"), made)
    metadata = mapping(fields.get("metadata", {}), "metadata")
    made.user = optional(metadata.get("user_id"), str, "metadata.user_id")
    left_out += [f"metadata.{name}" for name in sorted(metadata) if name != "user_id"]
    return made


def _read_turns(fields: Object, left_out: list[str]) -> list[Turn]:
    turns: list[Turn] = []
    if "system" in fields:
        parts = _read_content(fields["system"], "system", left_out)
        turns.append(Turn("system", _without_billing_line(parts, left_out), place="system"))
    for number, message in enumerate(items(fields.get("messages"), "messages")):
        place = f"messages.{number}"
        message = mapping(message, place)
        only(message, ("role", "content"), place)
        role: Role = one_of(message.get("role"), ("user", "assistant", "system"), f"{place}.role")  # type: ignore[assignment]
        parts = _read_content(message.get("content"), f"{place}.content", left_out)
        turns.append(Turn(role, parts, place=place))
    return merged(turns)


def _without_billing_line(parts: list[Part], left_out: list[str]) -> list[Part]:
    first = parts[0] if parts else None
    if not isinstance(first, Text) or first.text == (rest := without_billing_line(first.text)):
        return parts
    left_out.append(BILLING_LINE.rstrip(":"))
    first.text = rest
    return parts if rest.strip() else parts[1:]


def _read_content(content: Any, place: str, left_out: list[str]) -> list[Part]:
    if isinstance(content, str):
        return [Text(content, place=place)]
    return [
        _read_block(mapping(block, f"{place}.{number}"), f"{place}.{number}", left_out)
        for number, block in enumerate(items(content, place))
    ]


def _read_block(block: Object, place: str, left_out: list[str]) -> Part:
    kind = block.get("type")
    cache = life(block.get("cache_control"), f"{place}.cache_control")
    if kind == "text":
        only(block, ("type", "text", "cache_control", "citations"), place)
        if block.get("citations"):
            left_out.append(f"{place}.citations")
        return Text(text(block.get("text"), f"{place}.text"), cache, place=place)
    if kind == "image":
        only(block, ("type", "source", "cache_control"), place)
        return _read_image(mapping(block.get("source"), f"{place}.source"), cache, place)
    if kind == "thinking":
        only(block, ("type", "thinking", "signature"), place)
        thought = text(block.get("thinking"), f"{place}.thinking")
        return Reasoning(thought, optional(block.get("signature"), str, place) or None, place=place)
    if kind == "redacted_thinking":
        return Reasoning(hidden=text(block.get("data"), f"{place}.data"), place=place)
    if kind == "tool_use":
        only(block, ("type", "id", "name", "input", "cache_control", "caller"), place)
        arguments = arguments_text(mapping(block.get("input"), f"{place}.input"))
        name, call = text(block.get("name"), f"{place}.name"), text(block.get("id"), f"{place}.id")
        return ToolCall(call, name, arguments, cache=cache, place=place)
    if kind == "tool_result":
        return _read_result(block, cache, place, left_out)
    raise Untranslatable(f"{place}.type", f"'{kind}' cannot be sent to this model's provider; send its text")


def _read_image(source: Object, cache: Any, place: str) -> Image:
    if source.get("type") == "url":
        return Image(url=text(source.get("url"), f"{place}.source.url"), cache=cache, place=place)
    one_of(source.get("type"), ("base64",), f"{place}.source.type")
    return Image(
        image_type(text(source.get("media_type"), f"{place}.source.media_type")),
        text(source.get("data"), f"{place}.source.data"),
        cache=cache,
        place=place,
    )


def _read_result(block: Object, cache: Any, place: str, left_out: list[str]) -> ToolResult:
    parts: list[Text | Image] = []
    for part in _read_content(block.get("content"), f"{place}.content", left_out):
        if not isinstance(part, Text | Image):
            raise Untranslatable(part.place, "a tool's result can hold texts and images alone")
        parts.append(part)
    failed = bool(optional(block.get("is_error"), bool, f"{place}.is_error"))
    return ToolResult(
        text(block.get("tool_use_id"), f"{place}.tool_use_id"), parts, failed, cache, place=place
    )


def _read_tool(tool: Object, place: str, left_out: list[str]) -> Tool:
    if tool.get("type") not in (None, "custom"):
        raise Untranslatable(
            f"{place}.type", "this model's provider has no such tool; send a tool with an input_schema"
        )
    only(tool, (*_TOOL_FIELDS, *_TOOL_WISHES), place)
    left_out += [f"{place}.{name}" for name in _TOOL_WISHES if tool.get(name) is not None]
    return Tool(
        name=text(tool.get("name"), f"{place}.name"),
        description=optional(tool.get("description"), str, f"{place}.description"),
        schema=object_schema(tool.get("input_schema")),
        strict=optional(tool.get("strict"), bool, f"{place}.strict") or None,
        cache=life(tool.get("cache_control"), f"{place}.cache_control"),
        place=place,
    )


def _read_choice(choice: Any, made: Conversation) -> None:
    if choice is None:
        return
    choice = mapping(choice, "tool_choice")
    only(choice, ("type", "name", "disable_parallel_tool_use"), "tool_choice")
    mode = one_of(choice.get("type"), ("auto", "any", "none", "tool"), "tool_choice.type")
    name = text(choice.get("name"), "tool_choice.name") if mode == "tool" else None
    made.tool_choice = ToolChoice(mode, name)  # type: ignore[arg-type]
    if choice.get("disable_parallel_tool_use"):
        made.tools_one_by_one = True


def _read_thinking(thinking: Any, made: Conversation) -> None:
    if thinking is None:
        return
    kind = mapping(thinking, "thinking").get("type")
    made.thinking = "off" if kind == "disabled" else "on"
    made.thinking_budget = optional(thinking.get("budget_tokens"), int, "thinking.budget_tokens")


def _read_format(wanted: Any) -> AnswerFormat | None:
    if wanted is None:
        return None
    wanted = mapping(wanted, "output_config.format")
    only(wanted, ("type", "schema"), "output_config.format")
    one_of(wanted.get("type"), ("json_schema",), "output_config.format.type")
    return AnswerFormat(mapping(wanted.get("schema"), "output_config.format.schema"))


# ---------------------------------------------------------------- writing


def write_request(conversation: Conversation, model: str, max_output: int, profile: Profile) -> Written:
    """See Format."""
    made = conversation
    made.refuse(
        *("seed", "frequency_penalty", "presence_penalty", "logprobs", "top_logprobs"), remedy=_NOT_HERE
    )
    if made.candidates != 1:
        raise Untranslatable(made.place_of("candidates"), "this model gives one answer a call; send 1")
    if made.temperature is not None and made.temperature > 1:
        raise Untranslatable(made.place_of("temperature"), "this model takes 0 to 1")
    left_out = list(made.left_out)
    turns = merged(replace(turn, parts=without_blanks(turn.parts)) for turn in made.turns)
    names = _Names()
    fields: Object = {"model": model, "max_tokens": made.max_output or max_output}
    if turns and turns[0].role == "system":
        fields["system"] = _write_content(turns.pop(0).parts, left_out)
    fields["messages"] = [_write_turn(replace(turn, parts=names.of(turn.parts)), left_out) for turn in turns]
    if made.stream:
        fields["stream"] = True
    if made.tools:
        fields["tools"] = [_write_tool(tool) for tool in made.tools]
    sampling = {"temperature": made.temperature, "top_p": made.top_p, "top_k": made.top_k}
    fields |= {name: value for name, value in sampling.items() if value is not None}
    if made.stop:
        fields["stop_sequences"] = made.stop
    if made.user is not None:
        fields["metadata"] = {"user_id": made.user}
    fields |= _write_choice(made) | _write_wishes(made, left_out) | mark(made.cache)
    if fields.get("thinking", _OFF) != _OFF and "top_k" in fields:
        del fields["top_k"]
        left_out += made.without_top_k()
    return Written(encoded(fields), left_out)


def _write_turn(turn: Turn, left_out: list[str]) -> Object:
    if turn.name is not None:
        raise Untranslatable(f"{turn.place}.name", _NOT_HERE)
    # Results must come first; the rest keeps its order.
    parts = sorted(turn.parts, key=lambda part: not isinstance(part, ToolResult))
    return {"role": turn.role, "content": _write_content(parts, left_out)}


def _write_content(parts: Iterable[Part], left_out: list[str]) -> str | list[Object]:
    parts = list(parts)
    if len(parts) == 1 and isinstance(parts[0], Text) and parts[0] == Text(parts[0].text):
        return parts[0].text
    return [_write_part(part, left_out) for part in parts]


def _write_part(part: Part, left_out: list[str]) -> Object:
    if isinstance(part, Text | ToolCall) and part.signature is not None and SIGNATURE not in left_out:
        left_out.append(SIGNATURE)
    if isinstance(part, Text):
        return {"type": "text", "text": part.text} | mark(part.cache)
    if isinstance(part, Image):
        if part.detail is not None:
            left_out.append(f"{part.place}.detail")
        return {"type": "image", "source": _source(part)} | mark(part.cache)
    if isinstance(part, Reasoning):
        return _write_reasoning(part)
    if isinstance(part, ToolCall):
        call: Object = {"type": "tool_use", "id": part.id, "name": part.name}
        call["input"] = arguments_object(part.arguments)
        return call | mark(part.cache)
    if isinstance(part, Refusal):
        raise Untranslatable(part.place, "a refusal cannot be sent to this model's provider; send it as text")
    result: Object = {"type": "tool_result", "tool_use_id": part.call_id}
    if part.parts:
        result["content"] = _write_content(part.parts, left_out)
    if part.is_error:
        result["is_error"] = True
    return result | mark(part.cache)


class _Names:
    """Names of calls as this API takes them: of certain characters, and each another one in the whole
    conversation. Some models count their calls anew in each answer."""

    def __init__(self) -> None:
        self._names = CallNames()
        self._waiting: dict[str, list[str]] = {}

    def of(self, parts: Iterable[Part]) -> list[Part]:
        """The parts with these names, the same for a call and its result."""
        return [self._renamed(part) for part in parts]

    def _renamed(self, part: Part) -> Part:
        if isinstance(part, ToolCall):
            name = self._names.name(_NOT_OF_AN_ID.sub("_", part.id))
            self._waiting.setdefault(part.id, []).append(name)
            return replace(part, id=name)
        if isinstance(part, ToolResult):
            waiting = self._waiting.get(part.call_id)
            name = waiting.pop(0) if waiting else _NOT_OF_AN_ID.sub("_", part.call_id)
            return replace(part, call_id=name)
        return part


def _source(image: Image) -> Object:
    if image.url is not None:
        return {"type": "url", "url": image.url}
    return {"type": "base64", "media_type": image.media_type, "data": image.data}


def _write_reasoning(part: Reasoning) -> Object:
    if part.hidden is not None:
        return {"type": "redacted_thinking", "data": part.hidden}
    if part.signature is None:
        remedy = "thoughts without their signature cannot be sent to this model's provider; leave them out"
        raise Untranslatable(part.place, remedy)
    return {"type": "thinking", "thinking": part.text, "signature": part.signature}


def _write_tool(tool: Tool) -> Object:
    made: Object = {"name": tool.name}
    if tool.description is not None:
        made["description"] = tool.description
    made["input_schema"] = object_schema(tool.schema if tool.schema is not None else {})
    if tool.strict:
        made["strict"] = True
    return made | mark(tool.cache)


def _write_choice(made: Conversation) -> Object:
    choice = made.choice
    if choice is None and not (made.tools_one_by_one and made.tools):
        return {}
    mode = choice.mode if choice else "auto"
    written: Object = {"type": mode} | ({"name": choice.name} if choice and mode == "tool" else {})
    if made.tools_one_by_one and mode != "none":
        written["disable_parallel_tool_use"] = True
    return {"tool_choice": written}


_OFF: Object = {"type": "disabled"}


def _forbids_thinking(made: Conversation) -> bool:
    """Whether the request says what this API does not take together with thoughts."""
    forced = made.choice is not None and made.choice.mode in ("any", "tool")
    return forced or made.temperature not in (None, 1) or made.top_k is not None


def _write_wishes(made: Conversation, left_out: list[str]) -> Object:
    """How the answer is to look, and how hard to think: by effort, where nothing else was said."""
    fields: Object = {}
    config: Object = {}
    thinking = made.thinking
    if made.effort == "none":
        thinking = "off"
    elif made.effort is not None:
        config["effort"] = one_of(made.effort, EFFORTS, made.place_of("effort"))
        thinking = thinking or (None if _forbids_thinking(made) else "on")
    if thinking == "off":
        fields["thinking"] = _OFF
    elif thinking == "on":
        budget = made.thinking_budget
        fields["thinking"] = (
            {"type": "adaptive"} if budget is None else {"type": "enabled", "budget_tokens": budget}
        )
    wanted = made.answer_format
    if wanted is not None:
        if wanted.schema is None:
            raise Untranslatable(made.place_of("answer_format"), "use json_schema with a schema")
        place = made.place_of("answer_format")
        said: list[str] = []
        config["format"] = {"type": "json_schema", "schema": answer_schema(wanted.schema, said)}
        left_out += [f"{place}.{name}" for name in said]
        labels = {"name": wanted.name, "description": wanted.description, "strict": wanted.strict}
        left_out += [f"{place}.{name}" for name, value in labels.items() if value is not None]
    return fields | ({"output_config": config} if config else {})
